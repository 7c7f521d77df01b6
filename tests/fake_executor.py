"""An executor on a faked site, and what its jobs report."""

import sys

from submitit.core import plugins

from hpcscale.connect import Connection
from hpcscale.executor import HpcscaleExecutor, watch
from hpcscale.ledger import Ledger
from hpcscale.render import render
from hpcscale.site import load_site
from hpcscale.slurm.cli import CliClient
from hpcscale.spec import JobSpec, Resources

SOFTWARE = f'software.lab-python.venv="{sys.prefix}"'


def fresh(monkeypatch):
    """submitit and we keep one of each thing per process."""
    plugins._get_plugins.cache_clear()
    plugins.get_executors.cache_clear()
    monkeypatch.setattr(watch, "_WATCHERS", {})
    monkeypatch.setattr(watch, "_LEDGERS", {})


def executor_at(tmp_path, slurm):
    connection = Connection(
        site=load_site(
            "lab-onprem",
            [f"state_dir={tmp_path / 'site'}", f'shared_dirs=["{tmp_path}/jobs"]', SOFTWARE],
        ).site,
        transport=slurm,
        client=CliClient(slurm),
        clock=slurm.clock,
    )
    (tmp_path / "project").mkdir()
    return HpcscaleExecutor(tmp_path / "jobs", connection=connection)


def submitted(executor, command=("sleep", "30"), **kw):
    spec = JobSpec(
        name="x",
        command=command,
        workdir=str(executor.folder.parent / "project"),
        resources=Resources(time_limit_s=600),
        **kw,
    )
    return executor.submit_rendered(render(spec, executor.connection.site))


def spec_of(executor, **parameters):
    executor.update_parameters(**parameters)
    job = executor.submit(len, "abc")
    with Ledger.open() as ledger:
        return ledger.run(ledger.attempt(job.submission_id).run_id).spec, job
