"""A job that its controller forgot right after its submission, and that never began: once more.

slurmctld answers sbatch before its state is on disk. When it dies within the next five seconds or
so, there is no such job afterwards, and nobody will ever start it. Its run gets another attempt at
the same site. The new submission id takes the forgotten one's claim before it is submitted, so of
the two only one can begin, also when several ledgers do this, or the controller knew it after all.
"""

import datetime as dt
import re
from collections.abc import Callable, Iterator

from hpcscale.after import own_dependency
from hpcscale.burst.behind import dependency_now, submitted_after
from hpcscale.burst.claims import revoke, take
from hpcscale.burst.moves import Moves, Step
from hpcscale.burst.sight import end, look
from hpcscale.connect import Connection
from hpcscale.errors import (
    HpcscaleError,
    NotFoundError,
    RefusedError,
    SubmitUnknownError,
    UnreachableError,
)
from hpcscale.ledger import Attempt, Ledger, Role, new_submission_id, utc_now
from hpcscale.observe import observe
from hpcscale.slurm.types import JobState
from hpcscale.units import JobId
from hpcscale.verify import submission_of

NOTED = "attempt.forgotten_by_slurm"
EVENT = "attempt.again"
REFUSED = "attempt.again_refused"
OLD_S = 24 * 3600.0  # no move takes as long
WATCH_S = 900.0  # a controller that knew it after all shows it again soon
MIN_JOB_AGE_S = 300.0  # slurm.conf(5)
AT_ONCE_S = 120.0  # submissions that are nearer to each other may have their ids in any order
MANY_IDS = 1_000_000


def resubmit(
    ledger: Ledger,
    connect: Callable[[str], Connection],
    sites: list[str],
    say: Callable[[str], None] = lambda _: None,
) -> list[str]:
    """Submit again what these sites' controllers have surely forgotten.

    Returns:
        What kept it from some, one sentence each.
    """
    problems: list[str] = []
    for site in sites:
        try:
            for attempt in _unlisted(ledger, connect, site):
                if _known(ledger, connect(site), attempt) and _may(ledger, attempt):
                    _again(ledger, connect(site), attempt, say)
            _watch(ledger, connect, site)
        except HpcscaleError as exc:
            problems.append(f"what {site} has forgotten: {exc}")
    return problems


def _unlisted(ledger: Ledger, connect: Callable[[str], Connection], site: str) -> Iterator[Attempt]:
    """Attempts that never began, and that squeue does not list."""
    now = utc_now()
    waiting = [
        a
        for a in ledger.open_attempts(site)
        if a.role is Role.ONPREM
        and a.job_id is not None
        and a.last_state is JobState.PENDING
        and (now - a.created_at).total_seconds() < OLD_S
    ]
    if not waiting:
        return
    answer = connect(site).client.jobs()
    listed = {submission_of(status.comment) for status in answer.jobs.values()}
    yield from (a for a in waiting if a.submission_id not in listed)


def _known(ledger: Ledger, connection: Connection, attempt: Attempt) -> bool:
    """Whether it is forgotten; noted, since later nobody can tell that from a purged end."""
    noted = ledger.events(attempt.run_id, NOTED)
    if any(e.submission_id == attempt.submission_id for e in noted):
        return look(connection, attempt).gone
    if not forgotten(connection, attempt, ledger):
        return False
    ledger.event(attempt.run_id, NOTED, submission_id=attempt.submission_id)
    return True


def keeps_ended_s(connection: Connection) -> float:
    """Seconds for which the controller shows a job that has ended (MinJobAge)."""
    match = re.match(r"\d+", connection.client.facts().config.get("MinJobAge", ""))
    return float(match[0]) if match else MIN_JOB_AGE_S


def forgotten(connection: Connection, attempt: Attempt, ledger: Ledger | None = None) -> bool:
    """Whether its controller knows no such job, which can neither have begun nor ended.

    Raises:
        UnreachableError: no answer.
    """
    seen = look(connection, attempt, ledger, any_start=True)
    if not seen.gone or seen.reported is not None or seen.ended_at is not None:
        return False
    # of two clocks the one that says it is older
    age_s = max((now - attempt.created_at).total_seconds() for now in (
        utc_now(), connection.clock.now()
    ))  # fmt: skip
    if age_s < keeps_ended_s(connection):
        return True
    # by now it may also have ended, and have been purged
    if ledger is None:
        return False
    return ids_went_back(ledger, connection, attempt) or _accounting_lacks(connection, attempt)


def ids_went_back(ledger: Ledger, connection: Connection, attempt: Attempt) -> bool:
    """Whether its controller has given ids out again since: then it was restored as it was before.

    Jobs and the next id are saved together, so of a submission whose id came again nothing is left.
    """
    if attempt.job_id is None:
        return False
    mine = attempt.job_id.base
    margin = dt.timedelta(seconds=AT_ONCE_S)

    def again(base: int) -> bool:
        return mine - MANY_IDS < base <= mine  # not where ids have begun anew (MaxJobId)

    for other in ledger.all_attempts(attempt.site):
        later = other.created_at > attempt.created_at + margin
        if later and other.job_id is not None and again(other.job_id.base):
            return True
    seen = list(connection.client.jobs().jobs.values())
    if (status := connection.client.show(JobId(mine))) is not None:
        seen.append(status)
    at = attempt.created_at + (connection.clock.now() - utc_now()) + margin
    return any(
        again(status.job_id.base)
        and not status.restarts  # a requeue sets the time anew
        and status.submit_time is not None
        and status.submit_time > at
        for status in seen
    )


