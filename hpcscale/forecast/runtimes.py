"""How long jobs really run, learned from those that have ended: a ratio of their limit.

A job is predicted from four groups, coarse to fine: all jobs; its partition and limit; its user;
its user, partition and limit (the first two where the user is not known). Each group keeps a fading
histogram of runtime / limit, and each is drawn towards the coarser one by the weight of ``PRIOR``
jobs; the coarsest is drawn towards the limit itself, so a model that knows nothing predicts the
limit. Jobs without a limit are predicted likewise by a histogram of the runtime itself, over groups
of equal size.

Shrunken means: Tsafrir et al., TPDS 2007, show that a user's last runs suffice; the histogram keeps
what a mean forgets, the expected rest of a job that has run for some time already.
"""

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hpcscale.errors import HpcscaleError
from hpcscale.history.workload import Workload

PRIOR = 5.0
_FADE = (1.0, 0.995, 0.98, 0.9)  # what an older job keeps of its weight with each newer one
_BINS = 40
_LOG_FIRST_S, _LOG_STEP = 10.0, 1.4  # bins of runtimes without a limit: 10 s to 7e6 s
_LEAST_REST = 0.02  # a job that outlived what was learned is given this share of its limit

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Group = tuple[Any, ...]


class LeakError(HpcscaleError):
    """The model was asked about a time before what it has learned."""


class Shape(NamedTuple):
    """A group's distribution, summed from the right so that "longer than" is one look-up."""

    weight: Floats  # of each bin and all above it
    moment: Floats  # likewise, weight times value


class RuntimeModel:
    """Predicts runtimes of a workload's jobs at a time, from jobs that had ended by then.

    Args:
        jobs: pending and running jobs may be among them; only what has ended is learned.
        start_s: when each started; default the workload's own.
        runtime_s: how long each ran; default the workload's own.

    The model's time moves forward only: ``at`` learns each job when it ends and not before. There
    is no way to make it look ahead; ``LeakError`` when asked to look back.
    """

    def __init__(
        self, jobs: Workload, start_s: NDArray[Any] | None = None, runtime_s: Any = None
    ) -> None:
        self._start = jobs.start_s if start_s is None else np.asarray(start_s, dtype=np.float64)
        self._run = jobs.runtime_s if runtime_s is None else np.asarray(runtime_s, dtype=np.float64)
        self._limit = jobs.limit_s
        end = self._start + self._run
        order = np.argsort(end, kind="stable")
        self._order: list[int] = order[np.isfinite(end[order])].tolist()
        self._end: list[float] = end[self._order].tolist()
        self._groups = _groups(jobs)
        self._counts: dict[Group, Floats] = {}
        self._shapes: dict[Group, Shape] = {}
        self._next = 0
        self.now_s = -math.inf

    @property
    def learned(self) -> int:
        """Ended jobs that the model has learned."""
        return self._next

    def at(self, now_s: float) -> "RuntimeModel":
        """Move to a time: learn every job that ended at or before it.

        Raises:
            LeakError: the model already knows what came after ``now_s``.
        """
        if now_s < self.now_s:
            raise LeakError(f"the model has learned up to {self.now_s}, after {now_s}")
        self.now_s = now_s
        changed = False
        while self._next < len(self._end) and self._end[self._next] <= now_s:
            row = self._order[self._next]
            place = _bin(self._run[row], self._limit[row])
            for fade, group in zip(_FADE, self._groups[row], strict=False):
                counts = self._counts.setdefault(group, np.zeros(_BINS))
                counts *= fade
                counts[place] += 1.0
            self._next += 1
            changed = True
        if changed:
            self._shapes.clear()
        return self

    def support(self, row: int) -> float:
        """Weight of the ended jobs of this job's own user, partition and limit."""
        counts = self._counts.get(self._groups[row][-1])
        return 0.0 if counts is None else float(counts.sum())

    def expected_s(self, rows: Ints, elapsed_s: NDArray[Any] | None = None) -> Floats:
        """Expected runtime of each job, given that it has run for ``elapsed_s``.

        Never below the elapsed time, and never above the limit while that has not passed. Of a job
        without a limit of which nothing is known: NaN.
        """
        elapsed = [0.0] * len(rows) if elapsed_s is None else elapsed_s.tolist()
        limits, found = self._limit[rows].tolist(), []
        known: dict[Group, float] = {}  # of those that have not begun: many are alike
        for row, e, limit in zip(rows.tolist(), elapsed, limits, strict=True):
            kind = (self._groups[row][-1], limit)
            value = None if e else known.get(kind)
            if value is None:
                value = self._expected(row, e)
                if not e:
                    known[kind] = value
            found.append(value)
        return np.array(found)

    def drawn_s(self, rows: Ints, elapsed_s: NDArray[Any] | None, draws: Floats) -> Floats:
        """As ``expected_s``, but each job's runtime at a uniform draw from its distribution."""
        elapsed = np.zeros(len(rows)) if elapsed_s is None else elapsed_s
        return np.array(
            [
                self._quantile(int(row), float(e), float(u))
                for row, e, u in zip(rows, elapsed, draws, strict=True)
            ]
        )

    def draws_s(self, row: int, elapsed_s: float, draws: Floats) -> Floats:
        """One job's runtime at each of several uniform draws; each as ``drawn_s`` has it."""
        shape, limit = self._shape(row), float(self._limit[row])
        least = _bin(elapsed_s, limit) if elapsed_s > 0 else 0
        if shape.weight[least] <= 1e-9:
            return np.full(len(draws), _between(math.nan, elapsed_s, limit))
        above = shape.weight[least] * (1.0 - draws)
        place = np.searchsorted(-shape.weight, -above, side="right") - 1
        place = np.minimum(np.maximum(place, least), _BINS - 1)
        if math.isnan(limit):
            return np.asarray(np.maximum(_LOG_VALUES[place], max(elapsed_s * 1.1, 1.0)))
        values = np.maximum(limit * _RATIOS[place], max(elapsed_s + _LEAST_REST * limit, 1.0))
        return np.asarray(values if elapsed_s >= limit else np.minimum(values, limit))

    def quantile_s(self, row: int, level: float) -> float:
        """The runtime that this job does not exceed with the given chance, by what was learned."""
        return self._quantile(row, 0.0, level)

    def _shape(self, row: int) -> Shape:
        groups = self._groups[row]
        known = self._shapes.get(groups[-1])
        if known is not None:
            return known
        if math.isnan(self._limit[row]):
            mixed = np.zeros(_BINS)
            values = _LOG_VALUES
        else:
            mixed = np.zeros(_BINS)
            mixed[-1] = 1.0
            values = _RATIOS
        for group in groups:
            counts = self._counts.get(group)
            if counts is not None:
                mixed = (counts + PRIOR * mixed) / (counts.sum() + PRIOR)
        shape = Shape(_from_right(mixed), _from_right(mixed * values))
        self._shapes[groups[-1]] = shape
        return shape

    def _expected(self, row: int, elapsed: float) -> float:
        shape = self._shape(row)
        limit = float(self._limit[row])
        least = _bin(elapsed, limit) if elapsed > 0 else 0
        weight = shape.weight[least]
        unit = 1.0 if math.isnan(limit) else limit
        value = unit * shape.moment[least] / weight if weight > 1e-9 else math.nan
        return _between(value, elapsed, limit)

    def _quantile(self, row: int, elapsed: float, level: float) -> float:
        shape = self._shape(row)
        limit = float(self._limit[row])
        least = _bin(elapsed, limit) if elapsed > 0 else 0
        above = shape.weight[least] * (1.0 - level)
        if shape.weight[least] <= 1e-9:
            return _between(math.nan, elapsed, limit)
        # the last bin that still has more than `above` to its right, itself included
        place = max(least, int(np.searchsorted(-shape.weight, -above, side="right")) - 1)
        place = min(place, _BINS - 1)
        value = _LOG_VALUES[place] if math.isnan(limit) else limit * _RATIOS[place]
        return _between(float(value), elapsed, limit)


