"""What `submit` says of a job's cost and deadline is what the decision goes by later."""

import datetime as dt
import re
from decimal import Decimal

import msgspec
import pytest
from deciding import decided
from fake_sites import POLICY, Sites

from hpcscale.burst.budget import Purse
from hpcscale.burst.plan import Action, Candidate, Option
from hpcscale.burst.policies import find_policy
from hpcscale.burst.policy import PolicyKind
from hpcscale.burst.prospect import Prospect, burst_notes, money_left
from hpcscale.burst.run import make_plan
from hpcscale.errors import BurstRefusedError
from hpcscale.render import render
from hpcscale.settings import config_dir
from hpcscale.site import load_site
from hpcscale.slurm.types import JobState
from hpcscale.spec import BurstMode, BurstTerms, Checkpoint, JobSpec, Resources
from hpcscale.submit import submit

ALWAYS = msgspec.structs.replace(POLICY, kind=PolicyKind.ALWAYS)
ONPREM = load_site("lab-onprem").site


def spec(*, checkpoint=None, nodes=1, limit_s=3600, **burst):
    return JobSpec(
        command=("sleep", "60"), code="",
        resources=Resources(nodes=nodes, gpus_per_node=4, time_limit_s=limit_s),
        checkpoint=checkpoint, burst=BurstTerms(**{"mode": BurstMode.AUTO, **burst}),
    )  # fmt: skip


def notes_of(job, now=None, money=None):
    now = now or dt.datetime.now(dt.UTC)
    return burst_notes(job, ONPREM, lambda: now, money)


def to_cloud(notes):
    return next(note for note in notes if "lab-cloud" in note)


def figures(note):
    return [Decimal(text.replace(",", "")) for text in re.findall(r"\$([\d,.]+\d)", note)]


@pytest.fixture
def sites(tmp_path):
    made = Sites(tmp_path)
    made.policy = ALWAYS
    made.fill()
    return made


def submitted(sites, job):
    connection = sites.connections["lab-onprem"]
    done = submit(render(job, connection.site), connection.site, connection, sites.ledger)
    sites.both(1)
    return done


@pytest.mark.parametrize("checkpoint", [None, Checkpoint(dir="ck", max_restarts=2)])
@pytest.mark.parametrize("over", [False, True])
def test_what_submit_says_of_a_maximum_cost_is_what_is_decided(sites, checkpoint, over):
    said = to_cloud(notes_of(spec(checkpoint=checkpoint)))
    assert said.startswith("may burst to lab-cloud, expected cost $")
    expected, worst = figures(said)[0], figures(said)[-1]
    assert worst > expected * (3 if checkpoint else 1)
    most = worst - Decimal("0.01") if over else worst
    job = spec(checkpoint=checkpoint, max_cost_usd=most)
    note = to_cloud(notes_of(job))
    if over:  # though one start is expected to cost much less
        assert note.startswith("cannot burst to lab-cloud: it could, with slow boots")
        assert note.endswith(f"; --max-cost {worst} would do")
    else:
        assert note.startswith("may burst to lab-cloud, expected cost $")
    submitted(sites, job)
    (decision,) = make_plan(sites.ledger, ALWAYS, sites).decisions
    assert decision.action is (Action.REFUSE if over else Action.MOVE)
    if not over:
        assert (decision.cost_usd, decision.worst_usd) == (expected, worst)


def test_only_elsewhere_over_its_maximum_is_refused_with_what_would_do():
    with pytest.raises(BurstRefusedError) as caught:
        notes_of(spec(mode=BurstMode.ONLY, max_cost_usd=Decimal(1)))
    would = caught.value.hint.removeprefix("--max-cost ")
    notes_of(spec(mode=BurstMode.ONLY, max_cost_usd=Decimal(would)))
    # money alone does not help where the path is in the way
    job = msgspec.structs.replace(
        spec(mode=BurstMode.ONLY, max_cost_usd=Decimal(1)), command=("cat", "/data/x")
    )
    with pytest.raises(BurstRefusedError) as caught:
        notes_of(job)
    assert "mend what stands in the way" in caught.value.hint


def test_without_a_limit_no_maximum_can_be_kept():
    job = spec(limit_s=None, max_cost_usd=Decimal(99))
    cloud = to_cloud(notes_of(msgspec.structs.replace(job, partition="nowhere")))
    assert "no time limit, so its cost has no bound" in cloud


