"""The fence: ``ExcNodeList`` of all nodes of the job's partitions keeps a waiting job waiting.

Of all the ways to keep a pending job from starting this one keeps its age (AccrueTime), and Slurm
refuses it for a job that runs. It is no lock: two callers may both set it, and slurmctld forgets
its last seconds when it dies. So the verdict is always a fresh look, never an exit code.
"""

from hpcscale.slurm.types import JobStatus, SiteFacts
from hpcscale.units import expand_hostlist, fold_hostlist


def fence_nodes(status: JobStatus, facts: SiteFacts) -> str:
    """The job's excluded nodes and all nodes of the partitions it may start in, as a hostlist.

    Empty when no partition of the job is known: then there is nothing to fence with.
    """
    nodes: list[str] = []
    for name in status.partition.split(","):
        partition = facts.partitions.get(name)
        if partition is not None:
            nodes += expand_hostlist(partition.node_list)
    if not nodes:
        return ""
    return fold_hostlist(sorted({*nodes, *expand_hostlist(status.exc_nodes)}))


def stands(status: JobStatus, fence: str) -> bool:
    """Whether all nodes of the fence are excluded."""
    return set(expand_hostlist(fence)) <= set(expand_hostlist(status.exc_nodes))


def restored(current: str, old: str, fence: str) -> str:
    """What ``ExcNodeList`` becomes when the fence goes.

    Exactly the old value, unless somebody changed the list meanwhile: then only what the fence had
    added is taken away.
    """
    now, before, ours = (set(expand_hostlist(text)) for text in (current, old, fence))
    if now in (ours, before):
        return old
    return fold_hostlist(sorted(now - (ours - before)))


def same_nodes(one: str, other: str) -> bool:
    """Whether two hostlists name the same nodes."""
    return set(expand_hostlist(one)) == set(expand_hostlist(other))
