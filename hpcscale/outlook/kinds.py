"""A site's nodes as resources of a plan: classes of nodes that are alike, and what jobs need there.

A class has three resources: CPUs, GPUs, and nodes that nobody has alone. A job holds sums of them;
on which node its GPUs are free is not seen, so a plan may be early where nodes are broken up.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from hpcscale.forecast.problem import Demand, ProblemBuilder
from hpcscale.outlook.snapshot import Snapshot
from hpcscale.slurm.whole import NodeFacts, QueuedJob, node_names


@dataclass
class NodeKind:
    """Nodes of one kind (same partitions, CPUs and GPUs), and their resources in a plan."""

    partitions: frozenset[str]
    cpus_per_node: int
    gpus_per_node: int
    names: list[str] = field(default_factory=list)
    cpus: int = -1
    gpus: int = -1
    open: int = -1

    def enter(self, made: ProblemBuilder, cpus: int | None = None) -> None:
        """Make its resources in a plan; fewer CPUs where not all of them are meant."""
        most = len(self.names) * self.cpus_per_node
        self.cpus = made.resource(most if cpus is None else min(cpus, most))
        self.gpus = made.resource(len(self.names) * self.gpus_per_node)
        self.open = made.resource(len(self.names))

    def demands(self, job: QueuedJob, nodes: int, of: int) -> list[Demand] | None:
        """What so many of a job's nodes hold here; None when this class has not so much."""
        share = nodes / of
        cpus = max(nodes, round(job.cpus * share))
        gpus = round(job.gpus * share)
        if job.exclusive:
            cpus = nodes * self.cpus_per_node
        if nodes > len(self.names) or cpus > nodes * self.cpus_per_node:
            return None
        if gpus > nodes * self.gpus_per_node:
            return None
        return [
            (self.cpus, cpus),
            (self.gpus, gpus),
            (self.open, nodes, nodes if job.exclusive or cpus >= nodes * self.cpus_per_node else 0),
        ]

    def hold_running(
        self, made: ProblemBuilder, job: QueuedJob, share: float, count: int,
        spans: Sequence[tuple[int, int]],
    ) -> None:  # fmt: skip
        """Take what a running job has on ``count`` of these nodes, ``share`` of its own."""
        cpus = count * self.cpus_per_node if job.exclusive else round(job.cpus * share)
        # a shared job that has all of its nodes' CPUs has them alone, too
        alone = job.exclusive or cpus >= count * self.cpus_per_node
        for begin, until in spans:
            made.hold(self.cpus, cpus, until, begin)
            made.hold(self.gpus, round(job.gpus * share), until, begin)
            made.hold(self.open, count if alone else 0, until, begin)


def node_kinds(snapshot: Snapshot) -> list[NodeKind]:
    """The classes of all nodes on which jobs can start, now or when a reservation lets them."""
    kept = {name for kept in snapshot.reservations for name in node_names(kept.nodes)}
    usable = [
        node for node in snapshot.nodes if node.usable or (node.maintenance and node.name in kept)
    ]
    # the class in the fewest partitions first: it is of the least use to others
    return sorted(_alike(usable), key=lambda kind: (len(kind.partitions), kind.gpus_per_node))


def _alike(nodes: Sequence[NodeFacts]) -> list[NodeKind]:
    found: dict[tuple[frozenset[str], int, int], NodeKind] = {}
    for node in nodes:
        key = (frozenset(node.partitions), node.cpus, node.gpus)
        found.setdefault(key, NodeKind(*key)).names.append(node.name)
    return list(found.values())


def choices(job: QueuedJob, kinds: Sequence[NodeKind]) -> list[list[Demand]]:
    """Each class that holds the whole job; else, for each partition, its classes together."""
    found: list[list[Demand]] = []
    for partition in job.partitions:
        able = [kind for kind in kinds if partition in kind.partitions]
        whole = [kind.demands(job, job.num_nodes, job.num_nodes) for kind in able]
        fitting = [demands for demands in whole if demands is not None]
        if fitting:
            found += fitting
            continue
        left, spread = job.num_nodes, []
        for kind in able:
            take = min(left, len(kind.names))
            demands = kind.demands(job, take, job.num_nodes) if take else None
            if demands is not None:
                spread += demands
                left -= take
        if not left:
            found.append(spread)
    return found


def job_number(job_id: str) -> int:
    """The number in front of an id: ``12`` of ``12_3`` and of ``12+1``."""
    return int(re.split(r"\D", job_id)[0])
