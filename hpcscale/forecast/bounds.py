"""Upper bounds of waits that hold as often as they say.

``AdaptiveBound`` is split conformal prediction on the plan's own residuals, with the miss rate
steered online (Gibbs and Candes, "Adaptive conformal inference under distribution shift", NeurIPS
2021). ``Qbets`` is the quantile bound of Nurmi, Brevik and Wolski (JSSPP 2007), the comparator.

Both know a wait from the moment the job starts and not before: ``started`` is how they are told.
"""

import math
from bisect import bisect_left, insort
from collections import deque

_SOFT_S = 3600.0  # below an hour all waits scatter alike
_TOLD_FROM = 20  # residuals below which no bound is stated


class AdaptiveBound:
    """An upper bound on the wait that the given share of jobs keeps.

    The residual is (wait - planned) / sqrt(planned + 1 h): waits scatter more the longer they are,
    but less than in proportion.

    Args:
        level: share of waits that shall be at or below the bound.
        window: residuals that are remembered.
        rate: how fast misses change the level that is asked of the residuals.
        margin: aimed at on top of ``level``: a wait is known late, so the steering lags.
    """

    def __init__(
        self, level: float = 0.9, *, window: int = 400, rate: float = 0.005, margin: float = 0.02
    ) -> None:
        self._aim = 1.0 - min(0.995, level + margin)
        self._miss_rate = self._aim
        self._rate = rate
        self._recent: deque[float] = deque()
        self._sorted: list[float] = []
        self._window = window
        self.kept = 0
        self.told = 0

    @property
    def coverage(self) -> float:
        """Share of the stated bounds that held, of those of which it is known."""
        return self.kept / self.told if self.told else math.nan

    def upper_s(self, planned_s: float) -> float:
        """The bound for a job that the plan lets wait so long; NaN while too little is known."""
        if len(self._sorted) < _TOLD_FROM:
            return math.nan
        rank = math.ceil((1.0 - self._miss_rate) * (len(self._sorted) + 1))
        residual = self._sorted[min(rank, len(self._sorted)) - 1]
        return max(0.0, planned_s + residual * math.sqrt(planned_s + _SOFT_S))

    def passed(self) -> None:
        """A job still waits at its bound: a miss, known before its start is.

        ``started`` is then told of it without the bound.
        """
        self._count(missed=True)

    def started(self, planned_s: float, waited_s: float, upper_s: float = math.nan) -> None:
        """A job has started: what was planned, what came, and the bound that was stated."""
        if not math.isnan(upper_s):
            self._count(missed=waited_s > upper_s)
        residual = (waited_s - planned_s) / math.sqrt(planned_s + _SOFT_S)
        self._recent.append(residual)
        insort(self._sorted, residual)
        if len(self._recent) > self._window:
            del self._sorted[bisect_left(self._sorted, self._recent.popleft())]

    def _count(self, *, missed: bool) -> None:
        self.told += 1
        self.kept += not missed
        step = self._rate * (self._aim - missed)
        self._miss_rate = min(0.5, max(0.002, self._miss_rate + step))


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
