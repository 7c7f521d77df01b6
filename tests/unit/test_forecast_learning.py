"""Learned runtimes, bounds and the backtest: nothing is used before it could be known."""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hpcscale.forecast import bounds
from hpcscale.forecast.bounds import AdaptiveBound, Case, Qbets
from hpcscale.forecast.queue import Queue
from hpcscale.forecast.runtimes import LeakError, RuntimeModel
from hpcscale.history.workload import make_workload
from hpcscale.simulate.backtest import backtest
from hpcscale.simulate.easy import replay_easy

HOUR = 3600


def made_trace(seed=0, size=400, load=1.1):
    """Two users, one of whom asks for ten times what is needed; a queue that builds up."""
    rng = np.random.default_rng(seed)
    user = rng.choice(["careful", "generous"], size)
    limit = rng.choice([1, 2, 4], size) * HOUR
    share = np.where(user == "careful", 0.9, 0.1) * rng.uniform(0.8, 1.1, size)
    nodes = rng.integers(1, 9, size)
    work = (share * limit * nodes).sum()
    return make_workload(
        submit_s=np.sort(rng.uniform(0, work / 16 / load, size)).round(),
        runtime_s=np.maximum(1, share * limit).round(),
        limit_s=limit,
        nodes=nodes,
        user=user.tolist(),
    )


def test_without_history_the_limit_is_the_prediction():
    jobs = made_trace()
    model = RuntimeModel(jobs, jobs.submit_s).at(-1)
    assert model.learned == 0
    assert model.expected_s(np.array([0, 1])) == pytest.approx(jobs.limit_s[:2], rel=0.02)
    assert model.support(0) == 0


def test_each_user_is_learned():
    jobs = made_trace()
    model = RuntimeModel(jobs, jobs.submit_s).at(1e12)
    careful = jobs.names["user"].index("careful")
    ratio = model.expected_s(np.arange(len(jobs))) / jobs.limit_s
    assert ratio[jobs.user == careful].mean() == pytest.approx(0.87, abs=0.04)
    assert ratio[jobs.user != careful].mean() == pytest.approx(0.11, abs=0.04)
    assert model.quantile_s(0, 0.95) > model.quantile_s(0, 0.05)


def test_a_running_job_is_never_predicted_to_have_ended():
    jobs = made_trace()
    model = RuntimeModel(jobs, jobs.submit_s).at(1e12)
    rows = np.arange(len(jobs))
    rng = np.random.default_rng(1)
    for share in (0.0, 0.05, 0.5, 0.95, 1.0, 1.5):
        elapsed = share * jobs.limit_s
        for predicted in (
            model.expected_s(rows, elapsed),
            model.drawn_s(rows, elapsed, rng.random(len(rows))),
        ):
            assert (predicted > elapsed).all()
            if share < 1:
                assert (predicted <= jobs.limit_s).all()


def test_a_job_that_outlived_its_kind_is_given_what_is_left_of_its_kind():
    jobs = made_trace()
    model = RuntimeModel(jobs, jobs.submit_s).at(1e12)
    generous = np.flatnonzero(jobs.user == jobs.names["user"].index("generous"))[:1]
    limit = jobs.limit_s[generous]
    assert model.expected_s(generous) < 0.3 * limit
    assert model.expected_s(generous, 0.5 * limit) > 0.52 * limit


def test_jobs_without_a_limit_are_learned_by_their_size():
    jobs = make_workload(
        submit_s=np.arange(300),
        runtime_s=np.tile([100, 5000, 80_000], 100),
        gpus=np.tile([1, 4, 8], 100),
    )
    model = RuntimeModel(jobs, jobs.submit_s)
    assert math.isnan(model.at(-1).expected_s(np.array([0]))[0])
    small, middle, large = model.at(1e9).expected_s(np.array([0, 1, 2]))
    assert small < middle < large
    assert middle == pytest.approx(5000, rel=0.5)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.floats(0.1, 0.9))
def test_what_has_not_ended_changes_no_prediction(seed, share):
    """The leak is planted: whatever ends later is given another runtime."""
    jobs = made_trace(seed % 7, 120)
    rng = np.random.default_rng(seed)
    start = jobs.submit_s + rng.integers(0, HOUR, len(jobs))
    now = float(np.quantile(jobs.submit_s, share))
    later = start + jobs.runtime_s > now
    planted = np.where(
        later, np.maximum(now - start + 1, 1) + rng.integers(0, 9 * HOUR), jobs.runtime_s
    )
    rows = np.arange(len(jobs))
    one = RuntimeModel(jobs, start).at(now)
    two = RuntimeModel(jobs, start, planted).at(now)
    assert one.expected_s(rows).tolist() == two.expected_s(rows).tolist()
    draws = rng.random(len(rows))
    assert one.drawn_s(rows, None, draws).tolist() == two.drawn_s(rows, None, draws).tolist()
    for row, elapsed in zip(rows.tolist(), (0.0, 60.0, 5e4, 1e6), strict=False):
        each = [one.drawn_s(np.array([row]), np.array([elapsed]), np.array([u])) for u in draws]
        assert one.draws_s(row, elapsed, draws).tolist() == np.concatenate(each).tolist()


