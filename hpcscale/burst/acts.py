"""Parts of the handover's steps: each looks, or acts and looks again."""

import datetime as dt
import time
from collections.abc import Callable
from pathlib import Path

from hpcscale.burst.claims import CLOSED, Word, decide, take
from hpcscale.burst.fence import restored, same_nodes, stands
from hpcscale.burst.moves import Move, Moves, Step
from hpcscale.burst.offer import spec_for, with_gate_time
from hpcscale.burst.sight import Sight, end, look
from hpcscale.connect import Connection
from hpcscale.errors import UnreachableError
from hpcscale.ledger import Attempt, Ledger, Role, utc_now
from hpcscale.observe import observe
from hpcscale.slurm.remote import mkdir
from hpcscale.slurm.types import JobState

SETTLE_S = 12.0  # a cancelled job is usually terminal by then; else the next tick looks again
WATCH_ORIGIN_S = 900.0  # a controller that lost the cancel shows the job again soon
MAX_BACKOFF = 8
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
        from hpcscale.prepare import code_of, prepare
        from hpcscale.render import Gate

        run = self.ledger.run(move.run_id)
        origin = self.ledger.attempt(move.origin)
        # what it waits at the gate, and what is copied meanwhile, is no part of the job's own time
        spec = with_gate_time(
            spec_for(run.spec, origin.time_limit_s, connection.site), move.lease_s + move.staging_s
        )
        rendered = prepare(
            spec,
            connection.site,
            gate=Gate(lease_s=move.lease_s),
            code=code_of(self.ledger, move.run_id),
        )
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

    def _before_fence(self, move: Move, now: str, fence: str) -> str | None:
        """The user's own ``ExcNodeList``; None when a fence stands that is not of this ledger."""
        if not same_nodes(now, fence):
            return now
        for earlier in reversed(self.moves.of_run(move.run_id)):
            # lifted, which a controller that died has forgotten; or the job began here, which
            # it has forgotten too; or the move ended before it knew more than its fence
            if earlier.fence is None or earlier.yielded or not earlier.step.settled:
                continue
            if same_nodes(earlier.fence, now) and earlier.old_exc is not None:
                return earlier.old_exc
        return None

    def _keep_fence(self, move: Move, origin: Attempt, connection: Connection) -> Sight:
        """Look at the on-prem job; set the fence again where it is gone."""
        seen = look(connection, origin, self.ledger)
        if seen.pending and seen.status and move.fence and not stands(seen.status, move.fence):
            # slurmctld forgets its last seconds when it dies, or somebody changed the list
            self._say(f"{move.run_id}: the fence on {move.from_site} is gone, set again")
            assert origin.job_id is not None
            connection.client.update(origin.job_id, {"ExcNodeList": move.fence})
            seen = look(connection, origin, self.ledger)
        return seen

    def _never_begins(self, move: Move, target: Attempt, connection: Connection) -> bool:
        """Make sure that the cloud job's command will not begin, unless it has."""
        mkdir(connection.transport, target.run_dir)
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

    def _withdraw(self, move: Move, seen: Sight) -> Move | None:
        step = Step.WITHDRAWN if seen.started else Step.CANCELLED
        return self.moves.save(
            move,
            step=step,
            message=f"its job on {move.from_site} is {seen.word}: nothing was moved",
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

    def watch(self) -> None:
        """Look after jobs whose moves have settled a short time ago.

        Raises:
            UnreachableError: no answer from a site.
        """
        since = utc_now() - dt.timedelta(seconds=WATCH_ORIGIN_S)
        for move in self.moves.settled_since(since):
            if move.step in {Step.DONE, Step.CANCELLED} and move.target is not None:
                self._watch_origin(move)

    def _watch_origin(self, move: Move) -> None:
        """A controller that died may have forgotten the cancel: the job must not run twice."""
        if age_s(move.updated_at) > WATCH_ORIGIN_S:
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

    def _until_begun(self, connection: Connection, target: Attempt) -> Sight:
        """Look until the cloud job's command has begun, for a short time: the gate looks often."""
        deadline = time.monotonic() + BEGIN_S
        while True:
            there = look(connection, target, self.ledger, any_start=True)
            if there.reported is not None or there.over or time.monotonic() > deadline:
                return there
            time.sleep(0.3)

    def _origin(self, move: Move) -> tuple[Attempt, Connection]:
        return self.ledger.attempt(move.origin), self._connect(move.from_site)

    def _target(self, move: Move) -> tuple[Attempt, Connection]:
        return self.ledger.attempt(move.target or ""), self._connect(move.to_site)

    def _tell(self, move: Move) -> None:
        text = f"{move.run_id} ({move.name}): {move.step.value}"
        if move.step in {Step.SUBMITTING, Step.SUBMITTED, Step.CLAIMING, Step.OPENING, Step.MOVED}:
            text += f" to {move.to_site}"
        self._say(text + (f": {move.message}" if move.message else ""))


def age_s(since: dt.datetime | None) -> float:
    """Seconds since then by this machine's clock; 0 for None."""
    return (utc_now() - since).total_seconds() if since else 0.0
