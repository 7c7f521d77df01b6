"""Money of a move: its worst case, what comes back, whose budget, and while it runs."""

import datetime as dt
from decimal import Decimal

import msgspec
import pytest
from deciding import decided, offered_at
from fake_site import FakeSite
from fake_sites import Sites

from hpcscale.burst import run
from hpcscale.burst.budget import Charge, Payer, Purse
from hpcscale.burst.catalog import Offer
from hpcscale.burst.charges import charges
from hpcscale.burst.meter import so_far_usd
from hpcscale.burst.moves import Move, Moves, Step
from hpcscale.burst.plan import Action, Candidate
from hpcscale.burst.policy import AtLimit, Budget, BudgetOf, Policy
from hpcscale.cost import spent_usd
from hpcscale.site import load_site
from hpcscale.slurm.types import JobState
from hpcscale.spec import BurstMode, BurstTerms, Checkpoint, JobSpec, Resources

NOW = dt.datetime(2026, 11, 22, 12, tzinfo=dt.UTC)
POLICY = Policy(from_site="o", to=("lab-cloud",), cron_interval_s=300)


def spec(**kw):
    return JobSpec(
        name="j", command=("true",),
        resources=Resources(nodes=2, gpus_per_node=1, time_limit_s=3600), **kw,
    )  # fmt: skip


def offered(one_spec, egress_usd=None, **kw):
    """At lab-cloud: 4 GPUs a node, boot 30 s (120 s at most), $6.88 a GPU-hour or a catalog's."""
    site, rows = load_site("lab-cloud").site, {}
    if egress_usd is not None or kw:
        row = Offer(
            provider="x", region="r", instance="i", gpus=4, source="me", as_of=NOW.date(),
            egress_usd_per_gb=None if egress_usd is None else Decimal(egress_usd),
            **{"on_demand_usd": Decimal(20)} | kw,
        )  # fmt: skip
        rows[row.name] = row
        gpu = msgspec.structs.replace(site.partitions["gpu"], offer=row.name)
        site = msgspec.structs.replace(site, partitions={"gpu": gpu})
    return offered_at(one_spec, 3600, site, POLICY, rows, NOW.date())[0]


def test_the_worst_case_has_gate_staging_slow_boots_and_requeues():
    made = offered(spec())
    # 8 GPUs for the limit, a lease of 600 s, 5 s of staging, 30 s of boot
    assert made.cost_usd == Decimal("64.75")
    # and 90 s more until the boot's time is up
    assert made.worst_usd == Decimal("64.75") + Decimal("1.38")
    again = offered(spec(checkpoint=Checkpoint(dir="ck", max_restarts=2)))
    assert again.worst_usd == 3 * made.worst_usd


def test_what_comes_back_is_paid_once_and_unknown_sizes_are_no_promise():
    made = offered(
        spec(outputs={"o": "out"}, burst=BurstTerms(egress_gb=100.0),
             checkpoint=Checkpoint(dir="ck", max_restarts=1)), "0.09",
    )  # fmt: skip
    plain = offered(spec(checkpoint=Checkpoint(dir="ck", max_restarts=1)), "0.09")
    assert made.cost_usd - plain.cost_usd == made.worst_usd - plain.worst_usd == Decimal(9)
    assert "$9.00 for 100 GB that come back" in made.cost_why
    assert made.unpromised == plain.unpromised == ""
    unsaid = offered(spec(outputs={"o": "out"}), "0.09")
    assert "egress_gb in [burst]" in unsaid.unpromised
    assert offered(spec(outputs={"o": "out"})).unpromised == ""


BACK = {"outputs": {"o": "out"}, "burst": BurstTerms(egress_gb=100.0)}


@pytest.mark.parametrize("egress_usd", [None, "0"])
@pytest.mark.parametrize(
    "back", [BACK, {"outputs": {"o": "out"}}, {"burst": BurstTerms(egress_gb=1.0)}]
)
def test_a_row_without_an_egress_price_has_no_cost_for_what_comes_back(egress_usd, back):
    made = offered(spec(**back), egress_usd, egress_free=False)
    assert (made.cost_usd, made.worst_usd, made.egress_usd) == (None, None, 0)
    assert "x/r/i" in made.unpromised
    for typed in ("egress_usd_per_gb = 0.09", "egress_free = true"):
        assert typed in made.unpromised
    assert "a GB out of there" in made.cost_why
    # as a row whose nodes have no price
    free = {"on_demand_usd": None, "egress_free": True}
    alike = offered(spec(**back), **free)
    assert (alike.cost_usd, alike.worst_usd) == (None, None)


