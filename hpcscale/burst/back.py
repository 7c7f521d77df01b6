"""The handover backwards: a move that is taken back, by its user or because it cannot be."""

from hpcscale.burst.acts import Acts, lists
from hpcscale.burst.claims import revoke
from hpcscale.burst.fence import stands
from hpcscale.burst.moves import Move, Step, target_attempt
from hpcscale.burst.results import note_gate_idle, settle_cost
from hpcscale.burst.sight import Sight, end, look
from hpcscale.errors import BurstRefusedError
from hpcscale.ledger import Attempt
from hpcscale.slurm.types import JobState


class Back(Acts):
    """The steps ENDING and UNFENCING."""

    def _ending(self, move: Move) -> Move | None:
        target = target_attempt(self.ledger, move)
        if target is not None and target.state is not JobState.REFUSED:
            connection = self._connect(move.to_site)
            if not self._never_begins(move, target, connection):
                message = f"too late to take it back: it has begun on {move.to_site}"
                return self.moves.save(
                    move,
                    step=Step.CANCELLING,
                    target=target.submission_id,
                    message=message,
                    begun=True,  # else a start that cannot report would be taken back for ever
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
        origin, from_connection = self._origin(move)
        if target is not None and move.ends_as is not Step.CANCELLED:
            # a withdrawn move's too: a run beside this one may have taken the claim meanwhile
            revoke(from_connection.transport, origin, target.submission_id)
        if move.ends_as is Step.FAILED:
            return self.moves.save(move, step=Step.UNFENCING)
        if move.ends_as is Step.CANCELLED:
            end(from_connection, origin)
            if not self._until_over(from_connection, origin).over:
                return move
        elif move.fence is not None:
            seen = look(from_connection, origin, self.ledger)
            if self._waits_in_part(move, origin, seen) and not move.yielded:
                self._lift(move, seen, from_connection, origin)
                if self._waits_in_part(move, origin, look(from_connection, origin, self.ledger)):
                    return move
            elif self._runs_unfenced(move, origin, seen):
                self._remove_note(seen, from_connection, origin)
        return self.moves.save(move, step=move.ends_as)

    def _runs_unfenced(self, move: Move, origin: Attempt, seen: Sight) -> bool:
        """Whether it runs, and its comment is to tell of no fence.

        What was fenced and runs waits behind its fence once it is requeued (a record that is
        COMPLETING does so in a moment): by the note that fence is found then. Of an array without a
        record that waits nobody sees which of them are fenced.
        """
        if seen.pending or seen.over or seen.status is None or origin.array_size is not None:
            return False
        return not stands(seen.status, move.fence or "")

    def _unfencing(self, move: Move) -> Move | None:
        origin, connection = self._origin(move)
        seen = look(connection, origin, self.ledger)
        if move.fence is not None and (seen.pending or self._waits_in_part(move, origin, seen)):
            self._lift(move, seen, connection, origin)
            seen = look(connection, origin, self.ledger)
            waits = seen.pending or self._waits_in_part(move, origin, seen)
            if waits and not self._lifted(move, seen):
                self._say(
                    f"{move.run_id}: {move.from_site} has not lifted the fence; tried again; an "
                    f"operator there may: scontrol update JobId={origin.job_id} "
                    f"ExcNodeList={lists(move).user}"
                )
                return move
        return self._fail(move, move.message)

    def _waits_in_part(self, move: Move, origin: Attempt, seen: Sight) -> bool:
        """Whether some elements of an array have begun, while others wait behind our fence."""
        if origin.array_size is None or move.fence is None or seen.status is None:
            return False
        return not seen.pending and stands(seen.status, move.fence)

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
