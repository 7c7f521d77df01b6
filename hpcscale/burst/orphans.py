"""Fences that nobody will lift: found by the note in ``Comment``, by any ``burst run`` or ``reap``.

A fence has no lease of its own. Beside the claims lies a record of it, so the same user's next run
on any login node, with any ledger, can judge it: by the decision in the cloud, never by the age of
a job that may still come to its gate. Whatever the fence's owner does meanwhile, lifting a fence
only gives up a place in the queue; what may start is decided by claim and decision.
"""

import contextlib
import datetime as dt
from collections.abc import Callable

import msgspec

from hpcscale.burst.claims import (
    CLOSED,
    Place,
    Word,
    claims_dir,
    decide,
    decision,
    holder,
    revoke,
    take,
)
from hpcscale.burst.fence import Lists, noted, without_note
from hpcscale.burst.moves import Moves, Step, origin_attempt
from hpcscale.burst.sight import end
from hpcscale.connect import Connection
from hpcscale.errors import HpcscaleError
from hpcscale.ledger import Attempt, Ledger
from hpcscale.slurm.remote import private_dir
from hpcscale.slurm.types import JobState, JobStatus
from hpcscale.staging import read_text_files
from hpcscale.units import JobId, expand_hostlist
from hpcscale.verify import submission_of

UNSENT_S = 3600.0  # a fence without a cloud job: by then its owner would have submitted one


class Fence(msgspec.Struct, frozen=True, kw_only=True):
    """The record of a fence, beside the on-prem job's claims.

    Attributes:
        run_id: whose claims the on-prem job takes.
        job: the run that moves, where that is another: of an element that moves alone, ``task``.
        at: when it was written, by the on-prem site's clock.
        target: the cloud attempt's submission id, once there is one; ``target_job`` its
            job id and ``target_dir`` its run's directory there.
    """

    run_id: str
    job: str = ""
    task: int | None = None
    origin: str
    to_site: str
    at: dt.datetime
    user: str = ""
    blamed: str = ""
    nodes: str = ""
    target: str | None = None
    target_job: str = ""
    target_dir: str = ""


class Orphan(msgspec.Struct, frozen=True, kw_only=True):
    """A fenced job that no move of this ledger looks after.

    Attributes:
        ref: ``site:id``.
        done: ``lifted``, ``ended`` or ``left``.
    """

    ref: str
    submission_id: str
    done: str
    why: str


def put_fence(connection: Connection, origin: Attempt, fence: Fence) -> None:
    """Write the record: one for each cloud attempt, as two ledgers may both fence a job."""
    private_dir(connection.transport, claims_dir(origin))
    element = "" if fence.task is None else f".task{fence.task}"
    name = f"{fence.run_id}.{fence.origin}{element}.{fence.target or 'unsent'}.fence"
    path = f"{claims_dir(origin)}/{name}"
    connection.transport.put_bytes(msgspec.json.encode(fence), path, mode=0o600)


def of_others(connection: Connection, origin: Attempt, target: str, nodes: str) -> set[str]:
    """Nodes that fences of other ledgers exclude, and that their users did not.

    Args:
        connection: to the site of ``origin``.
        origin: the fenced job.
        target: the cloud attempt that has its claim, whose fence excludes ``nodes``.
    """
    found: set[str] = set()
    mine = set(expand_hostlist(nodes))
    for (submission_id, _), fences in _records(connection).items():
        for fence in fences:
            if submission_id == origin.submission_id and fence.target != target:
                users = set(expand_hostlist(fence.user))
                if mine <= users:  # they took our fence for the user's own
                    users -= mine
                found |= set(expand_hostlist(fence.nodes)) - users
    return found


def orphans(
    ledger: Ledger,
    connect: Callable[[str], Connection],
    site: str,
    say: Callable[[str], None] = lambda _: None,
) -> list[Orphan]:
    """Look at every fenced job of this user at a site, and let go those that nobody will.

    Raises:
        UnreachableError: the site gave no answer; a cloud that gives none leaves its jobs fenced.
    """
    connection = connect(site)
    fenced: dict[tuple[str, str], JobStatus] = {}
    for status in connection.client.jobs().jobs.values():
        submission_id = submission_of(status.comment)
        note = noted(status.comment)
        if submission_id and status.state is JobState.PENDING and note:
            fenced.setdefault((submission_id, note[1]), status)
    if not fenced:
        return []
    last = {(move.origin, move.run_id): move for move in Moves(ledger).all()}
    records = _records(connection)
    found = []
    for key, status in fenced.items():
        submission_id, move = key[0], last.get(key)
        if move is not None and not move.step.settled:
            continue
        if move is not None and move.step in {Step.DONE, Step.CANCELLED}:
            end(connection, origin_attempt(ledger, move))
            done, why = (
                "ended",
                f"its move is {move.step.value}, and its controller forgot a cancel",
            )
        else:
            failed = move is not None and move.step is Step.FAILED
            done, why = _judge(connect, connection, status, records.get(key, []), failed)
        alone = move.task if move is not None else _element(records.get(key, []))
        ref = f"{site}:{JobId(status.job_id.base, alone)}"
        one = Orphan(ref=ref, submission_id=submission_id, done=done, why=why)
        say(f"{one.ref}: its fence is {one.done}: {one.why}")
        found.append(one)
    return found


