"""Every policy's own rule, budgets that hold, deadlines that are met."""

import datetime as dt
from decimal import Decimal

import msgspec
import pytest
from deciding import decided
from hypothesis import given
from hypothesis import strategies as st

from hpcscale.burst.budget import Charge, Payer, Purse
from hpcscale.burst.plan import Action, Candidate, Option, Rule
from hpcscale.burst.policy import (
    Budget,
    BudgetOf,
    Order,
    Policy,
    PolicyKind,
    default_margin_s,
)
from hpcscale.burst.policy_file import load_policy
from hpcscale.errors import InvalidFileError
from hpcscale.slurm.types import JobState
from hpcscale.spec import BurstMode

NOW = dt.datetime(2026, 5, 1, 12, tzinfo=dt.UTC)
CLOUD = Option(site="cloud", boot_s=120, staging_s=60, cost_usd=Decimal(20), worst_usd=Decimal(20))


def h(hours: float) -> dt.timedelta:
    return dt.timedelta(hours=hours)


def job(**kw):
    defaults = {
        "run_id": "r1", "ref": "onprem:1", "name": "train", "mode": BurstMode.AUTO,
        "state": JobState.PENDING, "reason": "Resources", "gpus": 8, "waiting_since": NOW - h(0.5),
        "time_limit_s": 3600, "options": (CLOUD,), "user": "ada", "account": "bio",
    }  # fmt: skip
    return Candidate(**{**defaults, **kw})


def policy(kind: PolicyKind, **kw) -> Policy:
    return Policy(from_site="onprem", to=("cloud",), kind=kind, **kw)


def verdict(one_policy, *jobs):
    return decided(list(jobs) or [job()], one_policy, NOW).decisions


VALUE = policy(PolicyKind.VALUE, hour_usd=Decimal(10))


@pytest.mark.parametrize(
    ("one_policy", "change", "rule"),
    [
        (policy(PolicyKind.NEVER), {"deadline": NOW + h(1)}, None),
        (policy(PolicyKind.ALWAYS), {"waiting_since": NOW}, Rule.ALWAYS),
        (policy(PolicyKind.NO_WAIT), {}, Rule.NO_WAIT),
        (policy(PolicyKind.NO_WAIT), {"start_p50": NOW, "waiting_since": NOW}, None),
        (policy(PolicyKind.CONSTANT_WAIT, wait_s=1800), {}, Rule.CONSTANT_WAIT),
        (policy(PolicyKind.CONSTANT_WAIT, wait_s=1801), {}, None),
        # 8 GPU-hours x 225 s = 30 min
        (policy(PolicyKind.COMPUTE_WAIT, wait_per_gpu_hour_s=225), {}, Rule.COMPUTE_WAIT),
        (policy(PolicyKind.COMPUTE_WAIT, wait_per_gpu_hour_s=226), {}, None),
        (policy(PolicyKind.COMPUTE_WAIT), {"time_limit_s": None}, None),
        (policy(PolicyKind.THRESHOLD, wait_s=600, depth=0), {}, Rule.THRESHOLD),
        (policy(PolicyKind.THRESHOLD, wait_s=600, depth=1), {}, None),
        (policy(PolicyKind.DEADLINE), {}, None),
        (policy(PolicyKind.DEADLINE), {"deadline": NOW + h(1) + h(0.05)}, Rule.DEADLINE),
        (policy(PolicyKind.ALWAYS, deadline=False), {"state": JobState.UNKNOWN}, None),
    ],
)
def test_each_policy_has_its_rule(one_policy, change, rule):
    (decision,) = verdict(one_policy, job(**change))
    assert decision.rule == rule
    assert (decision.action is Action.MOVE) == (rule is not None)


def test_value_weighs_the_wait_that_is_left_not_the_wait_that_was():
    # $20 are worth 2 h of waiting, 2.2 h with the margin; boot and staging take 3 minutes
    stays = job(start_p50=NOW + h(2.2), start_p90=NOW + h(5))
    (decision,) = verdict(VALUE, stays)
    assert decision.action is Action.STAY
    assert decision.reason == (
        "start p50 2h12m, p90 5h00m; moving now costs $20.00 to save 2h09m, worth $21.50 at "
        "$10.00 an hour"
    )
    (decision,) = verdict(VALUE, job(start_p50=NOW + h(2.3)))
    assert (decision.rule, decision.to) == (Rule.VALUE, "cloud")
    assert decision.runner_up == "else it would start here in 2h18m (p50)"
    # what it has waited already changes nothing
    waited = job(start_p50=NOW + h(2.2), waiting_since=NOW - h(3.9))
    assert verdict(VALUE, waited)[0].action is Action.STAY


