"""EASY backfill over any resources (node classes, GPUs, allowances): its inner loops.

At each end, release and begin the queue is looked at in order. The first job that cannot start now
and can later is the head: it gets the earliest place that the believed ends give. Jobs behind it
start now where they fit and the head still fits at its place. Step functions as in ``kernel``.
"""

from typing import Any

from hpcscale.forecast.easy_kernel import heap_pop, heap_push
from hpcscale.forecast.kernel import NEVER, earliest, occupy, step_at


def holds(times: Any, free: Any, k: int, high: int, until: int, units: int) -> bool:
    """Whether so many units are free from step ``k`` on until a time."""
    while True:
        if free[k] < units:
            return False
        k += 1
        if k == high or times[k] >= until:
            return True


def run_easy_classes(
    size: int,
    kinds: int,
    moments: int,
    early: int,
    low: Any,
    high: Any,
    times: Any,
    free: Any,
    fixed: Any,
    early_at: Any,
    early_resource: Any,
    early_until: Any,
    early_units: Any,
    duration: Any,
    run: Any,
    release: Any,
    alt_ptr: Any,
    alt_until: Any,
    dem_ptr: Any,
    dem_resource: Any,
    dem_units: Any,
    dem_taken: Any,
    dep_ptr: Any,
    dep_job: Any,
    start: Any,
    chosen: Any,
    following: Any,
    ends: Any,
    ending: Any,
) -> None:
    """Fill ``start`` and ``chosen``.

    ``size`` jobs, ``kinds`` resources, ``moments`` in ``fixed``: at which something else than a
    pending job begins or ends, in order. ``early`` rows of what is given back before it was to be.
    ``duration`` is believed, ``run`` comes true. ``following`` (the queue as a linked list, its
    last place the list's head), ``ends`` and ``ending`` (a heap) are working space, one place
    longer than the jobs.
    """
    for job in range(size):
        following[job] = job + 1
    following[size] = 0
    if size > 0:
        following[size - 1] = -1
    else:
        following[size] = -1
    running = 0
    at_fixed = 0
    at_early = 0
    while following[size] != -1:
        now = NEVER
        if at_fixed < moments:
            now = fixed[at_fixed]
        if running > 0 and ends[ending[0]] < now:
            now = ends[ending[0]]
        if now == NEVER:
            break
        while at_fixed < moments and fixed[at_fixed] == now:
            at_fixed += 1
        for r in range(kinds):
            # the past is forgotten: the first step begins now
            low[r] = step_at(times, low[r], high[r], low[r], now)
            times[low[r]] = now
        while at_early < early and early_at[at_early] <= now:
            r = early_resource[at_early]
            until = early_until[at_early]
            if until > now:
                high[r] = occupy(times, free, low[r], high[r], now, until, -early_units[at_early])
            at_early += 1
        while running > 0 and ends[ending[0]] == now:
            job = ending[0]
            running = heap_pop(ending, running, ends)
            believed = start[job] + duration[job]
            if believed > now:
                a = alt_ptr[job] + chosen[job]
                for k in range(dem_ptr[a], dem_ptr[a + 1]):
                    r = dem_resource[k]
                    if dem_taken[k] > 0:
                        high[r] = occupy(times, free, low[r], high[r], now, believed, -dem_taken[k])
        head = -1
        head_first = 0
        head_last = 0
        place = NEVER
        place_ends = NEVER
        before = size
        while following[before] != -1:
            job = following[before]
            ready = release[job] <= now
            for k in range(dep_ptr[job], dep_ptr[job + 1]):
                other = dep_job[k]
                if start[other] >= NEVER or start[other] + run[other] > now:
                    ready = False
            if not ready:
                before = job
                continue
            until = now + duration[job]
            found = -1
            for a in range(alt_ptr[job], alt_ptr[job + 1]):
                good = alt_until[a] > now
                for k in range(dem_ptr[a], dem_ptr[a + 1]):
                    if not good:
                        break
                    r = dem_resource[k]
                    if not holds(times, free, low[r], high[r], until, dem_units[k]):
                        good = False
                        break
                    if head < 0 or until <= place:
                        continue
                    for h in range(head_first, head_last):
                        if dem_resource[h] != r:
                            continue
                        # neither may be in the other's way while both run
                        need = dem_taken[h] + dem_units[k]
                        if dem_units[h] + dem_taken[k] > need:
                            need = dem_units[h] + dem_taken[k]
                        both = until if until < place_ends else place_ends
                        step = step_at(times, low[r], high[r], low[r], place)
                        if not holds(times, free, step, high[r], both, need):
                            good = False
                if good:
                    found = a
                    break
            if found >= 0:
                start[job] = now
                chosen[job] = found - alt_ptr[job]
                for k in range(dem_ptr[found], dem_ptr[found + 1]):
                    r = dem_resource[k]
                    if dem_taken[k] > 0:
                        high[r] = occupy(times, free, low[r], high[r], now, until, dem_taken[k])
                ends[job] = now + run[job]
                running = heap_push(ending, running, ends, job)
                following[before] = following[job]
                continue
            before = job
            if head >= 0:
                continue
            for a in range(alt_ptr[job], alt_ptr[job + 1]):
                t = now
                first = dem_ptr[a]
                last = dem_ptr[a + 1]
                settled = 0
                k = first
                # every demand must agree on t: go round until none has moved it
                while settled < last - first and t < place:
                    r = dem_resource[k]
                    step = step_at(times, low[r], high[r], low[r], t)
                    moved = earliest(times, free, step, high[r], t, duration[job], dem_units[k])
                    if moved > t:
                        t = moved
                        settled = 1
                    else:
                        settled += 1
                    k += 1
                    if k == last:
                        k = first
                if t < place and t < alt_until[a]:
                    place = t
                    head = job
                    head_first = first
                    head_last = last
            place_ends = place + duration[job] if head >= 0 else NEVER
