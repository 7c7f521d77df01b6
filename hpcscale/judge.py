"""What may be concluded of an attempt from what its site said. Absence is no evidence.

What counts: squeue lists the job with our submission id; the site's history has it; the job's own
report tells its end. Each function gives the ledger columns to change; empty when nothing is new.
"""

import datetime as dt
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from hpcscale import cancelled
from hpcscale.ledger import Attempt, Element, Ledger, utc_now
from hpcscale.ledger_rows import changed_fields, stamp
from hpcscale.reports import Report, cut_short
from hpcscale.slurm.types import Answer, JobState, JobStatus
from hpcscale.units import JobId, parse_array
from hpcscale.verify import mismatch

# An sbatch that was killed after its time-out may still lie in the controller's queue; munge
# credentials expire after 300 s (munge(7)), so past this no job can come of it any more.
NEVER_REACHED_S = 600.0
# From another machine it cannot be seen whether the submitting process still copies files.
STAGING_BOUND_S = 2 * 3600.0
SBATCH_BOUND_S = 90.0


@dataclass(slots=True)
class Heard:
    """What one site said; no ledger is touched while asking."""

    site: str
    asked_at: dt.datetime
    error: str | None = None
    current: dict[str, list[JobStatus]] = field(default_factory=dict)
    history: Answer = field(default_factory=lambda: Answer({}, complete=False))
    reports: dict[str, list[Report]] = field(default_factory=dict)
    silent: bool = False
    offset_s: float = 0.0


def judge(
    ledger: Ledger, attempt: Attempt, said: Heard, seen_at: dt.datetime | None
) -> dict[str, Any]:
    """Columns to change; empty when nothing is new."""
    current = said.current.get(attempt.submission_id, [])
    if current:
        # several records of one submission: the one with the most still to do
        status = min(current, key=lambda s: (s.state.terminal, s.state.active))
        fields = changed_fields(attempt, status)
        if attempt.job_id is None:
            fields["job_id"] = str(JobId(status.job_id.base))
        return fields
    reports = said.reports.get(attempt.submission_id, [])
    if attempt.job_id is None:
        reported = next((_job_of(r) for r in reports if _job_of(r)), None)
        if reported is None:
            return _never_reached(ledger, attempt)
        attempt = ledger.set_submitted(attempt, reported)
    past = _history_of(attempt, said.history)
    if past is not None and (past.state.terminal or past.state is JobState.PREEMPTED):
        return {**changed_fields(attempt, past), "ended": 1, **_end_of(past)}
    if (ended := by_report(attempt, reports)) is not None:
        return changed_fields(attempt, ended)
    if attempt.last_state is JobState.PREEMPTED:  # cancelled by preemption, and forgotten since
        return {"ended": 1, "end_time": stamp(utc_now())}
    if said.silent:
        return {}
    if wish := cancelled.over(attempt, cancelled.wishes(ledger, attempt), reports):
        return changed_fields(attempt, _cancelled(attempt, wish))
    if attempt.state is JobState.UNKNOWN:
        return {}
    return {
        "state": JobState.UNKNOWN.value,
        "reason": "Slurm does not list it any more",
        "seen_at": stamp(max(filter(None, (attempt.seen_at, seen_at)), default=None)),
    }


def _cancelled(attempt: Attempt, wish: cancelled.Wish) -> JobStatus:
    """As Slurm shows what was cancelled while it waited: it began when it ended."""
    assert attempt.job_id is not None
    return JobStatus(
        job_id=attempt.job_id,
        state=JobState.CANCELLED,
        raw_state=JobState.CANCELLED.value,
        reason=wish.reason,
        restarts=attempt.restarts,
        start_time=wish.at,
        end_time=wish.at,
        source="ledger",
        observed_at=utc_now(),
    )


def _end_of(status: JobStatus) -> dict[str, Any]:
    return {"end_time": stamp(status.end_time or status.observed_at or utc_now())}


def _job_of(report: Report) -> JobId | None:
    try:
        return JobId(JobId.parse(report.job).base)
    except ValueError:
        return None


def _history_of(attempt: Attempt, history: Answer) -> JobStatus | None:
    """The attempt in the site's history, when it is surely that job."""
    if attempt.job_id is None:
        return None
    status = history.jobs.get(str(attempt.job_id))
    return status if status is not None and _is_past_of(attempt, status) else None


