"""Speed of the replay, as a ratio to the naive one in the same run: deep queues stay near linear."""

from time import process_time

import numpy as np

from hpcscale.history.workload import make_workload
from hpcscale.simulate.easy import arrays, replay_easy
from hpcscale.simulate.naive import naive_easy


def flood(size):
    """All jobs arrive within a day on a machine that needs weeks for them."""
    rng = np.random.default_rng(0)
    limit = rng.choice([1800, 3600, 7200, 21600], size)
    return make_workload(
        submit_s=np.sort(rng.uniform(0, 86400, size)).round(),
        runtime_s=(limit * rng.uniform(0.1, 1, size)).round(),
        limit_s=limit,
        nodes=2 ** rng.integers(0, 6, size),
    )


def seconds(work):
    began = process_time()
    result = work()
    return process_time() - began, result


def test_a_deep_queue_is_replayed_fifteen_times_faster_than_by_definition():
    jobs = flood(1200)
    replay_easy(jobs, 64, fast=True)  # compiled by now
    fast_s, replay = seconds(lambda: replay_easy(jobs, 64, fast=True))
    naive_s, (start, _) = seconds(
        lambda: naive_easy(64, *(column.tolist() for column in arrays(jobs)))
    )
    assert replay.deepest_queue > 500
    assert replay.start_s.tolist() == start
    assert naive_s > 15 * fast_s


def test_without_a_compiler_it_is_still_faster_than_by_definition():
    jobs = flood(1200)
    plain_s, replay = seconds(lambda: replay_easy(jobs, 64, fast=False))
    naive_s, (start, _) = seconds(
        lambda: naive_easy(64, *(column.tolist() for column in arrays(jobs)))
    )
    assert replay.start_s.tolist() == start
    assert naive_s > 2 * plain_s
