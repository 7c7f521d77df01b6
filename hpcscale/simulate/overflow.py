"""Replay a history on one cluster with a cloud behind it, under an overflow policy.

``simulate`` answers: with this policy, when would each job have begun, where, and at what price.
The queue is walked in order of arrival, and who does not fit is passed over (unless the policy
blocks), as in Starburst's simulator (USENIX ATC'24), whose published costs it gives too.
"""

from dataclasses import dataclass
from decimal import ROUND_HALF_UP, Decimal

import numpy as np
from numpy.typing import NDArray

from hpcscale.errors import InvalidFileError
from hpcscale.history.tables import NEEDED
from hpcscale.history.workload import Workload
from hpcscale.simulate import overflow_kernel as kernel

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

CENT = Decimal("0.01")
S_PER_H = 3600.0
WIDE = 16  # longer queues are judged job by job
LARGER = "larger than the cluster"
ALWAYS = -1  # a rule that needs no replay
OVERDUE = 1.0  # a job that ran longer than expected goes on for so much of what it has run


@dataclass(frozen=True, slots=True)
class Cluster:
    """Where jobs would run, and what leaving costs.

    Attributes:
        nodes: of the cluster, all alike.
        gpus_per_node: of each.
        cloud_gpu_hour_usd: dollars of one GPU for an hour, away.
    """

    nodes: int
    gpus_per_node: int
    cloud_gpu_hour_usd: Decimal = Decimal("2.50")


@dataclass(frozen=True, slots=True, eq=False)
class Instance:
    """Jobs as the simulator takes them, in order of arrival; hours from the first one.

    Attributes:
        cluster: where.
        arrival_h: when each came.
        run_h: how long each truly runs.
        per_node: GPUs on each of its nodes.
        count: its nodes.
        group: jobs of one group teach each other's runtimes.
        deadline_h: when its results are wanted; infinite without one.
        rows: of the history, for each job.
        left_out: how many jobs of the history were not taken, by reason.
    """

    cluster: Cluster
    arrival_h: Floats
    run_h: Floats
    per_node: Ints
    count: Ints
    group: Ints
    deadline_h: Floats
    rows: Ints
    left_out: dict[str, int]

    def __len__(self) -> int:
        return len(self.arrival_h)

    @property
    def gpus(self) -> Ints:
        """GPUs of each job, over all its nodes."""
        return self.per_node * self.count

    @property
    def gpu_hours(self) -> Floats:
        """GPU-hours of each job."""
        return self.gpus * self.run_h

    def part(self, jobs: slice) -> "Instance":
        """Some of the jobs, as an instance of their own."""
        cut = {
            name: getattr(self, name)[jobs]
            for name in ("run_h", "per_node", "count", "group", "rows")
        }
        arrival = self.arrival_h[jobs]
        return Instance(
            cluster=self.cluster,
            arrival_h=arrival,
            deadline_h=self.deadline_h[jobs],
            left_out=self.left_out,
            **cut,
        )


