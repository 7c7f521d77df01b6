"""The handover: the only code that moves a job, one recorded step after the other.

Order: fence the on-prem job, submit in the cloud, wait until all cloud nodes are up and the script
has reported in, and only then cancel the on-prem job. Whatever fails before that ends the cloud
job, waits until it is terminal, and sets the fence back as it was. Each step is in the ledger
before its act, each act may be repeated, and none is done on a missing answer: a run that is
killed anywhere goes on with the next one.
"""

import datetime as dt
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from hpcscale.burst.decide import show_s
from hpcscale.burst.fence import fence_nodes, restored, same_nodes, stands
from hpcscale.burst.moves import Move, Moves, Step, target_attempt
from hpcscale.burst.offer import spec_for
from hpcscale.burst.results import bring_home, settle_cost
from hpcscale.burst.sight import Sight, end, look, nodes_up, record, words
from hpcscale.connect import Connection
from hpcscale.errors import (
    BurstRefusedError,
    HpcscaleError,
    SubmitUnknownError,
    UnreachableError,
)
from hpcscale.ledger import Attempt, Ledger, Role, utc_now
from hpcscale.observe import observe
from hpcscale.slurm.types import JobState

SETTLE_S = 12.0  # a cancelled job is usually terminal by then; else the next tick looks again
WATCH_ORIGIN_S = 900.0  # a controller that lost the cancel shows the job again soon
LOST_S = 600.0  # a job that nobody knows for this long will not come back
MAX_BACKOFF = 8