def _judge(
    connect: Callable[[str], Connection],
    connection: Connection,
    status: JobStatus,
    fences: list[Fence],
    failed: bool,
) -> tuple[str, str]:
    """What is done about a fence, and why; ``failed``: this ledger took its move back."""
    if not fences:
        return "left", "there is no record of it: scontrol update ExcNodeList= lifts it"
    owner = holder(connection.transport, _origin(connection, fences[-1]))
    if owner:
        fences = [fence for fence in fences if fence.target == owner]
        if not fences:
            return "left", f"{owner} has its claim, and its record is not there"
    why = ""
    for fence in fences:
        try:
            why = _free(connect, connection, fence)
        except HpcscaleError as exc:
            return "left", str(exc)
        if not why and failed and fence.target is None:
            why = "its move failed before anything was submitted"
        if not why:
            return "left", f"its cloud job on {fence.to_site} may begin, or has begun"
    _lift(connection, status, fences[-1])
    return "lifted", why


def _free(connect: Callable[[str], Connection], connection: Connection, fence: Fence) -> str:
    """Why its cloud attempt will never begin; empty: it may."""
    if fence.target is None:
        age_s = (connection.clock.now() - fence.at).total_seconds()
        return "nothing was submitted for it" if age_s > UNSENT_S else ""
    cloud = connect(fence.to_site)
    target = Place(fence.job or fence.run_id, fence.target, fence.target_dir)
    word = decision(cloud.transport, target)
    if word in {None, Word.OPENED} and not _lives(cloud, fence):
        private_dir(cloud.transport, fence.target_dir)
        word = decide(cloud.transport, target, Word.CLOSED)
        if word is Word.OPENED and take(cloud.transport, target, CLOSED).owner == CLOSED:
            word = Word.CLOSED  # it ended between its gate and its command
    if word in {None, Word.OPENED}:
        return ""
    revoke(connection.transport, _origin(connection, fence), fence.target)
    return f"its cloud attempt will never begin ({word})"


def _lives(cloud: Connection, fence: Fence) -> bool:
    """Whether its cloud job may still come to its gate; so also when nobody can tell."""
    if fence.target_job:
        status = cloud.client.show(JobId.parse(fence.target_job))
        if status is None or submission_of(status.comment) != fence.target:
            return False
        return not status.state.terminal
    jobs = cloud.client.jobs().jobs.values()  # sbatch gave no answer
    return not jobs or any(
        submission_of(status.comment) == fence.target and not status.state.terminal
        for status in jobs
    )


def _lift(connection: Connection, status: JobStatus, fence: Fence) -> None:
    job_id = JobId(status.job_id.base, fence.task)  # an array is fenced whole
    now = connection.client.show(job_id)  # ids are given out again
    if now is None or submission_of(now.comment) != fence.origin:
        return
    lists = Lists(user=fence.user, blamed=fence.blamed, fence=fence.nodes)
    own = Lists(user=lists.users_own(now.exc_nodes), blamed=fence.blamed)
    connection.client.update(job_id, {"ExcNodeList": own.lifted})
    connection.client.update(job_id, {"Comment": without_note(now.comment)})


def _origin(connection: Connection, fence: Fence) -> Place:
    run_dir = f"{connection.state_dir}/runs/{fence.run_id}"
    return Place(fence.run_id, fence.origin, run_dir, fence.task)


def _element(fences: list[Fence]) -> int | None:
    return fences[-1].task if fences else None


def _records(connection: Connection) -> dict[tuple[str, str], list[Fence]]:
    """Submission id and run that moves -> records of its fence, oldest first."""
    found: dict[tuple[str, str], list[Fence]] = {}
    folder = f"{connection.state_dir}/claims"
    for text in read_text_files(connection.transport, [folder], "*.fence").values():
        with contextlib.suppress(msgspec.MsgspecError):  # a full disk
            fence = msgspec.json.decode(text, type=Fence)
            found.setdefault((fence.origin, fence.job or fence.run_id), []).append(fence)
    for fences in found.values():
        fences.sort(key=lambda f: (f.at, f.target is not None))
        # of what was fenced before it was submitted, the later record tells more
        while len(fences) > 1 and fences[0].target is None:
            del fences[0]
    return found
