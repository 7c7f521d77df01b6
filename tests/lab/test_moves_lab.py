"""What moves on real Slurm besides single jobs: whole arrays, and jobs that others wait for."""

import datetime as dt
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from burst_world import FENCE_FIRST, World, hpcscale
from lab_helpers import sbatch

from hpcscale.burst.claims import Word, decision
from hpcscale.burst.moves import Step
from hpcscale.lab.process import patience
from hpcscale.slurm.types import JobState
from hpcscale.train import checkpoint

pytestmark = pytest.mark.slow  # tests/unit/test_burst_arrays.py shows the same on faked sites


@pytest.fixture
def world(lab_env, tmp_path):
    project = tmp_path / "project"
    project.mkdir()
    (project / "hello.txt").write_text("goes along as code")
    world = World(lab_env, project)
    yield world
    world.close()


def waiting_for(world, dependency):
    """A stranger's job behind ours; its id."""
    done = world.lab.site("lab-onprem").exec(
        ["sbatch", "--parsable", "--job-name=urgent", "--time=5", f"--dependency={dependency}"],
        stdin="#!/bin/sh\nexit 0\n",
        check=True,
    )
    return done.stdout.strip()


def exclusive(world, nodes):
    """A stranger's job that has so many on-prem nodes for itself; its id."""
    job = sbatch(world.lab.site("lab-onprem"), f"-N{nodes}", "--exclusive", script="sleep 900")
    world.until(lambda: world.state("lab-onprem", job) == "RUNNING", 20, "it runs")
    return job


@pytest.mark.parametrize(
    ("command", "ends", "runs", "never"),
    [
        ("exit 0", "COMPLETED", ["afterok", "afterany", "singleton"], ["afternotok"]),
        ("exit 3", "FAILED", ["afternotok", "afterany", "singleton"], ["afterok"]),
    ],
)
def test_jobs_behind_a_moved_job_see_it_end_as_in_the_cloud(world, command, ends, runs, never):
    filler = world.fill()
    job = world.submit(f"sleep 2; {command}")
    terms = {
        kind: waiting_for(world, kind if kind == "singleton" else f"{kind}:{job.ref.job_id}")
        for kind in [*runs, *never]
    }
    world.ticks_until(lambda: world.step(job) is Step.MOVED, 60, "moved")
    assert world.move(job).stand_in
    assert world.state("lab-onprem", job.ref.job_id) == "PENDING"
    world.ticks_until(lambda: world.step(job) is Step.RELEASING, 60, "the cloud job has ended")
    world.lab.site("lab-onprem").exec(["scancel", filler], check=True)
    move = world.settled(job, 90)
    assert (move.step, move.stand_in) == (Step.DONE, True)
    stood_in = world.job("lab-onprem", job.ref.job_id)
    assert stood_in["JobState"] == ends
    assert stood_in["RunTime"] in {"00:00:00", "00:00:01", "00:00:02"}
    for kind in runs:
        world.until(
            lambda kind=kind: world.state("lab-onprem", terms[kind]) == "COMPLETED", 60, kind
        )
    for kind in never:
        assert world.job("lab-onprem", terms[kind])["Reason"] == "DependencyNeverSatisfied"
    assert world.starts(job) == 1


def test_a_singleton_chain_of_moving_jobs_keeps_its_order(world):
    """Two that move, and a stranger's behind them: each begins when those before it have ended."""
    onprem, cloud = world.lab.site("lab-onprem"), world.lab.site("lab-cloud")
    # three nodes stay full: there is room for a stand-in and for the stranger's, for ours never
    _, room = (exclusive(world, nodes) for nodes in (3, 1))
    told = "date +%s.%N > $HPCSCALE_RUN_DIR/began; sleep 2; date +%s.%N > $HPCSCALE_RUN_DIR/ended"
    first = world.submit(told)
    second = world.submit(told, after=("singleton",))
    third = waiting_for(world, "singleton")

    def at(job, what):
        assert world.target(job).site == "lab-cloud"
        directory = f"{world.connections('lab-cloud').state_dir}/runs/{job.run_id}"
        return float(cloud.exec(["cat", f"{directory}/{what}"], check=True).stdout)

    world.ticks_until(lambda: world.step(first) is Step.RELEASING, 90, "ended in the cloud")
    assert world.moves.of_run(second.run_id) == [], "it does not move before its time"
    for job in (str(second.ref.job_id), third):
        assert world.job("lab-onprem", job)["Reason"] == "Dependency"
    onprem.exec(["scancel", room], check=True)
    assert world.settled(first, 90).step is Step.DONE
    world.ticks_until(lambda: world.moves.of_run(second.run_id), 60, "the second begins to move")
    world.ticks_until(lambda: world.step(second).settled, 120, "and has moved")
    assert (world.step(second), world.move(second).stand_in) == (Step.DONE, True)
    assert at(first, "ended") < at(second, "began")
    world.until(lambda: world.state("lab-onprem", third) == "COMPLETED", 60, "then the third")
    start = dt.datetime.fromisoformat(world.job("lab-onprem", third)["StartTime"]).astimezone()
    assert start.timestamp() > at(second, "ended") - 1, "Slurm tells whole seconds"
    assert [world.starts(job) for job in (first, second)] == [1, 1]


