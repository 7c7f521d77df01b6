"""submitit on real Slurm through our executor, with no slurmdbd."""

import shutil
from pathlib import Path

import submitit
from submitit.core import plugins

import hpcscale
from hpcscale.executor import HpcscaleExecutor
from hpcscale.render import render
from hpcscale.site import load_site
from hpcscale.spec import JobSpec, Resources


def test_a_function_runs_on_the_local_site_and_its_value_comes_back(lab_env, tmp_path, monkeypatch):
    plugins._get_plugins.cache_clear()
    plugins.get_executors.cache_clear()
    shared = lab_env.site("lab-onprem").paths.scratch
    # the nodes see neither this checkout nor the tests: hpcscale as installed on a shared disk
    shutil.copytree(Path(hpcscale.__file__).parent, shared / "lib" / "hpcscale")
    monkeypatch.syspath_prepend(shared / "lib")
    monkeypatch.chdir(tmp_path)
    executor = submitit.AutoExecutor(
        shared / "jobs", cluster="hpcscale", hpcscale_site="lab-onprem"
    )
    executor.update_parameters(timeout_min=5, name="add")

    def where(a, b):
        environment = submitit.JobEnvironment()
        return a + b, environment.cluster, environment.job_id, environment.hostname

    where.__module__ = "__main__"  # pickled by value
    total, cluster, job_id, host = executor.submit(where, 2, b=3).result()
    assert (total, cluster) == (5, "hpcscale")
    assert job_id.isdigit()
    assert host.startswith("onprem")


def test_a_rendered_script_runs_over_ssh_and_its_log_is_read_from_there(lab_env, tmp_path):
    site = load_site("lab-cloud").site
    (tmp_path / "project").mkdir()
    spec = JobSpec(
        name="remote",
        command=("sh", "-c", "echo hello from $(hostname)"),
        workdir=str(tmp_path / "project"),
        resources=Resources(nodes=1, time_limit_s=300),
    )
    executor = HpcscaleExecutor(tmp_path / "jobs", site="lab-cloud")
    job = executor.submit_rendered(render(spec, site))
    outcome = job.result()
    assert (outcome["state"], outcome["exit_code"]) == ("COMPLETED", 0)
    assert "hello from cloud" in job.stdout()
