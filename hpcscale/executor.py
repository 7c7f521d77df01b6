"""The submitit plugin: ``HpcscaleExecutor`` runs jobs on any site, through our own submission.

It keeps submitit's folder, ``Job``, watcher and ``cancel``; what differs is who is asked: the
site's own Slurm through its transport, in place of a local ``sbatch``, ``sacct`` and ``scancel``.
No slurmdbd is needed. submitit finds it by its entry points, under the name ``hpcscale``.
"""

import os
import shlex
import sys
import threading
import time
import typing as tp
from pathlib import Path

from submitit.core import core, logger, utils
from submitit.slurm import slurm

from hpcscale.connect import Connection, connect
from hpcscale.errors import HpcscaleError, NotFoundError, UnreachableError, UsageError
from hpcscale.ledger import Ledger, Role, Run, ledger_path
from hpcscale.render import RenderedJob, render
from hpcscale.reports import read_reports
from hpcscale.settings import choose_site
from hpcscale.site import load_site
from hpcscale.slurm.types import JobState, JobStatus
from hpcscale.spec import JobSpec, Resources
from hpcscale.submit import Submission, submit
from hpcscale.units import JobId, JobRef
from hpcscale.verify import require_same

R_co = tp.TypeVar("R_co", covariant=True)


class HpcscaleInfoWatcher(slurm.SlurmInfoWatcher):
    """Asks one site about all its jobs by one squeue; there is one watcher for each site.

    A job that Slurm no longer lists is UNKNOWN, never done; done is an allow-list of final states.

    Args:
        site: the site's name.
        delay_s: longest time between two questions.
    """

    def __init__(self, site: str, delay_s: int = 60) -> None:
        super().__init__(delay_s=delay_s)
        self.site = site
        self._connection: Connection | None = None

    @property
    def connection(self) -> Connection:
        """To the site; made at the first need."""
        if self._connection is None:
            self._connection = connect(load_site(self.site).site)
        return self._connection

    def use(self, connection: Connection) -> None:
        """Ask through this connection from now on."""
        self._connection = connection

    def update(self) -> None:
        """Ask the site once about all jobs that are not final; no answer changes nothing."""
        open_jobs = sorted(self._registered - self._finished)
        if not open_jobs:
            return
        self._num_calls += 1
        ids = [JobId.parse(text) for text in open_jobs]
        now = time.time()  # the clock that the base class compares with
        self._last_status_check = now
        try:
            answer = self.connection.client.jobs(ids)
            missing = [i for i in ids if not answer.of(i)]
            older = self.connection.client.history(missing, since=_days_ago(8)) if missing else None
        except UnreachableError as exc:
            logger.get_logger().warning(f"{self.site}: no answer, states are old: {exc}")
            return
        for job_id in ids:
            found = answer.of(job_id) or (older.of(job_id) if older else [])
            if found:
                self._info_dict[str(job_id)] = _info(found)
        self._finished |= {j for j in open_jobs if self.is_done(j, mode="cache")}

    def is_done(self, job_id: str, mode: str = "standard") -> bool:
        """Whether Slurm called the job's state final."""
        try:
            return JobState(self.get_state(job_id, mode=mode)).terminal
        except ValueError:
            return False


_WATCHERS: dict[str, HpcscaleInfoWatcher] = {}
_WATCHERS_LOCK = threading.Lock()


def watcher_of(site: str) -> HpcscaleInfoWatcher:
    """The one watcher of a site in this process."""
    with _WATCHERS_LOCK:
        return _WATCHERS.setdefault(site, HpcscaleInfoWatcher(site))