def _accounting_lacks(connection: Connection, attempt: Attempt) -> bool:
    """Whether slurmdbd, which keeps all ends, has none of it, and its controller began anew since.

    What has a record there without an end, which its controller does not know, has been forgotten.
    """
    boot = connection.client.facts().config.get("BOOT_TIME", "")
    begun = attempt.submit_time or attempt.created_at
    if not boot.isdigit() or int(boot) < begun.timestamp() or attempt.job_id is None:
        return False
    since = attempt.created_at - dt.timedelta(days=1)
    answer = connection.client.history([attempt.job_id], since=since)
    if not answer.complete:
        return False
    return not any(
        status.state.terminal and not submitted_after(status, connection, attempt)
        for status in answer.jobs.values()
    )


def _may(ledger: Ledger, attempt: Attempt) -> bool:
    """Whether nobody else looks after it, by the ledger alone."""
    if ledger.events(attempt.run_id, REFUSED):
        return False
    if any(e.at >= attempt.created_at for e in ledger.events(attempt.run_id, "attempt.cancel")):
        return False
    later = [a for a in ledger.attempts(attempt.run_id) if a.number > attempt.number]
    ours = {str(e.data["as"]) for e in ledger.events(attempt.run_id, EVENT)}
    if any(a.role is Role.ONPREM and a.submission_id not in ours and not a.ended for a in later):
        return False
    moves = Moves(ledger).of_run(attempt.run_id)
    return not moves or moves[-1].step is Step.FAILED


def _again(
    ledger: Ledger, connection: Connection, attempt: Attempt, say: Callable[[str], None]
) -> None:
    from hpcscale.prepare import code_of, prepare
    from hpcscale.submit import submit

    after: str | None = ""
    if ledger.run(attempt.run_id).spec.after or own_dependency(ledger.run(attempt.run_id).spec):
        try:
            after = dependency_now(ledger, connection, attempt)
        except RefusedError as exc:
            ledger.event(
                attempt.run_id, REFUSED, {"why": str(exc)}, submission_id=attempt.submission_id
            )
            why = f"its controller forgot it before it began, and it is not submitted again: {exc}"
            ledger.set_forgotten(attempt, why)
            say(f"{attempt.run_id}: {attempt.ref}: {why}")
            return
        if after is None:
            return  # what it waits for is elsewhere, or forgotten itself
    mine = _id_for(ledger, connection, attempt)
    if mine is None:
        return
    claim = take(connection.transport, attempt, mine, attempt.restarts)
    if claim.owner != mine:
        return  # it has begun, or another ledger was there first
    run = ledger.run(attempt.run_id)
    rendered = prepare(run.spec, connection.site, code=code_of(ledger, attempt.run_id))
    try:
        new = submit(
            rendered,
            connection.site,
            connection,
            ledger,
            run=run,
            cwd=run.cwd,
            submission_id=mine,
            after=(after or None,),
        )
    except (SubmitUnknownError, UnreachableError):
        raise  # the next call sees whether it exists
    except HpcscaleError as exc:
        revoke(connection.transport, attempt, mine)
        ledger.event(run.run_id, REFUSED, {"why": str(exc)}, submission_id=mine)
        raise
    _note(ledger, attempt, new.attempt)
    say(f"{run.run_id}: {attempt.ref} was forgotten by its controller; submitted again: {new.ref}")


def _note(ledger: Ledger, attempt: Attempt, new: Attempt) -> None:
    if not attempt.ended:
        data = {"to": str(new.ref)}
        ledger.event(
            attempt.run_id, "attempt.handed_over", data, submission_id=attempt.submission_id
        )
        why = f"its controller forgot it before it began; submitted again as {new.ref}"
        ledger.set_forgotten(attempt, why)


def _id_for(ledger: Ledger, connection: Connection, attempt: Attempt) -> str | None:
    """The submission id of its next attempt, on disk before its first use; None: it is there."""
    noted = [
        e for e in ledger.events(attempt.run_id, EVENT) if e.submission_id == attempt.submission_id
    ]
    if noted:
        mine = str(noted[-1].data["as"])
        try:
            new = ledger.attempt(mine)
        except NotFoundError:
            return mine  # killed before it was submitted
        if new.job_id is None and not new.ended:  # sbatch gave no answer
            observe(ledger, lambda _: connection, [new])
            new = ledger.attempt(mine)
        if new.state is not JobState.REFUSED:
            if new.job_id is not None:
                _note(ledger, attempt, new)
            return None
        revoke(connection.transport, attempt, mine)  # it never reached Slurm
    mine = new_submission_id()
    ledger.event(attempt.run_id, EVENT, {"as": mine}, submission_id=attempt.submission_id)
    return mine


def _watch(ledger: Ledger, connect: Callable[[str], Connection], site: str) -> None:
    """End a forgotten job that is back: its claim is not its own any more."""
    since = utc_now() - dt.timedelta(seconds=WATCH_S)
    sql = "SELECT DISTINCT submission_id FROM events WHERE kind = ? AND at >= ?"
    for row in ledger.rows(sql, EVENT, f"{since:%Y-%m-%dT%H:%M:%S}"):
        attempt = ledger.attempt(row["submission_id"])
        if attempt.site == site and attempt.ended:
            end(connect(site), attempt)
