"""The submitit plugin on a faked site."""

import datetime as dt
import importlib
import json
import os
import pickle
import subprocess
import sys
import threading

import msgspec
import pytest
import submitit
from lab_helpers import until
from submitit.core import plugins, utils

import hpcscale
from hpcscale.connect import Connection
from hpcscale.errors import (
    InvalidFileError,
    NotFoundError,
    NotThisJobError,
    UnreachableError,
    UsageError,
)
from hpcscale.executor import (
    HpcscaleExecutor,
    HpcscaleJob,
    HpcscaleJobEnvironment,
    jobside,
    pickles,
    probe,
    watch,
)
from hpcscale.lab.process import patience
from hpcscale.ledger import Ledger, Role
from hpcscale.render import burst_blockers, render
from hpcscale.site import load_site
from hpcscale.slurm.cli import CliClient
from hpcscale.slurm.states import job_state
from hpcscale.slurm.types import Answer, JobState, JobStatus
from hpcscale.spec import JobSpec, Resources
from hpcscale.submit import submit
from hpcscale.testing import FakeSlurm
from hpcscale.units import JobId

SOFTWARE = f'software.lab-python.venv="{sys.prefix}"'


@pytest.fixture(autouse=True)
def _fresh_registries(monkeypatch):
    """submitit and we keep one of each thing per process."""
    plugins._get_plugins.cache_clear()
    plugins.get_executors.cache_clear()
    monkeypatch.setattr(watch, "_WATCHERS", {})
    monkeypatch.setattr(watch, "_LEDGERS", {})


@pytest.fixture
def slurm():
    return FakeSlurm()


@pytest.fixture
def executor(tmp_path, slurm):
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


def report_end(executor, job, code):
    path = f"{job.run_dir}/events/{job.submission_id}.0.ended"
    text = f'{{"event":"ended","job":"{job.job_id}","exit_code":{code},"requeued":false,"time":1}}'
    executor.connection.transport.put_bytes(text.encode(), path)


def test_submitit_finds_us_and_never_prefers_us(tmp_path):
    assert plugins.get_executors()["hpcscale"] is HpcscaleExecutor
    assert HpcscaleExecutor.affinity() == 1
    auto = submitit.AutoExecutor(tmp_path, cluster="hpcscale", hpcscale_site="lab-onprem")
    assert auto._executor.site == "lab-onprem"
    assert submitit.AutoExecutor.which() != "hpcscale"


def spec_of(executor, **parameters):
    executor.update_parameters(**parameters)
    job = executor.submit(len, "abc")
    with Ledger.open() as ledger:
        return ledger.run(ledger.attempt(job.submission_id).run_id).spec, job


def test_parameters_reach_the_job(executor):
    spec, job = spec_of(
        executor, time=7, nodes=2, ntasks_per_node=3, mem="2GB", partition="gpu", gpus_per_node=1,
        exclude="onprem1", mail_type="END", setup=["export A='it'"], teardown=["echo bye"],
        srun_args=["--cpu-bind=none"], additional_parameters={"nice": 5, "contiguous": True},
        signal_delay_s=30, comment="mine",
    )  # fmt: skip
    want = spec.resources
    assert (want.time_limit_s, want.nodes, want.tasks_per_node) == (420, 2, 3)
    assert (want.mem_gb, want.gpus_per_node, spec.partition, spec.comment) == (
        2.0,
        1,
        "gpu",
        "mine",
    )
    assert spec.directives == {
        "signal": "USR2@30", "requeue": None, "exclude": "onprem1", "mail-type": "END",
        "nice": "5", "contiguous": None,
    }  # fmt: skip
    assert job.num_tasks == 6
    script = job.paths.submission_file.read_text()
    for line in ("#SBATCH --signal=USR2@30", "export A='it'", "echo bye", "--cpu-bind=none",
                 "export SUBMITIT_EXECUTOR=hpcscale"):  # fmt: skip
        assert line in script
    assert "wckey" not in script


def test_slurm_parameters_are_ours_with_a_notice(tmp_path, caplog, capfd):
    auto = submitit.AutoExecutor(tmp_path, cluster="hpcscale", hpcscale_site="lab-onprem")
    auto.update_parameters(slurm_partition="spot", slurm_qos="low", hpcscale_qos="high")
    assert auto._executor.parameters == {"partition": "spot", "qos": "high"}
    said = "slurm_partition as hpcscale_partition, slurm_qos as hpcscale_qos: write it so"
    assert caplog.text.count(said) == 1
    assert said not in capfd.readouterr().out, "submitit's logger says warnings on stdout as well"
    debug = submitit.AutoExecutor(tmp_path, cluster="debug")
    debug.update_parameters(slurm_partition="spot")
    assert "partition" not in debug._executor.parameters


