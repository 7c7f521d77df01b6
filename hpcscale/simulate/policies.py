"""The overflow policies by name, and their knobs set to one mean wait.

==============  =========================================================================
never           nobody leaves
always          everybody leaves on arrival
no-wait         whoever does not fit on arrival leaves
threshold       leaves after a time in a queue longer than a depth
constant-wait   leaves after a time; the first that does not fit blocks the rest
compute-wait    leaves after a time in proportion to its GPU-hours
deadline        leaves at the last moment at which the cloud still meets its deadline
value           leaves when what it saves in waiting is worth more than what it costs
==============  =========================================================================

No-Wait, Constant-Wait and Compute-Wait are Starburst's (USENIX ATC'24, section 4).
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from hpcscale.errors import UsageError
from hpcscale.simulate import overflow_kernel as kernel
from hpcscale.simulate.overflow import ALWAYS, Expect, Instance, Outcome, Rules, simulate

NAMES = (
    "never", "always", "no-wait", "threshold", "constant-wait", "compute-wait", "deadline", "value",
)  # fmt: skip

COMPUTE_WAIT_FACTOR = 0.076  # hours for each GPU-hour: Starburst's own default
WAIT_BUDGET = 0.25  # of the mean runtime: Starburst's budget for Constant-Wait
VALUE_GPU_HOURS = 8.0  # an hour of one job's wait is worth so many GPU-hours in the cloud
TOLERANCE = 0.01  # of the mean wait, for a knob that is bisected

Done = Callable[[], None]


@dataclass(frozen=True, slots=True)
class Tuned:
    """A policy with its knob, and what it gave.

    Attributes:
        tried: every (mean wait in hours, cost in dollars) on the way: its front.
        tuned: whether it has a knob, and that was set.
    """

    name: str
    outcome: Outcome
    tried: tuple[tuple[float, float], ...] = ()
    tuned: bool = False


def rules_of(name: str, instance: Instance, *, minutes: float = 60.0, depth: int = 10) -> Rules:
    """A policy with its default knob.

    Args:
        name: one of ``NAMES``.
        instance: its mean runtime is the scale of Constant-Wait's patience.
        minutes: threshold alone: of waiting.
        depth: threshold alone: of the queue.

    Raises:
        UsageError: no such policy.
    """
    price = float(instance.cluster.cloud_gpu_hour_usd)
    match name:
        case "never":
            return Rules(kernel.STAYS)
        case "always":
            return Rules(ALWAYS)
        case "no-wait":
            return Rules(kernel.PATIENCE, 0.0)
        case "threshold":
            return Rules(kernel.THRESHOLD, minutes / 60.0, depth=depth)
        case "constant-wait":
            return Rules(kernel.PATIENCE, WAIT_BUDGET * float(instance.run_h.mean()), blocking=True)
        case "compute-wait":
            return Rules(kernel.PATIENCE_BY_COST, COMPUTE_WAIT_FACTOR)
        case "deadline":
            return Rules(kernel.STAYS, guard=True)
        case "value":
            return Rules(kernel.VALUE, VALUE_GPU_HOURS * price)
    raise UsageError(f"no policy {name!r}", hint=f"one of: {', '.join(NAMES)}")


def at_mean_wait(
    name: str,
    rules: Rules,
    instance: Instance,
    target_h: float,
    *,
    expect: Expect | None = None,
    done: Done = lambda: None,
) -> Tuned:
    """The policy with its knob set so that jobs wait ``target_h`` on average, or less.

    The knob is set in hindsight, for every policy alike. Patience is bisected, to 1 % of the
    target; the value of an hour is searched on a grid that is made finer twice, and of all tries
    that keep to the target the cheapest counts. Where patience by cost is cheaper still, ``value``
    is that: a mixture with its own fallback.

    Args:
        name: for the result.
        rules: the policy; its knob is replaced.
        instance: the jobs.
        target_h: mean wait, hours.
        expect: what is known of runtimes.
        done: called after each run.
    """
    tried: list[tuple[float, Outcome]] = []

    def run(knob: float, of: Rules = rules) -> Outcome:
        outcome = simulate(instance, replace(of, knob=knob), expect)
        tried.append((knob, outcome))
        done()
        return outcome

    if rules.rule in {kernel.PATIENCE_BY_COST, kernel.PATIENCE, kernel.THRESHOLD}:
        best = _bisect(run, target_h)
    elif rules.rule == kernel.VALUE:
        best = _search(run, tried, target_h, float(instance.cluster.cloud_gpu_hour_usd))
        fallback = replace(rules, rule=kernel.PATIENCE_BY_COST)
        other = _bisect(lambda knob: run(knob, fallback), target_h, above=False)
        if other.mean_wait_h <= target_h and other.cloud_gpu_hours < best.cloud_gpu_hours:
            best = other
    else:
        return Tuned(name, simulate(instance, rules, expect))
    front = tuple((o.mean_wait_h, float(o.cloud_cost_usd)) for _, o in tried)
    return Tuned(name, best, front, tuned=True)


def _bisect(run: Callable[[float], Outcome], target_h: float, *, above: bool = True) -> Outcome:
    """The patience whose mean wait is within 1 % of the target; the nearest where it jumps.

    Args:
        run: the policy with a knob.
        target_h: mean wait.
        above: whether a mean wait over the target will do.
    """
    low, high = 0.0, 0.5
    best: Outcome | None = None
    for _ in range(20):
        if (outcome := run(high)).mean_wait_h >= target_h or not outcome.left.any():
            break
        low, high = high, 2 * high
    for _ in range(24):
        middle = (low + high) / 2
        outcome = run(middle)
        off = outcome.mean_wait_h - target_h
        good = above or off <= 0
        if good and (best is None or abs(off) < abs(best.mean_wait_h - target_h)):
            best = outcome
        if good and abs(off) <= TOLERANCE * target_h:
            break
        low, high = (middle, high) if off < 0 else (low, middle)
    return best if best is not None else run(low)


def _search(
    run: Callable[[float], Outcome],
    tried: list[tuple[float, Outcome]],
    target_h: float,
    price: float,
) -> Outcome:
    """The cheapest of a grid that keeps to the mean wait; more value of time, less wait."""
    grid = np.geomspace(0.25 * price, 256 * price, 21)
    for _ in range(3):
        for knob in grid:
            if all(abs(knob - other) > 1e-9 * knob for other, _ in tried):
                run(float(knob))
        knobs = sorted(tried, key=lambda pair: pair[0])
        good = [k for k, (_, o) in enumerate(knobs) if o.mean_wait_h <= target_h]
        if not good:
            grid = np.geomspace(grid[-1], grid[-1] * 16, 8)
            continue
        best = min(good, key=lambda k: knobs[k][1].cloud_gpu_hours)
        low, high = knobs[max(0, best - 1)][0], knobs[min(len(knobs) - 1, best + 1)][0]
        grid = np.geomspace(low, high, 11)[1:-1]
    good_ones = [o for _, o in tried if o.mean_wait_h <= target_h]
    if not good_ones:
        return min((o for _, o in tried), key=lambda o: o.mean_wait_h)
    return min(good_ones, key=lambda o: o.cloud_gpu_hours)
