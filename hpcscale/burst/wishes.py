"""What a job's user may wish of a move: that it is taken back, or that both jobs end."""

from hpcscale.burst.moves import FOLLOWED, FORWARD, TAKEN_BACK, Move, Step
from hpcscale.burst.shift import Shift
from hpcscale.errors import BurstRefusedError

BY_USER = "its user cancelled it"


class Wishes(Shift):
    """`hpcscale burst undo` and `hpcscale cancel`, whatever step comes next."""

    def undo(self, move: Move) -> Move:
        """Take a move back at its user's wish: cloud job ended, fence set back.

        Raises:
            BurstRefusedError: it is too late, the job runs in the cloud.
        """
        if move.same_job:
            return self.undo_shift(move)
        message = TAKEN_BACK
        if move.step in FOLLOWED or (move.step is Step.CANCELLING and move.cancel_asked):
            raise _too_late(move)
        if move.step in FORWARD:
            step = Step.ENDING
        elif not move.step.settled:
            step, message = move.step, move.message
        elif move.fence is not None:
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

    def cancel(self, move: Move) -> Move:
        """End the job at both sites at its user's wish, wherever its move stands.

        Raises:
            UnreachableError: the wish is recorded, and the next run goes on with it.
        """
        self.ledger.event(move.run_id, "attempt.cancel", {"by": "its user"})
        if move.step.settled:
            return move
        if move.same_job:
            return self.cancel_shift(move)
        if move.step in FOLLOWED:
            self._stop_both(move)
            return self.advance(self.moves.get(move.move_id))
        changed = self.moves.save(move, step=Step.ENDING, message=BY_USER, ends_as=Step.CANCELLED)
        if changed is None:
            return self.cancel(self.moves.get(move.move_id))
        return self.advance(changed)


def _too_late(move: Move) -> BurstRefusedError:
    return BurstRefusedError(
        f"{move.run_id} already runs on {move.to_site}",
        hint=f"hpcscale cancel {move.run_id} ends it there",
    )
