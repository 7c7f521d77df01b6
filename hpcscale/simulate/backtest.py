"""How good a forecast would have been: each arrival predicted from what was known then.

The truth is a replay's start (or the trace's own). At a job's submission the state is rebuilt: who
runs since when, who waits ahead. Runtimes of the future are used for nothing but the score.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from heapq import heappop, heappush

import numpy as np

from hpcscale.forecast.bounds import AdaptiveBound, Case, Qbets
from hpcscale.forecast.queue import Queue, live_point_s
from hpcscale.forecast.runtimes import RuntimeModel
from hpcscale.history.workload import Bools, Floats, Ints, Workload
from hpcscale.simulate.easy import arrays

_HOUR_S = 3600.0
_Open = tuple[int, int, int, float]  # start, key of the bound, submission, the other bound


@dataclass(frozen=True, eq=False)
class Backtest:
    """One entry a predicted arrival, in order of submission; seconds of wait, NaN: not stated.

    Attributes:
        row: the job's row in the workload.
        waited_s: what came.
        limit_plan_s: conservative plan in which every job runs to its limit.
        learned_plan_s: the same with learned runtimes.
        run_on_s: the scheduler's own rule run on with learned runtimes, mean of draws.
        point_s: the forecast: the median of waits that were forecast alike, so far as such are
            known by then; else ``run_on_s``.
        upper_s, qbets_s: upper bounds at ``level``.
        live_s, live_upper_s: what a site's user is told, where ``run_on_s`` is made in time
            (``live_point_s`` says how it differs).
        long_s, long_upper_s: likewise in a queue too long for that.
        scored: behind the part that the bounds warm up on.
    """

    level: float
    row: Ints
    waited_s: Floats
    limit_plan_s: Floats
    learned_plan_s: Floats
    run_on_s: Floats
    point_s: Floats
    upper_s: Floats
    qbets_s: Floats
    live_s: Floats
    live_upper_s: Floats
    long_s: Floats
    long_upper_s: Floats
    scored: Bools

    @property
    def _counted(self) -> Bools:
        return self.scored & np.isfinite(self.upper_s) & np.isfinite(self.qbets_s)

    @property
    def scored_jobs(self) -> int:
        """Predictions that ``figures`` are of."""
        return int(self._counted.sum())

    def figures(self) -> dict[str, float]:
        """What the scored part comes to: errors in hours, coverages and widths."""
        s = self._counted
        waited = self.waited_s[s]

        def mae(column: Floats) -> float:
            return float(np.abs(column[s] - waited).mean() / _HOUR_S)

        def ratio(column: Floats) -> float:
            by_limits = mae(self.limit_plan_s)
            return mae(column) / by_limits if by_limits else math.nan

        def told(point: Floats, upper: Floats) -> dict[str, float]:
            return {
                "mae_h": mae(point),
                "mae_ratio": ratio(point),
                "upper_mean_h": float(upper[s].mean() / _HOUR_S),
                "coverage": float((waited <= upper[s]).mean()),
                "width_ratio": float(upper[s].mean() / self.qbets_s[s].mean()),
            }

        live = told(self.live_s, self.live_upper_s)
        long = told(self.long_s, self.long_upper_s)
        return {
            "jobs": int(s.sum()),
            "mean_wait_h": float(waited.mean() / _HOUR_S),
            "limit_plan_mae_h": mae(self.limit_plan_s),
            "learned_plan_mae_h": mae(self.learned_plan_s),
            "point_mae_h": mae(self.point_s),
            "point_bias_h": float((self.point_s[s] - waited).mean() / _HOUR_S),
            "learned_plan_mae_ratio": ratio(self.learned_plan_s),
            "run_on_mae_ratio": ratio(self.run_on_s),
            "point_mae_ratio": ratio(self.point_s),
            "coverage": float((waited <= self.upper_s[s]).mean()),
            "upper_mean_h": float(self.upper_s[s].mean() / _HOUR_S),
            "qbets_coverage": float((waited <= self.qbets_s[s]).mean()),
            "qbets_mean_h": float(self.qbets_s[s].mean() / _HOUR_S),
            "width_ratio": float(self.upper_s[s].mean() / self.qbets_s[s].mean()),
            **{f"live_{name}": value for name, value in live.items()},
            **{f"live_long_queue_{name}": value for name, value in long.items()},
        }


class _Told:
    """What a site's user is told by one way to plan, and what came of it."""

    def __init__(self, level: float) -> None:
        self._bound = AdaptiveBound(level)
        self._open: list[tuple[int, int]] = []

    def say(self, now: int, case: Case, start: int) -> tuple[float, float]:
        """Point and bound; the start is not looked at before its time."""
        while self._open and self._open[0][0] <= now:
            started, key = heappop(self._open)
            self._bound.started(key, started)
        self._bound.at(now)
        said = self._bound.say(case)
        likely = case.planned_s
        if likely > 0 and not math.isnan(said.p50_s):
            likely = said.p50_s
        heappush(self._open, (start, self._bound.asked(case, said.upper_s)))
        return likely, max(said.upper_s, likely)


