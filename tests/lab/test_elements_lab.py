"""Elements of an array that move alone, on real Slurm."""

import re

import pytest
from burst_world import FENCE_FIRST, World, hpcscale

from hpcscale.burst.elements import element_run_id
from hpcscale.burst.moves import Step
from hpcscale.connect import connect
from hpcscale.observe import observe
from hpcscale.render import render
from hpcscale.site import load_site
from hpcscale.slurm.types import JobState
from hpcscale.spec import BurstMode, BurstTerms, JobSpec, Resources
from hpcscale.submit import submit

pytestmark = pytest.mark.slow  # tests/unit/test_burst_elements.py shows the same on faked sites


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
        ["sbatch", "--parsable", "--job-name=behind", "--time=5", f"--dependency={dependency}"],
        stdin="#!/bin/sh\nexit 0\n",
        check=True,
    )
    return done.stdout.strip()


def submit_alone(world, command):
    """An array of three, of whose elements each wants two nodes for itself."""
    spec = JobSpec(
        name="urgent",
        command=("sh", "-c", command),
        array="0-2",
        workdir=str(world.project),
        resources=Resources(nodes=2, exclusive=True, time_limit_s=600),
        burst=BurstTerms(mode=BurstMode.ONLY),
    )
    site = load_site("lab-onprem").site
    with connect(site) as connection:
        return submit(render(spec, site), site, connection, world.ledger)


@pytest.fixture
def begun(world):
    """An array of which one element runs on-prem and two find no nodes there."""
    onprem = world.lab.site("lab-onprem")
    done = onprem.exec(
        ["sbatch", "--parsable", "-N2", "--exclusive", "--time=60"],
        stdin="#!/bin/sh\nsleep 600\n", check=True,
    )  # fmt: skip
    filler = done.stdout.strip()
    world.until(lambda: world.state("lab-onprem", filler) == "RUNNING", 20, "filler runs")
    go = "until [ -e $HPCSCALE_RUN_DIR/go ]; do sleep 0.2; done"
    command = f"[ $SLURM_ARRAY_TASK_ID != 0 ] || {go}; exit $((SLURM_ARRAY_TASK_ID == 2 ? 4 : 0))"
    job = submit_alone(world, command)
    base = job.ref.job_id
    world.until(lambda: world.state("lab-onprem", f"{base}_0") == "RUNNING", 30, "one has begun")
    return job, lambda: onprem.exec(["touch", f"{job.run_dir}/go"], check=True), filler


def alone(world, job, task):
    """The move of one element."""
    return world.moves.of_run(element_run_id(job.run_id, task))[-1]


def reports(world, site, run_id):
    state = world.connections(site).state_dir
    found = world.lab.site(site).exec(
        ["find", f"{state}/runs/{run_id}/events", "-name", "*.started"]
    )
    return sorted(re.search(r"task\d+", line)[0] for line in found.stdout.split())


def test_elements_move_alone_while_another_runs_on_prem(world, begun):
    job, go, _ = begun
    behind = waiting_for(world, f"afterany:{job.ref.job_id}")
    world.ticks_until(
        lambda: all(world.moves.of_run(element_run_id(job.run_id, k)) for k in (1, 2)), 60, "moves"
    )
    world.ticks_until(
        lambda: all(alone(world, job, k).step is Step.RELEASING for k in (1, 2)), 120, "ended there"
    )
    assert world.state("lab-onprem", f"{job.ref.job_id}_0") == "RUNNING"
    assert all(alone(world, job, k).stand_in for k in (1, 2)), "a job waits for the array"
    go()
    world.ticks_until(
        lambda: all(alone(world, job, k).step.settled for k in (1, 2)), 120, "stand-ins ended"
    )
    assert {alone(world, job, k).step for k in (1, 2)} == {Step.DONE}
    assert reports(world, "lab-onprem", job.run_id) == ["task0"]
    for task in (1, 2):
        run_id = element_run_id(job.run_id, task)
        assert reports(world, "lab-cloud", run_id) == [f"task{task}"]
    world.until(lambda: world.state("lab-onprem", behind) == "COMPLETED", 90, "the job behind it")
    observe(world.ledger, world.connections)
    origin = world.ledger.attempt(job.submission_id)
    ends = {k: (e.state, e.exit_code) for k, e in world.ledger.elements(origin).items()}
    assert ends == {
        0: (JobState.COMPLETED, 0), 1: (JobState.COMPLETED, 0), 2: (JobState.FAILED, 4),
    }  # fmt: skip


def test_an_element_that_moved_is_gone_from_its_array_and_the_run_knows(world, begun):
    job, go, _ = begun
    element = f"{job.ref.job_id}_1"
    world.ticks_until(
        lambda: world.moves.of_run(element_run_id(job.run_id, 1))
        and alone(world, job, 1).step in {Step.MOVED, Step.DONE},
        90, "moved",
    )  # fmt: skip
    assert world.state("lab-onprem", element) in {"", "CANCELLED"}
    gone = world.ledger.elements(world.ledger.attempt(job.submission_id))[1]
    assert gone.reason.startswith("moved to lab-cloud:")
    go()
    world.ticks_until(
        lambda: all(alone(world, job, k).step.settled for k in (1, 2)), 120, "both have ended"
    )
    done = hpcscale("wait", job.run_id)
    assert done.returncode == 6, done.stderr + done.stdout
    runs = {k: element_run_id(job.run_id, k) for k in (1, 2)}
    assert f"{job.run_id}: COMPLETED" in done.stdout
    assert f"{runs[1]}: COMPLETED" in done.stdout
    assert f"{runs[2]}: FAILED (exit 4)" in done.stdout
    assert "moved to lab-cloud:" in hpcscale("status", job.run_id).stdout


@pytest.mark.parametrize("policy", [None, FENCE_FIRST], ids=["gate-first", "fence-first"])
def test_an_element_taken_back_runs_on_prem(world, begun, policy, monkeypatch):
    job, _, filler = begun
    with monkeypatch.context() as patch:
        patch.setattr("hpcscale.burst.handover.Handover._opening", lambda self, move: move)
        world.ticks_until(
            lambda: world.moves.of_run(element_run_id(job.run_id, 1))
            and alone(world, job, 1).step is Step.OPENING,
            90, "claimed", *([policy] if policy else []),
        )  # fmt: skip
    element, run_id = f"{job.ref.job_id}_1", element_run_id(job.run_id, 1)
    fenced = world.job("lab-onprem", element)
    assert fenced["ExcNodeList"] == "onprem[1-4]"
    done = hpcscale("burst", "undo", f"lab-onprem:{element}")
    assert done.returncode == 0, done.stderr
    assert alone(world, job, 1).step is Step.FAILED, done.stdout
    free = world.job("lab-onprem", element)
    assert free["ExcNodeList"] in {"", "(null)"}
    assert free["AccrueTime"] == fenced["AccrueTime"]
    world.lab.site("lab-onprem").exec(["scancel", filler], check=True)
    world.until(lambda: world.state("lab-onprem", element) == "COMPLETED", 90, "it runs on-prem")
    assert "task1" in reports(world, "lab-onprem", job.run_id)
    assert reports(world, "lab-cloud", run_id) == []
