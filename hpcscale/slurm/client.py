"""How is Slurm asked? ``SlurmClient`` is the second of hpcscale's two seams.

The default implementation is the command line's text (``hpcscale.slurm.cli``); every
implementation passes the contract suite in ``tests/contract``.
"""

import datetime as dt
from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

from hpcscale.slurm.types import Answer, JobStatus, SiteFacts, Switch
from hpcscale.units import JobId


class SlurmClient(Protocol):
    """Asks one site's controller. Methods raise ``UnreachableError`` when there is no answer."""

    def sbatch(
        self,
        script: str,
        options: Sequence[str],
        script_args: Sequence[str] = (),
        *,
        cwd: str | None = None,
        timeout_s: float = 60.0,
    ) -> JobId:
        """Submit; ``hpcscale.submit`` is the only caller.

        Args:
            script: text, sent on standard input.
            options: sbatch options, each one argv element.
            script_args: arguments of the script.

        Raises:
            RefusedError: sbatch said no (its message translated); nothing was submitted.
            SubmitUnknownError: no answer in time: the job may exist.
        """

    def test_only(
        self, script: str, options: Sequence[str], script_args: Sequence[str] = ()
    ) -> dt.datetime | None:
        """``sbatch --test-only``: when it would start; None when Slurm gives no time.

        One partition a call: slurmctld 26.05.0 and 26.05.1 crash when the first of several is
        empty. Raises RefusedError when the request can never run.
        """

    def jobs(
        self,
        ids: Iterable[JobId] | None = None,
        *,
        user: str | None = None,
        everyone: bool = False,
    ) -> Answer:
        """Status of jobs, by ONE squeue call whatever their number, filtered here.

        With ``ids`` None: all of ``user``'s jobs (default: the remote user's own). A job that
        squeue does not list is absent from the answer: that means UNKNOWN, not COMPLETED.
        ``Answer.of(id)`` gives the records of an id, also of an array's or a het job's base id.
        With ``everyone``: all users' waiting jobs, as far as this user may see them
        (PrivateData, slurm.conf(5)). Raises NotFoundError when there is no such user.
        """

    def job_count(self) -> int:
        """How many jobs count against MaxJobCount: every array element, ended ones too.

        What this user may see of them: PrivateData may hide others'.
        """

    def history(self, ids: Sequence[JobId], *, since: dt.datetime) -> Answer:
        """Ended jobs, by one sacct call; without slurmdbd what squeue still has (MinJobAge).

        sacct shows a double quote in names as a backquote. ``complete`` is False where there is no
        accounting: absence says nothing then.
        """

    def show(self, job_id: JobId) -> JobStatus | None:
        """One job with all fields, ``exc_nodes`` too; None when Slurm says the id is invalid.

        A requeue sets ``submit_time`` anew: to verify that it is still the same job compare the
        submission id in ``comment`` and ``user``, and ``submit_time`` exactly only while
        ``restarts`` is what it was.
        """

    def update(self, job_id: JobId, fields: Mapping[str, str]) -> bool:
        """``scontrol update``; False when Slurm refused. Re-read the job for the verdict."""

    def change(self, job_id: JobId, fields: Mapping[str, str]) -> str:
        """``update``, with Slurm's words when it refused; empty when it did not."""

    def cancel(
        self, job_id: JobId, *, pending_only: bool = False, signal: str | None = None
    ) -> bool:
        """``scancel``; whether Slurm accepted. Callers verify first that it is still that job."""

    def requeue(self, job_id: JobId) -> bool:
        """``scontrol requeue``."""

    def release(self, job_id: JobId) -> bool:
        """``scontrol release`` of a held job; whether Slurm accepted."""

    def facts(self) -> SiteFacts:
        """Version, partitions, limits, accounts: a few calls, for checks and ``site check``."""

    def switches(self) -> tuple[Switch, ...]:
        """The switches that the controller knows; empty where no tree is configured."""

    def node_states(self, nodes: str) -> dict[str, str]:
        """Slurm's state word of each node of a hostlist (``sinfo -N``), flags included."""

    def now(self) -> dt.datetime:
        """The controller's own clock, aware UTC (sdiag(1) prints it)."""
