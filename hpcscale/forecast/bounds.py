"""Medians and upper bounds of waits, from how forecasts before turned out.

``AdaptiveBound`` is conformal prediction on the plan's own residuals, with the miss rate steered
online (Gibbs and Candes, "Adaptive conformal inference under distribution shift", NeurIPS 2021).
Forecasts of jobs that still wait count as what they are, residuals of at least so much (Kaplan and
Meier, JASA 1958): whoever learns from started jobs alone sees the short waits first. ``Qbets`` is
the quantile bound of Nurmi, Brevik and Wolski (JSSPP 2007), the comparator.

Both know a wait from the moment the job starts and not before: ``started`` is how they are told.
"""

import math
from bisect import insort
from heapq import heappop, heappush
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

_SOFT_S = 3600.0  # below an hour all waits scatter alike
_SPREAD = 0.4  # waits scatter more the longer they are, but less than in proportion
_TOLD_FROM = 20  # residuals below which nothing is stated
# weight of a forecast that has nothing in common, next to 1 of its twin: tails need more of them
_ALIKE_P50, _ALIKE_UPPER = 0.01, 0.1
_LEAST_SPREAD = 0.2  # of logarithms: closer than that is alike, whatever the others are
# the bound aims higher by so many standard errors of a share of misses that come in crowds
_ERRORS = 1.2
_CROWD = 50  # forecasts, one after the other, whose misses may have one cause
_CROWDED, _CROWDED_BLOCKS = 8.0, 4  # variance over that of single misses, believed like 4 blocks
_OWED = 0.1  # misses more than were to be are made up for, up to this level

Floats = NDArray[np.float64]


class Case(NamedTuple):
    """What a forecast was of; the likes of it turn out alike.

    Attributes:
        planned_s: wait by the plan.
        nodes: of the job.
        limit_s: its time limit; 0: none.
        own: jobs of the same user that wait as well: who sends hundreds at once meets limits and a
            falling priority, which no plan shows.
    """

    planned_s: float
    nodes: int = 1
    limit_s: float = 0.0
    own: int = 0


class Said(NamedTuple):
    """Half of such jobs wait no longer than ``p50_s``; all but the miss rate, ``upper_s``.

    NaN: too few forecasts have come true.
    """

    p50_s: float
    upper_s: float


