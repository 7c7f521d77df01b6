"""From a snapshot and learned runtimes to start times: the site as resources, its queue as a plan.

Nodes are classes of them (``kinds``), and those that are reserved are kept apart (``reserved``).
Jobs that Slurm holds back for good (held by user or admin, a dependency that never comes) are not
in the plan.
"""

import math
import re
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np

from hpcscale.forecast.plan import plan
from hpcscale.forecast.problem import NEVER, Checked, Demand, ProblemBuilder
from hpcscale.forecast.runtimes import RuntimeModel
from hpcscale.history.reading import Reading
from hpcscale.history.workload import CATEGORIES, make_workload
from hpcscale.outlook.kinds import job_number, node_kinds
from hpcscale.outlook.reserved import Reserved
from hpcscale.outlook.snapshot import Snapshot
from hpcscale.slurm.types import JobState
from hpcscale.slurm.whole import QueuedJob, RunLimit
from hpcscale.units import parse_array

_HELD = ("JobHeldUser", "JobHeldAdmin", "DependencyNeverSatisfied", "BadConstraints", "Invalid")
_WITHOUT_LIMIT_S = 7 * 86400  # believed of a job that has no limit and no like
_MOST_TASKS = 100_000
_LONG_QUEUE = 50_000  # jobs from which the plan is in steps of five minutes
_AFTER = re.compile(r"after\w*:(\d+(?:_(?:\d+|\*))?)")


@dataclass(frozen=True)
class Times:
    """Seconds from now until each pending job starts; infinite: never with what there is.

    Attributes:
        learned_s: with learned runtimes of the others.
        limits_s: when everything runs to its limit.
    """

    learned_s: dict[str, float]
    limits_s: dict[str, float]

    def start_s(self, job_id: str) -> float:
        """The likely start. What fits now by the limits starts now: Slurm decides by limits."""
        return 0.0 if self.limits_s[job_id] == 0 else self.learned_s[job_id]


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
            return float(job.limit_s or _WITHOUT_LIMIT_S)
        return believed

    def _order(self, job: QueuedJob) -> tuple[int, int, int]:
        """Sort key, as Slurm looks at jobs: partition's tier, priority, age (slurm.conf(5))."""
        tier = max((self._tiers.get(name, 1) for name in job.partitions), default=1)
        return (-tier, -job.priority, job_number(job.job_id))

    def tasks(self, job: QueuedJob) -> int:
        """How many jobs its record stands for: of an array those that wait."""
        return _tasks(job)[0]

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
        pending = [
            changed if changed is not None and job.job_id == changed.job_id else job
            for job in self._pending
            if job.job_id not in without
        ]
        if added is not None:
            pending.append(added)
        if added is not None or changed is not None:
            # by tier alone what is added comes after its like; a changed job keeps its priority
            pending.sort(
                key=lambda job: (*self._order(job)[:1], job is added, *self._order(job)[1:])
            )
        if of is not None:
            last = max((at for at, job in enumerate(pending) if job.job_id in of), default=-1)
            del pending[last + 1 :]
        own = changed or added
        return Times(
            self._plan(pending, learned=True, own=own), self._plan(pending, learned=False, own=own)
        )

    def _plan(
        self, pending: list[QueuedJob], *, learned: bool, own: QueuedJob | None
    ) -> dict[str, float]:
        now = self.snapshot.now_s
        grain = self._grain_s(pending)
        made = ProblemBuilder(now)
        for kind in self._kinds:
            kind.enter(made)
        reserved = Reserved(made, self.snapshot, self._kinds)
        allowances = _Allowances(made, self.snapshot)
        ends = self._hold_running(made, reserved, allowances, grain, learned=learned)
        positions: dict[str, list[int]] = {}
        waits: list[tuple[QueuedJob, int, list[int | None]]] = []
        shapes: dict[tuple[object, ...], tuple[Checked, list[int | None]]] = {}
        for job in pending:
            seconds = float(job.limit_s or _WITHOUT_LIMIT_S)
            # Slurm's backfill places a job by its limit: so is the one that is asked about
            if learned and (own is None or job.job_id != own.job_id):
                seconds = self.expected_s(job)
            release, after = _released(job, now, ends, positions)
            tasks, throttle = _tasks(job)
            extra = allowances.of(job)
            if throttle is not None:
                extra = [*extra, (made.resource(throttle), 1)]
            shape = (
                job.partitions, job.num_nodes, job.cpus, job.gpus, job.exclusive,
                job.reservation, tuple(extra),
            )  # fmt: skip
            if shape not in shapes:
                able = reserved.choices(job)
                alternatives = made.checked([*choice, *extra] for choice, _ in able)
                shapes[shape] = alternatives, [closes for _, closes in able]
            choices, closing = shapes[shape]
            length = _up(seconds, grain)
            mine = positions.setdefault(job.job_id, [])
            for _ in range(tasks):
                mine.append(made.job(choices, length, release_s=release, after=after))
            waits.append((job, positions[job.job_id][0], closing))
        planned = plan(made.build())
        found = {}
        for job, at, closing in waits:
            start, closes = int(planned.start_s[at]), None
            if start < NEVER:
                closes = closing[planned.chosen[at]]
            late = start >= NEVER or (closes is not None and start >= closes)
            found[job.job_id] = float("inf") if late else float(start - now)
        return found

    def _grain_s(self, pending: list[QueuedJob]) -> int:
        """The plan's step: Slurm's own (``bf_resolution``, a minute unless set), or five minutes.

        Ends that coincide make a plan of 100,000 jobs seven times faster.
        """
        text = self.snapshot.facts.config.get("SchedulerParameters", "")
        match = re.search(r"\bbf_resolution=(\d+)", text)
        long = sum(_tasks(job)[0] for job in pending) >= _LONG_QUEUE
        return max(300 if long else 60, int(match[1]) if match else 0)

    def _hold_running(
        self,
        made: ProblemBuilder,
        reserved: Reserved,
        allowances: "_Allowances",
        grain: int,
        *,
        learned: bool,
    ) -> dict[str, int]:
        """Units of running jobs until their predicted ends; the ends by job id."""
        now = self.snapshot.now_s
        ends = {}
        for job in self.snapshot.jobs:
            if not job.state.active:
                continue
            begun = job.start_s or now
            seconds = self.expected_s(job) if learned else float(job.limit_s or _WITHOUT_LIMIT_S)
            until = now + _up(begun + seconds - now, grain)
            ends[job.job_id] = until
            reserved.hold_running(job, until)
            for demand in allowances.of(job):
                made.hold(demand[0], demand[1], until)
        return ends


