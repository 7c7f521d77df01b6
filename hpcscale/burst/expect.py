"""The forecast that decisions rest on: when each waiting job would start where it is.

It only reads. What keeps it from a figure (hidden jobs, no package, no answer) is said in the
forecast, and decisions then follow the threshold rule.
"""

import contextlib
import sys
import threading
import time
from collections.abc import Collection
from importlib import import_module
from typing import TYPE_CHECKING, Protocol

from hpcscale.burst.plan import Forecast, Level, Start
from hpcscale.burst.policy import Policy, PolicyKind
from hpcscale.connect import Connection
from hpcscale.errors import HpcscaleError

if TYPE_CHECKING:
    from hpcscale.outlook.starts import Outlook

FRESH_S = 60.0  # a forecast takes some ten commands
_BLIND = {PolicyKind.NEVER, PolicyKind.ALWAYS}  # kinds that no start would change


class Foresight:
    """A forecast, and the same made anew as if some jobs had left.

    Args:
        forecast: of the queue as it is.
        outlook: plans anew; None: starts are not known.
    """

    def __init__(self, forecast: Forecast, outlook: "Outlook | None" = None) -> None:
        self.forecast = forecast
        self._outlook = outlook
        self._made: dict[frozenset[str], dict[str, Start]] = {}

    def replan(self, gone: frozenset[str]) -> dict[str, Start]:
        """Starts of the other jobs once these have left."""
        if self._outlook is None or not gone:
            return self.forecast.starts
        if gone not in self._made:
            seen = self._outlook.starts(set(self.forecast.starts) - gone, gone)
            self._made[gone] = {name: Start(p50=s.p50, p90=s.p90) for name, s in seen.items()}
        return self._made[gone]


class Foresee(Protocol):
    """Forecasts the starts of a site's jobs."""

    def __call__(
        self, connection: Connection, policy: Policy, job_ids: Collection[str]
    ) -> Foresight:
        """As ``expect`` does."""


class Fresh:
    """``expect``, asked anew after a minute or for a new job: a run that stays looks often."""

    def __init__(self) -> None:
        self._kept: tuple[float, frozenset[str], Foresight] | None = None

    def __call__(
        self, connection: Connection, policy: Policy, job_ids: Collection[str]
    ) -> Foresight:
        """As ``expect`` does; for one site and policy."""
        old = self._kept
        if old is None or time.monotonic() > old[0] + FRESH_S or not old[1].issuperset(job_ids):
            found = expect(connection, policy, job_ids)
            old = self._kept = (time.monotonic(), frozenset(job_ids), found)
        return old[2]


def begin_to_load(policy: Policy) -> None:
    """Load what a forecast is made with while Slurm is asked for the jobs: a tenth of a second."""
    if policy.kind in _BLIND or "hpcscale.outlook.starts" in sys.modules:
        return
    # no daemon: the interpreter must not end in the middle of it
    threading.Thread(target=_load).start()


def _load() -> None:
    with contextlib.suppress(HpcscaleError, ImportError):  # said by ``expect``
        import_module("hpcscale.outlook.starts")


def expect(connection: Connection, policy: Policy, job_ids: Collection[str]) -> Foresight:
    """Forecast the starts of these jobs; unknown, with the reason, rather than an error.

    Args:
        connection: to the site that they wait at.
        policy: of a kind that decides without looking ahead: nothing is asked.
        job_ids: of the site's Slurm.
    """
    if not job_ids or policy.kind in _BLIND:
        return Foresight(Forecast(why="no start was asked for"))
    try:
        # without its packages this raises, too
        from hpcscale.outlook.starts import Outlook

        seen = Outlook(connection)
        starts = seen.starts(job_ids)
    except HpcscaleError as exc:
        return Foresight(Forecast(why=exc.message))
    level = Level(seen.queue_level.value)
    why = ""
    if level is Level.OWN:
        why = f"{connection.site.name} hides other people's jobs (PrivateData)"
    elif seen.history_level.value == Level.ABSENT:
        why = "no slurmdbd, so by time limits alone"
    forecast = Forecast(
        level=level,
        why=why,
        learned_jobs=seen.learned_jobs,
        pending=seen.pending,
        coverage=seen.coverage,
        starts={name: Start(p50=one.p50, p90=one.p90) for name, one in starts.items()},
    )
    return Foresight(forecast, seen if level is Level.FULL else None)
