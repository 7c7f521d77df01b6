"""What was learned of a site: its ended jobs, and how past forecasts turned out. Kept here.

Two files below ``state_dir()/forecast``: ``SITE.sacct``, rows of sacct as they came, added to at
each call from where the last one stopped; and ``SITE.json``, forecasts whose jobs have not started
and the residuals of those that have. Either may be deleted: the forecast then begins anew.
"""

import datetime as dt
import math
import os
import tempfile
from collections import Counter
from pathlib import Path

import msgspec

from hpcscale.errors import InvalidFileError, UnreachableError
from hpcscale.forecast.bounds import AdaptiveBound, Case, Qbets, Said
from hpcscale.history.reading import Reading
from hpcscale.history.tables import parse_table
from hpcscale.outlook.snapshot import Level, Snapshot
from hpcscale.settings import state_dir
from hpcscale.slurm import whole
from hpcscale.slurm.types import JobState
from hpcscale.slurm.whole import ENDED_COLUMNS, QueuedJob
from hpcscale.units import parse_array

MOST_ROWS = 20_000
FIRST_DAYS = 30  # how far back the first call asks
_OVERLAP_S = 3600  # slurmdbd may learn of an end late
_MOST_ASKED = 5_000
_MOST_SETTLED = 2_000
_FORGET_S = 45 * 86400


class _Asked(msgspec.Struct, array_like=True):
    """A forecast whose job still waits: when it was made, and of what."""

    at_s: float
    planned_s: float
    upper_s: float | None = None
    nodes: int = 1
    limit_s: float = 0.0
    own: int = 0

    @property
    def case(self) -> Case:
        return Case(self.planned_s, self.nodes, self.limit_s, self.own)


class _Settled(msgspec.Struct, array_like=True):
    """One whose job has started; files from before ``at_s`` was kept count as of long ago."""

    planned_s: float
    waited_s: float
    upper_s: float | None = None
    at_s: float = 0.0
    nodes: int = 1
    limit_s: float = 0.0
    own: int = 0

    @property
    def case(self) -> Case:
        return Case(self.planned_s, self.nodes, self.limit_s, self.own)


class _Forecasts(msgspec.Struct):
    """The second file. Seconds since 1970; waits are counted from when the forecast was made."""

    asked: dict[str, _Asked] = {}  # by job
    residuals: list[_Settled] = []  # oldest start first


def _path(site: str, kind: str) -> Path:
    return state_dir() / "forecast" / f"{site}.{kind}"


