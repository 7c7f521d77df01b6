"""The plan by its definition, in plain Python: the oracle that the fast plan must equal.

Slow on purpose: every candidate time is tried, and at each the held units are summed anew.
"""

from hpcscale.forecast.problem import NEVER, Problem


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
                    if candidate < start[job]:
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
