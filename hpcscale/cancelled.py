"""What waited when Slurm took our scancel of it, and is listed no more, is over: CANCELLED.

Slurm keeps no record of an array's element that was cancelled while it waited, and forgets any job
some time after its end (MinJobAge). Both would stay UNKNOWN for good. A job that nobody here asked
to be cancelled, that was seen running, or that has reported anything is not judged by this; and an
end of this kind is a user's wish, so nobody submits another copy for it.
"""

import datetime as dt
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from hpcscale.ledger import Attempt, Element, Ledger
from hpcscale.reports import Report
from hpcscale.slurm.types import JobState
from hpcscale.units import JobId

ASKED = "attempt.cancel"  # before scancel: its user wants it to end
TAKEN = "attempt.cancel_taken"  # Slurm said yes
CLOSED = "attempt.element_closed"  # its user says that it is gone
WAITED = "cancelled while it waited"
GONE = "its end was not seen; its user closed the record"


@dataclass(frozen=True, slots=True)
class Wish:
    """What the ledger has of a cancel.

    Attributes:
        at: aware UTC, of this machine.
        state: as Slurm showed it just before; of an array the element with the most to do.
        closed: whether its user says that it is gone.
    """

    at: dt.datetime
    state: JobState
    closed: bool = False

    @property
    def reason(self) -> str:
        """For the ledger."""
        return GONE if self.closed else WAITED


def note_asked(ledger: Ledger, attempt: Attempt, job_id: JobId, state: JobState) -> None:
    """Before scancel is called."""
    _note(ledger, attempt, ASKED, job_id, state)


def note_taken(ledger: Ledger, attempt: Attempt, job_id: JobId, state: JobState) -> None:
    """Slurm took it; ``state`` is that of just before."""
    _note(ledger, attempt, TAKEN, job_id, state)


def note_closed(ledger: Ledger, attempt: Attempt, task: int) -> None:
    """Its user says that an element is gone; the next sight of its array without it ends it."""
    assert attempt.job_id is not None
    _note(ledger, attempt, CLOSED, JobId(attempt.job_id.base, task), JobState.UNKNOWN)


def _note(ledger: Ledger, attempt: Attempt, kind: str, job_id: JobId, state: JobState) -> None:
    data = {"job": str(job_id), "state": state.value}
    ledger.event(attempt.run_id, kind, data, submission_id=attempt.submission_id)


def wishes(ledger: Ledger, attempt: Attempt) -> dict[int | None, Wish]:
    """Cancels of an attempt that Slurm took, by element; None: of all of it."""
    found: dict[int | None, Wish] = {}
    for kind in (TAKEN, CLOSED):
        for event in ledger.events(attempt.run_id, kind):
            if event.submission_id == attempt.submission_id:
                task = JobId.parse(event.data["job"]).array_task
                found[task] = Wish(event.at, JobState(event.data["state"]), kind == CLOSED)
    return found


def over(
    attempt: Attempt, wanted: Mapping[int | None, Wish], reports: Sequence[Report]
) -> Wish | None:
    """The cancel that ended a job, which is no array and is not listed; None: nobody knows."""
    wish = wanted.get(None)
    if wish is None or wish.state is not JobState.PENDING or reports:
        return None
    return wish if attempt.last_state is JobState.PENDING else None


def over_element(
    task: int,
    known: Element | None,
    wanted: Mapping[int | None, Wish],
    reports: Sequence[Report],
) -> Wish | None:
    """The cancel that ended an element, which is not listed; None: nobody knows.

    Args:
        task: its index.
        known: what was last seen of it.
        wanted: from ``wishes``.
        reports: of its array.
    """
    if known is not None and (known.moved or known.state.terminal):
        return None
    own = wanted.get(task)
    if own is not None and own.closed:
        return own
    if any(r.task == task for r in reports):
        return None
    waited = known is None or known.raw_state == JobState.PENDING.value
    if own is not None and own.state is JobState.PENDING:
        return own if waited else None
    return wanted.get(None) if waited else None
