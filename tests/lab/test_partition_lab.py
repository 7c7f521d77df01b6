"""A burst into a cloud partition of the same controller, on real Slurm."""

import json
import os
import signal
import subprocess
import sys
from decimal import Decimal

import msgspec
import pytest
from burst_world import World, hpcscale
from lab_helpers import saved

from hpcscale.burst.audit import AuditLog
from hpcscale.burst.handover import Handover
from hpcscale.burst.moves import Step
from hpcscale.burst.plan import Action
from hpcscale.burst.policy import Policy, TargetTerms
from hpcscale.burst.run import jobs_folder, make_plan
from hpcscale.errors import BurstRefusedError
from hpcscale.lab import faults
from hpcscale.lab.model import LabOptions
from hpcscale.lab.process import patience
from hpcscale.lab.pytest_plugin import cancel_all, start
from hpcscale.slurm.types import JobState

pytestmark = pytest.mark.lab
WITHIN = Policy(from_site="lab-onprem", to=("lab-onprem/cloud",))
BOTH = Policy(from_site="lab-onprem", to=("lab-onprem/cloud", "lab-cloud"))
SAYS = (
    'echo "in $SLURM_JOB_PARTITION as $HPCSCALE_SITE with ${TP_SOCKET_IFNAME-none} '
    '${LAB_SCRATCH-none} on $(hostname)"'
)
AGE = ("SubmitTime", "EligibleTime", "AccrueTime", "Priority", "TimeLimit", "JobId", "Comment")


@pytest.fixture(scope="module")
def burst_lab(pytestconfig):
    lab = start(pytestconfig, LabOptions(cloud_partition=True, suspend_time_s=600))
    yield lab
    lab.down()


@pytest.fixture(autouse=True)
def fresh_facts(monkeypatch):
    monkeypatch.setattr("hpcscale.burst.run.FACTS_AGE_S", -1.0)  # partitions change within a test


@pytest.fixture
def world(burst_lab, use_lab, tmp_path):
    use_lab(burst_lab)
    project = tmp_path / "project"
    project.mkdir()
    world = World(burst_lab, project)
    yield world
    world.close()
    faults.clear(burst_lab)
    onprem(world, "scontrol", "update", "PartitionName=cloud", "MaxTime=7-0", "State=UP")
    cancel_all(burst_lab)


def onprem(world, *argv, **kw):
    return world.lab.site("lab-onprem").exec(list(argv), check=True, **kw).stdout.strip()


def fill_cloud(world):
    """A stranger's job on every node of the cloud partition; its id."""
    options = ("--parsable", "-N4", "-pcloud", "--exclusive", "--time=60", "--output=/dev/null")
    job = onprem(world, "sbatch", *options, stdin="#!/bin/sh\nsleep 600\n")
    world.until(lambda: world.state("lab-onprem", job) == "RUNNING", 60, "the cloud is full")
    return job


def age(world, job):
    """What must stay as it was, once Slurm has looked at the job."""
    number = job.ref.job_id
    world.until(lambda: world.job("lab-onprem", number)["AccrueTime"] != "Unknown", 20, "it ages")
    found = world.job("lab-onprem", number)
    return {key: found[key] for key in AGE}


def partition(world, job):
    return world.job("lab-onprem", job.ref.job_id)["Partition"]


def undo(world, job):
    handover = Handover(world.ledger, world.connections, jobs_folder(), world.said.append)
    return handover.undo(world.move(job))


def log(world, job):
    path = f"{job.run_dir}/logs/{job.ref.job_id}.log"
    return onprem(world, "cat", path)


def test_a_job_moves_into_the_cloud_partition_and_runs_with_its_profile(world, tmp_path):
    world.fill()
    job = world.submit(f"{SAYS}; sleep 2")
    before = age(world, job)
    policy = tmp_path / "P.toml"
    policy.write_text('from = "lab-onprem"\nto = ["lab-onprem/cloud", "lab-cloud"]\n')
    done = hpcscale("burst", "plan", "--policy", str(policy), "--json")
    assert done.returncode == 0, done.stderr
    (planned,) = json.loads(done.stdout)["data"]["decisions"]
    assert (planned["action"], planned["to"]) == ("move", "lab-onprem/cloud")
    # 2 whole nodes of 4 GPUs, 10 minutes and the boot
    assert Decimal(planned["cost_usd"]) == Decimal("9.64")
    assert partition(world, job) == "gpu", "a plan acts on nothing"

    done = hpcscale("burst", "run", "--policy", str(policy), "--wait", "--json")
    assert done.returncode == 0, done.stderr
    (moved,) = json.loads(done.stdout)["data"]["moves"]
    assert (moved["step"], moved["to"]) == ("done", "lab-onprem/cloud")
    after = world.job("lab-onprem", job.ref.job_id)
    assert {key: after[key] for key in AGE} == before
    scratch = world.lab.site("lab-onprem").paths.scratch
    where = f"in cloud as lab-onprem/cloud with lo {scratch}/cloud on burst"
    assert log(world, job).startswith(where)
    attempt = world.ledger.attempt(job.submission_id)
    assert attempt.state is JobState.COMPLETED
    assert attempt.gpu_hour_usd == Decimal("6.88")
    assert attempt.cost_usd is not None
    assert Decimal(0) < attempt.cost_usd <= Decimal(planned["cost_usd"])
    assert world.starts(job) == 1
    assert world.cloud_jobs() == []
    assert AuditLog().verify()[0].number >= 2
    assert '"Partition": "cloud"' in AuditLog().path.read_text()


