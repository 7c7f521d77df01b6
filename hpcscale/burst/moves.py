"""Moves in the ledger: each is a state machine, and each step is on disk before its act.

A step may be left only by a compare-and-set on the step and its revision, so two processes that
work on one ledger never both do what follows it; an unsettled move is unique for its run.

.. code-block:: text

    SUBMITTING ─► SUBMITTED ─► FENCING ─► CLAIMING ─► OPENING ─► CANCELLING ─► MOVED ─► DONE
        │             │           │           │           │            │
        └─────────────┴───────────┴─────┬─────┴───────────┴────────────┘
                                        ▼
                                     ENDING (the cloud job, until it is terminal)
                                        ├──► UNFENCING ──► FAILED      the on-prem job waits on
                                        ├──► CANCELLED                 its user ended it: both ended
                                        └──► WITHDRAWN                 the on-prem job runs

A move into a partition of the same controller is of one job, and has steps of its own:

.. code-block:: text

    SHIFTING ─► MOVED ─► DONE
        │         └──► RESTORING ──► FAILED      it is back in its old partition
        └──► FAILED, WITHDRAWN (it started where it was), CANCELLED

With ``order = "fence-first"`` FENCING comes before SUBMITTING, and nobody waits in SUBMITTED.
"""

import datetime as dt
import enum
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

import msgspec

from hpcscale.burst.line import Line
from hpcscale.burst.policy import Order
from hpcscale.ledger import Attempt, Ledger, utc_now

MAX_BACKOFF = 8  # times retry_after: the longest rest after failed moves of one job


class Step(enum.StrEnum):
    """Where a move stands; named after the act that comes next or, when settled, how it ended."""

    SUBMITTING = "submitting"  # the cloud job may or may not exist
    SUBMITTED = "submitted"  # the cloud job exists; its gang is not at the gate yet
    FENCING = "fencing"  # the on-prem job's fence may or may not stand
    CLAIMING = "claiming"  # it stood; the on-prem job's claim may or may not be ours
    OPENING = "opening"  # the claim is ours; the gate may or may not be open
    CANCELLING = "cancelling"  # the gate is open; the on-prem job is being cancelled
    SHIFTING = "shifting"  # the job's partition may or may not have been changed
    RESTORING = "restoring"  # its old partition may or may not have been put back
    MOVED = "moved"  # the on-prem job is gone; the cloud job is followed to its end
    RELEASING = "releasing"  # the cloud job has ended; its stand-in on-prem is let go
    ENDING = "ending"  # the cloud job is being ended; ``ends_as`` says what follows
    UNFENCING = "unfencing"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"
    WITHDRAWN = "withdrawn"

    @property
    def settled(self) -> bool:
        """Whether nothing is left to do."""
        return self in _SETTLED


_SETTLED = frozenset({Step.DONE, Step.FAILED, Step.CANCELLED, Step.WITHDRAWN})
FORWARD = frozenset(
    {Step.SUBMITTING, Step.SUBMITTED, Step.FENCING, Step.CLAIMING, Step.OPENING, Step.CANCELLING}
)
FOLLOWED = frozenset({Step.MOVED, Step.RELEASING})  # its command has begun there

TAKEN_BACK = "taken back by its user"


