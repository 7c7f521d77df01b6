"""Spot with a progress line: deadlines hold whatever the market does, and money is saved."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from trace_files import trace

from hpcscale.burst.spot import ON_DEMAND, SPOT, WAIT, choose
from hpcscale.errors import InvalidFileError, NotFoundError
from hpcscale.simulate import spot_kernel
from hpcscale.simulate.spot import Availability, read_availability, replay_spot


def test_the_three_answers():
    ask = {"slack_h": 3.0, "first_slack_h": 4.0, "work_left": 0.5, "delay_h": 0.2, "look_h": 0.05}
    assert choose(True, WAIT, *ask.values()) == SPOT
    assert choose(False, WAIT, *ask.values()) == WAIT  # above its line of 2 h
    assert choose(False, WAIT, *{**ask, "slack_h": 2.0}.values()) == ON_DEMAND
    assert choose(False, ON_DEMAND, *ask.values()) == ON_DEMAND
    # too little slack to try spot; one that runs there stays
    assert choose(True, ON_DEMAND, *{**ask, "slack_h": 0.4}.values()) == ON_DEMAND
    assert choose(True, SPOT, *{**ask, "slack_h": 0.1}.values()) == SPOT
    # with little slack it goes back to spot when that has been up for a while
    few = {**ask, "slack_h": 1.0}
    assert choose(True, ON_DEMAND, *few.values(), 0.3) == ON_DEMAND
    assert choose(True, ON_DEMAND, *few.values(), 0.5) == SPOT
    assert choose(True, ON_DEMAND, *ask.values(), 0.1) == SPOT


@given(
    st.lists(st.tuples(st.integers(1, 60), st.booleans()), min_size=1, max_size=40),
    st.floats(1.0, 2.0),
    st.floats(0.0, 0.5),
    st.booleans(),
)
def test_no_deadline_is_missed_whatever_the_market_does(spells, slack, delay, greedy):
    up = np.concatenate([np.full(n, int(is_up)) for n, is_up in spells]).astype(np.int64)
    work, look = 10.0, 0.05
    # feasible: on demand from the beginning makes it
    time = max(slack * work, work + delay)
    cost, end = spot_kernel.replay(up, look, work, time, delay, 0.3, greedy)
    assert end <= time + 1e-6
    assert cost <= time + 1e-6
    assert cost >= 0.3 * work - 1e-6


def test_a_market_that_is_always_up_costs_the_spot_price():
    up = np.ones(1000, dtype=np.int64)
    cost, _ = spot_kernel.replay(up, 0.05, 10.0, 12.0, 0.2, 0.3, False)
    assert cost == pytest.approx(0.3 * 10.2)
    cost, _ = spot_kernel.replay(0 * up, 0.05, 10.0, 12.0, 0.2, 0.3, False)
    assert cost == pytest.approx(10.2)


def test_the_best_in_hindsight_is_no_dearer_than_ours():
    rng = np.random.default_rng(3)
    up = np.repeat(rng.integers(0, 2, 40), 7).astype(np.int64)
    zone = Availability("made up", 0.05, up)
    result = replay_spot([zone], work_h=4.0, slack=1.3, start_every_h=1.0)
    assert result.floor <= result.best + 0.02 <= result.ours + 0.04
    assert result.missed == 0


def test_a_file_that_is_none_is_named(tmp_path):
    path = tmp_path / "zone.json"
    with pytest.raises(NotFoundError):
        read_availability(path)
    path.write_text('{"data": []}')
    with pytest.raises(InvalidFileError, match="no record"):
        read_availability(path)


@pytest.mark.traces
def test_recorded_markets_close_forty_percent_of_the_gap_and_miss_nothing():
    folder = trace("spot/availability/1-node/aws-02-15-2023")
    zones = [read_availability(path) for path in sorted(folder.glob("*_v100_1.json"))]
    assert len(zones) == 9
    for slack in (1.05, 1.15, 1.25, 1.5):
        result = replay_spot(zones, slack=slack)
        assert result.missed == 0
        assert result.ours < result.greedy
        if slack == 1.15:
            assert result.gap_closed >= 0.40
