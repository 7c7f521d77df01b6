"""submitit on real Slurm through our executor: no slurmdbd, no file system that both sides see."""

import asyncio
import contextlib
import json
import os
import sys
import time
from pathlib import Path

import cloudpickle
import pytest
import submitit
from job_helpers import data, hpcscale
from lab_helpers import until
from submitit.core import plugins, utils

import hpcscale as hpcscale_package
from hpcscale import batches
from hpcscale.cli import COMMANDS
from hpcscale.errors import NotFoundError, UsageError
from hpcscale.executor import HpcscaleExecutor, HpcscaleJob, probe, watch
from hpcscale.ledger import Ledger
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
    # the nodes do not see the tests: functions go along with their code
    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    yield
    cloudpickle.unregister_pickle_by_value(sys.modules[__name__])
    for watcher in watch._WATCHERS.values():
        watcher.connection.close()
    for ledger in watch._LEDGERS.values():
        ledger.close()


def executor(folder, site, **kw):
    kw.setdefault("hpcscale_python", sys.executable)
    made = submitit.AutoExecutor(folder, cluster="hpcscale", hpcscale_site=site, **kw)
    made.update_parameters(timeout_min=5, name="test")
    return made


def add(a, b):
    print("adding", a, b)
    return a + b


def where(a, b):
    environment = submitit.JobEnvironment()
    return a + b, environment.cluster, environment.job_id, environment.hostname


def fail(text):
    raise ValueError(text)


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


# --- several tasks, arrays, batches


@pytest.mark.parametrize("site", SITES)
def test_a_function_on_two_nodes_with_two_tasks_each(lab_env, tmp_path, site):
    made = executor(tmp_path / "jobs", site)
    made.update_parameters(nodes=2, tasks_per_node=2)
    job = made.submit(rank, None)
    with pytest.raises(AssertionError):
        job.result()
    ranks = job.results()
    assert [r[:3] for r in ranks] == [(0, 4, 0), (1, 4, 0), (2, 4, 1), (3, 4, 1)]
    assert len({r[3:] for r in ranks}) == 1, "one meeting point"
    assert ranks[0][5] == "4"
    assert job.task(3).result() == ranks[3]


@pytest.mark.parametrize("site", SITES)
def test_map_array_batch_and_submit_array(lab_env, tmp_path, site):
    made = executor(tmp_path / "jobs", site)
    jobs = made.map_array(add, [1, 2, 3], [10, 20, 30])
    with made.batch():
        batched = [made.submit(add, k, k) for k in range(2)]
    partial = made.submit_array([submitit.helpers.DelayedSubmission(add, 5, 6).result] * 2)
    assert len({job.job_id.split("_")[0] for job in jobs}) == 1
    assert [job.result() for job in jobs] == [11, 22, 33]
    assert [job.result() for job in batched] == [0, 2]
    assert [job.result() for job in partial] == [11, 11]
    assert jobs[1].submission().args == (2, 20)
    watcher = jobs[0].watcher
    assert all(job.watcher is watcher for job in jobs + batched)
    names = [Path(name).name for name in data("fetch", str(jobs[1].ref))["files"]]
    assert any(name.endswith("_log.out") for name in names)
    assert all(name.startswith((f"{jobs[1].job_id}_", f"{jobs[1].job_id}.")) for name in names)


def quick(k):
    return k, 2 * k


