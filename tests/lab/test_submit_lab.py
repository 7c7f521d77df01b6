"""Submitting to real Slurm: what arrives, what is refused, what gets lost on the way."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from job_helpers import attempts, data, hpcscale, start
from lab_helpers import impatient, job, until

from hpcscale.cli._output import printable
from hpcscale.errors import (
    HpcscaleError,
    NotSentError,
    RefusedError,
    SubmitUnknownError,
    UnreachableError,
)
from hpcscale.lab import faults
from hpcscale.lab.process import patience
from hpcscale.ledger import Ledger
from hpcscale.slurm.types import JobState
from hpcscale.spec import Resources, SecretSource

UGLY = "a'b\"\n$(touch /tmp/hpcscale-pwned)`id` ;-- %j %s\\ | \t_[0-3]"
SITES = ("lab-onprem", "lab-cloud")


def jobs_there(site):
    """Ids of every job that may run. (Of what it refuses Slurm keeps a FAILED record.)"""
    return site.exec(["squeue", "-h", "-o", "%A"], check=True).stdout.split()


def runs_there(site):
    """Directories of runs on the site."""
    done = site.exec(["find", str(site.paths.scratch), "-path", "*/runs/r*", "-prune"])
    return done.stdout.split()


@pytest.mark.parametrize("name", SITES)
def test_a_job_of_any_name_arrives_and_is_found_by_it(lab_env, name):
    got = start(name, "echo ran", name=UGLY)
    hpcscale("wait", UGLY)
    attempt = attempts(UGLY)[name]
    assert (attempt["state"], attempt["exit_code"]) == ("COMPLETED", 0)
    assert attempt["ref"] == str(got.ref)
    assert hpcscale("logs", UGLY).stdout == "ran\n"
    assert printable(UGLY) in hpcscale("status").stdout
    assert not Path("/tmp/hpcscale-pwned").exists()


@pytest.mark.parametrize("name", SITES)
def test_what_crosses_sites_is_there_and_comes_back(lab_env, tmp_path, name, monkeypatch):
    monkeypatch.setenv("MY_TOKEN", "s3cr3t")
    code = tmp_path / "code"
    (code / ".git").mkdir(parents=True)
    (code / "main.sh").write_text("cat $HPCSCALE_INPUT_DATA/a/b; echo $TOKEN | wc -c; ls -A\n")
    (tmp_path / "data" / "a").mkdir(parents=True)
    (tmp_path / "data" / "a" / "b").write_text("from the input\n")
    from hpcscale.connect import connect
    from hpcscale.render import render
    from hpcscale.site import load_site
    from hpcscale.spec import JobSpec
    from hpcscale.submit import submit

    spec = JobSpec(
        command=(
            "bash",
            "-c",
            "bash main.sh; echo one > $HPCSCALE_OUTPUT_FILE;"  # noqa: ISC004 # one word of the command
            " mkdir -p $HPCSCALE_OUTPUT_TREE/x; echo two > $HPCSCALE_OUTPUT_TREE/x/y",
        ),
        workdir=str(code),
        inputs={"data": str(tmp_path / "data")},
        outputs={"file": str(tmp_path / "out.txt"), "tree": str(tmp_path / "tree") + "/"},
        secrets={"TOKEN": SecretSource(kind="env", name="MY_TOKEN")},
        resources=Resources(time_limit_s=600),
    )
    site = load_site(name).site
    with Ledger.open() as ledger, connect(site) as connection:
        got = submit(render(spec, site), site, connection, ledger)
    hpcscale("wait", got.run_id)
    assert hpcscale("logs", got.run_id).stdout == "from the input\n7\nmain.sh\n"
    assert (tmp_path / "out.txt").read_text() == "one\n"
    assert (tmp_path / "tree" / "x" / "y").read_text() == "two\n"
    there = lab_env.site(name)
    assert there.exec(["find", f"{got.run_dir}/secrets", "-type", "f"]).stdout == ""


@pytest.mark.parametrize("name", SITES)
def test_a_refusal_leaves_nothing_there(lab_env, name):
    site = lab_env.site(name)
    jobs, runs = jobs_there(site), runs_there(site)
    with pytest.raises(RefusedError) as caught:
        start(name, "true", resources=Resources(gpus_per_node=64, time_limit_s=60))
    assert caught.value.exit_code == 4
    assert caught.value.hint
    assert (jobs_there(site), runs_there(site)) == (jobs, runs)
    with Ledger.open() as ledger:
        assert [a.state for a in ledger.all_attempts()] == [JobState.REFUSED]


def test_a_site_that_cannot_be_reached_leaves_nothing_open(lab_env):
    faults.ssh_cut(lab_env, "refuse", count=20)
    with pytest.raises(UnreachableError):
        start("lab-cloud", "true")
    with Ledger.open() as ledger:
        assert ledger.open_attempts() == []


def test_a_dead_controller_leaves_nothing_open(lab_env):
    faults.controller(lab_env, "lab-onprem", "kill")
    with impatient(lab_env), pytest.raises(NotSentError):
        start("lab-onprem", "true")
    with Ledger.open() as ledger:
        assert ledger.open_attempts() == []


@pytest.mark.parametrize("tree", [False, True])
def test_a_full_disk_is_said_and_nothing_is_submitted(lab_env, tmp_path, tree):
    site = lab_env.site("lab-cloud")
    jobs = jobs_there(site)
    data = tmp_path / "data"
    data.mkdir()
    (data / "big").write_bytes(bytes(1 << 20))
    faults.disk_full(lab_env, "lab-cloud", free_bytes=1 << 16)
    with pytest.raises(HpcscaleError, match=r"[Ss]pace"):
        start("lab-cloud", "true", inputs={"d": str(data if tree else data / "big")})
    with Ledger.open() as ledger:
        assert [a.state for a in ledger.all_attempts()] == [JobState.REFUSED]
    faults.disk_free(lab_env, "lab-cloud")
    assert jobs_there(site) == jobs


# --- no answer


def test_a_controller_that_hangs_gets_the_job_once(lab_env):
    site = lab_env.site("lab-onprem")
    faults.controller(lab_env, "lab-onprem", "stop")
    with pytest.raises(SubmitUnknownError, match="may or may not exist"):
        # sbatch must have sent its request by then, also on a busy machine
        start("lab-onprem", "sleep 1", name="lost", timeout_s=patience(2))
    with Ledger.open() as ledger:
        attempt = ledger.find("lost")
    assert (attempt.state, attempt.job_id) == (JobState.SUBMIT_UNKNOWN, None)
    faults.controller(lab_env, "lab-onprem", "continue")
    # the request of the killed sbatch still lay in the controller's socket
    until(lambda: attempts("lost")["lab-onprem"]["job_id"], 30, "the job is matched")
    hpcscale("wait", "lost")
    listing = site.exec(["squeue", "-h", "--states=all", "-o", "%k"], check=True).stdout
    assert listing.count(attempt.submission_id) == 1


def test_ssh_cut_after_the_request_gets_the_job_once(lab_env):
    site = lab_env.site("lab-cloud")
    faults.ssh_cut(lab_env, "after", match="sbatch")
    with pytest.raises(SubmitUnknownError):
        start("lab-cloud", "sleep 1", name="cut")
    faults.ssh_cut(lab_env, "normal")
    until(lambda: attempts("cut")["lab-cloud"]["job_id"], 30, "the job is matched")
    with Ledger.open() as ledger:
        attempt = ledger.find("cut")
    listing = site.exec(["squeue", "-h", "--states=all", "-o", "%k"], check=True).stdout
    assert listing.count(attempt.submission_id) == 1


SUBMITTER = """
import sys
sys.path.insert(0, {tests!r})
from job_helpers import start
start("lab-onprem", "sleep 1", name="killed")
"""


@pytest.mark.parametrize("fault", ["stop", None])
def test_a_submitter_that_is_killed_loses_no_job(lab_env, request, fault):
    """kill -9 while sbatch runs: the row is there, and the job is matched or known to be none."""
    site = lab_env.site("lab-onprem")
    if fault:
        faults.controller(lab_env, "lab-onprem", fault)
    process = subprocess.Popen(
        [sys.executable, "-c", SUBMITTER.format(tests=str(request.config.rootpath / "tests"))],
        start_new_session=True,
    )

    def row():
        with Ledger.open() as ledger:
            return ledger.all_attempts()

    def sbatch_runs():
        return (
            subprocess.run(
                ["pgrep", "-P", str(process.pid), "-f", "sbatch"], capture_output=True, check=False
            ).stdout
            or process.poll() is not None
        )

    until(row, 20, "the row is written")
    if fault:
        until(sbatch_runs, 20, "sbatch is called")
        time.sleep(0.3)  # its request is on its way; there is nothing to wait for but that
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    if fault:
        faults.controller(lab_env, "lab-onprem", "continue")
    attempt = row()[0]
    comments = ["squeue", "-h", "--states=all", "-o", "%k"]

    def settled():
        there = attempt.submission_id in site.exec(comments, check=True).stdout
        known = attempts("killed")["lab-onprem"]
        return not there or known["job_id"] is not None

    until(settled, 20, "ledger and Slurm agree")
    listing = site.exec(comments, check=True).stdout
    assert listing.count(attempt.submission_id) <= 1


# --- dependencies


def test_a_dependency_is_slurms_own(lab_env, tmp_path):
    end = lab_env.site("lab-onprem").paths.scratch / f"end-{tmp_path.name}"
    first = start("lab-onprem", f"until [ -e {end} ]; do sleep 0.2; done", name="first")
    second = start("lab-onprem", "true", name="second", after=(f"afterok:{first.run_id}",))
    assert f"afterok:{first.ref.job_id}" in job(
        lab_env.site("lab-onprem"), str(second.ref.job_id)
    ).get("Dependency", "")
    assert "waits for another job" in hpcscale("status", "second").stdout
    end.touch()
    hpcscale("wait", "first", "second")


def test_an_array_has_a_log_for_each_element(lab_env):
    got = start("lab-onprem", "echo I am $SLURM_ARRAY_TASK_ID", array="1-3%2")
    assert got.array_size == 3
    hpcscale("wait", got.run_id)
    assert hpcscale("logs", f"{got.ref}_2").stdout == "I am 2\n"
    assert "say which element" in hpcscale("logs", got.run_id, code=2).stderr
    assert attempts(got.run_id)["lab-onprem"]["elements"] == {"COMPLETED": 3}
    assert "3 COMPLETED" in hpcscale("status", got.run_id).stdout


def test_a_script_of_ours_is_kept_with_the_run(lab_env):
    got = start("lab-onprem", "true")
    site = lab_env.site("lab-onprem")
    assert site.exec(["cat", f"{got.run_dir}/script.sh"]).stdout == got.script
    assert data("status", got.run_id)["runs"][0]["run_id"] == got.run_id