def test_a_forecast_that_keeps_promising_is_believed_up_to_the_cap():
    soon = {"start_p50": NOW + h(0.1)}
    assert verdict(VALUE, job(waiting_since=NOW - h(3.99), **soon))[0].action is Action.STAY
    (decision,) = verdict(VALUE, job(waiting_since=NOW - h(4), **soon))
    assert decision.rule is Rule.VALUE
    assert "2 times what the cost is worth" in decision.reason


def test_value_takes_the_cheapest_and_names_the_next():
    dear = msgspec.structs.replace(CLOUD, site="dear", cost_usd=Decimal(30))
    unknown = msgspec.structs.replace(CLOUD, site="unknown", cost_usd=None)
    (decision,) = verdict(VALUE, job(start_p50=NOW + h(9), options=(unknown, dear, CLOUD)))
    assert decision.to == "cloud"
    assert decision.runner_up == "else to dear for $30.00"


def test_value_counts_the_wait_for_nodes_and_data_in_its_choice():
    # at $10 an hour half an hour of copying is worth $5
    near = msgspec.structs.replace(CLOUD, site="near", cost_usd=Decimal("24.50"))
    far = msgspec.structs.replace(CLOUD, site="far", staging_s=60 + 1800)
    (decision,) = verdict(VALUE, job(start_p50=NOW + h(9), options=(far, near)))
    assert (decision.to, decision.runner_up) == ("near", "else to far for $20.00")
    dearer = msgspec.structs.replace(near, cost_usd=Decimal("25.50"))
    (decision,) = verdict(VALUE, job(start_p50=NOW + h(9), options=(far, dearer)))
    assert (decision.to, decision.runner_up) == ("far", "else to near for $25.50")


@given(
    looks=st.lists(st.integers(-3600, 7200), min_size=1, max_size=20),
    p50_s=st.integers(0, 36_000),
    deadline_s=st.none() | st.integers(0, 40_000),
)
def test_a_forecast_that_jitters_moves_a_job_once_and_takes_it_back_never(
    *, looks, p50_s, deadline_s
):
    """A move is final: what has left is decided on no more, whatever is forecast afterwards."""
    deadline = None if deadline_s is None else NOW + dt.timedelta(seconds=deadline_s)
    one = job(waiting_since=NOW, deadline=deadline)
    moves = 0
    for n, jitter_s in enumerate(looks):
        now = NOW + dt.timedelta(seconds=300 * n)
        p50 = now + dt.timedelta(seconds=max(0, p50_s + jitter_s))
        seen = msgspec.structs.replace(one, start_p50=p50, moving=moves > 0)
        (decision,) = decided([seen], VALUE, now).decisions
        if moves:
            assert (decision.action, decision.to) == (Action.STAY, None)
            assert decision.reason == "a move of it is under way"
        moves += decision.action is Action.MOVE
        # no band of forecasts holds it back: what the wait is worth to it now is all that counts
        if decision.rule is Rule.VALUE and "times what the cost" not in decision.reason:
            saved_h = (p50 - now).total_seconds() / 3600 - 0.05
            assert saved_h * 10 >= 20 * 1.1
    assert moves <= 1


def test_without_a_forecast_value_falls_back_to_the_threshold_rule():
    (decision,) = verdict(VALUE, job())
    assert decision.action is Action.STAY
    assert "unknown, and the policy sets no max_wait" in decision.reason
    threshold = msgspec.structs.replace(VALUE, max_wait_s=1800)
    assert verdict(threshold, job())[0].rule is Rule.MAX_WAIT
    # Slurm's own estimate is better than nothing, unless the policy does not trust it
    estimate = job(start_estimate=NOW + h(9))
    assert verdict(VALUE, estimate)[0].rule is Rule.VALUE
    mute = msgspec.structs.replace(VALUE, use_start_estimate=False)
    assert verdict(mute, estimate)[0].action is Action.STAY