@pytest.mark.parametrize("policy", [None, FENCE_FIRST], ids=["gate-first", "fence-first"])
def test_an_array_with_a_limit_moves_whole(world, policy):
    world.fill()
    job = world.submit("sleep 1; exit $((SLURM_ARRAY_TASK_ID == 5 ? 4 : 0))", array="1,3,5%1")
    settled = world.settled(job, 120) if policy is None else world.settled(job, 120, policy)
    assert settled.step is Step.DONE, settled
    target = world.target(job)
    ends = {k: (e.state, e.exit_code) for k, e in world.ledger.elements(target).items()}
    assert ends == {
        1: (JobState.COMPLETED, 0), 3: (JobState.COMPLETED, 0), 5: (JobState.FAILED, 4),
    }  # fmt: skip
    assert world.starts(job) == 3
    assert world.ledger.attempt(job.submission_id).state is JobState.CANCELLED
    states = [
        e.state for e in world.ledger.elements(world.ledger.attempt(job.submission_id)).values()
    ]
    assert set(states) <= {JobState.CANCELLED}


def test_an_array_behind_which_a_job_waits_ends_element_by_element(world):
    filler = world.fill()
    job = world.submit("sleep 1; exit $((SLURM_ARRAY_TASK_ID == 2 ? 4 : 0))", array="1-2")
    behind = {
        kind: waiting_for(world, f"{kind}:{job.ref.job_id}") for kind in ("afterany", "afterok")
    }
    world.ticks_until(lambda: world.step(job) is Step.RELEASING, 120, "ended in the cloud")
    world.lab.site("lab-onprem").exec(["scancel", filler], check=True)
    assert world.settled(job, 90).step is Step.DONE
    origin = world.ledger.attempt(job.submission_id)
    ends = {k: (e.state, e.exit_code) for k, e in world.ledger.elements(origin).items()}
    assert ends == {1: (JobState.COMPLETED, 0), 2: (JobState.FAILED, 4)}
    world.until(
        lambda: world.state("lab-onprem", behind["afterany"]) == "COMPLETED", 60, "afterany"
    )
    assert world.job("lab-onprem", behind["afterok"])["Reason"] == "DependencyNeverSatisfied"


KILL_WITH_THE_CLAIM = """
import os, signal
from hpcscale.burst.handover import Handover
from hpcscale.cli import run
def die(self, move):
    os.kill(os.getpid(), signal.SIGKILL)
Handover._opening = die
run()
"""


def test_a_fence_whose_owner_never_comes_back_is_lifted_from_another_login_node(world, tmp_path):
    world.fill()
    job = world.submit("sleep 1")
    policy = tmp_path / "P.toml"
    policy.write_text('from = "lab-onprem"\nto = ["lab-cloud"]\ncron_interval = "4s"\n')
    killed = subprocess.run(
        [sys.executable, "-c", KILL_WITH_THE_CLAIM, "burst", "run", "--policy", str(policy), "--wait"],
        capture_output=True, text=True, timeout=patience(120), check=False,
    )  # fmt: skip
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert world.job("lab-onprem", job.ref.job_id)["ExcNodeList"] == "onprem[1-4]"
    target = world.target(job)
    elsewhere = {**os.environ, "HPCSCALE_STATE_DIR": str(tmp_path / "other-login-node")}
    world.until(
        lambda: world.state("lab-cloud", target.job_id) == "FAILED", 60, "its lease runs out"
    )
    done = hpcscale("burst", "reap", "--site", "lab-onprem", env=elsewhere)
    assert done.returncode == 0, done.stderr
    assert "fence lifted" in done.stdout
    assert "never begin (expired)" in done.stdout
    assert world.job("lab-onprem", job.ref.job_id)["ExcNodeList"] in {"", "(null)"}
    assert world.comment(job) == f"hpcscale={job.submission_id}"
    assert decision(world.connections("lab-cloud").transport, target) is Word.EXPIRED
    filler = world.lab.site("lab-onprem").exec(["squeue", "-h", "-t", "R", "-o", "%i"]).stdout
    world.lab.site("lab-onprem").exec(["scancel", *filler.split()], check=True)
    world.until(
        lambda: world.state("lab-onprem", job.ref.job_id) == "COMPLETED", 60, "it runs on-prem"
    )
    assert world.starts(job) == 1
    assert world.settled(job).step in {Step.FAILED, Step.WITHDRAWN, Step.CANCELLED}


def test_a_step_that_was_replaced_finds_out_before_it_commits(world):
    shutil.copy(Path(checkpoint.__file__), world.project / "checkpoint.py")
    job = world.submit(
        "python3 -c 'import checkpoint, time\n"
        "while not checkpoint.superseded(): time.sleep(0.2)\n"
        "checkpoint._require_claim()'"
    )
    onprem = world.lab.site("lab-onprem")
    state = job.run_dir.rpartition("/runs/")[0]
    mine = f"{state}/claims/{job.run_id}.{job.submission_id}.0"
    world.until(lambda: onprem.exec(["test", "-e", mine]).returncode == 0, 40, "it has its claim")
    assert world.state("lab-onprem", job.ref.job_id) == "RUNNING"
    # Slurm has lost sight of its nodes and begun it again: what that start's script would write
    later = f"{state}/claims/{job.run_id}.{job.submission_id}.1"
    onprem.exec(["sh", "-c", f"echo '{job.submission_id} 1' > {later}"], check=True)
    world.until(lambda: world.state("lab-onprem", job.ref.job_id) == "FAILED", 40, "it ends")
    assert world.job("lab-onprem", job.ref.job_id)["ExitCode"] == "96:0"