def _is_past_of(attempt: Attempt, status: JobStatus) -> bool:
    if status.comment:
        return mismatch(attempt, status) is None
    # slurmdbd keeps comments only where AccountingStoreFlags says so: by user and submit time then
    if attempt.job_user and status.user and status.user != attempt.job_user:
        return False
    if status.submit_time is None:
        return False
    if attempt.submit_time is not None:
        return status.submit_time == attempt.submit_time or (
            status.restarts > 0 and status.submit_time > attempt.submit_time
        )
    return abs((status.submit_time - attempt.created_at).total_seconds()) < STAGING_BOUND_S


def by_report(attempt: Attempt, reports: Sequence[Report]) -> JobStatus | None:
    """The end that the job itself reported; None when it told none, or was to run again."""
    newest = reports[-1] if reports else None
    if newest is None or not newest.final or newest.exit_code is None or not attempt.job_id:
        return None
    if cut_short(newest, reports):
        return None
    return JobStatus(
        job_id=attempt.job_id,
        state=JobState.COMPLETED if newest.exit_code == 0 else JobState.FAILED,
        raw_state="",
        reason="" if newest.exit_code == 0 else "NonZeroExitCode",
        nodes=newest.nodes or attempt.nodes,
        restarts=newest.restart,
        start_time=_held_since(newest, reports) or attempt.start_time,
        end_time=newest.at,
        exit_code=(newest.exit_code, 0),
        source="report",
        observed_at=utc_now(),
    )


def _held_since(end: Report, reports: Sequence[Report]) -> dt.datetime | None:
    """When the start that ended so told first of itself: what waits at a gate is paid for, too.

    By the clock that told the end, and so not by Slurm's.
    """
    told = (r for r in reports if (r.task, r.restart) == (end.task, end.restart) and not r.ended)
    return min((r.at for r in told if r.at), default=None)


def _never_reached(ledger: Ledger, attempt: Attempt) -> dict[str, Any]:
    """Sbatch gave no answer, or was never called: what may be said of it by now."""
    age_s = (utc_now() - attempt.created_at).total_seconds()
    if attempt.state is JobState.SUBMITTING:
        alive = _still_submitting(ledger, attempt)
        if alive or (alive is None and age_s < STAGING_BOUND_S):
            return {}
    if age_s < NEVER_REACHED_S:
        if attempt.state is JobState.SUBMITTING and age_s > SBATCH_BOUND_S:
            return {
                "state": JobState.SUBMIT_UNKNOWN.value,
                "last_state": JobState.SUBMIT_UNKNOWN.value,
                "reason": "the submitting process ended before sbatch answered",
            }
        return {}
    return {
        "state": JobState.REFUSED.value,
        "last_state": JobState.REFUSED.value,
        "reason": "never reached Slurm",
        "end_time": stamp(utc_now()),
        "ended": 1,
    }


def _still_submitting(ledger: Ledger, attempt: Attempt) -> bool | None:
    """Whether the process that wrote the row lives; None when it ran on another machine."""
    for event in ledger.events(attempt.run_id, "attempt.submitting"):
        if event.submission_id == attempt.submission_id:
            if event.data.get("host") != os.uname().nodename:
                return None
            return Path(f"/proc/{event.data.get('pid')}").exists()
    return False


# --- arrays


def judge_array(
    ledger: Ledger,
    attempt: Attempt,
    indices: Sequence[int],
    said: Heard,
    seen_at: dt.datetime | None,
) -> dict[str, Any]:
    """As ``judge``, for an array; its elements are recorded here."""
    current = said.current.get(attempt.submission_id, [])
    reports = said.reports.get(attempt.submission_id, [])
    if not current and attempt.job_id is None and not reports:
        return _never_reached(ledger, attempt)
    known = ledger.elements(attempt)
    elements = dict(known)
    for past in said.history.jobs.values():
        task = past.job_id.array_task
        if (
            attempt.job_id is not None
            and past.job_id.base == attempt.job_id.base
            and task is not None
            and past.state.terminal
            and _is_past_of(attempt, past)
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
            start_time=_held_since(report, reports) or seen,
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
    ledger.record_elements(attempt, changed)
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
        base = current[0].job_id if current else next(filter(None, map(_job_of, reports)), None)
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
