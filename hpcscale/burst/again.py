"""Elements of a moved array that the cloud's controller forgot before they began: they move again.

slurmctld that dies within some five seconds of a submission knows nothing of it afterwards. What
had its nodes may have begun and even end well; the other elements would begin nowhere, and on-prem
the array is gone by then. Each of them moves alone (``burst.elements``), from the cloud attempt to
a new one at the same site, by the same steps: so the log of its claims at that site decides between
the two, should the forgotten one begin after all.
"""

from decimal import Decimal

import msgspec

from hpcscale.burst.acts import Acts, age_s
from hpcscale.burst.arrays import records_of
from hpcscale.burst.audit import AuditLog, data_hash
from hpcscale.burst.elements import element_run_id, make_run
from hpcscale.burst.moves import Move, Step
from hpcscale.burst.policy import Order
from hpcscale.burst.resubmit import ids_went_back, keeps_ended_s
from hpcscale.burst.sight import reports_of
from hpcscale.connect import Connection
from hpcscale.ledger import Attempt
from hpcscale.units import parse_array
from hpcscale.verify import mismatch

RETRY_S = 60.0  # after the first move of an element that failed, then twice as long each time
MAX_RETRY_S = 3600.0
EVENT = "move.element_forgotten"


class Again(Acts):
    """Part of the step MOVED."""

    def _again(self, move: Move, target: Attempt, connection: Connection) -> bool:
        """Whether elements of a moved array are on their way once more; begins their moves.

        Raises:
            UnreachableError: no answer.
        """
        run = self.ledger.run(move.run_id)
        if target.array_size is None or run.spec.array is None or move.task is not None:
            return False
        tasks = parse_array(run.spec.array)[0]
        known = [e.data["task"] for e in self.ledger.events(run.run_id, EVENT)]
        if not known and not target.ended:
            known = self._forgotten(move, target, connection, tasks)
        under_way = [self._under_way(move, target, task) for task in known]
        return any(under_way)

    def _forgotten(
        self, move: Move, target: Attempt, connection: Connection, tasks: list[int]
    ) -> list[int]:
        """Elements that have told no start, of an array that is surely forgotten; noted."""
        if not self._surely_forgotten(move, target, connection):
            return []
        told = {r.task for r in reports_of(connection, target) if r.begun}
        ended = {task for task, e in self.ledger.elements(target).items() if e.state.terminal}
        found = [task for task in tasks if task not in told | ended]
        if self._cancelled_by_user(move):
            return []
        for task in found:
            self.ledger.event(
                move.run_id, EVENT, {"task": task}, submission_id=target.submission_id
            )
        return found

    def _surely_forgotten(self, move: Move, target: Attempt, connection: Connection) -> bool:
        """Whether its controller knows it no more, and has not purged it as one that has ended.

        What has ended is shown for MinJobAge; so what is younger has been forgotten, for good. So
        has what is older, where its controller has given ids out again since.
        """
        if records_of(connection, target) or not unknown_there(connection, target):
            return False
        told = [r.at for r in reports_of(connection, target)]
        newest = max(filter(None, [move.asked_at, *told]), default=None)
        if newest is None:
            return False
        age_s = (connection.clock.now() - newest).total_seconds()
        if age_s < keeps_ended_s(connection):
            return True
        return ids_went_back(self.ledger, connection, target)

    def _under_way(self, move: Move, target: Attempt, task: int) -> bool:
        """Whether an element's own move is not over yet; begins one where there is none."""
        run_id = element_run_id(move.run_id, task)
        mine = [m for m in self.moves.of_run(run_id) if m.origin == target.submission_id]
        if mine and mine[-1].step is not Step.FAILED:
            return not mine[-1].step.settled
        wait_s = min(RETRY_S * 2 ** (len(mine) - 1), MAX_RETRY_S)
        if mine and age_s(mine[-1].updated_at) < wait_s:
            return True
        if self._cancelled_by_user(move):
            return False
        run = self.ledger.run(move.run_id)
        make_run(self.ledger, run, task)
        size = target.array_size or 1
        next_move = Move(
            run_id=run_id,
            name=move.name,
            from_site=move.to_site,
            to_site=move.to_site,
            origin=target.submission_id,
            task=task,
            partition=move.partition,
            rule=move.rule,
            reason=f"{move.to_site} forgot element {task} of {target.ref} before it began",
            order=Order.GATE_FIRST,
            step=Step.SUBMITTING,
            estimate_usd=_share(move.estimate_usd, size),
            reserved_usd=_share(move.reserved_usd, size),
            egress_usd=move.egress_usd / size,
            boot_timeout_s=move.boot_timeout_s,
            retry_after_s=move.retry_after_s,
            lease_s=move.lease_s,
            staging_s=move.staging_s,
        )
        data = {"again": msgspec.to_builtins(next_move), "move": move.move_id}
        AuditLog().add(
            "decide to move again",
            run=run_id,
            job=f"{target.ref}_{task}",
            to=move.to_site,
            reason=next_move.reason,
            decision=data_hash(data),
        )
        if self.moves.begin(next_move, data) is not None:
            self._say(f"{run_id} ({move.name}): {next_move.reason}: submitted again")
        return True


def unknown_there(connection: Connection, target: Attempt) -> bool:
    """Whether its controller says that it has no such job: an empty list does not say so."""
    if target.job_id is None:
        return False
    status = connection.client.show(target.job_id)
    return status is None or mismatch(target, status) is not None


def _share(usd: Decimal | None, size: int) -> Decimal | None:
    return None if usd is None else usd / size