class HpcscaleJob(slurm.SlurmJob[R_co]):
    """A submitit job at a site.

    Args:
        folder: submitit's folder, on this machine.
        job_id: Slurm's id at the site.
        tasks: as in submitit.
        site: the site's name.
        submission_id: ours; acts check that the job still carries it.
        run_dir: the run's directory on the site; None for a job known by its id alone.
        rendered: whether it runs a rendered script, whose outcome is its exit code, and no pickled
            function.
    """

    watcher: HpcscaleInfoWatcher

    def __init__(
        self,
        folder: Path | str,
        job_id: str,
        tasks: tp.Sequence[int] = (0,),
        *,
        site: str = "",
        submission_id: str = "",
        run_dir: str = "",
        rendered: bool = False,
    ) -> None:
        if len(tasks) > 1:
            raise UsageError(
                "functions on several tasks are not supported yet",
                hint="tasks_per_node=1, nodes=1, or submit a command with `hpcscale submit`",
            )
        self.site = site
        self.submission_id = submission_id
        self.run_dir = run_dir
        self.rendered = rendered
        self.watcher = watcher_of(site)
        super().__init__(folder, job_id, tasks)

    @property
    def ref(self) -> JobRef:
        """``site:id``."""
        return JobRef(self.site, JobId.parse(self.job_id))

    def done(self, force_check: bool = False) -> bool:
        """Whether it has ended, by Slurm's word or by the script's own report."""
        if not self.rendered:
            return bool(super().done(force_check))
        mode = "force" if force_check else "standard"
        if self.watcher.is_done(self.job_id, mode=mode):
            return True
        # Slurm without slurmdbd forgets ended jobs: the script's report stays
        return self.state == JobState.UNKNOWN.value and self._reported_exit() is not None

    def cancel(self, check: bool = True) -> None:
        """Cancel it, after checking that the id still names this job.

        Args:
            check: raise when the site gives no answer, or when it is another job.

        Raises:
            NotThisJobError: the id was given to another job; nothing was done.
            UnreachableError: no answer.
        """
        try:
            client = self.watcher.connection.client
            if not self.submission_id:
                raise NotFoundError(f"{self.ref} was not submitted from here")
            attempt = _ledger().attempt(self.submission_id)
            status = require_same(attempt, client, JobId.parse(self.job_id))
            if status is not None and not status.state.terminal:
                client.cancel(JobId.parse(self.job_id))
        except HpcscaleError:
            if check:
                raise

    def result(self) -> R_co:
        """Wait for the end: a function's value, or of a rendered script its outcome.

        The outcome is a dict: ``ref``, ``state``, ``exit_code`` (None when nobody told).

        Raises:
            FailedJobError: the script ended badly.
        """
        return self.results()[0] if self.rendered else super().result()

    def results(self) -> list[R_co]:
        """As ``result``, in a list."""
        if not self.rendered:
            return list(super().results())
        problem = self.exception()
        if problem is not None:
            raise problem
        return [tp.cast(R_co, self.outcome())]

    def exception(self) -> utils.UncompletedJobError | utils.FailedJobError | None:
        """Wait for the end; the error, or None when it ended well."""
        if not self.rendered:
            return super().exception()
        self.wait()
        outcome = self.outcome()
        if outcome["state"] == JobState.COMPLETED.value or (
            outcome["state"] == JobState.UNKNOWN.value and outcome["exit_code"] == 0
        ):
            return None
        return utils.FailedJobError(
            f"{self.ref} ended {outcome['state']} with exit code {outcome['exit_code']}; "
            "see its log with job.stdout()"
        )

    def outcome(self) -> dict[str, tp.Any]:
        """State and exit code as known now; nothing is unpickled."""
        info = self.watcher.get_info(self.job_id, mode="cache")
        code: int | None = int(info["ExitCode"]) if info.get("ExitCode") else None
        return {
            "ref": str(self.ref),
            "state": self.watcher.get_state(self.job_id, mode="cache"),
            "exit_code": self._reported_exit() if code is None else code,
        }

    def stdout(self) -> str | None:
        """The log, read from the site; None when there is none yet."""
        if not self.rendered:
            return super().stdout()
        path = f"{self.run_dir}/logs/{self.job_id}.log"
        try:
            data = self.watcher.connection.transport.read_bytes(path)
        except NotFoundError:
            return None
        return data.decode("utf-8", errors="replace")

    def stderr(self) -> str | None:
        """Of a rendered script: None, both streams are in one log."""
        return None if self.rendered else super().stderr()

    def _reported_exit(self) -> int | None:
        """The exit code that the script reported at its end."""
        if not self.run_dir:
            return None
        reports = read_reports(self.watcher.connection.transport, [self.run_dir])
        ends = [r.exit_code for r in reports.get(self.submission_id, []) if r.final]
        return ends[-1] if ends else None

    def __getstate__(self) -> dict[str, tp.Any]:
        return {k: v for k, v in self.__dict__.items() if k != "watcher"}

    def __setstate__(self, state: dict[str, tp.Any]) -> None:
        self.watcher = watcher_of(state["site"])
        super().__setstate__(state)


