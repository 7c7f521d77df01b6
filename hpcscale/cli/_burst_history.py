"""The history of ``hpcscale burst simulate``: its options, and what is said of how it was taken."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

from hpcscale.cli._output import notice

if TYPE_CHECKING:
    from hpcscale.history.reading import Reading

F = TypeVar("F", bound=Callable[..., Any])

_OPTIONS = (
    click.option(
        "--history",
        required=True,
        metavar="FILE",
        type=click.Path(),
        help="SWF, sacct -P, Philly's CSV or Starburst's CSV; packed by gzip or not. live:90d asks "
        "the accounting of --site.",
    ),
    click.option(
        "--processors-per-node",
        type=click.IntRange(1, 100_000),
        metavar="N",
        help="SWF: so many of its processors are a node.  [default: MaxProcs over MaxNodes of its "
        "header, else each is one]",
    ),
)


def history_options(command: F) -> F:
    """The options of the history."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def read(
    history: str, site: str | None, gpus_per_node: int, processors_per_node: int | None
) -> "tuple[Reading, list[str]]":
    """The history, and the notes on how it was taken, which are on stderr by then.

    Args:
        history: a file, or ``live:`` and a length of time.
        site: whose accounting is asked.
        gpus_per_node: of the cluster that the jobs are replayed on.
        processors_per_node: as asked for.
    """
    from pathlib import Path

    from hpcscale.history.read import read_history

    if history.startswith("live:"):
        reading = _live(history, site, gpus_per_node)
    else:
        reading = read_history(
            Path(history), gpus_per_node=gpus_per_node, cpus_per_node=processors_per_node
        )
    notes = list(reading.notes)
    for note in notes:
        notice(f"{note}; --processors-per-node N says otherwise")
    if not reading.workload.gpus.any():
        notes.append(
            f"no job of {reading.workload.source} names GPUs: each counts as all {gpus_per_node} "
            "GPUs of its nodes, in the cloud as well"
        )
        notice(notes[-1])
    return reading, notes


def _live(history: str, site: str | None, gpus_per_node: int) -> "Reading":
    from hpcscale.connect import connect
    from hpcscale.errors import UsageError
    from hpcscale.outlook.past import past
    from hpcscale.site import load_site
    from hpcscale.units import parse_duration_s

    if site is None:
        raise UsageError(f"--history {history} asks a site's accounting", hint="--site SITE")
    try:
        since_s = parse_duration_s(history.removeprefix("live:")) or 0
    except ValueError as exc:
        raise UsageError(str(exc), where="--history", hint="live:90d") from exc
    with connect(load_site(site).site) as connection:
        return past(connection, since_s, gpus_per_node=gpus_per_node)
