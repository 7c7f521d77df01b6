"""What a start-time plan is made of: resources, what holds them, and jobs in priority order.

A resource is anything countable that a job holds from start to end: the nodes of one class, the
GPUs of a shared partition, a user's allowance of running jobs (QOS ``MaxJobsPU``), the slots of an
array's ``%4``, licences. A job names alternatives (partition ``a`` or ``b``); an alternative is a
list of (resource, units), all of which it holds at once. A job may need more than it takes: one
that shares its 4 nodes needs 4 that nobody has alone, and leaves them to others like it: (resource,
4, 0). Times are whole seconds on any one axis.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from hpcscale.errors import HpcscaleError

Ints = NDArray[np.int64]
NEVER = 2**62  # a start that no plan can give

Demand = tuple[int, int] | tuple[int, int, int]  # resource, units, and how many it takes if fewer
Alternative = Sequence[Demand]


class PlanError(HpcscaleError):
    """A plan was asked for with figures that make none."""


@dataclass(frozen=True, eq=False)
class Problem:
    """Pending jobs in the order in which the scheduler looks at them, as flat arrays.

    Attributes:
        now_s: the time of the plan; nothing starts before it.
        capacity: units of each resource.
        held: rows of (resource, from_s, to_s, units): running jobs until their predicted end,
            reservations, nodes that are down. May exceed a capacity: then nothing is free.
        duration_s: predicted, at least 1.
        release_s: not before this (begin time, a dependency outside this queue).
        alt_ptr: the alternatives of job ``j`` are ``alt_ptr[j]`` to ``alt_ptr[j + 1] - 1``.
        alt_until_s: an alternative must be begun before this; ``NEVER``: at any time.
        dem_ptr: likewise the demands of each alternative.
        dem_resource, dem_units, dem_taken: one entry a demand; taken is at most units.
        dep_ptr, dep_job: jobs (positions in this queue) that must end before each job starts.
    """

    now_s: int
    capacity: Ints
    held: Ints
    duration_s: Ints
    release_s: Ints
    alt_ptr: Ints
    alt_until_s: Ints
    dem_ptr: Ints
    dem_resource: Ints
    dem_units: Ints
    dem_taken: Ints
    dep_ptr: Ints
    dep_job: Ints

    def __len__(self) -> int:
        return len(self.duration_s)


class Checked(list[list[tuple[int, int, int]]]):
    """Alternatives in which no mistake is left: what many jobs of one shape share.

    Attributes:
        until_s: before when each must be begun.
    """

    until_s: list[int]


@dataclass
class ProblemBuilder:
    """Collects a ``Problem`` piece by piece; every mistake is named where it is made."""

    now_s: int
    capacity: list[int] = field(default_factory=list)
    held: list[tuple[int, int, int, int]] = field(default_factory=list)
    _duration: list[int] = field(default_factory=list)
    _release: list[int] = field(default_factory=list)
    _alternatives: list[Checked] = field(default_factory=list)
    _after: list[tuple[int, ...]] = field(default_factory=list)

    def resource(self, units: int) -> int:
        """A new resource of so many units; its index."""
        if units < 0:
            raise PlanError(f"a resource of {units} units")
        self.capacity.append(units)
        return len(self.capacity) - 1

    def hold(self, resource: int, units: int, until_s: int, from_s: int | None = None) -> None:
        """Units that are not free from ``from_s`` (default now) until ``until_s``."""
        self._check(resource, units)
        start = self.now_s if from_s is None else max(from_s, self.now_s)
        if until_s > start and units:
            self.held.append((resource, start, until_s, units))

    def job(
        self,
        alternatives: Iterable[Alternative],
        duration_s: int,
        *,
        release_s: int | None = None,
        after: Sequence[int] = (),
    ) -> int:
        """A pending job below all added before it; its position.

        Args:
            alternatives: any one of them will do; the first of two that start equally early. What
                ``checked`` returned is taken as it is.
            duration_s: predicted; 0 counts as 1.
            release_s: not before; default now.
            after: positions of jobs that must have ended; they may be added later.
        """
        if not isinstance(alternatives, Checked):
            alternatives = self.checked(alternatives)
        self._alternatives.append(alternatives)
        self._duration.append(max(1, duration_s))
        self._release.append(self.now_s if release_s is None else max(release_s, self.now_s))
        self._after.append(tuple(after))
        return len(self._duration) - 1

    def checked(
        self, alternatives: Iterable[Alternative], until_s: Sequence[int | None] | None = None
    ) -> Checked:
        """Alternatives for ``job``: of very many jobs of one shape they are looked at once.

        Args:
            alternatives: as ``job`` has them.
            until_s: before when each must be begun; None: at any time.

        Raises:
            PlanError: what is wrong with them.
        """
        chosen = Checked(
            [(d[0], d[1], d[2] if len(d) == 3 else d[1]) for d in demands if d[1] != 0]
            for demands in alternatives
        )
        ends = until_s or [None] * len(chosen)
        if len(ends) != len(chosen):
            raise PlanError(f"{len(chosen)} alternatives and {len(ends)} ends")
        chosen.until_s = [NEVER if end is None else end for end in ends]
        for demands in chosen:
            for resource, units, taken in demands:
                self._check(resource, units)
                if not 0 <= taken <= units:
                    raise PlanError(f"a job needs {units} units of a resource and takes {taken}")
            if len({demand[0] for demand in demands}) != len(demands):
                raise PlanError("a job names the same resource twice in one alternative")
        return chosen

    def _check(self, resource: int, units: int) -> None:
        if not 0 <= resource < len(self.capacity):
            raise PlanError(f"no resource {resource}")
        if units < 0:
            raise PlanError(f"{units} units of resource {resource}")

    def held_rows(self) -> Ints:
        """What is held as ``Problem`` has it."""
        return _ints(self.held).reshape(len(self.held), 4)

    def build(self) -> Problem:
        """The problem as arrays."""
        size = len(self._duration)
        for after in self._after:
            for position in after:
                if not 0 <= position < size:
                    raise PlanError(f"a job waits for position {position}, which does not exist")
        # the many jobs of one shape share its alternatives
        known = {id(shape): shape for shape in self._alternatives}
        place = {key: at for at, key in enumerate(known)}
        return self.many(
            list(known.values()),
            _ints([place[id(shape)] for shape in self._alternatives]),
            _ints(self._duration),
            _ints(self._release),
            {at: after for at, after in enumerate(self._after) if after},
            self.held_rows(),
        )

    def many(  # noqa: PLR0917  # columns of one table
        self,
        shapes: Sequence[Checked],
        shape: Ints,
        duration_s: Ints,
        release_s: Ints,
        after: Mapping[int, Sequence[int]],
        held: Ints,
    ) -> Problem:
        """A problem straight from arrays, of nothing but what is given here.

        Args:
            shapes: from ``checked``, which not all need be used.
            shape: of each job, in order: which of them.
            duration_s: at least 1.
            release_s: at least now.
            after: positions of jobs that must have ended, of those that have such.
            held: as ``held_rows`` gives it.
        """
        alternatives = [demands for each in shapes for demands in each]
        flat = _ints([demand for demands in alternatives for demand in demands]).reshape(-1, 3)
        alt_count = _ints([len(each) for each in shapes])
        dem_count = _ints([len(demands) for demands in alternatives])
        alt, alt_ptr = _gathered(alt_count, shape)
        dem, dem_ptr = _gathered(dem_count, alt)
        waits = np.zeros(len(shape), dtype=np.int64)
        for position, others in after.items():
            waits[position] = len(others)
        return Problem(
            now_s=self.now_s,
            capacity=_ints(self.capacity),
            held=held,
            duration_s=duration_s,
            release_s=release_s,
            alt_ptr=alt_ptr,
            alt_until_s=_ints([end for each in shapes for end in each.until_s])[alt],
            dem_ptr=dem_ptr,
            dem_resource=flat[dem, 0],
            dem_units=flat[dem, 1],
            dem_taken=flat[dem, 2],
            dep_ptr=np.concatenate([[0], np.cumsum(waits)]).astype(np.int64),
            dep_job=_ints([other for at in sorted(after) for other in after[at]]),
        )


def simple_problem(
    now_s: int,
    nodes: int,
    running: Sequence[tuple[int, int]],
    pending_units: Sequence[int] | Ints,
    pending_s: Sequence[int] | Ints,
) -> Problem:
    """One class of nodes and jobs that need nothing else, straight from arrays.

    Args:
        now_s: the time of the plan.
        nodes: of the class.
        running: (nodes, end) of each running job.
        pending_units: nodes of each pending job, in priority order.
        pending_s: predicted durations.
    """
    size = len(pending_units)
    held = [(0, now_s, end, units) for units, end in running if end > now_s]
    return Problem(
        now_s=now_s,
        capacity=_ints([nodes]),
        held=_ints(held).reshape(len(held), 4),
        duration_s=np.maximum(1, _ints(pending_s)),
        release_s=np.full(size, now_s, dtype=np.int64),
        alt_ptr=np.arange(size + 1, dtype=np.int64),
        alt_until_s=np.full(size, NEVER, dtype=np.int64),
        dem_ptr=np.arange(size + 1, dtype=np.int64),
        dem_resource=np.zeros(size, dtype=np.int64),
        dem_units=_ints(pending_units),
        dem_taken=_ints(pending_units),
        dep_ptr=np.zeros(size + 1, dtype=np.int64),
        dep_job=_ints([]),
    )


def _ints(values: object) -> Ints:
    return np.array(values, dtype=np.int64)


def _gathered(counts: Ints, which: Ints) -> tuple[Ints, Ints]:
    """Of rows with so many entries each: the entries of the rows wanted, and where each begins."""
    begin = np.cumsum(counts) - counts
    wanted = counts[which]
    pointers = np.concatenate([[0], np.cumsum(wanted)]).astype(np.int64)
    entry = np.arange(pointers[-1]) + np.repeat(begin[which] - pointers[:-1], wanted)
    return entry, pointers
