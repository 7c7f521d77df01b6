"""A controller that dies before it has saved a submission, on real Slurm: nothing is lost by it.

What it forgets is chosen: its file of jobs is put back as it was before the submission.
"""

import pytest
from burst_world import World
from lab_helpers import until

from hpcscale.burst.claims import holder
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


def test_what_waits_for_a_forgotten_job_waits_for_its_run_again(world):
    """Its controller gives its id to a stranger's job meanwhile, for which nobody waits."""
    before = saved(world.lab, "lab-onprem")
    onprem = world.lab.site("lab-onprem")
    world.fill()
    first = world.submit()
    second = world.submit(after=(f"afterok:{first.ref.job_id}",))
    forget(world.lab, "lab-onprem", before)
    strangers = []
    while not strangers or strangers[-1] < second.ref.job_id.base:
        done = onprem.exec(
            ["sbatch", "--parsable", "--hold"], stdin="#!/bin/sh\ntrue\n", check=True
        )
        strangers.append(int(done.stdout))
    assert first.ref.job_id.base in strangers
    newest = lambda job: world.ledger.attempts(job.run_id)[-1]  # noqa: E731 # asked again and again
    world.ticks_until(
        lambda: min(newest(first).number, newest(second).number) == 2,
        60,
        "submitted again",
        NOWHERE,
    )
    waits = world.job("lab-onprem", newest(second).job_id)["Dependency"]
    assert waits == f"afterok:{newest(first).job_id}(unfulfilled)"

    def over():
        observe(world.ledger, world.connections)
        return newest(second).state is JobState.COMPLETED

    world.ticks_until(over, 90, "both have run", NOWHERE)
    assert newest(first).state is JobState.COMPLETED
    assert world.starts(first) == world.starts(second) == 1
