"""Slurm's two schedulers at one moment, on single nodes: the main pass and backfill.

slurm.conf(5) ``SchedulerType=sched/backfill``: the main pass takes jobs in priority order and stops
in a partition at its first job that does not fit. Backfill then gives each waiting job, in the same
order, the earliest place that is free for its time limit, and starts those whose place is now, so
no start delays a job above (conservative backfill). ``bf_resolution``, ``bf_window`` and
``bf_max_job_test`` are what they are there. Nodes are chosen best fit.

Compiled by numba where that is installed; the same code runs without it, slowly.
"""

import numpy as np
from numpy.typing import NDArray

from hpcscale.simulate.compiled import compiled

Ints = NDArray[np.int64]

NEVER = 2**62


def _pick(
    room: Ints, kind: Ints, mask: int, need: int, count: int, chosen: Ints
) -> bool:  # fmt: skip
    """Fill ``chosen`` with ``count`` nodes of the kinds in ``mask`` that hold it; best fit."""
    size = len(room)
    found = 0
    level = NEVER  # the fullest that still hold it first, then the lowest index
    for n in range(size):
        if (mask >> kind[n]) & 1 and room[n] >= need:
            found += 1
            level = min(level, room[n])
    if found < count:
        return False
    c = 0
    while c < count:
        above = NEVER
        for n in range(size):
            if not (mask >> kind[n]) & 1 or room[n] < level:
                continue
            if room[n] == level:
                chosen[c] = n
                c += 1
                if c == count:
                    return True
            else:
                above = min(above, room[n])
        level = above
    return True


def _cut(times: Ints, space: NDArray[np.int64], segments: int, at: int) -> int:
    """Make ``at`` the beginning of a segment; how many there are then."""
    k = segments
    while k > 0 and times[k - 1] > at:
        k -= 1
    if k > 0 and times[k - 1] == at:
        return segments
    for s in range(segments, k, -1):
        times[s] = times[s - 1]
        for n in range(space.shape[1]):
            space[s, n] = space[s - 1, n]
    times[k] = at
    for n in range(space.shape[1]):
        space[k, n] = space[k - 1, n]
    return segments + 1


def _schedule(
    now: int,
    free: Ints,
    kind: Ints,
    held: int,
    held_end: Ints,
    held_node: Ints,
    held_units: Ints,
    order: Ints,
    waiting: int,
    need: Ints,
    count: Ints,
    mask: Ints,
    part: Ints,
    limit: Ints,
    main: bool,
    backfill: bool,
    resolution: int,
    window: int,
    most: int,
    whole: bool,
    blocked: Ints,
    start: Ints,
    where_ptr: Ints,
    where: Ints,
) -> int:
    """Which of the waiting jobs start now, and where; when the others would start by their limits.

    Args:
        now: seconds.
        free: units of each node that nobody has; what starts is taken off.
        kind: class of each node.
        held: how many pieces of nodes are taken.
        held_end: by when each is given back at the latest.
        held_node: of which node.
        held_units: how much of it.
        order: waiting jobs, the first first.
        waiting: how many.
        need: of each job, units on each of its nodes.
        count: its nodes.
        mask: bits of the classes that it may take.
        part: its partition.
        limit: how long it is believed to run, seconds.
        main: whether the main pass is made.
        backfill: whether backfill is.
        resolution: of backfill's times.
        window: how far backfill looks ahead.
        most: jobs that backfill tries.
        whole: a job that is planned for later holds its nodes whole.
        blocked: one place a partition.
        start: filled: when each of ``order`` starts; ``NEVER``: not within the window.
        where_ptr: filled: nodes of those that start now, from ``where_ptr[q]`` in ``where``.
        where: filled.

    Returns:
        How many start now.
    """
    nodes = len(free)
    chosen = np.empty(nodes + 1, np.int64)
    for p in range(len(blocked)):
        blocked[p] = 0
    used = 0
    starts = 0
    for q in range(waiting):
        start[q] = NEVER
        where_ptr[q] = -1
    if main:
        for q in range(waiting):
            j = order[q]
            if blocked[part[j]]:
                continue
            if not _pick(free, kind, mask[j], need[j], count[j], chosen):
                blocked[part[j]] = 1
                continue
            start[q] = now
            where_ptr[q] = used
            starts += 1
            for c in range(count[j]):
                free[chosen[c]] -= need[j]
                where[used] = chosen[c]
                used += 1
    if not backfill or starts == waiting:
        return starts
    # what is free from when on: by limits, on the grid of bf_resolution
    room = 2 * (held + waiting) + 3
    times = np.empty(room, np.int64)
    space = np.empty((room, nodes), np.int64)
    segments = 1
    times[0] = now
    for n in range(nodes):
        space[0, n] = free[n]
    for h in range(held):
        end = max(held_end[h], now + 1)
        end = -(-end // resolution) * resolution
        segments = _cut(times, space, segments, end)
        k = segments - 1
        while k >= 0 and times[k] >= end:
            space[k, held_node[h]] += held_units[h]
            k -= 1
    for q in range(waiting):
        if start[q] != now:
            continue
        j = order[q]
        end = -(-(now + limit[j]) // resolution) * resolution
        segments = _cut(times, space, segments, end)
        k = segments - 1
        while k >= 0 and times[k] >= end:
            for c in range(where_ptr[q], where_ptr[q] + count[j]):
                space[k, where[c]] += need[j]
            k -= 1
    least = np.empty(nodes, np.int64)
    held_to = np.empty(nodes, np.int64)  # of one job: the segment up to which a node holds it,
    full_at = np.empty(nodes, np.int64)  # and the last one in which it does not
    tried = 0
    for q in range(waiting):
        if start[q] == now:
            continue
        if tried == most:
            break
        tried += 1
        j = order[q]
        for n in range(nodes):
            held_to[n] = 0
            full_at[n] = -1
        for i in range(segments):
            if times[i] > now + window:
                break
            end = times[i] + limit[j]
            fit = 0
            for n in range(nodes):
                least[n] = -1
                if fit + nodes - n < count[j]:
                    break
                if not (mask[j] >> kind[n]) & 1 or full_at[n] >= i:
                    continue
                # what held it for an earlier begin holds it for this one
                k = max(i, held_to[n])
                while k < segments and (k == i or times[k] < end) and space[k, n] >= need[j]:
                    k += 1
                held_to[n] = k
                if k < segments and (k == i or times[k] < end):
                    full_at[n] = k  # no begin up to there has it
                else:
                    least[n] = space[i, n]
                    fit += 1
            if fit < count[j]:
                continue
            for n in range(nodes):
                # those whose search was cut short were not needed
                if least[n] < need[j]:
                    least[n] = -1
            if not _pick(least, kind, mask[j], need[j], count[j], chosen):
                continue
            begin = times[i]
            end = -(-end // resolution) * resolution
            segments = _cut(times, space, segments, end)
            for k in range(i, segments):
                if times[k] >= end:
                    break
                for c in range(count[j]):
                    if whole and begin > now:
                        space[k, chosen[c]] = 0
                    else:
                        space[k, chosen[c]] -= need[j]
            start[q] = begin
            if begin == now:
                where_ptr[q] = used
                starts += 1
                for c in range(count[j]):
                    free[chosen[c]] -= need[j]
                    where[used] = chosen[c]
                    used += 1
            break
    return starts


_pick_fast = compiled(_pick)
_cut_fast = compiled(_cut)
schedule = compiled(_schedule, _pick=_pick_fast, _cut=_cut_fast)
