"""One site under Slurm with a cloud behind it, event by event: what jobs would have lived through.

Nodes are of classes and are filled one by one; the queue is Slurm's (``site_kernel``); cloud nodes
boot (some of them very late), have no capacity at times, and are taken back; nodes on the floor
fail. Who leaves is not decided here: a ``Decider`` is asked at intervals, as cron asks
`hpcscale burst run`. Times are whole seconds.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from heapq import heappop, heappush
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from hpcscale.errors import UsageError
from hpcscale.simulate import site_kernel as kernel

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

_Z95 = 1.6449  # of a standard normal


@dataclass(frozen=True, slots=True)
class NodeClass:
    """Nodes that are alike.

    Attributes:
        nodes: how many.
        units: GPUs of each; 1 where jobs take nodes whole.
    """

    name: str
    nodes: int
    units: int


@dataclass(frozen=True, slots=True)
class CloudSide:
    """The cloud, as it is in truth; what a decider believes of it is the decider's own.

    Attributes:
        unit_hour_usd: dollars of a GPU (or a whole node) for an hour, from the boot on.
        boot_p50_s, boot_p95_s: half of the nodes are up by then, and 19 of 20: lognormal, so one
            in a thousand takes (p95 / p50) ** 1.9 times the median.
        staging_s: copying before the boot.
        boot_timeout_s: a job whose nodes are not up by then goes back to its queue.
        no_capacity: share of the requests that get no nodes.
        told_after_s: until that is known.
        interrupted_per_h: chance within an hour that a job's nodes are taken back.
        checkpoint_s: work is kept so often; infinite: an interrupted job begins anew.
        tries: a job whose nodes were taken so often goes on where nobody takes them.
    """

    unit_hour_usd: float
    boot_p50_s: float = 0.0
    boot_p95_s: float = 0.0
    staging_s: float = 0.0
    boot_timeout_s: float = 1800.0
    no_capacity: float = 0.0
    told_after_s: float = 60.0
    interrupted_per_h: float = 0.0
    checkpoint_s: float = math.inf
    tries: int = 3

    def boot_s(self, draw: float) -> float:
        """A boot, from a draw of a standard normal."""
        if self.boot_p50_s <= 0:
            return 0.0
        spread = math.log(max(1.0, self.boot_p95_s / self.boot_p50_s)) / _Z95
        return self.boot_p50_s * math.exp(spread * draw)


@dataclass(frozen=True, slots=True)
class SiteModel:
    """A site.

    Attributes:
        classes: of its nodes.
        cloud: behind it.
        bf_interval_s: between two passes of backfill; 0: at each change.
        bf_resolution_s, bf_window_s, bf_max_job_test: of slurm.conf(5).
        bf_whole_nodes: backfill keeps nodes for a job that waits, and not only the GPUs that it
            wants of them, as Slurm does.
        after_s: from a job's end until its nodes can be taken again.
        failures_per_node_h: of nodes on the floor; what runs there is requeued.
        repair_s: until such a node is back.
        requeue_s: until a requeued job may start again.
    """

    classes: tuple[NodeClass, ...]
    cloud: CloudSide
    bf_interval_s: int = 30
    bf_resolution_s: int = 60
    bf_window_s: int = 86400
    bf_max_job_test: int = 500
    bf_whole_nodes: bool = True
    after_s: int = 0
    failures_per_node_h: float = 0.0
    repair_s: int = 4 * 3600
    requeue_s: int = 120


@dataclass(frozen=True, eq=False)
class Jobs:
    """What is to run, in order of submission and, among equals, of priority.

    Attributes:
        submit_s: whole seconds.
        run_s: how long each truly runs; cut at its limit.
        limit_s: its time limit.
        need: units on each of its nodes.
        count: its nodes.
        mask: bits of the classes that it may take.
        part: its partition; one that is blocked blocks no other.
    """

    submit_s: Ints
    run_s: Ints
    limit_s: Ints
    need: Ints
    count: Ints
    mask: Ints
    part: Ints

    def __len__(self) -> int:
        return len(self.submit_s)


@dataclass(eq=False)
class View:
    """The site at one moment, as a decider may see it: nothing of the future.

    Attributes:
        now_s: the moment.
        waiting: jobs, in priority order.
        away: jobs that left and have not ended.
        running: (job, since when) on the floor.
        ended: jobs that have ended since the decider was asked last, here or away.
        back: (job, why) of those that came back from the cloud since then.
        spent: (job, dollars) of those that ended away since then.
    """

    now_s: int
    waiting: tuple[int, ...]
    away: frozenset[int]
    running: tuple[tuple[int, int], ...]
    ended: tuple[int, ...]
    back: tuple[tuple[int, str], ...]
    spent: tuple[tuple[int, float], ...]
    plan: "Callable[[Floats, Sequence[int]], dict[int, int]]"


Decider = Callable[[View], Iterable[int]]


@dataclass(eq=False)
class Lived:
    """What became of the jobs.

    Attributes:
        start_s: when each last began; -1: never.
        end_s: when it ended.
        left: which ended in the cloud.
        usd: dollars of each, boots and runs in vain included.
        requeues: how often each began anew.
        events: how often what happened.
        asked: how often the decider was.
    """

    start_s: Ints
    end_s: Ints
    left: Bools
    usd: Floats
    requeues: Ints
    events: dict[str, int] = field(default_factory=dict)
    asked: int = 0

    def count(self, what: str) -> None:
        """One more of these."""
        self.events[what] = self.events.get(what, 0) + 1


class _Event(NamedTuple):
    at_s: int
    kind: int
    number: int
    job: int


# in the order in which they are taken at one moment
_END, _FREE, _SUBMIT, _UP, _DENIED, _LATE, _TAKEN, _FAIL, _ASK, _FILL = range(10)


class _Run:
    """One simulation under way."""

    def __init__(self, jobs: Jobs, model: SiteModel, seed: int) -> None:
        self.jobs, self.model = jobs, model
        self.rng = np.random.default_rng([seed, 7])
        units = [c.units for c in model.classes for _ in range(c.nodes)]
        self.units = np.array(units, dtype=np.int64)
        kinds = [k for k, c in enumerate(model.classes) for _ in range(c.nodes)]
        self.kind = np.array(kinds, dtype=np.int64)
        self.free = self.units.copy()
        self.pieces: dict[int, list[int]] = {}  # job (or -1 - node for one in repair) -> nodes
        self.due: dict[int, int] = {}
        self.waiting: list[int] = []
        self.away: dict[int, float] = {}  # job -> hours of work that are left
        self.taken: dict[int, int] = {}
        self.epoch = np.zeros(len(jobs), dtype=np.int64)  # a job's events of earlier lives are void
        self.events: list[_Event] = []
        self.fill_at = -1
        size = len(jobs)
        self.blocked = np.zeros(int(jobs.part.max(initial=0)) + 1, dtype=np.int64)
        self.out = Lived(
            np.full(size, -1, dtype=np.int64), np.full(size, -1, dtype=np.int64),
            np.zeros(size, dtype=np.bool_), np.zeros(size), np.zeros(size, dtype=np.int64),
        )  # fmt: skip
        self.ended: list[int] = []
        self.back: list[tuple[int, str]] = []
        self.spent: list[tuple[int, float]] = []

    def push(self, at_s: float, kind: int, job: int) -> None:
        epoch = int(self.epoch[job]) if job >= 0 else 0
        heappush(self.events, _Event(math.ceil(at_s), kind, epoch, job))

    # ---- the floor

    def schedule(self, now: int, *, backfill: bool) -> None:
        if not self.waiting:
            return
        order = np.array(self.waiting, dtype=np.int64)
        start, ptr, where = self.pass_(now, order, self.free, self.jobs.limit_s, backfill=backfill)
        stay: list[int] = []
        for q, j in enumerate(self.waiting):
            if start[q] != now or ptr[q] < 0:
                stay.append(j)
                continue
            self.pieces[j] = where[ptr[q] : ptr[q] + self.jobs.count[j]].tolist()
            self.due[j] = now + int(self.jobs.limit_s[j])
            self.out.start_s[j] = now
            self.push(now + int(min(self.jobs.run_s[j], self.jobs.limit_s[j])), _END, j)
        self.waiting = stay

    def pass_(
        self, now: int, order: Ints, free: Ints, limit: Ints, *, backfill: bool,
        due: dict[int, int] | None = None, main: bool = True, most: int | None = None,
    ) -> tuple[Ints, Ints, Ints]:  # fmt: skip
        """One pass of the scheduler; ``free`` is changed."""
        jobs, model = self.jobs, self.model
        held = [
            ((due or self.due)[j], n, int(jobs.need[j]) if j >= 0 else int(self.units[n]))
            for j, nodes in self.pieces.items()
            for n in nodes
        ]
        columns = np.array(held or [(0, 0, 0)], dtype=np.int64)
        size = len(order)
        start, ptr = np.empty(size, np.int64), np.empty(size, np.int64)
        where = np.empty(int(jobs.count[order].sum()) + 1, np.int64)
        kernel.schedule(
            now, free, self.kind, len(held),
            np.ascontiguousarray(columns[:, 0]), np.ascontiguousarray(columns[:, 1]),
            np.ascontiguousarray(columns[:, 2]),
            order, size, jobs.need, jobs.count, jobs.mask, jobs.part, limit,
            main, backfill, model.bf_resolution_s, model.bf_window_s,
            most or model.bf_max_job_test, model.bf_whole_nodes, self.blocked, start, ptr, where,
        )  # fmt: skip
        return start, ptr, where

    def release(self, job: int) -> None:
        need = int(self.jobs.need[job]) if job >= 0 else 0
        for n in self.pieces.pop(job):
            self.free[n] += need if job >= 0 else self.units[n]
        del self.due[job]

    def enqueue(self, job: int) -> None:
        """Back to the place that its submission gives it."""
        self.waiting.append(job)
        self.waiting.sort()

    def node_fails(self, now: int) -> None:
        """One node drawn among all; a class of whole nodes in one piece loses a share."""
        up = np.flatnonzero(self.units > 0)
        node = int(self.rng.choice(up))
        if (-1 - node) in self.pieces:
            return
        self.out.count("nodes failed")
        for job in [j for j, nodes in self.pieces.items() if j >= 0 and node in nodes]:
            self.release(job)
            self.epoch[job] += 1
            self.out.requeues[job] += 1
            self.out.count("requeued after a node failed")
            self.push(now + self.model.requeue_s, _SUBMIT, job)
        self.free[node] -= self.units[node]
        self.pieces[-1 - node] = [node]
        self.due[-1 - node] = now + self.model.repair_s
        heappush(self.events, _Event(now + self.model.repair_s, _FREE, 0, -1 - node))

    # ---- the cloud

    def leave(self, job: int, now: int) -> None:
        cloud = self.model.cloud
        self.waiting.remove(job)
        self.epoch[job] += 1
        self.away[job] = float(min(self.jobs.run_s[job], self.jobs.limit_s[job]))
        self.out.count("launches")
        if self.rng.random() < cloud.no_capacity:
            self.push(now + cloud.told_after_s, _DENIED, job)
            return
        self.boot(job, now + cloud.staging_s, first=True)

    def units_of(self, job: int) -> int:
        return int(self.jobs.need[job] * self.jobs.count[job])

    def bill(self, job: int, seconds: float) -> None:
        usd = seconds / 3600 * self.units_of(job) * self.model.cloud.unit_hour_usd
        self.out.usd[job] += usd

    def boot(self, job: int, now: float, *, first: bool) -> None:
        cloud = self.model.cloud
        # a job waits for the last of its nodes
        draws = self.rng.standard_normal(int(self.jobs.count[job]))
        boot = cloud.boot_s(float(draws.max()))
        if first and boot > cloud.boot_timeout_s:
            self.bill(job, cloud.boot_timeout_s)
            self.push(now + cloud.boot_timeout_s, _LATE, job)
            return
        self.bill(job, boot)
        self.push(now + boot, _UP, job)

    def up(self, job: int, now: int) -> None:
        """It runs until its end, or until its nodes are taken back."""
        cloud = self.model.cloud
        rest = self.away[job]
        self.out.start_s[job] = now if self.out.start_s[job] < 0 else self.out.start_s[job]
        rate = cloud.interrupted_per_h
        until = math.inf
        if rate > 0 and self.taken.get(job, 0) < cloud.tries:
            per_s = -math.log(max(1e-9, 1 - rate)) / 3600
            until = float(self.rng.exponential(1 / per_s))
        if until >= rest:
            self.bill(job, rest)
            self.push(now + rest, _END, job)
            return
        self.bill(job, until)
        kept = 0.0
        if math.isfinite(cloud.checkpoint_s):
            kept = math.floor(until / cloud.checkpoint_s) * cloud.checkpoint_s
        self.away[job] = rest - kept
        self.taken[job] = self.taken.get(job, 0) + 1
        self.push(now + until, _TAKEN, job)

    def return_(self, job: int, why: str) -> None:
        self.out.count(why)
        self.back.append((job, why))
        del self.away[job]
        self.epoch[job] += 1
        self.out.start_s[job] = -1
        self.enqueue(job)

    # ---- one moment

    def take(self, event: _Event) -> bool:
        """One event; whether the floor may have changed."""
        now, kind, epoch, job = event
        if job >= 0 and epoch != self.epoch[job]:
            return False
        match kind:
            case _ if kind == _END and job in self.away:
                self.finish(job, now)
                self.out.left[job] = True
                self.spent.append((job, float(self.out.usd[job])))
                del self.away[job]
                return False
            case _ if kind == _END:
                self.finish(job, now)
                if self.model.after_s:
                    heappush(
                        self.events,
                        _Event(now + self.model.after_s, _FREE, int(self.epoch[job]), job),
                    )
                    return False
                self.release(job)
            case _ if kind == _FREE:
                self.release(job)
            case _ if kind == _SUBMIT:
                self.enqueue(job)
            case _ if kind == _UP:
                self.up(job, now)
                return False
            case _ if kind == _DENIED:
                self.return_(job, "no capacity")
            case _ if kind == _LATE:
                self.return_(job, "boots timed out")
            case _ if kind == _TAKEN:
                self.out.count("interrupted")
                self.out.requeues[job] += 1
                self.boot(job, now, first=False)
                return False
        return True

    def finish(self, job: int, now: int) -> None:
        self.out.end_s[job] = now
        self.ended.append(job)

    def view(self, now: int) -> View:
        def plan(duration_s: Floats, gone: Sequence[int]) -> dict[int, int]:
            """Start of each waiting job if all run as long as believed and some have left."""
            out = set(gone)
            order = np.array([j for j in self.waiting if j not in out], dtype=np.int64)
            if not len(order):
                return {}
            lasts = np.maximum(1, np.rint(duration_s)).astype(np.int64)
            due = {
                j: (
                    max(now + 1, int(self.out.start_s[j] + lasts[j])) if j >= 0 else self.due[j]
                )
                for j in self.pieces
            }  # fmt: skip
            start, _, _ = self.pass_(
                now, order, self.free.copy(), lasts, backfill=True, due=due, most=len(order),
                main=False,
            )  # fmt: skip
            return dict(zip(order.tolist(), start.tolist(), strict=True))

        seen = View(
            now_s=now,
            waiting=tuple(self.waiting),
            away=frozenset(self.away),
            running=tuple((j, int(self.out.start_s[j])) for j in self.pieces if j >= 0),
            ended=tuple(self.ended),
            back=tuple(self.back),
            spent=tuple(self.spent),
            plan=plan,
        )
        self.ended, self.back, self.spent = [], [], []
        return seen


def run_site(
    jobs: Jobs,
    model: SiteModel,
    decider: Decider | None = None,
    *,
    every_s: int = 300,
    seed: int = 0,
    progress: Callable[[float], None] | None = None,
) -> Lived:
    """Run all jobs.

    Args:
        jobs: what comes.
        model: the site.
        decider: says who of the waiting jobs leaves; None: nobody.
        every_s: how often it is asked while jobs wait.
        seed: of boots, capacity, interruptions and failures.
        progress: called with the share of jobs that have ended.

    Raises:
        UsageError: a job that no class of nodes holds.
    """
    run = _Run(jobs, model, seed)
    for j in range(len(jobs)):
        able = ((jobs.mask[j] >> run.kind) & 1).astype(bool) & (run.units >= jobs.need[j])
        if able.sum() < jobs.count[j]:
            raise UsageError(
                f"job {j} needs {jobs.count[j]} nodes of {jobs.need[j]} units, which are not there",
                hint="leave it out, or give the site more nodes",
            )
        run.push(int(jobs.submit_s[j]), _SUBMIT, j)
    rate = model.failures_per_node_h * len(run.units)
    first = int(jobs.submit_s[0]) if len(jobs) else 0
    if rate > 0:
        run.push(first + run.rng.exponential(3600 / rate), _FAIL, -1)
    if decider is not None:
        run.push(first, _ASK, -1)
    done = 0
    while done < len(jobs):
        now = run.events[0].at_s
        changed = fill = ask = False
        while run.events and run.events[0].at_s == now:
            event = heappop(run.events)
            if event.kind == _ASK:
                ask = True
            elif event.kind == _FILL:
                fill = True
            elif event.kind == _FAIL:
                run.node_fails(now)
                run.push(now + run.rng.exponential(3600 / rate), _FAIL, -1)
                changed = True
            else:
                changed = run.take(event) or changed
                done += event.kind == _END and bool(run.out.end_s[event.job] == now)
        if changed or fill:
            run.schedule(now, backfill=fill or not model.bf_interval_s)
        if ask and decider is not None:
            run.out.asked += 1
            if run.waiting or run.away:
                leaving = list(decider(run.view(now)))
                for job in leaving:
                    run.leave(job, now)
                if leaving:
                    run.schedule(now, backfill=not model.bf_interval_s)
            if done < len(jobs):
                run.push(now + every_s, _ASK, -1)
        if changed and run.waiting and model.bf_interval_s and run.fill_at <= now:
            run.fill_at = (now // model.bf_interval_s + 1) * model.bf_interval_s
            run.push(run.fill_at, _FILL, -1)
        if progress is not None:
            progress(done / len(jobs))
    return run.out
