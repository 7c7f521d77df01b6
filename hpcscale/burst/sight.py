"""Looking before an act: is it still that job, what does Slurm say of it, has its script begun?

Each answer is one of: Slurm says this, Slurm says there is no such job, no answer. Only the first
two are facts; on the third nothing is done.
"""

import datetime as dt
from dataclasses import dataclass

from hpcscale.blame import blame, lost_on
from hpcscale.burst.arrays import show_array
from hpcscale.connect import Connection
from hpcscale.errors import HpcscaleError, UnreachableError
from hpcscale.judge_arrays import element_of
from hpcscale.ledger import Attempt, Ledger, utc_now
from hpcscale.observe import observe
from hpcscale.reports import Report, read_reports
from hpcscale.slurm.types import JobState, JobStatus
from hpcscale.staging import remove_secrets
from hpcscale.verify import mismatch


@dataclass(frozen=True, slots=True)
class Sight:
    """What was seen of one attempt.

    Attributes:
        status: Slurm's word; None when Slurm has no such job (any more).
        reported: the job id that the script reported in with, once it has started.
        exit_code: what the script reported at its end, and when (``ended_at``).
        gated_at: when its newest start came to the gate, by the node's clock; None: not yet.
        begun_at: when user code began, by the node's clock.
    """

    status: JobStatus | None
    reported: str | None = None
    exit_code: int | None = None
    ended_at: dt.datetime | None = None
    gated_at: dt.datetime | None = None
    begun_at: dt.datetime | None = None

    @property
    def gone(self) -> bool:
        """Slurm answered, and knows no such job."""
        return self.status is None

    @property
    def pending(self) -> bool:
        """Waiting, and never started."""
        return self.status is not None and self.status.state is JobState.PENDING

    @property
    def over(self) -> bool:
        """It can never run again by itself."""
        return self.status is None or self.status.state.terminal

    @property
    def started(self) -> bool:
        """User code may have begun: it holds nodes, has reported in, or ended by itself."""
        if self.reported is not None:
            return True
        if self.status is None or self.status.state is JobState.PENDING:
            return False
        never_ran = {JobState.CANCELLED, JobState.DEADLINE, JobState.REVOKED, JobState.BOOT_FAIL}
        if self.status.state in never_ran:
            return False
        return self.status.state is not JobState.UNKNOWN

    @property
    def word(self) -> str:
        """The state for a sentence."""
        if self.status is None:
            return "unknown to Slurm"
        reason = self.status.reason
        return self.status.state.value + (f" ({reason})" if reason not in {"", "None"} else "")


def look(
    connection: Connection,
    attempt: Attempt,
    ledger: Ledger | None = None,
    *,
    any_start: bool = False,
) -> Sight:
    """Ask the site about one attempt: the controller's word, and the script's own report.

    Args:
        connection: to its site.
        attempt: which one.
        ledger: what Slurm said is recorded there.
        any_start: whether a report of an earlier start counts (the job was requeued since);
            otherwise such a job waits again, and has not started.

    Raises:
        UnreachableError: no answer.
    """
    if attempt.job_id is None:
        return Sight(status=None)
    if attempt.array_size is not None:
        status = show_array(connection, attempt)
        any_start = True
    else:
        status = connection.client.show(attempt.job_id)
    if status is not None and mismatch(attempt, status):
        status = None  # the id names another job now; ours is gone
    if status is not None and status.state is JobState.UNKNOWN:
        raise UnreachableError(
            f"Slurm says {status.raw_state!r} of {attempt.ref}, which says nothing here",
            where=connection.site.name,
        )
    if status is None:
        status = _remembered(connection, attempt)
    if status is not None and ledger is not None:
        record(ledger, connection, attempt, status)
    starts = status.restarts if status is not None else attempt.restarts
    if any_start:
        starts = 0
    reports = reports_of(connection, attempt, starts)
    if attempt.task is not None:
        reports = [r for r in reports if r.task == attempt.task]
    end = next((r for r in reversed(reports) if r.final), None)
    begun = next((r for r in reports if r.begun), None)
    gated = next((r for r in reversed(reports) if r.gated), None)
    return Sight(
        status=status,
        reported=(begun.job or str(attempt.job_id)) if begun else None,
        exit_code=end.exit_code if end else None,
        ended_at=end.at if end else None,
        gated_at=(gated.at or utc_now()) if gated else None,
        begun_at=begun.at if begun else None,
    )


def record(ledger: Ledger, connection: Connection, attempt: Attempt, status: JobStatus) -> None:
    """Note what Slurm said; of a job that is over, remove the secrets that its script did not."""
    if attempt.array_size is not None:
        observe(ledger, lambda _: connection, [attempt])  # element by element
        return
    if attempt.task is not None:  # the array's row is of all its elements
        if status.state is not JobState.PENDING:
            row = ledger.attempt(attempt.submission_id)
            known = ledger.elements(row)
            ledger.record_elements(row, [element_of(attempt.task, status)], known)
        return
    if on := lost_on(attempt, status.state, status.restarts, status.nodes):
        blame(ledger, connection, attempt, status.state, on)
    recorded = ledger.record_status(attempt, status)
    if recorded.ended and ledger.run(attempt.run_id).spec.secrets:
        remove_secrets(connection.transport, attempt.run_dir, attempt.submission_id)


def _remembered(connection: Connection, attempt: Attempt) -> JobStatus | None:
    """An ended job as accounting has it; None where there is none, or it does not know the job."""
    assert attempt.job_id is not None
    since = attempt.created_at - dt.timedelta(days=1)  # two clocks
    for status in connection.client.history([attempt.job_id], since=since).of(attempt.job_id):
        if not status.state.terminal:
            continue  # accounting lags behind the controller, which no longer knows the job
        if status.comment:
            if mismatch(attempt, status) is None:
                return status
        elif attempt.submit_time is not None and status.submit_time == attempt.submit_time:
            return status  # sites need not store comments
    return None


def reports_of(connection: Connection, attempt: Attempt, since_restart: int = 0) -> list[Report]:
    """What the job's script reported, oldest first.

    Reports of starts before ``since_restart`` are of an earlier life: a job that was requeued and
    waits again has not started.
    """
    found = read_reports(connection.transport, [attempt.run_dir]).get(attempt.submission_id, [])
    return [r for r in found if r.restart >= since_restart]


def nodes_up(connection: Connection, status: JobStatus) -> bool:
    """Whether every node of a running job answers: none booting, down or silent (sinfo(1))."""
    if not status.nodes or status.state is JobState.CONFIGURING:
        return False
    states = connection.client.node_states(status.nodes)
    bad_flags = ("#", "~", "%", "*", "!", "@")
    bad_words = ("down", "fail", "unknown", "powering_up", "powered_down", "future", "not_respond")
    return bool(states) and not any(
        word.endswith(bad_flags) or word.lower().startswith(bad_words) for word in states.values()
    )


def end(connection: Connection, attempt: Attempt, *, pending_only: bool = False) -> None:
    """Cancel a job after checking that it is still that job; no error when it is over.

    Raises:
        UnreachableError: no answer.
    """
    if attempt.job_id is None:
        return
    status = connection.client.show(attempt.job_id)
    if status is None or status.state.terminal or mismatch(attempt, status):
        return
    connection.client.cancel(attempt.job_id, pending_only=pending_only)


def words(exc: HpcscaleError) -> str:
    """An error as half a sentence."""
    return str(exc).rstrip(".")
