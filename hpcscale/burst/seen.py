"""What ``decide`` is told, one type an argument: plain data, kept and read again as JSON."""

import datetime as dt
from collections.abc import Mapping
from typing import Protocol

import msgspec

from hpcscale.burst.budget import Charge
from hpcscale.burst.catalog import Offer
from hpcscale.burst.plan import Candidate, Forecast, Frozen, Start
from hpcscale.burst.policy import Budget
from hpcscale.site import Site


class Shortage(Frozen, frozen=True, kw_only=True):
    """A target, or one of its partitions, that had no nodes lately.

    Attributes:
        target: as the policy names it.
        partition: of it; None: its default one.
        until: it is left alone until then.
        why: what was found.
    """

    target: str
    partition: str | None = None
    until: dt.datetime
    why: str


class Snapshot(Frozen, frozen=True, kw_only=True):
    """What was just observed.

    Attributes:
        jobs: this user's waiting jobs.
        shortages: targets without nodes, from earlier moves.
    """

    jobs: tuple[Candidate, ...] = ()
    shortages: tuple[Shortage, ...] = ()


class Catalog(Frozen, frozen=True, kw_only=True):
    """Where a job can go, and what that costs.

    Attributes:
        sites: profiles of the policy's targets, by the policy's names.
        rows: the offers that their partitions name.
    """

    sites: dict[str, Site] = msgspec.field(default_factory=dict)
    rows: dict[str, Offer] = msgspec.field(default_factory=dict)


class Budgets(Frozen, frozen=True, kw_only=True):
    """Limits on what may be spent, and what earlier moves cost or reserved."""

    limits: tuple[Budget, ...] = ()
    charges: tuple[Charge, ...] = ()


class Expected(Protocol):
    """When jobs would start, as things are and as if some had left."""

    @property
    def forecast(self) -> Forecast:
        """As things are."""

    def replan(self, gone: frozenset[str]) -> Mapping[str, Start]:
        """The same for the same ids."""


class Foretold:
    """A forecast with the plans that were made of it once.

    Args:
        forecast: as things were.
        replans: starts by the ids of those who had left, joined by spaces.
    """

    def __init__(
        self,
        forecast: Forecast | None = None,
        replans: Mapping[str, Mapping[str, Start]] | None = None,
    ) -> None:
        self.forecast = forecast or Forecast()
        self._replans = replans or {}

    def replan(self, gone: frozenset[str]) -> Mapping[str, Start]:
        """See ``Expected``; what was not made is empty: nobody starts otherwise."""
        return self._replans.get(ids(gone), {})


class Recording:
    """Passes on, and keeps every plan that was asked for in ``replans``."""

    def __init__(self, inner: Expected) -> None:
        self._inner = inner
        self.replans: dict[str, dict[str, Start]] = {}

    @property
    def forecast(self) -> Forecast:
        """See ``Expected``."""
        return self._inner.forecast

    def replan(self, gone: frozenset[str]) -> Mapping[str, Start]:
        """See ``Expected``."""
        return self.replans.setdefault(ids(gone), dict(self._inner.replan(gone)))


def ids(gone: frozenset[str]) -> str:
    """A set of Slurm ids as a key."""
    return " ".join(sorted(gone))
