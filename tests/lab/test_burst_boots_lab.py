"""The overflow on real Slurm while the cloud's nodes boot, boot late or never boot.

Each test has a lab of its own: a node that an earlier test booted would be up, or on its way down,
and powering four nodes down takes longer than a new lab.
"""

import signal
import subprocess
import sys

import pytest
from burst_world import FENCE_FIRST, KILL_DRIVER, POLICY, World, hpcscale
from lab_helpers import saved

from hpcscale.burst.moves import Step
from hpcscale.burst.plan import Action
from hpcscale.burst.policy import Policy, TargetTerms
from hpcscale.burst.run import make_plan
from hpcscale.lab import faults
from hpcscale.lab.process import patience

# as good as never: longer than a test, and Slurm does not give the nodes up meanwhile
LONG_S = 3600


@pytest.fixture
def world(request, lab_factory, use_lab, tmp_path):
    """Every node of it is switched off: the first job boots them."""
    project = tmp_path / "project"
    project.mkdir()
    (project / "hello.txt").write_text("goes along as code")
    lab = lab_factory(resume_timeout_s=getattr(request, "param", 2 * LONG_S))
    world = World(use_lab(lab), project)
    yield world
    world.close()


# not sooner: a run of `burst run` on a slow machine must be over by then
give_up_soon = pytest.mark.parametrize("world", [30], indirect=True, ids=["resume-timeout-30s"])


@pytest.mark.begins_first
@give_up_soon
def test_when_nodes_do_not_boot_the_job_keeps_its_place_on_prem(world):
    filler = world.fill()
    job = world.submit()
    world.until(
        lambda: world.job("lab-onprem", job.ref.job_id)["AccrueTime"] != "Unknown", 20, "it ages"
    )
    before = world.job("lab-onprem", job.ref.job_id)
    faults.no_boot(world.lab, 4)
    world.tick(FENCE_FIRST)
    assert world.step(job) is Step.CANCELLING
    fenced = world.job("lab-onprem", job.ref.job_id)
    assert fenced["ExcNodeList"] == "onprem[1-4]"
    assert world.comment(job).endswith(f"to undo, hpcscale burst undo {job.run_id}")
    move = world.settled(job, 90, FENCE_FIRST)
    assert move.step is Step.FAILED
    assert "boot" in move.message
    assert world.target(job).ended
    after = world.job("lab-onprem", job.ref.job_id)
    assert after["ExcNodeList"] == before["ExcNodeList"]
    assert after["AccrueTime"] == before["AccrueTime"]
    assert world.comment(job) == f"hpcscale={job.submission_id}"
    # it is not tried again at once
    world.tick()
    assert len(world.moves.of_run(job.run_id)) == 1
    decision = make_plan(world.ledger, POLICY, world.connections).decisions[0]
    assert decision.action is Action.STAY
    assert "its last move failed" in decision.reason
    world.lab.site("lab-onprem").exec(["scancel", filler], check=True)
    world.until(
        lambda: world.state("lab-onprem", job.ref.job_id) in {"RUNNING", "COMPLETED"},
        20,
        "the job starts on-prem",
    )


def test_no_start_within_boot_timeout_takes_the_move_back(world):
    world.fill()
    job = world.submit()
    faults.slow_boot(world.lab, LONG_S)
    policy = Policy(
        from_site="lab-onprem",
        to=("lab-cloud",),
        target={"lab-cloud": TargetTerms(boot_timeout_s=3)},
    )
    move = world.settled(job, 40, policy)
    assert move.step is Step.FAILED
    assert "boot_timeout = 3s" in move.message
    assert world.job("lab-onprem", job.ref.job_id)["ExcNodeList"] in {"", "(null)"}
    assert world.state("lab-cloud", world.target(job).job_id) == "CANCELLED"


def test_a_user_who_cancels_on_prem_mid_move_ends_both(world):
    world.fill()
    job = world.submit("sleep 300")
    faults.slow_boot(world.lab, LONG_S)
    world.tick()
    assert world.step(job) is Step.SUBMITTED
    world.lab.site("lab-onprem").exec(["scancel", str(job.ref.job_id)], check=True)
    move = world.settled(job)
    assert move.step is Step.CANCELLED
    assert world.state("lab-cloud", world.target(job).job_id) == "CANCELLED"


def test_a_user_who_cancels_the_cloud_job_before_it_starts_ends_both(world):
    world.fill()
    job = world.submit("sleep 300")
    faults.slow_boot(world.lab, LONG_S)
    world.tick()
    cloud_id = world.target(job).job_id
    world.lab.site("lab-cloud").exec(["scancel", str(cloud_id)], check=True)
    move = world.settled(job)
    assert move.step is Step.CANCELLED
    assert world.state("lab-onprem", job.ref.job_id) == "CANCELLED"


