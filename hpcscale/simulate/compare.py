"""Several policies on the same jobs, at their own knobs or at one mean wait, and their figures."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from hpcscale.simulate.overflow import Expect, Floats, Instance, Outcome, Rules, simulate
from hpcscale.simulate.policies import Tuned, at_mean_wait, has_knob

RUNS = 48  # replays that a knob takes, for a progress bar

Progress = Callable[[str, int], None]


@dataclass(frozen=True, slots=True)
class Comparison:
    """What ``compare`` did.

    Attributes:
        results: one of each policy, in the order asked for.
        target_h: mean wait that the knobs were set to; None: knobs as they are.
        scored: jobs that the figures are of; the earlier ones set the knobs.
    """

    instance: Instance
    results: tuple[Tuned, ...]
    target_h: float | None
    scored: Instance


def compare(
    instance: Instance,
    policies: Sequence[tuple[str, Rules]],
    *,
    equal_wait: str | None = None,
    tune_on: float = 0.0,
    expect: Expect | None = None,
    progress: Progress = lambda _name, _runs: None,
) -> Comparison:
    """Replay each policy.

    Args:
        instance: the jobs.
        policies: (name, rules).
        equal_wait: the policy, one of them, whose mean wait all others' knobs are set to.
        tune_on: share of the jobs, the earliest, that knobs are set on; the rest is scored. 0 sets
            them in hindsight, on the jobs that are scored.
        expect: what is known of runtimes.
        progress: told of each replay: the policy, and how many were made.
    """
    cut = int(len(instance) * tune_on)
    early = instance.part(slice(0, cut)) if cut else instance
    scored = instance.part(slice(cut, None)) if cut else instance
    rules = dict(policies)
    target = None
    if equal_wait is not None:
        target = simulate(early, rules[equal_wait], expect).mean_wait_h
    results = []
    for name, own in policies:
        progress(name, 0)
        if target is None or name == equal_wait or not has_knob(own):
            result = Tuned(name, simulate(early, own, expect))
        else:
            step = partial(progress, name, 1)
            result = at_mean_wait(name, own, early, target, expect=expect, done=step)
        if cut:
            result = replace(result, outcome=simulate(scored, result.outcome.rules, expect))
        results.append(result)
        progress(name, -1)
    return Comparison(instance, tuple(results), target, scored)


def figures(result: Tuned) -> dict[str, Any]:
    """The figures of one policy; cost in dollars, waits in hours."""
    outcome = result.outcome
    instance = outcome.instance
    wait = outcome.wait_h
    span = float(instance.arrival_h[-1] - instance.arrival_h[0]) or 1.0
    here = ~outcome.left
    capacity = instance.cluster.nodes * instance.cluster.gpus_per_node * span
    slowdown = (wait + instance.run_h) / np.maximum(instance.run_h, 10 / 3600)
    return {
        "policy": result.name,
        "cloud_cost_usd": float(outcome.cloud_cost_usd),
        "mean_wait_h": outcome.mean_wait_h,
        "p90_wait_h": float(np.quantile(wait, 0.9)),
        "p99_wait_h": float(np.quantile(wait, 0.99)),
        "mean_bounded_slowdown": float(np.maximum(slowdown, 1).mean()),
        "deadline_hit_rate": outcome.deadline_hit_rate,
        "jobs": len(instance),
        "jobs_in_cloud": int(outcome.left.sum()),
        "cloud_gpu_hours": outcome.cloud_gpu_hours,
        "here_gpu_hours": float(instance.gpu_hours[here].sum()),
        "utilisation": _gpu_hours_before(outcome, here, span) / capacity,
        "knob": outcome.rules.knob,
        "knob_set_to_wait": result.tuned,
    }


def front(points: Sequence[tuple[float, float]]) -> list[bool]:
    """Of points which both are better the lower: whether no other one is better than this.

    Better is no worse in one and lower in the other; equal points are all on the front.
    """
    return [not any(a <= x and b <= y and (a, b) != (x, y) for a, b in points) for x, y in points]


def fronts(rows: Sequence[dict[str, Any]]) -> list[list[str]]:
    """On which fronts each policy is: ``wait`` and ``deadlines``, both against the cloud's cost.

    Args:
        rows: from ``figures``.
    """
    waits = front([(row["mean_wait_h"], row["cloud_cost_usd"]) for row in rows])
    hits = front([(-row["deadline_hit_rate"], row["cloud_cost_usd"]) for row in rows])
    kinds = ("wait", "deadlines")
    return [
        [kind for kind, on in zip(kinds, each, strict=True) if on]
        for each in zip(waits, hits, strict=True)
    ]


def _gpu_hours_before(outcome: Outcome, rows: Any, until_h: float) -> float:
    """GPU-hours of these jobs from the first arrival to the last."""
    instance = outcome.instance
    first = float(instance.arrival_h[0])
    begin = np.minimum(outcome.start_h[rows], first + until_h)
    end = np.minimum(outcome.end_h[rows], first + until_h)
    return float((instance.gpus[rows] * (end - begin)).sum())


def timeline(
    outcome: Outcome, points: int = 240, *, until_h: float | None = None
) -> dict[str, Floats]:
    """GPUs waiting, running here and running away at evenly spaced moments.

    Args:
        outcome: of one policy.
        points: how many moments.
        until_h: the last one; None: the last end.

    Returns:
        ``hours``, ``waiting``, ``here`` and ``away``.
    """
    instance = outcome.instance
    end = outcome.end_h
    last = float(end.max()) if until_h is None else until_h
    hours = np.linspace(float(instance.arrival_h[0]), last, points)

    def active(begin: Floats, until: Floats, gpus: Any) -> Floats:
        rise = np.argsort(begin)
        fall = np.argsort(until)
        up = np.concatenate([[0], np.cumsum(gpus[rise])])
        down = np.concatenate([[0], np.cumsum(gpus[fall])])
        counted: Floats = (
            up[np.searchsorted(begin[rise], hours, side="right")]
            - down[np.searchsorted(until[fall], hours, side="right")]
        ).astype(np.float64)
        return counted

    here = ~outcome.left
    return {
        "hours": hours,
        "waiting": active(instance.arrival_h, outcome.start_h, instance.gpus),
        "here": active(outcome.start_h[here], end[here], instance.gpus[here]),
        "away": active(outcome.start_h[outcome.left], end[outcome.left],
                       instance.gpus[outcome.left]),
    }  # fmt: skip
