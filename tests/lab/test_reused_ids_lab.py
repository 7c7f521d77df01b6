"""Slurm gives a job's id to another job: after MaxJobId, and after a controller lost its state."""

import shutil

import pytest
from burst_world import World, hpcscale
from lab_helpers import until

from hpcscale.burst.handover import Handover
from hpcscale.burst.moves import Step
from hpcscale.burst.policy import Policy
from hpcscale.lab import faults
from hpcscale.slurm.types import JobState

ONPREM, CLOUD = "lab-onprem", "lab-cloud"
SLOW = Policy(from_site=ONPREM, to=(CLOUD,), max_wait_s=3600, cron_interval_s=300)
# forgotten soon after they end, and then the same six ids again: slurm.conf(5)
FEW_IDS = ("MinJobAge=2", "FirstJobId=1000", "MaxJobId=1005")


@pytest.fixture
def make_world(lab_factory, use_lab, tmp_path):
    worlds = []

    def make(**extra_conf):
        lab = use_lab(lab_factory(boot_delay_s=0.3, extra_conf=extra_conf))
        project = tmp_path / "project"
        project.mkdir()
        worlds.append(World(lab, project))
        return worlds[-1]

    yield make
    for world in worlds:
        world.close()


def stranger(world, site, *options):
    """Another job of the same user and name; its id."""
    argv = ["sbatch", "--parsable", "--job-name=urgent", "--time=5", "--output=/dev/null"]
    done = world.lab.site(site).exec([*argv, *options], stdin="#!/bin/sh\nsleep 300\n", check=True)
    return done.stdout.strip()


def stranger_with(world, site, job_id, *options):
    """A job that Slurm gives this id, once it has forgotten the one that had it."""
    for _ in range(6):
        if (given := stranger(world, site, *options)) == job_id:
            return
        world.lab.site(site).exec(["scancel", given], check=True)
    pytest.fail(f"id {job_id} is not given out again")


def forgotten(world, site, job_id):
    return not world.lab.site(site).exec(["squeue", "-h", "-t", "all", "-j", job_id]).stdout


@pytest.mark.slow  # slurmctld forgets ended jobs at its own pace
def test_a_finished_cloud_jobs_id_is_given_to_another_job(make_world):
    world = make_world(**{CLOUD: FEW_IDS})
    world.fill()
    job = world.submit("sleep 1")
    assert world.settled(job, 90).step is Step.DONE
    target = world.target(job)
    until(lambda: forgotten(world, CLOUD, str(target.job_id)), 90, "the cloud forgets it")
    stranger_with(world, CLOUD, str(target.job_id))
    world.tick()
    done = hpcscale("burst", "reap")
    assert (done.returncode, done.stdout) == (0, "nothing to reap\n"), done.stderr
    done = hpcscale("cancel", "--yes", job.run_id)
    assert done.returncode == 0, done.stderr
    assert world.state(CLOUD, target.job_id) in {"PENDING", "CONFIGURING", "RUNNING"}
    assert world.ledger.attempt(target.submission_id).state is JobState.COMPLETED
    assert world.starts(job) == 1


def submitted(world, job, monkeypatch):
    """A burst process that is killed once the cloud job is submitted."""
    with monkeypatch.context() as patched:
        patched.setattr(Handover, "_submitted", lambda _, move: move)
        world.ticks_until(lambda: world.step(job) is Step.SUBMITTED, 60, "submitted", SLOW)


def untouched(world, number):
    there = world.job(ONPREM, number)
    assert there["JobState"] == "PENDING"
    assert there["ExcNodeList"] in {"", "(null)"}
    assert there.get("Comment", "(null)") in {"", "(null)"}


def lose_state(world, act):
    """The on-prem controller dies and comes back as it was before ``act``; what that returned."""
    saved = world.lab.site(ONPREM).paths.state / "ctld"
    copy = world.project.parent / "state-before"
    faults.controller(world.lab, ONPREM, "restart")  # which writes all of it down
    faults.controller(world.lab, ONPREM, "stop")
    shutil.copytree(saved, copy)
    faults.controller(world.lab, ONPREM, "continue")
    result = act()
    faults.controller(world.lab, ONPREM, "kill")
    shutil.rmtree(saved)
    shutil.copytree(copy, saved)
    faults.controller(world.lab, ONPREM, "restart")
    return result


@pytest.mark.slow  # a lab of its own
def test_a_controller_that_lost_its_state_gives_a_waiting_jobs_id_to_another(make_world):
    world = make_world()
    world.fill()
    job = lose_state(world, world.submit)
    number = str(job.ref.job_id)
    assert stranger(world, ONPREM) == number
    # it is submitted again under another id, and moves; what has its old id now is left alone
    move = world.settled(job, 90)
    assert move.step is Step.DONE
    assert move.origin != job.submission_id
    untouched(world, number)
    done = hpcscale("cancel", "--yes", job.run_id)
    assert done.returncode == 0, done.stderr
    untouched(world, number)
    assert world.starts(job) == 1


@pytest.mark.slow  # a whole handover
def test_a_controller_that_lost_its_state_in_a_handover_gives_the_id_to_another(
    make_world, monkeypatch
):
    """The job was young, so this is no cancel by its user: it begins in the cloud, once."""
    world = make_world()
    world.fill()

    def until_submitted():
        job = world.submit("sleep 1")
        submitted(world, job, monkeypatch)
        return job

    job = lose_state(world, until_submitted)
    assert stranger(world, ONPREM) == str(job.ref.job_id)
    move = world.settled(job, 90, SLOW)
    untouched(world, str(job.ref.job_id))
    assert move.step is Step.DONE, move
    assert world.starts(job) == 1
