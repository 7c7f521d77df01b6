"""``hpcscale burst``: what would move, move it, see and undo moves."""

from typing import TYPE_CHECKING, Any

import click

from hpcscale.cli._burst_replay import replay
from hpcscale.cli._burst_simulate import simulate
from hpcscale.cli._output import emit_json, emit_table, json_option, notice

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from decimal import Decimal

    from hpcscale.burst.moves import Move
    from hpcscale.burst.plan import BurstPlan
    from hpcscale.burst.run import Tick
    from hpcscale.ledger import Attempt, Ledger

POLL_S = 2.0

policy_option = click.option(
    "--policy",
    "policy_file",
    required=True,
    metavar="P.toml",
    type=click.Path(),
    help="The burst policy.",
)


@click.group(name="burst")
def command() -> None:
    """Let waiting jobs overflow to cloud sites: plan, explain, run, undo, audit, simulate."""


command.add_command(simulate)
command.add_command(replay)


@command.command()
@policy_option
@json_option
def plan(policy_file: str, as_json: bool) -> None:
    """Say which waiting jobs would move, where, when, why and at what cost. Acts on nothing."""
    from pathlib import Path

    from hpcscale.burst.policy import load_policy
    from hpcscale.burst.run import Connections, make_plan
    from hpcscale.ledger import Ledger

    policy = load_policy(Path(policy_file))
    _require_sites({"from": [policy.from_site], "to": policy.to}, policy_file)
    connections = Connections()
    try:
        with Ledger.open() as ledger:
            made = make_plan(ledger, policy, connections)
    finally:
        connections.close()
    if as_json:
        emit_json(_plan_data(made))
        return
    _print_plan(made)


@command.command()
@click.argument("job")
@policy_option
@json_option
def explain(job: str, policy_file: str, as_json: bool) -> None:
    """Say what the policy does with JOB, why, and what else could be done. Acts on nothing."""
    from pathlib import Path

    from hpcscale.burst.elements import runs_of
    from hpcscale.burst.policy import load_policy
    from hpcscale.burst.run import Connections, make_plan
    from hpcscale.burst.words import show_time, usd
    from hpcscale.errors import NotFoundError
    from hpcscale.ledger import Ledger

    policy = load_policy(Path(policy_file))
    _require_sites({"from": [policy.from_site], "to": policy.to}, policy_file)
    connections = Connections()
    try:
        with Ledger.open() as ledger:
            named = ledger.resolve(job)
            runs = {named.run.run_id, *runs_of(ledger, named.run.run_id).values()}
            made = make_plan(ledger, policy, connections)
            found = [
                decision
                for decision in made.decisions
                if (of := ledger.resolve(decision.ref)).run.run_id in runs
                and named.task in {None, of.task}
            ]
    finally:
        connections.close()
    if not found:
        raise NotFoundError(
            f"{job} does not wait on {policy.from_site} with burst=auto or only",
            hint=f"hpcscale status {job}",
        )
    decision = found[0]
    if as_json:
        emit_json({"decision": _builtins(decision), "now": made.now})
        return
    where = f" to {decision.to}" if decision.to else ""
    click.echo(f"{decision.ref} ({decision.name}): {decision.action.value}{where}")
    click.echo(f"  why: {decision.reason}")
    if decision.runner_up:
        click.echo(f"  {decision.runner_up}")
    if decision.cost_usd is not None:
        click.echo(f"  cost: {usd(decision.cost_usd)} ({decision.cost_why})")
    if decision.worst_usd is not None:
        click.echo(f"  reserved: {usd(decision.worst_usd)}")
    if decision.when is not None and decision.when != made.now:
        click.echo(f"  looked at again for a rule: {show_time(decision.when)}")
    for blocker in decision.blockers:
        click.echo(f"  in the way: {blocker}")


