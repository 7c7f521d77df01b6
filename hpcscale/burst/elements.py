"""One element of an array that moves alone, while others of it run or have ended.

On-prem it stays element ``123_4`` of its array: fence, note and cancel go to that id (Slurm makes
a job record of its own of it then), and the claim is the element's log. In the cloud it is an array
of that one element, ``--array=4``, so its command sees the same index. It gets a run of its own,
whose id follows from run and element: every ledger that moves the element finds the same one.
"""

import base64
import hashlib
from collections.abc import Sequence

import msgspec

from hpcscale.burst.moves import Move, Moves
from hpcscale.errors import StateError
from hpcscale.judge_arrays import pending_tasks
from hpcscale.ledger import Attempt, Ledger, Run
from hpcscale.slurm.types import JobState, JobStatus
from hpcscale.units import JobId, parse_array

EVENT = "run.element"


def element_run_id(run_id: str, task: int) -> str:
    """The run of one element: shaped as any run's id, and the same for every ledger."""
    digest = hashlib.sha256(f"{run_id}.task{task}".encode()).digest()
    return "r" + base64.b32encode(digest).decode("ascii").lower()[:10]


def waiting(records: Sequence[JobStatus]) -> dict[int, JobStatus]:
    """Elements that wait, by index, each as a record of its own."""
    found: dict[int, JobStatus] = {}
    for status in records:
        if status.state is not JobState.PENDING:
            continue
        alone = [] if status.job_id.array_task is None else [status.job_id.array_task]
        for task in pending_tasks(status) or alone:
            element_id = JobId(status.job_id.base, task)
            found[task] = msgspec.structs.replace(status, job_id=element_id, array_pending="")
    return dict(sorted(found.items()))


def limited(array: str) -> str:
    """Why no element of this array may run apart from the others; empty: it may."""
    tasks, most = parse_array(array)
    if most is None or most >= len(tasks):
        return ""
    return (
        f"its array runs at most {most} at a time (%{most}), which nobody can keep across two "
        "sites: an array with a limit moves whole, before any of it starts"
    )


def make_run(ledger: Ledger, run: Run, task: int) -> Run:
    """The element's run; made at its first move."""
    run_id = element_run_id(run.run_id, task)
    if known := ledger.runs([run_id]):
        return known[0]
    ledger.event(run.run_id, EVENT, {"task": task, "run": run_id})
    spec = msgspec.structs.replace(run.spec, array=str(task))
    try:
        return ledger.new_run(spec, site=run.site, cwd=run.cwd, user=run.user, run_id=run_id)
    except StateError:
        return ledger.run(run_id)  # another process on this ledger was there first


def runs_of(ledger: Ledger, run_id: str) -> dict[int, str]:
    """Element -> its own run, for elements of a run that ever moved alone."""
    return {
        int(event.data["task"]): str(event.data["run"]) for event in ledger.events(run_id, EVENT)
    }


def moves_with_elements(ledger: Ledger, run_id: str) -> list[Move]:
    """A run's moves and those of its elements."""
    moves = Moves(ledger)
    return [m for each in (run_id, *runs_of(ledger, run_id).values()) for m in moves.of_run(each)]


def attempts_with_elements(ledger: Ledger, run_id: str) -> list[Attempt]:
    """A run's attempts and those of its elements that moved alone."""
    runs = (run_id, *runs_of(ledger, run_id).values())
    return [attempt for each in runs for attempt in ledger.attempts(each)]
