"""Parts of the handover's steps: each looks, or acts and looks again."""

import contextlib
import datetime as dt
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from hpcscale.blame import BLAMED
from hpcscale.burst.asked import spec_for, with_gate_time
from hpcscale.burst.claims import CLOSED, Word, decide, take
from hpcscale.burst.early import note_sent
from hpcscale.burst.fence import Lists, fence_nodes, stands, union, with_note, without_note
from hpcscale.burst.moves import MAX_BACKOFF, Move, Moves, Step, origin_attempt, target_attempt
from hpcscale.burst.orphans import Fence, of_others, put_fence
from hpcscale.burst.sight import Sight, look
from hpcscale.connect import Connection
from hpcscale.errors import HpcscaleError, UnreachableError
from hpcscale.ledger import Attempt, Ledger, Role, utc_now
from hpcscale.observe import observe
from hpcscale.slurm.remote import private_dir
from hpcscale.slurm.types import JobState, JobStatus
from hpcscale.units import JobId, expand_hostlist
from hpcscale.verify import submission_of

SETTLE_S = 12.0  # a cancelled job is usually terminal by then; else the next tick looks again
KEPT_S = 30.0  # slurmctld writes its state every 5 s or so
BEGIN_S = 3.0  # from the decision to the command, usually; else the next tick looks again