@command.command()
@policy_option
@click.option("--once", is_flag=True, help="One tick, which is the default: for cron lines.")
@click.option(
    "--for",
    "for_text",
    metavar="TIME",
    help="Go on for that long, so that an open gate does not wait for the next cron line: 4m.",
)
@click.option("--wait", "until_settled", is_flag=True, help="Go on until all moves are settled.")
@click.option(
    "--shadow",
    is_flag=True,
    help="Decide and remember, move nothing; say what would have been spent and met so far.",
)
@json_option
def run(
    policy_file: str,
    *,
    once: bool,
    for_text: str | None,
    until_settled: bool,
    shadow: bool,
    as_json: bool,
) -> None:
    """Move the jobs that the policy moves, and take moves under way further.

    Run it from cron; each call goes on where the last one stood, wherever it was stopped. When
    another `hpcscale burst run` is at work, this one says so and exits with 0.
    """
    import time
    from pathlib import Path

    from hpcscale.burst.attend import attend
    from hpcscale.burst.expect import Fresh
    from hpcscale.burst.handover import Handover
    from hpcscale.burst.lock import LockHeldError, RunLock
    from hpcscale.burst.moves import Moves
    from hpcscale.burst.policy import load_policy
    from hpcscale.burst.run import Connections, Tick, jobs_folder, lock_path, tick
    from hpcscale.errors import UsageError
    from hpcscale.ledger import Ledger
    from hpcscale.units import parse_duration_s

    if once + until_settled + bool(for_text) > 1:
        raise UsageError("--once, --for and --wait exclude each other", hint="name one")
    if shadow:
        if until_settled or for_text:
            raise UsageError("--shadow decides once", hint="a cron line calls it again")
        _shadow(policy_file, as_json=as_json)
        return
    try:
        for_s = (parse_duration_s(for_text) or 0) if for_text else 0
    except ValueError as exc:
        raise UsageError(str(exc), where="--for", hint="--for 4m") from exc
    stop_at = time.monotonic() + for_s
    policy = load_policy(Path(policy_file))
    _require_sites({"from": [policy.from_site], "to": policy.to}, policy_file)
    connections, foresee = Connections(), Fresh()
    done = Tick()
    seen: set[int] = set()
    problems: list[str] = []
    try:
        with RunLock(lock_path()) as lock, Ledger.open() as ledger:
            while True:
                done = tick(ledger, policy, connections, notice, foresee)
                seen.update(move.move_id for move in done.advanced)
                for problem in done.problems:
                    if problem not in problems:
                        notice(problem)
                        problems.append(problem)
                if until_settled:
                    if not Moves(ledger).unsettled():
                        break
                elif time.monotonic() + POLL_S > stop_at:
                    break
                lock.touch()
                for move in attend(
                    Handover(ledger, connections, jobs_folder(), notice), connections, POLL_S
                ):
                    seen.add(move.move_id)
            moves = [Moves(ledger).get(number) for number in sorted(seen)]
            rows = [_move_row(ledger, move) for move in moves]
            data = {
                "locked": False,
                "plan": _plan_data(done.plan) if done.plan else None,
                "moves": [_move_data(ledger, move) for move in moves],
                "problems": problems,
            }
    except LockHeldError as exc:
        # two cron lines at once are harmless: the other one does the work
        if as_json:
            emit_json({"locked": True, "plan": None, "moves": [], "problems": [str(exc)]})
        notice(exc.message)
        return
    finally:
        connections.close()
    if as_json:
        emit_json(data)
    else:
        _print_run(done, rows)
    if done.plan is None:
        raise click.exceptions.Exit(5)


def _shadow(policy_file: str, *, as_json: bool) -> None:
    from pathlib import Path

    from hpcscale.burst.kept import keep
    from hpcscale.burst.policy import load_policy
    from hpcscale.burst.run import Connections, look
    from hpcscale.burst.shadow import remember, would_have
    from hpcscale.ledger import Ledger

    policy = load_policy(Path(policy_file))
    _require_sites({"from": [policy.from_site], "to": policy.to}, policy_file)
    connections = Connections()
    try:
        with Ledger.open() as ledger:
            seen = look(ledger, policy, connections)
            keep(seen)
            made = seen.plan
            assert made is not None
            new = remember(ledger, made, policy, connections.site)
            total = would_have(ledger, seen.forecast.coverage)
    finally:
        connections.close()
    if as_json:
        emit_json(
            {
                "shadow": True,
                "plan": _plan_data(made),
                "new_verdicts": new,
                "would_have": _builtins(total),
            }
        )
        return
    _print_plan(made)
    click.echo(f"shadow: nothing was moved; {total.sentence}")


