"""What may be concluded of an attempt from what its site said. Absence is no evidence.

Of a job here, of an array in ``judge_arrays``.

What counts: squeue lists the job with our submission id; the site's history has it; the job's own
report tells its end. Each function gives the ledger columns to change; empty when nothing is new.
"""

import datetime as dt
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hpcscale import cancelled
from hpcscale.ledger import Attempt, Ledger, utc_now
from hpcscale.ledger_rows import changed_fields, stamp
from hpcscale.reports import Report, cut_short
from hpcscale.slurm.types import Answer, JobState, JobStatus
from hpcscale.units import JobId
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
        reported = next((job_of(r) for r in reports if job_of(r)), None)
        if reported is None:
            return never_reached(ledger, attempt)
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


def job_of(report: Report) -> JobId | None:
    """The job that a report says it is of; None: that is no job id."""
    try:
        return JobId(JobId.parse(report.job).base)
    except ValueError:
        return None


def _history_of(attempt: Attempt, history: Answer) -> JobStatus | None:
    """The attempt in the site's history, when it is surely that job."""
    if attempt.job_id is None:
        return None
    status = history.jobs.get(str(attempt.job_id))
    return status if status is not None and is_past_of(attempt, status) else None


def is_past_of(attempt: Attempt, status: JobStatus) -> bool:
    """Whether a record of the site's history is surely that of an attempt."""
    if status.comment:
        return mismatch(attempt, status) is None
    # slurmdbd keeps comments only where AccountingStoreFlags says so: by user and submit time then,
    # as it was seen; one that is only near may be of a job that got the id after a crash
    if attempt.job_user and status.user and status.user != attempt.job_user:
        return False
    if status.submit_time is None or attempt.submit_time is None:
        return False
    return status.submit_time == attempt.submit_time or (
        status.restarts > 0 and status.submit_time > attempt.submit_time
    )


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
        start_time=held_since(newest, reports) or attempt.start_time,
        end_time=newest.at,
        exit_code=(newest.exit_code, 0),
        source="report",
        observed_at=utc_now(),
    )


def held_since(end: Report, reports: Sequence[Report]) -> dt.datetime | None:
    """When the start that ended so told first of itself: what waits at a gate is paid for, too.

    By the clock that told the end, and so not by Slurm's.
    """
    told = (r for r in reports if (r.task, r.restart) == (end.task, end.restart) and not r.ended)
    return min((r.at for r in told if r.at), default=None)


def never_reached(ledger: Ledger, attempt: Attempt) -> dict[str, Any]:
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
