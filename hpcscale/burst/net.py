"""A cloud job on nodes that may be taken back: looked after, and put into its net in time.

The net is a partition of the same site whose nodes nobody takes. The job itself goes there, by
``scontrol update Partition`` while it waits: it keeps its id, its gate and its claim, so nothing
can run twice, and a job that was requeued goes on from its checkpoint. A job that still runs on
spot nodes when its slack is used up is requeued first. That it goes to the net is on disk before
the act, and the act is done again until the job is seen there.
"""

import datetime as dt

from hpcscale.burst.back import Back
from hpcscale.burst.line import Standing, to_net
from hpcscale.burst.moves import Move
from hpcscale.burst.sight import Sight, look
from hpcscale.connect import Connection
from hpcscale.cost import held_s
from hpcscale.ledger import Attempt
from hpcscale.slurm.types import JobState

_RUNS = frozenset({JobState.RUNNING, JobState.SUSPENDED})


class Net(Back):
    """What the steps SUBMITTED and MOVED do about spot nodes."""

    def _on_spot(self, move: Move) -> Move | None:
        """Look after a job on spot nodes; the move as it is now (None: another process acted)."""
        target, connection = self._target(move)
        seen = look(connection, target, self.ledger)
        status = seen.status
        if move.line is None or move.net is None or status is None or status.state.terminal:
            return move
        if move.netted:
            self._into_net(move, target, connection, seen)
            return move
        now = connection.clock.now()
        if status.restarts > move.taken:
            self._say(f"{move.run_id}: its nodes on {move.to_site} were taken back ({seen.word})")
            saved = self.moves.save(move, taken=status.restarts, asked_at=now)
            if saved is None:
                return None
            move = saved
            target = self.ledger.attempt(target.submission_id)
        line = move.line
        assert line is not None
        standing = _standing(seen)
        waited_s = (now - move.asked_at).total_seconds() if move.asked_at else 0.0
        why = to_net(
            line, now, standing, waited_s=waited_s, taken=move.taken,
            done_s=self._done_s(move, target, now, running=standing is Standing.RUNNING),
        )  # fmt: skip
        if why is None:
            return move
        short = "" if standing is Standing.RUNNING or move.taken else why
        retry_at = now + dt.timedelta(seconds=move.retry_after_s) if short else move.retry_at
        message = f"{target.ref} goes to partition {move.net}: {why}"
        saved = self.moves.save(
            move, netted=why, message=message, spot_short=short, retry_at=retry_at, asked_at=now
        )
        if saved is None:
            return None
        self.ledger.event(
            move.run_id,
            "move.net",
            {"partition": move.net, "why": why},
            submission_id=target.submission_id,
        )
        self._say(f"{move.run_id}: {message}")
        self._into_net(saved, target, connection, seen)
        return saved

    def _into_net(self, move: Move, target: Attempt, connection: Connection, seen: Sight) -> None:
        """One more step towards the net; done again at each look until the job is there."""
        status = seen.status
        if status is None or status.partition == move.net or target.job_id is None:
            return
        held = target.earlier_s + held_s(target.start_time, None, connection.clock.now())
        if status.state is not JobState.PENDING:
            if not connection.client.requeue(target.job_id):
                self._say(f"{move.run_id}: {move.to_site} did not requeue it; tried again")
                return
            seen = look(connection, target, self.ledger)
            if not seen.pending:
                return  # it is still ending: at the next look
            held = self.ledger.attempt(target.submission_id).earlier_s
        else:
            held = target.earlier_s
        # no hour there at the old price, and none here at the new one
        self.ledger.reprice(target, move.net_gpus, move.net_gpu_hour_usd, held, str(move.net))
        said = connection.client.change(target.job_id, {"Partition": str(move.net)})
        if said:
            self._say(f"{move.run_id}: {move.to_site} did not take it into {move.net}: {said}")

    def _done_s(self, move: Move, target: Attempt, now: dt.datetime, *, running: bool) -> float:
        """Work that its checkpoints have kept: each taking lost no more than it may."""
        assert move.line is not None
        if self.ledger.run(move.run_id).spec.checkpoint is None:
            return 0.0
        idle_s = move.gate_idle_s or 0
        done = target.earlier_s - idle_s - move.taken * (move.line.lost_s + move.line.boot_s)
        if running:
            done += held_s(target.start_time, None, now) - move.line.lost_s - move.line.boot_s
        return min(max(0.0, done), float(move.line.limit_s))


def _standing(seen: Sight) -> Standing:
    assert seen.status is not None
    if seen.status.state in _RUNS:
        return Standing.RUNNING
    return Standing.WAITING if seen.status.state is JobState.PENDING else Standing.BOOTING