def backtest(
    jobs: Workload,
    start_s: Ints,
    capacity: int,
    *,
    level: float = 0.9,
    warm_up: float = 0.1,
    score_from: float = 0.4,
    every: int = 1,
    least_wait_s: int = 0,
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
        least_wait_s: jobs that waited no longer started at once.
        draws: runtimes are drawn so often; ``run_on_s`` is the mean of what follows.
        seed: of the draws.
        progress: called with the share done.
    """
    submit, nodes, run, limit = arrays(jobs)
    end = start_s + run
    model = RuntimeModel(jobs, start_s, run)
    bound, qbets = AdaptiveBound(level), Qbets(level)
    rng = np.random.default_rng(seed)
    late = np.flatnonzero(start_s - submit > least_wait_s)
    chosen = late[late >= warm_up * len(jobs)][::every]
    live, long = _Told(level), _Told(level)
    unknown: list[_Open] = []
    columns: list[tuple[float, ...]] = []
    ended = np.maximum.accumulate(end)
    for done, job in enumerate(chosen.tolist()):
        now = int(submit[job])
        while unknown and unknown[0][0] <= now:
            started, key, asked, by_qbets = heappop(unknown)
            bound.started(key, started)
            qbets.started(started - asked, by_qbets)
        bound.at(now)
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
        user = jobs.user[job]
        own = int((jobs.user[waits] == user).sum()) - 1 if user >= 0 else 0
        case = Case(float(np.mean(drawn)), int(nodes[job]), float(limit[job]), own)
        said, by_qbets = bound.say(case), qbets.upper_s()
        point = case.planned_s if math.isnan(said.p50_s) else said.p50_s
        waited = float(start_s[job] - now)
        first, last = float(limits[-1]), float(learned[-1])
        lived = case._replace(planned_s=live_point_s(first, last, case.planned_s))
        lasted = case._replace(planned_s=live_point_s(first, last, 0.0))
        columns.append(
            (
                waited, first, last, case.planned_s, point, said.upper_s, by_qbets,
                *live.say(now, lived, int(start_s[job])), *long.say(now, lasted, int(start_s[job])),
            )
        )  # fmt: skip
        key = bound.asked(case, said.upper_s)
        heappush(unknown, (int(start_s[job]), key, now, by_qbets))
        if progress is not None:
            progress((done + 1) / len(chosen))
    table = np.array(columns, dtype=np.float64).reshape(len(columns), 11)
    scored = chosen >= score_from * len(jobs)
    waits, limits_s, learned_s, run_on_s, points, uppers, others, *told = table.T
    return Backtest(
        level, chosen, waits, limits_s, learned_s, run_on_s, points, uppers, others,
        told[0], told[1], told[2], told[3], scored,
    )  # fmt: skip
