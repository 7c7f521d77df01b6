"""The handover once user code runs in the cloud: to its end, and the end of an on-prem stand-in.

Other jobs may wait for the on-prem job (``afterok``, ``singleton``). It is not cancelled then: it
stays fenced until the cloud attempt has ended, finds how that ended beside its claim, and ends so
too. It holds nodes for the second that this takes.
"""

import datetime as dt
from dataclasses import replace

from hpcscale.burst import held
from hpcscale.burst.acts import age_s
from hpcscale.burst.again import Again
from hpcscale.burst.arrays import exit_codes, show_array
from hpcscale.burst.claims import put_outcome
from hpcscale.burst.moves import Move, Step
from hpcscale.burst.net import Net
from hpcscale.burst.results import bring_home
from hpcscale.burst.sight import Sight, end, look, words
from hpcscale.connect import Connection
from hpcscale.errors import HpcscaleError, StateError, UnreachableError
from hpcscale.ledger import Attempt, utc_now
from hpcscale.slurm.types import JobState
from hpcscale.verify import mismatch

STAND_IN_S = 600  # where its node or its file system is slow, those behind it wait for it
# all of it in one update: as long as its tasks are as many as they were, --ntasks-per-node keeps
# their nodes, and NumCPUs those of all its nodes (tried on 22.05)
ON_ONE_NODE = {"NumNodes": "1", "NumTasks": "1", "NumCPUs": "1"}
FORGOTTEN_S = 60.0  # a job that its controller has forgotten may still tell its end
LOST_S = 600.0  # a job that nobody knows for this long will not come back
WATCH_ORIGIN_S = 900.0  # a controller that lost the cancel shows the job again soon