@pytest.mark.parametrize("hard", [{"max_cost_usd": Decimal(10**6)}, {}])
def test_a_promise_about_money_is_refused_without_an_egress_price(hard):
    budget = () if hard else (Budget(of=BudgetOf.USER, usd=Decimal(10**6)),)
    policy = msgspec.structs.replace(POLICY, budgets=budget)
    job = Candidate(
        run_id="r", ref="o:1", name="j", mode=BurstMode.ONLY, state=JobState.PENDING, user="ada",
        time_limit_s=3600, waiting_since=NOW, **hard,
    )  # fmt: skip

    def one(made, under=policy):
        return decided([msgspec.structs.replace(job, options=(made,))], under, NOW).decisions[0]

    made = offered(spec(**BACK), egress_free=False)
    refused = one(made)
    assert refused.action is Action.REFUSE
    assert "x/r/i" in refused.reason
    assert "egress_free = true" in refused.reason
    # without such a promise it moves as a job of any unknown cost does
    job = msgspec.structs.replace(job, max_cost_usd=None)
    moved = one(made, POLICY)
    assert (moved.action, moved.cost_usd) == (Action.MOVE, None)


def test_what_brings_nothing_back_or_is_free_to_leave_has_its_price():
    plain = offered(spec(), egress_free=False)
    assert plain.cost_usd is not None
    assert plain.unpromised == ""
    nothing = offered(spec(outputs={"o": "out"}, burst=BurstTerms(egress_gb=0)), egress_free=False)
    free = offered(spec(**BACK), egress_free=True)
    unsaid = offered(spec(outputs={"o": "out"}), egress_free=True)
    for other in (nothing, free, unsaid):
        assert (other.cost_usd, other.worst_usd) == (plain.cost_usd, plain.worst_usd)
        assert (other.egress_usd, other.unpromised) == (0, "")


def test_a_projects_budget_is_its_own_and_jobs_without_one_have_none():
    budget = Budget(of=BudgetOf.PROJECT, usd=Decimal(50))
    spent = Charge(payer=Payer(user="ada", project="x"), at=NOW, usd=Decimal(40))
    purse = Purse([budget], [spent], NOW)
    ben = Payer(user="ben", project="x")
    assert "for project x $0.00 is spent and $40.00 reserved" in purse.refusal(ben, Decimal(11))
    assert purse.refusal(Payer(user="ada", project="y"), Decimal(50)) is None
    assert purse.refusal(Payer(user="ada"), Decimal(999)) is None


@pytest.fixture
def running(tmp_path):
    """A move whose cloud job has begun, and has held its nodes for a while."""
    sites = Sites(tmp_path)
    sites.fill()
    job = sites.submit()
    sites.tick()
    sites.both(40)
    sites.begin(job)
    assert sites.move(job).step is Step.MOVED
    sites.both(20)
    yield sites, job
    sites.ledger.close()


def reserve(sites, job, usd):
    assert Moves(sites.ledger).save(sites.move(job), reserved_usd=Decimal(usd))


def test_within_its_reservation_a_job_runs_on(running):
    sites, job = running
    assert sites.tick().problems == []
    assert not sites.target(job).ended


def test_over_its_reservation_a_cloud_job_is_ended_and_it_is_said(running):
    sites, job = running
    reserve(sites, job, "0.05")
    (problem,) = sites.tick().problems
    assert "is ended: it has cost $" in problem
    assert "over the $0.05 reserved for it" in problem
    sites.both(60)
    sites.tick()
    assert sites.target(job).ended
    assert [e.kind for e in sites.ledger.events(job.run_id)].count("move.over_limit") == 1


def test_or_only_warned_of(running):
    sites, job = running
    reserve(sites, job, "0.05")
    sites.policy = msgspec.structs.replace(sites.policy, at_limit=AtLimit.WARN)
    (problem,) = sites.tick().problems
    assert "it has cost $" in problem
    sites.both(5)
    sites.tick()
    assert not sites.target(job).ended


