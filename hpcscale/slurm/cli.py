"""``CliClient``: Slurm asked through its own commands, over any transport.

Text, not ``--json``: the same columns from 22.05 to 26.05, and one tenth of the time at 30,000
jobs. See ``hpcscale.slurm.client.SlurmClient`` for the contract of each method.
"""

import datetime as dt
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace

import msgspec

from hpcscale.errors import (
    HpcscaleError,
    NotFoundError,
    NotSentError,
    RefusedError,
    SubmitUnknownError,
    UnreachableError,
)
from hpcscale.slurm import _answers, _squeue
from hpcscale.slurm.transport import DEFAULT_TIMEOUT_S, Completed, Transport
from hpcscale.slurm.types import Answer, JobStatus, SiteFacts, Switch, in_array
from hpcscale.units import JobId

_SUBMITTED = re.compile(r"^(\d+)(?:;\S+)?$", re.MULTILINE)
_STARTS = re.compile(r"Job \d+ to start at (\d+)\b")
_SDIAG_NOW = re.compile(r"^sdiag output at .*\((\d+)\)", re.MULTILINE)


class CliClient:
    """Asks one site's controller by squeue, sacct, sbatch, scancel, scontrol, sinfo and sdiag.

    Args:
        transport: where the commands run.
        slurm_conf: value of ``SLURM_CONF`` for them; None leaves the place's own.
        slurm_bin: directory of the commands when they are not on PATH there.
        cluster: given as ``-M`` to every command: the place belongs to another cluster, whose
            slurmdbd knows this one too.
        timeout_s: for each question.
    """

    def __init__(
        self,
        transport: Transport,
        *,
        slurm_conf: str | None = None,
        slurm_bin: str | None = None,
        cluster: str | None = None,
        timeout_s: float = DEFAULT_TIMEOUT_S,
    ) -> None:
        self.transport = transport
        self._bin = slurm_bin.rstrip("/") + "/" if slurm_bin else ""
        self._there = ["-M", cluster] if cluster else []
        self._header = f"CLUSTER: {cluster}\n" if cluster else ""
        self._conf = {"SLURM_CONF": slurm_conf} if slurm_conf else {}
        self._timeout_s = timeout_s
        self._accounting: bool | None = None  # unknown until asked
        self._user: str | None = None

    # ---- acts ----

    def sbatch(
        self,
        script: str,
        options: Sequence[str],
        script_args: Sequence[str] = (),
        *,
        cwd: str | None = None,
        timeout_s: float = 60.0,
    ) -> JobId:
        """Submit a script; ``hpcscale.submit`` is the only caller."""
        argv = self._sbatch_argv(options, script_args)
        try:
            done = self.transport.run(
                argv, stdin=script, env=self._conf, cwd=cwd, timeout_s=timeout_s
            )
        except NotSentError:
            raise
        except UnreachableError as exc:
            raise SubmitUnknownError(
                f"sbatch gave no answer: the job may or may not exist ({exc.message})",
                where=self.transport.name,
                hint="hpcscale status finds it by its submission id; do not submit again before",
            ) from exc
        if done.returncode == 0 and (match := _SUBMITTED.search(done.stdout)):
            return JobId(int(match[1]))
        if done.returncode == 0:
            raise SubmitUnknownError(
                f"sbatch printed no job id: {done.stdout.strip()!r}", where=self.transport.name
            )
        raise self._submit_error(done, script, options)

    def test_only(
        self, script: str, options: Sequence[str], script_args: Sequence[str] = ()
    ) -> dt.datetime | None:
        """When the job would start by ``sbatch --test-only``; it uses up a job id there."""
        starts: list[dt.datetime] = []
        refusal: RefusedError | None = None
        for choice in _one_partition_each(options):
            argv = self._sbatch_argv([*choice, "--test-only"], script_args)
            done = self._run(argv, stdin=script)
            if done.returncode == 0:
                if match := _STARTS.search(done.stderr):
                    starts.append(dt.datetime.fromtimestamp(int(match[1]), dt.UTC))
                continue
            error = self._submit_error(done, script, choice)
            if not isinstance(error, RefusedError):
                raise error
            refusal = error
        if not starts and refusal is not None:
            raise refusal
        return min(starts) if starts else None

    def update(self, job_id: JobId, fields: Mapping[str, str]) -> bool:
        """``scontrol update``; False when Slurm said no. The verdict is a re-read."""
        return not self.change(job_id, fields)

    def change(self, job_id: JobId, fields: Mapping[str, str]) -> str:
        """``scontrol update``; what Slurm said against it."""
        pairs = [f"{key}={value}" for key, value in fields.items()]
        return self._objection(["scontrol", "update", f"JobId={job_id}", *pairs])

    def cancel(
        self, job_id: JobId, *, pending_only: bool = False, signal: str | None = None
    ) -> bool:
        """``scancel``; False when it complained (it does not for a job that is gone)."""
        argv = ["scancel"]
        if pending_only:
            argv.append("--state=PENDING")
        if signal is not None:
            argv.append(f"--signal={signal}")
        return self._act([*argv, str(job_id)])

    def requeue(self, job_id: JobId) -> bool:
        """``scontrol requeue``; False when Slurm said no."""
        return self._act(["scontrol", "requeue", str(job_id)])

    def release(self, job_id: JobId) -> bool:
        """``scontrol release``; False when Slurm said no."""
        return self._act(["scontrol", "release", str(job_id)])

    # ---- questions ----

    def jobs(
        self,
        ids: Iterable[JobId] | None = None,
        *,
        user: str | None = None,
        everyone: bool = False,
    ) -> Answer:
        """Status of jobs, by one squeue call whatever their number."""
        if everyone:
            return Answer(self._squeue([], None, states="pending"), complete=True)
        wanted = None if ids is None else _squeue.Wanted(ids)
        if wanted is not None and not wanted.ids:
            return Answer({}, complete=True)
        if wanted is not None and len(wanted.bases) == 1:
            # A single id is a small request of its own; several would load the whole queue.
            choice = [f"--jobs={next(iter(wanted.bases))}"]
        else:
            choice = [f"--user={user}"] if user else ["--me"]
        return Answer(self._squeue(choice, wanted), complete=True)

    def job_count(self) -> int:
        """Jobs that the controller keeps, one for each array element."""
        argv = ["squeue", "--noheader", "--all", "--states=all", "--array", "--format=."]
        return self._require(argv).stdout.count(".")

    def history(self, ids: Sequence[JobId], *, since: dt.datetime) -> Answer:
        """Ended and other jobs as sacct has them, by one call; else as squeue still does."""
        from hpcscale.slurm import _sacct

        if not ids:
            return Answer({}, complete=True)
        if self._accounting is not False:
            delimiter = _sacct.new_delimiter()
            options = _sacct.options(ids, since, delimiter, user=self.user_name)
            done = self._ask(["sacct", *options])
            if done.returncode == 0:
                self._accounting = True
                now = dt.datetime.now(dt.UTC)
                jobs = _sacct.parse(done.stdout, delimiter, ids, observed_at=now)
                return Answer(jobs, complete=True)
            if "accounting storage is disabled" not in done.stderr:
                _answers.require_success(done, self.transport.name)
            self._accounting = False
        return Answer(self.jobs(ids).jobs, complete=False)

    def show(self, job_id: JobId) -> JobStatus | None:
        """One job with all its fields; None when Slurm says the id is invalid.

        Asked of squeue, whose text cannot be fooled by a job's name as scontrol's can. For the base
        id of an array or of a het job: the record with the most still to do, under the base id.
        """
        records = self._records(job_id, job_id)
        if not records and job_id.array_task is not None:
            # of an element silence says nothing: of its array squeue lists all, or says no
            records = self._records(job_id, JobId(job_id.base))
        if not records:
            return None
        first = min(records, key=_least_done)
        return msgspec.structs.replace(first, job_id=job_id, exc_nodes=self._excluded(first.job_id))

    def _records(self, job_id: JobId, asked: JobId) -> tuple[JobStatus, ...]:
        """Records of a job, from an answer about it or about its array."""
        jobs = self._squeue([f"--jobs={asked}"], _squeue.Wanted([asked]))
        return tuple(Answer(jobs, complete=True).of(job_id))

    def node_states(self, nodes: str) -> dict[str, str]:
        """Slurm's state word of each node, all flags: ``IDLE+CLOUD+POWERED_DOWN``."""
        sep = _squeue.Separators.new()
        columns = f"NodeList:{sep.field},StateComplete:{sep.record}"
        argv = ["sinfo", "--noheader", "--all", "--Node", f"--nodes={nodes}", f"--Format={columns}"]
        done = self._require(argv)
        rows = (r.split(sep.field) for r in done.stdout.split(sep.record + "\n") if r.strip())
        return {row[0].strip(): row[1].upper() for row in rows if len(row) == 2}

    def facts(self) -> SiteFacts:
        """Version, partitions, limits, accounts: four calls; each failure is stated in notes."""
        from hpcscale.slurm import _facts

        return _facts.gather(self._require, self.user_name)

    def switches(self) -> tuple[Switch, ...]:
        """The switches of topology.conf(5), as the controller has them."""
        from hpcscale.slurm import _facts

        done = self._ask(["scontrol", "--oneliner", "show", "topology"])
        if (error := _answers.no_answer(done, self.transport.name)) is not None:
            raise error
        return _facts.switches(done.stdout)  # with an error code where there is no topology

    def now(self) -> dt.datetime:
        """The controller's clock."""
        done = self._require(["sdiag"])
        match = _SDIAG_NOW.search(done.stdout)
        if match is None:
            raise UnreachableError("sdiag tells no time", where=self.transport.name)
        return dt.datetime.fromtimestamp(int(match[1]), dt.UTC)

    def question(self, argv: Sequence[str]) -> Completed:
        """Any one command that changes nothing; see ``hpcscale.slurm.whole``.

        Raises:
            UnreachableError: it failed, or got no answer.
        """
        return self._require(argv)

    # ---- helpers ----

    def _sbatch_argv(self, options: Sequence[str], script_args: Sequence[str]) -> list[str]:
        # With arguments sbatch wants a file name; its own standard input is one.
        script = ["/dev/stdin", *script_args] if script_args else []
        return [self._bin + "sbatch", *self._there, "--parsable", *options, *script]

    def _ask(self, argv: Sequence[str]) -> Completed:
        there = [] if argv[0] == "sacctmgr" else self._there  # which asks slurmdbd itself
        done = self._run([self._bin + argv[0], *there, *argv[1:]])
        if self._header and done.stdout.startswith(self._header):
            # 22.05 leaves it out with --noheader; nothing promises that others do
            return replace(done, stdout=done.stdout.removeprefix(self._header))
        return done

    def _run(self, argv: Sequence[str], *, stdin: str | None = None) -> Completed:
        env = {**_squeue.QUERY_ENVIRONMENT, **self._conf}
        return self.transport.run(argv, stdin=stdin, env=env, timeout_s=self._timeout_s)

    def _require(self, argv: Sequence[str]) -> Completed:
        return _answers.require_success(self._ask(argv), self.transport.name)

    def _act(self, argv: Sequence[str]) -> bool:
        return not self._objection(argv)

    def _objection(self, argv: Sequence[str]) -> str:
        """Slurm's words when it did not do it, or not all of it; empty when it did."""
        done = self._ask(argv)
        if (error := _answers.no_answer(done, self.transport.name)) is not None:
            raise error
        if done.returncode == 0 and "error" not in done.stderr:
            return ""
        return _answers.message(done) or f"exit code {done.returncode}"

    def _squeue(
        self, choice: Sequence[str], wanted: _squeue.Wanted | None, *, states: str = "all"
    ) -> dict[str, JobStatus]:
        separators = _squeue.Separators.new()
        columns = f"--Format={_squeue.format_option(separators)}"
        done = self._ask(["squeue", "--noheader", "--all", f"--states={states}", *choice, columns])
        if done.returncode != 0 and any(text in done.stderr for text in _answers.ABSENT):
            return {}
        _answers.require_success(done, self.transport.name)
        if wanted is not None:
            self._require_word(done, wanted.ids)
        if "Invalid user" in done.stderr:  # with exit code 0
            raise NotFoundError(f"no such user there ({_answers.message(done)})")
        now = dt.datetime.now(dt.UTC)
        return _squeue.parse(done.stdout, separators, observed_at=now, wanted=wanted)

    def _excluded(self, job_id: JobId) -> str:
        """``ExcNodeList``, which only the short format of squeue has."""
        separator = _squeue.Separators.new().record
        done = self._ask(["squeue", "--noheader", "--all", "--states=all", f"--jobs={job_id}",
                          f"--format=%i{separator}%x{separator}"])  # fmt: skip
        if done.returncode != 0 and any(text in done.stderr for text in _answers.ABSENT):
            return ""
        _answers.require_success(done, self.transport.name)
        self._require_word(done, [job_id])
        fields = done.stdout.split(separator)
        for shown, nodes in zip(fields[::2], fields[1::2], strict=False):
            head, _, rest = shown.strip().partition("_[")
            waits = job_id.array_task is not None and in_array(rest.rstrip("]"), job_id.array_task)
            if head == str(job_id) or (waits and head == str(job_id.base)):
                return "" if nodes in {"(null)", "N/A"} else nodes
        return ""

    def _require_word(self, done: Completed, ids: Collection[JobId]) -> None:
        """Of a single job that it does not know squeue says so, and fails; silence is no answer.

        Of several, of an array's elements and of parts of het jobs it may well list nothing.
        """
        one = next(iter(ids)) if len(ids) == 1 else None
        plain = one is not None and one.array_task is None and one.het_offset is None
        if plain and not done.stdout.strip():
            raise UnreachableError(
                f"squeue neither lists job {one} nor says that there is none",
                where=self.transport.name,
            )

    def user_name(self) -> str:
        """The user's name there; asked once."""
        if self._user is None:
            done = self.transport.run(["id", "-un"], timeout_s=self._timeout_s)
            self._user = _answers.require_success(done, self.transport.name).stdout.strip()
        return self._user

    def _submit_error(self, done: Completed, script: str, options: Sequence[str]) -> HpcscaleError:
        where = self.transport.name
        error = _answers.no_answer(done, where)
        if isinstance(error, NotSentError):
            return error
        if error is not None:
            return SubmitUnknownError(
                f"{error.message}: the job may or may not exist",
                where=where,
                hint="hpcscale status finds it by its submission id; do not submit again before",
            )
        from hpcscale.slurm import _refusals

        facts: SiteFacts | None = None
        if _refusals.wants_facts(_answers.message(done)):
            try:
                facts = self.facts()
            except UnreachableError:
                facts = None  # the refusal stands without the hint
        text, hint = _refusals.explain(_answers.message(done), script, options, facts)
        return RefusedError(text, where=where, hint=hint)


def _least_done(status: JobStatus) -> tuple[bool, bool, int, int]:
    """Sorts the records of one base id: pending ones first, ended ones last."""
    job_id = status.job_id
    order = job_id.array_task or 0, job_id.het_offset or 0
    return status.state.terminal, status.state.active, *order


def _one_partition_each(options: Sequence[str]) -> list[list[str]]:
    """The options once for each partition that they name."""
    for index, option in enumerate(options):
        head, names, replaced = "", "", 1
        if option.startswith("--partition="):
            head, names = "--partition=", option.removeprefix("--partition=")
        elif option in {"--partition", "-p"} and index + 1 < len(options):
            head, names, replaced = "--partition=", options[index + 1], 2
        elif option.startswith("-p") and len(option) > 2:
            head, names = "--partition=", option[2:]
        if "," in names:
            rest = list(options[:index]), list(options[index + replaced :])
            return [[*rest[0], head + name, *rest[1]] for name in names.split(",")]
    return [list(options)]
