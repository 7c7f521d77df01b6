"""Spot nodes on real Slurm: a node is taken from under a job, and its deadline is met in the net."""

import datetime as dt
import os
from decimal import Decimal
from pathlib import Path

import pytest
from burst_world import World

from hpcscale.burst.moves import Step
from hpcscale.burst.policy import Policy, PolicyKind
from hpcscale.lab.model import LabOptions
from hpcscale.lab.pytest_plugin import cancel_all, start
from hpcscale.slurm.types import JobState
from hpcscale.spec import BurstMode
from hpcscale.units import expand_hostlist

pytestmark = [pytest.mark.lab, pytest.mark.slow]
# ten minutes of work: what is lost, and a start on demand after that, fit into 40 min
POLICY = Policy(
    from_site="lab-onprem", to=("lab-cloud",), kind=PolicyKind.ALWAYS, spot_tries=1,
    cron_interval_s=60,
)  # fmt: skip
ROWS = """
[[offer]]
provider = "x"
region = "zone-a"
instance = "h100x4"
gpus = 4
on_demand_usd = 20.0
spot_usd = 6.0
interruption_per_hour = 0.2
boot_p95_s = 60
source = "made up"
as_of = {today}
"""
SITE = """
[partitions.gpu]
offer = "x/zone-a/h100x4"

[partitions.spot]
offer = "x/zone-a/h100x4"
preemptible = true
nodes = 4
gpus_per_node = 4
gpu_type = "h100"
"""


@pytest.fixture(scope="module")
def spot_lab(pytestconfig):
    conf = {"lab-cloud": ("PartitionName=spot Nodes=cloud[1-4]",)}
    lab = start(pytestconfig, LabOptions(extra_conf=conf, suspend_time_s=600))
    yield lab
    lab.down()


@pytest.fixture
def world(spot_lab, use_lab, tmp_path):
    use_lab(spot_lab)
    etc = Path(os.environ["HPCSCALE_ETC_DIR"])
    for name, text in {
        "sites/lab-cloud": SITE,
        "catalog/x": ROWS.format(today=dt.datetime.now(dt.UTC).date()),
    }.items():
        file = etc / f"{name}.toml"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    project = tmp_path / "project"
    project.mkdir()
    world = World(spot_lab, project)
    yield world
    world.close()
    cancel_all(spot_lab)


def cloud(world, *argv):
    return world.lab.site("lab-cloud").exec(list(argv), check=True).stdout.strip()


def partition(world, job):
    return world.job("lab-cloud", world.target(job).job_id)["Partition"]


def test_a_taken_node_sends_the_job_into_the_net_and_its_deadline_is_met(world):
    world.fill()
    deadline = dt.datetime.now(dt.UTC) + dt.timedelta(minutes=40)
    job = world.submit(
        '[ "$HPCSCALE_RESTART_COUNT" -gt 0 ] || sleep 900; echo "in $SLURM_JOB_PARTITION"',
        mode=BurstMode.AUTO, deadline=deadline,
    )  # fmt: skip
    done = world.ticks_until(lambda: world.step(job) is Step.MOVED, 180, "it moved", POLICY)
    assert done.problems == []
    move = world.move(job)
    assert (move.partition, move.net) == ("spot", "gpu")
    assert "on spot nodes (spot), with gpu as the net" in move.reason
    assert partition(world, job) == "spot"
    # two nodes of 4 GPUs: spot is a third of the price, with what is expected to be lost
    assert move.estimate_usd is not None
    assert move.estimate_usd < Decimal("0.6") * Decimal(move.line.limit_s) / 3600 * 40
    assert world.target(job).gpu_hour_usd == Decimal("1.5")

    target = world.target(job)
    node = expand_hostlist(world.job("lab-cloud", target.job_id)["NodeList"])[0]
    cloud(world, "scontrol", "update", f"NodeName={node}", "State=DOWN", "Reason=taken")
    world.ticks_until(lambda: world.move(job).netted, 120, "the net", POLICY)
    world.ticks_until(lambda: partition(world, job) == "gpu", 120, "it is in the net", POLICY)
    assert "taken back 1 times" in world.move(job).netted
    cloud(world, "scontrol", "update", f"NodeName={node}", "State=POWER_DOWN_FORCE")
    move = world.settled(job, 240, POLICY)
    assert move.step is Step.DONE, move.message
    target = world.target(job)
    assert target.state is JobState.COMPLETED
    assert target.restarts == 1
    assert target.end_time < deadline
    assert world.starts(job) == 2
    assert target.gpu_hour_usd == Decimal(5)
    # its hours on spot nodes at their price, the others at theirs
    (event,) = world.ledger.events(job.run_id, "attempt.repriced")
    assert Decimal(event.data["usd"]) <= target.cost_usd <= move.reserved_usd
    assert len(world.cloud_jobs()) == 1, "it is one job all the time"