class Move(msgspec.Struct, frozen=True, kw_only=True):
    """One move of one job from one site to another.

    Attributes:
        revision: counts the saves; the compare-and-set is on it.
        partition: of ``to_site``; None: its default one.
        origin: submission id of the on-prem attempt.
        target: submission id of the cloud attempt, once there is one.
        reason: why the policy moved it, as the plan said.
        estimate_usd: the plan's cost; the attempt's own cost is in its row.
        reserved_usd: the most it can cost; budgets count it until the cost is known.
        egress_usd: of both, for what comes back; the attempt's own cost is of its nodes alone.
        order: whether the on-prem job is fenced before the cloud job is submitted.
        kept: the on-prem job was seen so old that its controller has it on disk.
        old_exc: the user's own ExcNodeList, as they last wrote it. None: not yet fenced.
        blamed: nodes excluded for an earlier failure.
        fence: the nodes that the fence excludes besides. None: not yet fenced.
        fenced: the fence was seen to stand.
        ends_as: how a move that is being undone will settle.
        message: what went wrong, or what is worth knowing, in one sentence.
        since_event: the run's last event before the move, whatever the clocks of login nodes say.
        retry_at: a failed move's job is left alone until then.
        asked_at: the target site's clock when the job was submitted there.
        lease_s: how long the cloud job waits at its gate.
        staging_s: allowed for copying, in the cloud job's time limit.
        stand_in: other jobs wait for the on-prem job: it stays, and ends as the cloud's does.
        cancel_asked: whether the on-prem job's cancel may have been ours.
        gate_idle_s: how long the cloud job stood at its gate.
        after_number: the run's latest attempt when it began; its own come after that one.
        begun: the cloud attempt has its own claim, so its command has begun or is about to.
        yielded: another handover has the job's claim; the fence is that one's too.
        same_job: the job itself moves, into another partition of its controller.
        old_partition: its partitions before that, as Slurm has them. None: not yet noted.
        old_gpus: GPUs that were counted before, and ``old_gpu_hour_usd`` at which price.
        gpus: GPUs that are paid for there, and ``gpu_hour_usd`` at which price.
        refused: Slurm did not take it there, so that it is not tried again.
        lost_at: when the running cloud job was first no longer known to its Slurm.
        lost_there: the same by that site's clock.
        net: partition that takes a job over whose nodes were taken back (``line`` says when), with
            its ``net_gpus`` and ``net_gpu_hour_usd``; None: nobody takes its nodes.
        taken: how often its nodes were taken back, as far as it was seen.
        netted: it was put into the net, and why; empty: not yet.
        spot_short: no spot node came for it, and how that showed.
        task: the element of the origin's array that moves alone; ``run_id`` is its own run then.
    """

    move_id: int = 0
    revision: int = 0
    run_id: str
    name: str = ""
    from_site: str
    to_site: str
    partition: str | None = None
    origin: str
    target: str | None = None
    step: Step = Step.SUBMITTING
    order: Order = Order.GATE_FIRST
    rule: str = ""
    reason: str = ""
    estimate_usd: Decimal | None = None
    reserved_usd: Decimal | None = None
    egress_usd: Decimal = Decimal(0)
    boot_timeout_s: int = 1800
    retry_after_s: int = 1800
    lease_s: int = 600
    staging_s: int = 0
    stand_in: bool = False
    cancel_asked: bool = False
    gate_idle_s: int | None = None
    kept: bool = False
    old_exc: str | None = None
    blamed: str = ""
    fence: str | None = None
    fenced: bool = False
    ends_as: Step = Step.FAILED
    message: str = ""
    since_event: int = 0
    retry_at: dt.datetime | None = None
    asked_at: dt.datetime | None = None
    same_job: bool = False
    old_partition: str | None = None
    old_gpus: int = 0
    old_gpu_hour_usd: Decimal | None = None
    gpus: int = 0
    gpu_hour_usd: Decimal | None = None
    refused: bool = False
    lost_at: dt.datetime | None = None
    lost_there: dt.datetime | None = None
    net: str | None = None
    net_gpus: int = 0
    net_gpu_hour_usd: Decimal | None = None
    line: Line | None = None
    taken: int = 0
    netted: str = ""
    spot_short: str = ""
    task: int | None = None
    after_number: int | None = None
    begun: bool = False
    yielded: bool = False
    created_at: dt.datetime | None = None
    updated_at: dt.datetime | None = None


