"""EASY backfill as numba compiles it; as plain Python it takes lists.

Reference: Lifka, "The ANL/IBM SP scheduling system" (JSSPP 1995). The first job of the queue that
does not fit gets a reservation at its *shadow* time, when enough running jobs have reached their
limits; one behind it starts now if it ends by then, or takes no node that the reservation needs.
"""

from typing import Any

NEVER = 2**62


def heap_push(heap: Any, size: int, keys: Any, item: int) -> int:
    """Insert ``item`` by ``keys[item]``; the new size."""
    at = size
    while at > 0:
        parent = (at - 1) >> 1
        if keys[heap[parent]] <= keys[item]:
            break
        heap[at] = heap[parent]
        at = parent
    heap[at] = item
    return size + 1


def heap_pop(heap: Any, size: int, keys: Any) -> int:
    """Remove the least item; the new size. The caller has read ``heap[0]``."""
    size -= 1
    item = heap[size]
    at = 0
    while True:
        child = 2 * at + 1
        if child >= size:
            break
        if child + 1 < size and keys[heap[child + 1]] < keys[heap[child]]:
            child += 1
        if keys[heap[child]] >= keys[item]:
            break
        heap[at] = heap[child]
        at = child
    heap[at] = item
    return size


def place(due: Any, limits: Any, size: int, job: int) -> int:
    """Index in ``due`` (jobs by planned end, then by number) where ``job`` belongs."""
    low = 0
    high = size
    while low < high:
        middle = (low + high) >> 1
        other = due[middle]
        if limits[other] < limits[job] or (limits[other] == limits[job] and other < job):
            low = middle + 1
        else:
            high = middle
    return low


def run_easy(
    capacity: int,
    submit: Any,
    nodes: Any,
    runtime: Any,
    limit: Any,
    start: Any,
    end: Any,
    planned: Any,
    following: Any,
    ending: Any,
    due: Any,
) -> int:
    """Fill ``start`` for jobs in order of submission; the longest the queue ever was.

    ``end`` and ``planned`` (end by the limit), ``following`` (the queue as a linked list, its last
    place the list's head), ``ending`` (a heap) and ``due`` (a sorted list) are working space, one
    place longer than the jobs. Jobs wider than ``capacity`` must not be among them.
    """
    size = len(submit)
    free = capacity
    arrived = 0
    running = 0
    head = size  # following[head] is the first job that waits; -1 ends the list
    following[head] = -1
    tail = head
    waiting = 0
    deepest = 0
    shadow = NEVER
    extra = 0
    while arrived < size or running > 0:
        now = NEVER
        if running > 0:
            now = end[ending[0]]
        if arrived < size and submit[arrived] < now:
            now = submit[arrived]
        freed = False
        while running > 0 and end[ending[0]] == now:
            job = ending[0]
            at = place(due, planned, running, job)
            running = heap_pop(ending, running, end)
            for k in range(at, running):
                due[k] = due[k + 1]
            free += nodes[job]
            freed = True
        fresh = tail  # the last job that waited before this moment
        was_blocked = waiting > 0
        while arrived < size and submit[arrived] == now:
            following[tail] = arrived
            following[arrived] = -1
            tail = arrived
            arrived += 1
            waiting += 1
        if waiting == 0:
            continue
        # nothing has ended: whoever waited before waits on, and only the new ones are tried
        before = head
        if was_blocked and not freed:
            before = fresh
        else:
            shadow = NEVER
        while following[before] != -1:
            job = following[before]
            need = nodes[job]
            if need > free:
                if shadow == NEVER:
                    # the first that does not fit: when do enough jobs reach their limits?
                    extra = free
                    k = 0
                    while extra < need:
                        shadow = planned[due[k]]
                        extra += nodes[due[k]]
                        k += 1
                    while k < running and planned[due[k]] == shadow:
                        extra += nodes[due[k]]
                        k += 1
                    extra -= need
                before = job
                if free == 0 and shadow != NEVER:
                    break
                continue
            if shadow != NEVER and now + limit[job] > shadow:
                if need > extra:
                    before = job
                    continue
                extra -= need
            start[job] = now
            end[job] = now + runtime[job]
            planned[job] = now + limit[job]
            free -= need
            at = place(due, planned, running, job)
            for k in range(running, at, -1):
                due[k] = due[k - 1]
            due[at] = job
            running = heap_push(ending, running, end, job)
            waiting -= 1
            following[before] = following[job]
            if tail == job:
                tail = before
        if waiting > deepest:
            deepest = waiting
    return deepest
