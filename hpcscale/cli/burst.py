"""``hpcscale burst``: what would move, move it, see and undo moves."""

from typing import TYPE_CHECKING

import click

from hpcscale.cli._burst_moves import audit, reap, status, undo
from hpcscale.cli._burst_replay import replay
from hpcscale.cli._burst_simulate import simulate
from hpcscale.cli._burst_tables import (
    builtins,
    move_data,
    move_row,
    plan_data,
    print_plan,
    print_run,
)
from hpcscale.cli._output import emit_json, json_option, notice

if TYPE_CHECKING:
    from hpcscale.burst.policy import Policy

POLL_S = 2.0

policy_option = click.option(
    "--policy",
    "policy_name",
    metavar="P.toml|NAME",
    help="The burst policy: a file, or one of those that come along (never, always, no-wait, "
    "threshold, constant-wait, compute-wait, deadline, value). Default: burst_policy in your "
    "config.toml, else value.",
)


@click.group(name="burst")
def command() -> None:
    """Let waiting jobs overflow to cloud sites: plan, explain, run, undo, audit, simulate."""


for verb in (status, undo, audit, reap, simulate, replay):
    command.add_command(verb)


@command.command()
@policy_option
@json_option
def plan(policy_name: str | None, as_json: bool) -> None:
    """Say which waiting jobs would move, where, when, why and at what cost. Acts on nothing."""
    from hpcscale.burst.run import Connections, make_plan
    from hpcscale.ledger import Ledger

    policy = _policy(policy_name)
    connections = Connections()
    try:
        with Ledger.open() as ledger:
            made = make_plan(ledger, policy, connections)
    finally:
        connections.close()
    if as_json:
        emit_json(plan_data(made))
        return
    print_plan(made)


@command.command()
@click.argument("job")
@policy_option
@json_option
def explain(job: str, policy_name: str | None, as_json: bool) -> None:
    """Say what the policy does with JOB, why, and what else could be done. Acts on nothing."""
    from msgspec import structs

    from hpcscale.burst.elements import runs_of
    from hpcscale.burst.run import Connections, make_plan
    from hpcscale.burst.words import show_time, usd
    from hpcscale.cli._burst_beside import cost_here, free_levers, lever_line
    from hpcscale.errors import NotFoundError
    from hpcscale.ledger import Ledger

    policy = _policy(policy_name)
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
            if not found:
                raise NotFoundError(
                    f"{job} does not wait on {policy.from_site} with burst=auto or only",
                    hint=f"hpcscale status {job}",
                )
            decision = found[0]
            waits = ledger.resolve(decision.ref)
            here = connections(policy.from_site)
            levers = free_levers(here, waits.attempt)
            spec, limit_s = waits.run.spec, waits.attempt.time_limit_s
            if waits.task is not None:  # of its array, this element alone
                spec = structs.replace(spec, array=str(waits.task))
            here_usd, here_why = cost_here(spec, limit_s, here.site)
    finally:
        connections.close()
    if as_json:
        beside = {"levers": builtins(levers), "here_usd": builtins(here_usd)}
        emit_json({"decision": builtins(decision), "now": made.now, **beside})
        return
    where = f" to {decision.to}" if decision.to else ""
    click.echo(f"{decision.ref} ({decision.name}): {decision.action.value}{where}")
    click.echo(f"  why: {decision.reason}")
    if decision.runner_up:
        click.echo(f"  {decision.runner_up}")
    if line := lever_line(levers, decision.ref):
        click.echo(f"  {line}")
    if decision.stage_why:
        click.echo(f"  ahead: {decision.stage_why}")
    if here_usd is not None:
        click.echo(f"  here: its hours cost {usd(here_usd)} ({here_why})")
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
    policy_name: str | None,
    *,
    once: bool,
    for_text: str | None,
    until_settled: bool,
    shadow: bool,
    as_json: bool,
) -> None:
    """Move the jobs that the policy moves, and take moves under way further.

    Run it from cron; each call goes on where the last one stood, wherever it was stopped. When
    another `hpcscale burst run` is at work, this one says so and exits with 0. Exit code 9: a move
    stands still, as the ledger or a state directory cannot be written; 5: a site gives no answer.
    """
    import time

    from hpcscale.burst.attend import attend
    from hpcscale.burst.expect import Fresh
    from hpcscale.burst.handover import Handover
    from hpcscale.burst.lock import LockHeldError, RunLock
    from hpcscale.burst.moves import Moves
    from hpcscale.burst.run import Connections, Tick, jobs_folder, lock_path, tick
    from hpcscale.errors import StateError, UnreachableError, UsageError
    from hpcscale.ledger import Ledger
    from hpcscale.units import parse_duration_s

    if once + until_settled + bool(for_text) > 1:
        raise UsageError("--once, --for and --wait exclude each other", hint="name one")
    if shadow:
        if until_settled or for_text:
            raise UsageError("--shadow decides once", hint="a cron line calls it again")
        _shadow(policy_name, as_json=as_json)
        return
    try:
        for_s = (parse_duration_s(for_text) or 0) if for_text else 0
    except ValueError as exc:
        raise UsageError(str(exc), where="--for", hint="--for 4m") from exc
    stop_at = time.monotonic() + for_s
    policy = _policy(policy_name)
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
            rows = [move_row(ledger, move) for move in moves]
            data = {
                "locked": False,
                "plan": plan_data(done.plan) if done.plan else None,
                "moves": [move_data(ledger, move) for move in moves],
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
        print_run(done, rows)
    if done.unwritten:
        raise click.exceptions.Exit(StateError.exit_code)
    if done.plan is None:
        raise click.exceptions.Exit(UnreachableError.exit_code)


def _shadow(policy_name: str | None, *, as_json: bool) -> None:
    from hpcscale.burst.run import Connections
    from hpcscale.burst.shadow import shadow
    from hpcscale.ledger import Ledger

    policy = _policy(policy_name)
    connections = Connections()
    try:
        with Ledger.open() as ledger:
            done = shadow(ledger, policy, connections)
    finally:
        connections.close()
    if as_json:
        emit_json(
            {
                "shadow": True,
                "plan": plan_data(done.plan),
                "new_verdicts": done.new,
                "would_have": builtins(done.total),
            }
        )
        return
    print_plan(done.plan)
    click.echo(f"shadow: nothing was moved; {done.total.sentence}")


def _policy(given: str | None) -> "Policy":
    from hpcscale.burst.policies import find_policy
    from hpcscale.errors import NotFoundError
    from hpcscale.site import load_target
    from hpcscale.tomlfile import with_line

    policy = find_policy(given)
    for key, names in {"from": [policy.from_site], "to": policy.to}.items():
        for name in names:
            try:
                load_target(name)
            except NotFoundError as exc:
                exc.where = f"{with_line(policy.source, key)}: key {key!r}"
                raise
    return policy
