"""Data goes ahead of its job, sizes and places count, and what budgets do not bound is said."""

import datetime as dt
from decimal import Decimal

import msgspec
import pytest
from deciding import decided, offered_at
from fake_sites import Sites

from hpcscale.burst.ahead import stage_early
from hpcscale.burst.candidates import UNSIZED
from hpcscale.burst.catalog import Offer
from hpcscale.burst.early import EVENT, Sizes
from hpcscale.burst.expect import Foresight
from hpcscale.burst.moves import Moves
from hpcscale.burst.plan import Action, Candidate, Forecast, Option, Rule
from hpcscale.burst.policy import Budget, BudgetOf, Policy, PolicyKind
from hpcscale.burst.run import make_plan, tick
from hpcscale.errors import StateError
from hpcscale.render import render
from hpcscale.site import load_site
from hpcscale.slurm.types import JobState
from hpcscale.spec import BurstMode, BurstTerms, JobSpec, Resources
from hpcscale.submit import submit

NOW = dt.datetime(2026, 11, 22, 12, tzinfo=dt.UTC)
PATIENT = Policy(
    from_site="lab-onprem", to=("lab-cloud",), kind=PolicyKind.CONSTANT_WAIT, wait_s=300,
    cron_interval_s=150,
)  # fmt: skip


@pytest.fixture
def sites(tmp_path):
    sites = Sites(tmp_path)
    sites.policy = PATIENT
    sites.fill()
    yield sites
    sites.ledger.close()


def blind(*_):
    """A forecast that knows nothing: the fake has no queue to plan."""
    return Foresight(Forecast(why="no forecast here"))


def look(sites):
    return tick(sites.ledger, sites.policy, sites, foresee=blind)


def send(sites, **terms):
    """A job with an input of 20 MB; its submission."""
    data = sites.project / "data.bin"
    data.write_bytes(b"x" * 20_000_000)
    spec = JobSpec(
        name="j", command=("sleep", "60"), workdir=str(sites.project),
        resources=Resources(nodes=2, gpus_per_node=4, time_limit_s=3600),
        inputs={"data": str(data)}, burst=BurstTerms(mode=BurstMode.AUTO, **terms),
    )  # fmt: skip
    connection = sites.connections["lab-onprem"]
    done = submit(render(spec, connection.site), connection.site, connection, sites.ledger)
    sites.both(1)
    return done


def test_what_is_likely_to_leave_has_its_data_sent_ahead_once_and_no_job(sites):
    job = send(sites)
    plan = look(sites).plan
    (decision,) = plan.decisions
    assert decision.stage == "lab-cloud"
    assert "its code and inputs (0.02 GB) go to lab-cloud now; nothing is submitted" in (
        decision.stage_why
    )
    assert sites.cloud.jobs == {}
    assert Moves(sites.ledger).all() == []
    assert len(sites.ledger.attempts(job.run_id)) == 1
    cloud = sites.connections["lab-cloud"]
    run_dir = f"{cloud.state_dir}/runs/{job.run_id}"
    assert cloud.transport.run(["test", "-s", f"{run_dir}/inputs/data"]).returncode == 0
    (event,) = sites.ledger.events(job.run_id, EVENT)
    assert event.data["site"] == "lab-cloud"
    # it is there now: nothing is counted, nothing sent again
    again = look(sites).plan.decisions[0]
    assert "inputs go to" in again.stage_why
    assert len(sites.ledger.events(job.run_id, EVENT)) == 1
    # and the move itself finds it there
    sites.both(300)
    look(sites)
    assert len(sites.cloud.jobs) == 1


def test_what_one_run_has_sent_is_there_for_the_next_until_it_changes(sites):
    send(sites)
    look(sites)
    sizes, cloud = Sizes(sites.ledger), sites.connections["lab-cloud"].site
    data = sites.project / "data.bin"
    spec = JobSpec(command=("true",), inputs={"other_name": str(data)})
    assert sizes(spec, cloud, "another run") == 0.0
    data.write_bytes(b"y" * 30_000_000)
    assert Sizes(sites.ledger)(spec, cloud, "another run") == 0.03


def test_nothing_goes_ahead_where_the_policy_says_so_or_it_is_far_away(sites):
    job = send(sites)
    sites.policy = msgspec.structs.replace(PATIENT, stage_early=False)
    look(sites)
    sites.policy = msgspec.structs.replace(PATIENT, wait_s=36_000)
    look(sites)
    assert sites.ledger.events(job.run_id, EVENT) == []


def test_a_target_that_takes_nothing_is_a_problem_and_no_stop(sites, monkeypatch):
    send(sites)
    monkeypatch.setattr("hpcscale.burst.early.stage_in", _full)
    done = look(sites)
    assert any("nothing was sent ahead: no room" in text for text in done.problems)


def _full(*_, **__):
    raise StateError("no room")


STAYS = Candidate(
    run_id="r", ref="o:1", name="j", mode=BurstMode.AUTO, state=JobState.PENDING,
    waiting_since=NOW, time_limit_s=3600, options=(Option(site="lab-cloud", staging_s=60),),
)  # fmt: skip


@pytest.mark.parametrize(
    ("start_min", "goes"), [(None, True), (4, False), (6, True), (60, True)]
)  # fmt: skip
def test_it_goes_ahead_when_a_rule_speaks_before_its_start_here(start_min, goes):
    start = None if start_min is None else NOW + dt.timedelta(minutes=start_min)
    job = msgspec.structs.replace(STAYS, start_p50=start)
    (decision,) = decided([job], PATIENT, NOW).decisions
    assert decision.when == NOW + dt.timedelta(minutes=5)
    assert (decision.stage == "lab-cloud") is goes
    assert decision.action is Action.STAY
    later = msgspec.structs.replace(decision, stage=None, when=NOW + dt.timedelta(hours=2))
    assert stage_early(later, job, PATIENT, NOW).stage is None


