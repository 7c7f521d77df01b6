"""The handover: the only code that moves a job, one recorded step after the other.

Order: fence the on-prem job, submit in the cloud, wait until its gang stands at the gate, look at
the fence again, take the on-prem job's claim, open the gate, and once user code has begun cancel
the on-prem job as clean-up. Until the gate is open the on-prem job exists, and can have its place
back. Correctness rests on two files made by ``link(2)`` (``burst.claims``); fence, ledger and lock
only save place, money and time. The protocol with its crash points is docs/handover.md.
"""

from collections.abc import Callable
from pathlib import Path

import msgspec

from hpcscale.burst.acts import Acts, age_s
from hpcscale.burst.claims import CLOSED, Word, decide, revoke, take
from hpcscale.burst.decide import show_s
from hpcscale.burst.fence import fence_nodes, stands
from hpcscale.burst.moves import Move, Step, target_attempt
from hpcscale.burst.results import bring_home, note_gate_idle, settle_cost
from hpcscale.burst.sight import end, look, nodes_up, record, words
from hpcscale.connect import Connection
from hpcscale.errors import (
    BurstRefusedError,
    HpcscaleError,
    SubmitUnknownError,
    UnreachableError,
)
from hpcscale.ledger import Attempt, Ledger, utc_now
from hpcscale.slurm.types import JobState

LOST_S = 600.0  # a job that nobody knows for this long will not come back


