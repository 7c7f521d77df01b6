"""What moved jobs have cost and may still cost, from the ledger: what budgets count."""

from decimal import Decimal

from hpcscale.burst.budget import Charge, Payer
from hpcscale.burst.moves import Moves, Step, target_attempt
from hpcscale.burst.plan import NEEDED, Rule
from hpcscale.ledger import Ledger, Run, utc_now

_WAITS = {rule.value for rule in Rule} - {rule.value for rule in NEEDED}
_UNDONE = {Step.FAILED, Step.CANCELLED, Step.WITHDRAWN}


def payer_of(run: Run) -> Payer:
    """Under whose budgets a run falls; its project is Slurm's ``--wckey``."""
    spec = run.spec
    project = spec.directives.get("wckey") or ""
    return Payer(user=run.user, account=spec.account or "", project=project)


def charges(ledger: Ledger) -> list[Charge]:
    """A charge for every move: its reservation, or what its cloud job cost once that is known.

    A move that ended without a cloud job cost nothing. One whose cloud job has ended at an unknown
    cost keeps its reservation, in the month of its decision: unknown is not nothing, and what is
    over costs no other month. What comes back counts as much as was reserved for it.
    """
    found = []
    for move in Moves(ledger).all():
        run = ledger.run(move.run_id)
        target = target_attempt(ledger, move)
        usd, settled = move.reserved_usd or move.estimate_usd, move.step.settled
        if target is None and move.step.settled:
            continue
        if target is not None and target.cost_usd is not None:
            back = Decimal(0) if move.step in _UNDONE else move.egress_usd
            usd, settled = target.cost_usd + back, True
        elif move.step in _UNDONE and target and target.ended and target.start_time is None:
            continue  # it never held a node
        found.append(
            Charge(
                payer=payer_of(run),
                at=move.created_at or utc_now(),
                usd=usd,
                settled=settled,
                waits=move.rule in _WAITS,
            )
        )
    return found