class Moves:
    """The moves of one ``ledger``."""

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger

    def begin(
        self,
        move: Move,
        decision: Mapping[str, Any] | None = None,
        *,
        after: int | None = None,
    ) -> Move | None:
        """Add a move, with the decision that it follows; None when one is under way already.

        Both are written at once: there is no move, and no dollar, without a decision.

        Args:
            move: to begin.
            decision: what it was decided on.
            after: the last move (``last_id``) that was known when it was decided. None is begun
                where there is a later one: money that was left then may be spent.
        """
        now = utc_now()
        latest = max((a.number for a in self.ledger.attempts(move.run_id)), default=0)
        runs = {move.run_id, self.ledger.attempt(move.origin).run_id}
        events = [event for run_id in runs for event in self.ledger.events(run_id)]
        move = msgspec.structs.replace(
            move,
            created_at=now,
            updated_at=now,
            revision=1,
            after_number=latest,
            since_event=max((e.event_id for e in events), default=0),
        )
        with self.ledger.writing() as db:
            if after is not None and self.last_id() > after:
                return None
            cursor = db.execute(
                "INSERT OR IGNORE INTO moves (run_id, step, settled, revision, data) "
                "VALUES (?, ?, ?, ?, ?)",
                (move.run_id, move.step.value, int(move.step.settled), 1, _encode(move)),
            )
            if not cursor.rowcount:
                return None
            if decision is not None:
                self.ledger.add_decision("burst", move.reason, decision, run_id=move.run_id)
        move = msgspec.structs.replace(move, move_id=int(cursor.lastrowid or 0))
        self._note(move)
        return move

    def save(self, move: Move, **changes: object) -> Move | None:
        """Write the next step; None when another process was there first (read it again)."""
        before = move.step
        now = utc_now()
        changed: Move = msgspec.structs.replace(
            move, **changes, revision=move.revision + 1, updated_at=now
        )
        with self.ledger.writing() as db:
            cursor = db.execute(
                "UPDATE moves SET step = ?, settled = ?, revision = ?, data = ? "
                "WHERE move_id = ? AND revision = ?",
                (
                    changed.step.value,
                    int(changed.step.settled),
                    changed.revision,
                    _encode(changed),
                    move.move_id,
                    move.revision,
                ),
            )
            if not cursor.rowcount:
                return None
        if changed.step is not before:
            self._note(changed)
        return changed

    def get(self, move_id: int) -> Move:
        """One move, read afresh."""
        return self._read("WHERE move_id = ?", move_id)[0]

    def last_id(self) -> int:
        """The number of the newest move; 0: there is none."""
        return int(self.ledger.rows("SELECT coalesce(max(move_id), 0) AS n FROM moves")[0]["n"])

    def unsettled(self) -> list[Move]:
        """Moves under way, oldest first."""
        return self._read("WHERE settled = 0")

    def settled_last(self) -> list[Move]:
        """The last moves of their runs, where they are settled."""
        last = {move.run_id: move for move in self._read("")}
        return [move for move in last.values() if move.step.settled]

    def all(self) -> list[Move]:
        """Every move, oldest first."""
        return self._read("")

    def of_run(self, run_id: str) -> list[Move]:
        """A run's moves, oldest first."""
        return self._read("WHERE run_id = ?", run_id)

    def latest(self) -> dict[str, list[Move]]:
        """Run id -> its moves, oldest first."""
        found: dict[str, list[Move]] = {}
        for move in self.all():
            found.setdefault(move.run_id, []).append(move)
        return found

    def _read(self, where: str, *values: object) -> list[Move]:
        rows = self.ledger.rows(
            f"SELECT move_id, data FROM moves {where} ORDER BY move_id",  # noqa: S608 # `where` is this module's own
            *values,
        )
        return [
            msgspec.structs.replace(
                msgspec.json.decode(row["data"], type=Move), move_id=row["move_id"]
            )
            for row in rows
        ]

    def _note(self, move: Move) -> None:
        self.ledger.event(
            move.run_id,
            f"move.{move.step.value}",
            {"to": move.to_site, "reason": move.reason, "message": move.message},
            submission_id=move.target or move.origin,
        )


def _encode(move: Move) -> str:
    return msgspec.json.encode(move).decode()


def origin_attempt(ledger: Ledger, move: Move) -> Attempt:
    """The on-prem attempt that a move is of; of an element that moves alone that element."""
    origin = ledger.attempt(move.origin)
    return origin if move.task is None else origin.element(move.task)


def target_attempt(ledger: Ledger, move: Move) -> Attempt | None:
    """The cloud attempt of a move, also when the move was interrupted before it noted its id."""
    if move.target:
        return ledger.attempt(move.target)
    if move.same_job:
        return None
    # by number: a clock may have been set back between the two
    after = origin_attempt(ledger, move).number if move.after_number is None else move.after_number
    taken = {m.target for m in Moves(ledger).of_run(move.run_id) if m.move_id != move.move_id}
    for attempt in reversed(ledger.attempts(move.run_id)):
        mine = attempt.number > after and attempt.site == move.to_site
        if mine and attempt.submission_id not in taken:
            return attempt
    return None
