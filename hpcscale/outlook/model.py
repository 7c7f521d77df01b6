"""From a snapshot and learned runtimes to start times: the site as resources, its queue as a plan.

Nodes are classes of them (``kinds``), and those that are reserved are kept apart (``reserved``).
Jobs that Slurm holds back for good (held by user or admin, a dependency that never comes) are not
in the plan.
"""

import math
from bisect import bisect_right
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

import msgspec
import numpy as np

from hpcscale.forecast.plan import can_compile
from hpcscale.forecast.queue import live_point_s
from hpcscale.forecast.runtimes import Floats, RuntimeModel
from hpcscale.history.reading import Reading
from hpcscale.history.workload import CATEGORIES, make_workload
from hpcscale.outlook.kinds import job_number, node_kinds
from hpcscale.outlook.layout import WITHOUT_LIMIT_S, Layout, tasks_of
from hpcscale.outlook.snapshot import Snapshot
from hpcscale.slurm.types import JobState
from hpcscale.slurm.whole import QueuedJob

# tasks in the queue up to which running on is fast enough, compiled and in plain Python
_MOST_RUN_ON, _MOST_PLAIN = 500, 100
_HELD = ("JobHeldUser", "JobHeldAdmin", "DependencyNeverSatisfied", "BadConstraints", "Invalid")


@dataclass(frozen=True)
class Times:
    """Seconds from now until each pending job starts; infinite: never with what there is.

    Attributes:
        learned_s: with learned runtimes of the others.
        limits_s: when everything runs to its limit.
        run_on_s: when EASY backfill runs on, mean of futures with drawn runtimes; empty where
            nothing was learned or the queue is too long for it.
    """

    learned_s: dict[str, float]
    limits_s: dict[str, float]
    run_on_s: dict[str, float] = field(default_factory=dict)

    def start_s(self, job_id: str) -> float:
        """The likely start, as ``live_point_s`` has it."""
        run_on = self.run_on_s.get(job_id, 0.0)
        if not math.isfinite(run_on):
            run_on = 0.0
        return live_point_s(self.limits_s[job_id], self.learned_s[job_id], run_on)


