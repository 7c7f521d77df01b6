"""The passes of Slurm's scheduler as Slurm makes them, where ``site_kernel`` makes them exactly.

What differs from an exact conservative plan, all of it documented in slurm.conf(5):

- A waiting job's start is looked for at the ends of running jobs taken together in windows, the
  first 30 s wide and each next one twice as wide (``bf_window_linear``), so plans come late.
- Planned jobs hold whole nodes, on the grid of ``bf_resolution``, and a job whose place is taken
  looks again from the next change of the plan on.
- Nodes are looked for in rows of neighbours ("best fit based upon the number of consecutive
  nodes", ``SelectTypeParameters``): the one with the fewest free CPUs of those that hold the job,
  else the one with most. Of a row the first ones are taken; for a single node the fullest.

Compiled by numba where that is installed; the same code runs without it, slowly.
"""

import numpy as np
from numpy.typing import NDArray

from hpcscale.simulate.compiled import compiled
from hpcscale.simulate.site_kernel import NEVER

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

MOST_ENDS = 200  # so many ends are taken together at most without a look whether the job fits


def _rows(
    room: Ints, cpus: Ints, able: Bools, need: int, count: int, taken: Bools, chosen: Ints
) -> bool:
    """Fill ``chosen`` with ``count`` nodes of those that are able and have room, row by row."""
    size = len(room)
    found = 0
    for n in range(size):
        taken[n] = False
        if able[n] and room[n] >= need:
            found += 1
    if found < count:
        return False
    got = 0
    while got < count:
        left = count - got
        best_first, best_end, best_cpus, best_fits = -1, -1, 0, False
        n = 0
        while n < size:
            if not able[n] or room[n] < need or taken[n]:
                n += 1
                continue
            first, row = n, 0
            while n < size and able[n] and room[n] >= need and not taken[n]:
                row += cpus[n]
                n += 1
            fits = n - first >= left
            if (
                best_first < 0
                or (fits and not best_fits)
                or (fits and row < best_cpus)
                or (not fits and row > best_cpus)
            ):
                best_first, best_end, best_cpus, best_fits = first, n, row, fits
        if left == 1:
            fullest = best_first
            for n in range(best_first, best_end):
                if cpus[n] < cpus[fullest]:
                    fullest = n
            best_first, best_end = fullest, fullest + 1
        for n in range(best_first, min(best_end, best_first + left)):
            taken[n] = True
            chosen[got] = n
            got += 1
    return True


def _ends(
    now: int, free: Ints, cpus: Ints, able: Bools, held: int, end: Ints, node: Ints, units: Ints,
    job: Ints, each: Ints, first_window: int, need: int, count: int, future: Ints, idle: Ints,
    taken: Bools, chosen: Ints,
) -> int:  # fmt: skip
    """When a job fits if running ones end at their limits, and nobody else waits; -1: never."""
    if _rows(free, cpus, able, need, count, taken, chosen):
        return now
    for n in range(len(free)):
        future[n] = free[n]
        idle[n] = cpus[n]
    base, window = -1, first_window
    i = 0
    while i < held:
        last, removed = -1, 0
        widen = True
        while i < held:
            k = i
            meets = False
            while k < held and job[k] == job[i]:
                meets = meets or able[node[k]]
                k += 1
            if not meets:
                i = k
                continue
            last = end[i]
            if base < 0:
                base = last + window - last % window
            for p in range(i, k):
                if able[node[p]]:
                    future[node[p]] += units[p]
                    idle[node[p]] += each[job[p]]
            i = k
            if i >= held or end[i] > base + window:
                break
            removed += 1
            if removed > MOST_ENDS:
                widen = False
                break
        if last < 0:
            return -1
        if not widen:
            continue
        window *= 2
        while i < held and end[i] > base + window:
            window *= 2
        if _rows(future, idle, able, need, count, taken, chosen):
            return last if last > now else now + 1
    return -1


