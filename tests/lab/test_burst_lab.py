"""The overflow on real Slurm: two sites, every failure that the handover must survive.

What needs cloud nodes that are switched off is in test_burst_boots_lab.py.
"""

import datetime as dt
import json
import os
import signal
import subprocess
import sys
import time
from decimal import Decimal

import pytest
from burst_world import KILL_DRIVER, World, hpcscale
from lab_helpers import impatient

from hpcscale.burst import lock as lock_module
from hpcscale.burst.handover import Handover
from hpcscale.burst.moves import Moves, Step
from hpcscale.burst.plan import Action
from hpcscale.burst.run import jobs_folder, lock_path
from hpcscale.errors import BurstRefusedError
from hpcscale.lab import faults
from hpcscale.lab.process import patience
from hpcscale.ledger import Ledger
from hpcscale.slurm.types import JobState
from hpcscale.spec import BurstMode


@pytest.fixture
def world(lab_env, tmp_path):
    project = tmp_path / "project"
    project.mkdir()
    (project / "hello.txt").write_text("goes along as code")
    world = World(lab_env, project)
    yield world
    world.close()


@pytest.fixture
def policy_file(tmp_path):
    path = tmp_path / "P.toml"
    path.write_text('from = "lab-onprem"\nto = ["lab-cloud"]\nmax_wait = "1h"\n')
    return path


def test_a_job_with_a_deadline_overflows_and_finishes_in_the_cloud(world, policy_file):
    world.fill()
    deadline = dt.datetime.now(dt.UTC) + dt.timedelta(seconds=620)
    job = world.submit("echo done on $(hostname)", mode=BurstMode.AUTO, deadline=deadline)
    done = hpcscale("burst", "plan", "--policy", str(policy_file), "--json")
    assert done.returncode == 0, done.stderr
    (planned,) = json.loads(done.stdout)["data"]["decisions"]
    assert (planned["action"], planned["rule"], planned["to"]) == ("move", "deadline", "lab-cloud")
    assert Decimal(planned["cost_usd"]) > 0
    assert world.moves.all() == [], "a plan acts on nothing"
    assert world.state("lab-onprem", job.ref.job_id) == "PENDING"

    done = hpcscale("burst", "run", "--policy", str(policy_file), "--wait", "--json")
    assert done.returncode == 0, done.stderr
    (moved,) = json.loads(done.stdout)["data"]["moves"]
    assert moved["step"] == "done"
    assert moved["target_state"] == "COMPLETED"
    assert "its deadline" in moved["reason"]

    target, origin = world.target(job), world.ledger.attempt(job.submission_id)
    assert origin.state is JobState.CANCELLED
    assert origin.reason == f"moved to {target.ref}"
    assert target.cost_usd is not None
    assert target.cost_usd <= Decimal(planned["cost_usd"])
    assert target.fetched
    logs = list((lock_path().parent / "runs" / job.run_id).rglob("*.log"))
    assert any("done on cloud" in log.read_text() for log in logs)
    assert world.starts(job) == 1
    kinds = [e.kind for e in world.ledger.events(job.run_id)]
    assert kinds.index("move.submitting") < kinds.index("move.submitted")
    assert kinds.index("move.cancelling") < kinds.index("attempt.handed_over")
    (decision,) = world.ledger.decisions(job.run_id)
    assert decision.data["decision"]["to"] == "lab-cloud"
    assert (
        world.job("lab-onprem", job.ref.job_id)["StartTime"]
        == (world.job("lab-onprem", job.ref.job_id)["EndTime"])
    ), "it never held a node on-prem"


def test_over_its_maximum_cost_a_job_stays_and_the_plan_says_so(world):
    world.fill()
    job = world.submit(max_cost_usd=Decimal("0.01"))
    done = world.tick()
    (decision,) = done.plan.decisions
    assert decision.action is Action.REFUSE
    assert "over its --max-cost $0.01" in decision.reason
    assert world.moves.all() == []
    assert world.cloud_jobs() == []
    assert world.job("lab-onprem", job.ref.job_id)["ExcNodeList"] in {"", "(null)"}


def test_a_refusal_of_the_cloud_takes_the_move_back(world):
    world.fill()
    job = world.submit()
    cloud = world.lab.site("lab-cloud")
    cloud.exec(["scontrol", "update", "PartitionName=gpu", "State=DRAIN"], check=True)
    try:
        move = world.settled(job)
    finally:
        cloud.exec(["scontrol", "update", "PartitionName=gpu", "State=UP"], check=True)
    assert move.step is Step.FAILED
    assert "lab-cloud refused it" in move.message
    assert world.cloud_jobs() == []
    assert world.job("lab-onprem", job.ref.job_id)["ExcNodeList"] in {"", "(null)"}
    assert world.state("lab-onprem", job.ref.job_id) == "PENDING"


def test_undo_is_refused_once_the_job_runs_in_the_cloud(world):
    world.fill()
    job = world.submit("sleep 30")
    world.ticks_until(lambda: world.step(job) is Step.MOVED, 60, "moved")
    handover = Handover(world.ledger, world.connections, jobs_folder())
    with pytest.raises(BurstRefusedError, match="already runs on lab-cloud"):
        handover.undo(world.move(job))


