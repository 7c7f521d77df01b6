"""The overflow simulator: hand-made cases, invariants, and Starburst's published costs."""

from dataclasses import replace
from decimal import Decimal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from trace_files import trace

from hpcscale.burst import value
from hpcscale.errors import InvalidFileError, UsageError
from hpcscale.history.read import read_history
from hpcscale.history.workload import make_workload
from hpcscale.simulate import overflow, overflow_kernel
from hpcscale.simulate.compiled import compiled
from hpcscale.simulate.overflow import Cluster, Expect, Outcome, instance_of, simulate
from hpcscale.simulate.policies import NAMES, at_mean_wait, rules_of

H = 3600.0


def jobs(*rows, nodes=1, gpus_per_node=8, price="2.50"):
    """(arrival h, run h, gpus) rows on a small cluster."""
    work = make_workload(
        submit_s=[H * a for a, _, _ in rows],
        runtime_s=[H * r for _, r, _ in rows],
        gpus=[g for _, _, g in rows],
    )
    return instance_of(work, Cluster(nodes, gpus_per_node, Decimal(price)))


def check(outcome: Outcome) -> None:
    """No node ever holds more than it has; nobody starts before arriving; who fits does not wait."""
    instance = outcome.instance
    assert np.isfinite(outcome.start_h).all()
    assert (outcome.wait_h >= 0).all()
    here = np.flatnonzero(~outcome.left)
    for t in outcome.start_h[here]:
        end = outcome.start_h + instance.run_h
        on = here[(outcome.start_h[here] <= t) & (end[here] > t)]
        assert instance.gpus[on].sum() <= instance.cluster.nodes * instance.cluster.gpus_per_node


def test_without_a_cloud_jobs_wait_their_turn_and_small_ones_pass():
    one = jobs((0, 2, 6), (0.5, 1, 8), (1, 1, 2))
    outcome = simulate(one, rules_of("never", one))
    # the second needs all 8, the third fits beside the first
    assert outcome.start_h.tolist() == [0, 2, 1]
    assert outcome.cloud_cost_usd == 0
    assert outcome.mean_wait_h == pytest.approx(0.5)


def test_no_wait_pays_for_what_does_not_fit():
    one = jobs((0, 2, 6), (0.5, 1, 8), (1, 1, 2))
    outcome = simulate(one, rules_of("no-wait", one))
    assert outcome.left.tolist() == [False, True, False]
    assert outcome.cloud_cost_usd == Decimal("20.00")
    assert outcome.mean_wait_h == 0


def test_the_first_that_does_not_fit_blocks_constant_wait_alone():
    one = jobs((0, 2, 6), (0.5, 1, 8), (1, 1, 2))
    rules = rules_of("constant-wait", one)  # patience: a quarter of the mean runtime, 20 min
    outcome = simulate(one, rules)
    assert outcome.left.tolist() == [False, True, False]
    assert outcome.start_h[1] == pytest.approx(0.5 + 1 / 3)
    # at 1 h nobody blocks any more; had it come at .6 h it would have waited for the second to leave
    later = jobs((0, 2, 6), (0.5, 1, 8), (0.6, 1, 2))
    assert simulate(later, rules).start_h[2] == pytest.approx(0.5 + 1 / 3)


def test_compute_wait_waits_in_proportion_to_gpu_hours():
    one = jobs((0, 10, 8), (0, 1, 1), (0, 1, 4))
    outcome = simulate(one, rules_of("compute-wait", one))
    assert outcome.wait_h.tolist() == pytest.approx([0, 0.076, 4 * 0.076])


def test_value_leaves_at_once_when_waiting_costs_more_than_leaving():
    # 8 GPU-hours are worth $20; an hour of waiting as much
    one = jobs((0, 5, 8), (0, 1, 2), (0, 100, 8))
    outcome = simulate(one, rules_of("value", one))
    # the small job would wait 5 h ($100) and costs $5; the long one saves $2,000 by waiting
    assert outcome.left.tolist() == [False, True, False]
    assert outcome.start_h.tolist() == [0, 0, 5]