@pytest.mark.parametrize(
    ("count", "sizes"),
    [(8, [6, 2]), pytest.param(500, [51] * 9 + [41], marks=[pytest.mark.slow])],
)
@pytest.mark.timeout(900)
def test_arrays_beyond_the_sites_limit_are_one_list_of_jobs(
    lab_factory, use_lab, tmp_path, count, sizes
):
    use_lab(lab_factory(extra_conf={"lab-onprem": (f"MaxArraySize={sizes[0]}",)}))
    made = executor(tmp_path / "jobs", "lab-onprem")
    # of each part: the lab's credentials expire after 5 s, and one machine starts all tasks
    made.update_parameters(hpcscale_array_parallelism=4 if count > 100 else 12)
    jobs = made.map_array(quick, range(count))
    arrays = [job.job_id.partition("_")[0] for job in jobs]
    assert [arrays.count(a) for a in dict.fromkeys(arrays)] == sizes
    assert [job.result() for job in jobs] == [(k, 2 * k) for k in range(count)]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_twenty_thousand_tasks_are_accepted_as_the_controller_has_room(
    lab_factory, use_lab, tmp_path
):
    """slurm.conf's own defaults: arrays of 1,001, and 10,000 jobs in the controller's memory."""
    count, most = 20_000, 10_000
    conf = ("MaxArraySize=1001", f"MaxJobCount={most}", "MinJobAge=2")
    lab = use_lab(lab_factory(extra_conf={"lab-onprem": conf}))
    site = lab.site("lab-onprem")
    made = executor(tmp_path / "jobs", "lab-onprem")
    made.update_parameters(hpcscale_additional_parameters={"hold": True})
    begin = time.monotonic()
    jobs = made.map_array(quick, range(count))
    print(f"map_array of {count} returned after {time.monotonic() - begin:.1f} s")
    assert len(jobs) == count
    assert sum(job.batch is not None for job in jobs) == count - (most - 1)
    (last,) = (tmp_path / "jobs" / ".hpcscale").glob("*/19999.pkl")
    pickles = [(last.parent / f"{task}.pkl").stat().st_ino for task in range(count)]
    (unsent,) = data("status")["unsent"]
    assert (unsent["tasks"], unsent["waiting"]) == (count, count - (most - 1))
    (blocked,) = data("tend")["batches"]
    assert (blocked["sent_now"], blocked["why"]) == (
        0, "the controller has no room (MaxJobCount)"
    )  # fmt: skip
    client = jobs[0].watcher.connection.client
    for waiting in (count - 2 * (most - 1), 0):
        site.exec(["scancel", "--user", lab.state.user], check=True)
        until(lambda: client.job_count() == 0, 200, "the controller forgets ended jobs")
        (sent,) = data("tend", timeout_s=120)["batches"]
        assert sent["waiting"] == waiting
    (run_id,) = {job.batch[0] for job in jobs if job.batch}
    parts = batches.read(watch.own_ledger(), run_id).parts
    assert [p.start for p in parts] == [0, *(p.stop for p in parts[:-1])]
    assert parts[-1].stop == count
    assert len({p.attempt.job_id.base for p in parts}) == len(parts)
    # what each element loads, in order: every pickle once, under its number in the part
    loaded = [
        (Path(p.attempt.staged["inputs/submitit"]) / f"{number}.pkl").stat().st_ino
        for p in parts
        for number in range(p.stop - p.start)
    ]
    assert loaded == pickles
    assert len(set(loaded)) == count
    assert data("status")["unsent"] == []


@pytest.mark.begins_first
def test_what_a_limit_keeps_back_is_sent_when_there_is_room(lab_factory, use_lab, tmp_path):
    lab = use_lab(lab_factory(accounting=True))
    site = lab.site("lab-onprem")
    limit = ["sacctmgr", "-i", "modify", "user", lab.state.user, "set", "MaxSubmitJobs=4"]
    site.exec(limit, check=True)
    made = executor(tmp_path / "jobs", "lab-onprem")
    made.update_parameters(hpcscale_array_parallelism=2)
    jobs = made.map_array(nap, [3] * 4 + [0] * 5)
    sent = [job for job in jobs if job.batch is None]
    assert 0 < len(sent) <= 4
    assert len({job.submission().args for job in sent}) == 1
    (unsent,) = data("status")["unsent"]
    assert unsent["waiting"] == 9 - len(sent)
    assert f"{9 - len(sent)} of 9 tasks wait here" in hpcscale("status").stderr
    until(lambda: all(job.done(force_check=True) for job in sent), 60, "the first part ends")
    (tended,) = data("tend")["batches"]
    assert tended["sent_now"] > 0
    # the rest: by whoever waits for it
    assert [job.result() for job in jobs] == [3] * 4 + [0] * 5
    assert data("status")["unsent"] == []
    assert hpcscale("tend").stdout == "nothing waits to be sent\n"


# --- the rest of what a job can do


class Counter(submitit.helpers.Checkpointable):
    """Goes on where it was stopped."""

    def __init__(self):
        self.seen = []

    def __call__(self, marks):
        import os
        import time
        from pathlib import Path

        restart = int(os.environ.get("SLURM_RESTART_COUNT", "0"))
        self.seen.append(restart)
        print("restart", restart, flush=True)
        Path("started").write_text(str(restart))
        end = time.monotonic() + (100 if restart == 0 else 0)
        while time.monotonic() < end:
            time.sleep(0.1)
        return self.seen, marks


@pytest.mark.parametrize("site", SITES)
def test_a_checkpointable_is_requeued_with_its_state(lab_env, tmp_path, site):
    job = executor(tmp_path / "jobs", site).submit(Counter(), "kept")
    until(lambda: "restart 0" in (job.stdout() or ""), 40, "it runs")
    job._interrupt(timeout=False)
    assert job.result() == ([0, 1], "kept")
    assert "restart 0" in job.stdout()
    assert "restart 1" in job.stdout()
    ended = data("status", str(job.ref))["runs"][0]["attempts"][0]
    assert (ended["state"], ended["restarts"]) == ("COMPLETED", 1)