def test_a_model_does_not_look_back():
    jobs = made_trace()
    model = RuntimeModel(jobs, jobs.submit_s).at(1000)
    with pytest.raises(LeakError, match="learned up to 1000"):
        model.at(999)


def told(bound, cases, *, every_s=60.0):
    """Ask about each of (planned, waited) in turn, and tell of starts as they come; what was said."""
    open_, said = [], []
    for step, (planned, waited) in enumerate(cases):
        now = step * every_s
        for start, key in sorted(row for row in open_ if row[0] <= now):
            bound.started(key, start)
        open_ = [row for row in open_ if row[0] > now]
        bound.at(now)
        case = Case(planned)
        said.append(bound.say(case))
        open_.append((now + waited, bound.asked(case, said[-1].upper_s)))
    return said


def test_a_bound_keeps_its_promise_through_a_change_of_regime():
    rng = np.random.default_rng(0)
    planned = rng.uniform(0, 20 * HOUR, 4000)
    factor = np.where(np.arange(4000) < 2000, 1.0, 3.0)
    waited = planned * factor * rng.lognormal(0, 0.5, 4000)
    bound = AdaptiveBound(0.9)
    said = told(bound, zip(planned.tolist(), waited.tolist(), strict=True), every_s=600)
    assert bound.told > 3500
    assert 0.89 <= bound.coverage <= 0.94
    upper = np.array([row.upper_s for row in said])
    p50 = np.array([row.p50_s for row in said])
    late = slice(3000, None)
    assert 0.88 <= (waited[late] <= upper[late]).mean() <= 0.95
    before = slice(1000, 2000)
    assert 0.4 <= (waited[before] <= p50[before]).mean() <= 0.6


def test_jobs_that_still_wait_count_as_such():
    """Every second job waits for ever: of those that started alone nine in ten were short."""
    waits = [(100.0, 100.0 if step % 2 else 1e9) for step in range(400)]
    said = told(AdaptiveBound(0.9), waits)[-1]
    assert said.upper_s > 10_000
    # half of them are short, so the median is about to be
    assert said.p50_s < said.upper_s


def test_like_jobs_say_more_than_others():
    """Wide jobs wait long and narrow ones do not: each gets its own bound."""
    bound = AdaptiveBound(0.9)
    for step in range(400):
        wide = step % 2
        bound.at(step * 60.0)
        key = bound.asked(Case(HOUR, 64 if wide else 1, HOUR))
        bound.started(key, step * 60.0 + (9 * HOUR if wide else HOUR))
    bound.at(1e9)
    narrow, wide = bound.say(Case(HOUR, 1, HOUR)), bound.say(Case(HOUR, 64, HOUR))
    assert narrow.p50_s == pytest.approx(HOUR)
    assert wide.p50_s == pytest.approx(9 * HOUR)


def test_who_sends_many_at_once_has_a_bound_of_their_own():
    """Jobs of a crowd wait long, though the plan sees the same for all."""
    bound = AdaptiveBound(0.9)
    for step in range(400):
        crowd = step % 2
        bound.at(step * 60.0)
        key = bound.asked(Case(HOUR, own=300 if crowd else 0))
        bound.started(key, step * 60.0 + (9 * HOUR if crowd else HOUR))
    bound.at(1e9)
    assert bound.say(Case(HOUR)).p50_s == pytest.approx(HOUR)
    assert bound.say(Case(HOUR, own=300)).p50_s == pytest.approx(9 * HOUR)


def test_misses_that_come_in_crowds_raise_the_aim():
    spread = [step % 10 == 0 for step in range(2000)]
    crowds = [step % 500 < 50 for step in range(2000)]
    assert sum(spread) == sum(crowds)
    assert bounds._crowded(spread) < 2
    assert bounds._crowded(crowds) > 20