_RATIOS = (np.arange(_BINS) + 0.5) / _BINS
_LOG_VALUES = _LOG_FIRST_S * _LOG_STEP ** (np.arange(_BINS) + 0.5)


def _from_right(values: Floats) -> Floats:
    return np.cumsum(values[::-1])[::-1]


def _bin(runtime: float, limit: float) -> int:
    if math.isnan(limit):
        place = math.log(max(runtime, _LOG_FIRST_S) / _LOG_FIRST_S) / math.log(_LOG_STEP)
    else:
        place = runtime / max(limit, 1.0) * _BINS
    return min(_BINS - 1, int(place))


def _between(value: float, elapsed: float, limit: float) -> float:
    if math.isnan(limit):
        return value if math.isnan(value) else max(value, elapsed * 1.1, 1.0)
    if math.isnan(value):
        value = limit
    value = max(value, elapsed + _LEAST_REST * limit, 1.0)
    return value if elapsed >= limit else min(value, limit)


def _groups(jobs: Workload) -> list[tuple[Group, ...]]:
    """The four groups of each job, coarse to fine; jobs without a limit go by their size."""
    known: dict[Group, tuple[Group, ...]] = {}
    made: list[tuple[Group, ...]] = []
    for kind in zip(
        jobs.user.tolist(), jobs.partition.tolist(), jobs.limit_s.tolist(), jobs.nodes.tolist(),
        jobs.gpus.tolist(), strict=True,
    ):  # fmt: skip
        groups = known.get(kind)
        if groups is None:
            groups = known[kind] = _groups_of(*kind)
        made.append(groups)
    return made


def _groups_of(user: int, partition: int, limit: float, nodes: int, gpus: int) -> tuple[Group, ...]:
    if math.isnan(limit):
        size: Group = ("free", nodes, gpus)
    else:
        size = ("limit", round(4 * math.log2(max(limit, 1.0))), 0)
    groups: tuple[Group, ...] = ((size[0],), (size, partition))
    return (*groups, (size[0], user, "of"), (size, partition, user)) if user >= 0 else groups