def instance_of(
    work: Workload,
    cluster: Cluster,
    *,
    deadlines: float = 0.5,
    seed: int = 0,
) -> Instance:
    """The jobs of a history that the cluster could run.

    A job of a history without any GPUs takes its nodes whole.

    Args:
        work: the history.
        cluster: where they are to run.
        deadlines: share of the jobs that get one: submit + runtime x (1.5, 2 or 4) + 1 h.
        seed: of who gets which.

    Raises:
        InvalidFileError: no job of it can be taken.
    """
    runtime = work.runtime_s
    whole = not work.gpus.any()
    count = np.maximum(work.nodes, 1)
    gpus = count * cluster.gpus_per_node if whole else work.gpus
    # what a table gives as GPUs alone is spread over the fewest nodes
    count = np.maximum(count, -(-gpus // cluster.gpus_per_node))
    per_node = -(-gpus // count)
    known = np.isfinite(runtime) & (runtime > 0)
    some = gpus > 0
    fits = (count <= cluster.nodes) & (per_node <= cluster.gpus_per_node)
    take = known & some & fits
    reasons = {
        "no runtime": int((~known).sum()),
        "no GPUs": int((known & ~some).sum()),
        LARGER: int((known & some & ~fits).sum()),
    }
    if not take.any():
        said = ", ".join(
            f"{n:,} {why}" if why == LARGER else f"{n:,} with {why}"
            for why, n in reasons.items()
            if n
        )
        raise InvalidFileError(
            f"no job can be simulated on {cluster.nodes} nodes x {cluster.gpus_per_node} GPUs"
            f" ({said})",
            where=work.source or None,
            hint=_remedy(reasons),
        )
    rows = np.flatnonzero(take)
    arrival = work.submit_s[rows] / S_PER_H
    arrival = arrival - arrival[0]
    run = runtime[rows] / S_PER_H
    rng = np.random.default_rng([seed, 1])
    factor = rng.choice([1.5, 2.0, 4.0], len(rows))
    wanted = rng.random(len(rows)) < deadlines
    deadline = np.where(wanted, arrival + factor * run + 1.0, np.inf)
    kind = np.stack([work.user[rows], work.partition[rows], gpus[rows]])
    group = np.unique(kind, axis=1, return_inverse=True)[1].reshape(-1)
    return Instance(
        cluster=cluster,
        arrival_h=np.ascontiguousarray(arrival),
        run_h=run,
        per_node=per_node[rows].astype(np.int64),
        count=count[rows].astype(np.int64),
        group=group.astype(np.int64),
        deadline_h=deadline,
        rows=rows,
        left_out={why: n for why, n in reasons.items() if n},
    )


def _remedy(reasons: dict[str, int]) -> str:
    """What to change, by the reason for which most jobs were left out."""
    why = max(reasons, key=lambda name: reasons[name])
    if why == LARGER:
        return "give the size of the cluster with --nodes and --gpus-per-node"
    if why == "no runtime":
        return (
            "add the column ElapsedRaw, or Start and End (SWF: field 4): "
            f"sacct -aPX --format={NEEDED}"
        )
    return "GPUs of a job are gres/gpu in AllocTRES, or a column gpus"


@dataclass(frozen=True, slots=True)
class Rules:
    """One policy with its knob set, as the simulator runs it.

    Attributes:
        rule: one of the kernel's rules.
        knob: hours (patience, threshold), hours for each GPU-hour (by cost), or dollars an hour of
            waiting is worth (value).
        depth: threshold alone: more than so many wait.
        blocking: the first job that does not fit stops the walk of the queue.
        guard: send a job away at the last moment at which the cloud still meets its deadline.
        others: value alone: weight of the wait that a job causes to others.
        cap: value alone: a job leaves once it waited so many times what leaving costs.
        budget_h: value alone: the mean wait that is allowed; None: the value of an hour stays.
        gain: value alone: the value of an hour is ``knob x (waited / allowed) ** gain``, so it
            rises while jobs wait longer than allowed, and falls while they wait less.
    """

    rule: int
    knob: float = 0.0
    depth: int = 0
    blocking: bool = False
    guard: bool = False
    others: float = 1.0
    cap: float = np.inf
    budget_h: float | None = None
    gain: float = 3.0


@dataclass(frozen=True, slots=True)
class Expect:
    """What a policy knows of how long a job will run.

    Attributes:
        learned: half the mean of the last two ended jobs of its group, half that of all of them,
            none that still runs; else the true runtime (as published comparisons assume).
        boot_h: from asking to a running cloud node.
        margin: the runtime bound of a deadline is the expected one times this.
    """

    learned: bool = False
    boot_h: float = 0.0
    margin: float = 1.0


@dataclass(frozen=True, slots=True, eq=False)
class Outcome:
    """What would have happened.

    Attributes:
        start_h: when each job began, here or away.
        left: which jobs ran away from the cluster.
        expected_h: what the policy took for each runtime.
        ended_h: when each ended; None: a runtime after it began.
        paid_usd: of each job, boots and runs in vain included; None: its runtime at the price.
    """

    instance: Instance
    rules: Rules
    start_h: Floats
    left: Bools
    expected_h: Floats
    ended_h: Floats | None = None
    paid_usd: Floats | None = None

    @property
    def end_h(self) -> Floats:
        """When each job ended."""
        if self.ended_h is not None:
            return self.ended_h
        return self.start_h + self.instance.run_h

    @property
    def usd(self) -> Floats:
        """Dollars of each job."""
        if self.paid_usd is not None:
            return self.paid_usd
        price = float(self.instance.cluster.cloud_gpu_hour_usd)
        return np.where(self.left, self.instance.gpu_hours, 0.0) * price

    @property
    def wait_h(self) -> Floats:
        """Hours from arrival to begin, of each job; the wait before it left counts as well."""
        return self.start_h - self.instance.arrival_h

    @property
    def mean_wait_h(self) -> float:
        """Mean over all jobs."""
        return float(self.wait_h.mean())

    @property
    def cloud_gpu_hours(self) -> float:
        """GPU-hours away."""
        return float(self.instance.gpu_hours[self.left].sum())

    @property
    def cloud_cost_usd(self) -> Decimal:
        """Dollars for them, to the cent."""
        if self.paid_usd is not None:
            return Decimal(float(self.paid_usd.sum())).quantize(CENT, ROUND_HALF_UP)
        price = self.instance.cluster.cloud_gpu_hour_usd
        return (Decimal(self.cloud_gpu_hours) * price).quantize(CENT, ROUND_HALF_UP)

    @property
    def deadline_hit_rate(self) -> float:
        """Share of the jobs with a deadline that end by it; 1 when none has one."""
        has = np.isfinite(self.instance.deadline_h)
        if not has.any():
            return 1.0
        end = self.end_h
        return float((end[has] <= self.instance.deadline_h[has] + 1e-9).mean())


def simulate(instance: Instance, rules: Rules, expect: Expect | None = None) -> Outcome:
    """Replay the jobs under one policy.

    Args:
        instance: the jobs and the cluster.
        rules: the policy.
        expect: what it knows of runtimes; default: all.
    """
    expect = expect or Expect()
    jobs = len(instance)
    start = np.full(jobs, np.nan)
    left = np.zeros(jobs, dtype=np.int64)
    expected = np.zeros(jobs)
    if rules.rule == ALWAYS:
        return Outcome(instance, rules, instance.arrival_h, ~left.astype(np.bool_), instance.run_h)
    nodes, gpus_per_node, per_node, count = _alike(instance)
    # before any job has ended nothing is learned: an hour is as good as any guess
    given = np.full(jobs, 1.0) if expect.learned else instance.run_h
    kernel.loop(
        instance.arrival_h,
        instance.run_h,
        per_node,
        count,
        instance.group,
        given,
        instance.deadline_h if rules.guard else np.full(jobs, np.inf),
        expect.boot_h,
        expect.margin,
        nodes,
        gpus_per_node,
        float(instance.cluster.cloud_gpu_hour_usd),
        rules.rule,
        float(rules.knob),
        rules.depth,
        rules.blocking,
        kernel.LEARNED if expect.learned else kernel.GIVEN,
        float(rules.others),
        OVERDUE if expect.learned else 0.0,
        float(rules.cap),
        WIDE,
        rules.budget_h or 1.0,
        float(rules.gain) if rules.budget_h else 0.0,
        start,
        left,
        expected,
    )
    return Outcome(instance, rules, start, left.astype(np.bool_), expected)


def _alike(instance: Instance) -> tuple[int, int, Ints, Ints]:
    """The cluster and the jobs as small as they can be said: nodes, GPUs of each, and the jobs'.

    Where every job takes its nodes whole it does not matter which ones, so that all of them are one
    large node: the same starts, without a walk over thousands of nodes for each job.
    """
    cluster = instance.cluster
    nodes, each = cluster.nodes, cluster.gpus_per_node
    if (instance.per_node != each).any():
        return nodes, each, instance.per_node, instance.count
    return 1, nodes * each, instance.gpus, np.ones_like(instance.count)