@pytest.mark.parametrize(
    ("wrong", "match"),
    [
        ({"partion": "x"}, "no such parameters: partion"),
        ({"setup": "module load x"}, "list of texts"),
        ({"time": "soon"}, "no duration"),
        ({"time": 0}, r"0 is no time limit.*try: timeout_min=60"),
        ({"time": -5}, "-5 is no time limit"),
        ({"time": float("nan")}, "nan is no time limit"),
        ({"time": None}, "timeout_min=60"),
        ({"burst": "yes"}, r"'yes' is none of never, auto, only .try: hpcscale_burst='auto'"),
        ({"max_cost_usd": -3}, r"'-3' is no amount.*hpcscale_max_cost_usd=39\.50"),
        ({"max_cost_usd": "abc"}, r"'abc' is no amount"),
        ({"max_cost_usd": True}, r"True is no amount"),
        ({"max_cost_usd": float("nan")}, r"'nan' is no amount"),
        ({"env": ["A"]}, r"no dict of variables.*hpcscale_env=\{'NAME': 'VALUE'\}"),
        ({"env": {"A B": 1}}, "'A B' cannot be a variable's name"),
        ({"env": {"A": None}}, "cannot be a variable's value"),
        ({"deadline": "soon"}, r"'soon' is no deadline.*hpcscale_deadline='\+6h'"),
        ({"deadline": 5}, "5 is no deadline"),
        ({"deadline": "2020-01-01"}, "has passed"),
        ({"deadline": dt.datetime(2020, 1, 1)}, "has passed"),  # noqa: DTZ001 # local time
    ],
)
def test_wrong_parameters_are_refused_when_they_are_set(executor, wrong, match):
    with pytest.raises(UsageError, match=match):
        executor.update_parameters(**wrong)
    assert not set(wrong) & set(executor.parameters)


@pytest.mark.parametrize("form", ["text", "datetime"])
def test_a_deadline_reaches_the_run(executor, form):
    before = dt.datetime.now(dt.UTC)
    wanted = "+2h" if form == "text" else before.astimezone() + dt.timedelta(hours=2)
    spec, job = spec_of(executor, deadline=wanted, max_cost_usd="30", burst="auto")
    with Ledger.open() as ledger:
        run = ledger.run(ledger.attempt(job.submission_id).run_id)
    assert run.deadline == spec.burst.deadline
    late = run.deadline - before - dt.timedelta(hours=2)
    assert dt.timedelta(0) <= late < dt.timedelta(minutes=10)
    if form == "datetime":
        assert late == dt.timedelta(0)


def test_a_module_that_the_nodes_may_not_see_is_told(executor, tmp_path, monkeypatch, caplog):
    for root in (tmp_path / "beside", tmp_path / "jobs" / "lib"):
        (root / f"pkg_{root.name}").mkdir(parents=True)
        (root / f"pkg_{root.name}" / "__init__.py").touch()
        (root / f"pkg_{root.name}" / "m.py").write_text("def sq(x): return x * x\n")
        monkeypatch.syspath_prepend(str(root))
    seen = importlib.import_module("pkg_lib.m")
    unseen = importlib.import_module("pkg_beside.m")
    executor.submit(seen.sq, 2)  # below shared_dirs
    assert "pkg_lib" not in caplog.text
    executor.submit(unseen.sq, 2)
    assert "pkg_beside.m: below none of the shared_dirs of lab-onprem" in caplog.text
    assert f"hpcscale_code='{tmp_path}/beside'" in caplog.text
    caplog.clear()
    executor.update_parameters(code=str(tmp_path / "beside"))
    executor.submit(unseen.sq, 2)
    assert "pkg_beside" not in caplog.text


def test_a_second_site_does_not_share_file_names(executor, tmp_path):
    executor.submit(len, "abc")
    other = HpcscaleExecutor(executor.folder, site="lab-cloud")
    assert other._folder_here() == executor.folder / "lab-cloud"
    assert executor._folder_here() == executor.folder