def test_a_worst_case_over_the_maximum_is_refused_though_one_start_is_not():
    requeues = msgspec.structs.replace(CLOUD, worst_usd=Decimal(60))
    (decision,) = verdict(
        policy(PolicyKind.ALWAYS), job(max_cost_usd=Decimal(50), options=(requeues,))
    )
    assert decision.action is Action.REFUSE
    assert "slow boots and requeues" in decision.reason


BUDGET = Budget(of=BudgetOf.ACCOUNT, name="bio", usd=Decimal(50))


def test_moves_of_one_plan_share_a_budget_and_the_urgent_one_spends_first():
    always = policy(PolicyKind.ALWAYS, budgets=(BUDGET,))
    jobs = [job(run_id=f"r{n}", ref=f"onprem:{n}") for n in range(3)]
    jobs[2] = msgspec.structs.replace(jobs[2], deadline=NOW + h(9))
    plan = decided(jobs, always, NOW)
    assert [d.run_id for d in plan.moves] == ["r2", "r0"]
    held = next(d for d in plan.decisions if d.run_id == "r1")
    assert "of $50.00 a month for account bio $0.00 is spent and $40.00 reserved" in held.reason
    # another account has no such budget
    other = job(run_id="r9", account="fluid")
    assert len(decided([*jobs, other], always, NOW).moves) == 3


def test_waiting_alone_does_not_spend_what_a_deadline_may_need():
    patient = policy(PolicyKind.CONSTANT_WAIT, wait_s=60, budgets=(BUDGET,))
    waits = [job(run_id=f"r{n}", ref=f"onprem:{n}") for n in range(2)]
    fresh = {"waiting_since": NOW, "run_id": "d", "ref": "onprem:7"}
    later = job(**fresh, deadline=NOW + h(9))
    assert len(decided(waits, patient, NOW).moves) == 2
    plan = decided([*waits, later], patient, NOW)
    assert [d.run_id for d in plan.moves] == ["r0"]
    held = next(d for d in plan.decisions if d.run_id == "r1")
    assert "$20.00 is kept for a job that was promised it" in held.reason
    # a forecast that it starts in time frees nothing; that it runs does, or that it is too late
    in_time = job(**fresh, deadline=NOW + h(9), start_p90=NOW + h(8))
    assert len(decided([*waits, in_time], patient, NOW).moves) == 1
    for freed in (
        job(**fresh, deadline=NOW + h(9), state=JobState.RUNNING),
        job(**fresh, deadline=NOW + h(0.01)),
        job(**fresh, deadline=NOW + h(9), account="fluid"),
    ):
        assert len(decided([*waits, freed], patient, NOW).moves) == 2


def test_a_deadline_does_not_spend_what_an_earlier_one_was_promised():
    patient = policy(PolicyKind.DEADLINE, budgets=(BUDGET,))
    first = job(run_id="a", ref="onprem:99", deadline=NOW + h(9))
    second = job(run_id="b", ref="onprem:100", deadline=NOW + h(8))
    third = job(run_id="c", ref="onprem:101", deadline=NOW + h(1.05))  # it has to go now
    plan = decided([third, first, second], patient, NOW)
    assert plan.moves == ()
    held = next(d for d in plan.decisions if d.run_id == "c")
    assert "$40.00 is kept for 2 jobs that were promised it" in held.reason
    # it spends what is kept for those who came later
    plan = decided([msgspec.structs.replace(third, ref="onprem:98"), first, second], patient, NOW)
    assert [d.run_id for d in plan.moves] == ["c"]


def test_only_elsewhere_has_its_turn_too():
    patient = policy(PolicyKind.DEADLINE, budgets=(BUDGET,))
    only = job(run_id="o", ref="onprem:5", mode=BurstMode.ONLY)
    before = [job(run_id=f"d{n}", ref=f"onprem:{n}", deadline=NOW + h(9)) for n in (3, 4)]
    assert decided([*before, only], patient, NOW).moves == ()
    assert [d.run_id for d in decided([*before[:1], only], patient, NOW).moves] == ["o"]


