"""What may be concluded of an array, element by element. As ``judge``: absence is no evidence."""

import datetime as dt
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from hpcscale import cancelled
from hpcscale.judge import Heard, held_since, is_past_of, job_of, never_reached
from hpcscale.ledger import Attempt, Element, Ledger
from hpcscale.ledger_rows import changed_fields, stamp
from hpcscale.reports import Report, cut_short
from hpcscale.slurm.types import JobState, JobStatus
from hpcscale.units import JobId, parse_array


def judge_array(
    ledger: Ledger,
    attempt: Attempt,
    indices: Sequence[int],
    said: Heard,
    seen_at: dt.datetime | None,
    *,
    known: Mapping[int, Element],
) -> dict[str, Any]:
    """As ``judge``, for an array; its elements are recorded here.

    ``known``: its rows as they were before its site was asked.
    """
    current = said.current.get(attempt.submission_id, [])
    reports = said.reports.get(attempt.submission_id, [])
    if not current and attempt.job_id is None:
        reported = next(filter(None, map(job_of, reports)), None)
        if reported is None:
            return never_reached(ledger, attempt)
        # sbatch gave no answer, its elements began, and the controller has forgotten them
        attempt = ledger.set_submitted(attempt, reported)
    elements = dict(known)
    for past in said.history.jobs.values():
        task = past.job_id.array_task
        if (
            attempt.job_id is not None
            and past.job_id.base == attempt.job_id.base
            and task is not None
            and past.state.terminal
            and is_past_of(attempt, past)
            and not (task in known and known[task].moved)
        ):
            elements[task] = element_of(task, past)
    for report in reports:  # in order: the last of each element stands
        task = report.task
        if task is None or not report.final or report.exit_code is None:
            continue
        if cut_short(report, reports):
            continue
        if task in elements and elements[task].state.terminal:
            continue
        good = report.exit_code == 0
        before = elements.get(task)
        seen = before.start_time if before is not None and _ran(before) else None
        elements[task] = Element(
            task=task,
            state=JobState.COMPLETED if good else JobState.FAILED,
            nodes=report.nodes,
            start_time=held_since(report, reports) or seen,
            end_time=report.at,
            restarts=report.restart,
            exit_code=report.exit_code,
            exit_signal=0,
        )
    listed: set[int] = set()
    for status in current:
        tasks = pending_tasks(status)
        if not tasks and status.job_id.array_task is not None:
            tasks = [status.job_id.array_task]
        for task in tasks:
            listed.add(task)
            if not _stays(known.get(task), status):
                elements[task] = element_of(task, status)
    if not said.silent:
        for task, element in elements.items():
            if task not in listed and not element.state.terminal:
                elements[task] = msgspec.structs.replace(element, state=JobState.UNKNOWN)
        unlisted = {
            i: e
            for i in indices
            if i not in listed and not ((e := elements.get(i)) and e.state.terminal)
        }
        elements |= _cancelled_elements(ledger, attempt, unlisted, reports)
    changed = [e for task, e in elements.items() if known.get(task) != e]
    ledger.record_elements(attempt, changed, known)
    whole = _whole_array(attempt, indices, elements, current)
    if whole is None:
        return {}
    fields = changed_fields(attempt, whole)
    if whole.state is JobState.UNKNOWN:
        if attempt.state is JobState.UNKNOWN:
            return {}
        return {
            "state": JobState.UNKNOWN.value,
            "reason": "Slurm does not list it any more",
            "seen_at": stamp(max(filter(None, (attempt.seen_at, seen_at)), default=None)),
        }
    if attempt.job_id is None:
        base = current[0].job_id if current else next(filter(None, map(job_of, reports)), None)
        if base is not None:
            fields["job_id"] = str(JobId(base.base))
    return fields


