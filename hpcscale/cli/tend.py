"""``hpcscale tend``: what limits kept back is sent, and what a controller has forgotten."""

import click

from hpcscale.cli._output import emit_json, json_option, notice


@click.command("tend")
@json_option
def command(as_json: bool) -> None:
    """Send tasks of arrays that a site had no room for.

    An array of functions that is larger than a site's MaxArraySize, or than its limit of submitted
    jobs, is sent in parts; the parts that did not fit wait here. A process that waits for their
    results sends them too; this command is for cron, and for when no such process lives.

    A job that its site's controller forgot right after its submission, as it does when it dies
    before it has saved its state, and that never began, is submitted again.

    Exit code 5 when no site concerned gave an answer. Nothing is unpickled.
    """
    from hpcscale import batches
    from hpcscale.burst.resubmit import resubmit
    from hpcscale.cli._jobs import SitePool
    from hpcscale.errors import HpcscaleError, NotFoundError, RefusedError, UnreachableError
    from hpcscale.ledger import Ledger
    from hpcscale.observe import observe

    try:
        ledger = Ledger.open(create=False)
    except NotFoundError:
        ledger = None
    if ledger is None:
        if as_json:
            emit_json({"batches": [], "again": []})
        else:
            click.echo("nothing waits to be sent")
        return
    found, silent = [], 0
    again: list[str] = []
    with ledger, SitePool() as pool:
        waiting = batches.waiting(ledger)
        for batch in waiting:
            run_id, site = batch.run.run_id, batch.run.site
            why = ""
            try:
                # submissions without an answer are settled first
                observe(ledger, pool, [p.attempt for p in batch.parts if p.attempt is not None])
                after = batches.send(ledger, pool(site), run_id)
                why = after.blocked
            except RefusedError as exc:
                batches.drop(ledger, run_id, exc.message)
                why = str(exc)
            except HpcscaleError as exc:
                silent += isinstance(exc, UnreachableError)
                why = str(exc)
            after = batches.read(ledger, run_id)
            sent = batch.unsent - after.unsent if not after.dropped else 0
            if why:
                notice(f"{run_id} at {site}: {why}")
            found.append(
                {
                    "run_id": run_id,
                    "name": batch.run.name,
                    "site": site,
                    "tasks": batch.size,
                    "sent_now": sent,
                    "waiting": after.unsent,
                    "dropped": after.dropped,
                    "why": why,
                }
            )
        sites = sorted({a.site for a in ledger.open_attempts()})
        for problem in resubmit(ledger, pool, sites, again.append):
            notice(problem)
    for sentence in again if not as_json else ():
        click.echo(sentence)
    if as_json:
        emit_json({"batches": found, "again": again})
    elif not found and not again:
        click.echo("nothing waits to be sent")
    else:
        for item in found:
            over = ", the rest is given up" if item["dropped"] else ""
            click.echo(
                f"{item['run_id']} at {item['site']}: {item['sent_now']} of {item['tasks']} tasks "
                f"sent, {item['waiting']} wait{over}"
            )
    if silent and silent == len(found):
        raise UnreachableError("no site gave an answer", hint="hpcscale site check")