def test_a_result_of_another_job_of_the_same_id_is_not_taken(executor, slurm):
    job = executor.submit(len, "abc")
    job.paths.result_pickle.write_bytes(pickle.dumps(("success", "somebody else's")))
    job._outcome_path().write_text('{"submission_id": "hs-0", "outcome": "success"}')
    assert not job._outcome_is_ours()
    slurm.jobs[int(job.job_id)].state = "CANCELLED"
    assert job.done(force_check=True)
    with pytest.raises(utils.UncompletedJobError, match="has not produced any output"):
        job.result()


def test_without_auto_executor_submitits_common_names_hold_too(tmp_path):
    made = hpcscale.Executor(tmp_path / "jobs", site="lab-onprem")
    assert type(made) is HpcscaleExecutor
    made.update_parameters(timeout_min=7, name="mine", mem_gb=2, nodes=3, partition="gpu")
    assert made.parameters == {
        "time": 7, "job_name": "mine", "mem": "2GB", "nodes": 3, "partition": "gpu",
    }  # fmt: skip


def test_too_large_pickles_are_refused(executor, slurm):
    executor.max_pickle_size_gb = 1e-9
    with pytest.raises(UsageError, match="max_pickle_size_gb"):
        executor.submit(len, "abc")
    assert slurm.jobs == {}


def test_inside_a_job_the_environment_is_ours(monkeypatch):
    monkeypatch.setenv("SUBMITIT_EXECUTOR", "hpcscale")
    monkeypatch.setenv("SLURM_JOB_ID", "12")
    environment = HpcscaleJobEnvironment()
    assert environment.activated()
    assert environment.job_id == "12"


# --- the Python of an image

OURS = f"{sys.version_info[0]}.{sys.version_info[1]}"


@pytest.fixture
def image(tmp_path, slurm, monkeypatch):
    """Makes an executor for an image, and the program that starts it on the login node."""
    monkeypatch.setattr(probe, "_SEEN", set())
    (tmp_path / "bin").mkdir()
    (tmp_path / "project").mkdir(exist_ok=True)
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")

    def make(says, runtime="apptainer", name="image.sif", python=None):
        tool = tmp_path / "bin" / {"apptainer": "apptainer", "pyxis": "enroot"}[runtime]
        if says is not None:
            verb = {"apptainer": "exec", "pyxis": "start"}[runtime]
            tool.write_text(
                f'#!/bin/sh\necho "$1 $2 $3 $4" >> {tmp_path}/asked\n'
                f'[ "$1" = {verb} ] && [ "$2" = {tmp_path}/image.sif ] || exit 9\n{says}\n'
            )
            tool.chmod(0o755)
        (tmp_path / "image.sif").touch()
        path = name if "#" in name else f"{tmp_path}/{name}"
        settings = [
            f"state_dir={tmp_path / 'site'}", f"container.runtime={runtime}",
            f"software.torch.image={path}",
        ] + ([] if python is None else [f"software.torch.python={python}"])  # fmt: skip
        connection = Connection(
            site=load_site("lab-onprem", settings).site,
            transport=slurm, client=CliClient(slurm), clock=slurm.clock,
        )  # fmt: skip
        return HpcscaleExecutor(tmp_path / "jobs", connection=connection, software="torch")

    return make


def answer(python, submitit="1.5"):
    found = {"python": [int(p) for p in python.split(".")], "submitit": submitit,
             "cloudpickle": "3", "why": "No module named submitit"}  # fmt: skip
    return f"echo a banner\necho '{json.dumps(found)}'"


@pytest.mark.parametrize("runtime", ["apptainer", "pyxis"])
def test_an_image_on_the_login_node_is_asked_before_anything_is_sent(
    image, slurm, runtime, tmp_path
):
    with pytest.raises(UsageError, match=r"torch's image is Python 3\.8, and .* by 3\.") as caught:
        image(answer("3.8"), runtime).submit(len, "abc")
    assert "hpcscale_software" in caught.value.hint
    with pytest.raises(NotFoundError, match=r"torch's image has no submitit"):
        image(answer(OURS).replace('"1.5"', "null"), runtime).submit(len, "abc")
    assert slurm.jobs == {}
    verb = {"apptainer": "exec", "pyxis": "start"}[runtime]
    asked = (tmp_path / "asked").read_text().splitlines()
    assert set(asked) == {f"{verb} {tmp_path}/image.sif python -c"}
    image(answer(OURS), runtime).submit(len, "abc")
    assert len(slurm.jobs) == 1