def test_a_part_of_a_budget_is_all_that_waiting_may_spend():
    part = msgspec.structs.replace(BUDGET, waiting_usd=Decimal(25))
    patient = policy(PolicyKind.CONSTANT_WAIT, wait_s=60, budgets=(part,))
    waits = [job(run_id=f"r{n}", ref=f"onprem:{n}") for n in range(2)]
    plan = decided(waits, patient, NOW)
    assert [d.run_id for d in plan.moves] == ["r0"]
    held = next(d for d in plan.decisions if d.run_id == "r1")
    assert "of $25.00 a month for account bio $0.00 is spent and $20.00 reserved by" in held.reason
    # a deadline has the rest, and what it spends is no waiting's
    due = job(run_id="d", ref="onprem:9", deadline=NOW + h(1.05))
    assert len(decided([due, *waits], patient, NOW).moves) == 2
    paid = {"payer": Payer(user="ada", account="bio"), "at": NOW, "usd": Decimal(10)}
    paid["settled"] = True
    assert decided(waits, patient, NOW, [Charge(**paid)]).moves
    assert not decided(waits, patient, NOW, [Charge(**paid, waits=True)]).moves


def test_last_months_bills_do_not_count_and_running_jobs_do():
    always = policy(PolicyKind.ALWAYS, budgets=(BUDGET,))
    april = NOW - dt.timedelta(days=3)
    bill = {"payer": Payer(user="ada", account="bio"), "at": april, "usd": Decimal(45)}
    assert decided([job()], always, NOW, [Charge(**bill, settled=True)]).moves
    assert not decided([job()], always, NOW, [Charge(**bill)]).moves


def test_no_bound_no_money():
    always = policy(PolicyKind.ALWAYS, budgets=(BUDGET,))
    unknown = msgspec.structs.replace(CLOUD, cost_usd=None, worst_usd=None)
    (decision,) = verdict(always, job(options=(unknown,)))
    assert decision.action is Action.STAY
    assert "no bound" in decision.reason


money = st.decimals(min_value="0.01", max_value=100, places=2)


@given(st.lists(st.tuples(st.sampled_from("abc"), money, money), max_size=30), money)
def test_a_budget_is_never_exceeded_whatever_jobs_cost_within_their_bounds(jobs, limit):
    budgets = [Budget(of=BudgetOf.ALL, usd=limit), Budget(of=BudgetOf.USER, usd=limit / 2)]
    charges: list[Charge] = []
    for user, worst, real in jobs:
        purse = Purse(budgets, charges, NOW)
        if purse.refusal(Payer(user=user), worst) is None:
            charges.append(Charge(payer=Payer(user=user), at=NOW, usd=worst))
        elif charges:
            # the oldest ends, at no more than its bound
            first = next((k for k, c in enumerate(charges) if not c.settled), None)
            if first is not None:
                usd = min(charges[first].usd, real)
                charges[first] = msgspec.structs.replace(charges[first], usd=usd, settled=True)
        assert sum((c.usd for c in charges), Decimal(0)) <= limit
        for name in "abc":
            mine = sum((c.usd for c in charges if c.payer.user == name), Decimal(0))
            assert mine <= limit / 2


# slower or faster, cheaper or dearer than the first, or none
second_targets = st.lists(
    st.builds(
        Option, site=st.just("second"), boot_s=st.integers(0, 3000),
        staging_s=st.integers(0, 600), cost_usd=money, worst_usd=st.just(Decimal(100)),
    ),
    max_size=2,
)  # fmt: skip


def soonest_s(options):
    return min(o.boot_s + o.staging_s for o in options)


def test_a_dearer_target_keeps_a_deadline_that_the_cheaper_one_no_longer_can():
    slow = msgspec.structs.replace(CLOUD, site="slow", boot_s=1800, staging_s=0)
    fast = msgspec.structs.replace(CLOUD, site="fast", boot_s=60, cost_usd=Decimal(21))
    for kind in (PolicyKind.VALUE, PolicyKind.DEADLINE):
        one_policy = policy(kind, hour_usd=Decimal("0.01"))
        due = job(deadline=NOW + h(1) + h(1 / 30), options=(slow, fast))  # 2 minutes more
        (decision,) = verdict(one_policy, due)
        assert (decision.rule, decision.to) == (Rule.DEADLINE, "fast")
        assert decision.runner_up == "else to slow for $20.00, too late for its deadline"
        # with time left for it, the cheaper one, at its own last moment
        at_ease = job(deadline=NOW + h(1.5), options=(slow, fast))
        (decision,) = verdict(one_policy, at_ease)
        assert (decision.rule, decision.to) == (Rule.DEADLINE, "slow")
        # neither is sure: the one that leaves the job the most of its limit
        late = job(deadline=NOW + h(0.9), options=(slow, fast))
        (decision,) = verdict(one_policy, late)
        assert (decision.rule, decision.to) == (Rule.DEADLINE, "fast")
        assert "only if the job runs no longer than" in decision.reason