class Acts:
    """What the steps of a handover have in common.

    Args:
        ledger: where each step is recorded.
        connect: gives the connection of a site; may raise ``UnreachableError``.
        folder: submitit's folder for what is submitted.
        say: told of each step, one sentence.
    """

    def __init__(
        self,
        ledger: Ledger,
        connect: Callable[[str], Connection],
        folder: Path,
        say: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.ledger = ledger
        self.moves = Moves(ledger)
        self._connect = connect
        self._folder = folder
        self._say = say

    def _submit(self, move: Move, connection: Connection) -> str:
        """Render for the target and submit through submitit; the submission id."""
        from hpcscale.executor import HpcscaleExecutor
        from hpcscale.executor.probe import require_same_python
        from hpcscale.prepare import code_of, prepare
        from hpcscale.render import Gate

        run = self.ledger.run(move.run_id)
        origin, _ = self._origin(move)
        # what it waits at the gate, and what is copied meanwhile, is no part of the job's own time
        spec = with_gate_time(
            spec_for(run.spec, origin.time_limit_s, connection.site, move.partition),
            move.lease_s + move.staging_s,
        )
        if move.line is not None:  # a taken node must not be its end
            directives = {k: v for k, v in spec.directives.items() if k != "no-requeue"}
            spec = msgspec.structs.replace(spec, directives={**directives, "requeue": None})
        if (function := spec.function) is not None:  # before a node of that site boots for it
            require_same_python(connection, function.python, spec.software, function.pickled_by)
        rendered = prepare(
            spec,
            connection.site,
            gate=Gate(lease_s=move.lease_s),
            code=code_of(self.ledger, origin.run_id),
        )
        executor = HpcscaleExecutor(
            self._folder, site=move.to_site, connection=connection, ledger=self.ledger
        )
        job = executor.submit_rendered(rendered, run=run, role=Role.BURST)
        with contextlib.suppress(HpcscaleError):  # it serves estimates alone
            note_sent(self.ledger, run, connection.site)
        return job.submission_id

    def _ask_for(self, target: Attempt) -> Attempt:
        """An attempt whose sbatch gave no answer: by its submission id it exists, or never will."""
        seen = observe(self.ledger, self._connect, [target])
        for site, why in seen.failed.items():
            raise UnreachableError(why, where=f"site {site}")
        return self.ledger.attempt(target.submission_id)

    def _cancelled_by_user(self, move: Move) -> bool:
        """Whether `hpcscale cancel` named the run or one of its jobs since the move began."""
        origin = origin_attempt(self.ledger, move)
        mine = ("", str(origin.job_id))
        for run_id in {move.run_id, origin.run_id}:
            for event in self.ledger.events(run_id, "attempt.cancel"):
                job = str(event.data.get("job", ""))
                # an element is not the array; in a run of its own it is all there is
                named = "_" not in job or job in mine or run_id != origin.run_id
                if named and event.event_id > move.since_event:
                    return True
        return False

    def _fence_of(self, move: Move, status: JobStatus, connection: Connection) -> Lists | str:
        """The job's fence, with what it excludes already; or why it cannot be fenced."""
        fence = fence_nodes(status, connection.client.facts())
        if not fence:
            return f"{move.from_site} names no nodes to fence with"
        user = self._before_fence(move, status.exc_nodes, fence)
        if user is None:
            return (
                "all nodes are excluded already: another `hpcscale burst run` moves it, or its "
                f"user excluded them (ExcNodeList on {move.from_site})"
            )
        blamed = self._blamed(move, user, fence, status.num_nodes)
        return Lists(user=user, blamed=blamed, fence=fence)

    def _before_fence(self, move: Move, now: str, fence: str) -> str | None:
        """The user's own ``ExcNodeList``; None when a fence stands that is not of this ledger."""
        if Lists(user=now).fenced != union(now, fence):
            return now
        for earlier in reversed(self.moves.of_run(move.run_id)):
            # lifted, which a controller that died has forgotten; or the job began here, which
            # it has forgotten too; or the move ended before it knew more than its fence
            if earlier.fence is None or earlier.yielded or not earlier.step.settled:
                continue
            if union(now) == lists(earlier).fenced and earlier.old_exc is not None:
                return earlier.old_exc
        return None

    def _blamed(self, move: Move, user: str, fence: str, wanted: int) -> str:
        """Nodes of the origin that an earlier failure of this run is put down to.

        None where too few others would be left: the list stays when the fence is lifted, and the
        job is to start here then.

        Args:
            move: whose run, and whose origin.
            user: what the job's user excludes.
            fence: all nodes that it may start on.
            wanted: how many nodes it asks for.
        """
        found = [
            str(event.data.get("nodes", ""))
            for event in self.ledger.events(move.run_id, BLAMED)
            if event.data.get("site") == move.from_site
        ]
        blamed = union(*found)
        left = set(expand_hostlist(fence)) - set(expand_hostlist(union(user, blamed)))
        return blamed if len(left) >= max(1, wanted) else ""

    def _keep_fence(
        self, move: Move, origin: Attempt, connection: Connection
    ) -> tuple[Move | None, Sight]:
        """Look at the on-prem job; set the fence, again where it is gone.

        Returns:
            The move with what is known of the job now (None: another process was there first),
            and the job as it is now.
        """
        seen = look(connection, origin, self.ledger)
        if seen.status is None:
            if move.task is None or move.kept or not self._array_on_disk(origin, connection):
                return move, seen
            # its array is known, so its element has ended: it was not forgotten
            return self.moves.save(move, kept=True), seen
        changes: dict[str, object] = {}
        if not move.kept and _on_disk(seen.status, connection.clock.now()):
            changes["kept"] = True
        if seen.pending and move.fence is not None:
            own = lists(move).users_own(seen.status.exc_nodes)
            if own != move.old_exc:
                changes["old_exc"] = own
        if changes:
            saved = self.moves.save(move, **changes)
            if saved is None:
                return None, seen
            move = saved
        if seen.pending and move.fence is not None and self._fence(move, origin, connection, seen):
            seen = look(connection, origin, self.ledger)
        return move, seen

    def _array_on_disk(self, origin: Attempt, connection: Connection) -> bool:
        """Whether Slurm knows the array of this element, and would after a crash."""
        assert origin.job_id is not None
        status = connection.client.show(JobId(origin.job_id.base))
        if status is None or submission_of(status.comment) != origin.submission_id:
            return False
        return _on_disk(status, connection.clock.now())

    def _fence(self, move: Move, origin: Attempt, connection: Connection, seen: Sight) -> bool:
        """Set what is missing of the fence and its note; whether anything was."""
        assert seen.status is not None
        assert origin.job_id is not None
        missing = not stands(seen.status, move.fence or "")
        if missing:
            if move.fenced:
                # slurmctld forgets its last seconds when it dies, or somebody changed the list
                self._say(f"{move.run_id}: the fence on {move.from_site} is gone, set again")
            self._note_fence(move, origin, connection)
        comment = with_note(seen.status.comment, move.to_site, move.run_id)
        # No fence without its note, by which it is found when it is left behind: it is written
        # also where it was just seen, as another process may have lifted both since, and by one
        # update, as one may do so in between.
        changes = {}
        if missing or comment != seen.status.comment:
            changes["Comment"] = comment
        if missing:
            changes["ExcNodeList"] = lists(move).fenced
        if changes:
            connection.client.update(origin.job_id, changes)
        return missing

    def _never_begins(self, move: Move, target: Attempt, connection: Connection) -> bool:
        """Make sure that the cloud job's command will not begin, unless it has."""
        private_dir(connection.transport, target.run_dir)
        if decide(connection.transport, target, Word.CLOSED) is not Word.OPENED:
            return True
        # it was opened: its own claim decides, also over a job that a controller brings back
        if move.ends_as is not Step.FAILED:
            return True  # it is ended, begun or not
        return take(connection.transport, target, CLOSED).owner == CLOSED

    def _origin_changed(self, move: Move, seen: Sight, *, started: bool = False) -> Move | None:
        """The on-prem job is not waiting any more: its site or its user decided."""
        if (started or seen.started) and not (
            seen.status and seen.status.state is JobState.CANCELLED
        ):
            return self._end(
                move,
                f"it started on {move.from_site} ({seen.word}), so its job on "
                f"{move.to_site} is ended",
                Step.WITHDRAWN,
            )
        return self._end(
            move, f"its job on {move.from_site} was ended ({seen.word})", Step.CANCELLED
        )

    def _end(
        self,
        move: Move,
        message: str,
        ends_as: Step = Step.FAILED,
        *,
        yielded: bool = False,
    ) -> Move | None:
        return self.moves.save(
            move, step=Step.ENDING, message=message, ends_as=ends_as, yielded=yielded
        )

    def _fail(self, move: Move, message: str) -> Move | None:
        earlier = [m for m in self.moves.of_run(move.run_id) if m.step is Step.FAILED]
        rest_s = move.retry_after_s * min(2 ** len(earlier), MAX_BACKOFF)
        now = self._connect(move.from_site).clock.now()
        return self.moves.save(
            move,
            step=Step.FAILED,
            message=message,
            retry_at=now + dt.timedelta(seconds=rest_s),
        )

    def _note_fence(self, move: Move, origin: Attempt, connection: Connection) -> None:
        """Beside the claims, so that anybody's next run can judge a fence that is left behind."""
        target = target_attempt(self.ledger, move)
        put_fence(
            connection,
            origin,
            Fence(
                run_id=origin.run_id,
                job=move.run_id,
                task=move.task,
                origin=move.origin,
                to_site=move.to_site,
                at=connection.clock.now(),
                user=move.old_exc or "",
                blamed=move.blamed,
                nodes=move.fence or "",
                target=target.submission_id if target else None,
                target_job=str(target.job_id or "") if target else "",
                target_dir=target.run_dir if target else "",
            ),
        )

    def _lift(
        self,
        move: Move,
        seen: Sight,
        connection: Connection,
        origin: Attempt,
        *,
        others: bool = False,
    ) -> None:
        """Set back what the fence changed: the list, with what its user wrote meanwhile.

        ``others``: fences of other ledgers too, that have yielded to this one's claim.
        """
        assert seen.status is not None
        assert origin.job_id is not None
        known = lists(move)
        own = known.users_own(seen.status.exc_nodes)
        if others and own:
            theirs = of_others(connection, origin, move.target or "", known.fence)
            own = union(*(set(expand_hostlist(own)) - theirs)) if theirs else own
        since = self._blamed(move, own, known.fence, seen.status.num_nodes)
        value = Lists(user=own, blamed=union(known.blamed, since)).lifted
        connection.client.update(origin.job_id, {"ExcNodeList": value})
        self._remove_note(seen, connection, origin)

    def _remove_note(self, seen: Sight, connection: Connection, origin: Attempt) -> None:
        assert origin.job_id is not None
        if seen.status is not None:
            comment = without_note(seen.status.comment)
            # an array is seen by one of its records, and others may have the note
            if comment != seen.status.comment or origin.array_size is not None:
                connection.client.update(origin.job_id, {"Comment": comment})

    def _lifted(self, move: Move, seen: Sight) -> bool:
        assert seen.status is not None
        if union(lists(move).lifted) == lists(move).fenced:
            return True  # the user had excluded every node
        return not stands(seen.status, move.fence or "")

    def _until_over(self, connection: Connection, attempt: Attempt) -> Sight:
        """Look until the job is terminal, for a short time."""
        deadline = time.monotonic() + SETTLE_S
        while True:
            seen = look(connection, attempt, self.ledger)
            if seen.over or time.monotonic() > deadline:
                return seen
            time.sleep(0.3)

    def _until_begun(self, connection: Connection, target: Attempt) -> Sight:
        """Look until the cloud job's command has begun, for a short time: the gate looks often."""
        deadline = time.monotonic() + BEGIN_S
        while True:
            there = look(connection, target, self.ledger, any_start=True)
            if there.reported is not None or there.over or time.monotonic() > deadline:
                return there
            time.sleep(0.3)

    def _origin(self, move: Move) -> tuple[Attempt, Connection]:
        return origin_attempt(self.ledger, move), self._connect(move.from_site)

    def _target(self, move: Move) -> tuple[Attempt, Connection]:
        return self.ledger.attempt(move.target or ""), self._connect(move.to_site)

    def _tell(self, move: Move) -> None:
        text = f"{move.run_id} ({move.name}): {move.step.value}"
        if move.step in {Step.SUBMITTING, Step.SUBMITTED, Step.CLAIMING, Step.OPENING, Step.MOVED}:
            text += f" to {move.to_site}"
        self._say(text + (f": {move.message}" if move.message else ""))


def lists(move: Move) -> Lists:
    """The three parts of what the on-prem job excludes."""
    return Lists(user=move.old_exc or "", blamed=move.blamed, fence=move.fence or "")


def left(move: Move, seen: Sight) -> bool:
    """Whether the on-prem job has started or ended.

    A controller that dies forgets jobs, but only those of its last seconds: of a job that was on
    its disk, "no such job" means that it ended.
    """
    if seen.gone:
        return move.kept
    return not seen.pending


def _on_disk(status: JobStatus, now: dt.datetime) -> bool:
    """Whether a controller that dies now would know the job again."""
    since = status.submit_time
    return since is not None and (now - since).total_seconds() > KEPT_S


def age_s(since: dt.datetime | None) -> float:
    """Seconds since then by this machine's clock; 0 for None."""
    return (utc_now() - since).total_seconds() if since else 0.0
