import datetime as dt
from decimal import Decimal

import msgspec
import pytest
from deciding import decided
from hypothesis import given
from hypothesis import strategies as st

from hpcscale.burst.plan import Action, Candidate, Option, Rule
from hpcscale.burst.policy import Policy
from hpcscale.burst.words import show_s, usd
from hpcscale.slurm.types import JobState
from hpcscale.spec import BurstMode

NOW = dt.datetime(2026, 5, 1, 12, tzinfo=dt.UTC)
CLOUD = Option(site="cloud", boot_s=120, staging_s=60, cost_usd=Decimal(10), cost_why="8 GPUs")
POLICY = Policy(from_site="onprem", to=("cloud",), max_wait_s=1800)


def ago(**kw):
    return NOW - dt.timedelta(**kw)


def ahead(**kw):
    return NOW + dt.timedelta(**kw)


def job(**kw):
    defaults = {
        "run_id": "r1",
        "ref": "onprem:1",
        "name": "train",
        "mode": BurstMode.AUTO,
        "state": JobState.PENDING,
        "reason": "Resources",
        "gpus": 8,
        "waiting_since": ago(minutes=5),
        "time_limit_s": 3600,
        "options": (CLOUD,),
    }
    return Candidate(**{**defaults, **kw})


def one(candidate, policy=POLICY):
    (decision,) = decided([candidate], policy, NOW).decisions
    return decision


def test_a_job_that_waited_too_long_moves_and_says_the_numbers():
    decision = one(job(waiting_since=ago(minutes=31)))
    assert (decision.action, decision.rule, decision.to) == (Action.MOVE, Rule.MAX_WAIT, "cloud")
    assert decision.reason == "it has waited 31m, longer than max_wait = 30m"
    assert decision.cost_usd == Decimal(10)


def test_a_job_that_waits_within_the_limit_stays_and_says_when_it_would_move():
    decision = one(job())
    assert decision.action is Action.STAY
    assert decision.when == ago(minutes=5) + dt.timedelta(minutes=30)


def test_past_the_latest_start_in_the_cloud_the_deadline_moves_the_job():
    at_the_edge = job(deadline=ahead(seconds=3600 + 180))
    assert one(at_the_edge).rule is Rule.DEADLINE
    with_a_second = job(deadline=ahead(seconds=3600 + 181))
    decision = one(with_a_second)
    assert decision.action is Action.STAY
    assert decision.when == ahead(seconds=1)


def test_the_margin_moves_it_earlier():
    policy = msgspec.structs.replace(POLICY, deadline_margin_s=300)
    assert one(job(deadline=ahead(seconds=3600 + 480)), policy).rule is Rule.DEADLINE


def test_slurms_estimate_brings_a_move_forward_but_na_and_a_good_one_do_not():
    deadline = ahead(hours=5)
    late = one(job(deadline=deadline, start_estimate=ahead(hours=4, minutes=1)))
    assert (late.action, late.rule) == (Action.MOVE, Rule.START_ESTIMATE)
    assert one(job(deadline=deadline, start_estimate=None)).action is Action.STAY
    assert one(job(deadline=deadline, start_estimate=ahead(hours=3))).action is Action.STAY
    policy = msgspec.structs.replace(POLICY, use_start_estimate=False)
    assert one(job(deadline=deadline, start_estimate=ahead(hours=9)), policy).action is Action.STAY


def test_a_deadline_that_nobody_can_meet_is_said_and_moves_nothing():
    decision = one(job(deadline=ahead(seconds=170)))
    assert decision.action is Action.STAY
    assert "can no longer be met" in decision.reason
    past = one(job(deadline=ago(hours=1)))
    assert past.action is Action.STAY
    assert "it is past" in past.reason


def test_a_deadline_that_holds_only_for_a_shorter_run_says_so():
    decision = one(job(deadline=ahead(seconds=180 + 1800)))
    assert decision.rule is Rule.DEADLINE
    assert "only if the job runs no longer than 30m" in decision.reason


def test_burst_only_moves_at_once():
    assert one(job(mode=BurstMode.ONLY, waiting_since=NOW)).rule is Rule.ONLY