@given(
    kind=st.sampled_from([k for k in PolicyKind if k is not PolicyKind.NEVER]),
    limit_s=st.integers(60, 100_000),
    slack_s=st.integers(0, 100_000),
    boot=st.floats(0, 1),
    run=st.floats(0, 1),
    tick_s=st.integers(1, 600),
    phase_s=st.integers(0, 600),
    p50_s=st.none() | st.integers(0, 500_000),
    second=second_targets,
)
def test_a_feasible_deadline_is_met_while_boot_and_runtime_keep_their_bounds(
    *, kind, limit_s, slack_s, boot, run, tick_s, phase_s, p50_s, second
):
    """The job never starts here: all that is left is the cloud, at the last safe moment."""
    options = (msgspec.structs.replace(CLOUD, boot_s=300, staging_s=100), *second)
    one_policy = policy(
        kind, wait_s=10**7, depth=0, wait_per_gpu_hour_s=10**6, hour_usd=Decimal("0.01"),
        deadline_margin_s=tick_s,
    )  # fmt: skip
    submit = NOW
    # feasible: at the first look after submission the whole on-demand path still fits
    deadline = submit + dt.timedelta(seconds=soonest_s(options) + limit_s + 2 * tick_s + slack_s)
    now = submit + dt.timedelta(seconds=phase_s % tick_s)
    for _ in range(10**6):
        one = job(
            waiting_since=submit, deadline=deadline, time_limit_s=limit_s, options=options,
            start_p50=None if p50_s is None else now + dt.timedelta(seconds=p50_s),
        )  # fmt: skip
        (decision,) = decided([one], one_policy, now).decisions
        if decision.action is Action.MOVE:
            break
        # nothing changes until the plan says so; the next look is at a tick
        assert decision.when is not None
        ticks = max(1, -(-(decision.when - now) // dt.timedelta(seconds=tick_s)))
        now += dt.timedelta(seconds=tick_s) * ticks
    takes_s = boot * decision.boot_s + decision.staging_s + run * limit_s
    assert now + dt.timedelta(seconds=takes_s) <= deadline


@given(
    kind=st.sampled_from([k for k in PolicyKind if k is not PolicyKind.NEVER]),
    order=st.sampled_from(list(Order)),
    interval_s=st.integers(1, 900),
    phase=st.floats(0, 1, exclude_max=True),
    limit_s=st.integers(60, 100_000),
    slack_s=st.integers(0, 100_000),
    boot=st.floats(0, 1),
    run=st.floats(0, 1),
    second=second_targets,
)
def test_with_the_margin_left_out_no_cron_line_and_no_gate_loses_a_deadline(
    *, kind, order, interval_s, phase, limit_s, slack_s, boot, run, second
):
    """Cron looks at any phase; a gang that comes to its gate waits there for the next look."""
    margin_s = default_margin_s(interval_s, order)
    options = (msgspec.structs.replace(CLOUD, boot_s=300, staging_s=100), *second)
    one_policy = policy(
        kind, wait_s=10**7, depth=0, wait_per_gpu_hour_s=10**6, hour_usd=Decimal("0.01"),
        deadline_margin_s=margin_s, cron_interval_s=interval_s, order=order,
    )  # fmt: skip
    deadline = NOW + dt.timedelta(seconds=soonest_s(options) + limit_s + margin_s + slack_s)
    tick = dt.timedelta(seconds=interval_s)
    now = NOW + tick * phase
    for _ in range(10**6):
        one = job(waiting_since=NOW, deadline=deadline, time_limit_s=limit_s, options=options)
        (decision,) = decided([one], one_policy, now).decisions
        if decision.action is Action.MOVE:
            break
        assert decision.when is not None
        now += tick * max(1, -(-(decision.when - now) // tick))
    begins = now + dt.timedelta(seconds=boot * decision.boot_s + decision.staging_s)
    if order is Order.GATE_FIRST:
        begins = now + tick * max(1, -(-(begins - now) // tick))  # the next look opens the gate
    assert begins + dt.timedelta(seconds=run * limit_s) <= deadline


@given(
    kind=st.sampled_from([k for k in PolicyKind if k is not PolicyKind.NEVER]),
    only=st.booleans(),
    count=st.integers(1, 12),
    most=st.integers(1, 3),
    under_way=st.integers(0, 4),
    slack_s=st.lists(st.integers(0, 1200), min_size=12, max_size=12),
)
def test_no_number_of_moves_a_run_keeps_a_deadline_waiting(
    *, kind, only, count, most, under_way, slack_s
):
    """Many jobs have their last safe moments at once, and no job that leaves has arrived yet."""
    tick_s = 300
    one_policy = policy(
        kind, wait_s=10**7, depth=0, wait_per_gpu_hour_s=10**6, hour_usd=Decimal("0.01"),
        deadline_margin_s=tick_s, cron_interval_s=tick_s, max_moves_per_run=most,
    )  # fmt: skip
    mode = BurstMode.ONLY if only else BurstMode.AUTO
    need_s = CLOUD.boot_s + CLOUD.staging_s + 3600
    waits = {
        f"r{n}": job(
            run_id=f"r{n}", ref=f"onprem:{n}", mode=mode, waiting_since=NOW,
            deadline=NOW + dt.timedelta(seconds=need_s + tick_s + slack_s[n]),
        )
        for n in range(count)
    }  # fmt: skip
    left = {f"m{n}": job(run_id=f"m{n}", ref=f"onprem:9{n}", moving=True) for n in range(under_way)}
    now = NOW
    while waits:
        for move in decided([*waits.values(), *left.values()], one_policy, now).moves:
            gone = waits.pop(move.run_id)
            assert now + dt.timedelta(seconds=need_s) <= gone.deadline
            left[move.run_id] = msgspec.structs.replace(gone, moving=True)
        now += dt.timedelta(seconds=tick_s)
        assert now < NOW + h(1)


@pytest.mark.parametrize(
    ("text", "where", "says"),
    [
        ('policy = "valu"', "P.toml:3", "value"),
        ('policy = "value"', "P.toml:3", "hour_usd"),
        ('policy = "value"\nhour_usd = 0', "P.toml:4", "dollars"),
        ('policy = "value"\nhour_usd = "x"', "P.toml:4", "dollars"),
        ('policy = "value"\nhour_usd = 5\nmargin = 0.5', "P.toml:5", "at least 1"),
        ('policy = "value"\nhour_usd = 5\ncap = 0', "P.toml:5", "above 0"),
        ('policy = "never"\nwait = "5m"', "P.toml:4", "does not read"),
        ('policy = "threshold"\nwait = "5m"', "P.toml:3", "depth"),
        ('[[budget]]\nof = "all"\nname = "x"\nusd_per_month = 5', "P.toml", "takes no name"),
        (
            '[[budget]]\nof = "all"\nusd_per_month = 5\nwaiting_usd_per_month = 6',
            "P.toml",
            "6 is more than usd_per_month = 5",
        ),
        ('[[budget]]\nof = "team"\nusd_per_month = 5', "P.toml", "team"),
    ],
)
def test_a_wrong_policy_names_its_key(tmp_path, text, where, says):
    path = tmp_path / "P.toml"
    path.write_text(f'from = "a"\nto = ["b"]\n{text}\n')
    with pytest.raises(InvalidFileError) as caught:
        load_policy(path)
    assert where in (caught.value.where or "")
    assert says in f"{caught.value.message} {caught.value.hint}"


def test_every_policy_is_a_file(tmp_path):
    path = tmp_path / "P.toml"
    keys = {
        "threshold": 'wait = "1h"\ndepth = 3',
        "constant-wait": 'wait = "1h"',
        "compute-wait": 'wait_per_gpu_hour = "5m"',
        "value": 'hour_usd = 12.50\nmax_wait = "1h"\n[[budget]]\nof = "user"\nusd_per_month = 9.99',
    }
    for kind in PolicyKind:
        path.write_text(f'from="a"\nto=["b"]\npolicy="{kind}"\n{keys.get(kind.value, "")}\n')
        assert load_policy(path).kind is kind
    value = load_policy(path)
    assert value.hour_usd == Decimal("12.5")
    assert value.budgets == (Budget(of=BudgetOf.USER, usd=Decimal("9.99")),)
