"""Controllers that die before they have saved a submission, on real Slurm: nothing is lost by it.

What they forget is chosen: their file of jobs is put back as it was before the submission.
"""

import pytest
from burst_world import World, hpcscale
from lab_helpers import until

from hpcscale.burst.claims import Word, decision, holder
from hpcscale.burst.elements import element_run_id
from hpcscale.burst.moves import Moves, Step
from hpcscale.burst.policy import Policy
from hpcscale.lab import faults
from hpcscale.ledger import Role
from hpcscale.observe import observe
from hpcscale.slurm.types import JobState

pytestmark = pytest.mark.slow  # tests/unit/test_burst_resubmit.py and _elements.py show it faked
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
    """What a controller has on disk of its jobs."""
    until(job_state(lab, name).exists, 30, "its first save")
    return job_state(lab, name).read_bytes()


def forget(lab, name, before):
    faults.controller(lab, name, "kill")
    path = job_state(lab, name)
    path.with_name("job_state.old").unlink(missing_ok=True)
    path.write_bytes(before)
    faults.controller(lab, name, "restart")


@pytest.mark.parametrize("by", ["burst run", "tend"])
def test_a_job_that_was_forgotten_with_its_submission_runs_once(world, by):
    before = saved(world.lab, "lab-onprem")
    world.fill()
    job = world.submit()
    forget(world.lab, "lab-onprem", before)
    assert world.state("lab-onprem", job.ref.job_id) == ""
    attempts = lambda: world.ledger.attempts(job.run_id)  # noqa: E731 # asked again and again
    if by == "tend":
        done = hpcscale("tend")
        assert f"{job.run_id}: " in done.stdout, done.stdout + done.stderr
        assert "submitted again" in done.stdout
    else:
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


def test_elements_that_were_forgotten_before_they_began_begin_once(world):
    before = saved(world.lab, "lab-cloud")
    world.fill()
    job = world.submit("sleep 1", array="0-2%2")
    world.ticks_until(
        lambda: world.moves.of_run(job.run_id) and world.step(job) is Step.MOVED, 90, "moved"
    )
    target = world.target(job)
    cloud = world.connections("lab-cloud")
    assert decision(cloud.transport, target) is Word.OPENED
    forget(world.lab, "lab-cloud", before)
    world.ticks_until(lambda: world.step(job).settled, 180, "settled")
    assert world.step(job) is Step.DONE
    again = Moves(world.ledger).of_run(element_run_id(job.run_id, 2))
    assert [m.step for m in again] == [Step.DONE], again
    second = again[-1].target
    assert holder(cloud.transport, target.element(2)) == second
    run_dirs = [target.run_dir, world.ledger.attempt(second).run_dir]
    events = [f"{run_dir}/events" for run_dir in run_dirs]
    found = world.lab.site("lab-cloud").exec(["find", *events, "-name", "*.started"])
    tasks = sorted(line.partition(".task")[2][0] for line in found.stdout.split())
    assert tasks == ["0", "1", "2"]
