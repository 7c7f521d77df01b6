"""A cloud job that its controller holds because it forgot a start: ``launch failed requeued held``.

slurmctld that dies within some five seconds of a start has forgotten it, starts the job again,
meets what is left of it on its node ("Duplicate jobid"), ends that, and holds the job for ever.
What has told its own end is over and must not begin again. What has told no start of its command
may begin, as another restart, also where it was ended from outside at its gate: Slurm ends what is
left of a job when it takes back its nodes (slurm.conf(5), KillWait). What has begun, and was ended
on its nodes in the midst of its work, begins again as after a node's failure, where its user and
its site let Slurm requeue it; where they do not, it has failed.
"""

import re

import msgspec

from hpcscale.burst.acts import age_s
from hpcscale.burst.arrays import records_of
from hpcscale.burst.sight import end, reports_of
from hpcscale.connect import Connection
from hpcscale.judge import by_report
from hpcscale.judge_arrays import element_of
from hpcscale.ledger import Attempt, Ledger, utc_now
from hpcscale.reports import Report
from hpcscale.slurm.types import JobState, JobStatus

REASON = "launch failed requeued held"
# a start that was under way tells of itself by then, or was ended (KillWait is 30 s)
RELEASE_AFTER_S = 45.0
EVENT = "attempt.held"


def settle(ledger: Ledger, connection: Connection, target: Attempt) -> Attempt:
    """End what is over, release what has not begun.

    Returns:
        The attempt as it is now known.

    Raises:
        UnreachableError: no answer from its site.
    """
    if target.ended or target.job_id is None:
        return target
    waiting = [s for s in records_of(connection, target) if _held(s) or _again(s, target)]
    if not waiting:
        return target
    reports = reports_of(connection, target)
    for status in waiting:
        task = status.job_id.array_task
        if task is None and target.array_size is not None:
            continue  # the rest of an array, which has not been started
        part = target if task is None else target.element(task)
        told = [r for r in reports if task is None or r.task == task]
        if (ended := by_report(part, told)) is not None:
            _over(ledger, target, task, ended)
            end(connection, part)
        elif _held(status) and _long_enough(ledger, part, told):
            if any(r.begun for r in told) and not may_restart(connection, target):
                _over(ledger, target, task, _failed(status, told))
                end(connection, part)
            else:
                _release(ledger, connection, part, told)
    return ledger.attempt(target.submission_id)


def _held(status: JobStatus) -> bool:
    """Held by Slurm itself; scontrol(1) prints the reason with underscores."""
    reason = status.reason.replace("_", " ")
    return status.state is JobState.PENDING and reason == REASON


def _again(status: JobStatus, target: Attempt) -> bool:
    """A job that waits again; an array's pending rest is many elements, most of which never ran."""
    return status.state is JobState.PENDING and target.array_size is None


def _over(ledger: Ledger, target: Attempt, task: int | None, ended: JobStatus) -> None:
    if task is None:
        ledger.record_status(target, ended)
    else:
        ledger.record_elements(target, [element_of(task, ended)], {})
    ledger.event(
        target.run_id, "attempt.end_forgotten", {"task": task}, submission_id=target.submission_id
    )


def _failed(status: JobStatus, told: list[Report]) -> JobStatus:
    """The end of a job that was cut short, and that Slurm may not begin again."""
    return msgspec.structs.replace(
        status,
        state=JobState.NODE_FAIL,
        reason="its controller forgot its start and ended it, and it is not to be requeued",
        start_time=next((r.at for r in told if r.begun), None),
        end_time=max(filter(None, (r.at for r in told)), default=utc_now()),
    )


def may_restart(connection: Connection, target: Attempt) -> bool:
    """Whether Slurm may begin it again: by its script, else by slurm.conf(5), JobRequeue."""
    said = re.findall(r"(?m)^#SBATCH\s+--(no-)?requeue\b", target.script)
    if said:
        return not said[-1]
    return connection.client.facts().config.get("JobRequeue", "1") != "0"


def _key(part: Attempt, told: list[Report]) -> dict[str, object]:
    return {"job": str(part.job_id), "reports": len(told)}


def _long_enough(ledger: Ledger, part: Attempt, told: list[Report]) -> bool:
    """Whether it has been held for so long that what was left of its start has ended; noted."""
    key = _key(part, told)
    seen = [
        e
        for e in ledger.events(part.run_id, EVENT)
        if e.submission_id == part.submission_id and e.data == key
    ]
    if not seen:
        ledger.event(part.run_id, EVENT, key, submission_id=part.submission_id)
        return False
    return age_s(seen[-1].at) >= RELEASE_AFTER_S


def _release(ledger: Ledger, connection: Connection, part: Attempt, told: list[Report]) -> None:
    if part.job_id is not None:
        connection.client.release(part.job_id)
        key = _key(part, told)
        ledger.event(part.run_id, "attempt.released", key, submission_id=part.submission_id)