class Handover(Acts):
    """Advances moves.

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
        super().__init__(ledger, connect, folder, say)
        self._steps: dict[Step, Callable[[Move], Move | None]] = {
            Step.FENCING: self._fencing,
            Step.SUBMITTING: self._submitting,
            Step.SUBMITTED: self._submitted,
            Step.CLAIMING: self._claiming,
            Step.OPENING: self._opening,
            Step.CANCELLING: self._cancelling,
            Step.MOVED: self._moved,
            Step.ENDING: self._ending,
            Step.UNFENCING: self._unfencing,
        }

    def advance(self, move: Move) -> Move:
        """Take a move as far as it goes now.

        A moved job's end is read from the ledger, which ``observe`` keeps up to date.

        Raises:
            UnreachableError: no answer from a site; the move stands where the ledger says, and the
                next call tries again.
        """
        while not move.step.settled:
            after = self._steps[move.step](move)
            if after is None:  # another process took the step
                return self.moves.get(move.move_id)
            if after.step is move.step:
                return after
            self._tell(after)
            move = after
        return move

    def undo(self, move: Move) -> Move:
        """Take a move back at its user's wish: cloud job ended, fence set back.

        Raises:
            BurstRefusedError: it is too late, the job runs in the cloud.
        """
        if move.step in {Step.CANCELLING, Step.MOVED}:
            raise BurstRefusedError(
                f"{move.run_id} already runs on {move.to_site}",
                hint=f"hpcscale cancel {move.run_id} ends it there",
            )
        message = "taken back by its user"
        if move.step is Step.FENCING:
            step = Step.UNFENCING
        elif move.step in {Step.SUBMITTING, Step.SUBMITTED, Step.CLAIMING, Step.OPENING}:
            step = Step.ENDING
        elif move.step in {Step.ENDING, Step.UNFENCING}:
            step, message = move.step, move.message
        elif move.old_exc is not None:
            return self._unfence_settled(move)
        else:
            raise BurstRefusedError(
                f"the move of {move.run_id} is {move.step.value}: there is nothing to undo",
                hint="hpcscale burst status",
            )
        changed = self.moves.save(move, step=step, message=message, ends_as=Step.FAILED)
        if changed is None:  # it went on meanwhile: perhaps it is too late now
            return self.undo(self.moves.get(move.move_id))
        return self.advance(changed)

    # --- the steps -------------------------------------------------------------------------

    def _fencing(self, move: Move) -> Move | None:
        origin, connection = self._origin(move)
        seen = look(connection, origin, self.ledger)
        if not seen.pending:
            return self._withdraw(move, seen)
        assert seen.status is not None
        if move.fence is None:
            fence = fence_nodes(seen.status, connection.client.facts())
            if not fence:
                return self._fail(move, f"{move.from_site} names no nodes to fence with")
            old_exc = self._before_fence(move, seen.status.exc_nodes, fence)
            if old_exc is None:
                return self._fail(
                    move,
                    "all nodes are excluded already: another `hpcscale burst run` moves it, or its "
                    f"user excluded them (ExcNodeList on {move.from_site})",
                )
            # the old value is on disk before the act that overwrites it
            saved = self.moves.save(move, old_exc=old_exc, fence=fence)
            if saved is None:
                return None
            move = saved
        assert move.fence is not None
        assert origin.job_id is not None
        connection.client.update(origin.job_id, {"ExcNodeList": move.fence})
        seen = look(connection, origin, self.ledger)
        if not seen.pending:
            return self._withdraw(move, seen)
        assert seen.status is not None
        if stands(seen.status, move.fence):
            return self.moves.save(move, step=Step.SUBMITTING)
        return self.moves.save(
            move,
            step=Step.UNFENCING,
            message=f"{move.from_site} did not take the fence (ExcNodeList), so nothing was moved",
        )

    def _submitting(self, move: Move) -> Move | None:
        target = target_attempt(self.ledger, move)
        if target is not None and target.state is not JobState.REFUSED:
            return self._resume_submit(move, target)
        origin, from_connection = self._origin(move)
        seen = look(from_connection, origin, self.ledger)
        if not seen.pending:
            return self._origin_changed(move, seen)
        connection = self._connect(move.to_site)
        asked_at = connection.clock.now()
        try:
            job = self._submit(move, connection)
        except SubmitUnknownError as exc:
            self._say(f"{move.run_id}: {words(exc)}; the job is looked for by its submission id")
            return move
        except UnreachableError as exc:
            if age_s(move.updated_at) > move.boot_timeout_s:
                return self._end(move, f"{move.to_site} gave no answer: {words(exc)}")
            raise
        except HpcscaleError as exc:
            return self._end(move, f"{move.to_site} refused it: {words(exc)}")
        saved = self.moves.save(move, step=Step.SUBMITTED, target=job, asked_at=asked_at)
        if saved is None:
            # somebody else advanced this move while we submitted: ours must not run as well
            now = self.moves.get(move.move_id)
            if now.target != job and now.step is not Step.SUBMITTING:
                end(connection, self.ledger.attempt(job))
        return saved

    def _resume_submit(self, move: Move, target: Attempt) -> Move | None:
        """After a crash or a lost answer: does the cloud job exist?"""
        if target.job_id is None:
            target = self._ask_for(target)
        if target.ended and target.job_id is None:
            return self._end(move, f"{move.to_site}: {target.reason}")
        if target.job_id is None:
            return move
        return self.moves.save(
            move,
            step=Step.SUBMITTED,
            target=target.submission_id,
            asked_at=self._connect(move.to_site).clock.now(),
        )

    def _submitted(self, move: Move) -> Move | None:
        if self._cancelled_by_user(move):
            return self._end(move, "its user cancelled it", Step.CANCELLED)
        origin, from_connection = self._origin(move)
        seen = self._keep_fence(move, origin, from_connection)
        if not seen.pending and not seen.gone:
            return self._origin_changed(move, seen)
        target, connection = self._target(move)
        there = look(connection, target, self.ledger)
        if there.gated_at is not None and there.status is not None and not there.over:
            if nodes_up(connection, there.status):
                return self.moves.save(move, step=Step.CLAIMING)
        elif there.status is not None and there.status.state is JobState.CANCELLED:
            return self._end(
                move, f"its job on {move.to_site} was cancelled before it started", Step.CANCELLED
            )
        elif there.over:
            if there.gated_at is not None and there.exit_code == 98:
                return self._end(
                    move, f"{target.ref}: its lease at the gate ran out ({there.word})"
                )
            return self._end(move, f"its job on {move.to_site} ended unstarted: {there.word}")
        elif there.status is not None and (
            there.status.restarts or there.status.state is JobState.NODE_FAIL
        ):
            return self._end(move, f"nodes of {move.to_site} did not boot: {there.word}")
        now = connection.clock.now()
        if move.asked_at and (now - move.asked_at).total_seconds() > move.boot_timeout_s:
            return self._end(
                move,
                f"no start on {move.to_site} within boot_timeout = "
                f"{show_s(move.boot_timeout_s)} ({there.word})",
            )
        return move

    def _claiming(self, move: Move) -> Move | None:
        if self._cancelled_by_user(move):
            return self._end(move, "its user cancelled it", Step.CANCELLED)
        origin, connection = self._origin(move)
        seen = self._keep_fence(move, origin, connection)
        if seen.over and not seen.gone:
            return self._origin_changed(move, seen)
        restarts = seen.status.restarts if seen.status is not None else origin.restarts
        target, _ = self._target(move)
        claim = take(connection.transport, origin, target.submission_id, restarts)
        if claim.owner == target.submission_id:
            return self.moves.save(move, step=Step.OPENING)
        if claim.started and seen.pending:
            # its controller has forgotten the start, and will start it again: without our fence
            return self._end(move, f"it began on {move.from_site}, whose Slurm has forgotten that")
        if claim.started:
            return self._origin_changed(move, seen, started=True)
        return self._end(
            move,
            f"another handover has its claim ({claim.owner}); the fence is left to that",
            Step.WITHDRAWN,
            yielded=True,
        )

    def _opening(self, move: Move) -> Move | None:
        """The claim is ours: the on-prem job starts nothing, whatever Slurm does with it."""
        if self._cancelled_by_user(move):
            return self._end(move, "its user cancelled it", Step.CANCELLED)
        target, connection = self._target(move)
        word = decide(connection.transport, target, Word.OPENED)
        if word is Word.OPENED:
            return self.moves.save(move, step=Step.CANCELLING)
        why = "its lease at the gate ran out" if word is Word.EXPIRED else "its gate was closed"
        return self._end(move, f"{target.ref}: {why} before it was opened")

    def _cancelling(self, move: Move) -> Move | None:
        """The gate is open. What is left on-prem is cleaned up, once user code has begun."""
        if self._cancelled_by_user(move):
            return self._end(move, "its user cancelled it", Step.CANCELLED)
        target, to_connection = self._target(move)
        there = self._until_begun(to_connection, target)
        if there.reported is None:
            if not there.over:
                return move
            # it died between the gate and its command; nobody may bring it back from now on
            if take(to_connection.transport, target, CLOSED).owner == CLOSED:
                return self._end(move, f"{target.ref} ended before it began: {there.word}")
        origin, connection = self._origin(move)
        seen = look(connection, origin, self.ledger)
        if not seen.over:
            if not move.cancel_asked:
                saved = self.moves.save(move, cancel_asked=True)
                if saved is None:
                    return None
                move = saved
            end(connection, origin)
            seen = self._until_over(connection, origin)
            if not seen.over:
                return move
        elif (
            not move.cancel_asked
            and seen.status is not None
            and (seen.status.state is JobState.CANCELLED)
        ):
            return self._end(
                move, f"its job on {move.from_site} was ended ({seen.word})", Step.CANCELLED
            )
        message = f"its job on {move.from_site} was gone already" if seen.gone else ""
        self.ledger.event(
            move.run_id,
            "attempt.handed_over",
            {"to": str(target.ref)},
            submission_id=origin.submission_id,
        )
        if seen.status is not None:
            told = msgspec.structs.replace(seen.status, reason=f"moved to {target.ref}")
            record(self.ledger, connection, origin, told)
        idle_s = note_gate_idle(self.ledger, target, there.gated_at, there.begun_at)
        return self.moves.save(move, step=Step.MOVED, message=message, gate_idle_s=idle_s)

    def _moved(self, move: Move) -> Move | None:
        self._watch_origin(move)
        target, connection = self._target(move)
        if not target.ended:
            if target.state is not JobState.UNKNOWN:
                return move if move.lost_at is None else self.moves.save(move, lost_at=None)
            # neither Slurm nor the script tells its end: no guess, for a while
            if move.lost_at is None:
                return self.moves.save(move, lost_at=utc_now())
            if age_s(move.lost_at) < LOST_S:
                return move
            message = f"{target.ref} is no longer known to Slurm; its end was not seen"
            return self.moves.save(move, step=Step.DONE, message=message)
        message = move.message
        try:
            message = bring_home(self.ledger, target, connection) or message
        except UnreachableError:
            raise
        except HpcscaleError as exc:
            message = f"results could not be fetched: {words(exc)}"
        return self.moves.save(move, step=Step.DONE, message=message)

    def _ending(self, move: Move) -> Move | None:
        target = target_attempt(self.ledger, move)
        if target is not None and target.state is not JobState.REFUSED:
            connection = self._connect(move.to_site)
            if not self._never_begins(move, target, connection):
                message = f"too late to take it back: it has begun on {move.to_site}"
                return self.moves.save(
                    move, step=Step.CANCELLING, target=target.submission_id, message=message
                )
            if target.job_id is None and not target.ended:
                target = self._ask_for(target)
                if target.job_id is None and not target.ended:
                    return move  # whether it exists is not known yet
            if target.job_id is not None:
                seen = look(connection, target, self.ledger)
                if not seen.over:
                    end(connection, target)
                    seen = self._until_over(connection, target)
                if not seen.over:
                    return move
                settle_cost(self.ledger, target)
                if seen.begun_at is None and move.gate_idle_s is None:
                    until = self.ledger.attempt(target.submission_id).end_time or seen.ended_at
                    idle_s = note_gate_idle(self.ledger, target, seen.gated_at, until)
                    if idle_s is not None:
                        saved = self.moves.save(move, gate_idle_s=idle_s)
                        if saved is None:
                            return None
                        move = saved
        if move.ends_as is Step.FAILED:
            if target is not None:
                origin, from_connection = self._origin(move)
                revoke(from_connection.transport, origin, target.submission_id)
            return self.moves.save(move, step=Step.UNFENCING)
        if move.ends_as is Step.CANCELLED:
            origin, from_connection = self._origin(move)
            end(from_connection, origin)
            if not self._until_over(from_connection, origin).over:
                return move
        return self.moves.save(move, step=move.ends_as)

    def _unfencing(self, move: Move) -> Move | None:
        origin, connection = self._origin(move)
        seen = look(connection, origin, self.ledger)
        if seen.pending and move.old_exc is not None and move.fence is not None:
            self._lift(move, seen, connection, origin)
            seen = look(connection, origin, self.ledger)
            if seen.pending and not self._lifted(move, seen):
                self._say(f"{move.run_id}: {move.from_site} has not lifted the fence; tried again")
                return move
        return self._fail(move, move.message)

    def _unfence_settled(self, move: Move) -> Move:
        """The move is over, yet its fence may stand (somebody edited, a controller came back)."""
        origin, connection = self._origin(move)
        seen = look(connection, origin, self.ledger)
        if not seen.pending or seen.status is None or not stands(seen.status, move.fence or ""):
            raise BurstRefusedError(
                f"no fence stands on {origin.ref} ({seen.word})", hint="hpcscale burst status"
            )
        target = target_attempt(self.ledger, move)
        if target is not None and move.step is Step.FAILED:
            revoke(connection.transport, origin, target.submission_id)
        self._lift(move, seen, connection, origin)
        return move