def test_a_user_who_cancels_after_the_move_ends_the_cloud_job(world):
    world.fill()
    job = world.submit("sleep 300")
    world.ticks_until(lambda: world.step(job) is Step.MOVED, 60, "moved")
    world.lab.site("lab-cloud").exec(["scancel", str(world.target(job).job_id)], check=True)
    move = world.settled(job)
    assert move.step is Step.DONE
    assert "ended CANCELLED" in move.message


@pytest.mark.parametrize(
    "step",
    [
        "submitting",
        "submitted",
        "fencing",
        "fencing+",
        "claiming",
        "opening",
        "cancelling",
        "moved",
    ],
)
def test_killed_at_any_step_the_next_run_goes_on(world, policy_file, step):
    world.fill()
    job = world.submit()
    for _ in range(40):
        killed = subprocess.run(
            [sys.executable, "-c", KILL_DRIVER, step, "burst", "run", "--policy", str(policy_file)],
            capture_output=True,
            text=True,
            timeout=patience(120),
            check=False,
        )
        if killed.returncode == -signal.SIGKILL:
            break
        assert killed.returncode == 0, killed.stderr
        time.sleep(0.5)
    else:
        pytest.fail(f"step {step} was never reached")
    assert lock_path().exists(), "the dead process left its lock"
    assert world.step(job).value == step.rstrip("+")
    done = hpcscale("burst", "run", "--policy", str(policy_file), "--wait")
    assert done.returncode == 0, done.stderr
    assert world.step(job) is Step.DONE
    assert world.target(job).state is JobState.COMPLETED
    assert world.state("lab-onprem", job.ref.job_id) == "CANCELLED"
    assert len(world.cloud_jobs()) == 1
    assert world.starts(job) == 1


def test_a_cloud_submission_without_a_reply_is_found_and_not_repeated(world):
    world.fill()
    job = world.submit()
    faults.ssh_cut(world.lab, "after", match="sbatch")
    move = world.settled(job, 90)
    assert (move.step, move.message) == (Step.DONE, f"{world.target(job).ref} ended COMPLETED")
    assert len(world.cloud_jobs()) == 1
    assert world.starts(job) == 1


def test_two_runs_at_once_are_harmless(world, policy_file):
    world.fill()
    job = world.submit()
    argv = [
        sys.executable,
        "-m",
        "hpcscale",
        "burst",
        "run",
        "--policy",
        str(policy_file),
        "--wait",
    ]
    both = [
        subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    outputs = [p.communicate(timeout=patience(120)) for p in both]
    assert [p.returncode for p in both] == [0, 0], outputs
    assert any("another `hpcscale burst run` is at work" in err for _, err in outputs)
    assert world.step(job) is Step.DONE
    assert len(world.cloud_jobs()) == 1
    assert not lock_path().exists()


def test_two_processes_that_both_pass_the_lock_submit_once(world):
    """The lock only saves work: each step is a compare-and-set."""
    world.fill()
    job = world.submit()
    with Ledger.open() as other:
        first = Moves(world.ledger)
        world.tick()
        stale = first.of_run(job.run_id)[0]
        assert Moves(other).save(stale, message="mine") is not None
        assert first.save(stale, step=Step.CANCELLING) is None
    assert world.settled(job).step is Step.DONE
    assert len(world.cloud_jobs()) == 1


def test_no_answer_from_a_controller_changes_nothing(world, policy_file):
    world.fill()
    job = world.submit()
    world.lab.site("lab-onprem").stop("slurmctld")
    with impatient(world.lab):
        done = hpcscale("burst", "run", "--policy", str(policy_file))
    assert done.returncode == 5, done.stderr
    assert "Traceback" not in done.stderr
    assert world.moves.all() == []
    faults.controller(world.lab, "lab-onprem", "restart")
    world.until(
        lambda: world.state("lab-onprem", job.ref.job_id) == "PENDING", 20, "controller is back"
    )
    assert world.settled(job).step is Step.DONE


def test_an_unreachable_cloud_leaves_the_job_waiting_until_it_is_back(world):
    world.fill()
    job = world.submit()
    faults.ssh_cut(world.lab, "refuse")
    world.tick()
    assert world.step(job) is Step.SUBMITTING
    assert world.state("lab-onprem", job.ref.job_id) == "PENDING"
    faults.ssh_cut(world.lab, "normal")
    assert world.settled(job).step is Step.DONE
    assert world.starts(job) == 1


def test_a_stale_lock_of_a_killed_run_does_not_stop_the_next(world, policy_file):
    dead = lock_module._myself()
    path = lock_path()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        json.dumps(
            {"host": dead.host, "pid": os.getpid(), "boot_id": dead.boot_id, "started": "1",
             "token": "dead"}
        )
    )  # fmt: skip
    done = hpcscale("burst", "run", "--policy", str(policy_file))
    assert done.returncode == 0, done.stderr
    assert "nothing to move" in done.stdout