class Handover:
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
        self.ledger = ledger
        self.moves = Moves(ledger)
        self._connect = connect
        self._folder = folder
        self._say = say
        self._steps: dict[Step, Callable[[Move], Move | None]] = {
            Step.FENCING: self._fencing,
            Step.SUBMITTING: self._submitting,
            Step.SUBMITTED: self._submitted,
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
        elif move.step in {Step.SUBMITTING, Step.SUBMITTED}:
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
            # the old value is on disk before the act that overwrites it
            saved = self.moves.save(move, old_exc=seen.status.exc_nodes, fence=fence)
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
            if _age_s(move.updated_at) > move.boot_timeout_s:
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
        seen = look(from_connection, origin, self.ledger)
        if not seen.pending and not seen.gone:
            return self._origin_changed(move, seen)
        if seen.status is not None and move.fence and not stands(seen.status, move.fence):
            # slurmctld forgets its last seconds when it dies, or somebody changed the list
            self._say(f"{move.run_id}: the fence on {move.from_site} is gone, set again")
            assert origin.job_id is not None
            from_connection.client.update(origin.job_id, {"ExcNodeList": move.fence})
            seen = look(from_connection, origin, self.ledger)
            if not seen.pending and not seen.gone:
                return self._origin_changed(move, seen)
        target, connection = self._target(move)
        there = look(connection, target, self.ledger, any_start=True)
        if there.reported is not None:
            # it asked for --wait-all-nodes, so a start that is past was one on all nodes
            if (
                there.status is None
                or there.over
                or there.status.restarts
                or nodes_up(connection, there.status)
            ):
                return self.moves.save(move, step=Step.CANCELLING)
        elif there.status is not None and there.status.state is JobState.CANCELLED:
            return self._end(
                move, f"its job on {move.to_site} was cancelled before it started", Step.CANCELLED
            )
        elif there.over:
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

    def _cancelling(self, move: Move) -> Move | None:
        if self._cancelled_by_user(move):
            return self._end(move, "its user cancelled it", Step.CANCELLED)
        origin, connection = self._origin(move)
        seen = look(connection, origin, self.ledger)
        if seen.pending:
            end(connection, origin, pending_only=True)
            seen = self._until_over(connection, origin)
        if seen.over and not seen.started:
            message = ""
            if seen.gone:
                message = f"its job on {move.from_site} was gone already"
            target = self.ledger.attempt(move.target or "")
            self.ledger.event(
                move.run_id,
                "attempt.handed_over",
                {"to": str(target.ref)},
                submission_id=origin.submission_id,
            )
            if seen.status is not None:
                told = msgspec.structs.replace(seen.status, reason=f"moved to {target.ref}")
                record(self.ledger, connection, origin, told)
            return self.moves.save(move, step=Step.MOVED, message=message)
        if seen.started:
            return self._origin_changed(move, seen)
        return move

    def _moved(self, move: Move) -> Move | None:
        self._watch_origin(move)
        target, connection = self._target(move)
        if not target.ended:
            if target.state is not JobState.UNKNOWN:
                return move if move.lost_at is None else self.moves.save(move, lost_at=None)
            # neither Slurm nor the script tells its end: no guess, for a while
            if move.lost_at is None:
                return self.moves.save(move, lost_at=utc_now())
            if _age_s(move.lost_at) < LOST_S:
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
        if target is not None and not target.ended:
            connection = self._connect(move.to_site)
            if target.job_id is None:
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
        if move.ends_as is Step.FAILED:
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

    # --- parts of steps ----------------------------------------------------------------------

    def _submit(self, move: Move, connection: Connection) -> str:
        """Render for the target and submit through submitit; the submission id."""
        from hpcscale.executor import HpcscaleExecutor
        from hpcscale.render import render

        run = self.ledger.run(move.run_id)
        origin = self.ledger.attempt(move.origin)
        rendered = render(spec_for(run.spec, origin.time_limit_s, connection.site), connection.site)
        executor = HpcscaleExecutor(
            self._folder, site=move.to_site, connection=connection, ledger=self.ledger
        )
        job = executor.submit_rendered(rendered, run=run, role=Role.BURST)
        return job.submission_id

    def _ask_for(self, target: Attempt) -> Attempt:
        """An attempt whose sbatch gave no answer: by its submission id it exists, or never will."""
        seen = observe(self.ledger, self._connect, [target])
        for site, why in seen.failed.items():
            raise UnreachableError(why, where=f"site {site}")
        return self.ledger.attempt(target.submission_id)

    def _cancelled_by_user(self, move: Move) -> bool:
        """Whether `hpcscale cancel` named one of its jobs since the move began."""
        return any(
            event.kind == "attempt.cancel" and move.created_at and event.at >= move.created_at
            for event in self.ledger.events(move.run_id)
        )

    def _origin_changed(self, move: Move, seen: Sight) -> Move | None:
        """The on-prem job is not waiting any more: its site or its user decided."""
        if seen.started and not (seen.status and seen.status.state is JobState.CANCELLED):
            return self._end(
                move,
                f"it started on {move.from_site} ({seen.word}), so its job on "
                f"{move.to_site} is ended",
                Step.WITHDRAWN,
            )
        return self._end(
            move, f"its job on {move.from_site} was ended ({seen.word})", Step.CANCELLED
        )

    def _withdraw(self, move: Move, seen: Sight) -> Move | None:
        step = Step.WITHDRAWN if seen.started else Step.CANCELLED
        return self.moves.save(
            move,
            step=step,
            message=f"its job on {move.from_site} is {seen.word}: nothing was moved",
        )

    def _end(self, move: Move, message: str, ends_as: Step = Step.FAILED) -> Move | None:
        return self.moves.save(move, step=Step.ENDING, message=message, ends_as=ends_as)

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

    def _lift(self, move: Move, seen: Sight, connection: Connection, origin: Attempt) -> None:
        assert seen.status is not None
        assert origin.job_id is not None
        value = restored(seen.status.exc_nodes, move.old_exc or "", move.fence or "")
        connection.client.update(origin.job_id, {"ExcNodeList": value})

    def _lifted(self, move: Move, seen: Sight) -> bool:
        assert seen.status is not None
        if move.fence and move.old_exc is not None and same_nodes(move.fence, move.old_exc):
            return True  # the user had excluded every node
        return not stands(seen.status, move.fence or "")

    def _unfence_settled(self, move: Move) -> Move:
        """The move is over, yet its fence may stand (somebody edited, a controller came back)."""
        origin, connection = self._origin(move)
        seen = look(connection, origin, self.ledger)
        if not seen.pending or seen.status is None or not stands(seen.status, move.fence or ""):
            raise BurstRefusedError(
                f"no fence stands on {origin.ref} ({seen.word})", hint="hpcscale burst status"
            )
        self._lift(move, seen, connection, origin)
        return move

    def _watch_origin(self, move: Move) -> None:
        """A controller that died may have forgotten the cancel: the job must not run twice."""
        if _age_s(move.updated_at) > WATCH_ORIGIN_S:
            return
        origin, connection = self._origin(move)
        seen = look(connection, origin)
        if not seen.over:
            self._say(f"{move.run_id}: {origin.ref} is back ({seen.word}); ended again")
            self.ledger.event(
                move.run_id, "move.origin_back", {"state": seen.word}, submission_id=move.origin
            )
            end(connection, origin)

    def _until_over(self, connection: Connection, attempt: Attempt) -> Sight:
        """Look until the job is terminal, for a short time."""
        deadline = time.monotonic() + SETTLE_S
        while True:
            seen = look(connection, attempt, self.ledger)
            if seen.over or time.monotonic() > deadline:
                return seen
            time.sleep(0.3)

    def _origin(self, move: Move) -> tuple[Attempt, Connection]:
        return self.ledger.attempt(move.origin), self._connect(move.from_site)

    def _target(self, move: Move) -> tuple[Attempt, Connection]:
        return self.ledger.attempt(move.target or ""), self._connect(move.to_site)

    def _tell(self, move: Move) -> None:
        text = f"{move.run_id} ({move.name}): {move.step.value}"
        if move.step in {Step.SUBMITTING, Step.SUBMITTED, Step.MOVED}:
            text += f" to {move.to_site}"
        self._say(text + (f": {move.message}" if move.message else ""))


def _age_s(since: dt.datetime | None) -> float:
    return (utc_now() - since).total_seconds() if since else 0.0