@pytest.mark.slow
def test_slurms_own_signal_at_the_time_limit_brings_a_checkpointable_back(lab_env, tmp_path):
    """Nobody but Slurm sends a signal here, at both sites at once: a minute is its shortest limit.

    slurmctld looks at limits every 30 s, and so signals 29 to 59 s after the start, and ends what
    then goes on at its next look.
    """
    jobs = {}
    for site in SITES:
        made = executor(tmp_path / site, site)
        made.update_parameters(timeout_min=1, slurm_signal_delay_s=1)
        jobs[site] = made.submit(Counter(), "kept"), made.submit(long, 300)
    for site, (saved, cut) in jobs.items():
        asked = ["scontrol", "-o", "show", "job", saved.job_id]
        assert " TimeLimit=00:01:00 " in lab_env.site(site).exec(asked, check=True).stdout
        assert saved.result() == ([0, 1], "kept")
        assert "restart 0" in saved.stdout()
        assert "restart 1" in saved.stdout()
        assert "Caught signal SIGUSR2" in saved.stdout() + saved.stderr()
        assert "this job is timed-out" in saved.stdout() + saved.stderr()
        ended = data("status", str(saved.ref))["runs"][0]["attempts"][0]
        assert (ended["state"], ended["restarts"]) == ("COMPLETED", 1)
        # what cannot save itself is told as well, and is not begun again
        assert "timed-out and not checkpointable" in str(cut.exception())
        ended = data("status", str(cut.ref))["runs"][0]["attempts"][0]
        assert (ended["state"], ended["restarts"]) == ("FAILED", 0)


@pytest.mark.parametrize("site", SITES)
def test_a_cancelled_function_has_no_result(lab_env, tmp_path, site):
    job = executor(tmp_path / "jobs", site).submit(long, 100)
    until(lambda: "sleeping" in (job.stdout() or ""), 40, "it runs")
    job.cancel()
    until(lambda: job.done(force_check=True), 40, "it ends")
    assert job.state == "CANCELLED"
    assert isinstance(job.exception(), utils.UncompletedJobError)


def long(seconds):
    import time

    print("sleeping", flush=True)
    time.sleep(seconds)


def test_one_task_of_an_array_is_cancelled_and_the_others_go_on(lab_env, tmp_path):
    made = executor(tmp_path / "jobs", "lab-cloud")
    jobs = made.map_array(nap, [60, 0, 0])
    jobs[0].cancel()
    assert [job.result() for job in jobs[1:]] == [0, 0]
    until(lambda: jobs[0].done(force_check=True), 40, "it ends")
    with pytest.raises(utils.UncompletedJobError):
        jobs[0].result()


@pytest.mark.parametrize("site", SITES)
def test_a_function_waits_for_another_by_slurms_dependency(lab_env, tmp_path, site):
    made = executor(tmp_path / "jobs", site)
    first = made.submit(nap, 2)
    made.update_parameters(slurm_dependency=f"afterok:{first.job_id}")
    jobs = made.map_array(add, [1, 2], [1, 2])
    assert [job.result() for job in jobs] == [2, 4]
    assert first.done(force_check=True), "it ended before they began"


def nap(seconds):
    import time

    time.sleep(seconds)
    return seconds


@pytest.mark.parametrize("site", SITES)
def test_commands_asyncio_setup_and_the_batch_script_itself(lab_env, tmp_path, site):
    made = executor(tmp_path / "jobs", site)
    made.update_parameters(
        slurm_setup=["export FROM_SETUP='set up'"], slurm_partition="gpu",
        slurm_additional_parameters={"nice": 3},
    )  # fmt: skip
    command = submitit.helpers.CommandFunction(["sh", "-c", 'echo "$FROM_SETUP" "$1"', "sh"])
    job = made.submit(command, "word")

    async def value():
        return await job.awaitable().result(poll_interval=0.2)

    assert asyncio.run(value()) == "set up word"
    made.update_parameters(slurm_use_srun=False, stderr_to_stdout=True)
    direct = made.submit(add, 1, 1)
    assert direct.result() == 2
    assert "adding 1 1" in direct.stdout()
    assert "Job completed successfully" in direct.stdout()


BOX = 'unshare --user --map-root-user --uts sh -c \'hostname in-a-box && exec "$0" "$@"\' '


@pytest.mark.slow
@pytest.mark.parametrize("site", SITES)
def test_python_may_be_a_command_that_starts_a_container(lab_env, tmp_path, site):
    """The words before the interpreter make a namespace, as a container's runtime does."""
    made = executor(tmp_path / "jobs", site, hpcscale_python=BOX + sys.executable)
    with made.batch():
        jobs = [made.submit(boxed, k) for k in range(2)]
    assert [job.result() for job in jobs] == [("in-a-box", 0), ("in-a-box", 1)]


def boxed(k):
    import platform

    return platform.node(), k


