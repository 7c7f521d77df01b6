"""What the model of a site is made of, what it shows a decider, and what it tells in the end."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

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
        cpus: of each; 0: as many as units.
    """

    name: str
    nodes: int
    units: int
    cpus: int = 0


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
        bf_late_s: a pass comes up to so many seconds later than that, at random, since it lasts.
        bf_resolution_s, bf_window_s, bf_max_job_test: of slurm.conf(5).
        bf_first_window_s: ends of running jobs are taken together in windows, the first one so
            wide and each next one twice as wide (slurm.conf(5) ``bf_window_linear``), as
            ``site_slurm_kernel`` does it; 0: an exact plan, as ``site_kernel`` makes it.
        bf_whole_nodes: an exact plan keeps nodes for a job that waits, and not only the GPUs that
            it wants of them, as Slurm does.
        after_s: from a job's end until its nodes can be taken again.
        failures_per_node_h: of nodes on the floor; what runs there is requeued.
        repair_s: until such a node is back.
        requeue_s: until a requeued job may start again.
    """

    classes: tuple[NodeClass, ...]
    cloud: CloudSide
    bf_interval_s: int = 30
    bf_late_s: int = 0
    bf_resolution_s: int = 60
    bf_window_s: int = 86400
    bf_max_job_test: int = 500
    bf_first_window_s: int = 30
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
        cpus: on each of its nodes; None: as many as units. They say which node is fullest, and
            are not short.
    """

    submit_s: Ints
    run_s: Ints
    limit_s: Ints
    need: Ints
    count: Ints
    mask: Ints
    part: Ints
    cpus: Ints | None = None

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
