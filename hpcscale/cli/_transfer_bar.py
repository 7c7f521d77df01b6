"""A bar on a terminal while files are copied; nothing in a pipe."""

import sys
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID


class Bar:
    """Told by a copy how it goes on; draws on standard error when that is a terminal."""

    def __init__(self) -> None:
        self._bar: Progress | None = None
        self._task: TaskID | None = None

    def begin(self, what: str, total_bytes: int) -> None:
        """A bar for so many bytes; none for what is done at once."""
        if not total_bytes or not sys.stderr.isatty():
            return
        if self._bar is None:
            from rich.console import Console
            from rich.progress import (
                BarColumn,
                DownloadColumn,
                Progress,
                TextColumn,
                TimeRemainingColumn,
                TransferSpeedColumn,
            )

            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                DownloadColumn(),
                TransferSpeedColumn(),
                TimeRemainingColumn(),
                console=Console(stderr=True),
                transient=True,
            )
            self._bar.start()
        self._task = self._bar.add_task(what, total=total_bytes)

    def advance(self, size: int) -> None:
        """So many bytes more."""
        if self._bar is not None and self._task is not None:
            self._bar.advance(self._task, size)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()
