"""``hpcscale burst replay``: kept decisions made again."""

import click

from hpcscale.cli._output import emit_json, emit_table, json_option


@click.command()
@click.argument("snapshot", required=False)
@json_option
def replay(snapshot: str | None, as_json: bool) -> None:
    """Decide again on kept snapshots (all, or one by its hash), and compare (else exit 9).

    Each run of `burst run` or `--shadow` that moved a job or changed a verdict keeps what it saw:
    jobs, forecasts, offers, charges, policy. The decision's hash is in the audit log.
    """
    from hpcscale.burst.kept import names, read, replay

    wanted = names() if snapshot is None else [snapshot]
    rows = []
    data = []
    for name in wanted:
        seen, changed = replay(name)
        plan = seen.plan or read(name).plan
        assert plan is not None
        verdict = "same" if not changed else f"differs: {', '.join(changed)}"
        moves, jobs = len(plan.moves), len(seen.snapshot.jobs)
        rows.append([name[:12], f"{seen.now:%Y-%m-%d %H:%M:%SZ}", str(jobs), str(moves),
                     verdict])  # fmt: skip
        data.append({"snapshot": name, "now": seen.now, "jobs": jobs, "moves": moves,
                     "changed": changed})  # fmt: skip
    if as_json:
        emit_json({"snapshots": data})
    elif rows:
        emit_table(("SNAPSHOT", "AT", "JOBS", "MOVES", "AGAIN"), rows)
    else:
        click.echo("no decision has been kept yet")
    if any(entry["changed"] for entry in data):
        raise click.exceptions.Exit(9)
