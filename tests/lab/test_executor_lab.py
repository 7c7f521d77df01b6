"""submitit on real Slurm through our executor: no slurmdbd, no file system that both sides see."""

import os
import sys

import pytest
import submitit
from submitit.core import plugins, utils

from hpcscale.executor import HpcscaleExecutor, HpcscaleJob, probe, watch
from hpcscale.render import render
from hpcscale.site import load_site
from hpcscale.spec import JobSpec, Resources

SITES = ("lab-onprem", "lab-cloud")


@pytest.fixture(autouse=True)
def _fresh(monkeypatch):
    """submitit and we keep one of each thing per process."""
    plugins._get_plugins.cache_clear()
    plugins.get_executors.cache_clear()
    plugins.get_job_environments.cache_clear()
    monkeypatch.setattr(watch, "_WATCHERS", {})
    monkeypatch.setattr(watch, "_LEDGERS", {})
    monkeypatch.setattr(probe, "_SEEN", set())
    yield
    for watcher in watch._WATCHERS.values():
        watcher.connection.close()
    for ledger in watch._LEDGERS.values():
        ledger.close()


def by_value(function):
    """Pickled with its code: the nodes do not see the tests."""
    function.__module__ = "__main__"
    return function


def executor(folder, site, **kw):
    kw.setdefault("hpcscale_python", sys.executable)
    made = submitit.AutoExecutor(folder, cluster="hpcscale", hpcscale_site=site, **kw)
    made.update_parameters(timeout_min=5, name="test")
    return made


@by_value
def add(a, b):
    print("adding", a, b)
    return a + b


@by_value
def where(a, b):
    environment = submitit.JobEnvironment()
    return a + b, environment.cluster, environment.job_id, environment.hostname


@by_value
def fail(text):
    raise ValueError(text)


@by_value
def rank(_):
    environment = submitit.JobEnvironment()
    torch = submitit.helpers.TorchDistributedEnvironment().export(set_cuda_visible_devices=False)
    return (environment.global_rank, environment.num_tasks, environment.node, torch.master_addr,
            torch.master_port, os.environ["WORLD_SIZE"])  # fmt: skip


@pytest.mark.parametrize("site", SITES)
def test_a_function_runs_and_its_value_and_log_come_back(lab_env, tmp_path, site, monkeypatch):
    monkeypatch.chdir(tmp_path)
    job = executor(tmp_path / "jobs", site).submit(where, 2, b=3)
    total, cluster, job_id, host = job.result()
    assert (total, cluster) == (5, "hpcscale")
    assert job_id == job.job_id
    assert host.startswith(site.removeprefix("lab-"))
    assert isinstance(job, HpcscaleJob)
    assert job.done()
    assert job.exception() is None
    assert "Job completed successfully" in job.stdout() + job.stderr()
    assert job.submission().args == (2,)
    # submitit's own names, so that what reads its folder goes on to work
    for path in (job.paths.result_pickle, job.paths.submitted_pickle, job.paths.submission_file):
        assert path.exists(), path
    assert job.outcome()["function"]["outcome"] == "success"


def test_a_folder_that_the_nodes_see_is_used_in_place(lab_env):
    folder = lab_env.site("lab-onprem").paths.scratch / "jobs"
    job = executor(folder, "lab-onprem").submit(add, 1, 2)
    assert job.result() == 3
    assert job.there == str(folder)
    assert not list(folder.glob("*.stale"))


@pytest.mark.parametrize("site", SITES)
def test_an_error_comes_back_as_an_error_and_as_json(lab_env, tmp_path, site):
    job = executor(tmp_path / "jobs", site).submit(fail, "no such luck")
    problem = job.exception()
    assert isinstance(problem, utils.FailedJobError)
    assert "ValueError: no such luck" in str(problem)
    with pytest.raises(utils.FailedJobError, match="no such luck"):
        job.result()
    outcome = job.outcome()["function"]
    assert (outcome["outcome"], outcome["error"], outcome["message"]) == (
        "error", "ValueError", "no such luck"
    )  # fmt: skip


def test_a_rendered_script_runs_over_ssh_and_its_log_is_read_from_there(lab_env, tmp_path):
    site = load_site("lab-cloud").site
    (tmp_path / "project").mkdir()
    spec = JobSpec(
        name="remote",
        command=("sh", "-c", "echo hello from $(hostname)"),
        workdir=str(tmp_path / "project"),
        resources=Resources(nodes=1, time_limit_s=300),
    )
    job = HpcscaleExecutor(tmp_path / "jobs", site="lab-cloud").submit_rendered(render(spec, site))
    outcome = job.result()
    assert (outcome["state"], outcome["exit_code"]) == ("COMPLETED", 0)
    assert "hello from cloud" in job.stdout()