@command.command()
@click.option("--all", "all_moves", is_flag=True, help="Settled moves too.")
@json_option
def status(all_moves: bool, as_json: bool) -> None:
    """Show moves under way, and the last one of each run with --all."""
    from hpcscale.burst.lock import holder_of
    from hpcscale.burst.moves import Moves
    from hpcscale.burst.run import lock_path
    from hpcscale.ledger import Ledger

    with Ledger.open() as ledger:
        moves = Moves(ledger).all() if all_moves else Moves(ledger).unsettled()
        rows = [_move_row(ledger, move) for move in moves]
        data = [_move_data(ledger, move) for move in moves]
    holder = holder_of(lock_path())
    if as_json:
        emit_json({"moves": data, "running": holder})
        return
    if not rows:
        click.echo("no moves" if all_moves else "no moves under way")
    else:
        emit_table(MOVE_COLUMNS, rows)
    if holder:
        notice(f"`hpcscale burst run` is at work: process {holder['pid']} on {holder['host']}")


@command.command()
@click.argument("job")
@json_option
def undo(job: str, as_json: bool) -> None:
    """Take JOB's move back: end its cloud job if it has not started, and lift the fence on-prem."""
    from hpcscale.burst.elements import moves_with_elements
    from hpcscale.burst.handover import Handover
    from hpcscale.burst.lock import RunLock
    from hpcscale.burst.run import Connections, jobs_folder, lock_path
    from hpcscale.errors import NotFoundError, UsageError
    from hpcscale.ledger import Ledger

    connections = Connections()
    try:
        # a cron's tick is over soon; a `run --wait` is not
        with RunLock(lock_path(), patience_s=15.0), Ledger.open() as ledger:
            found = ledger.resolve(job)
            handover = Handover(ledger, connections, jobs_folder(), notice)
            mine = handover.moves.of_run(found.run.run_id)
            alone = moves_with_elements(ledger, found.run.run_id)[len(mine) :]
            mine = mine or [move for move in alone if move.task == found.task]
            if not mine and alone:
                raise UsageError(
                    f"elements of {job} moved one by one",
                    hint=f"name one: hpcscale burst undo {alone[-1].run_id}",
                )
            if not mine:
                raise NotFoundError(
                    f"{job} was never moved", hint="hpcscale burst status --all lists moves"
                )
            move = handover.undo(mine[-1])
            data = _move_data(ledger, move)
            row = _move_row(ledger, move)
    finally:
        connections.close()
    if as_json:
        emit_json(data)
        return
    emit_table(MOVE_COLUMNS, [row])
    if not move.step.settled:
        notice("not finished: the next `hpcscale burst run` or `burst undo` goes on")


@command.command()
@click.option(
    "--anchor",
    "site_name",
    metavar="SITE",
    help="Compare with the heads kept at SITE, then keep this one there.",
)
@json_option
def audit(site_name: str | None, as_json: bool) -> None:
    """Check that no line of the audit log was changed, taken out or put in (else exit 9).

    Each act of burst on a job is in it: decide, refuse, submit, update (fence and its end), claim,
    open or close, cancel, revoke. What that proves, and what not: docs/audit.md.
    """
    from hpcscale.burst.audit import AuditLog, anchor
    from hpcscale.burst.run import Connections

    log = AuditLog()
    head, hashes = log.verify()
    agreed: int | None = None
    if site_name is not None:
        connections = Connections()
        try:
            agreed = anchor(connections(site_name), head, hashes)
        finally:
            connections.close()
    if as_json:
        data = {"path": str(log.path), "lines": head.number, "head": head.sha256, "agreed": agreed}
        emit_json(data)
        return
    click.echo(f"{log.path}: {head.number} lines, each follows the one before")
    click.echo(f"head: {head.sha256}")
    if agreed is not None:
        click.echo(f"{site_name}: {agreed} earlier heads agree, and this one is kept there")


