"""What time is it at a site? Its controller's word; this machine's clock may be wrong.

Deadlines, waiting times and start estimates of a site are compared with its own "now" only.
"""

import datetime as dt
import time
from collections.abc import Callable
from typing import Protocol


class Clock(Protocol):
    """Tells the time."""

    def now(self) -> dt.datetime:
        """Aware UTC."""


class SiteClock:
    """A site's time: the controller is asked once, then this machine's monotonic clock counts on.

    Args:
        ask: the controller's own now, such as ``CliClient.now``; aware UTC, whole seconds.
        trust_s: how long one answer is counted on from before the controller is asked again.
    """

    def __init__(self, ask: Callable[[], dt.datetime], *, trust_s: float = 30.0) -> None:
        self._ask = ask
        self._trust_s = trust_s
        self._answer: dt.datetime | None = None
        self._answered_at = 0.0

    def now(self) -> dt.datetime:
        """The site's time, aware UTC; off by the time of one question at most, and a second.

        Raises:
            UnreachableError: the controller does not answer.
        """
        elapsed = time.monotonic() - self._answered_at
        if self._answer is None or elapsed > self._trust_s:
            self._answer = self._ask()
            self._answered_at = time.monotonic()
            elapsed = 0.0
        return self._answer + dt.timedelta(seconds=elapsed)

    def offset_s(self) -> float:
        """Seconds by which the site is ahead of this machine."""
        return (self.now() - dt.datetime.now(dt.UTC)).total_seconds()


class SystemClock:
    """This machine's time, for tests and for what concerns this machine alone."""

    def now(self) -> dt.datetime:
        """Aware UTC."""
        return dt.datetime.now(dt.UTC)


class ManualClock:
    """A clock that moves when it is told to, for tests.

    Args:
        start: aware; default 2026-01-01.
    """

    def __init__(self, start: dt.datetime | None = None) -> None:
        self._now = start or dt.datetime(2026, 1, 1, tzinfo=dt.UTC)

    def now(self) -> dt.datetime:
        """Aware UTC."""
        return self._now

    def advance(self, seconds: float) -> dt.datetime:
        """Move on and give the new time."""
        if seconds < 0:
            raise ValueError("a clock does not run backwards")
        self._now += dt.timedelta(seconds=seconds)
        return self._now
