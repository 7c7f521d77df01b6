"""A controller that dies before it has saved a submission, on real Slurm: nothing is lost by it.

What it forgets is chosen: its file of jobs is put back as it was before the submission.
"""

from pathlib import Path

import pytest
from burst_world import World
from lab_helpers import until

from hpcscale.burst.claims import holder
from hpcscale.burst.moves import Step
from hpcscale.burst.policy import Policy
from hpcscale.lab import faults
from hpcscale.ledger import Role
from hpcscale.observe import observe
from hpcscale.slurm.types import JobState

pytestmark = pytest.mark.slow  # tests/unit/test_burst_resubmit.py shows the rest on faked sites
NOWHERE = Policy(from_site="lab-onprem", to=())


@pytest.fixture
def world(lab_env, tmp_path):
    project = tmp_path / "project"
    project.mkdir()
    (project / "hello.txt").write_text("goes along as code")
    world = World(lab_env, project)
    yield world
    world.close()


def job_state(lab, name):
    return lab.site(name).paths.state / "ctld" / "job_state"


def saved(lab, name):
    """What a controller has on disk of its jobs; without any job it has nothing."""
    lab.site(name).exec(["sbatch", "-N1", "--time=1"], stdin="#!/bin/sh\ntrue\n", check=True)
    until(job_state(lab, name).exists, 30, "its first save")
    return job_state(lab, name).read_bytes()


def saved_again(lab, name):
    """The same, with all that is known to it by now: it saves again when a job changes."""
    path = job_state(lab, name)
    for _ in range(2):  # the first may have been under way
        before = path.stat().st_mtime_ns
        lab.site(name).exec(
            ["sbatch", "-N1", "--time=1", "--hold"], stdin="#!/bin/sh\ntrue\n", check=True
        )
        until(lambda old=before: path.stat().st_mtime_ns != old, 30, "its next save")
    return path.read_bytes()


def forget(lab, name, before):
    faults.controller(lab, name, "kill")
    path = job_state(lab, name)
    path.with_name("job_state.old").unlink(missing_ok=True)
    path.write_bytes(before)
    faults.controller(lab, name, "restart")


def test_a_job_that_was_forgotten_with_its_submission_runs_once(world):
    before = saved(world.lab, "lab-onprem")
    world.fill()
    job = world.submit()
    forget(world.lab, "lab-onprem", before)
    assert world.state("lab-onprem", job.ref.job_id) == ""
    attempts = lambda: world.ledger.attempts(job.run_id)  # noqa: E731 # asked again and again
    world.ticks_until(lambda: len(attempts()) == 2, 60, "submitted again", NOWHERE)
    old, new = attempts()
    assert (new.role, new.site) == (Role.ONPREM, "lab-onprem")
    assert holder(world.connections("lab-onprem").transport, old) == new.submission_id
    assert old.ended

    def over():
        observe(world.ledger, world.connections)
        return attempts()[-1].state is JobState.COMPLETED

    world.ticks_until(over, 90, "it has run", NOWHERE)
    assert len(attempts()) == 2
    assert world.starts(job) == 1


@pytest.mark.timeout(1000)
def test_a_cloud_job_that_is_cut_short_by_its_controller_begins_again(world):
    """It forgot the start, and ends what it finds of it on its nodes; often it holds the job."""
    cloud = world.lab.site("lab-cloud")

    def partition(state):
        cloud.exec(["scontrol", "update", "PartitionName=gpu", f"State={state}"], check=True)

    partition("DOWN")
    world.fill()
    job = world.submit(
        'echo "$HPCSCALE_RESTART_COUNT" >> "$HPCSCALE_RUN_DIR/witness"; '
        '[ "$HPCSCALE_RESTART_COUNT" -gt 0 ] || sleep 600'
    )
    world.ticks_until(lambda: world.step(job) is Step.SUBMITTED, 30, "it waits in the cloud")
    before = saved_again(world.lab, "lab-cloud")
    partition("UP")
    world.ticks_until(lambda: world.step(job) is Step.MOVED, 90, "it has begun")
    witness = Path(world.target(job).run_dir) / "witness"

    def starts():
        return cloud.exec(["cat", str(witness)]).stdout.split()

    until(lambda: starts() == ["0"], 30, "its command runs")
    forget(world.lab, "lab-cloud", before)

    def over():
        for node in cloud.nodes:  # as an operator does: "Duplicate jobid" drains them
            if cloud.node_states().get(node, "").startswith("drain"):
                cloud.exec(["scontrol", "update", f"NodeName={node}", "State=RESUME"])
        return world.step(job) is Step.DONE

    # held for 45 s; or begun at the same count, for which its script asks for a requeue: two minutes
    world.ticks_until(over, 400, "it has run")
    first, *others = starts()
    assert first == "0"
    assert len(others) == 1
    assert int(others[0]) > 0
    assert world.target(job).state is JobState.COMPLETED
