"""What a forgotten job waited for, when it is submitted again: which jobs those are by now.

A controller that forgets a submission forgets all later ones too, so jobs are forgotten together
with those that wait for them, and its ids name other jobs afterwards. What counts is which runs a
job waited for (``hpcscale.after``), and where those are: at this site, elsewhere, or over.
"""

import re

from hpcscale.after import Named, named, noted_names, own_dependency
from hpcscale.burst.elements import element_run_id
from hpcscale.connect import Connection
from hpcscale.errors import RefusedError
from hpcscale.ledger import Attempt, Ledger, utc_now
from hpcscale.slurm.types import JobState, JobStatus
from hpcscale.spec import JobSpec
from hpcscale.units import JobId
from hpcscale.verify import mismatch

# by their ids; a term may name several
_IDS = re.compile(r"(?<![\w.])\d+(?:_\d+)?")


def submitted_after(status: JobStatus, connection: Connection, attempt: Attempt) -> bool:
    """Whether a job was surely submitted later than an attempt, by its site's clock."""
    if status.submit_time is None or status.restarts:  # a requeue sets it anew
        return False
    at = attempt.submit_time
    if at is None:
        at = attempt.created_at + (connection.clock.now() - utc_now())
    return status.submit_time > at


def dependency_now(ledger: Ledger, connection: Connection, attempt: Attempt) -> str | None:
    """Slurm's ``--dependency`` for its next attempt; empty: none; None: not yet, look again later.

    A run that is forgotten itself, or that has moved to another site, is waited for here: Slurm
    could not.

    Raises:
        RefusedError: what it waits for can never be met, or cannot be told any more.
        UnreachableError: no answer.
    """
    spec = ledger.run(attempt.run_id).spec
    terms: list[str] = []
    if own := own_dependency(spec):
        _still_names_the_same(own, connection, attempt)
        terms.append(own)
    for one in noted_names(ledger, attempt) or named(spec, ledger):
        if one.kind == "singleton":
            if _elsewhere(ledger, attempt, spec):
                return None
            terms.append(one.kind)
        elif not one.run_id:
            _still_names_the_same(one.job, connection, attempt)
            terms.append(f"{one.kind}:{one.job}")
        else:
            job_id = _of_run(ledger, connection, attempt, one)
            if job_id is None:
                return None
            if job_id:
                terms.append(f"{one.kind}:{job_id}")
    return ",".join(terms)


def _of_run(
    ledger: Ledger, connection: Connection, attempt: Attempt, one: Named
) -> JobId | str | None:
    """The job to wait for; empty: it has ended as it must; None: that is not known yet."""
    attempts = ledger.attempts(one.run_id)
    if one.task is not None:
        attempts += ledger.attempts(element_run_id(one.run_id, one.task))
    alive = [a for a in attempts if not a.ended]
    here = [a for a in alive if a.site == attempt.site and a.job_id is not None]
    for other in here:
        assert other.job_id is not None
        status = connection.client.show(other.job_id)
        if status is not None and mismatch(other, status) is None:
            return JobId(other.job_id.base, one.task)
    if alive:
        return None
    ends = {a.state for a in attempts}
    if one.task is not None:
        known = [ledger.elements(a).get(one.task) for a in attempts]
        ends |= {e.state for e in known if e is not None and not e.moved}
    good = JobState.COMPLETED in ends
    if not good and not any(state.terminal and state is not JobState.REFUSED for state in ends):
        raise RefusedError(f"it waits for {one.run_id}, whose end is not known")
    if (one.kind in {"afterok", "aftercorr"} and not good) or (one.kind == "afternotok" and good):
        word = "well" if good else "badly"
        raise RefusedError(f"it waits {one.kind} for {one.run_id}, which ended {word}")
    return ""


def _elsewhere(ledger: Ledger, attempt: Attempt, spec: JobSpec) -> bool:
    """Whether an earlier job of its name is alive where this site's Slurm does not see it."""
    for other in ledger.open_attempts():
        run = ledger.run(other.run_id)
        earlier = other.run_id != attempt.run_id and run.created_at <= attempt.created_at
        if other.site != attempt.site and earlier and run.spec.name == spec.name:
            return True
    return False


def _still_names_the_same(text: str, connection: Connection, attempt: Attempt) -> None:
    """Ids that the ledger does not know: those of jobs that were there before."""
    for number in _IDS.findall(text):
        status = connection.client.show(JobId.parse(number))
        if status is not None and submitted_after(status, connection, attempt):
            raise RefusedError(f"it waits for job {number}, which names another job by now")