@command.command()
@click.option("--site", "sites", multiple=True, help="Only this site; may be repeated.")
@json_option
def reap(sites: tuple[str, ...], as_json: bool) -> None:
    """Clear what a killed run or a controller's crash left, by any ledger of yours.

    Cloud jobs that no decision owns are ended; on-prem jobs that are fenced for a cloud job that
    will never begin get their place back.
    """
    import msgspec

    from hpcscale.burst.orphans import orphans
    from hpcscale.burst.reap import burst_sites, origin_sites
    from hpcscale.burst.reap import reap as reap_jobs
    from hpcscale.burst.run import Connections
    from hpcscale.errors import HpcscaleError
    from hpcscale.ledger import Ledger

    connections = Connections()
    fences = []
    try:
        with Ledger.open() as ledger:
            found, problems = reap_jobs(ledger, connections, sites or burst_sites(ledger))
            for site in sites or origin_sites(ledger):
                try:
                    fences += orphans(ledger, connections, site)
                except HpcscaleError as exc:
                    problems.append(str(exc))
    finally:
        connections.close()
    if as_json:
        emit_json(
            {
                "jobs": msgspec.to_builtins(found),
                "fences": msgspec.to_builtins(fences),
                "problems": problems,
            }
        )
    elif found or fences:
        rows = [[r.ref, "ended" if r.ended else "left", r.why] for r in found]
        rows += [[f.ref, f"fence {f.done}" if f.done != "ended" else f.done, f.why] for f in fences]
        emit_table(("JOB", "DONE", "WHY"), rows)
    else:
        click.echo("nothing to reap")
    for problem in problems:
        notice(problem)
    if problems:
        raise click.exceptions.Exit(5)


MOVE_COLUMNS = ("RUN", "NAME", "FROM", "TO", "STEP", "COST", "WHY")


def _move_row(ledger: "Ledger", move: "Move") -> list[str]:
    data = _move_data(ledger, move)
    cost = data["cost_usd"]
    estimate = move.estimate_usd
    return [
        move.run_id,
        move.name,
        data["from"],
        data["to"],
        move.step.value,
        f"${cost}" if cost is not None else (f"(at most ${estimate})" if estimate else "unknown"),
        "; ".join(part for part in (move.reason, move.message) if part),
    ]


def _move_data(ledger: "Ledger", move: "Move") -> dict[str, Any]:
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


def _builtins(data: Any) -> Any:
    import msgspec

    return msgspec.to_builtins(data, builtin_types=(_decimal(),))


def _plan_data(made: "BurstPlan") -> dict[str, Any]:
    data: dict[str, Any] = _builtins(made)
    data["known_cost_usd"] = made.known_cost_usd
    data["unknown_costs"] = made.unknown_costs
    return data


def _decimal() -> type:
    from decimal import Decimal

    return Decimal


def _print_plan(made: "BurstPlan") -> None:
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
                "; ".join(part for part in (decision.reason, decision.runner_up) if part),
            ]
        )
    emit_table(("RUN", "JOB", "NAME", "ACTION", "TO", "WHEN", "COST", "WHY"), rows)
    total = f"{len(made.moves)} to move, {usd(made.known_cost_usd)}"
    if made.unknown_costs:
        total += f" and {made.unknown_costs} of unknown cost"
    click.echo(total)


def _print_run(done: "Tick", rows: list[list[str]]) -> None:
    if rows:
        emit_table(MOVE_COLUMNS, rows)
        return
    if done.plan is None:
        return
    stays = len(done.plan.decisions)
    click.echo(f"nothing to move ({stays} waiting)" if stays else "nothing to move")


def _require_sites(keys: "Mapping[str, Sequence[str]]", policy_file: str) -> None:
    """Name file, line and key of a site that nobody has heard of."""
    from hpcscale.errors import NotFoundError
    from hpcscale.site import load_target
    from hpcscale.tomlfile import with_line

    for key, names in keys.items():
        for name in names:
            try:
                load_target(name)
            except NotFoundError as exc:
                exc.where = f"{with_line(policy_file, key)}: key {key!r}"
                raise