class AdaptiveBound:
    """Median of the wait given the plan's, and an upper bound that the given share of jobs keeps.

    The residual is (wait - planned) / (planned + 1 h) ** 0.4. Its quantile is that of the last
    ``window`` residuals, those of like jobs weighing more, or of the last ``recent``, all alike:
    the greater of the two. The first is sharp, the second is quick when everything changes.

    What is aimed at is above ``level`` by what the share of misses is uncertain: misses come in
    crowds (one cause, many jobs), so that is more than their number says, and is learned from how
    much one stretch after another differs. Misses in excess are owed: the rate that is asked may
    fall below what a quantile can give, and the bound stays careful until it is back.

    Args:
        level: share of waits that shall be at or below the bound.
        window: residuals that are remembered.
        recent: of them those that answer for a change.
        rate: how fast misses change the level that is asked of the residuals.
    """

    def __init__(
        self,
        level: float = 0.9,
        *,
        window: int = 2000,
        recent: int = 400,
        rate: float = 0.01,
    ) -> None:
        self._misses = 1.0 - level
        self._rate = rate
        self._window, self._recent = window, recent
        self._crowded = _CROWDED
        self._aim = self._miss_rate = self._aimed(0)
        self._size = self._known = 0
        self._missed: list[bool] = []
        # a row a forecast: asked, start (infinite: it waits), planned, scale, and what it is like
        self._rows: Floats = np.zeros((64, 8))
        self._upper: list[float] = []
        self._passed: set[int] = set()
        self._due: list[tuple[float, int]] = []  # by when the bound is passed
        self._cells: dict[tuple[int, ...], tuple[float, float]] = {}
        self._table: tuple[Floats, NDArray[np.bool_], Floats, Floats, float] | None = None
        self._now_s = -math.inf
        self.kept = 0
        self.told = 0

    @property
    def coverage(self) -> float:
        """Share of the stated bounds that held, of those of which it is known."""
        return self.kept / self.told if self.told else math.nan

    def at(self, now_s: float) -> None:
        """Time has come to here: who still waits at its bound is a miss, known before its start."""
        if now_s == self._now_s:
            return
        self._now_s = now_s
        self._forget()
        while self._due and self._due[0][0] < now_s:
            key = heappop(self._due)[1]
            if math.isinf(self._rows[key, 1]):
                self._count(missed=True)
                self._passed.add(key)

    def say(self, case: Case) -> Said:
        """Median and bound for a job that is asked about now (``at``)."""
        if self._known < _TOLD_FROM:
            return Said(math.nan, math.nan)
        cell = tuple(round(4 * value / math.log(2)) for value in _likeness(case))
        if cell not in self._cells:
            self._cells[cell] = self._scores(np.array(cell) * math.log(2) / 4)
        middle, high = (case.planned_s + r * _scale(case) for r in self._cells[cell])
        middle = max(0.0, middle)
        return Said(middle, max(middle, high))

    def asked(self, case: Case, upper_s: float = math.nan) -> int:
        """A forecast was made now (``at``), with this bound, if any; the key to ``started``."""
        key = self._size
        if key == len(self._rows):
            self._rows = np.concatenate([self._rows, np.zeros_like(self._rows)])
        self._rows[key] = (
            self._now_s, math.inf, case.planned_s, _scale(case), *_likeness(case)
        )  # fmt: skip
        self._size += 1
        self._upper.append(upper_s)
        if not math.isnan(upper_s):
            heappush(self._due, (self._now_s + upper_s, key))
        self._forget()
        return key

    def started(self, key: int, start_s: float) -> None:
        """The job of that forecast has started; ``at`` may not be later than this is told."""
        self._rows[key, 1] = start_s
        self._known += 1
        aim = self._aimed(self._known)
        self._miss_rate += aim - self._aim
        self._aim = aim
        upper = self._upper[key]
        if not math.isnan(upper) and key not in self._passed:
            self._count(missed=start_s - self._rows[key, 0] > upper)
        self._forget()

    def _forget(self) -> None:
        self._cells.clear()
        self._table = None

    def _aimed(self, known: int) -> float:
        variance = self._misses * (1.0 - self._misses) * self._crowded
        error = math.sqrt(variance / min(max(1, known), self._window))
        return self._misses - min(self._misses / 2, _ERRORS * error)

    def _count(self, *, missed: bool) -> None:
        self.told += 1
        self.kept += not missed
        self._missed.append(missed)
        if self.told % _CROWD == 0:
            self._crowded = _crowded(self._missed[-self._window :])
        step = self._rate * (self._aim - missed)
        self._miss_rate = min(0.5, max(-_OWED, self._miss_rate + step))

    @property
    def _asked_rate(self) -> float:
        """What is asked of the residuals; a tail of less has too few of them."""
        return max(self._misses / 5, self._miss_rate)

    def _scores(self, like: Floats) -> tuple[float, float]:
        """Median and upper quantile of the residuals, for a job like this."""
        if self._table is None:
            self._table = self._sorted()
        scores, ended, likeness, spread, quick = self._table
        alike = np.exp(-0.5 * (((likeness - like) / spread) ** 2).sum(axis=1))
        middle = _quantile(scores, ended, alike + _ALIKE_P50, 0.5)
        weights = alike + _ALIKE_UPPER
        high = _quantile(scores, ended, weights, self._asked_rate, own=_own(weights))
        return middle, max(high, quick)

    def _sorted(self) -> tuple[Floats, NDArray[np.bool_], Floats, Floats, float]:
        """What all jobs asked about now share: residuals in order, and the quantile of the last."""
        rows = self._rows[max(0, self._size - 4 * self._window) : self._size]
        rows = rows[np.flatnonzero(np.isfinite(rows[:, 1]))[-self._window :][0] :]
        ended = np.isfinite(rows[:, 1])
        waited = np.where(ended, rows[:, 1], self._now_s) - rows[:, 0]
        scores = (waited - rows[:, 2]) / rows[:, 3]
        order = np.argsort(scores, kind="stable")
        recent = order[order >= np.flatnonzero(ended)[-self._recent :][0]]
        equal = np.ones(len(recent))
        quick = _quantile(scores[recent], ended[recent], equal, self._asked_rate, own=1.0)
        spread = np.maximum(_LEAST_SPREAD, rows[:, 4:].std(axis=0))
        return scores[order], ended[order], rows[order, 4:], spread, quick


