"""Which nodes a failure is put down to: those that Slurm shows down where a start was lost.

A start is lost when its job ends ``NODE_FAIL``, or waits again with a higher restart count. Slurm
names all nodes of such a job, never the one that failed, and a requeue may have other causes
(``scontrol requeue``, preemption, the script's own). So a node is blamed only while the controller
says that it is down, and where it was the only one. What is up again before anybody looks is not
known to have failed.
"""

from hpcscale.connect import Connection
from hpcscale.errors import HpcscaleError
from hpcscale.ledger import Attempt, Ledger
from hpcscale.slurm.types import JobState
from hpcscale.units import expand_hostlist, fold_hostlist

BLAMED = "nodes.blamed"  # the event: site and nodes, a hostlist


def lost_on(attempt: Attempt, state: JobState, restarts: int, nodes: str = "") -> str:
    """Nodes of a start that is newly seen to be lost, as a hostlist; empty when none is.

    Args:
        attempt: as the ledger has it, before what was seen now is written.
        state: as seen now.
        restarts: as seen now.
        nodes: as seen now; a job that waits again has none.
    """
    if state is JobState.NODE_FAIL and attempt.last_state is not JobState.NODE_FAIL:
        return nodes or attempt.nodes
    again = restarts > attempt.restarts and attempt.last_state.active
    return attempt.nodes if again else ""


def blame(
    ledger: Ledger, connection: Connection, attempt: Attempt, state: JobState, on: str
) -> None:
    """Write down which of the nodes ``on`` failed under an attempt; nothing where none is known.

    Called before the attempt's new state is written, so that a process killed in between blames
    twice and not never. A site that does not say how its nodes are blames none.
    """
    try:
        nodes = expand_hostlist(on)
        states = connection.client.node_states(on)
    except ValueError:  # a list that Slurm cut
        return
    except HpcscaleError:
        states = {}
    # FAIL and FAILING too; a node that is powered down says POWERED_DOWN behind another word
    failed = [node for node in nodes if states.get(node, "").startswith(("DOWN", "FAIL"))]
    if not failed and state is JobState.NODE_FAIL and len(nodes) == 1:
        failed = nodes
    if failed:
        ledger.event(
            attempt.run_id,
            BLAMED,
            {"site": attempt.site, "nodes": fold_hostlist(sorted(failed))},
            submission_id=attempt.submission_id,
        )
