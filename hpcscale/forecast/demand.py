"""Demand to come, by hour of the week: what a site scales ahead for.

Seasonal naive with a trend: an hour is expected to bring what the same hour of past weeks brought
on average, times how the last week stood to those before it. Weeks start with the first job known.
"""

from dataclasses import dataclass

import numpy as np

from hpcscale.history.workload import Floats, Workload

HOUR_S = 3600.0
WEEK_H = 168
_WEEKS = 4  # that are averaged
_MOST_TREND = 2.0


@dataclass(frozen=True, eq=False)
class Demand:
    """Work that arrived in each hour, up to ``now_s``; the last hour is a whole one.

    Attributes:
        first_s: begin of the first hour.
        arrived: of each hour since; unit-hours of the jobs submitted in it.
    """

    first_s: float
    arrived: Floats

    @property
    def weeks(self) -> int:
        """Whole weeks known; with none there is no forecast by hour of week."""
        return len(self.arrived) // WEEK_H

    @property
    def trend(self) -> float:
        """The last week over the mean of up to three before it; 1 with less than two weeks."""
        if self.weeks < 2:
            return 1.0
        by_week = self._by_week().sum(axis=1)
        before = by_week[:-1].mean()
        if before <= 0:
            return 1.0
        return float(np.clip(by_week[-1] / before, 1 / _MOST_TREND, _MOST_TREND))

    def ahead(self, hours: int) -> Floats:
        """Expected arrivals of the next hours; without a whole week the mean of what is known."""
        if not self.weeks:
            mean = float(self.arrived.mean()) if len(self.arrived) else 0.0
            return np.full(hours, mean)
        table = self._by_week()
        # the last week is in the mean: so much of the trend is there already
        share = self.trend * len(table) / (self.trend + len(table) - 1)
        expected = table.mean(axis=0) * share
        return np.asarray(expected[np.arange(hours) % WEEK_H], dtype=np.float64)

    def _by_week(self) -> Floats:
        weeks = min(self.weeks, _WEEKS)
        return self.arrived[-weeks * WEEK_H :].reshape(weeks, WEEK_H)


def demand(jobs: Workload, now_s: float, *, gpus: bool = False) -> Demand:
    """Unit-hours that arrived in each hour before ``now_s``; nothing later is looked at.

    A job counts with its runtime once it has ended, until then with its limit, and with an hour
    where it has none.

    Args:
        jobs: a site's history.
        now_s: the moment of the forecast.
        gpus: count GPUs instead of nodes.
    """
    first = float(jobs.submit_s[0]) if len(jobs) else now_s
    hours = max(0, int((now_s - first) // HOUR_S))
    start = now_s - hours * HOUR_S
    known = (jobs.submit_s >= start) & (jobs.submit_s < now_s)
    ended = jobs.end_s <= now_s  # False for NaN
    limit = np.where(np.isfinite(jobs.limit_s), jobs.limit_s, HOUR_S)
    seconds = np.where(ended, jobs.runtime_s, limit)
    units = jobs.gpus if gpus else jobs.nodes
    hour = ((jobs.submit_s[known] - start) // HOUR_S).astype(np.int64)
    work = (units * seconds / HOUR_S)[known]
    return Demand(start, np.bincount(hour, weights=work, minlength=hours).astype(np.float64))