def test_cancelling_the_run_mid_move_ends_both(world):
    world.fill()
    job = world.submit("sleep 300")
    faults.slow_boot(world.lab, LONG_S)
    world.tick()
    done = hpcscale("cancel", "--yes", job.run_id)
    assert done.returncode == 0, done.stderr
    move = world.move(job)  # by this command, without another run
    assert (move.step, move.message) == (Step.CANCELLED, "its user cancelled it")
    assert done.stdout.count(": cancelled") == 2
    assert world.state("lab-onprem", job.ref.job_id) == "CANCELLED"
    assert world.state("lab-cloud", world.target(job).job_id) == "CANCELLED"


def test_a_job_that_starts_on_prem_after_all_wins(world):
    filler = world.fill()
    job = world.submit("sleep 300")
    faults.slow_boot(world.lab, LONG_S)
    world.tick()
    assert world.step(job) is Step.SUBMITTED
    onprem = world.lab.site("lab-onprem")
    onprem.exec(["scancel", filler], check=True)
    world.until(
        lambda: world.state("lab-onprem", job.ref.job_id) == "RUNNING", 20, "it runs on-prem"
    )
    move = world.settled(job)
    assert move.step is Step.WITHDRAWN
    assert "it started on lab-onprem" in move.message
    assert world.state("lab-cloud", world.target(job).job_id) == "CANCELLED"
    assert world.state("lab-onprem", job.ref.job_id) == "RUNNING"
    world.until(lambda: world.starts(job) == 1, 20, "it has begun")


def test_a_lost_fence_is_set_again(world):
    world.fill()
    job = world.submit()
    faults.slow_boot(world.lab, LONG_S)
    world.tick(FENCE_FIRST)
    onprem = world.lab.site("lab-onprem")
    onprem.exec(["scontrol", "update", f"JobId={job.ref.job_id}", "ExcNodeList="], check=True)
    world.tick(FENCE_FIRST)
    assert world.job("lab-onprem", job.ref.job_id)["ExcNodeList"] == "onprem[1-4]"
    faults.slow_boot(world.lab, 0)
    assert world.settled(job).step is Step.DONE
    assert world.move(job).gate_idle_s <= 2, "nobody waits at an open gate"
    assert world.starts(job) == 1


def test_the_users_own_excluded_nodes_come_back_exactly(world):
    world.fill()
    job = world.submit()
    onprem = world.lab.site("lab-onprem")
    onprem.exec(
        ["scontrol", "update", f"JobId={job.ref.job_id}", "ExcNodeList=onprem2"], check=True
    )
    faults.slow_boot(world.lab, LONG_S)
    world.tick(FENCE_FIRST)
    assert world.job("lab-onprem", job.ref.job_id)["ExcNodeList"] == "onprem[1-4]"
    # a list that its user writes over the fence is theirs
    onprem.exec(
        ["scontrol", "update", f"JobId={job.ref.job_id}", "ExcNodeList=onprem3"], check=True
    )
    world.ticks_until(
        lambda: world.job("lab-onprem", job.ref.job_id)["ExcNodeList"] == "onprem[1-4]",
        30, "the fence stands again", FENCE_FIRST,
    )  # fmt: skip
    done = hpcscale("burst", "undo", job.run_id)
    assert done.returncode == 0, done.stderr
    assert world.step(job) is Step.FAILED
    assert world.job("lab-onprem", job.ref.job_id)["ExcNodeList"] == "onprem3"
    assert world.state("lab-cloud", world.target(job).job_id) == "CANCELLED"


@pytest.mark.parametrize("step", ["ending", "unfencing"])
def test_killed_while_taking_back_the_next_run_finishes_it(world, step):
    world.fill()
    job = world.submit()
    faults.slow_boot(world.lab, LONG_S)
    world.tick()
    killed = subprocess.run(
        [sys.executable, "-c", KILL_DRIVER, step, "burst", "undo", job.run_id],
        capture_output=True,
        text=True,
        timeout=patience(120),
        check=False,
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert world.settled(job).step is Step.FAILED
    assert world.job("lab-onprem", job.ref.job_id)["ExcNodeList"] in {"", "(null)"}
    assert world.state("lab-cloud", world.target(job).job_id) == "CANCELLED"


@pytest.mark.slow  # slurmctld saves every few seconds, and restarts; the faked sites show it fast
def test_a_controller_that_dies_and_forgets_the_fence_does_no_harm(world):
    """An acknowledged ExcNodeList is lost when slurmctld dies within about five seconds."""
    world.fill()
    job = world.submit()
    onprem = world.lab.site("lab-onprem")
    saved(onprem)
    faults.slow_boot(world.lab, LONG_S)
    world.tick(FENCE_FIRST)
    assert world.step(job) is Step.CANCELLING
    faults.controller(world.lab, "lab-onprem", "kill")
    assert world.tick().plan is None  # no answer: nothing is done
    assert world.step(job) is Step.CANCELLING
    faults.controller(world.lab, "lab-onprem", "restart")
    faults.slow_boot(world.lab, 0)
    assert world.settled(job).step is Step.DONE
    assert world.state("lab-onprem", job.ref.job_id) == "CANCELLED"
    assert world.starts(job) == 1
