"""A function that the handover moves: the job that submit() gave follows it."""

import pickle
import sys

import cloudpickle
import pytest
import submitit
from burst_world import World
from lab_helpers import until
from submitit.core import plugins, utils

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