def test_software_of_the_site_gives_the_python_and_code_goes_along(lab_env, tmp_path, monkeypatch):
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "own_module.py").write_text(
        "def where():\n    import os\n    return __file__, os.getcwd()\n"
    )
    monkeypatch.syspath_prepend(tmp_path / "code")
    import own_module

    made = hpcscale_package.Executor(
        tmp_path / "jobs", site="lab-cloud", software="lab-python", code=tmp_path / "code"
    )
    made.update_parameters(timeout_min=5, name="test")  # submitit's own names, no prefix
    assert type(made) is HpcscaleExecutor
    job = made.submit(own_module.where)
    job.wait()
    assert job.done()
    assert job.result() == (f"{job.run_dir}/code/own_module.py", f"{job.run_dir}/code")


def test_a_python_that_cannot_read_our_pickles_is_refused_before_anything_is_sent(
    lab_env, tmp_path
):
    wrong = executor(tmp_path / "jobs", "lab-cloud", hpcscale_python="/no/such/python")
    with pytest.raises(NotFoundError, match="/no/such/python cannot be run there"):
        wrong.submit(add, 1, 2)
    shim = tmp_path / "python"
    other = "import sys; sys.version_info = (3, 9, 0)"
    shim.write_text(f"#!/bin/sh\nshift\nexec {sys.executable} -c '{other}\n'\"$1\"\n")
    shim.chmod(0o755)
    older = executor(tmp_path / "jobs", "lab-onprem", hpcscale_python=str(shim))
    with pytest.raises(
        UsageError, match=r"is Python 3\.\d+, and the function was pickled by 3\.\d+"
    ):
        older.submit(add, 1, 2)
    with Ledger.open() as ledger:
        assert ledger.all_attempts() == []


def test_the_command_line_brings_results_and_unpickles_nothing(lab_env, tmp_path):
    """The pickle of a job may run anything: only result() of the user's own process loads it."""
    trap = tmp_path / "opened"
    job = executor(tmp_path / "jobs", "lab-cloud").submit(poison, str(trap))
    run_id = watch.own_ledger().attempt(job.submission_id).run_id
    hpcscale("wait", run_id)
    assert data("status", run_id)["runs"][0]["attempts"][0]["state"] == "COMPLETED"
    assert json.loads(job._outcome_path().read_text())["outcome"] == "success"
    assert job.done()
    assert not trap.exists()
    assert job.result() is None
    assert trap.exists()


# every verb that reads a run, as a user and as cron call it
READERS = {
    "status": [["status"], ["status", "RUN"], ["status", "--all"]],
    "wait": [["wait", "RUN"]],
    "logs": [["logs", "RUN"]],
    "fetch": [["fetch", "RUN"], ["fetch", "RUN", "--to", "elsewhere"]],
    "tend": [["tend"]],
    "burst": [["burst", "plan"], ["burst", "run"], ["burst", "status", "--all"], ["burst", "reap"]],
    "forecast": [["forecast", "RUN"]],
    "cancel": [["cancel", "RUN"]],
}
NO_RUNS = {"catalog", "lab", "lint", "render", "site", "submit"}


def test_every_verb_is_a_reader_or_reads_no_runs():
    assert COMMANDS.keys() <= READERS.keys() | NO_RUNS


@pytest.mark.slow
@pytest.mark.parametrize("site", SITES)
def test_a_hostile_pickle_is_opened_by_no_verb(lab_env, tmp_path, monkeypatch, site):
    """Planted in every file of submitit's that a site may send back or a folder may hold."""
    monkeypatch.chdir(tmp_path)
    trap = tmp_path / "opened"
    folder = tmp_path / "jobs"
    if site == "lab-onprem":
        folder = lab_env.site(site).paths.scratch / "hostile"
    made = executor(folder, site, hpcscale_burst="auto")
    job = made.submit(poison, str(trap))
    array = made.map_array(poison, [str(trap)] * 2)
    run_id = watch.own_ledger().attempt(job.submission_id).run_id
    hpcscale("wait", run_id)
    evil = cloudpickle.dumps(poison(str(trap)))
    for path in [*folder.rglob("*.pkl")]:
        path.unlink()  # a hard link would be the job's own as well
        path.write_bytes(evil)
    for calls in READERS.values():
        for argv in calls:
            hpcscale(*[run_id if word == "RUN" else word for word in argv], code=None)
            assert not trap.exists(), argv
    assert job.done()
    assert all(j.done(force_check=True) in {True, False} for j in array)
    assert job.outcome()["function"]["outcome"] == "success"
    assert not trap.exists()
    with contextlib.suppress(TypeError):  # it is no result of submitit's
        job.result()
    assert trap.exists(), "the trap works"


def poison(path):
    class Poison:
        def __reduce__(self):
            return os.mkdir, (path,)

    return Poison()
