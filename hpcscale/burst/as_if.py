"""What a shadow has moved, as if it had: its verdicts stand in the ledger, its moves do not.

Without this a shadow would decide on the same job at each call, and neither a month's budget nor
``max_moves_per_run`` would ever be used up.
"""

import datetime as dt
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

from hpcscale.burst.budget import Charge
from hpcscale.burst.charges import payer_of
from hpcscale.burst.moves import Move, Step
from hpcscale.burst.plan import NEEDED, Action, Rule
from hpcscale.ledger import Ledger

KIND = "shadow"
Data = dict[str, Any]


@dataclass(frozen=True, slots=True)
class AsIf:
    """Moves and charges as they would be.

    Attributes:
        moves: run id -> its moves, real ones and the shadow's.
        charges: of the shadow's.
    """

    moves: dict[str, list[Move]] = field(default_factory=dict)
    charges: tuple[Charge, ...] = ()


def records(ledger: Ledger) -> list[tuple[str, dt.datetime, Data]]:
    """Run id, time and data of every verdict of a shadow, oldest first."""
    return [
        (record.run_id, record.at, record.data)
        for record in ledger.decisions()
        if record.kind == KIND and record.run_id is not None
    ]


def first_moves(found: Sequence[tuple[str, dt.datetime, Data]]) -> dict[str, Data]:
    """Of each run that a shadow would have moved its first move: a moved job is gone."""
    first: dict[str, Data] = {}
    for run_id, _, data in found:
        if data.get("action") == Action.MOVE.value:
            first.setdefault(run_id, data)
    return first


def as_if(ledger: Ledger, now: dt.datetime, moves: Mapping[str, list[Move]]) -> AsIf:
    """The ledger's moves and charges with those that a shadow would have made.

    A move is under way for as long as its nodes boot and its data are copied; after that the job
    would be gone. Its worst case is reserved until it would have ended, then its cost is spent.

    Args:
        ledger: with the verdicts.
        now: the origin's clock.
        moves: real ones; what really moved is no longer the shadow's.
    """
    shadows = {r: data for r, data in first_moves(records(ledger)).items() if r not in moves}
    parents = {r: str(data.get("of_run", r)) for r, data in shadows.items()}
    runs = {run.run_id: run for run in ledger.runs(set(parents.values()))}
    found = dict(moves)
    charges = []
    for run_id, data in shadows.items():
        run = runs.get(parents[run_id])
        if run is None:
            continue
        decision: Data = data["decision"]
        at = dt.datetime.fromisoformat(data["now"])
        start_s = decision.get("boot_s", 0) + decision.get("staging_s", 0)
        gone = now >= at + dt.timedelta(seconds=start_s)
        found[run_id] = [
            Move(
                run_id=run_id,
                from_site="",
                to_site=str(data["to"]),
                origin=str(data.get("origin", "")),
                task=data.get("task"),
                # of a job that is in another place nothing is decided any more
                step=Step.MOVED if gone else Step.SUBMITTING,
                same_job=gone,
                reserved_usd=_usd(decision.get("worst_usd")),
                estimate_usd=_usd(data.get("cost_usd")),
            )
        ]
        end = data.get("latest_end")
        settled = end is not None and now >= dt.datetime.fromisoformat(str(end))
        worst, cost = _usd(decision.get("worst_usd")), _usd(data.get("cost_usd"))
        charges.append(
            Charge(
                payer=payer_of(run),
                at=at,
                usd=cost if settled and cost is not None else worst,
                settled=settled,
                waits=decision.get("rule") in _WAITS,
            )
        )
    return AsIf(found, tuple(charges))


_WAITS = {rule.value for rule in Rule} - {rule.value for rule in NEEDED}


def _usd(text: object) -> Decimal | None:
    return None if text is None else Decimal(str(text))