class HpcscaleJobEnvironment(slurm.SlurmJobEnvironment):
    """What submitit asks inside a job: Slurm's own variables."""


class HpcscaleExecutor(slurm.SlurmExecutor):
    """Submits to a site.

    ``submitit.AutoExecutor(folder, cluster="hpcscale", hpcscale_site="lab-onprem")`` makes one too.

    Args:
        folder: submitit's folder, on this machine.
        max_num_timeout: as in submitit.
        max_pickle_size_gb: as in submitit.
        python: as in submitit: the interpreter that runs a function, on the site.
        site: the site's name; default as for `hpcscale submit`.
        connection: to that site; made when needed.
        ledger: default the user's own.
    """

    job_class = HpcscaleJob

    def __init__(
        self,
        folder: str | Path,
        max_num_timeout: int = 3,
        max_pickle_size_gb: float = 1.0,
        python: str | None = None,
        *,
        site: str | None = None,
        connection: Connection | None = None,
        ledger: Ledger | None = None,
    ) -> None:
        super().__init__(folder, max_num_timeout, max_pickle_size_gb, python)
        self.site = connection.site.name if connection else choose_site(site)
        self._ledger = ledger
        if connection is not None:
            watcher_of(self.site).use(connection)

    @classmethod
    def affinity(cls) -> int:
        """Available everywhere, never chosen over submitit's own ``slurm``."""
        return 1

    @property
    def connection(self) -> Connection:
        """To the site, shared with its watcher."""
        return watcher_of(self.site).connection

    def submit_rendered(
        self, rendered: RenderedJob, *, run: Run | None = None, role: Role = Role.ONPREM
    ) -> HpcscaleJob[dict[str, tp.Any]]:
        """Submit a rendered script; its outcome is its exit code.

        Args:
            rendered: rendered for this executor's site.
            run: the run that this is a further attempt of.
            role: why this attempt exists.

        Raises:
            What ``hpcscale.submit.submit`` raises.
        """
        if rendered.site != self.site:
            raise UsageError(
                f"the script was rendered for {rendered.site}, this executor submits to {self.site}"
            )
        submission = submit(
            rendered, self.connection.site, self.connection, self._book(), run=run, role=role
        )
        job: HpcscaleJob[dict[str, tp.Any]] = self._job(submission, rendered=True)
        job.paths.folder.mkdir(parents=True, exist_ok=True)
        # one file per job for whoever looks into submitit's folder
        job.paths.submission_file.write_text(rendered.script, encoding="utf-8")
        return job

    def _job(self, submission: Submission, *, rendered: bool) -> HpcscaleJob[tp.Any]:
        return HpcscaleJob(
            self.folder,
            str(submission.ref.job_id),
            site=self.site,
            submission_id=submission.submission_id,
            run_dir=submission.run_dir,
            rendered=rendered,
        )

    def _book(self) -> Ledger:
        return self._ledger or _ledger()

    # --- functions, on a site that shares this machine's file system ------------------------

    @classmethod
    def _valid_parameters(cls) -> set[str]:
        return {"job_name", "time", "mem", "nodes", "cpus_per_task", "gpus_per_node",
                "ntasks_per_node", "partition", "account", "qos", "constraint"}  # fmt: skip

    def _internal_update_parameters(self, **kwargs: tp.Any) -> None:
        unknown = sorted(set(kwargs) - self._valid_parameters())
        if unknown:
            raise UsageError(
                f"parameters not supported yet: {', '.join(unknown)}",
                hint=f"supported: {', '.join(sorted(self._valid_parameters()))}",
            )
        self.parameters.update(kwargs)

    def _internal_process_submissions(
        self, delayed_submissions: list[utils.DelayedSubmission]
    ) -> list[core.Job[tp.Any]]:
        if len(delayed_submissions) != 1:
            raise UsageError(
                "arrays of functions are not supported yet",
                hint="submit() one by one, or `hpcscale submit --array`",
            )
        if not self.connection.transport.is_local:
            raise UsageError(
                f"functions run on local sites only yet, and {self.site} is reached by "
                f"{self.connection.site.transport.kind.value}",
                hint="submit a command with `hpcscale submit --site " + self.site + "`",
            )
        return core.PicklingExecutor._internal_process_submissions(  # noqa: SLF001 # submitit's plugin contract
            self, delayed_submissions
        )

    def _submit_command(self, command: str) -> core.Job[tp.Any]:
        site = self.connection.site
        spec = self._spec(command)
        submission = submit(render(spec, site), site, self.connection, self._book())
        return self._job(submission, rendered=False)

    def _start_in(self) -> Path:
        """The current directory where the nodes see it, else submitit's folder, which they must."""
        shared = [Path(root) for root in self.connection.site.shared_dirs]

        def seen(path: Path) -> bool:
            return any(path.is_relative_to(root) for root in shared)

        if not seen(self.folder):
            raise UsageError(
                f"submitit's folder {self.folder} is not seen by the nodes of {self.site}",
                hint="choose one below "
                + (" or ".join(map(str, shared)) or "a shared directory")
                + "; the site's `shared_dirs` names what the nodes see",
            )
        here = Path.cwd()
        return here if seen(here) else self.folder

    def _spec(self, command: str) -> JobSpec:
        asked = dict(self.parameters)
        nodes, tasks = int(asked.get("nodes", 1)), int(asked.get("ntasks_per_node", 1) or 1)
        if nodes * tasks != 1:
            raise UsageError(
                "functions on several tasks are not supported yet",
                hint="nodes=1, tasks_per_node=1",
            )
        mem = asked.get("mem")
        return JobSpec(
            name=asked.get("job_name", "submitit"),
            command=tuple(shlex.split(command)),
            workdir=str(self._start_in()),
            env={"SUBMITIT_EXECUTOR": self.name(), "PYTHONPATH": os.pathsep.join(_import_path())},
            partition=asked.get("partition"),
            account=asked.get("account"),
            qos=asked.get("qos"),
            constraint=asked.get("constraint"),
            resources=Resources(
                gpus_per_node=int(asked.get("gpus_per_node", 0)),
                cpus_per_task=asked.get("cpus_per_task"),
                mem_gb=None if mem is None else _gigabytes(str(mem)),
                time_limit_s=int(asked.get("time", 5)) * 60,
            ),
        )