class Follow(Net, Again):
    """The steps MOVED and RELEASING."""

    def _moved(self, move: Move) -> Move | None:
        watched = self._watch_stand_in(move) if move.stand_in else self._watch_origin(move)
        if watched is None:
            return None
        if watched.line is not None:
            kept = self._on_spot(watched)
            if kept is None:
                return None
            watched = kept
        target, connection = self._target(watched)
        if target.last_state is JobState.PENDING or target.array_size is not None:
            target = held.settle(self.ledger, connection, target)
        if target.ended:
            end(connection, target)  # no act, unless its controller put it back into the queue
        if self._again(watched, target, connection):
            return watched
        return self._to_its_end(watched, target, connection)

    def _to_its_end(self, move: Move, target: Attempt, connection: Connection) -> Move | None:
        """Follow the attempt; once it is over, its results come home and its cost is noted."""
        target = self.ledger.attempt(target.submission_id)
        if not target.ended:
            if target.state is not JobState.UNKNOWN:
                if move.lost_at is None:
                    return move
                return self.moves.save(move, lost_at=None, lost_there=None)
            # neither Slurm nor the script tells its end: no guess, for a while
            if move.lost_at is None:
                there = connection.clock.now()
                return self.moves.save(move, lost_at=utc_now(), lost_there=there)
            message = f"{target.ref} is no longer known to Slurm; its end was not seen"
            lost_s = age_s(move.lost_at)
            if move.lost_there is not None:  # our own clock may have jumped, or that site's
                here_s = (connection.clock.now() - move.lost_there).total_seconds()
                lost_s = min(lost_s, here_s)
            if lost_s < LOST_S:
                if lost_s < FORGOTTEN_S or not self._surely_forgotten(move, target, connection):
                    return move
                message = (
                    f"{target.ref} was forgotten by its controller after it had begun; its end was "
                    "not seen"
                )
            return self._done(move, message)
        message = move.message
        try:
            message = bring_home(self.ledger, target, connection) or message
        except (UnreachableError, StateError):
            raise  # it is tried again, or its cost would never be noted
        except HpcscaleError as exc:
            message = f"results could not be fetched: {words(exc)}"
        return self._done(move, message)

    def _done(self, move: Move, message: str) -> Move | None:
        step = Step.RELEASING if move.stand_in else Step.DONE
        return self.moves.save(move, step=step, message=message)

    def _releasing(self, move: Move) -> Move | None:
        """The cloud attempt has ended: its stand-in may start, and ends as that did."""
        origin, connection = self._origin(move)
        target, _ = self._target(move)
        seen = self._seen_whole(origin, connection)
        if not seen.over and target.state is not JobState.CANCELLED:
            # also where it runs in vain, without its fence: its next start may be its last
            array = self.ledger.run(move.run_id).spec.array
            for suffix, code in exit_codes(self.ledger, target, array).items():
                put_outcome(connection.transport, origin, suffix, code)
        if seen.pending:
            if target.state is JobState.CANCELLED:
                end(connection, origin)
            else:
                assert origin.job_id is not None
                assert seen.status is not None
                # it needs a second, on one node: Slurm finds a place for that soon
                limit_s = min(seen.status.time_limit_s or STAND_IN_S, STAND_IN_S)
                connection.client.update(
                    origin.job_id, {"TimeLimit": str(max(1, round(limit_s / 60)))}
                )
                connection.client.update(origin.job_id, ON_ONE_NODE)
                self._lift(move, seen, connection, origin, others=True)
            seen = self._seen_whole(origin, connection)
        if not seen.over:
            return move
        return self.moves.save(move, step=Step.DONE)

    def _seen_whole(self, origin: Attempt, connection: Connection) -> Sight:
        """Of an array what has not ended counts: it has to tell its end as well."""
        if origin.array_size is None:
            return look(connection, origin, self.ledger)
        # asked before ``look`` records: the ledger has each end that ends the move
        whole = show_array(connection, origin, wholly=False)
        seen = look(connection, origin, self.ledger)
        return seen if seen.status is None or whole is None else replace(seen, status=whole)

    def _stop_both(self, move: Move) -> None:
        """Its user wants an end: of the cloud job, and of the stand-in."""
        if move.stand_in:
            origin, from_connection = self._origin(move)
            end(from_connection, origin)
            self._until_over(from_connection, origin)
        target, connection = self._target(move)
        end(connection, target)
        self._until_over(connection, target)

    def _watch_stand_in(self, move: Move) -> Move | None:
        """It waits with its fence; a user who ends it means the run."""
        origin, connection = self._origin(move)
        kept, seen = self._keep_fence(move, origin, connection)
        ended = seen.status is not None and seen.status.state is JobState.CANCELLED
        if kept is not None and ended:
            self._say(f"{move.run_id}: {origin.ref} was cancelled, so its cloud job is ended")
            end(self._connect(move.to_site), self.ledger.attempt(move.target or ""))
        return kept

    def watch(self) -> None:
        """Look after the jobs of moves that have settled a short time ago.

        Raises:
            UnreachableError: no answer from a site.
        """
        since = utc_now() - dt.timedelta(seconds=WATCH_ORIGIN_S)
        settled = [m for m in self.moves.settled_last() if self._is_watched(m, since)]
        for move in settled:
            ended_here = move.step in {Step.DONE, Step.CANCELLED} and move.target is not None
            if ended_here and not move.stand_in and not move.same_job:
                self._watch_origin(move)
            elif move.same_job and move.step is not Step.DONE:
                self.watch_shift(move)
        for move in settled:
            if move.step is Step.DONE and move.target is not None and not move.same_job:
                self._watch_target(move)

    def _is_watched(self, move: Move, since: dt.datetime) -> bool:
        """Whether it settled a short time ago; put back by its partition, it waits or ran till now.

        Our own clock may jump past the time in which a controller forgets that, and the job is then
        paid for where it begins.
        """
        if move.updated_at is not None and move.updated_at >= since:
            return True
        if not move.same_job or move.step is Step.DONE or move.old_partition is None:
            return False
        origin, connection = self._origin(move)
        if not origin.ended or origin.end_time is None:
            return not origin.ended
        return (connection.clock.now() - origin.end_time).total_seconds() < WATCH_ORIGIN_S

    def watch_shift(self, move: Move) -> None:
        """See ``Shift``."""
        raise NotImplementedError

    def _watch_target(self, move: Move) -> None:
        """The cloud's controller may have forgotten the end: what has ended does not run again."""
        target, connection = self._target(move)
        if not target.ended or target.job_id is None:
            return
        status = connection.client.show(target.job_id)
        if status is None or status.state.terminal or mismatch(target, status):
            return
        self._say(f"{move.run_id}: {target.ref} is back, though it had ended; ended again")
        self.ledger.event(
            move.run_id,
            "move.target_back",
            {"state": status.state.value},
            submission_id=target.submission_id,
        )
        end(connection, target)

    def _watch_origin(self, move: Move) -> Move:
        """A controller that died may have forgotten the cancel: the job must not run twice."""
        if age_s(move.updated_at) > WATCH_ORIGIN_S:
            return move
        origin, connection = self._origin(move)
        seen = look(connection, origin)
        if not seen.over:
            self._say(f"{move.run_id}: {origin.ref} is back ({seen.word}); ended again")
            self.ledger.event(
                move.run_id, "move.origin_back", {"state": seen.word}, submission_id=move.origin
            )
            end(connection, origin)
        return move