def _write(path: Path, text: str) -> None:
    """Replace a file whole; a cache that cannot be written is no error."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False) as file:
            file.write(text)
        os.replace(file.name, path)  # noqa: PTH105  # of one directory: atomic
    except OSError:
        return


def history(snapshot: Snapshot, asker: whole.Asker) -> tuple[Reading | None, tuple[str, ...]]:
    """The site's ended jobs, brought up to date by one sacct call; and what to say about it.

    None where there is no accounting, or nothing has ended yet.
    """
    if snapshot.history_level is Level.ABSENT:
        return None, ("no slurmdbd: runtimes cannot be learned, limits are believed",)
    path = _path(snapshot.site, "sacct")
    notes: list[str] = []
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        lines = []
    header, rows = (lines[0], lines[1:]) if lines else ("", [])
    since_s = snapshot.now_s - FIRST_DAYS * 86400
    if header:
        since_s = max(since_s, _last_end(header, rows) - _OVERLAP_S)
    try:
        text = whole.ended(asker, dt.datetime.fromtimestamp(since_s, dt.UTC))
        new_header, _, body = text.partition("\n")
        if header and header != new_header:
            rows = []
        header = new_header
        rows = _newest([*rows, *(row for row in body.splitlines() if row)])[-MOST_ROWS:]
        _write(path, "\n".join([header, *rows, ""]))
    except UnreachableError as exc:
        notes.append(f"sacct gave no answer, what was learned before is used: {exc.message}")
    if not rows:
        return None, (*notes, "no job has ended yet: limits are believed")
    try:
        return parse_table([header, *rows], f"sacct of {snapshot.site}"), tuple(notes)
    except InvalidFileError as exc:
        return None, (*notes, f"accounting cannot be read: {exc}")


def _newest(rows: list[str]) -> list[str]:
    """One row a job, the last told: slurmdbd first hands out rows that lack limit and partition."""
    at = [ENDED_COLUMNS.split(",").index(name) for name in ("JobIDRaw", "Submit")]
    found: dict[tuple[str, ...], str] = {}
    for row in rows:
        fields = row.split("|")
        key = tuple(fields[k] for k in at) if len(fields) > max(at) else (row,)
        found.pop(key, None)  # to the end
        found[key] = row
    return list(found.values())


def _last_end(header: str, rows: list[str]) -> int:
    names = header.split("|")
    if "End" not in names:
        return 0
    at = names.index("End")
    ends = [row.split("|")[at] for row in rows[-500:] if row.count("|") >= at]
    return max((int(end) for end in ends if end.isdigit()), default=0)


class Track:
    """Past forecasts of a site: kept, compared with what came, and made into bounds."""

    def __init__(self, snapshot: Snapshot, past: Reading | None, level: float = 0.9) -> None:
        self._snapshot = snapshot
        self._path = _path(snapshot.site, "json")
        waiting = [job for job in snapshot.jobs if job.state is JobState.PENDING]
        self._pending = {job.job_id for job in waiting}
        self._waiting = Counter[str]()
        for job in waiting:
            self._waiting[job.user] += _tasks(job.array_pending)
        self._kept = self._load()
        if self._settle(past):
            self._save()
        self._bound = self._rebuilt(AdaptiveBound(level))
        self.waits = Qbets(level)
        if past is not None:
            for wait in past.workload.wait_s.tolist():
                if not math.isnan(wait):
                    self.waits.started(wait)

    def _load(self) -> _Forecasts:
        try:
            return msgspec.json.decode(self._path.read_bytes(), type=_Forecasts)
        except (OSError, ValueError):
            return _Forecasts()

    def _settle(self, past: Reading | None) -> bool:
        """Jobs that have started since they were asked about become residuals; whether any did."""
        started: dict[str, float] = {}
        if past is not None:
            jobs = past.workload
            started = dict(zip(jobs.job_id.tolist(), jobs.start_s.tolist(), strict=True))
        pending = set()
        for job in self._snapshot.jobs:
            if job.state.active and job.start_s:
                started[job.job_id] = job.start_s
            else:
                pending.add(job.job_id)
        known: list[tuple[float, int, _Settled]] = []
        for name, was in list(self._kept.asked.items()):
            start = started.get(name, float("nan"))
            if start >= was.at_s and name not in pending:
                waited = start - was.at_s
                row = _Settled(
                    was.planned_s, waited, was.upper_s, was.at_s, was.nodes, was.limit_s, was.own
                )  # fmt: skip
                known.append((start, len(known), row))
                del self._kept.asked[name]
            elif self._snapshot.now_s - was.at_s > _FORGET_S:
                del self._kept.asked[name]
        self._kept.residuals += [row for _, _, row in sorted(known)]
        del self._kept.residuals[:-_MOST_SETTLED]
        return bool(known)

    def _rebuilt(self, bound: AdaptiveBound) -> AdaptiveBound:
        """All that was forecast and all that came of it, told in the order in which it was."""
        rows: list[_Asked | _Settled] = [*self._kept.residuals, *self._kept.asked.values()]
        events = [(row.at_s, 1, k) for k, row in enumerate(rows)]
        events += [
            (row.at_s + row.waited_s, 0 if row.waited_s else 2, k)
            for k, row in enumerate(self._kept.residuals)
        ]
        keys: dict[int, int] = {}
        for when, kind, k in sorted(events):
            bound.at(when)
            row = rows[k]
            if kind == 1:
                upper = math.nan if row.upper_s is None else row.upper_s
                keys[k] = bound.asked(row.case, upper)
            else:
                bound.started(keys[k], when)
        bound.at(float(self._snapshot.now_s))
        return bound

    def _save(self) -> None:
        _write(self._path, msgspec.json.encode(self._kept).decode())

    def say(self, job: QueuedJob, planned_s: float) -> Said:
        """What forecasts like this one have come to: median and bound; NaN: too few."""
        return self._bound.say(self._case(job, planned_s))

    @property
    def coverage(self) -> float:
        """Share of past bounds that held; NaN: none is known."""
        return self._bound.coverage

    def remember(self, planned_s: dict[str, float]) -> None:
        """Keep what was just forecast, in seconds from now, once for each job, and its bound."""
        jobs = {job.job_id: job for job in self._snapshot.jobs}
        for name, planned in planned_s.items():
            if name not in self._kept.asked and len(self._kept.asked) < _MOST_ASKED:
                case = self._case(jobs.get(name), planned)
                bound = self._bound.say(case).upper_s
                self._kept.asked[name] = _Asked(
                    self._snapshot.now_s, planned, None if math.isnan(bound) else bound,
                    case.nodes, case.limit_s, case.own,
                )  # fmt: skip
        self._save()

    def _case(self, job: QueuedJob | None, planned_s: float) -> Case:
        if job is None:
            return Case(planned_s)
        own = self._waiting[job.user] - (job.job_id in self._pending)
        return Case(planned_s, job.num_nodes, float(job.limit_s or 0), own)

    @property
    def residuals(self) -> int:
        """Forecasts whose jobs have started."""
        return len(self._kept.residuals)


def _tasks(array_pending: str) -> int:
    """How many tasks the pending rest of an array has; squeue may cut a long list short."""
    try:
        return len(parse_array(array_pending)[0]) if array_pending else 1
    except ValueError:
        return 1