class _Allowances:
    """Limits on what runs at one time, as resources: one for each that a job of the plan meets."""

    def __init__(self, made: ProblemBuilder, snapshot: Snapshot) -> None:
        self._made = made
        self._limits: dict[tuple[str, str], list[RunLimit]] = {}
        for limit in snapshot.limits:
            kind = limit.whose.partition("/")[0]
            self._limits.setdefault(("account" if kind == "user" else kind, limit.name), []).append(
                limit
            )
        self._known: dict[tuple[str, ...], int] = {}

    def of(self, job: QueuedJob) -> list[Demand]:
        """What this job takes of its user's, its account's and its QOS's allowances."""
        if not self._limits:
            return []
        takes = {"jobs": 1, "cpu": job.cpus, "gpu": job.gpus, "node": job.num_nodes}
        found: dict[int, Demand] = {}
        for place in (("qos", job.qos), ("account", job.account)):
            for limit in self._limits.get(place, ()):
                if limit.user not in {"", job.user} or not takes[limit.what]:
                    continue
                each = job.user if limit.whose.endswith("/user") else limit.user
                key = (*place, limit.whose, limit.what, each, str(limit.units))
                if key not in self._known:
                    self._known[key] = self._made.resource(limit.units)
                found[self._known[key]] = (self._known[key], takes[limit.what])
        return list(found.values())


def _waiting(snapshot: Snapshot) -> list[QueuedJob]:
    """Pending jobs that Slurm looks at: those held are left out."""
    return [
        job
        for job in snapshot.jobs
        if job.state is JobState.PENDING and job.priority and not job.reason.startswith(_HELD)
    ]


def _released(
    job: QueuedJob, now: int, ends: dict[str, int], positions: dict[str, list[int]]
) -> tuple[int, list[int]]:
    """Not before when, and after which pending jobs: its begin time and its dependencies."""
    release = now
    if job.eligible_s and job.eligible_s > now:
        release = job.eligible_s
    after: list[int] = []
    if not job.dependency:
        return release, after
    for text in _AFTER.findall(job.dependency):
        name = text.removesuffix("_*")
        after += positions.get(name, [])
        release = max([release, *(end for other, end in ends.items() if _same(other, name))])
    return release, after


def _up(seconds: float, grain: int) -> int:
    """Rounded up to whole steps, one at least."""
    return max(1, math.ceil(seconds / grain)) * grain


def _same(job_id: str, name: str) -> bool:
    return job_id == name or job_id.partition("_")[0] == name


def _tasks(job: QueuedJob) -> tuple[int, int | None]:
    """How many jobs a pending record stands for, and its ``%`` limit."""
    if not job.array_pending:
        return 1, None
    try:
        indices, throttle = parse_array(job.array_pending)
    except ValueError:
        return 1, None
    return min(len(indices), _MOST_TASKS), throttle


def shorter(job: QueuedJob, limit_s: int) -> QueuedJob:
    """The job with another time limit."""
    return msgspec.structs.replace(job, limit_s=limit_s)
