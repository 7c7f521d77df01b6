"""Two users on one cluster: each one's burst keeps to its own jobs, and strands nobody else's."""

import os

import pytest
from burst_world import World, hpcscale
from lab_helpers import until

from hpcscale.burst.moves import Step
from hpcscale.burst.plan import Action
from hpcscale.burst.policy import Dependents, Policy

# a lab of its own, and whole handovers; who starts as an ordinary user cannot be two of them
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(300),
    pytest.mark.skipif(os.getuid() != 0, reason="only root submits as somebody else"),
]

ONPREM, CLOUD = "lab-onprem", "lab-cloud"
OTHER_UID = 2  # bin: it exists everywhere
REFUSE = Policy(from_site=ONPREM, to=(CLOUD,), max_wait_s=3600, dependents=Dependents.REFUSE)


@pytest.fixture
def world(lab_factory, use_lab, tmp_path):
    lab = use_lab(lab_factory(boot_delay_s=0.3))
    site = lab.site(ONPREM)
    for path in (lab.state.directory, site.paths.root, site.paths.etc, site.paths.run):
        path.chmod(0o755)  # the other user finds munge and slurm.conf
    project = tmp_path / "project"
    project.mkdir()
    world = World(lab, project)
    yield world
    world.close()


def of_another_user(world, *options, script="exit 0"):
    """Submit on-prem as somebody else; the job id."""
    become = ["setpriv", f"--reuid={OTHER_UID}", f"--regid={OTHER_UID}", "--clear-groups"]
    submit = ["sbatch", "--parsable", "--chdir=/tmp", "--output=/dev/null", "--time=5"]
    done = world.lab.site(ONPREM).exec(
        [*become, *submit, *options], stdin=f"#!/bin/sh\n{script}\n", check=True
    )
    return done.stdout.strip()


@pytest.mark.parametrize(("command", "good"), [("exit 0", True), ("exit 3", False)])
def test_anothers_job_behind_a_moved_job_sees_it_end(world, command, good):
    filler = world.fill()
    job = world.submit(command)
    behind = {
        kind: of_another_user(world, f"--dependency={kind}:{job.ref.job_id}")
        for kind in ("afterok", "afternotok")
    }
    world.ticks_until(lambda: world.step(job) is Step.RELEASING, 90, "ended in the cloud")
    assert world.move(job).stand_in
    world.lab.site(ONPREM).exec(["scancel", filler], check=True)
    assert world.settled(job, 90).step is Step.DONE
    runs, never = ("afterok", "afternotok") if good else ("afternotok", "afterok")
    until(lambda: world.state(ONPREM, behind[runs]) == "COMPLETED", 60, runs)
    assert world.job(ONPREM, behind[never])["Reason"] == "DependencyNeverSatisfied"
    assert world.starts(job) == 1


def test_a_policy_that_refuses_dependents_sees_another_users(world):
    world.fill()
    job = world.submit("sleep 1")
    behind = of_another_user(world, f"--dependency=afterany:{job.ref.job_id}")
    decision = next(d for d in world.tick(REFUSE).plan.decisions if d.run_id == job.run_id)
    assert decision.action is Action.REFUSE
    assert f"{behind} on {ONPREM} depends on it" in decision.reason
    assert not world.moves.of_run(job.run_id)


def test_burst_keeps_off_anothers_jobs_of_the_same_name(world):
    """Same name, a singleton, and a comment copied from ours: it is still somebody else's."""
    filler = world.fill()
    job = world.submit("sleep 1")
    comment = f"--comment=hpcscale={job.submission_id}"
    others = [
        of_another_user(world, "--job-name=urgent", comment, script="sleep 300"),
        of_another_user(world, "--job-name=urgent", "--dependency=singleton", script="sleep 300"),
    ]
    move = world.settled(job, 90)
    assert (move.step, move.stand_in) == (Step.DONE, False)
    assert world.starts(job) == 1
    done = hpcscale("burst", "reap", "--site", ONPREM)
    assert (done.returncode, done.stdout) == (0, "nothing to reap\n"), done.stderr
    done = hpcscale("cancel", "--yes", job.run_id)
    assert done.returncode == 0, done.stderr
    for other in others:
        there = world.job(ONPREM, other)
        assert there["JobState"] == "PENDING"
        assert there["ExcNodeList"] in {"", "(null)"}
    world.lab.site(ONPREM).exec(["scancel", filler], check=True)
    until(lambda: world.state(ONPREM, others[0]) == "RUNNING", 60, "the other user's turn")
