"""``hpcscale burst status|undo|audit|reap``: moves under way, and what is left of them."""

from typing import TYPE_CHECKING

import click

from hpcscale.cli._burst_tables import MOVE_COLUMNS, move_data, move_row
from hpcscale.cli._output import emit_json, emit_table, json_option, notice

if TYPE_CHECKING:
    from typing import TextIO


@click.command()
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
        rows = [move_row(ledger, move) for move in moves]
        data = [move_data(ledger, move) for move in moves]
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


@click.command()
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
            data = move_data(ledger, move)
            row = move_row(ledger, move)
    finally:
        connections.close()
    if as_json:
        emit_json(data)
        return
    emit_table(MOVE_COLUMNS, [row])
    if not move.step.settled:
        notice("not finished: the next `hpcscale burst run` or `burst undo` goes on")


@click.command()
@click.option(
    "--anchor",
    "site_name",
    metavar="SITE",
    help="Compare with the heads kept at SITE, then keep this one there.",
)
@click.option(
    "--syslog",
    "syslog",
    metavar="FILE",
    type=click.File(encoding="utf-8", errors="replace"),
    help="Compare with the heads in this file of syslog's; - reads what journalctl prints.",
)
@json_option
def audit(site_name: str | None, syslog: "TextIO | None", as_json: bool) -> None:
    """Check that no line of the audit log was changed, taken out or put in (else exit 9).

    \b
      hpcscale burst audit
      hpcscale burst audit --syslog /var/log/auth.log
      journalctl --facility=auth --output=short | hpcscale burst audit --syslog -

    Each act of burst on a job is in it: decide, refuse, submit, update (fence and its end), claim,
    open or close, cancel, revoke. What that proves, and what not: docs/audit.md.
    """  # noqa: D301  # click's mark for text that is not rewrapped
    import os

    from hpcscale.burst.audit import AuditLog, anchor
    from hpcscale.burst.heads import compare
    from hpcscale.burst.run import Connections

    log = AuditLog()
    head, hashes = log.verify(gone=site_name is not None or syslog is not None)
    agreed: int | None = None
    in_syslog: int | None = None
    if syslog is not None:
        in_syslog = compare(syslog, log.path, os.getuid(), hashes, syslog.name)
    if site_name is not None:
        connections = Connections()
        try:
            agreed = anchor(connections(site_name), head, hashes)
        finally:
            connections.close()
    if not (head.number or agreed or in_syslog):
        log.verify()  # no log, and nobody ever heard of one
    if as_json:
        emit_json(
            {
                "path": str(log.path),
                "lines": head.number,
                "head": head.sha256,
                "agreed": agreed,
                "syslog": in_syslog,
            }
        )
        return
    click.echo(f"{log.path}: {head.number} lines, each follows the one before")
    click.echo(f"head: {head.sha256}")
    if agreed is not None:
        click.echo(f"{site_name}: {agreed} earlier heads agree, and this one is kept there")
    if syslog is not None:
        click.echo(f"{syslog.name}: {in_syslog} heads agree")
        if not in_syslog:
            notice(f"{syslog.name} holds no head of this log: an older file, or another machine's?")


@click.command()
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
    from hpcscale.site import load_site

    for site in sites:
        load_site(site)  # a name that is none is an error of its own, not a site that is away
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
    problems = list(dict.fromkeys(problems))  # a site is asked twice: for jobs and for fences
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
    elif not problems:
        click.echo("nothing to reap")
    for problem in problems:
        notice(problem)
    if problems:
        raise click.exceptions.Exit(5)