def test_misses_in_excess_are_owed():
    """A crowd of misses asks for care for as long as it takes to make up for it, and no longer."""
    bound = AdaptiveBound(0.9)
    for _ in range(200):
        bound._count(missed=True)
    careful = bound._asked_rate
    for _ in range(100):
        bound._count(missed=False)
    assert bound._asked_rate == careful == pytest.approx(0.02)
    for _ in range(300):
        bound._count(missed=False)
    assert bound._asked_rate > 3 * careful


def test_a_miss_is_known_before_the_start():
    bound = AdaptiveBound(0.9)
    bound.at(0)
    key = bound.asked(Case(100.0), 500.0)
    bound.at(400)
    assert bound.told == 0
    bound.at(501)
    assert (bound.told, bound.kept) == (1, 0)
    bound.started(key, 900)
    assert (bound.told, bound.kept) == (1, 0)


def test_no_bound_is_stated_on_too_little():
    bound, qbets = AdaptiveBound(0.9), Qbets(0.9)
    said = told(bound, [(10.0, 10.0)] * 21)
    assert math.isnan(said[19].upper_s)
    assert math.isnan(said[19].p50_s)
    assert said[20] == pytest.approx((10, 10))
    assert math.isnan(qbets.upper_s())


def test_qbets_bounds_the_quantile_with_confidence_and_forgets_an_old_regime():
    rng = np.random.default_rng(0)
    qbets = Qbets(0.9, 0.95)
    for wait in rng.exponential(100, 2000):
        qbets.started(wait, qbets.upper_s())
    exact = 100 * math.log(10)
    assert exact * 0.95 < qbets.upper_s() < exact * 1.4
    for _ in range(40):
        qbets.started(5000, qbets.upper_s())
    assert qbets.upper_s() == 5000


def test_a_queue_runs_on_as_the_replay_did():
    """With everything known and nobody new, running on is the replay itself."""
    jobs = replace(made_trace(3, 60), submit_s=np.zeros(60))
    replay = replay_easy(jobs, 16, fast=False)
    start, nodes, limit = replay.start_s, jobs.nodes, jobs.limit_s.astype(np.int64)
    runtime = np.minimum(jobs.runtime_s, limit)
    runs, waits = np.flatnonzero(start == 0), np.flatnonzero(start > 0)
    queue = Queue(0, 16, nodes[runs], 0 * runs, limit[runs], nodes[waits], limit[waits], fast=False)
    assert queue.run_on_s(runtime[runs], runtime[waits]).tolist() == start[waits].tolist()
    assert (queue.planned_s(limit[runs], limit[waits]) >= 0).all()


def test_the_backtest_beats_limits_and_its_bound_holds():
    jobs = made_trace(5, 1500, load=1.0)
    replay = replay_easy(jobs, 16, fast=True)
    tested = backtest(replay.workload, replay.start_s, 16, every=2, draws=4)
    figures = tested.figures()
    assert figures["point_mae_ratio"] < 0.6
    assert figures["learned_plan_mae_ratio"] < 1
    assert 0.85 <= figures["coverage"] <= 0.97
    assert figures["width_ratio"] < 1
    # what a live site's user is told is made by the same means
    assert figures["live_mae_ratio"] < 0.6
    assert figures["live_mae_ratio"] < figures["live_long_queue_mae_ratio"] < 1
    assert 0.85 <= figures["live_coverage"] <= 0.97
    assert figures["live_width_ratio"] < 1


def test_a_planted_leak_shows_in_no_forecast():
    """Whatever happens after a job's submission leaves its forecast as it was."""
    jobs = made_trace(5, 300)
    replay = replay_easy(jobs, 16, fast=False)
    late = np.flatnonzero(replay.start_s > jobs.submit_s)
    cut = late[len(late) // 2]
    now = jobs.submit_s[cut]
    ends = replay.start_s + np.minimum(jobs.runtime_s, jobs.limit_s)
    # all that ends later runs to its limit now; starts after `now` move by a day
    runtime = np.where(ends > now, jobs.limit_s, jobs.runtime_s)
    start = np.where(replay.start_s > now, replay.start_s + 24 * HOUR, replay.start_s)
    one = backtest(jobs, replay.start_s, 16, draws=2)
    two = backtest(replace(jobs, runtime_s=runtime), start, 16, draws=2)
    at = int(np.flatnonzero(one.row == cut)[0])
    assert two.row[at] == cut
    for column in (
        "limit_plan_s", "learned_plan_s", "point_s", "upper_s", "qbets_s", "live_s",
        "live_upper_s", "long_s", "long_upper_s",
    ):  # fmt: skip
        before, after = getattr(one, column)[: at + 1], getattr(two, column)[: at + 1]
        np.testing.assert_array_equal(before, after)