def test_over_max_cost_never_moves_and_says_both_amounts():
    decision = one(job(waiting_since=ago(days=3), max_cost_usd=Decimal("9.99")))
    assert decision.action is Action.REFUSE
    assert "$10.00" in decision.reason
    assert "--max-cost $9.99" in decision.reason


def test_an_unknown_price_refuses_only_where_a_maximum_was_set():
    unknown = msgspec.structs.replace(CLOUD, cost_usd=None, cost_why="cloud has no price")
    waited = {"waiting_since": ago(hours=1), "options": (unknown,)}
    refused = one(job(max_cost_usd=Decimal(100), **waited))
    assert refused.action is Action.REFUSE
    assert "cloud has no price" in refused.reason
    moved = one(job(**waited))
    assert moved.action is Action.MOVE
    assert moved.cost_usd is None


def test_without_a_time_limit_a_maximum_cost_cannot_be_kept():
    decision = one(job(time_limit_s=None, max_cost_usd=Decimal(100), mode=BurstMode.ONLY))
    assert decision.action is Action.REFUSE
    assert "no time limit" in decision.reason


def test_the_second_target_takes_what_the_first_cannot():
    blocked = msgspec.structs.replace(CLOUD, site="first", blockers=("line 3: NCCL_IB_HCA",))
    decision = one(job(mode=BurstMode.ONLY, options=(blocked, CLOUD)))
    assert decision.to == "cloud"
    refused = one(job(mode=BurstMode.ONLY, options=(blocked,)))
    assert refused.action is Action.REFUSE
    assert refused.blockers == ("first: line 3: NCCL_IB_HCA",)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"state": JobState.RUNNING}, "RUNNING"),
        ({"state": JobState.UNKNOWN}, "no word"),
        ({"reason": "JobHeldUser"}, "held"),
        ({"reason": "Dependency"}, "not yet allowed"),
        ({"waiting_since": ahead(hours=1)}, "not yet allowed"),
        ({"waiting_since": None}, "not yet allowed"),
        ({"moving": True}, "under way"),
        ({"resting_until": ahead(minutes=9), "resting_why": "boot failed"}, "boot failed"),
    ],
)
def test_what_keeps_a_job_where_it_is(change, says):
    decision = one(job(mode=BurstMode.ONLY, **change))
    assert decision.action is Action.STAY
    assert says in decision.reason


def test_the_most_urgent_move_first_when_a_run_may_start_only_some():
    policy = msgspec.structs.replace(POLICY, max_moves_per_run=1)
    far = job(run_id="far", deadline=ahead(hours=1, minutes=3))
    near = job(run_id="near", deadline=ahead(minutes=50))
    patient = job(run_id="patient", waiting_since=ago(days=9))
    recent = job(run_id="recent", waiting_since=ago(days=8))
    plan = decided([recent, patient, far, near], policy, NOW)
    # the deadlines' last moments have come: they go, and use it up
    assert [d.run_id for d in plan.moves] == ["near", "far"]
    assert [d.run_id for d in plan.decisions[2:]] == ["patient", "recent"]
    assert "max_moves_per_run = 1" in plan.decisions[2].reason
    assert (plan.known_cost_usd, plan.unknown_costs) == (Decimal(20), 0)
    assert [d.run_id for d in decided([recent, patient], policy, NOW).moves] == ["patient"]
    on_its_way = job(run_id="on its way", moving=True)
    assert decided([patient, on_its_way], policy, NOW).moves == ()
    assert [d.run_id for d in decided([near, on_its_way], policy, NOW).moves] == ["near"]


def test_only_elsewhere_waits_for_a_later_run_until_its_deadline_asks():
    policy = msgspec.structs.replace(POLICY, max_moves_per_run=1)
    free = [job(run_id=f"r{n}", ref=f"onprem:{n}", mode=BurstMode.ONLY) for n in range(3)]
    assert len(decided(free, policy, NOW).moves) == 1
    at_ease = [msgspec.structs.replace(j, deadline=ahead(hours=9)) for j in free]
    assert len(decided(at_ease, policy, NOW).moves) == 1
    due = [msgspec.structs.replace(j, deadline=ahead(seconds=3600 + 180)) for j in free]
    assert len(decided(due, policy, NOW).moves) == 3


