"""The value rule: which waiting jobs should leave, given when each would start if nobody left.

A job that leaves costs dollars at once. It saves its own remaining wait, and the wait of those that
stand in its way or behind it. With ``mu`` dollars for an hour of one job's wait, the best single
move is the one with the largest ``mu x hours saved - dollars``; it is taken, the plan is made anew,
and so on until no move gains. Deciding at once on the predicted remaining wait, rather than after
a fixed time, is what saves money: the time waited before is lost either way.

Everything here works on plain sequences that the caller provides and makes nothing, so that numba
compiles it for the simulator. ``burst.worth`` decides alike on live jobs.
"""

from typing import Any

# any indexable of numbers: lists, or numpy arrays in the simulator
Numbers = Any


def place(free: Numbers, nodes: int, per_node: int, count: int, out: Numbers) -> bool:
    """Find nodes for a job, best fit: the fullest that still hold it, then the lowest index.

    Args:
        free: free GPUs of each node.
        nodes: how many nodes there are.
        per_node: GPUs that the job takes on each of its nodes.
        count: its nodes.
        out: gets their indexes, in the first ``count`` places.

    Returns:
        Whether it fits.
    """
    if count == 1:
        best = -1
        for n in range(nodes):
            if free[n] >= per_node and (best < 0 or free[n] < free[best]):
                best = n
        out[0] = best
        return best >= 0
    fitting = 0
    top = per_node
    for n in range(nodes):
        if free[n] >= per_node:
            fitting += 1
            top = max(top, free[n])
    if fitting < count:
        return False
    found = 0
    for level in range(per_node, top + 1):
        for n in range(nodes):
            if free[n] == level and found < count:
                out[found] = n
                found += 1
    return True


def plan(  # noqa: PLR0917 -- numba takes no keywords
    now: float,
    free: Numbers,
    nodes: int,
    held: int,
    held_end: Numbers,
    held_node: Numbers,
    held_gpus: Numbers,
    queue: Numbers,
    waiting: int,
    skip: int,
    run: Numbers,
    per_node: Numbers,
    count: Numbers,
    work: Numbers,
    start: Numbers,
) -> float:
    """When each waiting job starts if nobody else arrives or leaves: in order, passing who blocks.

    Args:
        now: hours.
        free: free GPUs of each node; not changed.
        nodes: how many nodes.
        held: pieces of running jobs, one a node.
        held_end: their expected ends, ascending.
        held_node: their nodes.
        held_gpus: their GPUs.
        queue: job numbers, in the queue's order.
        waiting: how many.
        skip: place in the queue of one that leaves; -1 for none.
        run: expected hours of each job, by job number.
        per_node: GPUs on each node, by job number.
        count: nodes, by job number.
        work: scratch: (free, end, node, gpus, done, chosen nodes); end, node and gpus hold what
            runs and each node of every waiting job.
        start: gets the start of each, by place in the queue.

    Returns:
        Sum of the waits from now, hours.
    """
    left_free, end, node, gpus, done, chosen = work
    for n in range(nodes):
        left_free[n] = free[n]
    for k in range(held):
        end[k] = held_end[k]
        node[k] = held_node[k]
        gpus[k] = held_gpus[k]
    last = held
    first = 0
    left = 0
    for i in range(waiting):
        done[i] = 1 if i == skip else 0
        left += 1 - done[i]
    total = 0.0
    t = now
    while left > 0:
        widest = 0
        for n in range(nodes):
            widest = max(widest, left_free[n])
        for i in range(waiting):
            if done[i] == 1:
                continue
            j = queue[i]
            if per_node[j] > widest or not place(left_free, nodes, per_node[j], count[j], chosen):
                continue
            done[i] = 1
            left -= 1
            start[i] = t
            total += t - now
            ends = t + run[j]
            for c in range(count[j]):
                left_free[chosen[c]] -= per_node[j]
                p = last
                while p > first and end[p - 1] > ends:
                    end[p] = end[p - 1]
                    node[p] = node[p - 1]
                    gpus[p] = gpus[p - 1]
                    p -= 1
                end[p] = ends
                node[p] = chosen[c]
                gpus[p] = per_node[j]
                last += 1
        if left == 0 or first >= last:
            break
        t = max(t, end[first])
        while first < last and end[first] <= t:
            left_free[node[first]] += gpus[first]
            first += 1
    return total


def choose(  # noqa: PLR0917 -- numba takes no keywords
    now: float,
    free: Numbers,
    nodes: int,
    held: int,
    held_end: Numbers,
    held_node: Numbers,
    held_gpus: Numbers,
    queue: Numbers,
    waiting: int,
    run: Numbers,
    per_node: Numbers,
    count: Numbers,
    cost: Numbers,
    mu: float,
    others: float,
    wide: int,
    work: Numbers,
    start: Numbers,
    trial: Numbers,
    leave: Numbers,
) -> int:
    """Take the moves that gain, the best first.

    Args:
        now: as in ``plan``, as all others up to ``count``; ``queue`` is shortened.
        cost: dollars of moving each job, by job number; infinite where it may not leave.
        mu: dollars an hour of one job's wait is worth.
        others: weight of the wait that a job causes to others; 0 counts its own alone.
        wide: above so many waiting jobs only each one's own wait counts (the rest is quadratic).
        work: as in ``plan``.
        start: scratch, one place a waiting job; at the end the plan of those that stay.
        trial: another such scratch.
        leave: gets the numbers of those that leave, in order.

    Returns:
        How many leave.
    """
    gone = 0
    while waiting > 0:
        total = plan(now, free, nodes, held, held_end, held_node, held_gpus, queue, waiting, -1,
                     run, per_node, count, work, start)  # fmt: skip
        if total <= 0.0:
            break
        best = -1
        best_gain = 0.0
        for i in range(waiting):
            j = queue[i]
            if cost[j] >= mu * total * max(1.0, others):
                continue  # not even all waits together are worth it
            saved = start[i] - now
            if others > 0.0 and waiting <= wide:
                rest = plan(now, free, nodes, held, held_end, held_node, held_gpus, queue, waiting,
                            i, run, per_node, count, work, trial)  # fmt: skip
                saved += others * (total - saved - rest)
            gain = mu * saved - cost[j]
            if gain > best_gain:
                best_gain = gain
                best = i
        if best < 0:
            break
        leave[gone] = queue[best]
        gone += 1
        for i in range(best, waiting - 1):
            queue[i] = queue[i + 1]
        waiting -= 1
    return gone