def test_what_the_profile_says_of_an_image_is_believed(image, slurm, tmp_path, caplog):
    with pytest.raises(UsageError, match=r"the profile says .* image has Python 3\.8, and"):
        image(answer(OURS), python="3.8.10").submit(len, "abc")
    assert slurm.jobs == {}
    image(answer("3.8"), python=OURS).submit(len, "abc")
    assert len(slurm.jobs) == 1
    assert not (tmp_path / "asked").exists()
    with pytest.raises(InvalidFileError, match="python"):
        image(None, python="three")


@pytest.mark.parametrize(
    ("says", "name", "why"),
    [
        (None, "image.sif", "apptainer"),
        ("echo no user namespaces >&2; exit 255", "image.sif", "no user namespaces"),
        (answer("3.8"), "registry#torch:1", "no file registry#torch:1"),
    ],
)
def test_an_image_that_cannot_be_asked_is_left_to_the_job_with_a_warning(
    image, says, name, why, caplog
):
    executor = image(says, name=name)
    executor.submit(len, "abc")
    assert len(executor.connection.transport.jobs) == 1
    assert "must be " + OURS in caplog.text
    assert why in caplog.text
    assert "[software.torch]" in caplog.text


@pytest.mark.parametrize("scontrol", [False, True])
def test_a_function_without_scontrol_asks_its_script_to_requeue_it(tmp_path, monkeypatch, scontrol):
    asks = tmp_path / "requeue"
    monkeypatch.setenv("HPCSCALE_REQUEUE_FILE", str(asks))
    monkeypatch.setenv("SLURM_JOB_ID", "12")
    monkeypatch.setenv("PATH", str(tmp_path))
    if scontrol:
        (tmp_path / "scontrol").write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/said\n')
        (tmp_path / "scontrol").chmod(0o755)
    HpcscaleJobEnvironment()._requeue(1)
    assert asks.exists() is not scontrol
    assert (tmp_path / "said").exists() is scontrol


def test_a_job_of_another_python_says_so_before_it_opens_the_pickle(tmp_path):
    """An image's Python is not asked before: it is known when the job starts."""
    folder = pickles.write_pickles(
        tmp_path, [utils.DelayedSubmission(print, "opened")],
        timeout_min=1, max_num_timeout=1, max_size_gb=1,
    )  # fmt: skip
    (folder / "0.pkl").rename(folder / "7_submitted.pkl")
    variables = {"SUBMITIT_EXECUTOR": "hpcscale", "SLURM_JOB_ID": "7", "SLURM_PROCID": "0",
                 "SLURM_LOCALID": "0", "SLURM_NODEID": "0", "PYTHONPATH": f"{folder}/lib"}  # fmt: skip

    def start():
        return subprocess.run(
            [sys.executable, "-m", "submitit.core._submit", str(folder)],
            capture_output=True, text=True, check=False, timeout=patience(60),
            env=os.environ | variables,
        )  # fmt: skip

    assert "opened" in start().stdout
    (folder / "lib" / jobside.PICKLED_BY).write_text("3.7\n")
    done = start()
    assert done.returncode != 0
    assert "opened" not in done.stdout
    assert "the function was pickled by 3.7" in done.stderr


def test_a_failed_task_lets_the_others_tell_before_srun_kills_them(tmp_path, monkeypatch):
    monkeypatch.setattr(jobside, "PEERS_S", 60.0)
    folder = tmp_path.absolute()
    monkeypatch.setenv("SLURM_NTASKS", "2")
    paths = [utils.JobPaths(folder, "7", task) for task in (0, 1)]
    paths[1].result_pickle.touch()
    monkeypatch.setattr(sys, "last_value", ValueError("no"), raising=False)
    waiter = threading.Thread(target=jobside._tell, args=(paths[1], os.getpid()))
    waiter.start()
    try:
        until((folder / "7_1_outcome.json").exists, 20, "it tells its own")
        assert waiter.is_alive()
    finally:
        (folder / "7_0_outcome.json").touch()
        waiter.join(20)
    assert not waiter.is_alive()


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


NOT_OVER = [
    "PENDING",
    "RUNNING",
    "CONFIGURING",
    "COMPLETING",
    "SUSPENDED",
    "STOPPED",
    "SIGNALING",
    "RESIZING",
    "STAGE_OUT",
    "PREEMPTED",
    "REQUEUED",
    "REQUEUE_FED",
    "REQUEUE_HOLD",
    "RESV_DEL_HOLD",
    "SPECIAL_EXIT",
    "UNKNOWN",
    "SOMETHING_NEW",
]
OVER = [
    "COMPLETED",
    "FAILED",
    "CANCELLED",
    "TIMEOUT",
    "OUT_OF_MEMORY",
    "NODE_FAIL",
    "BOOT_FAIL",
    "DEADLINE",
    "REVOKED",
]


