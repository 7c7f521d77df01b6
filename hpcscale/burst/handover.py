"""The handover: the only code that moves a job, one recorded step after the other.

Order: submit in the cloud, wait until its gang stands at the gate, fence the on-prem job, take its
claim, open the gate, and once user code has begun cancel the on-prem job as clean-up. (Fence-first:
fence, submit, claim, open, and wait for nothing but user code.) Until the gate is open the on-prem
job exists, and can have its place back. Correctness rests on two files made by ``link(2)``
(``burst.claims``); fence, ledger and lock only save place, money and time. The protocol with its
crash points is docs/handover.md. Steps backwards are in ``burst.back``, those after the clean-up in
``burst.follow``, what its user wishes meanwhile in ``burst.wishes``.
"""

from collections.abc import Callable
from pathlib import Path

import msgspec

from hpcscale.burst import held
from hpcscale.burst.acts import age_s, left
from hpcscale.burst.arrays import cancelled_elements, element_id
from hpcscale.burst.claims import CLOSED, Word, decide, take
from hpcscale.burst.fence import stands
from hpcscale.burst.home import Home, at_home
from hpcscale.burst.moves import FORWARD, Move, Step, target_attempt
from hpcscale.burst.policy import Order
from hpcscale.burst.results import note_gate_idle
from hpcscale.burst.sight import Sight, end, look, nodes_up, record, words
from hpcscale.burst.stuck import STANDS_IN, dependents
from hpcscale.burst.wishes import BY_USER, Wishes
from hpcscale.burst.words import show_s
from hpcscale.connect import Connection
from hpcscale.errors import HpcscaleError, SubmitUnknownError, UnreachableError
from hpcscale.ledger import MOVED_TO, Attempt, Ledger
from hpcscale.reports import OWN_CODES
from hpcscale.slurm.types import JobState, JobStatus
from hpcscale.units import parse_array


def _gone(move: Move, seen: Sight) -> bool:
    """Before its claim is taken: one that runs may have begun nothing yet."""
    return seen.over and left(move, seen)


def _ended(move: Move, seen: Sight) -> bool:
    """Once its claim is ours: by itself it can only have ended in vain (97, 98)."""
    if seen.status is not None:
        return seen.status.state is JobState.CANCELLED
    return move.kept and seen.exit_code not in OWN_CODES


