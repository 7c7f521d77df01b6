"""An array that moves whole: its records at a site seen as one job, and its elements' ends."""

from collections.abc import Sequence

import msgspec

from hpcscale.burst.elements import runs_of
from hpcscale.connect import Connection
from hpcscale.judge_arrays import pending_tasks
from hpcscale.ledger import Attempt, Element, Ledger, Role
from hpcscale.slurm.types import JobState, JobStatus
from hpcscale.units import JobId, expand_hostlist, fold_hostlist, parse_array
from hpcscale.verify import mismatch


def records_of(connection: Connection, attempt: Attempt) -> list[JobStatus]:
    """All that Slurm still has of an array: its pending rest and each element with a record."""
    if attempt.job_id is None:
        return []
    answer = connection.client.jobs([attempt.job_id])
    return [s for s in answer.of(attempt.job_id) if mismatch(attempt, s) is None]


def show_array(
    connection: Connection, attempt: Attempt, *, wholly: bool | None = None
) -> JobStatus | None:
    """An array as one job, under its base id.

    On-prem it is PENDING only while none of its elements has begun, and fenced only where each
    record that waits is. In the cloud it is what its most advanced live element is.

    Args:
        connection: to its site.
        attempt: the array.
        wholly: see ``as_one``; default: on-prem.
    """
    if wholly is None:
        wholly = attempt.role is Role.ONPREM
    assert attempt.job_id is not None
    records = records_of(connection, attempt)
    if not records:
        return connection.client.show(attempt.job_id)  # which makes sure that there is none
    status = as_one(records, wholly=wholly)
    waiting = [record for record in records if record.state is JobState.PENDING]
    if waiting and attempt.role is Role.ONPREM:
        lists = []
        for record in waiting:
            shown = connection.client.show(record.job_id)
            lists.append(set(expand_hostlist(shown.exc_nodes)) if shown else set())
        common = fold_hostlist(sorted(set.intersection(*lists)))
        status = msgspec.structs.replace(status, exc_nodes=common)
    return msgspec.structs.replace(status, job_id=attempt.job_id)


def as_one(records: Sequence[JobStatus], *, wholly: bool) -> JobStatus:
    """The record that stands for the array.

    Args:
        records: of one array, at least one.
        wholly: an element that has ended by itself counts more than those that still wait.
    """
    active = [s for s in records if s.state.active]
    waiting = [s for s in records if not s.state.active and not s.state.terminal]
    ended = [s for s in records if s.state.terminal]
    begun = [s for s in ended if s.state is not JobState.CANCELLED]
    again = [s for s in waiting if s.restarts]
    if wholly:
        return (active or begun or again or waiting or ended)[0]
    return (active or waiting or begun or ended)[0]


def wholly_pending(records: Sequence[JobStatus], indices: Sequence[int]) -> str:
    """Empty when every element waits for its first start; else why not."""
    waiting: set[int] = set()
    for status in records:
        if status.state is not JobState.PENDING or status.restarts:
            return "some of its elements have begun: an array moves whole, before any of it starts"
        tasks = pending_tasks(status)
        waiting.update(tasks or [status.job_id.array_task or 0])
    if waiting != set(indices):
        return "some of its elements are gone: an array moves whole"
    return ""


def cancelled_elements(
    connection: Connection, attempt: Attempt, indices: Sequence[int]
) -> list[int]:
    """Elements that their user has cancelled while the rest waits.

    One that runs does not wait either: it has started in vain, finds the claim and comes back.
    """
    records = records_of(connection, attempt)
    waiting: set[int] = set()
    states: dict[int, JobState] = {}
    for status in records:
        if status.state is JobState.PENDING:
            waiting.update(pending_tasks(status) or [status.job_id.array_task or 0])
        elif status.job_id.array_task is not None:
            states[status.job_id.array_task] = status.state
    if not waiting:
        return []
    ended = JobState.CANCELLED  # Slurm forgets what it has cancelled after MinJobAge
    return [k for k in indices if k not in waiting and states.get(k, ended) is ended]


def element_id(attempt: Attempt, task: int) -> JobId:
    """The id of one element."""
    assert attempt.job_id is not None
    return JobId(attempt.job_id.base, task)


def exit_codes(ledger: Ledger, target: Attempt, array: str | None) -> dict[str, int]:
    """What a stand-in ends with: the suffix of its claim's log -> exit code.

    A job that ended without one (out of time, cancelled, its node failed) gives 1, or 128 and the
    signal.
    """
    if array is None:
        return {"": _code(target.state, target.exit_code, target.exit_signal)}
    known: dict[int, Element | Attempt] = dict(ledger.elements(target))
    lost = Element(task=0, state=JobState.UNKNOWN)
    for task, run_id in runs_of(ledger, target.run_id).items():
        if (e := known.get(task)) and isinstance(e, Element) and e.moved:  # it moved once more
            known[task] = ledger.attempts(run_id)[-1]
    return {
        f".task{task}": _code(e.state, e.exit_code, e.exit_signal)
        for task in parse_array(array)[0]
        for e in (known.get(task, lost),)
    }


def _code(state: JobState, code: int | None, signal: int | None) -> int:
    if state is JobState.COMPLETED:
        return 0
    if code:
        return min(code, 255)
    return 128 + signal if signal else 1
