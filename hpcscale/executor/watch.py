"""One watcher a site: one squeue for all its jobs, whatever their number."""

import datetime as dt
import threading
import time
import typing as tp

from submitit.slurm import slurm

from hpcscale import cancelled
from hpcscale.connect import Connection, connect
from hpcscale.errors import NotFoundError, UnreachableError
from hpcscale.executor.hints import hints_in_python
from hpcscale.executor.notice import warn
from hpcscale.ledger import Ledger, ledger_path
from hpcscale.reports import Report, read_reports
from hpcscale.site import load_site
from hpcscale.slurm.types import JobState, JobStatus
from hpcscale.units import JobId
from hpcscale.verify import submission_of

HISTORY = dt.timedelta(days=8)


class HpcscaleInfoWatcher(slurm.SlurmInfoWatcher):
    """Asks one site about all its jobs by one squeue; there is one watcher for each site.

    A job that Slurm no longer lists has ended only if it said so itself (its script's report);
    otherwise it is UNKNOWN, never done. Done is an allow-list of final states; PREEMPTED is one
    once squeue no longer lists the job, as then nothing brings it back.

    Args:
        site: the site's name.
        delay_s: longest time between two questions.
    """

    def __init__(self, site: str, delay_s: int = 60) -> None:
        super().__init__(delay_s=delay_s)
        self.site = site
        self._connection: Connection | None = None
        self._origin: dict[str, tuple[str, str]] = {}
        self._cancelled: set[str] = set()
        self._preempted: set[str] = set()
        self._lock = threading.RLock()

    @property
    def connection(self) -> Connection:
        """To the site; made at the first need."""
        if self._connection is not None:
            return self._connection
        with hints_in_python():
            if not self.site:
                raise NotFoundError(
                    "nothing here knows the site of this job",
                    hint='HpcscaleJob(folder, job_id, site="…"); its folder is not the one that '
                    "it was submitted with",
                )
            self._connection = connect(load_site(self.site).site)
        return self._connection

    def use(self, connection: Connection) -> None:
        """Ask through this connection from now on."""
        self._connection = connection

    def track(self, job_id: str, submission_id: str, run_dir: str) -> None:
        """Say which submission an id stands for: another job of that id is not ours."""
        if not submission_id:
            return
        if self._origin.get(job_id, ("", ""))[0] != submission_id:
            # a controller that lost its memory gave the id out again
            self._finished.discard(job_id)
            self._cancelled.discard(job_id)
            self._preempted.discard(job_id)
            self._info_dict.pop(job_id, None)
        self._origin[job_id] = (submission_id, run_dir)

    def note_cancelled(self, job_id: str) -> None:
        """Slurm has taken our scancel; of a waiting array element it keeps no record then."""
        self._cancelled.add(job_id)

    def update(self) -> None:
        """Ask the site once about all jobs that are not final; no answer changes nothing."""
        with self._lock:
            self._update()

    def _update(self) -> None:
        open_jobs = sorted(self._registered - self._finished)
        if not open_jobs:
            return
        self._num_calls += 1
        ids = [JobId.parse(text) for text in open_jobs]
        self._last_status_check = time.time()  # the clock that the base class compares with
        try:
            answer = self.connection.client.jobs(ids)
            found = {i: self._own(i, answer.of(i)) for i in ids}
            missing = [i for i in ids if not found[i]]
            if missing:
                since = dt.datetime.now(dt.UTC) - HISTORY
                older = self.connection.client.history(missing, since=since)
                found |= {i: self._own(i, older.of(i)) for i in missing}
            lost = [i for i in missing if not found[i] and str(i) in self._origin]
            reports = read_reports(
                self.connection.transport, [self._origin[str(i)][1] for i in lost]
            )
        except UnreachableError as exc:
            warn(f"{self.site}: no answer, states are old: {exc}")
            return
        for job_id in ids:
            if found[job_id]:
                self._info_dict[str(job_id)] = _info(found[job_id])
        unknown: dict[str, list[JobId]] = {}
        for job_id in lost:
            submission_id = self._origin[str(job_id)][0]
            info = _reported(job_id, reports.get(submission_id, []))
            if info["State"] == JobState.UNKNOWN and str(job_id) in self._cancelled:
                info["State"] = JobState.CANCELLED.value
            before = self._said(str(job_id))
            if info["State"] == JobState.UNKNOWN and before == JobState.PREEMPTED:
                info["State"] = before
            if info["State"] == JobState.UNKNOWN:
                unknown.setdefault(submission_id, []).append(job_id)
            self._info_dict[str(job_id)] = info
        for submission_id, some in unknown.items():
            for job_id in _cancelled(submission_id, some, reports.get(submission_id, [])):
                self._info_dict[str(job_id)]["State"] = JobState.CANCELLED.value
        gone = {str(i) for i in missing if found[i] or answer.complete}
        over = {job for job in gone if self._said(job) == JobState.PREEMPTED}
        self._preempted = (self._preempted - set(open_jobs)) | over
        self._finished |= {j for j in open_jobs if self.is_done(j, mode="cache")}

    def _own(self, job_id: JobId, found: list[JobStatus]) -> list[JobStatus]:
        """Without records of another job; slurmdbd may keep no comments."""
        ours = self._origin.get(str(job_id), ("", ""))[0]
        return [s for s in found if not ours or not s.comment or submission_of(s.comment) == ours]

    def _said(self, job_id: str) -> str | None:
        return self._info_dict.get(job_id, {}).get("State")

    def is_done(self, job_id: str, mode: str = "standard") -> bool:
        """Whether the job's state is final."""
        try:
            state = JobState(self.get_state(job_id, mode=mode))
        except ValueError:
            return False
        return state.terminal or (state is JobState.PREEMPTED and job_id in self._preempted)


