"""A move into a cloud partition of the same controller: ``scontrol update Partition`` of the job.

It is one job in one queue all the time, so there is nothing to claim and no gate: the controller
itself lets it start once, in the partition that it is in at that moment. What is left to do is to
look afterwards which one that is, and to count its hours at that one's price. The exit code of the
update decides nothing; slurmctld forgets its last seconds when it dies, so the partition is looked
at until the job has started.
"""

from hpcscale.burst.acts import KEPT_S, age_s
from hpcscale.burst.follow import Follow
from hpcscale.burst.moves import TAKEN_BACK, Move, Step
from hpcscale.burst.sight import Sight, end, look
from hpcscale.burst.within import never_starts
from hpcscale.burst.words import show_s
from hpcscale.connect import Connection
from hpcscale.errors import BurstRefusedError
from hpcscale.ledger import Attempt
from hpcscale.site import split_target
from hpcscale.slurm.types import JobState


class Shift(Follow):
    """The steps SHIFTING and RESTORING, and MOVED of a job that moved within its controller."""

    def _shifting(self, move: Move) -> Move | None:
        origin, connection = self._origin(move)
        seen = look(connection, origin, self.ledger, any_start=True)
        if self._cancelled_by_user(move):
            return self._end_shift(move, origin, connection, "its user cancelled it")
        if move.old_partition is None:
            if not seen.pending or seen.status is None:
                return self._elsewhere(move, origin, seen)
            # what is overwritten is on disk before the act, and no hour there at the old price
            saved = self.moves.save(
                move,
                old_partition=seen.status.partition,
                old_gpus=origin.gpus,
                old_gpu_hour_usd=origin.gpu_hour_usd,
            )
            if saved is None:
                return None
            move = saved
        said = ""
        if seen.pending and not _there(move, seen):
            self.ledger.set_terms(origin, move.gpus, move.gpu_hour_usd, move.to_site)
            assert origin.job_id is not None
            said = connection.client.change(origin.job_id, {"Partition": _partition(move)})
            seen = look(connection, origin, self.ledger, any_start=True)
        if _there(move, seen):
            self.ledger.set_terms(origin, move.gpus, move.gpu_hour_usd, move.to_site)
            asked_at = connection.clock.now()
            return self.moves.save(move, step=Step.MOVED, target=move.origin, asked_at=asked_at)
        if seen.pending:
            self._old_terms(move, origin)
            why = f": {said}" if said else ", and did not say why"
            return self.moves.save(
                move,
                step=Step.FAILED,
                refused=True,
                message=f"{move.from_site} did not take it into partition {_partition(move)}{why}; "
                "its owner must be allowed to: scontrol update "
                f"JobId={origin.job_id} Partition={_partition(move)}",
            )
        return self._elsewhere(move, origin, seen)

    def _moved(self, move: Move) -> Move | None:
        if not move.same_job:
            return super()._moved(move)
        origin, connection = self._origin(move)
        seen = look(connection, origin, self.ledger, any_start=True)
        if seen.status is not None and not _there(move, seen):
            return self._taken_back(move, origin, seen)  # also where it has ended there since
        if seen.status is not None:
            # a slower process may have written the old ones after a look that was true once
            self.ledger.set_terms(origin, move.gpus, move.gpu_hour_usd, move.to_site)
        if seen.status is None or seen.over:
            return self._to_its_end(move, origin, connection)
        if not seen.pending or seen.reported is not None:
            return move
        if never_starts(seen.status.reason):
            message = (
                f"Slurm does not start it in partition {_partition(move)} ({seen.status.reason})"
            )
            return self.moves.save(move, step=Step.RESTORING, message=message, refused=True)
        now = connection.clock.now()
        if move.asked_at and (now - move.asked_at).total_seconds() > move.boot_timeout_s:
            message = (
                f"no start in partition {_partition(move)} within boot_timeout = "
                f"{show_s(move.boot_timeout_s)} ({seen.word})"
            )
            return self.moves.save(move, step=Step.RESTORING, message=message)
        return move

    def _restoring(self, move: Move) -> Move | None:
        origin, connection = self._origin(move)
        seen = look(connection, origin, self.ledger, any_start=True)
        if seen.pending and _there(move, seen) and seen.reported is None:
            assert origin.job_id is not None
            old = move.old_partition or ""
            said = connection.client.change(origin.job_id, {"Partition": old})
            seen = look(connection, origin, self.ledger, any_start=True)
            if seen.pending and _there(move, seen):
                self._say(
                    f"{move.run_id}: {move.from_site} has not put it back into partition {old}"
                    f"{f' ({said})' if said else ''}; tried again; an operator there may: "
                    f"scontrol update JobId={origin.job_id} Partition={old}"
                )
                return move
        if _there(move, seen) or seen.status is None or seen.over:
            # it has begun there meanwhile, or is over: to its end
            message = f"too late to take it back: {seen.word} in partition {_partition(move)}"
            return self.moves.save(
                move, step=Step.MOVED, target=move.origin, message=message, refused=False
            )
        self._old_terms(move, origin)
        if not seen.pending:
            return self._elsewhere(move, origin, seen)
        if move.refused:  # not to be tried there again, so there is nothing to rest from
            return self.moves.save(move, step=Step.FAILED, target=None)
        cleared = self.moves.save(move, target=None)
        return None if cleared is None else self._fail(cleared, cleared.message)

    def undo_shift(self, move: Move) -> Move:
        """Put a job back into its old partition, at its user's wish, while it waits.

        Raises:
            BurstRefusedError: it has started, or there is nothing to undo.
        """
        if move.step.settled:
            raise BurstRefusedError(
                f"the move of {move.run_id} is {move.step.value}: there is nothing to undo",
                hint="hpcscale burst status",
            )
        origin, connection = self._origin(move)
        seen = look(connection, origin, self.ledger, any_start=True)
        if not seen.pending or seen.reported is not None:
            raise BurstRefusedError(
                f"{move.run_id} is {seen.word} already",
                hint=f"hpcscale cancel {move.run_id} ends it",
            )
        if move.step is not Step.RESTORING:
            message = TAKEN_BACK
            changed = self.moves.save(move, step=Step.RESTORING, message=message)
            if changed is None:  # another process was there first: perhaps it is too late now
                return self.undo_shift(self.moves.get(move.move_id))
            move = changed
        return self.advance(move)

    def cancel_shift(self, move: Move) -> Move:
        """End the job at its user's wish; the event that says so is written already."""
        origin, connection = self._origin(move)
        end(connection, origin)
        self._until_over(connection, origin)
        return self.advance(self.moves.get(move.move_id))

    def watch_shift(self, move: Move) -> None:
        """A controller that died may have forgotten that it was put back: then it is paid for."""
        if move.old_partition is None:
            return
        origin, connection = self._origin(move)
        seen = look(connection, origin)
        if _there(move, seen):
            self.ledger.set_terms(origin, move.gpus, move.gpu_hour_usd, move.to_site)
        elif seen.status is not None:
            self._old_terms(move, origin)

    def advance(self, move: Move) -> Move:
        """See ``Handover``."""
        raise NotImplementedError

    # --- what the steps have in common

    def _end_shift(
        self, move: Move, origin: Attempt, connection: Connection, why: str
    ) -> Move | None:
        end(connection, origin)
        seen = self._until_over(connection, origin)
        if not seen.over:
            return move
        if _there(move, seen) and move.old_partition is not None:
            # perhaps another ledger has moved it there
            self.ledger.set_terms(origin, move.gpus, move.gpu_hour_usd, move.to_site)
            return self.moves.save(move, step=Step.MOVED, target=move.origin, message=why)
        self._old_terms(move, origin)
        return self.moves.save(move, step=Step.CANCELLED, message=why)

    def _elsewhere(self, move: Move, origin: Attempt, seen: Sight) -> Move | None:
        """It does not wait any more, and did not start where it was to go."""
        self._old_terms(move, origin)
        if seen.status is None:
            message, step = f"{origin.ref} is no longer known to Slurm", Step.WITHDRAWN
        elif seen.status.state is JobState.CANCELLED:
            message, step = f"{origin.ref} was cancelled", Step.CANCELLED
        else:
            where = seen.status.partition or "its partition"
            message, step = f"it started in {where} ({seen.word})", Step.WITHDRAWN
        return self.moves.save(move, step=step, message=message, target=None)

    def _taken_back(self, move: Move, origin: Attempt, seen: Sight) -> Move | None:
        """It was moved, and is in another partition now."""
        if not seen.pending:
            return self._elsewhere(move, origin, seen)
        assert seen.status is not None
        if age_s(move.updated_at) < KEPT_S:
            self._say(
                f"{move.run_id}: it is back in partition {seen.status.partition}, as after a "
                "controller's crash; moved again"
            )
            return self.moves.save(move, step=Step.SHIFTING, target=None)
        self._old_terms(move, origin)
        cleared = self.moves.save(move, target=None)
        message = f"it was put back into partition {seen.status.partition}"
        return None if cleared is None else self._fail(cleared, message)

    def _old_terms(self, move: Move, origin: Attempt) -> None:
        if move.old_partition is None or self.moves.get(move.move_id).revision != move.revision:
            return
        origin = self.ledger.attempt(origin.submission_id)
        price = move.old_gpu_hour_usd
        if origin.earlier_s and origin.gpu_hour_usd == move.gpu_hour_usd:
            # it has run there, and goes on here: each hour at its own price
            self.ledger.reprice(origin, move.old_gpus, price, origin.earlier_s, move.from_site)
        else:
            self.ledger.set_terms(origin, move.old_gpus, price, move.from_site)


def _partition(move: Move) -> str:
    return split_target(move.to_site)[1] or ""


def _there(move: Move, seen: Sight) -> bool:
    return seen.status is not None and seen.status.partition == _partition(move)