def test_value_counts_the_wait_of_those_behind():
    # alone the first is not worth moving; it holds up ten others
    rows = [(0, 1, 8), *[(0, 0.5, 8)] * 10]
    one = jobs(*rows)
    outcome = simulate(one, rules_of("value", one))
    assert outcome.left.sum() > 5
    check(outcome)


def test_the_deadline_policy_leaves_at_the_last_safe_moment():
    one = jobs((0, 10, 8), (0, 1, 8))
    deadlines = np.array([np.inf, 3.0])
    object.__setattr__(one, "deadline_h", deadlines)
    outcome = simulate(one, rules_of("deadline", one), Expect(boot_h=0.5))
    assert outcome.left.tolist() == [False, True]
    assert outcome.start_h[1] == pytest.approx(1.5)
    assert outcome.deadline_hit_rate == 1


def test_gangs_take_whole_nodes():
    one = jobs((0, 1, 16), (0, 1, 1), nodes=2)
    assert one.count.tolist() == [2, 1]
    assert one.per_node.tolist() == [8, 1]
    assert simulate(one, rules_of("never", one)).start_h.tolist() == [0, 1]


def test_a_plan_of_many_wide_jobs_stays_inside_its_scratch(monkeypatch):
    # as Python, since compiled code writes past an array's end without a word
    monkeypatch.setattr(overflow_kernel, "_place", value.place)
    monkeypatch.setattr(overflow_kernel, "_choose", value.choose)
    monkeypatch.setattr(overflow_kernel, "loop", overflow_kernel._loop)
    wide = jobs(*[(0.01 * k, 1, 32) for k in range(30)], nodes=4)
    outcome = simulate(wide, replace(rules_of("value", wide), knob=0.01))
    check(outcome)
    assert not outcome.left.any()


def test_numba_can_be_declined(monkeypatch):
    assert compiled(value.place) is not value.place
    monkeypatch.setenv("HPCSCALE_NO_NUMBA", "1")
    assert compiled(value.place) is value.place


def test_jobs_that_can_never_run_are_counted_not_simulated():
    one = jobs((0, 1, 1), (0, 1, 64))
    assert len(one) == 1
    assert one.left_out == {"larger than the cluster": 1}
    with pytest.raises(InvalidFileError, match="1 larger than the cluster"):
        jobs((0, 1, 64))


def test_an_unknown_policy_names_the_known_ones():
    with pytest.raises(UsageError) as caught:
        rules_of("valu", jobs((0, 1, 1)))
    assert "value" in (caught.value.hint or "")


def synthetic(seed: int, size: int = 120, load: float = 16.0):
    rng = np.random.default_rng(seed)
    arrival = np.cumsum(rng.exponential(1 / load, size))
    gpus = rng.choice([1, 2, 4, 8], size, p=[0.7, 0.15, 0.1, 0.05])
    return jobs(*zip(arrival, 0.01 + rng.exponential(1, size), gpus, strict=True), nodes=4)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 1000), st.sampled_from(NAMES), st.booleans())
def test_no_policy_breaks_the_cluster(seed, name, learned):
    one = synthetic(seed, 60)
    check(simulate(one, rules_of(name, one), Expect(learned=learned)))


def whole_nodes(seed: int, size: int = 80):
    """Jobs of one to four whole nodes of a cluster of five, more than it holds."""
    rng = np.random.default_rng(seed)
    arrival = np.cumsum(rng.exponential(0.25, size))
    run = rng.choice([0.1, 0.5, 1.0, 3.0], size) * rng.choice([1.0, 1.1], size)
    gpus = 4 * rng.integers(1, 5, size)
    return jobs(*zip(arrival, run, gpus, strict=True), nodes=5, gpus_per_node=4)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from(["value", *NAMES]), st.booleans(), st.booleans())