class Handover(Wishes):
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
            Step.RELEASING: self._releasing,
            Step.ENDING: self._ending,
            Step.UNFENCING: self._unfencing,
            Step.SHIFTING: self._shifting,
            Step.RESTORING: self._restoring,
        }

    def advance(self, move: Move) -> Move:
        """Take a move as far as it goes now.

        A moved job's end is read from the ledger, which ``observe`` keeps up to date.

        Raises:
            UnreachableError: no answer from a site; the move stands where the ledger says, and the
                next call tries again.
        """
        while not move.step.settled:
            if move.step in FORWARD and self._cancelled_by_user(move):
                after = self._end(move, BY_USER, Step.CANCELLED)
            else:
                after = self._steps[move.step](move)
            if after is None:  # another process took the step
                return self.moves.get(move.move_id)
            if after.step is move.step:
                return after
            self._tell(after)
            move = after
        return move

    # --- the steps -------------------------------------------------------------------------

    def _submitting(self, move: Move) -> Move | None:
        target = target_attempt(self.ledger, move)
        if target is not None and target.state is not JobState.REFUSED:
            return self._resume_submit(move, target)
        return self._submit_anew(move)

    @at_home()
    def _submit_anew(self, home: Home) -> Move | None:
        move, seen = home.move, home.seen
        if seen.status is not None and move.fence is None:
            found = self._fence_of(move, seen.status, home.connection)
            if isinstance(found, str):  # known before anything is paid for
                return self._end(move, found)
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

    @at_home()
    def _submitted(self, home: Home) -> Move | None:
        move = home.move
        if move.order is Order.FENCE_FIRST:
            return self.moves.save(move, step=Step.CLAIMING)
        if move.line is not None:
            looked = self._on_spot(move)
            if looked is None:
                return None
            move = looked
        target, connection = self._target(move)
        there = look(connection, target, self.ledger)
        if there.gated_at is not None and there.status is not None and not there.over:
            if nodes_up(connection, there.status):
                return self.moves.save(move, step=Step.FENCING)
        elif there.gated_at is not None and there.over and there.exit_code == 98:
            return self._end(move, f"{target.ref}: its lease at the gate ran out ({there.word})")
        return self._never_came(move, connection, there) or move

    def _never_came(self, move: Move, connection: Connection, there: Sight) -> Move | None:
        """End a move whose cloud job ended, failed to boot or takes too long; None: wait on."""
        if there.status is not None and there.status.state is JobState.CANCELLED:
            return self._end(
                move, f"its job on {move.to_site} was cancelled before it started", Step.CANCELLED
            )
        if there.over:
            return self._end(move, f"its job on {move.to_site} ended unstarted: {there.word}")
        if move.line is not None and not move.netted and there.status is not None:
            return None  # its line says what follows
        if there.status is not None and (
            there.status.restarts > move.taken + bool(move.netted)
            or there.status.state is JobState.NODE_FAIL
        ):
            return self._end(move, f"nodes of {move.to_site} did not boot: {there.word}")
        now = connection.clock.now()
        if move.asked_at and (now - move.asked_at).total_seconds() > move.boot_timeout_s:
            return self._end(
                move,
                f"no start on {move.to_site} within boot_timeout = "
                f"{show_s(move.boot_timeout_s)} ({there.word})",
            )
        return None

    def _fencing(self, move: Move) -> Move | None:
        origin, connection = self._origin(move)
        after = Step.CLAIMING if move.target else Step.SUBMITTING
        seen = look(connection, origin, self.ledger)
        if left(move, seen):
            return self._origin_changed(move, seen)
        if seen.status is None:  # forgotten together with its submission: its claim alone counts
            return self.moves.save(move, step=after)
        if move.fence is None:
            found = self._fence_of(move, seen.status, connection)
            if isinstance(found, str):
                return self._end(move, found)
            # the old value is on disk before the act that overwrites it
            saved = self.moves.save(
                move, old_exc=found.user, blamed=found.blamed, fence=found.fence
            )
            if saved is None:
                return None
            move = saved
        return self._fenced(move, after)

    @at_home()
    def _fenced(self, home: Home, after: Step) -> Move | None:
        move, seen = home.move, home.seen
        if seen.status is None or stands(seen.status, move.fence or ""):
            return self.moves.save(move, step=after, fenced=True)
        return self._end(
            move,
            f"{move.from_site} did not take the fence, so nothing was moved; owners of waiting "
            "jobs must be allowed to change ExcNodeList (its job_submit plugin?): scontrol update "
            f"JobId={home.origin.job_id} ExcNodeList={move.fence}",
        )

    @at_home(over=_gone)
    def _claiming(self, home: Home) -> Move | None:
        move, origin, connection, seen = home.move, home.origin, home.connection, home.seen
        # of a job that is gone no start is known to be over
        restarts = seen.status.restarts if seen.status is not None else 0
        target, _ = self._target(move)
        self._note_fence(move, origin, connection)  # it names whom to ask, from now on
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
        target, connection = self._target(move)
        self._pass_on_cancels(move, target, connection)
        word = decide(connection.transport, target, Word.OPENED)
        if word is Word.OPENED:
            return self.moves.save(move, step=Step.CANCELLING)
        why = "its lease at the gate ran out" if word is Word.EXPIRED else "its gate was closed"
        return self._end(move, f"{target.ref}: {why} before it was opened")

    def _pass_on_cancels(self, move: Move, target: Attempt, connection: Connection) -> None:
        """Elements that their user has cancelled on-prem begin nowhere."""
        array = self.ledger.run(move.run_id).spec.array
        if array is None or move.task is not None:
            return
        origin, from_connection = self._origin(move)
        for task in cancelled_elements(from_connection, origin, parse_array(array)[0]):
            connection.client.cancel(element_id(target, task))
            self.ledger.event(
                move.run_id, "move.element_cancelled", {"task": task}, submission_id=move.origin
            )

    def _cancelling(self, move: Move) -> Move | None:
        """The gate is open. What is left on-prem is cleaned up, once user code has begun."""
        target, to_connection = self._target(move)
        there = self._until_begun(to_connection, target)
        if there.reported is None and not move.begun:
            if not there.over:
                held.settle(self.ledger, to_connection, target)
                return self._until_it_begins(move, to_connection, there)
            # it died between the gate and its command; nobody may bring it back from now on
            if take(to_connection.transport, target, CLOSED).owner == CLOSED:
                ended = there.status is not None and there.status.state is JobState.CANCELLED
                return self._end(
                    move,
                    f"{target.ref} ended before it began: {there.word}",
                    Step.CANCELLED if ended else Step.FAILED,
                )
        origin, connection = self._origin(move)
        seen = look(connection, origin, self.ledger)
        idle_s = note_gate_idle(self.ledger, target, there.gated_at, there.begun_at)
        # where it runs, its script finds its claim taken and asks for a requeue
        if not (seen.over or move.cancel_asked) and self._stands_in(origin, connection, seen):
            message = (
                f"{origin.ref} waits, for jobs that depend on it, and ends as {target.ref} does"
            )
            return self.moves.save(
                move, step=Step.MOVED, stand_in=True, message=message, gate_idle_s=idle_s
            )
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
        elif not move.cancel_asked and _ended(move, seen):
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
        known = seen.status
        if known is None and origin.task is not None and origin.job_id is not None:
            # Slurm keeps no record of an element that is cancelled while it waits
            known = JobStatus(job_id=origin.job_id, state=JobState.CANCELLED, raw_state="CANCELLED")
        if known is not None:
            told = msgspec.structs.replace(known, reason=f"{MOVED_TO}{target.ref}")
            record(self.ledger, connection, origin, told)
        return self.moves.save(move, step=Step.MOVED, message=message, gate_idle_s=idle_s)

    def _stands_in(self, origin: Attempt, connection: Connection, seen: Sight) -> bool:
        """Whether other jobs wait for the on-prem job's end, and its script can wait for it too."""
        if STANDS_IN not in origin.script or origin.job_id is None or seen.status is None:
            return False
        answer = connection.client.jobs(everyone=True)
        # an empty answer says nothing of those behind it
        if not (answer.of(origin.job_id) if seen.pending else answer.jobs):
            raise UnreachableError(f"squeue does not list {origin.ref}", where=connection.site.name)
        return bool(dependents(answer, seen.status))

    def _until_it_begins(self, move: Move, to_connection: Connection, there: Sight) -> Move | None:
        """Its gate is open, its command has not begun: fence-first, its nodes may not be up."""
        if move.line is not None:
            looked = self._on_spot(move)
            if looked is None:
                return None
            move = looked
        return self._not_begun(move, to_connection, there)

    @at_home(over=_ended)
    def _not_begun(self, home: Home, to_connection: Connection, there: Sight) -> Move | None:
        move = home.move
        if move.order is Order.FENCE_FIRST:
            return self._never_came(move, to_connection, there) or move
        waited_s = age_s(move.updated_at)
        status = there.status
        if status is not None and status.state is JobState.RUNNING and status.start_time:
            # it began before its gate opened: our own clock may have jumped, or that site's
            here_s = (to_connection.clock.now() - status.start_time).total_seconds()
            waited_s = min(waited_s, here_s)
        if waited_s > move.boot_timeout_s:
            return self._end(
                move,
                f"its command on {move.to_site} did not begin within boot_timeout = "
                f"{show_s(move.boot_timeout_s)} of its gate's opening ({there.word})",
            )
        return move
