"""A function that the handover moves: the job that submit() gave follows it."""

import pickle
import sys

import cloudpickle
import pytest
import submitit
from burst_world import World
from lab_helpers import until
from submitit.core import plugins, utils

from hpcscale.burst.elements import element_run_id
from hpcscale.burst.moves import Step
from hpcscale.burst.policy import Policy
from hpcscale.executor import probe, watch

# whole moves on real Slurm
pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]
POLICY = Policy(from_site="lab-onprem", to=("lab-cloud",), max_wait_s=5)


class Moving(World):
    """What a submitted function's job is asked."""

    def step(self, submission):
        """Where its move stands; None before there is one."""
        moves = self.moves.of_run(submission.run_id)
        return moves[-1].step if moves else None

    def of(self, job):
        """Its run, as ``World`` wants it."""
        return self.ledger.attempt(job.submission_id)


@pytest.fixture
def world(lab_env, tmp_path, monkeypatch):
    plugins._get_plugins.cache_clear()
    plugins.get_executors.cache_clear()
    for name in ("_WATCHERS", "_LEDGERS"):
        monkeypatch.setattr(watch, name, {})
    monkeypatch.setattr(probe, "_SEEN", set())
    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    world = Moving(lab_env, tmp_path)
    yield world
    cloudpickle.unregister_pickle_by_value(sys.modules[__name__])
    world.close()


def executor(folder, **parameters):
    made = submitit.AutoExecutor(
        folder, cluster="hpcscale", hpcscale_site="lab-onprem", hpcscale_software="lab-python",
        hpcscale_burst="auto",
    )  # fmt: skip
    made.update_parameters(timeout_min=10, gpus_per_node=1, **parameters)
    return made


def work(seconds, fails=False):
    import platform
    import time

    print("begins on", platform.node(), flush=True)
    time.sleep(seconds)
    if fails:
        raise ValueError("no luck there")
    return platform.node()


@pytest.mark.parametrize("nodes", [1, 2])
def test_result_state_and_log_come_from_where_it_went(world, tmp_path, nodes):
    world.fill()
    job = executor(tmp_path / "jobs", nodes=nodes).submit(work, 3)
    origin, first = world.of(job), (job.site, job.job_id)
    assert job.state == "PENDING"
    again = pickle.loads(pickle.dumps(job))
    world.ticks_until(lambda: world.step(origin) is Step.MOVED, 90, "it moves", POLICY)
    assert job.state in {"RUNNING", "COMPLETING", "COMPLETED"}
    assert (job.site, job.job_id) != first
    assert job.site == "lab-cloud"
    found = job.results()
    assert [name.startswith("cloud") for name in found] == [True] * nodes
    assert "begins on cloud" in job.stdout()
    assert job.exception() is None
    assert job.submission().args == (3,)
    assert job.done()
    # a job of an earlier session, and one by its id at the first site
    assert again.results() == found
    assert world.settled(origin, policy=POLICY).step is Step.DONE
    assert world.starts(origin) == 1


def test_a_failure_there_is_the_jobs_failure(world, tmp_path):
    world.fill()
    job = executor(tmp_path / "jobs").submit(work, 0, fails=True)
    origin = world.of(job)
    world.ticks_until(
        lambda: (step := world.step(origin)) and step.settled, 90, "it moves and ends", POLICY
    )
    with pytest.raises(utils.FailedJobError, match="no luck there"):
        job.result()
    assert job.site == "lab-cloud"
    assert job.outcome()["function"]["message"] == "no luck there"


def test_cancel_ends_it_where_it_runs(world, tmp_path):
    world.fill()
    job = executor(tmp_path / "jobs").submit(work, 120)
    origin = world.of(job)
    world.ticks_until(lambda: world.step(origin) is Step.MOVED, 90, "it moves", POLICY)
    until(lambda: "begins" in (job.stdout() or ""), 40, "it runs")
    job.cancel()
    assert job.site == "lab-cloud"
    until(lambda: job.done(force_check=True), 60, "it ends")
    assert job.state == "CANCELLED"
    with pytest.raises(utils.UncompletedJobError):
        job.result()


def element(k, go):
    import platform
    import time
    from pathlib import Path

    print("element", k, "begins on", platform.node(), flush=True)
    while k == 0 and not Path(go).exists():
        time.sleep(0.2)
    if k == 3:
        raise ValueError("no luck there")
    return k, platform.node()


def test_elements_that_move_alone_are_followed_and_the_others_stay(world, tmp_path):
    onprem = world.lab.site("lab-onprem")
    done = onprem.exec(
        ["sbatch", "--parsable", "-N2", "--exclusive", "--time=60"],
        stdin="#!/bin/sh\nsleep 600\n", check=True,
    )  # fmt: skip
    until(lambda: world.state("lab-onprem", done.stdout.strip()) == "RUNNING", 20, "filler runs")
    go = onprem.paths.scratch / "go"
    made = executor(tmp_path / "jobs", nodes=2)
    made.update_parameters(gpus_per_node=4)  # each wants both nodes that are left
    jobs = made.map_array(element, range(4), [str(go)] * 4)
    origin, ids = world.of(jobs[0]), [job.job_id for job in jobs]
    base = ids[0].partition("_")[0]
    assert ids == [f"{base}_{k}" for k in range(4)]
    until(lambda: world.state("lab-onprem", ids[0]) == "RUNNING", 30, "the first has begun")
    again = pickle.loads(pickle.dumps(jobs))

    def ended():
        moves = [world.moves.of_run(element_run_id(origin.run_id, k)) for k in (1, 2, 3)]
        return all(m and m[-1].step.settled for m in moves)

    world.ticks_until(ended, 120, "three have moved and ended", POLICY)
    # the moved ones have their results while the first still runs at home
    for moved in (jobs, again):
        assert [job.site for job in moved] == ["lab-onprem"] * 4, "nobody has asked yet"
        for k in (1, 2):
            assert [value[0] for value in moved[k].results()] == [k, k]
            assert all(value[1].startswith("cloud") for value in moved[k].results())
            assert (moved[k].site, moved[k].done()) == ("lab-cloud", True)
            assert f"element {k} begins on cloud" in moved[k].stdout()
        with pytest.raises(utils.FailedJobError, match="no luck there"):
            moved[3].result()
        assert (jobs[0].site, jobs[0].job_id, jobs[0].done()) == ("lab-onprem", ids[0], False)
    onprem.exec(["touch", str(go)], check=True)
    assert [value[0] for value in jobs[0].results()] == [0, 0]
    assert all(value[1].startswith("onprem") for value in again[0].results())
    assert world.starts(origin) == 1
    assert [world.starts_of(element_run_id(origin.run_id, k)) for k in (1, 2, 3)] == [1, 1, 1]