@pytest.mark.slow
def test_undo_puts_it_back_with_its_age_and_it_runs_with_the_sites_profile(world):
    filler = world.fill()
    fill_cloud(world)
    job = world.submit(SAYS)
    before = age(world, job)
    world.tick(WITHIN)
    assert world.step(job) is Step.MOVED
    assert partition(world, job) == "cloud"
    assert world.state("lab-onprem", job.ref.job_id) == "PENDING"
    assert age(world, job) == before
    assert world.ledger.attempt(job.submission_id).gpu_hour_usd == Decimal("6.88")
    done = hpcscale("status", job.run_id)
    assert "moved to lab-onprem/cloud" in done.stdout
    done = hpcscale("burst", "undo", job.run_id, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["data"]["step"] == "failed"
    assert partition(world, job) == "gpu"
    assert age(world, job) == before
    onprem(world, "scancel", filler)
    world.until(
        lambda: world.state("lab-onprem", job.ref.job_id) == "COMPLETED", 30, "it runs on-prem"
    )
    assert log(world, job).startswith("in gpu as lab-onprem with none none on onprem")
    assert world.ledger.attempt(job.submission_id).gpu_hour_usd == Decimal("2.10")


@pytest.mark.slow
def test_undo_of_a_job_that_runs_there_is_refused_and_cancel_ends_it(world):
    world.fill()
    job = world.submit("sleep 300")
    world.tick(WITHIN)
    world.until(lambda: world.state("lab-onprem", job.ref.job_id) == "RUNNING", 60, "it runs there")
    with pytest.raises(BurstRefusedError, match="RUNNING already"):
        undo(world, job)
    done = hpcscale("cancel", "--yes", job.run_id)
    assert done.returncode == 0, done.stderr
    move = world.settled(job, 60, WITHIN)
    assert move.step is Step.DONE
    assert world.ledger.attempt(job.submission_id).state is JobState.CANCELLED


@pytest.mark.slow
@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("MaxTime=5", "--time: 00:10:00 asked for; partition cloud allows 00:05:00"),
        ("State=DRAIN", "partition cloud is not up"),
        ("MaxNodes=1", "--nodes: 2 nodes asked for; partition cloud gives at most 1"),
    ],
)
def test_what_the_partition_does_not_take_is_named_and_handed_over(world, setting, words):
    world.fill()
    job = world.submit("sleep 1")
    onprem(world, "scontrol", "update", "PartitionName=cloud", setting)
    try:
        (decision,) = make_plan(world.ledger, WITHIN, world.connections).decisions
        assert decision.action is Action.REFUSE
        assert words in decision.reason
        (decision,) = make_plan(world.ledger, BOTH, world.connections).decisions
        assert (decision.action, decision.to) == (Action.MOVE, "lab-cloud")
    finally:
        onprem(world, "scontrol", "update", "PartitionName=cloud", "MaxNodes=UNLIMITED")
    assert partition(world, job) == "gpu"


@pytest.mark.slow
def test_a_job_that_starts_first_is_left_alone(world, monkeypatch):
    filler = world.fill()
    job = world.submit("sleep 2")
    client = world.connections("lab-onprem").client
    said = []
    real = client.change

    def too_late(job_id, fields):
        onprem(world, "scancel", filler)
        world.until(lambda: world.state("lab-onprem", job.ref.job_id) == "RUNNING", 20, "it starts")
        said.append(real(job_id, fields))
        return said[-1]

    monkeypatch.setattr(client, "change", too_late)
    world.tick(WITHIN)
    move = world.move(job)
    assert move.step is Step.WITHDRAWN
    assert "it started in gpu" in move.message
    assert "no longer pending" in said[0]
    assert world.ledger.attempt(job.submission_id).gpu_hour_usd == Decimal("2.10")
    world.until(
        lambda: world.state("lab-onprem", job.ref.job_id) == "COMPLETED", 30, "it ends as it would"
    )
    assert world.starts(job) == 1


KILLED = """
import os, signal, sys
from hpcscale.slurm.cli import CliClient
real = CliClient.change
def change(self, job_id, fields):
    real(self, job_id, fields)
    os.kill(os.getpid(), signal.SIGKILL)
CliClient.change = change
sys.argv = ["hpcscale", "burst", "run", "--policy", sys.argv[1]]
from hpcscale.cli import run
run()
"""