@pytest.mark.parametrize("word", ["", *NOT_OVER, *OVER])
def test_a_job_is_over_in_the_states_of_a_list_and_in_no_other(executor, monkeypatch, word):
    """submitit's own watcher takes what it does not know for an end."""
    job = submitted(executor)
    said = JobStatus(job_id=JobId.parse(job.job_id), state=job_state(word), raw_state=word)
    monkeypatch.setattr(job.watcher, "_info_dict", {job.job_id: watch._info([said])})
    assert job.watcher.is_done(job.job_id, mode="cache") is (word in OVER)


@pytest.mark.parametrize("kept", [True, False], ids=["slurmdbd", "no slurmdbd"])
def test_a_preempted_job_is_over_once_squeue_lists_it_no_more(executor, slurm, monkeypatch, kept):
    """PreemptMode=CANCEL; one that is requeued is listed again."""
    slurm.advance(1)
    job = submitted(executor)
    number = JobId.parse(job.job_id)
    slurm.jobs[number.base].state = "PREEMPTED"
    assert not job.done(force_check=True)
    assert job.watcher.get_state(job.job_id, mode="cache") == "PREEMPTED"
    said = JobStatus(job_id=number, state=JobState.PREEMPTED, raw_state="PREEMPTED")
    older = Answer({str(number): said} if kept else {}, complete=True)
    monkeypatch.setattr(job.watcher.connection.client, "history", lambda *_, **__: older)
    del slurm.jobs[number.base]
    job.watcher._last_status_check = 0  # two questions within a millisecond are one
    assert job.done(force_check=True)
    assert job.state == "PREEMPTED"


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
    assert job.outcome() == {"ref": str(job.ref), "state": "FAILED", "exit_code": 3}
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


def test_a_job_that_an_earlier_program_cancelled_while_it_waited_is_cancelled(
    executor, slurm, monkeypatch
):
    for _ in slurm.node_names:
        submitted(executor)
    executor.update_parameters(time=60)
    alone, array = executor.submit(len, "abc"), executor.map_array(len, ["a", "b"])
    for job in (alone, array[1]):
        assert job.get_info()["State"] == "PENDING"
        job.cancel()
    connection = executor.connection
    monkeypatch.setattr(watch, "_WATCHERS", {})  # that program has exited
    watch.watcher_of(executor.site).use(connection)
    slurm.jobs = {n: j for n, j in slurm.jobs.items() if j.base != int(alone.job_id)}  # MinJobAge
    for job, state in ((alone, "CANCELLED"), (array[0], "PENDING"), (array[1], "CANCELLED")):
        again = HpcscaleJob(executor.folder, job.job_id)
        assert again.get_info()["State"] == state
        assert again.done(force_check=True) is (state == "CANCELLED")
    with pytest.raises(utils.UncompletedJobError, match="CANCELLED"):
        HpcscaleJob(executor.folder, alone.job_id).result()


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


def test_a_job_is_found_again_by_its_folder_and_id(executor, tmp_path):
    job = executor.submit(len, "abc")
    again = HpcscaleJob(executor.folder, job.job_id)
    assert (again.site, again.submission_id, again.run_dir, again.there, again.rendered) == (
        job.site, job.submission_id, job.run_dir, job.there, False
    )  # fmt: skip
    assert again.submission().args == ("abc",)
    script = submitted(executor)
    assert HpcscaleJob(executor.folder, script.job_id).rendered
    with pytest.raises(NotFoundError, match="knows the site"):
        HpcscaleJob(tmp_path / "elsewhere", "12").done(force_check=True)


def test_a_time_limit_below_a_minute_is_a_minute_and_not_none_at_all(executor):
    spec, _ = spec_of(executor, time=2 / 60)
    assert spec.resources.time_limit_s == 60
    spec, _ = spec_of(executor, time=1.5)
    assert spec.resources.time_limit_s == 120


def test_wrong_parameters_are_value_errors_as_in_submitit(executor):
    with pytest.raises(ValueError, match="no such parameters"):
        executor.update_parameters(partion="x")
    executor.max_pickle_size_gb = 1e-9
    with pytest.raises(RuntimeError, match="max_pickle_size_gb"):
        executor.submit(len, "abc")


