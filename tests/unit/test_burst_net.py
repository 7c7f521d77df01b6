"""A job whose spot nodes are taken back goes into its net, whatever happens on the way."""

import dataclasses
import datetime as dt
from decimal import Decimal

import msgspec
import pytest
from fake_sites import Sites

from hpcscale.burst.capacity import short
from hpcscale.burst.catalog_load import rows_for
from hpcscale.burst.moves import Moves, Step
from hpcscale.burst.policy import Order
from hpcscale.burst.shapes import with_catalog
from hpcscale.errors import UnreachableError
from hpcscale.ledger import utc_now
from hpcscale.slurm.cli import CliClient

ROW = """[[offer]]
provider = "x"
region = "a"
instance = "i"
gpus = 4
on_demand_usd = 20.0
spot_usd = 6.0
interruption_per_hour = 0.1
source = "made up"
as_of = {today}
"""
SITE = """[partitions.gpu]
offer = "x/a/i"
[partitions.spot]
offer = "x/a/i"
preemptible = true
"""


@pytest.fixture
def sites(tmp_path, monkeypatch):
    etc = tmp_path / "etc"
    for name, text in {
        "catalog/x": ROW.format(today=utc_now().date()),
        "sites/lab-cloud": SITE,
    }.items():
        (etc / name).parent.mkdir(parents=True, exist_ok=True)
        (etc / f"{name}.toml").write_text(text)
    monkeypatch.setenv("HPCSCALE_ETC_DIR", str(etc))
    found = Sites(tmp_path)
    cloud = found.connections["lab-cloud"]
    priced = with_catalog(cloud.site, rows_for([cloud.site]))  # as Connections does
    found.connections["lab-cloud"] = dataclasses.replace(cloud, site=priced)
    found.cloud.partitions["spot"] = found.cloud.node_names
    found.policy = msgspec.structs.replace(found.policy, spot_tries=1)
    found.fill()
    yield found
    found.ledger.close()


def on_spot(sites):
    """A job that has begun on spot nodes."""
    job = sites.submit()
    sites.tick()
    assert partition(sites, job) == "spot"
    sites.both(40)
    sites.begin(job)
    move = sites.move(job)
    assert (move.step, move.partition, move.net) == (Step.MOVED, "spot", "gpu")
    assert sites.target(job).gpu_hour_usd == Decimal("1.5")
    return job


def partition(sites, job):
    return sites.connections["lab-cloud"].client.show(sites.target(job).job_id).partition


def take(sites, job):
    """The cloud takes a node: Slurm puts the job back into the queue."""
    done = sites.cloud.run(["scontrol", "requeue", str(sites.target(job).job_id)])
    assert done.returncode == 0, done.stderr


def test_a_job_whose_node_is_taken_goes_into_the_net_at_the_nets_price(sites):
    job = on_spot(sites)
    sites.both(3600)
    take(sites, job)
    sites.tick()
    move = sites.move(job)
    assert move.netted == "its nodes were taken back 1 times"
    assert partition(sites, job) == "gpu"
    target = sites.target(job)
    assert (target.gpus, target.gpu_hour_usd) == (8, Decimal(5))
    # an hour of 8 GPUs at 1.5, and what comes now at 5
    (event,) = sites.ledger.events(job.run_id, "attempt.repriced")
    assert Decimal(12) < Decimal(event.data["usd"]) < Decimal(13)
    hour = sites.ledger.cost_of(target, float(event.data["seconds"]) + 3600)
    assert hour == Decimal(event.data["usd"]) + 40
    sites.tick()
    assert len(sites.ledger.events(job.run_id, "move.net")) == 1
    assert sites.move(job).step is Step.MOVED


def test_two_tries_leave_it_on_spot_for_the_second(sites):
    sites.policy = msgspec.structs.replace(sites.policy, spot_tries=2)
    job = on_spot(sites)
    take(sites, job)
    sites.tick()
    assert (sites.move(job).taken, sites.move(job).netted) == (1, "")
    assert partition(sites, job) == "spot"
    sites.both(60)
    sites.tick()
    take(sites, job)
    sites.tick()
    assert sites.move(job).netted == "its nodes were taken back 2 times"
    assert partition(sites, job) == "gpu"


def test_an_update_that_gets_no_answer_is_done_again(sites, monkeypatch):
    job = on_spot(sites)
    take(sites, job)
    with monkeypatch.context() as patched:

        def lost(*_):
            raise UnreachableError("no answer", where="lab-cloud")

        patched.setattr(CliClient, "change", lost)
        assert any("no answer" in p for p in sites.tick().problems)
    assert (bool(sites.move(job).netted), partition(sites, job)) == (True, "spot")
    sites.tick()
    assert partition(sites, job) == "gpu"
    assert len(sites.ledger.events(job.run_id, "move.net")) == 1


def test_a_job_that_runs_when_its_slack_is_used_up_is_requeued_into_the_net(sites):
    job = on_spot(sites)
    moves = Moves(sites.ledger)
    move = sites.move(job)
    late = sites.connections["lab-cloud"].clock.now() + dt.timedelta(seconds=move.line.limit_s)
    moves.save(move, line=msgspec.structs.replace(move.line, deadline=late))
    sites.tick()
    sites.both(1)
    sites.tick()
    move = sites.move(job)
    assert "its slack is used up" in move.netted
    assert partition(sites, job) == "gpu"
    assert sites.target(job).restarts == 1


def test_no_spot_node_within_the_boots_time_is_the_net_and_is_remembered(sites):
    job = sites.submit()
    sites.cloud.boot_s = 10**6
    sites.tick()
    assert sites.move(job).step is Step.SUBMITTED
    sites.both(sites.move(job).boot_timeout_s + 2)
    sites.tick()
    sites.both(1)
    sites.tick()
    move = sites.move(job)
    assert "no spot node came within" in move.netted
    (found,) = short([[move]])
    assert (found.target, found.partition) == ("lab-cloud", "spot")
    assert partition(sites, job) == "gpu"
    # the net has its own time to boot
    assert move.step is Step.SUBMITTED
    other = sites.submit()
    sites.tick()
    assert sites.move(other).partition == "gpu"


def test_fence_first_goes_into_the_net_too_when_no_spot_node_comes(sites):
    sites.policy = msgspec.structs.replace(sites.policy, order=Order.FENCE_FIRST)
    job = sites.submit()
    sites.cloud.boot_s = 10**6
    sites.tick()
    move = sites.move(job)
    assert (move.step, partition(sites, job)) == (Step.CANCELLING, "spot")
    sites.both(move.boot_timeout_s + 2)
    sites.tick()
    sites.both(1)
    sites.tick()
    assert "no spot node came within" in sites.move(job).netted
    assert partition(sites, job) == "gpu"
    assert sites.move(job).step is Step.CANCELLING
