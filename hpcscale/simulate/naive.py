"""EASY backfill by its definition, in plain Python: the oracle of ``replay_easy``."""

from collections.abc import Sequence


def naive_easy(
    capacity: int,
    submit: Sequence[int],
    nodes: Sequence[int],
    runtime: Sequence[int],
    limit: Sequence[int],
) -> tuple[list[int], dict[int, int]]:
    """Start of each job, and for each that was ever first in a queue it blocked: its reservation.

    At every moment at which a job arrives or ends, all ends are taken first, then all arrivals, and
    then the whole queue is looked at once in order of submission.
    """
    start: dict[int, int] = {}
    reserved: dict[int, int] = {}
    running: list[int] = []
    queue: list[int] = []
    order = sorted(range(len(submit)), key=lambda job: (submit[job], job))
    while order or running:
        moments = [start[job] + runtime[job] for job in running]
        if order:
            moments.append(submit[order[0]])
        now = min(moments)
        running = [job for job in running if start[job] + runtime[job] > now]
        while order and submit[order[0]] == now:
            queue.append(order.pop(0))
        free = capacity - sum(nodes[job] for job in running)
        shadow: int | None = None
        extra = 0
        for job in list(queue):
            fits = nodes[job] <= free
            if shadow is None:
                if not fits:
                    shadow, extra = _reservation(
                        job, free, running=running, start=start, nodes=nodes, limit=limit
                    )
                    reserved.setdefault(job, shadow)
                    reserved[job] = min(reserved[job], shadow)
                    continue
            elif not fits:
                continue
            elif now + limit[job] > shadow:
                if nodes[job] > extra:
                    continue
                extra -= nodes[job]
            start[job] = now
            free -= nodes[job]
            running.append(job)
            queue.remove(job)
    return [start[job] for job in range(len(submit))], reserved


def _reservation(
    job: int,
    free: int,
    *,
    running: Sequence[int],
    start: dict[int, int],
    nodes: Sequence[int],
    limit: Sequence[int],
) -> tuple[int, int]:
    """When enough nodes are surely free for ``job``, and how many are left over then."""
    for moment in sorted({start[other] + limit[other] for other in running}):
        back = sum(nodes[other] for other in running if start[other] + limit[other] <= moment)
        if free + back >= nodes[job]:
            return moment, free + back - nodes[job]
    raise AssertionError("a job wider than the site")