def test_a_plan_survives_json():
    plan = decided([job(mode=BurstMode.ONLY)], POLICY, NOW)
    assert msgspec.json.decode(msgspec.json.encode(plan), type=type(plan)) == plan


times = st.one_of(st.none(), st.integers(-864000, 864000).map(lambda s: ahead(seconds=s)))
money = st.one_of(st.none(), st.decimals(0, 1000, places=2))
options = st.builds(
    Option,
    site=st.sampled_from(["cloud", "other"]),
    boot_s=st.integers(0, 3600),
    staging_s=st.integers(0, 3600),
    cost_usd=money,
    blockers=st.sampled_from([(), ("no",)]),
)
jobs = st.builds(
    Candidate,
    run_id=st.uuids().map(str),
    ref=st.just("onprem:1"),
    name=st.text(max_size=5),
    mode=st.sampled_from(BurstMode),
    state=st.sampled_from(JobState),
    reason=st.sampled_from(["", "Resources", "Priority", "Dependency", "JobHeldUser"]),
    gpus=st.integers(0, 64),
    waiting_since=times,
    start_estimate=times,
    time_limit_s=st.one_of(st.none(), st.integers(60, 864000)),
    deadline=times,
    max_cost_usd=money,
    options=st.lists(options, max_size=3).map(tuple),
    blockers=st.sampled_from([(), ("an array",)]),
    resting_until=times,
    moving=st.booleans(),
)
policies = st.builds(
    Policy,
    from_site=st.just("onprem"),
    to=st.just(("cloud", "other")),
    max_wait_s=st.one_of(st.none(), st.integers(0, 864000)),
    deadline=st.booleans(),
    deadline_margin_s=st.integers(0, 3600),
    use_start_estimate=st.booleans(),
    max_moves_per_run=st.integers(1, 4),
)


@given(st.lists(jobs, max_size=8), policies)
def test_whatever_the_input_nothing_moves_that_must_not(candidates, policy):
    plan = decided(candidates, policy, NOW)
    assert sorted(d.run_id for d in plan.decisions) == sorted(c.run_id for c in candidates)
    # a deadline's last moment waits for no later run: a bound on those pinned missed deadlines
    later = [m for m in plan.moves if m.rule not in {Rule.DEADLINE, Rule.ONLY}]
    assert len(later) <= policy.max_moves_per_run
    by_id = {c.run_id: c for c in candidates}
    for decision in plan.decisions:
        assert decision.reason
        assert decision.reason == decision.reason.strip()
    for move in plan.moves:
        source = by_id[move.run_id]
        assert source.state is JobState.PENDING
        assert source.mode is not BurstMode.NEVER
        assert not source.moving
        assert not source.blockers
        chosen = next(o for o in source.options if o.site == move.to and not o.blockers)
        assert not chosen.blockers
        if source.max_cost_usd is not None:
            assert move.cost_usd is not None
            assert move.cost_usd <= source.max_cost_usd
            assert source.time_limit_s is not None


@given(jobs, policies)
def test_a_stay_that_names_its_time_is_a_move_at_that_time(candidate, policy):
    decision = decided([candidate], policy, NOW).decisions[0]
    if decision.action is not Action.STAY or decision.when is None or decision.to is None:
        return
    for _ in candidate.options:
        just_after = decision.when + dt.timedelta(seconds=1)
        decision = decided([candidate], policy, just_after).decisions[0]
        if decision.action is Action.MOVE:
            return
        # too late for that target, and another one still keeps the deadline
        assert decision.when is not None
        assert decision.when > just_after
        assert len(candidate.options) > 1
    raise AssertionError(decision)


@given(jobs, policies)
def test_deciding_twice_gives_the_same(candidate, policy):
    assert decided([candidate], policy, NOW) == decided([candidate], policy, NOW)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0s"), (119, "119s"), (120, "2m"), (150, "2m30s"), (7500, "2h05m"), (273600, "3d04h")],
)
def test_durations_read_like_speech(seconds, text):
    assert show_s(seconds) == text


def test_small_amounts_do_not_read_as_nothing():
    assert usd(Decimal("0.0021")) == "$0.0021"
    assert usd(Decimal(0)) == "$0.00"
    assert usd(Decimal("12.345")) == "$12.35" or usd(Decimal("12.345")) == "$12.34"
