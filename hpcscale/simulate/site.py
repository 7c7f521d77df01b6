"""One site under Slurm with a cloud behind it, event by event: what jobs would have lived through.

Nodes are of classes and are filled one by one; the queue is Slurm's (``site_floor``); cloud nodes
boot (some of them very late), have no capacity at times, and are taken back; nodes on the floor
fail. Who leaves is not decided here: a ``Decider`` is asked at intervals, as cron asks
`hpcscale burst run`. Times are whole seconds.
"""

import math
from collections.abc import Callable, Sequence
from heapq import heappop, heappush
from typing import NamedTuple

import numpy as np

from hpcscale.errors import UsageError
from hpcscale.simulate.site_floor import Floor
from hpcscale.simulate.site_types import (
    CloudSide,
    Decider,
    Floats,
    Jobs,
    Lived,
    NodeClass,
    SiteModel,
    View,
)

__all__ = ["CloudSide", "Decider", "Jobs", "Lived", "NodeClass", "SiteModel", "View", "run_site"]


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
        self.fills = np.random.default_rng([seed, 8])
        self.floor = Floor(jobs, model)
        self.waiting: list[int] = []
        self.away: dict[int, float] = {}  # job -> hours of work that are left
        self.taken: dict[int, int] = {}
        self.epoch = np.zeros(len(jobs), dtype=np.int64)  # a job's events of earlier lives are void
        self.events: list[_Event] = []
        self.fill_at = self.filled_at = -model.bf_interval_s
        self.fill_waits = False  # whether somebody waited after that
        size = len(jobs)
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

    def schedule(self, now: int, *, backfill: bool) -> bool:
        """A pass; whether something started."""
        if not self.waiting:
            return False
        started = self.floor.start(now, self.waiting, backfill=backfill)
        for j in started:
            self.out.start_s[j] = now
            self.push(now + int(min(self.jobs.run_s[j], self.jobs.limit_s[j])), _END, j)
        if started:
            gone = set(started)
            self.waiting = [j for j in self.waiting if j not in gone]
        return bool(started)

    def next_fill(self, now: int) -> int:
        """When backfill comes next.

        While jobs wait it comes at its interval, whether it finds a change or not; when none do,
        with the next change, a second later at least.
        """
        every, late = self.model.bf_interval_s, self.model.bf_late_s
        if not self.fill_waits:
            return max(now + 1, self.filled_at + every)
        at = self.filled_at
        while at <= now:
            at += every + (int(self.fills.integers(0, late, endpoint=True)) if late else 0)
        return at

    def enqueue(self, job: int) -> None:
        """Back to the place that its submission gives it."""
        self.waiting.append(job)
        self.waiting.sort()

    def node_fails(self, now: int) -> None:
        """One node drawn among all; a class of whole nodes in one piece loses a share."""
        up = np.flatnonzero(self.floor.units > 0)
        node = int(self.rng.choice(up))
        if (-1 - node) in self.floor.pieces:
            return
        self.out.count("nodes failed")
        for job in [j for j, nodes in self.floor.pieces.items() if j >= 0 and node in nodes]:
            self.floor.release(job)
            self.epoch[job] += 1
            self.out.requeues[job] += 1
            self.out.count("requeued after a node failed")
            self.push(now + self.model.requeue_s, _SUBMIT, job)
        self.floor.repair(node, now + self.model.repair_s)
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
                self.floor.release(job)
            case _ if kind == _FREE:
                self.floor.release(job)
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
            stay = [j for j in self.waiting if j not in out]
            if not stay:
                return {}
            lasts = np.maximum(1, np.rint(duration_s)).astype(np.int64)
            due = {
                j: max(now + 1, int(self.out.start_s[j] + lasts[j])) if j >= 0 else at
                for j, at in self.floor.due.items()
            }
            return self.floor.plan(now, stay, lasts, due)

        seen = View(
            now_s=now,
            waiting=tuple(self.waiting),
            away=frozenset(self.away),
            running=tuple((j, int(self.out.start_s[j])) for j in self.floor.pieces if j >= 0),
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
        able = ((jobs.mask[j] >> run.floor.kind) & 1).astype(bool) & (
            run.floor.units >= jobs.need[j]
        )
        if able.sum() < jobs.count[j]:
            raise UsageError(
                f"job {j} needs {jobs.count[j]} nodes of {jobs.need[j]} units, which are not there",
                hint="leave it out, or give the site more nodes",
            )
        run.push(int(jobs.submit_s[j]), _SUBMIT, j)
    rate = model.failures_per_node_h * len(run.floor.units)
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
            started = run.schedule(now, backfill=fill or not model.bf_interval_s)
            if fill:
                run.filled_at, run.fill_waits = now, bool(run.waiting)
                # what has started is a change, too
                changed = changed or started
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
        if changed and model.bf_interval_s and run.fill_at <= now:
            run.fill_at = run.next_fill(now)
            run.push(run.fill_at, _FILL, -1)
        if progress is not None:
            progress(done / len(jobs))
    return run.out
