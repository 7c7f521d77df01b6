"""Start times of every pending job: each in turn gets the earliest place that is still free.

This is conservative backfill (Mu'alem and Feitelson, TPDS 2001), which Slurm's backfill plugin does
up to ``bf_max_job_test``: no job is planned so that one above it starts later.
"""

import os
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import numpy as np

from hpcscale.forecast import classes_kernel, kernel
from hpcscale.forecast.jit import Kernels
from hpcscale.forecast.machine import machine_code
from hpcscale.forecast.naive import planning_order
from hpcscale.forecast.problem import NEVER, Ints, Problem

_UNIT_CLASSES, _TIME_CLASSES = 64, 512  # most that hints are kept for
_WORTH_COMPILING = 8_000  # jobs; below, plans in Python take less than numba does to load
_LONG = 500  # jobs; a plan of fewer takes no time in either form
_PLANNED = [0]  # jobs of all long plans that this process has made
_HINTED_FROM = 16  # demands on a resource below which its hints cost more than they save


@dataclass(frozen=True, eq=False)
class Plan:
    """When each job of a problem starts.

    Attributes:
        start_s: ``NEVER`` for a job that cannot start with what there is.
        chosen: which of its alternatives; -1 with ``NEVER``.
    """

    problem: Problem
    start_s: Ints
    chosen: Ints

    @property
    def wait_s(self) -> np.ndarray:
        """Seconds from the time of the plan; infinite for ``NEVER``."""
        return np.where(self.start_s >= NEVER, np.inf, self.start_s - self.problem.now_s)


def plan(problem: Problem, *, fast: bool | None = None) -> Plan:
    """The conservative plan; equal to ``naive_plan``, in time that grows with the number of jobs.

    Memory: some 32 bytes for each demand.

    Args:
        problem: what there is and who waits.
        fast: compiled by numba; default: once this process has planned so many jobs that the time
            to load the compiler is worth it.
    """
    if fast is None:
        # a decision plans one queue again and again: the jobs of all plans pay for the compiler
        long = len(problem) >= _LONG
        _PLANNED[0] += len(problem) if long else 0
        fast = long and _PLANNED[0] >= _WORTH_COMPILING
    code = machine_code(kernel, "plan_jobs") if fast else None
    kernels = Kernels(kernel, fast=fast and code is None)
    native = kernels.native if code is None else np.ascontiguousarray  # all are int64
    size = len(problem)
    low, high, times, free = _steps(problem)
    unit_floor, unit_ceil, unit_classes = _classes(problem.dem_units, _UNIT_CLASSES)
    time_floor, time_ceil, time_classes = _classes(problem.duration_s, _TIME_CLASSES)
    counts = np.bincount(problem.dem_resource, minlength=len(problem.capacity))
    hinted = np.flatnonzero(counts >= _HINTED_FROM)
    hint_at = np.full(len(problem.capacity), -1, dtype=np.int64)
    table = unit_classes * time_classes
    hint_at[hinted] = np.arange(len(hinted)) * table
    hints = np.full(max(1, len(hinted) * table), problem.now_s, dtype=np.int64)
    start: Any = native(np.full(size, NEVER, dtype=np.int64))
    chosen: Any = native(np.full(size, -1, dtype=np.int64))
    arrays = [native(a) for a in (low, high, low.copy(), times, free, hint_at, hints)]
    jobs = [
        native(a)
        for a in (
            problem.duration_s, time_floor, time_ceil, problem.release_s, problem.alt_ptr,
            problem.alt_until_s, problem.dem_ptr, problem.dem_resource, problem.dem_units,
            problem.dem_taken, unit_floor, unit_ceil, problem.dep_ptr, problem.dep_job,
        )
    ]  # fmt: skip
    order = np.arange(size) if not len(problem.dep_job) else np.array(planning_order(problem))
    order = native(order.astype(np.int64))
    (code or kernels.call.plan_jobs)(
        len(order), order, problem.now_s, *arrays, unit_classes, time_classes, *jobs, start, chosen
    )
    return Plan(problem, np.asarray(start, dtype=np.int64), np.asarray(chosen, dtype=np.int64))


def can_compile() -> bool:
    """Whether numba is there and wanted, without loading it."""
    return not os.environ.get("HPCSCALE_NO_NUMBA") and find_spec("numba") is not None


