"""Money of cloud jobs while they run: what they cost so far against what was reserved for them.

A reservation covers the time limit, slow boots and every allowed requeue, so only what nobody
foresaw comes here: a limit that somebody raised, a job that was requeued by hand.
"""

import datetime as dt
from decimal import Decimal

from hpcscale.burst.moves import Move, Step
from hpcscale.burst.policy import AtLimit, Policy
from hpcscale.burst.sight import end
from hpcscale.burst.words import usd
from hpcscale.connect import Connection
from hpcscale.cost import held_s
from hpcscale.ledger import Attempt, Ledger


def so_far_usd(ledger: Ledger, target: Attempt, now: dt.datetime) -> Decimal | None:
    """Dollars of a cloud attempt until now, its earlier starts too; None when unknown."""
    if target.array_size is None:
        seconds = target.earlier_s + held_s(target.start_time, target.end_time, now)
    else:  # its row has the GPUs of one element, and the first one's start
        seconds = sum(
            held_s(e.start_time, e.end_time, now)
            for e in ledger.elements(target).values()
            if e.state.active or e.state.terminal  # of what waits Slurm tells a guess
        )
    return ledger.cost_of(target, seconds)


def over(ledger: Ledger, move: Move, target: Attempt, now: dt.datetime) -> str | None:
    """Why a running cloud job must cost no more, half a sentence; None while it may go on."""
    if move.step is not Step.MOVED or target.ended or target.start_time is None:
        return None
    spent = so_far_usd(ledger, target, now)
    most = ledger.run(move.run_id).max_cost_usd
    limits = [(move.reserved_usd, "reserved for it"), (most, "of its --max-cost")]
    for limit, name in limits:
        if spent is None or limit is None or spent + move.egress_usd <= limit:
            continue
        back = f" and {usd(move.egress_usd)} for what comes back" if move.egress_usd else ""
        return f"it has cost {usd(spent)}{back}, over the {usd(limit)} {name}"
    return None


def check(ledger: Ledger, move: Move, connection: Connection, policy: Policy) -> str | None:
    """Look at a running cloud job's cost, and do at its limit what the policy says.

    Returns:
        What was found or done, one sentence; None: all is well.

    Raises:
        UnreachableError: no answer.
    """
    target = ledger.attempt(move.target or "")
    why = over(ledger, move, target, connection.clock.now())
    if why is None:
        return None
    if policy.at_limit is AtLimit.WARN:
        return f"{target.ref}: {why}"
    ledger.event(move.run_id, "move.over_limit", {"reason": why}, submission_id=move.target)
    end(connection, target)
    return f"{target.ref} is ended: {why}"
