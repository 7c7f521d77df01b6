"""The start-time plan: equal to its definition, within capacity, and fair to those above."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hpcscale.forecast.naive import naive_easy_plan, naive_plan, planning_order
from hpcscale.forecast.plan import easy_plan, plan
from hpcscale.forecast.problem import NEVER, PlanError, ProblemBuilder, simple_problem

NOW = 1000


@st.composite
def problems(draw, most_jobs=25):
    """Some resources, what holds them, and jobs with alternatives, dependencies and releases."""
    made = ProblemBuilder(NOW)
    kinds = draw(st.integers(1, 4))
    for _ in range(kinds):
        made.resource(draw(st.integers(0, 12)))
    for _ in range(draw(st.integers(0, 8))):
        # more than there is, too: a reservation over nodes that still run something
        made.hold(
            draw(st.integers(0, kinds - 1)),
            draw(st.integers(0, 8)),
            until_s=NOW + draw(st.integers(-5, 60)),
            from_s=draw(st.none() | st.integers(NOW - 10, NOW + 40)),
        )
    size = draw(st.integers(0, most_jobs))
    for position in range(size):
        alternatives = [
            [
                draw(
                    st.tuples(st.just(resource), st.integers(0, 10))
                    | st.integers(1, 10).map(lambda n, r=resource: (r, n, n // 2))
                    | st.integers(1, 10).map(lambda n, r=resource: (r, n, 0))
                )
                for resource in draw(
                    st.lists(st.integers(0, kinds - 1), max_size=kinds, unique=True)
                )
            ]
            for _ in range(draw(st.integers(1, 3)))
        ]
        after = (
            draw(st.lists(st.integers(0, size - 1), max_size=2))
            if draw(st.integers(0, 5)) == 0
            else []
        )
        until = [draw(st.none() | st.integers(NOW, NOW + 40)) for _ in alternatives]
        made.job(
            made.checked(alternatives, until if draw(st.booleans()) else None),
            draw(st.integers(0, 30)),
            release_s=draw(st.none() | st.integers(NOW - 5, NOW + 50)),
            after=[k for k in after if k != position],
        )
    return made.build()


@st.composite
def crowds(draw):
    """Many jobs on one class of nodes: where hints do the work."""
    seed = draw(st.integers(0, 2**32 - 1))
    rng = np.random.default_rng(seed)
    size = draw(st.integers(17, 150))
    discrete = draw(st.booleans())
    seconds = rng.choice([5, 10, 60], size) if discrete else rng.integers(1, 300, size)
    running = [(int(rng.integers(1, 5)), NOW + int(rng.integers(1, 100))) for _ in range(6)]
    return simple_problem(NOW, 24, running, rng.integers(1, 26, size), seconds)


@settings(max_examples=120, deadline=None)
@given(problems())
def test_the_fast_plan_equals_its_definition(problem):
    start, chosen = naive_plan(problem)
    fast = plan(problem)
    assert fast.start_s.tolist() == start
    assert fast.chosen.tolist() == chosen


@settings(max_examples=40, deadline=None)
@given(crowds())
def test_hints_change_nothing(problem):
    assert plan(problem).start_s.tolist() == naive_plan(problem)[0]


@settings(max_examples=40, deadline=None)
@given(problems() | crowds())
def test_compiled_and_plain_are_the_same(problem):
    one, two = plan(problem, fast=True), plan(problem, fast=False)
    assert one.start_s.tolist() == two.start_s.tolist()
    assert one.chosen.tolist() == two.chosen.tolist()


def runs_of(problem, seed):
    """How long jobs really run: as believed, or any shorter time."""
    rng = np.random.default_rng(seed)
    if seed % 3 == 0:
        return problem.duration_s
    return np.maximum(1, np.ceil(problem.duration_s * rng.uniform(0, 1, len(problem)))).astype(int)


def ends_of(problem, seed):
    """When what is held ends: as believed, or before."""
    if seed % 2 == 0:
        return problem.held[:, 2]
    rng = np.random.default_rng(seed + 100)
    held = problem.held
    return held[:, 2] - rng.integers(0, 30, len(held))


@settings(max_examples=60, deadline=None)
@given(problems(), st.integers(0, 99))
def test_easy_over_classes_equals_its_definition(problem, seed):
    run, ends = runs_of(problem, seed), ends_of(problem, seed)
    start, chosen, promised = naive_easy_plan(problem, run.tolist(), ends.tolist())
    fast = easy_plan(problem, run, ends)
    assert fast.start_s.tolist() == start
    assert fast.chosen.tolist() == chosen
    free = (problem.release_s <= problem.now_s).all() and not len(problem.dep_job)
    if free:  # else one above the head may be released later, and go first
        assert all(start[job] <= place for job, place in promised.items())


@settings(max_examples=20, deadline=None)
@given(crowds(), st.integers(0, 99))
def test_easy_of_a_crowd_equals_its_definition(problem, seed):
    run, ends = runs_of(problem, seed), ends_of(problem, seed)
    start, _, promised = naive_easy_plan(problem, run.tolist(), ends.tolist())
    assert easy_plan(problem, run, ends).start_s.tolist() == start
    assert all(start[job] <= place for job, place in promised.items())


@settings(max_examples=25, deadline=None)
@given(problems() | crowds(), st.integers(0, 99))
def test_easy_compiled_and_plain_are_the_same(problem, seed):
    run, ends = runs_of(problem, seed), ends_of(problem, seed)
    one, two = (easy_plan(problem, run, ends, fast=fast) for fast in (True, False))
    assert one.start_s.tolist() == two.start_s.tolist()
    assert one.chosen.tolist() == two.chosen.tolist()


@pytest.mark.parametrize("rule", [plan, easy_plan])
@settings(max_examples=50, deadline=None)
@given(problem=problems() | crowds())
def test_capacity_is_never_exceeded_by_a_planned_job(rule, problem):
    made = rule(problem)
    uses = {r: [] for r in range(len(problem.capacity))}
    for job in np.flatnonzero(made.start_s < NEVER):
        first, last = made.start_s[job], made.start_s[job] + problem.duration_s[job]
        assert first >= problem.release_s[job]
        alternative = problem.alt_ptr[job] + made.chosen[job]
        for k in range(problem.dem_ptr[alternative], problem.dem_ptr[alternative + 1]):
            uses[problem.dem_resource[k]].append((first, last, problem.dem_taken[k]))
    held = {r: [row[1:] for row in problem.held if row[0] == r] for r in uses}
    for r, mine in uses.items():
        for moment in {first for first, _, _ in mine} | {row[0] for row in held[r]}:
            planned = sum(u for a, b, u in mine if a <= moment < b)
            before = sum(u for a, b, u in held[r] if a <= moment < b)
            assert planned <= max(0, problem.capacity[r] - before)


@settings(max_examples=40, deadline=None)
@given(crowds(), st.integers(1, 16))
def test_no_job_delays_one_above_it(problem, kept):
    from dataclasses import replace

    fewer = replace(
        problem,
        duration_s=problem.duration_s[:kept],
        release_s=problem.release_s[:kept],
        alt_ptr=problem.alt_ptr[: kept + 1],
        dem_ptr=problem.dem_ptr[: kept + 1],
        dem_resource=problem.dem_resource[:kept],
        dem_units=problem.dem_units[:kept],
        dem_taken=problem.dem_taken[:kept],
        dep_ptr=problem.dep_ptr[: kept + 1],
    )
    assert plan(fewer).start_s.tolist() == plan(problem).start_s[:kept].tolist()


def test_a_short_job_goes_before_a_wide_one_it_does_not_delay():
    made = ProblemBuilder(0)
    nodes = made.resource(4)
    made.hold(nodes, 3, until_s=100)
    wide = made.job([[(nodes, 4)]], 50)
    short = made.job([[(nodes, 1)]], 100)
    long = made.job([[(nodes, 1)]], 101)
    starts = plan(made.build()).start_s
    assert (starts[wide], starts[short], starts[long]) == (100, 0, 150)


def test_easy_keeps_a_place_for_the_head_alone():
    made = ProblemBuilder(0)
    gpus, nodes = made.resource(8), made.resource(4)
    made.hold(gpus, 6, until_s=100)
    made.job([[(gpus, 8), (nodes, 2)]], 50)  # the head: at 100
    made.job([[(gpus, 8), (nodes, 2)]], 50)
    long = made.job([[(nodes, 2)]], 500)  # beside the head: two nodes are left
    wide = made.job([[(gpus, 1), (nodes, 1)]], 500)  # would take a GPU of the head
    short = made.job([[(gpus, 2), (nodes, 2)]], 100)
    problem = made.build()
    assert easy_plan(problem).start_s.tolist() == [100, 150, 0, 200, 0]
    assert (long, wide, short) == (2, 3, 4)
    # the head's believed end was late: all move up
    early = easy_plan(problem, np.array([10, 10, 500, 500, 100]))
    assert early.start_s.tolist() == [100, 110, 0, 120, 0]


def test_an_allowance_of_running_jobs_holds_a_user_back():
    made = ProblemBuilder(0)
    nodes, allowance = made.resource(10), made.resource(1)
    jobs = [made.job([[(nodes, 1), (allowance, 1)]], 10) for _ in range(3)]
    other = made.job([[(nodes, 8)]], 10)
    starts = plan(made.build()).start_s
    assert [starts[j] for j in jobs] == [0, 10, 20]
    assert starts[other] == 0


def test_what_is_needed_and_not_taken_is_left_to_others_like_it():
    made = ProblemBuilder(0)
    open_nodes = made.resource(4)
    shared = [made.job([[(open_nodes, 4, 0)]], 10) for _ in range(3)]
    whole = made.job([[(open_nodes, 1)]], 10)
    after = made.job([[(open_nodes, 4, 0)]], 10)
    starts = plan(made.build()).start_s
    assert [starts[j] for j in (*shared, whole, after)] == [0, 0, 0, 0, 10]


def test_of_two_partitions_the_earlier_and_then_the_first_is_taken():
    made = ProblemBuilder(0)
    busy, idle = made.resource(1), made.resource(1)
    made.hold(busy, 1, until_s=30)
    for _ in range(3):
        made.job([[(busy, 1)], [(idle, 1)]], 30)
    result = plan(made.build())
    assert result.start_s.tolist() == [0, 30, 30]
    assert result.chosen.tolist() == [1, 0, 1]


def test_dependencies_wait_for_predicted_ends_and_circles_never_start():
    made = ProblemBuilder(0)
    nodes = made.resource(10)
    made.job([[(nodes, 1)]], 5, after=[1])
    made.job([[(nodes, 1)]], 20)
    made.job([[(nodes, 1)]], 5, after=[3])
    made.job([[(nodes, 1)]], 5, after=[2])
    made.job([[(nodes, 11)]], 5)
    made.job([[(nodes, 1)]], 5, after=[4])
    problem = made.build()
    assert planning_order(problem) == [1, 0, 4, 5]
    assert plan(problem).start_s.tolist() == [20, 0, NEVER, NEVER, NEVER, NEVER]
    assert plan(problem).wait_s[4] == float("inf")


def test_mistakes_in_a_problem_are_named():
    made = ProblemBuilder(0)
    with pytest.raises(PlanError, match="no resource 0"):
        made.job([[(0, 1)]], 5)
    made.resource(3)
    with pytest.raises(PlanError, match="-1 units"):
        made.hold(0, -1, 10)
    with pytest.raises(PlanError, match="twice"):
        made.job([[(0, 1), (0, 2)]], 5)
    with pytest.raises(PlanError, match="needs 1 units of a resource and takes 2"):
        made.job([[(0, 1, 2)]], 5)
    made.job([[(0, 1)]], 5, after=[7])
    with pytest.raises(PlanError, match="position 7"):
        made.build()


def test_a_deep_queue_is_planned_in_near_linear_time():
    """The search of a plan without hints would grow by the square of the queue."""
    from time import process_time

    def seconds(size):
        rng = np.random.default_rng(1)
        units = 2 ** rng.integers(0, 6, size)
        problem = simple_problem(0, 1000, [], units, rng.choice([600, 3600, 7200, 86400], size))
        best = float("inf")
        for _ in range(3):
            began = process_time()
            plan(problem, fast=False)
            best = min(best, process_time() - began)
        return best

    assert seconds(8000) < 24 * seconds(1000)