def _cancelled_elements(
    ledger: Ledger,
    attempt: Attempt,
    unlisted: Mapping[int, Element | None],
    reports: Sequence[Report],
) -> dict[int, Element]:
    """Of elements that are not listed those that waited when Slurm took their cancel."""
    if not unlisted or not (wanted := cancelled.wishes(ledger, attempt)):
        return {}
    found: dict[int, Element] = {}
    for task, known in unlisted.items():
        if wish := cancelled.over_element(task, known, wanted, reports):
            found[task] = Element(
                task=task,
                state=JobState.CANCELLED,
                raw_state=JobState.CANCELLED.value,
                reason=wish.reason,
                end_time=wish.at,
            )
    return found


def _ran(element: Element) -> bool:
    """Whether its start is one that was seen; of what waits Slurm tells a guess."""
    return element.state.active or (
        element.state is JobState.UNKNOWN and element.raw_state != JobState.PENDING.value
    )


def _stays(before: Element | None, status: JobStatus) -> bool:
    """Whether what is known of an element counts more than what Slurm says now."""
    if before is None:
        return False
    if before.moved:
        return status.state is before.state
    # it had ended by its own word, came back ("launch failed requeued held"), and was ended again
    return before.state.terminal and status.state is JobState.CANCELLED and status.restarts > 0


def pending_tasks(status: JobStatus) -> list[int]:
    """Elements that a record of the pending rest of an array stands for."""
    if not status.array_pending:
        return []
    try:
        return parse_array(status.array_pending)[0]
    except ValueError:
        return []


def element_of(task: int, status: JobStatus) -> Element:
    """One element as its own record shows it."""
    code, signal = status.exit_code or (None, None)
    return Element(
        task=task,
        state=status.state,
        raw_state=status.raw_state,
        reason=status.reason,
        nodes=status.nodes,
        start_time=status.start_time,
        end_time=status.end_time if status.state.terminal else None,
        restarts=status.restarts,
        exit_code=code,
        exit_signal=signal,
    )


# an array's state is that of the element that matters most
_BAD_FIRST = (
    JobState.FAILED,
    JobState.OUT_OF_MEMORY,
    JobState.TIMEOUT,
    JobState.NODE_FAIL,
    JobState.BOOT_FAIL,
    JobState.DEADLINE,
    JobState.CANCELLED,
    JobState.REVOKED,
    JobState.COMPLETED,
)
_BUSY_FIRST = (
    JobState.RUNNING,
    JobState.COMPLETING,
    JobState.CONFIGURING,
    JobState.SUSPENDED,
    JobState.REQUEUED,
    JobState.PREEMPTED,
    JobState.PENDING,
)


def _whole_array(
    attempt: Attempt,
    indices: Sequence[int],
    elements: Mapping[int, Element],
    current: Sequence[JobStatus],
) -> JobStatus | None:
    """One status for the whole array; None when nothing is known of it."""
    if not elements:
        return None
    mine = [elements[i] for i in indices if i in elements]
    # what moved alone has an end of its own, which is told of its own run
    states = {e.state for e in mine if not e.moved} or {e.state for e in mine}
    over = len(mine) == len(indices) and all(e.state.terminal for e in mine)
    order = _BAD_FIRST if over else _BUSY_FIRST
    state = next((s for s in order if s in states), JobState.UNKNOWN)
    starts = [e.start_time for e in mine if e.start_time]
    ends = [e.end_time for e in mine if e.end_time]
    codes = [(e.exit_code, e.exit_signal or 0) for e in mine if e.exit_code is not None]
    worst = next((c for c in codes if c != (0, 0)), codes[0] if codes else None)
    some = next((s for s in current if s.state is state), current[0] if current else None)
    base = some or JobStatus(job_id=attempt.job_id or JobId(1), state=state, raw_state="")
    return msgspec.structs.replace(
        base,
        state=state,
        start_time=min(starts) if starts else None,
        end_time=max(ends) if over and ends else None,
        exit_code=worst if over else None,
        nodes="",
        restarts=0,
        array_pending="",
        submit_time=attempt.submit_time or base.submit_time,
    )
