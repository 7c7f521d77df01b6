"""``hpcscale forecast --site NAME --backtest``: how good forecasts of a site would have been."""

from typing import TYPE_CHECKING

import click

from hpcscale.cli._output import emit_json, emit_table, printable

if TYPE_CHECKING:
    from hpcscale.outlook.proof import Proof


def show(site: str, *, as_json: bool) -> None:
    """Forecast the site's past jobs again, and print what it comes to."""
    import msgspec

    from hpcscale.cli._progress import progress
    from hpcscale.connect import connect
    from hpcscale.outlook.proof import proof
    from hpcscale.site import load_site

    with (
        connect(load_site(site).site) as connection,
        progress("asking for the history") as advance,
    ):
        found = proof(connection, lambda share: advance("forecasting it again", share))
    if as_json:
        emit_json(msgspec.to_builtins(found))
        return
    ratio = "-" if found.error_ratio is None else f"{found.error_ratio:.2f}"
    emit_table(
        ["FORECASTS", "MEAN WAIT", "ERROR OF P50", "OF LIMITS'", "P90 HELD", "MEAN P90",
         "OF QBETS'", "QBETS HELD"],
        [[str(found.forecasts), f"{found.mean_wait_h:.2f} h", f"{found.error_h:.2f} h", ratio,
          f"{found.coverage:.1%}", f"{found.width_h:.2f} h", f"{found.width_ratio:.2f}",
          f"{found.qbets_coverage:.1%}"]],
    )  # fmt: skip
    for line in _lines(found):
        click.echo(printable(f"{found.site}: {line}"))


def _lines(found: "Proof") -> list[str]:
    days = (found.until - found.since).total_seconds() / 86400
    way = "queues that run on" if found.runs_on else "one plan each, the queues being long"
    history = f"{found.jobs} jobs of {days:.1f} days on {found.capacity} {found.unit}s as one class"
    lines = [
        f"{history}; {found.most_waiting} waited at most; starts by {way}",
        "scored: the last 60 % of those that waited for more than a minute; learned from: the rest",
    ]
    if found.left_out:
        why = ", ".join(f"{count} {name}" for name, count in found.left_out.items())
        lines.append(f"left out: {why}")
    if found.said_coverage is not None:
        lines.append(
            f"of what was said here, {found.said} forecasts have come true: p90 held for "
            f"{found.said_coverage:.1%}"
        )
    return lines
