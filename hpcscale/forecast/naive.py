"""Plans by their definitions, in plain Python: oracles that the fast ones must equal.

Slow on purpose: every candidate time is tried, and at each the held units are summed anew.
"""

from collections.abc import Sequence

from hpcscale.forecast.problem import NEVER, Problem

Demands = tuple[int, ...]  # resource, units, taken


def naive_plan(problem: Problem) -> tuple[list[int], list[int]]:
    """Start and alternative (index within the job) of each job; ``NEVER`` and -1: it cannot.

    Jobs are taken in order, a job before which another must end right after that one. Each gets the
    earliest start at which, over its whole duration, all that one alternative demands is free.
    """
    held = [tuple(int(v) for v in row) for row in problem.held]
    size = len(problem)
    start, chosen = [NEVER] * size, [-1] * size
    for job in planning_order(problem):
        duration = int(problem.duration_s[job])
        release = int(problem.release_s[job])
        for before in _slice(problem.dep_ptr, problem.dep_job, job):
            release = max(release, start[before] + int(problem.duration_s[before]))
        if release >= NEVER:
            continue
        first = int(problem.alt_ptr[job])
        for alternative in range(first, int(problem.alt_ptr[job + 1])):
            resources = _slice(problem.dem_ptr, problem.dem_resource, alternative)
            units = _slice(problem.dem_ptr, problem.dem_units, alternative)
            demands = list(zip(resources, units, strict=True))
            ends = {to for r, _, to, _ in held if r in set(resources) and to > release}
            for candidate in sorted({release} | ends):
                if all(_fits(problem, held, candidate, duration, d) for d in demands):
                    if candidate < min(start[job], int(problem.alt_until_s[alternative])):
                        start[job], chosen[job] = candidate, alternative - first
                    break
        if start[job] < NEVER:
            alternative = first + chosen[job]
            for resource, count in zip(
                _slice(problem.dem_ptr, problem.dem_resource, alternative),
                _slice(problem.dem_ptr, problem.dem_taken, alternative),
                strict=True,
            ):
                held.append((resource, start[job], start[job] + duration, count))
    return start, chosen


def naive_easy_plan(
    problem: Problem,
    run_s: Sequence[int] | None = None,
    held_ends_s: Sequence[int] | None = None,
) -> tuple[list[int], list[int], dict[int, int]]:
    """As ``naive_plan`` under EASY backfill; and where each that ever was head was first put.

    At every moment at which something ends, begins or is released, the queue is looked at once in
    order. Jobs start where they fit. The first that does not is the head: the earliest place that
    it has by the believed ends is kept for it. One behind it starts if it fits beside what is kept,
    and if the head still fits at its place beside it.
    """
    runs = [int(d) for d in (problem.duration_s if run_s is None else run_s)]
    held = [[int(v) for v in row] for row in problem.held]
    size = len(problem)
    start, chosen, promised = [NEVER] * size, [-1] * size, dict[int, int]()
    rows: dict[int, list[list[int]]] = {}
    waiting = list(range(size))
    moments = {problem.now_s} | {to for _, _, to, _ in held} | set(problem.release_s.tolist())
    # what is given back early counts as held until it is
    back = [
        max(begin, problem.now_s, end)
        for end, (_, begin, _, _) in zip(
            [row[2] for row in held] if held_ends_s is None else held_ends_s, held, strict=True
        )
    ]
    moments |= set(back)
    first_held = list(zip(back, held, strict=True))
    while waiting and (left := [m for m in moments if m < NEVER]):
        now = min(left)
        moments = {m for m in left if m > now}
        for end, row in first_held:
            if end == now:
                row[2] = min(row[2], now)
        for job, mine in rows.items():
            if start[job] + runs[job] == now:
                for row in mine:
                    row[2] = min(row[2], now)
        kept: tuple[int, int, list[Demands]] | None = None  # duration, place, demands of the head
        for job in list(waiting):
            duration = int(problem.duration_s[job])
            after = _slice(problem.dep_ptr, problem.dep_job, job)
            if problem.release_s[job] > now or any(
                start[other] >= NEVER or start[other] + runs[other] > now for other in after
            ):
                continue
            first = int(problem.alt_ptr[job])
            best = (NEVER, -1)
            for alternative in range(first, int(problem.alt_ptr[job + 1])):
                demands = _demands(problem, alternative)
                ends = {to for r, _, to, _ in held if r in {d[0] for d in demands} and to > now}
                for at in [now] if kept else sorted({now} | ends):
                    if at >= problem.alt_until_s[alternative]:
                        break
                    if _beside(problem, held, (duration, at, demands), kept):
                        best = min(best, (at, alternative))
                        break
            if best[0] == now:
                start[job], chosen[job] = now, best[1] - first
                rows[job] = _taken(duration, now, _demands(problem, best[1]))
                held += rows[job]
                waiting.remove(job)
                moments.add(now + runs[job])
            elif kept is None and best[0] < NEVER:
                kept = (duration, best[0], _demands(problem, best[1]))
                promised.setdefault(job, best[0])
    return start, chosen, promised


def _demands(problem: Problem, alternative: int) -> list[Demands]:
    columns = (problem.dem_resource, problem.dem_units, problem.dem_taken)
    return list(zip(*(_slice(problem.dem_ptr, c, alternative) for c in columns), strict=True))


def _taken(duration: int, at: int, demands: list[Demands]) -> list[list[int]]:
    return [[resource, at, at + duration, taken] for resource, _, taken in demands]


def _beside(
    problem: Problem,
    held: list[list[int]],
    job: tuple[int, int, list[Demands]],
    kept: tuple[int, int, list[Demands]] | None,
) -> bool:
    """Whether a job fits at its place, and it and what is kept are not in each other's way."""
    pairs = [(job, kept)] if kept is None else [(job, kept), (kept, job)]
    for (duration, at, demands), other in pairs:
        rows = held if other is None else held + _taken(*other)
        mine = [tuple(row) for row in rows]
        if not all(_fits(problem, mine, at, duration, (r, units)) for r, units, _ in demands):
            return False
    return True


def _slice(pointers: object, values: object, at: int) -> list[int]:
    return [int(v) for v in values[pointers[at] : pointers[at + 1]]]  # type: ignore[index]


def _fits(
    problem: Problem, held: list[tuple[int, ...]], at: int, duration: int, demand: tuple[int, int]
) -> bool:
    """Whether so many units are free at every moment of the window."""
    resource, units = demand
    mine = [(a, b, u) for r, a, b, u in held if r == resource]
    moments = {at} | {a for a, _, _ in mine if at < a < at + duration}
    capacity = int(problem.capacity[resource])
    return all(capacity - sum(u for a, b, u in mine if a <= m < b) >= units for m in moments)


def planning_order(problem: Problem) -> list[int]:
    """Priority order, with a job that waits for others moved behind the last of them.

    Among jobs that are ready the first in priority comes first. Jobs that wait for each other in a
    circle are left out.
    """
    size = len(problem)
    if len(problem.dep_job) == 0:
        return list(range(size))
    from heapq import heapify, heappop, heappush

    waits = [len(_slice(problem.dep_ptr, problem.dep_job, j)) for j in range(size)]
    followers: list[list[int]] = [[] for _ in range(size)]
    for job in range(size):
        for before in _slice(problem.dep_ptr, problem.dep_job, job):
            followers[before].append(job)
    ready = [job for job in range(size) if not waits[job]]
    heapify(ready)
    order = []
    while ready:
        job = heappop(ready)
        order.append(job)
        for follower in followers[job]:
            waits[follower] -= 1
            if not waits[follower]:
                heappush(ready, follower)
    return order
