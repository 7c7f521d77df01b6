"""The fast plan's inner loops: free units over time as step functions, and monotone hints.

Each resource has a step function (``times``, ``free``) in its own segment of two flat arrays. While
a plan grows, free units only shrink; so once a job of U units and D seconds found no room before T,
no later job of at least U units and D seconds can find any. ``hints`` keeps T by classes of U and D
and lets the search begin there, which makes planning near linear in the number of jobs.
"""

from typing import Any

from hpcscale.forecast.jit import shift

NEVER = 2**62


def step_at(times: Any, low: int, high: int, near: int, t: int) -> int:
    """Index of the step that holds ``t``; ``times[low] <= t``. Looks around ``near`` first."""
    near = min(max(near, low), high - 1)
    width = 1
    if times[near] <= t:
        low = near
        while near + width < high and times[near + width] <= t:
            low = near + width
            width *= 2
        high = min(high, near + width)
    else:
        high = near
        while near - width > low and times[near - width] > t:
            high = near - width
            width *= 2
        low = max(low, near - width)
    while high - low > 1:
        middle = (low + high) >> 1
        if times[middle] <= t:
            low = middle
        else:
            high = middle
    return low


def earliest(times: Any, free: Any, k: int, high: int, t: int, duration: int, units: int) -> int:
    """First time at or after ``t``, which is in step ``k``, with ``units`` free all along."""
    while True:
        if free[k] < units:
            k += 1
            while k < high and free[k] < units:
                k += 1
            if k == high:
                return NEVER
            t = times[k]
        k += 1
        if k == high or times[k] >= t + duration:
            return t


def occupy(times: Any, free: Any, first: int, high: int, t: int, until: int, units: int) -> int:
    """Take ``units`` from ``t``, in step ``first``, to ``until``; the segment's new end."""
    last = first  # the step that holds the last moment before `until`
    while last + 1 < high and times[last + 1] < until:
        last += 1
    open_left = times[first] < t
    open_right = last + 1 == high or times[last + 1] > until
    grown = (1 if open_left else 0) + (1 if open_right else 0)
    rest = free[last]
    if grown:
        shift(times, last + 1, high, grown)
        shift(free, last + 1, high, grown)
    if open_right:
        times[last + grown] = until
        free[last + grown] = rest
    if open_left:
        for k in range(last, first - 1, -1):
            times[k + 1] = times[k]
            free[k + 1] = free[k] - units
        times[first + 1] = t
    else:
        for k in range(first, last + 1):
            free[k] -= units
    return high + grown


def plan_jobs(
    size: int,
    order: Any,
    now: int,
    low: Any,
    high: Any,
    near: Any,
    times: Any,
    free: Any,
    hint_at: Any,
    hints: Any,
    unit_classes: int,
    time_classes: int,
    duration: Any,
    time_floor: Any,
    time_ceil: Any,
    release: Any,
    alt_ptr: Any,
    alt_until: Any,
    dem_ptr: Any,
    dem_resource: Any,
    dem_units: Any,
    dem_taken: Any,
    unit_floor: Any,
    unit_ceil: Any,
    dep_ptr: Any,
    dep_job: Any,
    start: Any,
    chosen: Any,
) -> None:
    """Plan the jobs of ``order`` into the step functions; ``start`` and ``chosen`` are filled in.

    ``size`` is how many these are. ``hint_at[r]`` is the offset of a resource's table in ``hints``,
    or -1. ``*_floor`` is the class at or below a value (-1: none), ``*_ceil`` that at or above it.
    """
    for at in range(size):
        job = order[at]
        d = duration[job]
        begin = release[job]
        for k in range(dep_ptr[job], dep_ptr[job + 1]):
            before = dep_job[k]
            ended = start[before] + duration[before]
            if ended > begin:
                begin = ended
        if begin >= NEVER:
            continue
        best = NEVER
        best_alternative = -1
        for a in range(alt_ptr[job], alt_ptr[job + 1]):
            t = begin
            first = dem_ptr[a]
            last = dem_ptr[a + 1]
            settled = 0
            k = first
            # every demand must agree on t: go round until none has moved it
            while settled < last - first and t < best:
                r = dem_resource[k]
                table = hint_at[r]
                known = now
                if table >= 0:
                    u = unit_floor[k]
                    while u > 0:
                        c = time_floor[job]
                        row = table + u * time_classes
                        while c > 0:
                            if hints[row + c] > known:
                                known = hints[row + c]
                            c -= c & -c
                        u -= u & -u
                asked = t if t > known else known
                near[r] = step_at(times, low[r], high[r], near[r], asked)
                found = earliest(times, free, near[r], high[r], asked, d, dem_units[k])
                if table >= 0 and asked <= known < found < NEVER:
                    u = unit_ceil[k]
                    while u < unit_classes:
                        c = time_ceil[job]
                        row = table + u * time_classes
                        while c < time_classes:
                            if hints[row + c] < found:
                                hints[row + c] = found
                            c += c & -c
                        u += u & -u
                if found > t:
                    t = found
                    settled = 1
                else:
                    settled += 1
                k += 1
                if k == last:
                    k = first
            if t < best and t < alt_until[a]:
                best = t
                best_alternative = a
        start[job] = best
        if best_alternative < 0:
            continue
        chosen[job] = best_alternative - alt_ptr[job]
        for k in range(dem_ptr[best_alternative], dem_ptr[best_alternative + 1]):
            r = dem_resource[k]
            if dem_taken[k] > 0:
                near[r] = step_at(times, low[r], high[r], near[r], best)
                high[r] = occupy(times, free, near[r], high[r], best, best + d, dem_taken[k])