def test_whole_nodes_as_one_large_node_change_no_start_and_no_move(seed, name, learned, guard):
    one = whole_nodes(seed)
    rules, expect = replace(rules_of(name, one), guard=guard), Expect(learned=learned, boot_h=0.1)
    small = simulate(one, rules, expect)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(overflow, "_alike", lambda i: (5, 4, i.per_node, i.count))
        plain = simulate(one, rules, expect)
    # to the last bit: each sum is made of the same terms in the same order
    assert small.start_h.tobytes() == plain.start_h.tobytes()
    assert small.left.tolist() == plain.left.tolist()
    assert small.expected_h.tobytes() == plain.expected_h.tobytes()
    check(small)


def test_one_job_of_a_part_of_a_node_keeps_all_nodes_apart():
    whole = jobs((0, 1, 16), (0, 1, 8), nodes=3)
    nodes, each, per_node, count = overflow._alike(whole)
    assert (nodes, each, per_node.tolist(), count.tolist()) == (1, 24, [16, 8], [1, 1])
    mixed = jobs((0, 1, 16), (0, 1, 8), (0, 1, 7), nodes=3)
    nodes, each, per_node, count = overflow._alike(mixed)
    assert (nodes, each, per_node.tolist(), count.tolist()) == (3, 8, [8, 8, 7], [2, 1, 1])
    # 7 of 8 GPUs are on one node: two nodes are left, and 25 GPUs of 24 never run
    outcome = simulate(mixed, rules_of("never", mixed))
    assert outcome.start_h.tolist() == [0, 0, 1]


def test_learned_runtimes_are_those_of_ended_jobs():
    one = jobs((0, 2, 1), (1, 3, 1), (4.5, 1, 1), (9, 1, 1))
    expected = simulate(one, rules_of("compute-wait", one), Expect(learned=True)).expected_h
    # nothing is known until the first ends at 2 h; the third knows both; the fourth all
    # three, the last two of them twice as much
    assert expected.tolist() == pytest.approx([1, 1, 2.5, 2])


@pytest.mark.parametrize("name", ["compute-wait", "value"])
def test_a_tuned_policy_keeps_to_the_mean_wait(name):
    one = synthetic(1, 300)
    target = simulate(one, rules_of("constant-wait", one)).mean_wait_h
    tuned = at_mean_wait(name, rules_of(name, one), one, target)
    assert tuned.tuned
    assert tuned.outcome.mean_wait_h == pytest.approx(target, rel=0.35)
    if name == "value":
        assert tuned.outcome.mean_wait_h <= target
    check(tuned.outcome)


@pytest.mark.traces
@pytest.mark.parametrize(
    ("load", "no_wait", "constant", "compute"),
    [
        ("0.75", "497.66", "475.16", "263.21"),
        ("1", "760.68", "705.55", "584.00"),
        ("1.5", "1134.83", "1035.90", None),  # there the bisection of theirs ends elsewhere
    ],
)
def test_the_published_costs_of_starburst(load, no_wait, constant, compute):
    """USENIX ATC'24, table 4: 500 jobs, seed 13, 4 nodes x 8 GPUs, $2.50 a GPU-hour."""
    work = read_history(trace(f"starburst/table4-seed13-load{load}.csv.gz")).workload
    one = instance_of(work, Cluster(4, 8))
    reference = simulate(one, rules_of("constant-wait", one))
    assert simulate(one, rules_of("no-wait", one)).cloud_cost_usd == Decimal(no_wait)
    assert reference.cloud_cost_usd == Decimal(constant)
    rules = rules_of("compute-wait", one)
    theirs = at_mean_wait("compute-wait", rules, one, reference.mean_wait_h).outcome
    if compute:
        assert theirs.cloud_cost_usd == Decimal(compute)
    ours = at_mean_wait("value", rules_of("value", one), one, reference.mean_wait_h).outcome
    assert ours.mean_wait_h <= reference.mean_wait_h
    assert ours.cloud_cost_usd < theirs.cloud_cost_usd * Decimal("0.90")
