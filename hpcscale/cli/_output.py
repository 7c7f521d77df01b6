"""How every command prints: a table for people, one JSON document for programs.

Results go to stdout, everything else to stderr. ``--json`` prints ``{"schema": 1, "data": …}``.
"""

import datetime as dt
import decimal
import enum
import json
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

import click

SCHEMA = 1
MIN_FOLDED = 24  # characters of a column that is folded

json_option: Callable[[Any], Any] = click.option(
    "--json", "as_json", is_flag=True, help="Print one JSON document instead of text."
)


def _plain(value: Any) -> Any:
    """What `json` cannot write by itself."""
    if isinstance(value, dt.datetime):
        return value.astimezone(dt.UTC).isoformat().replace("+00:00", "Z")
    if isinstance(value, (dt.date, decimal.Decimal)):
        return str(value)
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, (set, frozenset, tuple)):
        return list(value)
    if hasattr(value, "__struct_fields__"):
        import msgspec

        return msgspec.to_builtins(value)
    return str(value)


def emit_json(data: Any) -> None:
    """Print ``data`` as the command's one JSON document."""
    click.echo(json.dumps({"schema": SCHEMA, "data": data}, default=_plain, indent=2))


def silence_stdout() -> None:
    """Let what is still buffered go nowhere: writing it at exit would fail once more."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def printable(text: str) -> str:
    """Text from a site or a user with control characters made visible.

    A job name may hold escapes that would rewrite the reader's terminal.
    """
    if text.isprintable():
        return text
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text
    )


def printable_lines(text: str) -> str:
    """``printable`` for several lines; further ones are indented, to pass for no new message."""
    first, *more = text.split("\n")
    return "\n".join([printable(first), *(f"    {printable(line.strip())}" for line in more)])


def emit_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A rich table on a terminal that is wide enough; else aligned plain text, uncut, uncoloured.

    On a terminal only the widest column is folded, and never below ``MIN_FOLDED``: ids and dates
    cut into pieces of three letters are of no use to anybody.
    """
    clean = [[printable(cell) for cell in row] for row in rows]
    widths = [
        max(len(column), *(len(row[i]) for row in clean)) if clean else len(column)
        for i, column in enumerate(columns)
    ]
    from shutil import get_terminal_size

    widest = widths.index(max(widths))
    needed = sum(widths) + 2 * len(widths) - widths[widest] + min(widths[widest], MIN_FOLDED)
    if (
        sys.stdout.isatty()
        and "NO_COLOR" not in os.environ
        and needed <= get_terminal_size().columns
    ):
        from rich import box
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        for index, column in enumerate(columns):
            table.add_column(column, overflow="fold", no_wrap=index != widest)
        for row in clean:
            table.add_row(*(Text(cell) for cell in row))
        Console().print(table)
        return
    lines = [
        "  ".join([c.ljust(w) for c, w in zip(line, widths, strict=True)]).rstrip()
        for line in [list(columns), *clean]
    ]
    click.echo("\n".join(lines))


def notice(text: str) -> None:
    """Something the user should know that is no result: to stderr."""
    click.echo(f"hpcscale: {printable(text)}", err=True)