@pytest.mark.slow
def test_killed_between_the_update_and_the_ledger_the_next_run_records_it(world, tmp_path):
    world.fill()
    job = world.submit(SAYS)
    policy = tmp_path / "P.toml"
    policy.write_text('from = "lab-onprem"\nto = ["lab-onprem/cloud"]\n')
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(policy)],
        capture_output=True, text=True, timeout=patience(60), check=False, env=os.environ,
    )  # fmt: skip
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert world.step(job) is Step.SHIFTING
    assert partition(world, job) == "cloud"
    # nobody counts its hours there at the old price meanwhile
    assert world.ledger.attempt(job.submission_id).gpu_hour_usd == Decimal("6.88")
    move = world.settled(job, 60, WITHIN)
    assert move.step is Step.DONE
    assert world.starts(job) == 1
    assert "in cloud" in log(world, job)
    assert AuditLog().path.read_text().count('"Partition": "cloud"') == 1


@pytest.mark.slow
def test_nodes_that_do_not_boot_give_it_back(world):
    for node in world.lab.site("lab-onprem").booting_nodes:
        onprem(world, "scontrol", "update", f"NodeName={node}", "State=POWER_DOWN_FORCE")
    world.until(
        lambda: set(onprem(world, "sinfo", "-h", "-N", "-p", "cloud", "-o", "%t").split())
        == {"idle~"},
        60, "the cloud is off",
    )  # fmt: skip
    faults.no_boot(world.lab, 4)
    filler = world.fill()
    job = world.submit(SAYS)
    policy = msgspec.structs.replace(
        WITHIN, target={"lab-onprem/cloud": TargetTerms(boot_timeout_s=3)}
    )
    move = world.settled(job, 120, policy)
    assert move.step is Step.FAILED
    assert "boot_timeout = 3s" in move.message
    assert partition(world, job) == "gpu"
    assert world.starts(job) == 0
    onprem(world, "scancel", filler)
    world.until(
        lambda: world.state("lab-onprem", job.ref.job_id) == "COMPLETED", 60, "it runs on-prem"
    )


@pytest.mark.slow
def test_a_controller_that_forgets_the_update_is_told_again(world):
    world.fill()
    fill_cloud(world)
    job = world.submit(SAYS)
    age(world, job)
    saved(world.lab.site("lab-onprem"))
    world.tick(WITHIN)
    assert partition(world, job) == "cloud"
    faults.controller(world.lab, "lab-onprem", "kill")
    faults.controller(world.lab, "lab-onprem", "restart")
    world.ticks_until(
        lambda: partition(world, job) == "cloud" and world.step(job) is Step.MOVED,
        60, "it is in the cloud partition, as the ledger says", WITHIN,
    )  # fmt: skip
    onprem(world, "scancel", str(job.ref.job_id))
    assert world.settled(job, 60, WITHIN).step is Step.DONE


@pytest.fixture
def accounted(lab_factory, use_lab, tmp_path):
    lab = lab_factory(accounting=True, cloud_partition=True)
    use_lab(lab)
    project = tmp_path / "project"
    project.mkdir()
    world = World(lab, project)
    yield world
    world.close()


@pytest.mark.slow
def test_account_and_qos_are_compared_and_what_slurm_refuses_later_goes_back(
    accounted, monkeypatch
):
    world = accounted
    world.fill()
    job = world.submit(SAYS)
    before = age(world, job)

    def settings(**kw):
        onprem(
            world, "scontrol", "update", "PartitionName=cloud", *(f"{k}={v}" for k, v in kw.items())
        )

    def refusal():
        (decision,) = make_plan(world.ledger, WITHIN, world.connections).decisions
        assert decision.action is Action.REFUSE
        return decision.reason

    settings(AllowAccounts="teaching")
    assert "--account: 'research' asked for; partition cloud takes teaching" in refusal()
    settings(AllowAccounts="ALL", AllowQos="high")
    assert "--qos: 'normal' asked for; partition cloud takes high" in refusal()

    # had nobody compared: Slurm takes it, and would let it wait there for ever
    monkeypatch.setattr("hpcscale.burst.candidates.stays", lambda *_, **__: [])
    world.tick(WITHIN)
    move = world.settled(job, 60, WITHIN)
    assert (move.step, move.refused) == (Step.FAILED, True)
    assert "QOS" in move.message
    assert partition(world, job) == "gpu"
    after = age(world, job)
    assert {**after, "Priority": ""} == {**before, "Priority": ""}
    assert int(after["Priority"]) >= int(before["Priority"])
    (decision,) = make_plan(world.ledger, WITHIN, world.connections).decisions
    assert decision.action is Action.REFUSE
    assert "tried before" in decision.reason
    settings(AllowQos="ALL")
