"""``value`` live and in the simulator: one rule, and the same jobs leave."""

import datetime as dt
from decimal import Decimal

import msgspec
from deciding import decided
from hypothesis import given
from hypothesis import strategies as st

from hpcscale.burst import value
from hpcscale.burst.plan import Action, Candidate, Option, Start
from hpcscale.burst.policy import Policy, PolicyKind
from hpcscale.slurm.types import JobState
from hpcscale.spec import BurstMode

NOW = dt.datetime(2026, 5, 1, 12, tzinfo=dt.UTC)
# the kernel takes a gain above 0 alone, so its margin is 1
VALUE = Policy(
    from_site="a", to=("c",), kind=PolicyKind.VALUE, margin=1.0, cap=1e6, max_moves_per_run=99,
    hour_usd=Decimal(7),
)  # fmt: skip


def candidate(at, cost, start_h, **kw):
    return Candidate(
        run_id=f"r{at}", ref=f"a:{at}", name="x", mode=BurstMode.AUTO, state=JobState.PENDING,
        waiting_since=NOW - dt.timedelta(minutes=1), time_limit_s=3600,
        start_p50=NOW + dt.timedelta(hours=start_h),
        options=(Option(site="c", cost_usd=cost),), **kw,
    )  # fmt: skip


class Cluster:
    """Nodes of 4 GPUs, jobs that run on them, and a queue; planned by the simulator's own plan."""

    def __init__(self, free, held, jobs):
        self.free = free
        held = sorted(held)
        self.end, self.node, self.gpus = ([h[k] for h in held] for k in range(3))
        self.run = [j[0] for j in jobs]
        self.per_node = [j[1] for j in jobs]
        self.count = [1] * len(jobs)

    def work(self):
        room = len(self.end) + len(self.run) + 1
        return ([0] * len(self.free), *([0.0] * room for _ in range(3)), [0] * room, [0] * room)

    def starts(self, gone):
        queue = [j for j in range(len(self.run)) if j not in gone]
        start = [0.0] * len(self.run)
        value.plan(
            0.0, self.free, len(self.free), len(self.end), self.end, self.node, self.gpus, queue,
            len(queue), -1, self.run, self.per_node, self.count, self.work(), start,
        )  # fmt: skip
        return {j: start[k] for k, j in enumerate(queue)}

    def choose(self, cost, mu):
        waiting = len(self.run)
        leave = [0] * waiting
        taken = value.choose(
            0.0, self.free, len(self.free), len(self.end), self.end, self.node, self.gpus,
            list(range(waiting)), waiting, self.run, self.per_node, self.count, cost, mu, 1.0, 99,
            self.work(), [0.0] * waiting, [0.0] * waiting, leave,
        )  # fmt: skip
        return set(leave[:taken])


@st.composite
def clusters(draw):
    nodes = draw(st.integers(1, 3))
    free = [4] * nodes
    held = []
    for node in range(nodes):
        for _ in range(draw(st.integers(0, 2))):
            gpus = draw(st.integers(1, 4))
            if gpus <= free[node]:
                free[node] -= gpus
                # whole seconds, so that moments are exact
                held.append((draw(st.integers(1, 9999)) / 3600, node, gpus))
    jobs = draw(
        st.lists(st.tuples(st.integers(1, 9999), st.integers(1, 4)), min_size=1, max_size=6)
    )
    cluster = Cluster(free, held, [(run / 3600, gpus) for run, gpus in jobs])
    # odd fractions of a cent: no two jobs gain the same, none exactly nothing
    cents = draw(st.lists(st.integers(1, 3000), min_size=len(jobs), max_size=len(jobs)))
    return cluster, [Decimal(c) / 100 + Decimal(k + 1) / 98317 for k, c in enumerate(cents)]


@given(clusters())
def test_live_and_simulated_decisions_are_the_same(drawn):
    cluster, costs = drawn

    def replan(gone):
        found = cluster.starts({int(name) for name in gone})
        return {str(j): Start(p50=NOW + dt.timedelta(hours=s)) for j, s in found.items()}

    first = cluster.starts(set())
    jobs = [candidate(j, costs[j], first[j]) for j in first]
    plan = decided(jobs, VALUE, NOW, replan=replan, pending=len(jobs))
    live = {int(d.run_id[1:]) for d in plan.moves}
    assert live == cluster.choose([float(c) for c in costs], 7.0)