def budget_file(usd):
    config = config_dir()
    config.mkdir(parents=True)
    (config / "config.toml").write_text('burst_policy = "P.toml"\n')
    (config / "P.toml").write_text(
        'from = "lab-onprem"\nto = ["lab-cloud"]\npolicy = "deadline"\n'
        f'[[budget]]\nof = "user"\nusd_per_month = {usd}\n'
    )


def test_a_deadline_is_promised_while_the_budget_has_its_money(sites):
    connection = sites.connections["lab-onprem"]
    now = connection.clock.now()
    job = spec(deadline=now + dt.timedelta(hours=9))
    worst = figures(to_cloud(notes_of(job, now)))[-1]
    budget_file(2 * worst + 1)
    money = money_left(sites.ledger, connection)
    for _ in range(2):
        assert "its deadline can be kept by a move until" in notes_of(job, now, money)[-1]
        submitted(sites, job)
    *_, short, note = notes_of(job, now, money)
    assert short.startswith(f"cannot burst now: it may cost ${worst}, and of $")
    assert "is kept for 2 jobs that were promised it" in short
    assert "met only if it starts here at once or runs shorter than its limit: no money" in note
    # nothing is said of money to those who look at no ledger
    assert "can be kept by a move" in notes_of(job, now)[-1]


@pytest.mark.parametrize("affordable", ["first", "second"])
def test_a_deadline_is_promised_with_the_money_of_the_target_that_is_decided_on(
    affordable, monkeypatch
):
    """The policy sends it to the first of its targets, which may cost more than is left."""
    now = dt.datetime.now(dt.UTC)
    budget_file(50)
    worst = {"first": 60, "second": 60, affordable: 40}
    found = [
        Prospect(
            site=msgspec.structs.replace(load_site("lab-cloud").site, name=name),
            option=Option(site=name, boot_s=60, cost_usd=Decimal(9), worst_usd=Decimal(usd)),
        )
        for name, usd in worst.items()
    ]
    policy = find_policy()
    policy = msgspec.structs.replace(policy, to=("first", "second"))
    monkeypatch.setattr("hpcscale.burst.prospect._policy_of", lambda _: (policy, []))
    monkeypatch.setattr("hpcscale.burst.prospect._prospects", lambda *_: (found[::-1], []))

    def money(policy, moment):
        return Purse(policy.budgets, [], moment)

    job = spec(deadline=now + dt.timedelta(hours=9))
    *_, note = notes_of(job, now, money)
    options = tuple(one.option for one in found)
    waits = Candidate(
        run_id="r", ref="lab-onprem:1", name="j", mode=BurstMode.AUTO, state=JobState.PENDING,
        waiting_since=now, time_limit_s=3600, deadline=job.burst.deadline, options=options,
    )  # fmt: skip
    due = job.burst.deadline - dt.timedelta(seconds=3660)
    moves = decided([waits], policy, due).moves
    assert ("can be kept by a move" in note) == (affordable == "first") == bool(moves)
    if affordable == "second":
        assert "no money is left to promise a move (it may cost $60.00, and of $50.00" in note


def test_a_target_that_the_policy_does_not_name_promises_no_deadline():
    now = dt.datetime.now(dt.UTC)
    job = spec(deadline=now + dt.timedelta(hours=9))
    assert "its deadline can be kept by a move until" in notes_of(job, now)[-1]
    config = config_dir()
    config.mkdir(parents=True)
    (config / "config.toml").write_text('burst_policy = "P.toml"\n')
    (config / "P.toml").write_text(
        'from = "lab-onprem"\nto = ["lab-onprem/cloud"]\npolicy = "deadline"\n'
    )
    assert "may burst to lab-cloud" in to_cloud(notes_of(job, now))
    assert notes_of(job, now)[-1].endswith("the policy moves to lab-onprem/cloud")


def test_a_policy_that_cannot_be_read_is_said_and_keeps_no_job_back():
    config_dir().mkdir(parents=True)
    (config_dir() / "config.toml").write_text('burst_policy = "gone.toml"\n')
    notes = notes_of(spec())
    assert notes[0].startswith("the burst policy cannot be read: ")
    assert "may burst to lab-cloud" in to_cloud(notes[1:])