class SiteModel:
    """Plans of one snapshot; asked again with a job changed, for what would start it sooner."""

    def __init__(self, snapshot: Snapshot, past: Reading | None) -> None:
        self.snapshot = snapshot
        self._kinds = node_kinds(snapshot)
        tiers = {name: facts.priority_tier for name, facts in snapshot.facts.partitions.items()}
        self._tiers = tiers if len(set(tiers.values())) > 1 else {}
        self._pending = sorted(_waiting(snapshot), key=self._order)
        self._past = past
        self._runtimes: dict[str, float] = {}
        self._model: RuntimeModel | None = None
        self._rows: dict[str, int] = {}
        self._layout: Layout | None = None
        # once for the snapshot: plans of it with and without some jobs are compared
        waiting = sum(self.tasks(job) for job in self._pending)
        self._runs_on = waiting <= most_run_on()

    def learn(self, more: tuple[QueuedJob, ...] = ()) -> None:
        """Predict the runtime of every job in the queue, and of ``more``, from what has ended."""
        live = [*self.snapshot.jobs, *more]
        now = self.snapshot.now_s
        running = [job for job in live if job.state.active]
        columns: dict[str, Any] = {
            "submit_s": [float(min(job.submit_s or now, now)) for job in live],
            "limit_s": [float("nan") if j.limit_s is None else float(j.limit_s) for j in live],
            "nodes": [job.num_nodes for job in live],
            "gpus": [job.gpus for job in live],
            "user": [job.user for job in live],
            "account": [job.account for job in live],
            "partition": [job.partitions[0] for job in live],
            "qos": [job.qos for job in live],
        }
        ids = [f"live {at}" for at in range(len(live))]
        start = [float("nan")] * len(live)
        run = [float("nan")] * len(live)
        if self._past is not None:
            jobs = self._past.workload
            ids += jobs.job_id.tolist()
            start += jobs.start_s.tolist()
            run += jobs.runtime_s.tolist()
            for name in ("submit_s", "limit_s", "nodes", "gpus"):
                columns[name] += getattr(jobs, name).tolist()
            for name in CATEGORIES:
                columns[name] += [jobs.name(name, row) for row in range(len(jobs))]
        known = make_workload(job_id=ids, start_s=start, runtime_s=run, **columns)
        model = RuntimeModel(known).at(now)
        place = {name: row for row, name in enumerate(known.job_id.tolist())}
        self._rows = {job.job_id: place[f"live {at}"] for at, job in enumerate(live)}
        self._model = model
        elapsed = {j.job_id: float(max(0, now - (j.start_s or now))) for j in running}
        names = list(self._rows)
        expected = model.expected_s(
            np.array([self._rows[name] for name in names], dtype=np.int64),
            np.array([elapsed.get(name, 0.0) for name in names]),
        )
        self._runtimes = dict(zip(names, expected.tolist(), strict=True))
        self._layout = None  # it rests on the runtimes

    @property
    def learned_jobs(self) -> int:
        """Ended jobs behind the runtimes."""
        return self._model.learned if self._model else 0

    def likely_longest_s(self, job: QueuedJob, level: float = 0.95) -> tuple[float, float]:
        """The runtime that this job hardly exceeds, and how many jobs of its kind say so."""
        if self._model is None or job.job_id not in self._rows:
            return float("nan"), 0.0
        row = self._rows[job.job_id]
        return self._model.quantile_s(row, level), self._model.support(row)

    def expected_s(self, job: QueuedJob) -> float:
        """The predicted runtime in all; the limit where nothing better is known."""
        believed = self._runtimes.get(job.job_id, float("nan"))
        if believed != believed:  # noqa: PLR0124  # NaN
            return float(job.limit_s or WITHOUT_LIMIT_S)
        return believed

    def drawn_s(self, job: QueuedJob, draws: Floats) -> Floats:
        """Runtimes in all at uniform draws, given how long it has run; NaN: nothing is known."""
        if self._model is None or job.job_id not in self._rows:
            return np.full(len(draws), math.nan)
        begun = job.start_s if job.state.active else None
        elapsed = float(max(0, self.snapshot.now_s - begun)) if begun else 0.0
        return self._model.draws_s(self._rows[job.job_id], elapsed, draws)

    def _order(self, job: QueuedJob) -> tuple[int, int, int]:
        """Sort key, as Slurm looks at jobs: partition's tier, priority, age (slurm.conf(5))."""
        tier = max((self._tiers.get(name, 1) for name in job.partitions), default=1)
        return (-tier, -job.priority, job_number(job.job_id))

    def tasks(self, job: QueuedJob) -> int:
        """How many jobs its record stands for: of an array those that wait."""
        return tasks_of(job)[0]

    def times(
        self,
        *,
        changed: QueuedJob | None = None,
        added: QueuedJob | None = None,
        of: Collection[str] | None = None,
        without: Collection[str] = (),
    ) -> Times:
        """Start times of all pending jobs.

        Args:
            changed: takes the place of the pending job of the same id.
            added: a job that is not in the queue yet; it comes last.
            of: only these are asked about, so jobs behind the last of them are left out.
            without: jobs as if they were not in the queue.
        """
        if changed is None and added is None:
            if self._layout is None:
                self._layout = self._laid_out(self._pending)
            layout, own = self._layout, None
            rows = [at for at, name in enumerate(layout.names) if name not in without]
        else:
            own = changed or added
            layout = self._laid_out(self._with(changed, added, without), own)
            rows = list(range(len(layout.names)))
        run_on: dict[str, float] = {}
        if self._runs_on and self.learned_jobs:
            # whoever is behind runs on, too: what is asked about changes nothing
            run_on = layout.run_on(np.array(rows, dtype=np.int64), self.drawn_s)
        if of is not None:
            last = max((at for at in rows if layout.names[at] in of), default=-1)
            del rows[bisect_right(rows, last) :]
        kept = np.array(rows, dtype=np.int64)
        return Times(
            layout.starts(kept, learned=True),
            layout.starts(kept, learned=False),
            {layout.names[at]: run_on[layout.names[at]] for at in rows} if run_on else {},
        )

    def _laid_out(self, pending: list[QueuedJob], own: QueuedJob | None = None) -> Layout:
        return Layout(self.snapshot, self._kinds, pending, self.expected_s, own)

    def _with(
        self, changed: QueuedJob | None, added: QueuedJob | None, without: Collection[str]
    ) -> list[QueuedJob]:
        pending = [
            changed if changed is not None and job.job_id == changed.job_id else job
            for job in self._pending
            if job.job_id not in without
        ]
        if added is not None:
            pending.append(added)
        # by tier alone what is added comes after its like; a changed job keeps its priority
        pending.sort(key=lambda job: (*self._order(job)[:1], job is added, *self._order(job)[1:]))
        return pending


def most_run_on() -> int:
    """Tasks in a queue up to which it is run on; a longer one is planned once."""
    return _MOST_RUN_ON if can_compile() else _MOST_PLAIN


def _waiting(snapshot: Snapshot) -> list[QueuedJob]:
    """Pending jobs that Slurm looks at: those held are left out."""
    return [
        job
        for job in snapshot.jobs
        if job.state is JobState.PENDING and job.priority and not job.reason.startswith(_HELD)
    ]


def shorter(job: QueuedJob, limit_s: int) -> QueuedJob:
    """The job with another time limit."""
    return msgspec.structs.replace(job, limit_s=limit_s)