def test_gigabytes_at_the_sites_rate_are_staging_and_bring_the_deadline_forward():
    site = load_site("lab-cloud").site
    fast = msgspec.structs.replace(site.burst, transfer_mb_s=50.0)
    site = msgspec.structs.replace(site, burst=fast)
    spec = JobSpec(command=("true",), resources=Resources(gpus_per_node=4, time_limit_s=3600))
    today = NOW.date()
    (near,) = offered_at(spec, 3600, site, PATIENT, {}, today)
    (far,) = offered_at(spec, 3600, site, PATIENT, {}, today, send_gb=90.0)
    assert (near.staging_s, far.staging_s, far.send_gb) == (5, 5 + 1800, 90.0)
    # an hour of work, half an hour of copying, 35 s of boot and staging
    deadline = NOW + dt.timedelta(seconds=3600 + 1800 + 35)
    job = msgspec.structs.replace(STAYS, deadline=deadline, waiting_since=NOW)
    by_rule = msgspec.structs.replace(PATIENT, kind=PolicyKind.DEADLINE)

    def rule(option):
        one = msgspec.structs.replace(job, options=(option,))
        return decided([one], by_rule, NOW).decisions[0].rule

    assert rule(far) is Rule.DEADLINE
    assert rule(near) is None


def test_sizes_are_those_of_files_and_trees_and_unknown_of_what_cannot_be_counted(sites, tmp_path):
    tree = tmp_path / "tree"
    tree.mkdir()
    for name, size in {"a": 1_000_000, "b": 2_000_000}.items():
        (tree / name).write_bytes(b"x" * size)
    sizes, cloud = Sizes(sites.ledger), load_site("lab-cloud").site

    def gb(**inputs):
        return sizes(JobSpec(command=("true",), inputs=inputs), cloud, "r")

    assert gb() == 0.0
    assert gb(t=str(tree)) == 0.003
    assert gb(t=str(tree), f=str(tree / "a")) == 0.004
    assert gb(u="s3://bucket/key") is None
    assert gb(n=str(tmp_path / "nowhere")) is None


def test_inputs_of_unknown_size_are_said_with_the_move(sites):
    sites.policy = msgspec.structs.replace(sites.policy, kind=PolicyKind.ALWAYS)
    send(sites)
    (known,) = make_plan(sites.ledger, sites.policy, sites, blind).decisions
    (sites.project / "data.bin").unlink()
    (unknown,) = make_plan(sites.ledger, sites.policy, sites, blind).decisions
    assert (known.action, unknown.action) == (Action.MOVE, Action.MOVE)
    assert UNSIZED not in known.reason
    assert unknown.reason.endswith(UNSIZED)


def test_a_data_rule_refuses_by_its_name_live_also_for_what_is_rented_elsewhere(sites):
    send(sites, data=("hipaa",))
    (decision,) = make_plan(sites.ledger, sites.policy, sites, blind).decisions
    assert decision.action is Action.REFUSE
    assert "data rule hipaa: lab-cloud may hold public (data.tags)" in decision.reason
    assert decision.stage is None


def test_a_site_that_rents_in_another_region_than_it_says_is_refused_by_the_rule():
    row = Offer(
        provider="x", region="us-east-1", instance="i", gpus=4, on_demand_usd=Decimal(9),
        source="me", as_of=NOW.date(),
    )  # fmt: skip
    site = load_site("lab-cloud").site
    gpu = msgspec.structs.replace(site.partitions["gpu"], offer=row.name)
    data = msgspec.structs.replace(site.data, regions=("eu-west-1",))
    europe = msgspec.structs.replace(site, partitions={"gpu": gpu}, data=data)
    spec = JobSpec(
        command=("true",), resources=Resources(gpus_per_node=4, time_limit_s=60),
        burst=BurstTerms(data=("eu-only",)),
    )  # fmt: skip
    (option,) = offered_at(spec, 60, europe, PATIENT, {row.name: row}, NOW.date())
    assert option.blockers == (
        "partition gpu: data rule eu-only: x/us-east-1/i stands in us-east-1",
    )


def test_budgets_of_more_than_this_user_say_that_they_are_advisory():
    budgets = (
        Budget(of=BudgetOf.ACCOUNT, name="bio", usd=Decimal(9)),
        Budget(of=BudgetOf.PROJECT, usd=Decimal(9)),
        Budget(of=BudgetOf.USER, usd=Decimal(9)),
    )
    plan = decided([STAYS], msgspec.structs.replace(PATIENT, budgets=budgets), NOW)
    (note,) = plan.notes
    assert note.startswith("the budget of account bio, each project is advisory: ")
    assert decided([STAYS], PATIENT, NOW).notes == ()


def test_a_failed_moves_rest_ends_where_the_deadline_needs_it():
    deadline = NOW + dt.timedelta(seconds=3600 + 60)
    rests = msgspec.structs.replace(
        STAYS, deadline=deadline, resting_until=NOW + dt.timedelta(hours=1), resting_why="no node",
        retry_from=NOW,
    )  # fmt: skip
    (decision,) = decided([rests], PATIENT, NOW).decisions
    assert (decision.action, decision.rule) == (Action.MOVE, Rule.DEADLINE)
    calm = msgspec.structs.replace(rests, deadline=deadline + dt.timedelta(minutes=9))
    assert decided([calm], PATIENT, NOW).decisions[0].action is Action.STAY
    fresh = msgspec.structs.replace(rests, retry_from=NOW + dt.timedelta(seconds=1))
    assert decided([fresh], PATIENT, NOW).decisions[0].action is Action.STAY