def _ledger() -> Ledger:
    """This process's handle on the user's ledger."""
    path = ledger_path()
    if path not in _LEDGERS:
        _LEDGERS[path] = Ledger.open(path)
    return _LEDGERS[path]


_LEDGERS: dict[Path, Ledger] = {}


def _days_ago(days: int) -> tp.Any:
    import datetime as dt

    return dt.datetime.now(dt.UTC) - dt.timedelta(days=days)


def _import_path() -> list[str]:
    """Where this process imports from besides its interpreter's own directories.

    A function's modules are found there again.
    """
    own = (sys.prefix, sys.base_prefix)
    paths = [path for path in sys.path if path and Path(path).is_dir()]
    return [path for path in paths if not path.startswith(own)]


def _gigabytes(text: str) -> float:
    """Read memory as submitit writes it: ``4GB`` or ``512MB``."""
    return float(text[:-2]) / (1024 if text.endswith("MB") else 1)


def _info(found: list[JobStatus]) -> dict[str, str]:
    """One job as submitit wants it; an array is as its least finished element."""
    pick = next((s for s in found if not s.state.terminal), None)
    pick = pick or next((s for s in found if s.state is not JobState.COMPLETED), found[0])
    return {
        "JobID": str(pick.job_id),
        "State": pick.state.value,
        "NodeList": pick.nodes,
        "Reason": pick.reason,
        "ExitCode": "" if pick.exit_code is None else str(pick.exit_code[0]),
    }
