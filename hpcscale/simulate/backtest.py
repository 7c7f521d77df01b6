"""How good a forecast would have been: each arrival predicted from what was known then.

The truth is a replay's start (or the trace's own). At a job's submission the state is rebuilt: who
runs since when, who waits ahead. Runtimes of the future are used for nothing but the score.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from heapq import heappop, heappush

import numpy as np

from hpcscale.forecast.bounds import AdaptiveBound, Qbets
from hpcscale.forecast.queue import Queue
from hpcscale.forecast.runtimes import RuntimeModel
from hpcscale.history.workload import Bools, Floats, Ints, Workload
from hpcscale.simulate.easy import arrays

_HOUR_S = 3600.0
_Open = tuple[int, int, float, float, float]  # start, submission, point and the two bounds


@dataclass(frozen=True, eq=False)
class Backtest:
    """One entry a predicted arrival, in order of submission; seconds of wait, NaN: not stated.

    Attributes:
        row: the job's row in the workload.
        waited_s: what came.
        limit_plan_s: conservative plan in which every job runs to its limit.
        learned_plan_s: the same with learned runtimes.
        point_s: the forecast: the scheduler's own rule run on with learned runtimes, mean of draws.
        upper_s, qbets_s: upper bounds at ``level``.
        scored: behind the part that the bounds warm up on.
    """

    level: float
    row: Ints
    waited_s: Floats
    limit_plan_s: Floats
    learned_plan_s: Floats
    point_s: Floats
    upper_s: Floats
    qbets_s: Floats
    scored: Bools

    def figures(self) -> dict[str, float]:
        """What the scored part comes to: errors in hours, coverages and widths."""
        s = self.scored & np.isfinite(self.upper_s) & np.isfinite(self.qbets_s)
        waited = self.waited_s[s]

        def mae(column: Floats) -> float:
            return float(np.abs(column[s] - waited).mean() / _HOUR_S)

        return {
            "jobs": int(s.sum()),
            "mean_wait_h": float(waited.mean() / _HOUR_S),
            "limit_plan_mae_h": mae(self.limit_plan_s),
            "learned_plan_mae_h": mae(self.learned_plan_s),
            "point_mae_h": mae(self.point_s),
            "point_bias_h": float((self.point_s[s] - waited).mean() / _HOUR_S),
            "learned_plan_mae_ratio": mae(self.learned_plan_s) / mae(self.limit_plan_s),
            "point_mae_ratio": mae(self.point_s) / mae(self.limit_plan_s),
            "coverage": float((waited <= self.upper_s[s]).mean()),
            "upper_mean_h": float(self.upper_s[s].mean() / _HOUR_S),
            "qbets_coverage": float((waited <= self.qbets_s[s]).mean()),
            "qbets_mean_h": float(self.qbets_s[s].mean() / _HOUR_S),
            "width_ratio": float(self.upper_s[s].mean() / self.qbets_s[s].mean()),
        }


def backtest(
    jobs: Workload,
    start_s: Ints,
    capacity: int,
    *,
    level: float = 0.9,
    warm_up: float = 0.1,
    score_from: float = 0.4,
    every: int = 1,
    draws: int = 8,
    seed: int = 0,
    progress: Callable[[float], None] | None = None,
) -> Backtest:
    """Predict arrivals that do not start at once, and score them.

    Args:
        jobs: all with a runtime, none wider than ``capacity``.
        start_s: the truth: when each started.
        capacity: whole nodes.
        level: of the bounds.
        warm_up: share of the jobs that is learned from and not predicted.
        score_from: share of the jobs from which predictions count.
        every: predict each n-th of them.
        draws: runtimes are drawn so often; the point is the mean of what follows.
        seed: of the draws.
        progress: called with the share done.
    """
    submit, nodes, run, limit = arrays(jobs)
    end = start_s + run
    model = RuntimeModel(jobs, start_s, run)
    bound, qbets = AdaptiveBound(level), Qbets(level)
    rng = np.random.default_rng(seed)
    late = np.flatnonzero(start_s > submit)
    chosen = late[late >= warm_up * len(jobs)][::every]
    unknown: list[_Open] = []
    overdue: list[tuple[float, _Open]] = []  # by when the bound is passed
    passed: set[_Open] = set()
    columns: list[tuple[float, ...]] = []
    ended = np.maximum.accumulate(end)
    for done, job in enumerate(chosen.tolist()):
        now = int(submit[job])
        while unknown and unknown[0][0] <= now:
            started, asked, point, upper, by_qbets = heappop(unknown)
            known = (started, asked, point, upper, by_qbets) in passed
            bound.started(point, started - asked, math.nan if known else upper)
            qbets.started(started - asked, by_qbets)
        while overdue and overdue[0][0] < now:
            still = heappop(overdue)[1]
            if still[0] > now:
                bound.passed()
                passed.add(still)
        model.at(now)
        # jobs before this one have all ended: `ended` is the latest end up to each row
        ahead = np.arange(int(np.searchsorted(ended, now, side="right")), job + 1)
        runs = ahead[(start_s[ahead] <= now) & (end[ahead] > now)]
        waits = ahead[start_s[ahead] > now]
        queue = Queue(
            now_s=now,
            capacity=capacity,
            running_nodes=nodes[runs],
            elapsed_s=now - start_s[runs],
            running_limit_s=limit[runs],
            pending_nodes=nodes[waits],
            pending_limit_s=limit[waits],
        )
        limits = queue.planned_s(queue.running_limit_s, queue.pending_limit_s)
        learned = queue.planned_s(model.expected_s(runs, queue.elapsed_s), model.expected_s(waits))
        drawn = [
            queue.run_on_s(
                model.drawn_s(runs, queue.elapsed_s, rng.random(len(runs))),
                model.drawn_s(waits, None, rng.random(len(waits))),
            )[-1]
            for _ in range(draws)
        ]
        point = float(np.mean(drawn))
        upper, by_qbets = bound.upper_s(point), qbets.upper_s()
        columns.append((float(start_s[job] - now), limits[-1], learned[-1], point, upper, by_qbets))
        entry = (int(start_s[job]), now, point, upper, by_qbets)
        heappush(unknown, entry)
        if not math.isnan(upper):
            heappush(overdue, (now + upper, entry))
        if progress is not None:
            progress((done + 1) / len(chosen))
    table = np.array(columns, dtype=np.float64).reshape(len(columns), 6)
    waited, limits_s, learned_s, points, uppers, others = table.T
    scored = chosen >= score_from * len(jobs)
    return Backtest(level, chosen, waited, limits_s, learned_s, points, uppers, others, scored)
