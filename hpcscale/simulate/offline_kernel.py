"""The loops of the offline search: replay a queue in any order, and anneal over such queues."""

import numpy as np

from hpcscale.burst import value
from hpcscale.simulate.compiled import compiled
from hpcscale.simulate.overflow import Floats, Ints

_place = compiled(value.place)


def _replay(
    arrival: Floats,
    run: Floats,
    per_node: Ints,
    count: Ints,
    leaves: Ints,
    key: Floats,
    nodes: int,
    gpus_per_node: int,
    start: Floats,
    free: Ints,
    end: Floats,
    piece_node: Ints,
    piece_gpus: Ints,
    queue: Ints,
    chosen: Ints,
) -> float:
    """Start times of those that stay; the sum of all waits in hours."""
    total = len(arrival)
    for n in range(nodes):
        free[n] = gpus_per_node
    first = 0
    last = 0
    waiting = 0
    arrived = 0
    waits = 0.0
    while True:
        while arrived < total and leaves[arrived] == 1:
            start[arrived] = arrival[arrived]
            arrived += 1
        t = np.inf
        if first < last:
            t = end[first]
        if arrived < total:
            t = min(t, arrival[arrived])
        if t == np.inf:
            return waits
        while first < last and end[first] <= t:
            free[piece_node[first]] += piece_gpus[first]
            first += 1
        while arrived < total and arrival[arrived] <= t:
            j = arrived
            arrived += 1
            if leaves[j] == 1:
                start[j] = arrival[j]
                continue
            p = waiting
            while p > 0 and key[queue[p - 1]] > key[j]:
                queue[p] = queue[p - 1]
                p -= 1
            queue[p] = j
            waiting += 1
        stays = 0
        for k in range(waiting):
            j = queue[k]
            if not _place(free, nodes, per_node[j], count[j], chosen):
                queue[stays] = j
                stays += 1
                continue
            start[j] = t
            waits += t - arrival[j]
            e = t + run[j]
            for c in range(count[j]):
                free[chosen[c]] -= per_node[j]
                p = last
                while p > first and end[p - 1] > e:
                    end[p] = end[p - 1]
                    piece_node[p] = piece_node[p - 1]
                    piece_gpus[p] = piece_gpus[p - 1]
                    p -= 1
                end[p] = e
                piece_node[p] = chosen[c]
                piece_gpus[p] = per_node[j]
                last += 1
        waiting = stays


replay = compiled(_replay, _place=_place)


def _anneal(
    arrival: Floats,
    run: Floats,
    per_node: Ints,
    count: Ints,
    cost: Floats,
    leaves: Ints,
    key: Floats,
    nodes: int,
    gpus_per_node: int,
    budget: float,
    hour_usd: float,
    moves: int,
    hot: float,
    cold: float,
    drawn: Floats,
    normal: Floats,
    best_leaves: Ints,
    best_key: Floats,
) -> float:
    """Improve; the best state that keeps to the budget is left in ``best_*``; its cost."""
    total = len(arrival)
    start = np.empty(total)
    free = np.empty(nodes, np.int64)
    pieces = 0
    for j in range(total):
        pieces += count[j]
    end = np.empty(pieces + 1)
    piece_node = np.empty(pieces + 1, np.int64)
    piece_gpus = np.empty(pieces + 1, np.int64)
    queue = np.empty(total + 1, np.int64)
    chosen = np.empty(nodes + 1, np.int64)
    waits = replay(arrival, run, per_node, count, leaves, key, nodes, gpus_per_node, start,
                         free, end, piece_node, piece_gpus, queue, chosen)  # fmt: skip
    paid = 0.0
    for j in range(total):
        if leaves[j] == 1:
            paid += cost[j]
    now = paid + hour_usd * max(0.0, waits - budget) + 0.02 * hour_usd * waits
    best = np.inf
    for step in range(moves):
        heat = hot * (cold / hot) ** (step / moves)
        j = int(drawn[step, 0] * total)
        other = -1
        kind = drawn[step, 1]
        old_key = key[j]
        old_other = 0.0
        swapped = False
        if kind < 0.45:
            leaves[j] = 1 - leaves[j]
        elif kind < 0.65:
            # two that came close together change places
            other = min(total - 1, max(0, j + int(drawn[step, 2] * 25) - 12))
            if leaves[other] == leaves[j]:
                if leaves[j] == 1:
                    continue
                old_other = key[other]
                key[j], key[other] = old_other, old_key
                swapped = True
            else:
                leaves[j], leaves[other] = leaves[other], leaves[j]
        else:
            if leaves[j] == 1:
                continue
            key[j] = arrival[j] + normal[step] * 2.0
        waits = replay(arrival, run, per_node, count, leaves, key, nodes, gpus_per_node,
                             start, free, end, piece_node, piece_gpus, queue, chosen)  # fmt: skip
        paid = 0.0
        for i in range(total):
            if leaves[i] == 1:
                paid += cost[i]
        then = paid + hour_usd * max(0.0, waits - budget) + 0.02 * hour_usd * waits
        if waits <= budget and paid < best - 1e-9:
            best = paid
            for i in range(total):
                best_leaves[i] = leaves[i]
                best_key[i] = key[i]
        if then <= now or drawn[step, 3] < np.exp((now - then) / heat):
            now = then
            continue
        if kind < 0.45:
            leaves[j] = 1 - leaves[j]
        elif kind < 0.65:
            if swapped:
                key[j], key[other] = old_key, old_other
            else:
                leaves[j], leaves[other] = leaves[other], leaves[j]
        else:
            key[j] = old_key
    return best


anneal = compiled(_anneal, replay=replay)
