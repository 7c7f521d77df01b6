"""Moves and plans as ``hpcscale burst`` shows them: rows for people, data for programs."""

from typing import TYPE_CHECKING, Any

import click

from hpcscale.cli._output import emit_table

if TYPE_CHECKING:
    from decimal import Decimal

    from hpcscale.burst.moves import Move
    from hpcscale.burst.plan import BurstPlan
    from hpcscale.burst.run import Tick
    from hpcscale.ledger import Attempt, Ledger

MOVE_COLUMNS = ("RUN", "NAME", "FROM", "TO", "STEP", "COST", "WHY")


def move_row(ledger: "Ledger", move: "Move") -> list[str]:
    """One line of the table of moves, as MOVE_COLUMNS."""
    from hpcscale.burst.moves import TAKEN_BACK

    data = move_data(ledger, move)
    cost = data["cost_usd"]
    so_far = "unknown"
    if move.estimate_usd is not None:
        most = move.reserved_usd or move.estimate_usd
        so_far = f"(expected ${move.estimate_usd}, at most ${most})"
    return [
        move.run_id,
        move.name,
        data["from"],
        data["to"],
        "taken back" if move.message == TAKEN_BACK and move.step.settled else move.step.value,
        f"${cost}" if cost is not None else so_far,
        "; ".join(part for part in (move.reason, move.message) if part),
    ]


def move_data(ledger: "Ledger", move: "Move") -> dict[str, Any]:
    """A move, JSON-ready but for Decimals and times, which ``emit_json`` writes."""
    from hpcscale.burst.moves import origin_attempt, target_attempt

    origin, target = origin_attempt(ledger, move), target_attempt(ledger, move)
    return {
        "run_id": move.run_id,
        "name": move.name,
        "from": str(origin.ref or move.from_site),
        "to": move.to_site if move.same_job else str((target and target.ref) or move.to_site),
        "step": move.step.value,
        "settled": move.step.settled,
        "rule": move.rule,
        "reason": move.reason,
        "message": move.message,
        "estimate_usd": move.estimate_usd,
        "cost_usd": target.cost_usd if target else None,
        "gate_idle_s": move.gate_idle_s,
        "gate_idle_usd": _gate_usd(target, move.gate_idle_s),
        "target_state": target.state.value if target else None,
        "retry_at": move.retry_at,
        "created_at": move.created_at,
        "updated_at": move.updated_at,
    }


def _gate_usd(target: "Attempt | None", seconds: int | None) -> "Decimal | None":
    from hpcscale.cost import spent_usd

    if target is None or seconds is None:
        return None
    return spent_usd(target.gpus, seconds, target.gpu_hour_usd)


def builtins(data: Any) -> Any:
    """A struct as plain data; Decimals stay."""
    import msgspec

    return msgspec.to_builtins(data, builtin_types=(_decimal(),))


def plan_data(made: "BurstPlan") -> dict[str, Any]:
    """A plan as plain data, with its sums."""
    data: dict[str, Any] = builtins(made)
    data["known_cost_usd"] = made.known_cost_usd
    data["unknown_costs"] = made.unknown_costs
    return data


def _decimal() -> type:
    from decimal import Decimal

    return Decimal


def print_plan(made: "BurstPlan") -> None:
    """The plan as a table, and its sums."""
    from hpcscale.burst.words import show_time, usd

    if not made.decisions:
        click.echo(f"no job with burst=auto or only is open on {made.from_site}")
        return
    rows = []
    for decision in made.decisions:
        when = "now" if decision.when == made.now else ""
        if not when and decision.when is not None:
            when = show_time(decision.when)
        rows.append(
            [
                decision.run_id,
                decision.ref,
                decision.name,
                decision.action.value,
                decision.to or "-",
                when or "-",
                "unknown" if decision.cost_usd is None else usd(decision.cost_usd),
                "; ".join(
                    part
                    for part in (decision.reason, decision.runner_up, decision.stage_why)
                    if part
                ),
            ]
        )
    emit_table(("RUN", "JOB", "NAME", "ACTION", "TO", "WHEN", "COST", "WHY"), rows)
    total = f"{len(made.moves)} to move, {usd(made.known_cost_usd)}"
    if made.unknown_costs:
        total += f" and {made.unknown_costs} of unknown cost"
    click.echo(total)
    for note in made.notes:
        click.echo(f"note: {note}")


def print_run(done: "Tick", rows: list[list[str]]) -> None:
    """What one run did, as a table of the moves it took further."""
    if rows:
        emit_table(MOVE_COLUMNS, rows)
        return
    if done.plan is None:
        return
    stays = len(done.plan.decisions)
    click.echo(f"nothing to move (jobs looked at: {stays})" if stays else "nothing to move")
