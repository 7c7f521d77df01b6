"""The submitit plugin on a faked site: parameters, files, jobs found again."""

import datetime as dt
import importlib
import pickle

import pytest
import submitit
from fake_executor import spec_of, submitted
from submitit.core import plugins, utils

import hpcscale
from hpcscale import batches
from hpcscale.errors import HpcscaleError, InvalidFileError, NotFoundError, UsageError
from hpcscale.executor import HpcscaleExecutor, HpcscaleJob, hints
from hpcscale.ledger import Ledger
from hpcscale.render import render
from hpcscale.site import load_site
from hpcscale.spec import JobSpec

pytestmark = pytest.mark.usefixtures("fresh_registries")


def test_submitit_finds_us_and_never_prefers_us(tmp_path):
    assert plugins.get_executors()["hpcscale"] is HpcscaleExecutor
    assert HpcscaleExecutor.affinity() == 1
    auto = submitit.AutoExecutor(tmp_path, cluster="hpcscale", hpcscale_site="lab-onprem")
    assert auto._executor.site == "lab-onprem"
    assert submitit.AutoExecutor.which() != "hpcscale"


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
        ({"hpcscale_qos": "x", "slurm_mem": 1}, "without the prefix: qos=…, mem=…"),
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
        ({"nodes": 0}, r"nodes: 0: at least 1 is wanted .try: nodes=1"),
        ({"nodes": -1}, "at least 1"),
        ({"nodes": "two"}, "'two' is no number"),
        ({"nodes": 1.5}, "a whole number"),
        ({"ntasks_per_node": -1}, "tasks_per_node: -1"),
        ({"cpus_per_task": 0}, "cpus_per_task=1"),
        ({"gpus_per_node": "a100:2"}, r"try: gpus_per_node=2, hpcscale_constraint="),
        ({"array_parallelism": 0}, "array_parallelism=1"),
        ({"signal_delay_s": "x"}, "signal_delay_s: 'x' is no number"),
        ({"additional_parameters": ["hold"]}, "no dict of sbatch options"),
        ({"additional_parameters": {"no such": 1}}, "'no such' is no option"),
        ({"additional_parameters": {"array": "1-3"}}, r"--array does not go.*map_array"),
        ({"additional_parameters": {"test_only": True}}, "--test-only does not go"),
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


@pytest.mark.parametrize(
    ("hint", "said"),
    [
        ("--partition=gpu", "hpcscale_partition='gpu'"),
        ("--time=7-00:00:00, or --nodes 2", "hpcscale_time='7-00:00:00', or nodes=2"),
        ("--gpus-per-node=4", "gpus_per_node=4"),
        ("choose another with --software", "choose another with hpcscale_software='…'"),
        ("--no-code for none", "--no-code for none"),
        ("hpcscale site check --site x", "hpcscale site check --site x"),
    ],
)
def test_a_hint_of_the_command_line_is_said_in_python(hint, said):
    assert hints.in_python(hint) == said


def test_a_refusal_shows_what_to_write_below_its_message(executor, tmp_path):
    executor.update_parameters(partition="nope")
    with pytest.raises(HpcscaleError, match="has no partition 'nope'") as caught:
        executor.submit(len, "abc")
    assert caught.value.__notes__ == ["try: hpcscale_partition='gpu'"]
    executor.update_parameters(partition="gpu", software="nope")
    with pytest.raises(InvalidFileError) as caught:
        executor.submit(len, "abc")
    assert "choose another with hpcscale_software=" in caught.value.__notes__[0]


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


def test_a_task_that_was_not_sent_yet_is_found_again_by_its_stand_in_id(executor):
    spec, _ = spec_of(executor)
    with Ledger.open() as ledger:
        run_id = batches.store(ledger, spec, "lab-onprem", 5, 2).run.run_id
    job = HpcscaleJob(executor.folder, f"{run_id}_3")
    assert (job.batch, job.state) == ((run_id, 3), "SUBMITTING")


def test_what_a_function_waits_for_reaches_slurm(executor, slurm):
    executor.update_parameters(additional_parameters={"hold": True})
    first = executor.submit(len, "abc")
    executor.update_parameters(dependency=f"afterok:{first.job_id}", additional_parameters={})
    jobs = [executor.submit(len, "abc"), *executor.map_array(len, ["a", "b"])]
    assert [job.state for job in jobs] == ["PENDING"] * 3
    waiting = [job for job in slurm.jobs.values() if job.number != int(first.job_id)]
    assert {job.dependency for job in waiting} == {f"afterok:{first.job_id}"}


def test_what_is_no_function_is_not_sent(executor, slurm):
    with pytest.raises(ValueError, match="3 cannot be called"):
        executor.submit(3, 4)
    assert slurm.jobs == {}


def test_a_wrong_job_id_is_refused_and_harms_no_other_job(executor, caplog):
    """One watcher asks for all jobs of a site at once."""
    job = executor.submit(len, "abc")
    with pytest.raises(ValueError, match="'banana' is no job id"):
        HpcscaleJob(executor.folder, "banana")
    with pytest.raises(ValueError, match="is no job id"):
        HpcscaleJob(executor.folder, "rabcdefghij_3")
    assert job.state in {"PENDING", "RUNNING", "COMPLETED"}
    stranger = HpcscaleJob(executor.folder, 99999)
    assert "lab-onprem:99999 was not submitted with this ledger" in caplog.text
    assert not stranger.done()
    with pytest.raises(NotFoundError, match="was not submitted from here"):
        stranger.cancel()


def test_too_large_pickles_are_refused(executor, slurm):
    executor.max_pickle_size_gb = 1e-9
    with pytest.raises(UsageError, match="max_pickle_size_gb"):
        executor.submit(len, "abc")
    assert slurm.jobs == {}


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