def _split(times: Ints, space: Bools, segments: int, at: int) -> int:
    """Make ``at`` the beginning of a segment; how many there are then."""
    k = segments
    while k > 0 and times[k - 1] > at:
        k -= 1
    if k == 0 or times[k - 1] == at:
        return segments
    for s in range(segments, k, -1):
        times[s] = times[s - 1]
        for n in range(space.shape[1]):
            space[s, n] = space[s - 1, n]
    times[k] = at
    for n in range(space.shape[1]):
        space[k, n] = space[k - 1, n]
    return segments + 1


def _hold(
    times: Ints, space: Bools, segments: int, close: int, begin: int, end: int, resolution: int,
    chosen: Ints, count: int,
) -> int:  # fmt: skip
    """Take nodes out of the plan from ``begin`` to ``end``; how many segments there are then."""
    begin = max(begin, times[0])
    end = max(end, begin + resolution)
    if begin >= close:
        return segments
    segments = _split(times, space, segments, begin)
    if end < close:
        segments = _split(times, space, segments, end)
    for s in range(segments):
        if begin <= times[s] < end:
            for c in range(count):
                space[s, chosen[c]] = False
    return segments


def _keep(
    held: int, end: Ints, node: Ints, units: Ints, job: Ints,
    until: int, which: int, need: int, chosen: Ints, count: int,
) -> int:  # fmt: skip
    """Put a job that starts among those that run, in order of their ends; how many pieces then."""
    k = held
    while k > 0 and end[k - 1] > until:
        k -= 1
    for p in range(held - 1, k - 1, -1):
        end[p + count], node[p + count] = end[p], node[p]
        units[p + count], job[p + count] = units[p], job[p]
    for c in range(count):
        end[k + c], node[k + c], units[k + c], job[k + c] = until, chosen[c], need, which
    return held + count


