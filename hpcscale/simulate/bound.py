"""A lower bound on what any schedule costs at a mean wait: a linear program over start times.

Each job either leaves, at its price, or begins at points of time: its arrival, or one of a grid. A
start between two points is a mixture of both, with the same wait and no more GPU time in any
interval of the grid, so every real schedule is a point of the program, at its true cost. The value
is taken from the program's duals, clipped to their signs: by weak duality that is a bound whatever
the solver's tolerances are. Needs HiGHS: ``pip install 'hpcscale[bound]'``.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from hpcscale.extras import require
from hpcscale.simulate.overflow import Floats, Instance, Ints


@dataclass(frozen=True, slots=True)
class Bound:
    """A proven bound.

    Attributes:
        usd: no schedule with this mean wait costs less.
        solver_usd: what the solver says, for comparison; not proven.
        columns: of the program.
    """

    usd: float
    solver_usd: float
    columns: int


def lower_bound(
    instance: Instance, mean_wait_h: float, *, step_h: float = 0.1, longest_h: float = 6.0
) -> Bound:
    """The bound.

    Args:
        instance: the jobs; the cluster counts as one pool of GPUs.
        mean_wait_h: that no schedule may exceed.
        step_h: of the grid; finer is tighter and slower.
        longest_h: a job that waits longer takes no GPU time in the program.

    Raises:
        MissingExtraError: HiGHS is not installed.
    """
    require("bound", "the lower bound")
    program = _program(instance, step_h, longest_h)
    price = float(instance.cluster.cloud_gpu_hour_usd)
    cost = instance.gpu_hours * price
    capacity = float(instance.cluster.nodes * instance.cluster.gpus_per_node) * step_h
    budget = mean_wait_h * len(instance)
    duals, wait_dual, value = _solve(program, cost, capacity, budget, len(instance))
    # for any prices >= 0 of GPU time and waiting: each job does what is cheapest at these prices
    paid = program.wait * wait_dual
    np.add.at(paid, program.entry_column, program.entry_gpu_h * duals[program.entry_interval])
    best = cost.copy()
    np.minimum.at(best, program.job, paid)
    safe = float(best.sum() - capacity * duals.sum() - budget * wait_dual)
    return Bound(max(0.0, safe), value, len(program.job))


@dataclass(frozen=True, slots=True, eq=False)
class _Program:
    job: Ints  # of each column
    wait: Floats
    entry_column: Ints
    entry_interval: Ints
    entry_gpu_h: Floats
    intervals: int


def _program(instance: Instance, step: float, longest: float) -> _Program:
    jobs: list[Any] = []
    waits: list[Any] = []
    columns: list[Any] = []
    cells: list[Any] = []
    amounts: list[Any] = []
    total = 0
    for j in range(len(instance)):
        arrival, run = float(instance.arrival_h[j]), float(instance.run_h[j])
        first = int(np.floor(arrival / step)) + 1
        grid = np.arange(first, first + int(longest / step)) * step
        starts = np.concatenate([[arrival], grid, [arrival + longest]])
        at = total + np.arange(len(starts))
        jobs.append(np.full(len(starts), j))
        waits.append(starts - arrival)
        # GPU time in each interval; the last column, waiting long, takes none
        reach = int(run / step) + 2
        for k in range(reach + 1):
            cell = (np.floor(starts[:-1] / step + 1e-9)).astype(np.int64) + k
            low, high = cell * step, (cell + 1) * step
            inside = np.minimum(starts[:-1] + run, high) - np.maximum(starts[:-1], low)
            # between two grid points the end moves into a new interval: that part is left out
            ends_in = np.floor((starts[:-1] + run) / step + 1e-9).astype(np.int64)
            inside[(cell == ends_in) & (np.arange(len(starts) - 1) > 0)] = 0.0
            keep = inside > 1e-12
            columns.append(at[:-1][keep])
            cells.append(cell[keep])
            amounts.append(inside[keep] * float(instance.gpus[j]))
        total += len(starts)
    entry_interval = np.concatenate(cells)
    return _Program(
        job=np.concatenate(jobs),
        wait=np.concatenate(waits),
        entry_column=np.concatenate(columns),
        entry_interval=entry_interval,
        entry_gpu_h=np.concatenate(amounts),
        intervals=int(entry_interval.max()) + 1,
    )


def _solve(
    program: _Program, cost: Floats, capacity: float, budget: float, jobs: int
) -> tuple[Floats, float, float]:
    """Prices of GPU time in each interval, of an hour's wait, and the solver's value."""
    from importlib import import_module

    highspy: Any = import_module("highspy")

    columns = len(program.job)
    rows = jobs + program.intervals + 1
    # rows: a job stays at most once; GPU time of each interval; all waits
    row = np.concatenate(
        [program.job, jobs + program.entry_interval, np.full(columns, rows - 1)]
    ).astype(np.int32)
    column = np.concatenate([np.arange(columns), program.entry_column, np.arange(columns)])
    amount = np.concatenate([np.ones(columns), program.entry_gpu_h, program.wait])
    order = np.argsort(column, kind="stable")
    lp = highspy.HighsLp()
    lp.num_col_, lp.num_row_ = columns, rows
    lp.col_cost_ = -cost[program.job]
    lp.col_lower_, lp.col_upper_ = np.zeros(columns), np.full(columns, np.inf)
    lp.row_lower_ = np.full(rows, -np.inf)
    lp.row_upper_ = np.concatenate([np.ones(jobs), np.full(program.intervals, capacity), [budget]])
    lp.a_matrix_.format_ = highspy.MatrixFormat.kColwise
    lp.a_matrix_.start_ = np.searchsorted(column[order], np.arange(columns + 1)).astype(np.int32)
    lp.a_matrix_.index_ = row[order]
    lp.a_matrix_.value_ = amount[order]
    solver = highspy.Highs()
    solver.setOptionValue("output_flag", False)
    solver.setOptionValue("threads", 1)
    solver.setOptionValue("solver", "ipm")
    solver.setOptionValue("run_crossover", "off")
    solver.passModel(lp)
    solver.run()
    duals = np.maximum(0.0, -np.array(solver.getSolution().row_dual))
    value = float(cost.sum() + solver.getInfo().objective_function_value)
    return duals[jobs : jobs + program.intervals], float(duals[-1]), value