def test_a_move_that_helps_my_other_jobs_counts_them_and_says_so():
    # one node: the first of two 4-GPU jobs runs 9 h once the node is free in an hour
    cluster = Cluster([0], [(1.0, 0, 4)], [(9.0, 4), (1.0, 4)])

    def replan(gone):
        found = cluster.starts({int(name) for name in gone})
        return {str(j): Start(p50=NOW + dt.timedelta(hours=s)) for j, s in found.items()}

    jobs = [candidate(0, Decimal(50), 1.0), candidate(1, Decimal(80), 10.0)]
    first, second = decided(jobs, VALUE, NOW, replan=replan, pending=2).decisions
    # 1 h of its own and 9 h of the other are worth $70; alone 1 h would be worth $7
    assert (first.action, first.run_id) == (Action.MOVE, "r0")
    assert "to save 10h00m, 9h00m of it for your other jobs, worth $70.00" in first.reason
    # without it the other starts in an hour
    assert second.action is Action.STAY
    assert second.reason.startswith("start p50 1h00m; moving now costs $80.00 to save 1h00m")
    assert second.runner_up == "else to c now for $80.00"


def test_jobs_that_move_already_are_not_counted_as_waiting():
    cluster = Cluster([0], [(1.0, 0, 4)], [(9.0, 4), (1.0, 4)])
    asked = []

    def replan(gone):
        asked.append(gone)
        found = cluster.starts({int(name) for name in gone})
        return {str(j): Start(p50=NOW + dt.timedelta(hours=s)) for j, s in found.items()}

    jobs = [candidate(0, Decimal(50), 1.0, moving=True), candidate(1, Decimal(30), 10.0)]
    _, second = decided(jobs, VALUE, NOW, replan=replan, pending=2).decisions
    assert asked[0] == {"0"}
    assert second.action is Action.STAY


def test_in_a_very_long_queue_only_its_own_wait_counts():
    def replan(gone):
        raise AssertionError("a plan of such a queue takes too long")

    jobs = [candidate(0, Decimal(50), 1.0), candidate(1, Decimal(80), 20.0)]
    decisions = decided(jobs, VALUE, NOW, replan=replan, pending=10**6).decisions
    assert {d.run_id: d.action for d in decisions} == {"r0": Action.STAY, "r1": Action.MOVE}


def test_an_unknown_start_follows_the_threshold_rule_before_slurms_own_estimate():
    late = dt.timedelta(hours=99)
    one = candidate(0, Decimal(1), 0)
    blind = msgspec.structs.replace(
        one, start_p50=None, start_estimate=NOW + late, unforeseen="a hides other people's jobs"
    )
    policy = msgspec.structs.replace(VALUE, max_wait_s=3600)
    (decision,) = decided([blind], policy, NOW, replan=lambda _: {}).decisions
    assert decision.action is Action.STAY
    assert decision.reason == (
        "when it starts here is unknown (a hides other people's jobs); it has waited 60s of "
        "max_wait = 1h00m"
    )
    (decision,) = decided([blind], VALUE, NOW, replan=lambda _: {}).decisions
    assert decision.action is Action.MOVE
    assert decision.reason.startswith("Slurm's start 99h00m") or "4d03h" in decision.reason


def test_the_sentence_names_start_slack_cost_and_what_is_saved():
    one = candidate(0, Decimal(2360), 1.4)
    job = msgspec.structs.replace(
        one, start_p90=NOW + dt.timedelta(hours=5), deadline=NOW + dt.timedelta(hours=10)
    )
    (decision,) = decided([job], VALUE, NOW, replan=lambda _: {}, pending=1).decisions
    assert decision.action is Action.STAY
    assert decision.reason == (
        "start p50 1h24m, p90 5h00m, slack 9h00m; moving now costs $2,360.00 to save 1h24m, worth "
        "$9.80 at $7.00 an hour"
    )
    assert decision.runner_up == "else to c now for $2,360.00"