def easy_plan(
    problem: Problem,
    run_s: Ints | None = None,
    held_ends_s: Ints | None = None,
    *,
    fast: bool | None = None,
) -> Plan:
    """When each job starts under EASY backfill (Lifka, JSSPP 1995), over any resources.

    Only the first job that must wait has a place kept for it; whatever fits beside that starts. The
    same as ``naive_easy_plan``.

    Args:
        problem: what there is and who waits; durations are what the scheduler believes.
        run_s: how long each job does run, at most what is believed; default as believed.
        held_ends_s: when each row of what is held does end, at most when it is believed to; default
            as believed.
        fast: as in ``plan``.
    """
    if fast is None:
        fast = len(problem) >= _LONG
    code = machine_code(classes_kernel, "run_easy_classes") if fast else None
    kernels = Kernels(classes_kernel, fast=fast and code is None)
    native = kernels.native if code is None else np.ascontiguousarray
    size = len(problem)
    run = problem.duration_s if run_s is None else np.clip(run_s, 1, problem.duration_s)
    low, high, times, free = _steps(problem, 4)
    early = _early(problem, held_ends_s)
    moments = np.concatenate([[problem.now_s], problem.held[:, 2], problem.release_s, early[:, 0]])
    fixed = np.unique(moments[(moments >= problem.now_s) & (moments < NEVER)])
    start: Any = native(np.full(size, NEVER, dtype=np.int64))
    chosen: Any = native(np.full(size, -1, dtype=np.int64))
    (code or kernels.call.run_easy_classes)(
        size, len(low), len(fixed), len(early),
        *(
            native(np.asarray(a, dtype=np.int64))
            for a in (
                low, high, times, free, fixed, *early.T, problem.duration_s, run,
                problem.release_s, problem.alt_ptr, problem.alt_until_s, problem.dem_ptr,
                problem.dem_resource, problem.dem_units, problem.dem_taken, problem.dep_ptr,
                problem.dep_job,
            )
        ),
        start, chosen, *(native(np.zeros(size + 1, dtype=np.int64)) for _ in range(3)),
    )  # fmt: skip
    return Plan(problem, np.asarray(start, dtype=np.int64), np.asarray(chosen, dtype=np.int64))


def _early(problem: Problem, held_ends_s: Ints | None) -> Ints:
    """What is given back before it was to be, in order: when, resource, until when, units."""
    held = problem.held
    if held_ends_s is None:
        return np.zeros((0, 4), dtype=np.int64)
    when = np.maximum(np.maximum(held_ends_s, held[:, 1]), problem.now_s)
    rows = np.column_stack([when, held[:, 0], held[:, 2], held[:, 3]])[when < held[:, 2]]
    return rows[np.argsort(rows[:, 0], kind="stable")]


def _steps(problem: Problem, grows: int = 2) -> tuple[Ints, Ints, Ints, Ints]:
    """Each resource's free units over time before any pending job, in segments with room to grow.

    Args:
        problem: what there is.
        grows: steps that a demand may add.

    Returns:
        low, high: the used part of each segment; times, free: the flat arrays.
    """
    kinds = len(problem.capacity)
    held = problem.held
    demands = np.bincount(problem.dem_resource, minlength=kinds)
    rows = np.bincount(held[:, 0], minlength=kinds)
    room = grows * (demands + rows) + 2 * rows + 1
    low = np.concatenate([[0], np.cumsum(room)[:-1]]).astype(np.int64)
    high = low.copy()
    times = np.zeros(int(room.sum()), dtype=np.int64)
    free = np.zeros(int(room.sum()), dtype=np.int64)
    resource = np.concatenate([held[:, 0], held[:, 0]])
    moment = np.maximum(np.concatenate([held[:, 1], held[:, 2]]), problem.now_s)
    change = np.concatenate([-held[:, 3], held[:, 3]])
    for r in range(kinds):
        mine = resource == r
        when, where = np.unique(
            np.concatenate([[problem.now_s], moment[mine]]), return_inverse=True
        )
        delta = np.bincount(where, weights=np.concatenate([[problem.capacity[r]], change[mine]]))
        part = slice(int(low[r]), int(low[r]) + len(when))
        times[part] = when
        free[part] = np.rint(np.cumsum(delta)).astype(np.int64)
        high[r] += len(when)
    return low, high, times, free


def _classes(values: Ints, most: int) -> tuple[Ints, Ints, int]:
    """Class at or below each value (-1: none), class at or above it, and how many there are."""
    # whole minutes, counts of nodes: few small numbers, so what is looked up is a table of them
    small = values // max(1, int(np.gcd.reduce(values))) if len(values) else values
    if len(small) and int(small.max()) <= len(small):
        counts = np.bincount(small)
        edges = np.flatnonzero(counts)
        if len(edges) > most:
            picks = np.linspace(0, len(values) - 1, most).astype(np.int64)
            edges = np.unique(np.searchsorted(np.cumsum(counts), picks, side="right"))
        axis = np.arange(len(counts))
        below = np.searchsorted(edges, axis, side="right").astype(np.int64)
        above = (np.searchsorted(edges, axis, side="left") + 1).astype(np.int64)
        return below[small], above[small], len(edges) + 1
    edges = np.unique(values)
    if len(edges) > most:
        picks = np.linspace(0, len(values) - 1, most).astype(np.int64)
        edges = np.unique(np.sort(values)[picks])
    floor = np.searchsorted(edges, values, side="right")
    ceil = np.searchsorted(edges, values, side="left") + 1
    return floor.astype(np.int64), ceil.astype(np.int64), len(edges) + 1
