"""The loops of the spot replay: a policy on a record of availability, and the best in hindsight."""

import numpy as np

from hpcscale.burst import spot
from hpcscale.burst.spot import ON_DEMAND, SPOT, WAIT
from hpcscale.simulate.compiled import compiled
from hpcscale.simulate.overflow import Ints

_choose = compiled(spot.choose)


def _replay(
    up: Ints, look: float, work: float, time: float, delay: float, ratio: float, greedy: bool
) -> tuple[float, float]:
    """Cost in on-demand hours, and when the work was done."""
    left = work
    t = 0.0
    cost = 0.0
    on = WAIT
    starting = 0.0
    tick = 0
    up_h = 0.0
    while left > 1e-9:
        is_up = tick < len(up) and up[tick] == 1
        up_h = up_h + look if is_up else 0.0
        if on == SPOT and not is_up:
            on = WAIT
        slack = time - t - left
        if on != WAIT:
            slack -= starting
        if not greedy:
            want = _choose(is_up, on, slack, time - work, left / work, delay, look, up_h)
        elif on == ON_DEMAND:
            want = ON_DEMAND
        elif on == SPOT:
            want = SPOT
        elif is_up:
            want = SPOT if slack - look >= 2.0 * delay else ON_DEMAND
        else:
            want = WAIT if slack - look >= delay else ON_DEMAND
        if want != on:
            on = want
            starting = delay
        if on == WAIT:
            t += look
            tick += 1
            continue
        begun = min(starting, look)
        starting -= begun
        done = min(left, look - begun)
        left -= done
        t += begun + done
        cost += (begun + done) * (ratio if on == SPOT else 1.0)
        tick += 1
    return cost, t


def _best(up: Ints, look: float, work: float, time: float, delay: float, ratio: float) -> float:
    """Least cost that meets the deadline, all known beforehand; times rounded in its favour."""
    steps = int(time / look) + 1
    ticks = int(delay / look)
    goal = int(work / look)
    now = np.full((3, ticks + 1, goal + 1), np.inf)
    now[WAIT, 0, 0] = 0.0
    for i in range(steps):
        after = np.full((3, ticks + 1, goal + 1), np.inf)
        is_up = i < len(up) and up[i] == 1
        for on in range(3):
            for starting in range(ticks + 1):
                for done in range(max(0, goal - steps + i), min(i, goal) + 1):
                    cost = now[on, starting, done]
                    if cost == np.inf:
                        continue
                    after[WAIT, 0, done] = min(after[WAIT, 0, done], cost)
                    if done == goal:
                        continue
                    for to in range(1, 3):
                        if to == SPOT and not is_up:
                            continue
                        wait = starting if to == on else ticks
                        then = cost + look * (ratio if to == SPOT else 1.0)
                        if wait > 0:
                            after[to, wait - 1, done] = min(after[to, wait - 1, done], then)
                        else:
                            after[to, 0, done + 1] = min(after[to, 0, done + 1], then)
        now = after
    least = np.inf
    for on in range(3):
        for starting in range(ticks + 1):
            least = min(least, now[on, starting, goal])
    return least


replay = compiled(_replay, _choose=_choose)
best = compiled(_best)