def _scale(case: Case) -> float:
    return float((case.planned_s + _SOFT_S) ** _SPREAD)


def _crowded(missed: list[bool]) -> float:
    """By how much misses vary from stretch to stretch, over what single ones would (1: no crowds).

    The design effect of samples drawn in clusters (Kish, "Survey sampling", 1965).
    """
    blocks = len(missed) // _CROWD
    found = np.array(missed[len(missed) - blocks * _CROWD :], dtype=np.float64)
    share = float(found.mean())
    single = max(share * (1.0 - share), 1e-9) / _CROWD
    vary = float(((found.reshape(blocks, _CROWD).mean(axis=1) - share) ** 2).sum()) / single
    return max(1.0, (vary + _CROWDED * _CROWDED_BLOCKS) / (blocks - 1 + _CROWDED_BLOCKS))


def _likeness(case: Case) -> tuple[float, float, float, float]:
    return (
        math.log(case.planned_s + _SOFT_S),
        math.log(max(1, case.nodes)),
        math.log(max(60.0, case.limit_s)),
        math.log(1 + case.own),
    )


def _own(weights: Floats) -> float:
    """The weight of the new job among these."""
    return float((weights**2).sum() / weights.sum())


def _quantile(
    scores: Floats, ended: NDArray[np.bool_], weights: Floats, rate: float, *, own: float = 0.0
) -> float:
    """The score, of those in order, that the given share exceeds; not ended: at least so much.

    The product-limit estimate with weights. ``own`` is the weight of one more that exceeds them
    all, which is what conformal prediction takes the new job for.
    """
    left = np.cumsum(weights[::-1])[::-1] + own
    stay = np.cumprod(np.where(ended, np.maximum(0.0, 1.0 - weights / left), 1.0))
    return float(scores[min(len(scores) - 1, int(np.searchsorted(-stay, -rate)))])


class Qbets:
    """Binomial upper bound on a quantile of past waits, with the history cut at change points.

    Args:
        level: the quantile.
        confidence: with which the bound shall be above it.
        rare: this many misses in a row are taken for a change of regime.
    """

    def __init__(self, level: float = 0.9, confidence: float = 0.95, rare: int = 3) -> None:
        self._level, self._rare = level, rare
        # of so many waits the largest is above the quantile with the wanted confidence
        self._least = math.ceil(math.log(1.0 - confidence) / math.log(level))
        self._z = 1.6448536269514722 if confidence == 0.95 else _normal_quantile(confidence)
        self._waits: list[float] = []
        self._sorted: list[float] = []
        self._misses = 0

    def upper_s(self) -> float:
        """The bound for any job now; NaN while there are too few waits."""
        size = len(self._sorted)
        if size < self._least:
            return math.nan
        spread = math.sqrt(size * self._level * (1.0 - self._level))
        rank = math.ceil(size * self._level + self._z * spread)
        return self._sorted[min(rank, size) - 1]

    def started(self, waited_s: float, upper_s: float = math.nan) -> None:
        """A job has started after so long; ``upper_s`` is what was stated for it."""
        if not math.isnan(upper_s):
            self._misses = self._misses + 1 if waited_s > upper_s else 0
        self._waits.append(waited_s)
        insort(self._sorted, waited_s)
        if self._misses >= self._rare:
            self._waits = self._waits[-self._least :]
            self._sorted = sorted(self._waits)
            self._misses = 0


def _normal_quantile(p: float) -> float:
    from statistics import NormalDist

    return NormalDist().inv_cdf(p)