_WATCHERS: dict[str, HpcscaleInfoWatcher] = {}
_LEDGERS: dict[tp.Any, Ledger] = {}
_LOCK = threading.Lock()


def watcher_of(site: str) -> HpcscaleInfoWatcher:
    """The one watcher of a site in this process."""
    with _LOCK:
        return _WATCHERS.setdefault(site, HpcscaleInfoWatcher(site))


def own_ledger() -> Ledger:
    """This process's handle on the user's ledger."""
    path = ledger_path()
    with _LOCK:
        if path not in _LEDGERS:
            _LEDGERS[path] = Ledger.open(path)
        return _LEDGERS[path]


def _cancelled(
    submission_id: str, job_ids: list[JobId], reports: list[Report]
) -> tp.Iterator[JobId]:
    """Those that waited when they were cancelled, by the ledger: by another program, or earlier."""
    ledger = own_ledger()
    try:
        attempt = ledger.attempt(submission_id)
    except NotFoundError:  # its executor keeps another ledger
        return
    if not (wanted := cancelled.wishes(ledger, attempt)):
        return
    elements = ledger.elements(attempt)
    for job_id in job_ids:
        task = job_id.array_task
        known = attempt if task is None else elements.get(task)
        if known is not None and known.reason in {cancelled.GONE, cancelled.WAITED}:
            yield job_id  # it was judged before
        elif task is None:
            if cancelled.over(attempt, wanted, reports):
                yield job_id
        elif cancelled.over_element(task, elements.get(task), wanted, reports):
            yield job_id


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


def _reported(job_id: JobId, said: list[Report]) -> dict[str, str]:
    """A job that Slurm has forgotten, by its own word; without one nobody knows."""
    mine = [r for r in said if r.task == job_id.array_task]
    if not mine or not mine[-1].final or mine[-1].exit_code is None:
        return {"JobID": str(job_id), "State": JobState.UNKNOWN.value}
    last = mine[-1]
    state = JobState.COMPLETED if last.exit_code == 0 else JobState.FAILED
    return {
        "JobID": str(job_id),
        "State": state.value,
        "NodeList": last.nodes,
        "Reason": "",
        "ExitCode": str(last.exit_code),
    }
