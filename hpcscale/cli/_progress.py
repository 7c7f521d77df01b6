"""A progress bar on stderr, on a terminal alone."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Advance = Callable[[str, float], None]


@contextmanager
def progress(label: str) -> Iterator[Advance]:
    """Show a bar while the block runs.

    Args:
        label: what is being done, until the first call says better.

    Yields:
        ``advance(text, share)``: what is done now, and which share of all is done (0 to 1).
    """
    if not sys.stderr.isatty():
        yield lambda _text, _share: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(label, total=1.0)

        def advance(text: str, share: float) -> None:
            bar.update(task, description=text, completed=min(1.0, share))

        yield advance
