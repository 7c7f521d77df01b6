"""Every overflow policy on real Slurm: the same queue, each with its own verdict."""

import datetime as dt
import json
import os
from decimal import Decimal
from pathlib import Path

import pytest
from burst_world import World, hpcscale

from hpcscale.burst.expect import Fresh
from hpcscale.burst.moves import Step
from hpcscale.burst.plan import Action, Rule
from hpcscale.burst.policy import Policy, PolicyKind
from hpcscale.burst.run import make_plan
from hpcscale.spec import BurstMode


@pytest.fixture
def world(lab_env, tmp_path):
    project = tmp_path / "project"
    project.mkdir()
    world = World(lab_env, project)
    yield world
    world.close()


def price(as_of):
    """The partition gpu of lab-cloud is rented by a row of this day."""
    etc = Path(os.environ["HPCSCALE_ETC_DIR"])
    for name, text in {
        "sites/lab-cloud": '[partitions.gpu]\noffer = "x/r/h100x4"\n',
        "catalog/x": '[[offer]]\nprovider = "x"\nregion = "r"\ninstance = "h100x4"\ngpus = 4\n'
        f'on_demand_usd = 20.0\nboot_p95_s = 36\nsource = "made up"\nas_of = {as_of}\n',
    }.items():
        file = etc / f"{name}.toml"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)


def policy(kind, **kw):
    return Policy(from_site="lab-onprem", to=("lab-cloud",), kind=kind, **kw)


DEAR, CHEAP = {"hour_usd": Decimal(100)}, {"hour_usd": Decimal(2)}


def test_each_policy_decides_one_queue_by_its_own_rule(world):
    world.fill()  # all nodes, an hour at most
    job = world.submit(mode=BurstMode.AUTO)
    soon = dt.datetime.now(dt.UTC) + dt.timedelta(minutes=30)
    urgent = world.submit(mode=BurstMode.AUTO, deadline=soon)
    foresee = Fresh()  # one look for all

    def verdicts(kind, **kw):
        made = make_plan(world.ledger, policy(kind, **kw), world.connections, foresee)
        return {d.run_id: d for d in made.decisions}

    # both would start once the filler's hour is over: its limit is all that is known
    found = verdicts(PolicyKind.VALUE, deadline=False, **CHEAP)
    for decision in found.values():
        assert decision.action is Action.STAY
        wait = (decision.start_p50 - dt.datetime.now(dt.UTC)).total_seconds()
        assert 55 * 60 < wait <= 61 * 60
        assert decision.reason.startswith("start p50 ")
        assert "; moving now costs $" in decision.reason
        assert decision.runner_up.startswith("else to lab-cloud now for $")
    found = verdicts(PolicyKind.VALUE, deadline=False, **DEAR)
    assert {d.rule for d in found.values()} == {Rule.VALUE}
    assert all(d.runner_up.startswith("else it would start here in") for d in found.values())

    # the forecast's start misses the deadline of one; no other reason moves it
    found = verdicts(PolicyKind.DEADLINE)
    assert found[job.run_id].action is Action.STAY
    assert found[urgent.run_id].rule is Rule.START_ESTIMATE
    assert "the forecast's p50" in found[urgent.run_id].reason

    assert {d.action for d in verdicts(PolicyKind.NEVER).values()} == {Action.STAY}
    assert verdicts(PolicyKind.ALWAYS)[job.run_id].rule is Rule.ALWAYS
    assert verdicts(PolicyKind.NO_WAIT)[job.run_id].rule is Rule.NO_WAIT
    world.until(
        lambda: verdicts(PolicyKind.THRESHOLD, wait_s=1, depth=1)[job.run_id].rule
        is Rule.THRESHOLD, 20, "it has waited a second",
    )  # fmt: skip
    deep = verdicts(PolicyKind.THRESHOLD, wait_s=1, depth=2)[job.run_id]
    assert (deep.action, deep.rule) == (Action.STAY, None)
    assert verdicts(PolicyKind.CONSTANT_WAIT, wait_s=1)[job.run_id].rule is Rule.CONSTANT_WAIT
    patient = verdicts(PolicyKind.COMPUTE_WAIT, wait_per_gpu_hour_s=36000)[job.run_id]
    assert patient.action is Action.STAY
    assert world.moves.all() == []


@pytest.mark.slow  # a whole move; what the policy says is seen above
def test_value_moves_a_job_for_its_wait_and_says_so_beforehand(world, tmp_path):
    world.fill()
    job = world.submit("echo done on $(hostname)", mode=BurstMode.AUTO)
    path = tmp_path / "P.toml"
    path.write_text(
        'from = "lab-onprem"\nto = ["lab-cloud"]\npolicy = "value"\nhour_usd = 100\n'
        '[[budget]]\nof = "user"\nusd_per_month = 100\n'
    )
    # its nodes are instances of the catalog; a price of last year keeps no budget
    price(dt.datetime.now(dt.UTC).date() - dt.timedelta(days=365))
    done = hpcscale("burst", "explain", job.run_id, "--policy", str(path))
    assert done.returncode == 0, done.stderr
    assert "refuse" in done.stdout
    assert "its price is 365 days old" in done.stdout
    price(dt.datetime.now(dt.UTC).date())
    done = hpcscale("burst", "explain", job.run_id, "--policy", str(path))
    assert done.returncode == 0, done.stderr
    assert "move to lab-cloud" in done.stdout
    # 2 nodes of 4 GPUs for 600 s, a lease of 600 s, 5 s of staging and the row's 36 s of boot
    assert "cost: $13.79 (x/r/h100x4: " in done.stdout
    assert "why: start p50 " in done.stdout
    assert "else it would start here in " in done.stdout
    done = hpcscale("burst", "run", "--policy", str(path), "--wait", "--json")
    assert done.returncode == 0, done.stderr
    (moved,) = json.loads(done.stdout)["data"]["moves"]
    assert (moved["step"], moved["target_state"], moved["rule"]) == ("done", "COMPLETED", "value")
    assert world.step(job) is Step.DONE
    assert world.starts(job) == 1