@pytest.mark.parametrize("name", ["back\\slash", "50%", "a%x"])
def test_a_folder_that_srun_would_read_as_a_pattern_is_not_written_to_by_the_job(executor, name):
    executor.folder = executor.folder / name
    job = executor.submit(len, "abc")
    assert job.there == f"{job.run_dir}/outputs/submitit"


def moved(executor, slurm, tmp_path, *, says=True, state=None):
    """A function whose run has a second attempt, at lab-cloud; what the handover writes."""
    executor.update_parameters(burst="auto")
    job = executor.submit(len, "abc")
    cloud = load_site(
        "lab-cloud", [f"state_dir={tmp_path / 'cloud'}", 'transport.kind="local"']
    ).site
    there = FakeSlurm()
    there._next = 40
    connection = Connection(site=cloud, transport=there, client=CliClient(there), clock=there.clock)
    watch.watcher_of("lab-cloud").use(connection)
    with Ledger.open() as ledger:
        origin = ledger.attempt(job.submission_id)
        run = ledger.run(origin.run_id)
        spec = msgspec.structs.replace(
            run.spec, outputs={"submitit": f"{executor.folder}/lab-cloud/"}
        )
        submission = submit(
            render(spec, cloud), cloud, connection, ledger, run=run, role=Role.BURST
        )
        if says:
            ledger.event(
                run.run_id, "attempt.handed_over", {"to": str(submission.ref)},
                submission_id=origin.submission_id,
            )  # fmt: skip
        if state is not None:
            there.jobs[40].state = state
            for status in connection.client.jobs([submission.ref.job_id]).jobs.values():
                ledger.record_status(submission.attempt, status)
    return job, there, submission


def test_a_job_becomes_the_one_that_took_over(executor, slurm, tmp_path):
    job, there, heir = moved(executor, slurm, tmp_path)
    there.jobs[40].state = "RUNNING"
    assert (job.state, job.site, job.job_id) in {
        ("RUNNING", "lab-cloud", "40"), ("COMPLETED", "lab-cloud", "40")
    }  # fmt: skip
    assert job.submission_id == heir.submission_id
    assert job.paths.folder == executor.folder / "lab-cloud"
    assert job.submission().args == ("abc",)
    again = HpcscaleJob(executor.folder / "lab-cloud", "40")
    assert (again.site, again.submission_id) == ("lab-cloud", heir.submission_id)


def test_a_job_that_gave_way_is_not_done_before_it_is_known_to_what(executor, slurm, tmp_path):
    job, _there, _ = moved(executor, slurm, tmp_path, says=False)
    slurm.jobs[int(job.job_id)].state = "CANCELLED"
    assert not job.done(force_check=True)
    assert job.site == "lab-onprem"


def test_an_attempt_that_ended_well_is_the_one_even_if_nobody_says_so(executor, slurm, tmp_path):
    job, _, heir = moved(executor, slurm, tmp_path, says=False, state="COMPLETED")
    assert job.state == "COMPLETED"
    assert job.ref == heir.ref


def test_an_attempt_that_failed_to_start_is_not_followed(executor, slurm, tmp_path):
    job, _, _ = moved(executor, slurm, tmp_path, says=False, state="CANCELLED")
    slurm.jobs[int(job.job_id)].state = "FAILED"
    assert job.done(force_check=True)
    assert (job.state, job.site) == ("FAILED", "lab-onprem")


def test_what_may_not_move_asks_nothing(executor, monkeypatch):
    job = executor.submit(len, "abc")
    job.done()
    monkeypatch.setattr(Ledger, "attempts", lambda *_: pytest.fail("asked"))
    job.done(force_check=True)
    assert job.state in {"PENDING", "RUNNING", "COMPLETED"}


def test_a_function_that_may_burst_names_nothing_of_this_machine(executor, monkeypatch):
    """Else the handover refuses it: an absolute path that is not declared."""
    monkeypatch.setattr("hpcscale.executor.require_same_python", lambda *_: None)
    executor.update_parameters(software="lab-python", gpus_per_node=1)
    staying, _ = spec_of(executor)
    assert "PYTHONPATH" in staying.env
    moving, _ = spec_of(executor, burst="auto")
    assert "PYTHONPATH" not in moving.env
    cloud = load_site("lab-cloud", [SOFTWARE]).site
    assert burst_blockers(moving, cloud) == []


def test_a_function_that_cannot_move_for_its_python_says_so(executor, caplog):
    executor.update_parameters(burst="auto")
    executor.submit(len, "abc")
    assert "hpcscale_software=NAME" in caplog.text
