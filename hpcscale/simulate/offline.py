"""The best schedule known: simulated annealing over who leaves and in which order the rest queues.

Every state is replayed by the simulator's own rules (best fit, whoever fits starts) with the queue
in an order of the search's choosing, so each state is a schedule that can be had. All arrivals are
known beforehand: this is a yardstick for policies, and none itself.
"""

import numpy as np

from hpcscale.simulate import offline_kernel as kernel
from hpcscale.simulate.overflow import Instance, Outcome
from hpcscale.simulate.overflow_kernel import STAYS


def best_known(
    start_from: Outcome, mean_wait_h: float, *, moves: int = 400_000, seed: int = 0
) -> Outcome:
    """The cheapest schedule found whose mean wait is at most so much.

    Args:
        start_from: what a policy made of the instance.
        mean_wait_h: that is allowed.
        moves: of the search; some 100 microseconds each for 500 jobs.
        seed: the same seed gives the same schedule.
    """
    instance: Instance = start_from.instance
    price = float(instance.cluster.cloud_gpu_hour_usd)
    leaves = start_from.left.astype(np.int64)
    key = instance.arrival_h.copy()
    best_leaves, best_key = leaves.copy(), key.copy()
    rng = np.random.default_rng(seed)
    kernel.anneal(
        instance.arrival_h, instance.run_h, instance.per_node, instance.count,
        instance.gpu_hours * price, leaves, key, instance.cluster.nodes,
        instance.cluster.gpus_per_node, mean_wait_h * len(instance), 30.0, moves, 8.0, 0.05,
        rng.random((moves, 4)), rng.standard_normal(moves),
        best_leaves, best_key,
    )  # fmt: skip
    start = np.empty(len(instance))
    nodes = instance.cluster.nodes
    pieces = int(instance.count.sum()) + 1
    kernel.replay(
        instance.arrival_h, instance.run_h, instance.per_node, instance.count, best_leaves,
        best_key, nodes, instance.cluster.gpus_per_node, start, np.empty(nodes, np.int64),
        np.empty(pieces), np.empty(pieces, np.int64), np.empty(pieces, np.int64),
        np.empty(len(instance) + 1, np.int64), np.empty(nodes + 1, np.int64),
    )  # fmt: skip
    rules = type(start_from.rules)(STAYS)
    return Outcome(instance, rules, start, best_leaves == 1, instance.run_h)
