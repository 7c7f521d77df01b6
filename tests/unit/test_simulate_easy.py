"""EASY backfill replayed: equal to its definition, within capacity, and the head never delayed."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hpcscale.history.workload import make_workload
from hpcscale.simulate.easy import SimulationError, arrays, replay_easy
from hpcscale.simulate.naive import naive_easy

CAPACITY = 16


@st.composite
def workloads(draw):
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    size = draw(st.integers(1, 120))
    grain = draw(st.sampled_from([1, 10]))  # coarse times make many things happen at once
    limit = rng.integers(1, 40, size) * grain
    return make_workload(
        submit_s=rng.integers(0, draw(st.sampled_from([1, 30, 400])), size) * grain,
        runtime_s=np.maximum(1, limit * rng.uniform(0.02, 1.1, size)),
        limit_s=limit,
        nodes=rng.integers(1, CAPACITY + 1, size),
    )


def oracle(workload):
    return naive_easy(CAPACITY, *(column.tolist() for column in arrays(workload)))


@settings(max_examples=150, deadline=None)
@given(workloads())
def test_the_fast_replay_equals_its_definition(workload):
    assert replay_easy(workload, CAPACITY).start_s.tolist() == oracle(workload)[0]


@settings(max_examples=25, deadline=None)
@given(workloads())
def test_compiled_and_plain_are_the_same(workload):
    one = replay_easy(workload, CAPACITY, fast=True)
    two = replay_easy(workload, CAPACITY, fast=False)
    assert one.start_s.tolist() == two.start_s.tolist()
    assert one.deepest_queue == two.deepest_queue


@settings(max_examples=80, deadline=None)
@given(workloads())
def test_capacity_is_kept_and_no_backfill_delays_the_head(workload):
    start = replay_easy(workload, CAPACITY).start_s
    submit, nodes, runtime, _ = arrays(workload)
    assert (start >= submit).all()
    for moment in np.unique(start):
        assert nodes[(start <= moment) & (moment < start + runtime)].sum() <= CAPACITY
    for job, promised in oracle(workload)[1].items():
        assert start[job] <= promised


def test_a_short_job_passes_a_wide_one_and_a_long_one_does_not():
    jobs = make_workload(
        submit_s=[0, 1, 2, 3],
        runtime_s=[50, 10, 60, 98],
        limit_s=[100, 10, 200, 97],
        nodes=[12, 16, 4, 4],
    )
    replay = replay_easy(jobs, CAPACITY)
    # the fourth ends by the reservation at 100, so it starts at once, and is killed at its limit
    assert replay.start_s.tolist() == [0, 100, 110, 3]
    assert replay.wait_s.tolist() == [0, 99, 108, 0]


def test_what_cannot_run_is_left_out_and_counted():
    jobs = make_workload(submit_s=[0, 1, 2], runtime_s=[5, np.nan, 5], nodes=[1, 1, 17])
    replay = replay_easy(jobs, CAPACITY)
    assert replay.workload.job_id.tolist() == ["1"]
    assert replay.left_out == {"no runtime known": 1, "wider than the site": 1}
    with pytest.raises(SimulationError, match="none of 1 jobs"):
        replay_easy(jobs.select(slice(2, 3)), CAPACITY)
