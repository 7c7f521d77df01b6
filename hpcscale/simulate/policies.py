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

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

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
Run = Callable[[Rules], Outcome]


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
    target; the value of an hour is searched around the one that meets it, and of all tries that
    keep to the target the cheapest counts. Where patience by cost is cheaper still, ``value``
    is that: a mixture with its own fallback.

    Args:
        name: for the result.
        rules: the policy; its knob is replaced.
        instance: the jobs.
        target_h: mean wait, hours.
        expect: what is known of runtimes.
        done: called after each run.
    """
    tried: list[Outcome] = []

    def run(with_knob: Rules) -> Outcome:
        outcome = simulate(instance, with_knob, expect)
        tried.append(outcome)
        done()
        return outcome

    if not has_knob(rules):
        return Tuned(name, simulate(instance, rules, expect))
    if rules.rule != kernel.VALUE:
        best = _bisect(run, rules, target_h)
    else:
        best = _search(run, rules, target_h, float(instance.cluster.cloud_gpu_hour_usd))
        fallback = replace(rules, rule=kernel.PATIENCE_BY_COST)
        other = _bisect(run, fallback, target_h, above=False)
        if other.mean_wait_h <= target_h and other.cloud_gpu_hours < best.cloud_gpu_hours:
            best = other
    front = tuple((o.mean_wait_h, float(o.cloud_cost_usd)) for o in tried)
    return Tuned(name, best, front, tuned=True)


def has_knob(rules: Rules) -> bool:
    """Whether a mean wait can be asked of it."""
    tunable = {kernel.PATIENCE, kernel.PATIENCE_BY_COST, kernel.THRESHOLD, kernel.VALUE}
    return rules.rule in tunable and rules.knob > 0


def _bisect(run: Run, rules: Rules, target_h: float, *, above: bool = True) -> Outcome:
    """The patience whose mean wait is within 1 % of the target; the nearest where it jumps.

    Args:
        run: replays the jobs.
        rules: the policy.
        target_h: mean wait.
        above: whether a mean wait over the target will do.
    """
    low, high = 0.0, 0.5
    best: Outcome | None = None
    for _ in range(20):
        outcome = run(replace(rules, knob=high))
        if outcome.mean_wait_h >= target_h or not outcome.left.any():
            break
        low, high = high, 2 * high
    for _ in range(24):
        middle = (low + high) / 2
        outcome = run(replace(rules, knob=middle))
        off = outcome.mean_wait_h - target_h
        good = above or off <= 0
        if good and (best is None or abs(off) < abs(best.mean_wait_h - target_h)):
            best = outcome
        if good and abs(off) <= TOLERANCE * target_h:
            break
        low, high = (middle, high) if off < 0 else (low, middle)
    return best if best is not None else run(replace(rules, knob=low))


def _search(run: Run, rules: Rules, target_h: float, price: float) -> Outcome:
    """The cheapest that keeps to the mean wait: a value of time that stays, or one that adapts.

    More value of time, less wait: the value at which the target is met is bisected, and then its
    surroundings are searched, since cost jumps from one value to the next.
    """
    tried: list[Outcome] = []

    def attempt(knob: float, budget_h: float | None = None) -> Outcome:
        outcome = run(replace(rules, knob=knob, budget_h=budget_h))
        tried.append(outcome)
        return outcome

    low, high = 0.25 * price, 4 * price
    for _ in range(8):
        if attempt(high).mean_wait_h <= target_h:
            break
        low, high = high, 4 * high
    for _ in range(5):
        middle = math.sqrt(low * high)
        if attempt(middle).mean_wait_h <= target_h:
            high = middle
        else:
            low = middle
    centre = math.sqrt(low * high)
    for step in (-6, -4, -3, -2, -1, 1, 2, 3, 4, 6):
        attempt(centre * 1.06**step)
    for allowed in (1.0, 0.96, 0.92):
        for step in (-3, -1, 0, 1, 3):
            attempt(centre * 1.12**step, budget_h=allowed * target_h)
    good = [o for o in tried if o.mean_wait_h <= target_h]
    if not good:
        return min(tried, key=lambda o: o.mean_wait_h)
    return min(good, key=lambda o: o.cloud_gpu_hours)
