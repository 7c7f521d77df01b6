"""A submitit job at a site: its state by the site's watcher, its files fetched when it is done."""

import json
import time
import typing as tp
from pathlib import Path

from submitit.core import logger, utils
from submitit.slurm import slurm

from hpcscale import batches, cancelled
from hpcscale.errors import HpcscaleError, NotFoundError, UnreachableError
from hpcscale.executor import waiting
from hpcscale.executor.known import (
    attempt_of,
    is_moving,
    may_move,
    require_id,
    site_of,
    successor,
    there_of,
)
from hpcscale.executor.notice import warn
from hpcscale.executor.watch import HpcscaleInfoWatcher, own_ledger, watcher_of
from hpcscale.ledger import Attempt
from hpcscale.reports import read_reports
from hpcscale.slurm.types import JobState
from hpcscale.units import JobId, JobRef
from hpcscale.verify import require_same

R_co = tp.TypeVar("R_co", covariant=True)


class HpcscaleJob(slurm.SlurmJob[R_co]):
    """A submitit job at a site.

    ``HpcscaleJob(folder, job_id)`` is enough for a job submitted before: the folder knows its site,
    and the ledger the rest.

    Args:
        folder: submitit's folder, on this machine.
        job_id: Slurm's id at the site; for a task that was not sent yet a stand-in.
        tasks: as in submitit.
        site: the site's name.
        submission_id: ours; acts check that the job still carries it.
        run_dir: the run's directory on the site; empty for a job known by its id alone.
        rendered: whether it runs a rendered script, whose outcome is its exit code, and no pickled
            function.
        there: where submitit's files are on the site; empty for a rendered script.
        batch: ``(run id, task)`` of a batch task that was not sent yet; None once it was.
    """

    watcher: HpcscaleInfoWatcher
    _cancel_at_deletion = False  # a job that was refused is deleted too

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
        there: str = "",
        batch: tuple[str, int] | None = None,
    ) -> None:
        job_id = str(job_id)
        self.site = site or site_of(Path(folder))
        if batch is None and not submission_id:
            batch = require_id(job_id)
        self.submission_id = submission_id
        self.run_dir = run_dir
        self.rendered = rendered
        self.there = there
        self.batch = batch
        if not submission_id and batch is None and (known := attempt_of(self.site, job_id)):
            self.submission_id, self.run_dir = known.submission_id, known.run_dir
            self.there = there_of(known)
            self.rendered = not self.there
        if not self.submission_id and batch is None and self.site:
            warn(
                f"{self.site}:{job_id} was not submitted with this ledger: it is known for as long "
                "as Slurm tells of it, and result() of any other id never ends"
            )
        self._created = time.time()
        self._brought = False
        self.watcher = watcher_of(self.site)
        super().__init__(folder, job_id, tasks[:1])
        if len(tasks) > 1:
            self._tasks = tuple(tasks)
            self._paths = utils.JobPaths(folder, job_id=job_id)
            self._sub_jobs = [
                HpcscaleJob(
                    folder,
                    job_id,
                    (task,),
                    site=self.site,
                    submission_id=self.submission_id,
                    run_dir=self.run_dir,
                    there=self.there,
                    batch=batch,
                )
                for task in tasks
            ]

    def _register_in_watcher(self) -> None:
        if self.batch is None:
            self.watcher.track(self.job_id, self.submission_id, self.run_dir)
            super()._register_in_watcher()

    @property
    def ref(self) -> JobRef:
        """``site:id``."""
        return JobRef(self.site, JobId.parse(self.job_id))

    @property
    def state(self) -> str:
        """Slurm's word as last heard; SUBMITTING before it was sent."""
        if not self._sent():
            return JobState.SUBMITTING.value
        self._follow()
        return str(super().state)

    def get_info(self, mode: str = "force") -> dict[str, str]:
        """What Slurm said last; empty before it was sent."""
        if not self._sent():
            return {}
        self._follow()
        return super().get_info(mode)

    def done(self, force_check: bool = False) -> bool:
        """Whether it has ended, by Slurm's word or by the job's own report, and its files are here.

        Nothing is unpickled.
        """
        if self._sub_jobs:
            return all(job.done(force_check) for job in self._sub_jobs)
        if not self._sent(send=True):
            return self._dropped() is not None
        self._follow()
        if not self.rendered and self._outcome_is_ours():
            return True
        mode = "force" if force_check else "standard"
        if not self.watcher.is_done(self.job_id, mode=mode):
            return False
        if self._may_move() and is_moving(self.submission_id, self._task()):
            return False  # it gave way, and what took its place is not known for certain yet
        return self.rendered or self._bring()

    def cancel(self, check: bool = True) -> None:
        """Cancel it, after checking that the id still names this job.

        Args:
            check: raise when the site gives no answer, or when it is another job.

        Raises:
            NotThisJobError: the id was given to another job; nothing was done.
            UnreachableError: no answer.
        """
        if self.batch is not None and not self._sent():
            waiting.skip(*self.batch)
            if not self._sent():
                return
        self._follow()
        self._act(check, None)

    def _interrupt(self, timeout: bool = False) -> None:
        """Send it the signal of a preemption or of a near time limit, for tests."""
        if not timeout:
            self._act(True, "TERM")
        self._act(True, slurm.SlurmJobEnvironment.USR_SIG)

    def _act(self, check: bool, signal: str | None) -> None:
        try:
            client = self.watcher.connection.client
            if not self.submission_id:
                raise NotFoundError(
                    f"{self.ref} was not submitted from here",
                    hint=f"if it is yours: scancel {self.job_id}, at {self.site}",
                )
            attempt = own_ledger().attempt(self.submission_id)
            job_id = JobId.parse(self.job_id)
            status = require_same(attempt, client, job_id)
            if status is not None and not status.state.terminal:
                if signal is None:
                    cancelled.note_asked(own_ledger(), attempt, job_id, status.state)
                taken = client.cancel(job_id, signal=signal)
                if taken and signal is None:
                    cancelled.note_taken(own_ledger(), attempt, job_id, status.state)
                    self.watcher.note_cancelled(self.job_id)
        except HpcscaleError:
            if check:
                raise

    # --- results -----------------------------------------------------------------------------

    def result(self) -> R_co:
        """Wait for the end: a function's value, or of a rendered script its outcome.

        The outcome is a dict: ``ref``, ``state``, ``exit_code`` (None when nobody told).

        Raises:
            FailedJobError: it ended badly.
        """
        return self.results()[0] if self.rendered else super().result()

    def results(self) -> list[R_co]:
        """As ``result``, in a list: one value for each task."""
        if not self.rendered:
            values = list(super().results())
            self._follow()  # of several tasks only the single ones were asked so far
            return values
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
        if outcome["state"] == JobState.COMPLETED.value:
            return None
        return utils.FailedJobError(
            f"{self.ref} ended {outcome['state']} with exit code {outcome['exit_code']}; "
            "see its log with job.stdout()"
        )

    def outcome(self) -> dict[str, tp.Any]:
        """State and exit code as known now, of a function how it ended; nothing is unpickled."""
        info = self.watcher.get_info(self.job_id, mode="cache") if self.batch is None else {}
        code: int | None = int(info["ExitCode"]) if info.get("ExitCode") else None
        found: dict[str, tp.Any] = {
            "ref": str(self.ref) if self.batch is None else None,
            "state": info.get("State") or JobState.UNKNOWN.value,
            "exit_code": code,
        }
        if not self.rendered:
            found |= {"function": self._outcome_file()}
        elif code is None:
            found["exit_code"] = self._reported_exit()
        return found

    def _get_outcome_and_result(self) -> tuple[str, tp.Any]:
        """As submitit's, but never the result of another job that had the same id."""
        if (why := self._dropped()) is not None:
            raise utils.UncompletedJobError(f"the task was never sent: {why}")
        if self.paths.result_pickle.exists() and not self._is_ours(self._outcome_file()):
            self.paths.result_pickle.replace(
                self.paths.result_pickle.with_suffix(f".{time.time_ns()}.stale")
            )
        self.paths.folder.mkdir(parents=True, exist_ok=True)
        outcome, result = super()._get_outcome_and_result()
        return outcome, result

    def _outcome_path(self) -> Path:
        name = f"{self.job_id}_{self.paths.task_id}_outcome.json"
        return self.paths.result_pickle.with_name(name)

    def _outcome_file(self) -> dict[str, tp.Any] | None:
        """What the job side wrote at its end; None when there is nothing."""
        try:
            data = json.loads(self._outcome_path().read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return data if isinstance(data, dict) else None

    def _outcome_is_ours(self) -> bool:
        """Whether the function's end is known here, without a question to the site."""
        if not self.submission_id:
            return self.paths.result_pickle.exists()
        found = self._outcome_file()
        return found is not None and self._is_ours(found) and self.paths.result_pickle.exists()

    def _is_ours(self, found: dict[str, tp.Any] | None) -> bool:
        if not self.submission_id:
            return True  # of a job that is known by its id alone, as submitit has it
        if found is None:  # it died between the result and the outcome: by its age then
            with_time = self.paths.result_pickle.stat().st_mtime
            return self._brought or with_time >= self._created - 5.0
        return found.get("submission_id") == self.submission_id

    # --- files -------------------------------------------------------------------------------

    def _in_place(self) -> bool:
        return self.there == str(self.paths.folder) and self.watcher.connection.transport.is_local

    def _bring(self) -> bool:
        """Fetch result and outcome; False when the site cannot be reached, to be tried again."""
        if self._brought or not self.there:
            return True
        if self._in_place():
            # the file system may show a file of another node some seconds late
            late = self.watcher.get_state(self.job_id, mode="cache") == JobState.COMPLETED.value
            self._results_timeout_s = 15 if late else 0
            self._brought = True
            return True
        self._results_timeout_s = 0
        try:
            # the outcome last: it says that all is here
            for path in (self.paths.result_pickle, self._outcome_path()):
                self._fetch(path)
        except UnreachableError as exc:
            warn(f"{self.ref} has ended, fetching its result: {exc}")
            return False
        self._brought = True
        return True

    def _fetch(self, path: Path) -> bool:
        """One of submitit's files from the site; whether it is there."""
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            self.watcher.connection.transport.get_file(f"{self.there}/{path.name}", path)
        except NotFoundError:
            return False
        return True

    def _get_logs_string(self, name: str) -> str | None:
        if not self._sent():
            return None
        if self.there and not self._in_place():
            self._fetch(self.paths.stdout if name == "stdout" else self.paths.stderr)
        text = super()._get_logs_string(name)
        if name == "stderr" and not text and self.run_dir:
            # it came no further than its script: what that said
            batch_log = self._batch_log()
            text = batch_log or text
        return text

    def _batch_log(self) -> str | None:
        try:
            data = self.watcher.connection.transport.read_bytes(
                f"{self.run_dir}/logs/{self.job_id}.log"
            )
        except NotFoundError:
            return None
        return data.decode("utf-8", errors="replace")

    def stdout(self) -> str | None:
        """The log, read from the site; None when there is none yet."""
        self._follow()
        return self._batch_log() if self.rendered else super().stdout()

    def stderr(self) -> str | None:
        """Of a rendered script: None, both streams are in one log."""
        self._follow()
        return None if self.rendered else super().stderr()

    def _reported_exit(self) -> int | None:
        """The exit code that the script reported at its end."""
        if not self.run_dir:
            return None
        reports = read_reports(self.watcher.connection.transport, [self.run_dir])
        ends = [r.exit_code for r in reports.get(self.submission_id, []) if r.final]
        return ends[-1] if ends else None

    # --- a run that moves to another site -------------------------------------------------------

    def _task(self) -> int | None:
        return JobId.parse(self.job_id).array_task

    def _may_move(self) -> bool:
        return self.batch is None and bool(self.submission_id) and may_move(self.submission_id)

    def _follow(self) -> None:
        """Become the job that took over, where the ledger says so."""
        while (
            self._may_move() and (heir := successor(self.submission_id, self._task())) is not None
        ):
            self._become(heir)
        for job in self._sub_jobs:
            tp.cast("HpcscaleJob[R_co]", job)._follow()  # noqa: SLF001 # its own class

    def _become(self, heir: Attempt) -> None:
        pickle = self.paths.submitted_pickle
        task = JobId.parse(self.job_id).array_task if heir.array_size is not None else None
        assert heir.job_id is not None
        self._job_id = str(JobId(heir.job_id.base, task))
        # the other site's files have a directory of their own: its job ids may be the same
        folder = self._paths._folder  # noqa: SLF001 # with submitit's ids still in it
        whole = utils.JobPaths.get_first_id_independent_folder(folder)
        self._paths = utils.JobPaths(
            whole / heir.site / folder.relative_to(whole), self._job_id, self.task_id
        )
        logger.get_logger().info(f"{self.site}: the job moved to {heir.ref}")
        self.site, self.submission_id, self.run_dir = heir.site, heir.submission_id, heir.run_dir
        self.there = there_of(heir)
        self.watcher = watcher_of(heir.site)
        self._brought = False
        self._register_in_watcher()
        self.paths.folder.mkdir(parents=True, exist_ok=True)
        if pickle.exists():
            batches.link(pickle, self.paths.submitted_pickle)

    # --- tasks of a batch that had to wait for room --------------------------------------------

    def _sent(self, *, send: bool = False) -> bool:
        """Whether Slurm has it; with ``send`` a waiting one is tried again now and then."""
        if self.batch is None:
            return True
        found = waiting.find_sent(*self.batch, self.watcher, send=send)
        if found is None:
            return False
        self._settle(*found)
        return True

    def _settle(self, attempt: Attempt, job_id: str) -> None:
        """It is an ordinary job from now on."""
        assert self.batch is not None
        source = waiting.pickle_of(*self.batch)
        folder = self._paths._folder  # noqa: SLF001 # with submitit's ids still in it
        self._job_id = job_id
        self._paths = utils.JobPaths(folder, job_id=job_id, task_id=self.task_id)
        self.submission_id, self.run_dir = attempt.submission_id, attempt.run_dir
        self.there = there_of(attempt)
        self.batch = None
        self._register_in_watcher()
        self.paths.folder.mkdir(parents=True, exist_ok=True)
        batches.link(source, self.paths.submitted_pickle)

    def _dropped(self) -> str | None:
        """Why a task will never be sent; None: it was, or it will be."""
        return None if self.batch is None else waiting.why_dropped(*self.batch)

    def __getstate__(self) -> dict[str, tp.Any]:
        return {k: v for k, v in self.__dict__.items() if k != "watcher"}

    def __setstate__(self, state: dict[str, tp.Any]) -> None:
        self.watcher = watcher_of(state["site"])
        super().__setstate__(state)