def settled(sites, job):
    """Its cloud job ends, and its move with it."""
    sites.both(60)
    sites.tick()
    assert sites.move(job).step is Step.DONE
    return sites.target(job)


def test_what_comes_back_is_charged_after_the_end_too(running):
    sites, job = running
    assert Moves(sites.ledger).save(sites.move(job), egress_usd=Decimal(9))
    target = settled(sites, job)
    (charge,) = charges(sites.ledger)
    assert (charge.usd, charge.settled) == (target.cost_usd + 9, True)


def test_what_will_come_back_is_left_of_a_reservation(running):
    sites, job = running
    assert Moves(sites.ledger).save(
        sites.move(job), reserved_usd=Decimal("9.05"), egress_usd=Decimal(9)
    )
    (problem,) = sites.tick().problems
    assert "and $9.00 for what comes back, over the $9.05 reserved for it" in problem


def test_the_decision_says_what_comes_back():
    made = offered(spec(outputs={"o": "out"}, burst=BurstTerms(egress_gb=100.0)), "0.09")
    assert made.egress_usd == Decimal(9)
    job = Candidate(
        run_id="r", ref="o:1", name="j", mode=BurstMode.ONLY, state=JobState.PENDING,
        waiting_since=NOW, time_limit_s=3600, options=(made,),
    )  # fmt: skip
    (decision,) = decided([job], POLICY, NOW).decisions
    assert (decision.action, decision.egress_usd) == (Action.MOVE, Decimal(9))


def test_an_unknown_cost_is_held_against_the_month_of_its_decision_alone(running):
    sites, job = running
    reserve(sites, job, "40.00")
    price = sites.target(job).gpu_hour_usd
    sites.ledger.set_terms(sites.target(job), sites.target(job).gpus, None, "nobody says")
    assert price is not None
    settled(sites, job)
    (charge,) = charges(sites.ledger)
    assert charge.usd == Decimal(40)
    budget, payer = Budget(of=BudgetOf.ALL, usd=Decimal(50)), charge.payer
    this_month = Purse([budget], [charge], charge.at)
    assert this_month.refusal(payer, Decimal(11)) is not None
    later = Purse([budget], [charge], charge.at + dt.timedelta(days=32))
    assert later.refusal(payer, Decimal(50)) is None


def test_each_element_of_a_running_array_counts(tmp_path):
    site = FakeSite(tmp_path)
    got = site.submit("sleep 600", array="0-2")
    site.observe()
    site.slurm.advance(100)
    site.observe()
    attempt = site.ledger.attempt(got.submission_id)
    assert attempt.gpus == 1, "of one element"
    now = attempt.start_time + dt.timedelta(seconds=100)
    spent = so_far_usd(site.ledger, attempt, now)
    assert spent == spent_usd(1, 300, attempt.gpu_hour_usd)
    site.ledger.close()


@pytest.mark.parametrize("beside", [False, True])
def test_a_run_beside_this_one_does_not_spend_the_same_money(tmp_path, monkeypatch, beside):
    """A lock that was taken over: each of two runs decides while the other does."""
    sites = Sites(tmp_path)
    sites.fill()
    job, other = sites.submit(), sites.submit()
    budget = Budget(of=BudgetOf.ALL, usd=Decimal(70))  # one of them fits
    sites.policy = msgspec.structs.replace(sites.policy, budgets=(budget,))
    if beside:
        real, moves = run.keep, Moves(sites.ledger)
        origin = sites.ledger.attempt(other.submission_id)

        def overtaken(seen):
            move = Move(
                run_id=other.run_id, from_site="lab-onprem", to_site="lab-cloud",
                origin=origin.submission_id, reserved_usd=Decimal(66),
            )  # fmt: skip
            assert moves.begin(move) is not None
            return real(seen)

        monkeypatch.setattr(run, "keep", overtaken)
    sites.tick()
    monkeypatch.undo()
    for _ in range(2):
        sites.tick()
    begun = Moves(sites.ledger).all()
    assert [m.run_id for m in begun] == [other.run_id if beside else job.run_id]
    assert sum(c.usd for c in charges(sites.ledger)) <= budget.usd
    sites.ledger.close()
