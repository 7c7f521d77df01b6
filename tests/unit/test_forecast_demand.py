"""Demand by hour of the week: the pattern is found, growth is followed, the future is not seen."""

from dataclasses import replace

import numpy as np
import pytest

from hpcscale.forecast.demand import WEEK_H, demand
from hpcscale.history.workload import make_workload

HOUR = 3600


def site(weeks, growth=1.0):
    """One job an hour; on working hours of five days it is ten times as wide."""
    hours = np.arange(weeks * WEEK_H)
    busy = (hours % 24 >= 8) & (hours % 24 < 18) & (hours % WEEK_H < 120)
    nodes = np.where(busy, 100, 10) * growth ** (hours // WEEK_H)
    submit = hours * HOUR
    return make_workload(
        submit_s=submit,
        start_s=submit,
        runtime_s=np.full(len(hours), HOUR - 1),
        nodes=nodes.round(),
    )


def test_the_same_hours_of_past_weeks_are_expected():
    known = demand(site(4), 4 * WEEK_H * HOUR)
    assert known.weeks == 4
    assert known.trend == pytest.approx(1)
    ahead = known.ahead(WEEK_H + 12)
    assert ahead[10] == pytest.approx(100, rel=0.01)
    assert ahead[3] == pytest.approx(10, rel=0.01)
    assert ahead[130] == pytest.approx(10, rel=0.01)
    assert ahead[WEEK_H + 10] == ahead[10]


def test_growth_is_followed_and_bounded():
    known = demand(site(4, growth=1.5), 4 * WEEK_H * HOUR)
    flat = demand(site(4), 4 * WEEK_H * HOUR)
    assert known.trend > 1.5
    last = 100 * 1.5**3
    assert known.ahead(24)[10] == pytest.approx(last, rel=0.1)
    assert flat.ahead(24)[10] < known.ahead(24)[10]
    assert demand(site(2, growth=9.0), 2 * WEEK_H * HOUR).trend == 2


def test_less_than_a_week_gives_the_mean_and_nothing_gives_nothing():
    known = demand(site(1), 48 * HOUR)
    assert known.weeks == 0
    assert set(known.ahead(5).round(6)) == {known.arrived.mean().round(6)}
    assert demand(make_workload(submit_s=[]), 0).ahead(3).tolist() == [0, 0, 0]


def test_what_comes_later_changes_nothing():
    jobs = site(4)
    now = 3 * WEEK_H * HOUR + 5.5 * HOUR
    later = jobs.end_s > now
    other = replace(
        jobs,
        nodes=np.where(jobs.submit_s >= now, 999, jobs.nodes),
        runtime_s=np.where(later, 9 * HOUR, jobs.runtime_s),
    )
    assert demand(jobs, now).ahead(50).tolist() == demand(other, now).ahead(50).tolist()


def test_gpus_can_be_counted():
    jobs = make_workload(submit_s=[0, 10], start_s=[0, 10], runtime_s=[1800, 1800], gpus=[8, 2])
    assert demand(jobs, 2 * HOUR, gpus=True).arrived.tolist() == [5, 0]
