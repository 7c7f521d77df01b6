"""The submitit plugin on a faked site."""

import pickle
from types import SimpleNamespace

import pytest
import submitit
from submitit.core import plugins, utils

from hpcscale import executor as module
from hpcscale.connect import Connection
from hpcscale.errors import NotThisJobError, UnreachableError, UsageError
from hpcscale.executor import HpcscaleExecutor, HpcscaleJob, HpcscaleJobEnvironment
from hpcscale.ledger import Ledger
from hpcscale.render import render
from hpcscale.site import load_site
from hpcscale.slurm.cli import CliClient
from hpcscale.spec import JobSpec, Resources
from hpcscale.testing import FakeSlurm


@pytest.fixture(autouse=True)
def _fresh_registries(monkeypatch):
    """submitit and we keep one of each thing per process."""
    plugins._get_plugins.cache_clear()
    plugins.get_executors.cache_clear()
    monkeypatch.setattr(module, "_WATCHERS", {})
    monkeypatch.setattr(module, "_LEDGERS", {})


@pytest.fixture
def slurm():
    return FakeSlurm()


@pytest.fixture
def executor(tmp_path, slurm):
    connection = Connection(
        site=load_site(
            "lab-onprem", [f"state_dir={tmp_path / 'site'}", f'shared_dirs=["{tmp_path}/jobs"]']
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


def report_end(executor, job, code):
    path = f"{job.run_dir}/events/{job.submission_id}.0.ended"
    text = f'{{"event":"ended","job":"{job.job_id}","exit_code":{code},"requeued":false,"time":1}}'
    executor.connection.transport.put_bytes(text.encode(), path)


def test_submitit_finds_us_and_never_prefers_us(tmp_path, monkeypatch):
    assert plugins.get_executors()["hpcscale"] is HpcscaleExecutor
    assert HpcscaleExecutor.affinity() == 1
    auto = submitit.AutoExecutor(tmp_path, cluster="hpcscale", hpcscale_site="lab-onprem")
    assert auto._executor.site == "lab-onprem"
    auto.update_parameters(timeout_min=7, nodes=1, mem_gb=2, hpcscale_partition="gpu")
    site = load_site("lab-onprem", ['shared_dirs=["/nowhere"]']).site
    monkeypatch.setattr(module, "connect", lambda _: SimpleNamespace(site=site))
    with pytest.raises(UsageError, match="not seen by the nodes"):
        auto._executor._spec("python -m x")
    shared = load_site("lab-onprem", [f'shared_dirs=["{tmp_path}"]']).site
    monkeypatch.setattr(module, "connect", lambda _: SimpleNamespace(site=shared))
    module._WATCHERS["lab-onprem"].use(None)
    spec = auto._executor._spec("python -m x")
    assert spec.workdir == str(tmp_path), "not the current directory, which no node sees"
    assert spec.resources.time_limit_s == 420
    assert (spec.resources.mem_gb, spec.partition) == (2.0, "gpu")
    assert submitit.AutoExecutor.which() != "hpcscale"


def test_inside_a_job_the_environment_is_ours(monkeypatch):
    monkeypatch.setenv("SUBMITIT_EXECUTOR", "hpcscale")
    monkeypatch.setenv("SLURM_JOB_ID", "12")
    environment = HpcscaleJobEnvironment()
    assert environment.activated()
    assert environment.job_id == "12"


def test_the_row_is_in_the_ledger_and_the_script_in_submitits_folder(executor):
    job = submitted(executor)
    with Ledger.open() as ledger:
        attempt = ledger.attempt(job.submission_id)
    assert str(attempt.ref) == str(job.ref) == f"lab-onprem:{job.job_id}"
    assert job.paths.submission_file.read_text() == attempt.script


def test_a_script_for_another_site_is_refused(executor, tmp_path):
    spec = JobSpec(command=("true",), workdir=str(tmp_path / "project"))
    with pytest.raises(UsageError, match="rendered for lab-cloud"):
        executor.submit_rendered(render(spec, load_site("lab-cloud").site))


def test_one_question_for_all_jobs_of_a_site(executor, slurm):
    slurm.advance(1)
    jobs = [submitted(executor) for _ in range(5)]
    slurm.calls.clear()
    jobs[0].watcher.update()
    states = {job.watcher.get_state(job.job_id, mode="cache") for job in jobs}
    assert states <= {"PENDING", "RUNNING"}
    assert sum("squeue" in call[0] for call in slurm.calls) == 1
    assert len({id(job.watcher) for job in jobs}) == 1


def test_no_answer_is_no_end(executor, slurm):
    job = submitted(executor)
    job.watcher.update()
    before = job.state
    assert before in {"PENDING", "RUNNING"}
    slurm.stop()
    assert not job.done(force_check=True)
    assert job.state == before


def test_a_failed_script_is_a_failed_job(executor, slurm):
    job = submitted(executor, command=("sh", "-c", "exit 3"))
    report_end(executor, job, 3)
    slurm.jobs.clear()  # forgotten, as by a Slurm without slurmdbd
    assert job.done(force_check=True)
    assert job.outcome() == {"ref": str(job.ref), "state": "UNKNOWN", "exit_code": 3}
    assert isinstance(job.exception(), utils.FailedJobError)
    with pytest.raises(utils.FailedJobError, match="exit code 3"):
        job.result()


def test_a_forgotten_job_without_a_report_is_not_done(executor, slurm):
    job = submitted(executor)
    slurm.jobs.clear()
    assert not job.done(force_check=True)
    assert job.state == "UNKNOWN"


def test_cancel_ends_it_and_spares_a_stranger(executor, slurm):
    job = submitted(executor)
    job.cancel()
    job.watcher.update()
    assert job.state == "CANCELLED"
    again = submitted(executor)
    slurm.jobs[int(again.job_id)].comment = "somebody else's"
    with pytest.raises(NotThisJobError):
        again.cancel()
    again.cancel(check=False)
    assert slurm.jobs[int(again.job_id)].state in {"PENDING", "RUNNING"}


def test_cancel_without_an_answer_says_so(executor, slurm):
    job = submitted(executor)
    slurm.stop()
    with pytest.raises(UnreachableError):
        job.cancel()


def test_the_log_is_read_from_the_site(executor):
    job = submitted(executor)
    assert job.stdout() is None
    log = f"{job.run_dir}/logs/{job.job_id}.log"
    executor.connection.transport.put_bytes(b"epoch 1\n", log)
    assert job.stdout() == "epoch 1\n"
    assert job.stderr() is None


def test_a_job_survives_pickling(executor):
    job = submitted(executor)
    again = pickle.loads(pickle.dumps(job))
    assert isinstance(again, HpcscaleJob)
    assert again.ref == job.ref
    assert again.watcher is job.watcher


def test_what_functions_cannot_do_yet_is_said_and_submits_nothing(executor, slurm):
    with pytest.raises(UsageError, match="arrays of functions"):
        executor.map_array(len, ["a", "b"])
    executor.update_parameters(nodes=2)
    with pytest.raises(UsageError, match="several tasks"):
        executor.submit(len, "abc")
    with pytest.raises(UsageError, match="not supported yet: setup"):
        executor.update_parameters(setup=["module load x"])
    slurm.is_local = False
    with pytest.raises(UsageError, match="local sites only"):
        executor.submit(len, "abc")
    assert slurm.jobs == {}
