"""The fence: ``ExcNodeList`` of all nodes of the job's partitions keeps a waiting job waiting.

Of all the ways to keep a pending job from starting this one keeps its age (AccrueTime), and Slurm
refuses it for a job that runs. It is no lock: two callers may both set it, and slurmctld forgets
its last seconds when it dies. So the verdict is always a fresh look, never an exit code.

What is excluded is the union of three lists that the ledger keeps apart: the user's own, nodes that
are blamed for an earlier failure, and the fence. A fenced job shows ``BadConstraints``, so its
``Comment`` says why, and how to undo it.
"""

import re
from dataclasses import dataclass

from hpcscale.slurm.types import JobStatus, SiteFacts
from hpcscale.units import expand_hostlist, fold_hostlist
from hpcscale.verify import submission_of

_NOTE = re.compile(r"; fenced, as it moves to (\S+): to undo, hpcscale burst undo (\S+)")


@dataclass(frozen=True, slots=True)
class Lists:
    """The three parts of a fenced job's ``ExcNodeList``, each a hostlist.

    Attributes:
        user: what its user excluded.
        blamed: nodes that an earlier failure is put down to (``hpcscale.blame``).
        fence: all nodes of its partitions.
    """

    user: str = ""
    blamed: str = ""
    fence: str = ""

    @property
    def fenced(self) -> str:
        """The list while the fence stands."""
        return union(self.user, self.blamed, self.fence)

    @property
    def lifted(self) -> str:
        """The list without the fence; the user's own text where nothing is blamed."""
        return union(self.user, self.blamed) if self.blamed else self.user

    def users_own(self, current: str) -> str:
        """The user's part of what Slurm has now: they may have changed it since the fence.

        A list in which the fence does not stand is a list that somebody wrote: all of it is the
        user's, but for one that the controller had before and has come back to. What stands
        there besides the fence was added.
        """
        now = set(expand_hostlist(current))
        if any(now == set(expand_hostlist(known)) for known in (self.fenced, self.lifted)):
            return self.user
        if set(expand_hostlist(self.fence)) <= now:
            added = now - set(expand_hostlist(self.fenced))
            return union(self.user, fold_hostlist(sorted(added))) if added else self.user
        return fold_hostlist(sorted(now))


def fence_nodes(status: JobStatus, facts: SiteFacts) -> str:
    """All nodes of the partitions that the job may start in, as a hostlist.

    Empty when no partition of the job is known: then there is nothing to fence with.
    """
    nodes: list[str] = []
    for name in status.partition.split(","):
        partition = facts.partitions.get(name)
        if partition is not None:
            nodes += expand_hostlist(partition.node_list)
    return fold_hostlist(sorted(set(nodes)))


def stands(status: JobStatus, fence: str) -> bool:
    """Whether all nodes of the fence are excluded."""
    return set(expand_hostlist(fence)) <= set(expand_hostlist(status.exc_nodes))


def union(*lists: str) -> str:
    """One hostlist of all nodes of these."""
    return fold_hostlist(sorted({node for text in lists for node in expand_hostlist(text)}))


def with_note(comment: str, to_site: str, job: str) -> str:
    """The job's comment with a word on its fence behind our submission id.

    Args:
        comment: as it is; an earlier note in it is replaced.
        to_site: where the job goes.
        job: what ``hpcscale burst undo`` is to be given.
    """
    bare = without_note(comment)
    submission_id = submission_of(bare)
    if submission_id is None:
        return bare
    note = f"; fenced, as it moves to {to_site}: to undo, hpcscale burst undo {job}"
    head, key, rest = bare.rpartition(submission_id)
    return f"{head}{key}{note}{rest}"


def without_note(comment: str) -> str:
    """The comment as it was before the fence, with what its user changed since."""
    return _NOTE.sub("", comment)


def noted(comment: str) -> tuple[str, str] | None:
    """Target site and JOB of the note in a comment; None: the job is not fenced."""
    match = _NOTE.search(comment)
    return (match[1], match[2]) if match else None