def _slurm_pass(
    now: int,
    free: Ints,
    cpus: Ints,
    size: Ints,
    kind: Ints,
    down: Bools,
    held: int,
    held_end: Ints,
    held_node: Ints,
    held_units: Ints,
    held_job: Ints,
    order: Ints,
    need: Ints,
    each: Ints,
    count: Ints,
    mask: Ints,
    part: Ints,
    limit: Ints,
    backfill: bool,
    resolution: int,
    window: int,
    most: int,
    first_window: int,
    blocked: Ints,
    start: Ints,
    where_ptr: Ints,
    where: Ints,
) -> int:
    """Which of the waiting jobs start now, and where; when the others are planned to.

    Args:
        now: seconds.
        free: units of each node that nobody has; what starts is taken off.
        cpus: likewise.
        size: units of each node.
        kind: class of each node.
        down: nodes that are out of order.
        held: how many pieces of nodes are taken.
        held_end: by when each is given back at the latest, the earliest first; these four have
            room for what may start.
        held_node: of which node.
        held_units: how much of it.
        held_job: whose; pieces of a job stand together.
        order: waiting jobs, the first first.
        need: of each job, units on each of its nodes.
        each: CPUs on each of them.
        count: its nodes.
        mask: bits of the classes that it may take.
        part: its partition.
        limit: its time limit.
        backfill: whether backfill is made after the main pass.
        resolution: of backfill's times.
        window: how far backfill looks ahead.
        most: jobs that backfill tries.
        first_window: in which ends of running jobs are taken together.
        blocked: one place a partition.
        start: filled: when each of ``order`` starts; ``NEVER``: no plan.
        where_ptr: filled: nodes of those that start now, from ``where_ptr[q]`` in ``where``.
        where: filled.

    Returns:
        How many start now.
    """
    nodes, waiting = len(free), len(order)
    chosen = np.empty(nodes + 1, np.int64)
    future = np.empty(nodes, np.int64)
    idle = np.empty(nodes, np.int64)
    taken = np.empty(nodes, np.bool_)
    open_ = np.empty(nodes, np.bool_)
    able = np.empty(nodes, np.bool_)
    for p in range(len(blocked)):
        blocked[p] = 0
    used = starts = 0
    for q in range(waiting):
        start[q] = NEVER
        where_ptr[q] = -1
    for q in range(waiting):
        j = order[q]
        if blocked[part[j]]:
            continue
        for n in range(nodes):
            able[n] = (mask[j] >> kind[n]) & 1 == 1 and not down[n]
        if not _rows(free, cpus, able, need[j], count[j], taken, chosen):
            blocked[part[j]] = 1
            continue
        start[q] = now
        where_ptr[q] = used
        starts += 1
        for c in range(count[j]):
            free[chosen[c]] -= need[j]
            cpus[chosen[c]] -= each[j]
            where[used] = chosen[c]
            used += 1
        held = _keep(
            held, held_end, held_node, held_units, held_job,
            now + limit[j], j, need[j], chosen, count[j],
        )  # fmt: skip
    if not backfill or starts == waiting:
        return starts
    room = 2 * waiting + 3
    times = np.empty(room, np.int64)
    space = np.empty((room, nodes), np.bool_)
    times[0] = now // resolution * resolution
    close = (now + window) // resolution * resolution
    segments = 1
    for n in range(nodes):
        space[0, n] = not down[n]
    tried = 0
    for q in range(waiting):
        if start[q] == now:
            continue
        if tried == most:
            break
        j = order[q]
        tested = False
        later = now
        for n in range(nodes):
            open_[n] = (mask[j] >> kind[n]) & 1 == 1 and not down[n]
        while True:
            begin = later
            later = -1
            until = limit[j] + begin
            for n in range(nodes):
                able[n] = open_[n]
            for s in range(segments):
                over = times[s + 1] if s + 1 < segments else close
                if over <= begin:
                    continue
                if s + 1 < segments and later < 0:
                    # a change after which some other node is there
                    for n in range(nodes):
                        if open_[n] and space[s + 1, n] and not (able[n] and space[s, n]):
                            later = over
                            break
                if times[s] > until:
                    break
                for n in range(nodes):
                    able[n] = able[n] and space[s, n]
            found = 0
            for n in range(nodes):
                found += able[n]
            at = -1
            if found >= count[j]:
                if not tested:
                    tested = True
                    tried += 1
                at = _ends(
                    now, free, cpus, able, held, held_end, held_node, held_units, held_job,
                    each, first_window, need[j], count[j], future, idle, taken, chosen,
                )  # fmt: skip
            if at < 0:
                if later >= 0:
                    continue
                break
            at = max(at, begin)
            if at == now:
                start[q] = now
                where_ptr[q] = used
                starts += 1
                alone = True
                for c in range(count[j]):
                    free[chosen[c]] -= need[j]
                    cpus[chosen[c]] -= each[j]
                    alone = alone and size[chosen[c]] == 1
                    where[used] = chosen[c]
                    used += 1
                held = _keep(
                    held, held_end, held_node, held_units, held_job,
                    now + limit[j], j, need[j], chosen, count[j],
                )  # fmt: skip
                if alone:
                    segments = _hold(
                        times, space, segments, close, times[0],
                        (now + limit[j]) // resolution * resolution, resolution, chosen, count[j],
                    )  # fmt: skip
                break
            if later >= 0 and at > later:
                continue
            if at > now + window:
                break
            first = at // resolution * resolution
            end = (at + limit[j]) // resolution * resolution
            clash = False
            for s in range(segments):
                over = times[s + 1] if s + 1 < segments else close
                if over > first and times[s] < end:
                    for c in range(count[j]):
                        clash = clash or not space[s, chosen[c]]
            if clash and at > begin:
                later = at
                continue
            segments = _hold(
                times, space, segments, close, first, end, resolution, chosen, count[j]
            )
            start[q] = at
            break
    return starts


_rows_fast = compiled(_rows)
_split_fast = compiled(_split)
_ends_fast = compiled(_ends, _rows=_rows_fast)
_hold_fast = compiled(_hold, _split=_split_fast)
_keep_fast = compiled(_keep)
slurm_pass = compiled(
    _slurm_pass, _rows=_rows_fast, _ends=_ends_fast, _hold=_hold_fast, _keep=_keep_fast
)
