"""status, logs, cancel and wait on real Slurm, with what goes wrong there."""

import os
import pty
import signal
import subprocess
import sys

import pytest
from job_helpers import attempts, data, hpcscale, start
from lab_helpers import impatient, job_state, saved, sbatch, until

from hpcscale.errors import NotThisJobError
from hpcscale.lab import faults
from hpcscale.lab.process import patience
from hpcscale.ledger import Ledger
from hpcscale.spec import Resources

SITES = ("lab-onprem", "lab-cloud")


def state(job, site="lab-onprem"):
    return attempts(job)[site]["state"]


def running(job, site="lab-onprem"):
    return until(lambda: state(job, site) == "RUNNING", 90, f"{job} runs")


# --- status


def test_a_day_without_jobs_says_so(lab_env):
    assert "nothing was submitted" in hpcscale("status").stdout
    assert data("status")["runs"] == []


def test_both_sites_stand_in_one_table(lab_env):
    here, there = start("lab-onprem", "sleep 60"), start("lab-cloud", "sleep 60")
    table = hpcscale("status").stdout
    assert str(here.ref) in table
    assert str(there.ref) in table
    assert hpcscale("status", "--site", "lab-cloud").stdout.count("lab-") == 1


def test_a_waiting_job_says_why_in_words(lab_env):
    start("lab-onprem", "sleep 60", resources=Resources(nodes=4, exclusive=True, time_limit_s=600))
    start("lab-onprem", "true", name="waits")
    until(lambda: "free nodes" in hpcscale("status", "waits").stdout, 20, "the reason is there")
    row = attempts("waits")["lab-onprem"]
    assert (row["state"], row["reason"]) == ("PENDING", "Resources")
    assert row["cost_so_far_usd"] == "0.00"


def test_one_site_down_hides_no_other(lab_env):
    start("lab-onprem", "sleep 60", name="here")
    start("lab-cloud", "sleep 60", name="there")
    running("here")
    faults.ssh_cut(lab_env, "refuse", count=50)
    done = hpcscale("status")
    assert "RUNNING" in done.stdout
    assert "lab-cloud gave no answer" in done.stderr
    assert "no answer since" in done.stdout
    by_name = {r["name"]: r["attempts"][0] for r in data("status")["runs"]}
    assert by_name["there"]["stale"]
    assert not by_name["here"]["stale"]
    hpcscale("status", "--site", "lab-cloud", code=5)


def test_a_job_that_slurm_forgot_is_told_by_its_own_report(lab_factory, use_lab):
    lab = use_lab(lab_factory(nodes=1, extra_conf={"lab-onprem": ("MinJobAge=2",)}))
    start("lab-onprem", "exit 4", name="short")
    site = lab.site("lab-onprem")
    until(lambda: not site.exec(["squeue", "-h", "-a", "-t", "all"]).stdout, 90, "Slurm forgets")
    row = attempts("short")["lab-onprem"]
    assert (row["state"], row["exit_code"]) == ("FAILED", 4)


def test_with_accounting_history_tells_what_slurm_forgot(lab_factory, use_lab):
    lab = use_lab(
        lab_factory(nodes=1, accounting=True, extra_conf={"lab-onprem": ("MinJobAge=2",)})
    )
    got = start("lab-onprem", "sleep 100", name="long")
    running("long")
    site = lab.site("lab-onprem")
    site.exec(["scancel", str(got.ref.job_id)], check=True)
    until(lambda: not site.exec(["squeue", "-h", "-a", "-t", "all"]).stdout, 90, "Slurm forgets")
    row = attempts("long")["lab-onprem"]
    assert (row["state"], row["ended"]) == ("CANCELLED", True)
    assert row["cost_usd"] is not None


# --- logs


def follow(*args):
    return subprocess.Popen(
        [sys.executable, "-m", "hpcscale", "logs", "-f", *args],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize("name", SITES)
def test_logs_follow_across_a_requeue_and_end_with_the_job(lab_env, name):
    got = start(
        name,
        "echo start ${SLURM_RESTART_COUNT:-0};"
        " while [ ${SLURM_RESTART_COUNT:-0} = 0 ]; do sleep 0.2; done; echo done",
        directives={"requeue": None},
    )
    process = follow(got.run_id)
    assert process.stdout is not None
    assert process.stdout.readline() == "start 0\n"
    lab_env.site(name).exec(["scontrol", "requeue", str(got.ref.job_id)], check=True)
    out, err = process.communicate(timeout=patience(100))
    assert process.returncode == 0, err
    assert [x for x in out.splitlines() if x.startswith(("start", "done"))] == ["start 1", "done"]
    assert hpcscale("logs", got.run_id, "-n", "1").stdout == "done\n"


def test_a_job_that_waits_has_no_log_yet(lab_env):
    start("lab-onprem", "sleep 60", resources=Resources(nodes=4, exclusive=True, time_limit_s=600))
    got = start("lab-onprem", "true")
    done = hpcscale("logs", got.run_id)
    assert done.stdout == ""
    assert "no log yet: PENDING" in done.stderr


def test_escapes_do_not_reach_a_terminal_and_stay_in_a_pipe(lab_env):
    text = r"\033]0;title\007\033[31mred\033[0m\033[2J\r50%%\rok\n"
    got = start("lab-onprem", f"printf '{text}'")
    hpcscale("wait", got.run_id)
    piped = hpcscale("logs", got.run_id).stdout
    assert "\x1b]0;title\x07" in piped
    master, slave = pty.openpty()
    subprocess.run(
        [sys.executable, "-m", "hpcscale", "logs", got.run_id],
        stdout=slave,
        timeout=patience(60),
        check=True,
    )
    os.close(slave)
    shown = os.read(master, 4096)
    os.close(master)
    assert b"title" not in shown
    assert b"\x1b[2J" not in shown
    assert b"\x1b[31mred\x1b[0m" in shown
    assert b"\r50%\rok" in shown


# --- cancel


@pytest.mark.parametrize("name", SITES)
def test_cancel_ends_running_and_waiting_jobs(lab_env, name):
    first = start(name, "sleep 100", resources=Resources(nodes=4, exclusive=True, time_limit_s=600))
    second = start(name, "sleep 100")
    running(first.run_id, name)
    done = hpcscale("cancel", first.run_id, str(second.ref))
    assert done.stdout.count("cancelled") == 2
    site = lab_env.site(name)
    for got in (first, second):
        until(
            lambda got=got: job_state(site, str(got.ref.job_id)) == "CANCELLED", 20, "it has ended"
        )
        hpcscale("wait", got.run_id, code=6)
        assert state(got.run_id, name) == "CANCELLED"
    assert "had already ended" in hpcscale("cancel", first.run_id).stdout


def test_cancel_ends_one_element_of_an_array(lab_env):
    got = start("lab-onprem", "sleep 100", array="0-2")
    until(lambda: attempts(got.run_id)["lab-onprem"]["elements"] == {"RUNNING": 3}, 20, "all run")
    hpcscale("cancel", f"{got.ref}_1")
    until(
        lambda: attempts(got.run_id)["lab-onprem"]["elements"] == {"CANCELLED": 1, "RUNNING": 2},
        20,
        "one element is cancelled",
    )
    table = hpcscale("status", got.run_id).stdout
    assert "1 CANCELLED, 2 RUNNING" in table
    assert f"{got.ref}_1 " in table


def lose(lab, site_name, job_name):
    """Submit a job that a crash of the controller forgets; its id is given away afterwards."""
    site = lab.site(site_name)
    saved(site)
    on_disk = site.paths.state / "ctld" / "job_state"
    last = on_disk.read_bytes()
    got = start(site_name, "sleep 100", name=job_name)
    faults.controller(lab, site_name, "kill")
    # it saves again five seconds later at the earliest; a slow machine submits even later
    on_disk.write_bytes(last)
    faults.controller(lab, site_name, "restart")
    assert not job_state(site, str(got.ref.job_id))
    return got


def test_cancel_never_kills_a_strangers_job(lab_env):
    site = lab_env.site("lab-onprem")
    name = "lost"
    got = lose(lab_env, "lab-onprem", name)
    stranger = sbatch(site, "--job-name=lost")
    assert stranger == str(got.ref.job_id), "Slurm gives the id away again"
    done = hpcscale("cancel", got.run_id, code=NotThisJobError.exit_code)
    assert "another job now" in done.stderr
    assert job_state(site, stranger) in {"PENDING", "RUNNING"}
    assert state(name) == "UNKNOWN"
    assert "not listed any more" in hpcscale("status", name).stdout
    hpcscale("wait", name, "--timeout", "2s", code=1)


def test_cancel_without_an_answer_says_so(lab_env):
    got = start("lab-onprem", "sleep 100")
    faults.controller(lab_env, "lab-onprem", "kill")
    with impatient(lab_env):
        done = hpcscale("cancel", got.run_id, code=5)
    assert "scontrol ping" in done.stderr
    with Ledger.open() as ledger:
        assert not ledger.attempt(got.submission_id).ended


# --- wait


def test_wait_tells_the_worst(lab_env):
    good, bad = start("lab-onprem", "true"), start("lab-onprem", "exit 3")
    done = hpcscale("wait", good.run_id, bad.run_id, code=6)
    assert f"{good.run_id}: COMPLETED" in done.stdout
    assert f"{bad.run_id}: FAILED (exit 3)" in done.stdout
    assert "hpcscale logs" in done.stderr


def test_wait_gives_up_in_time_and_can_be_interrupted(lab_env):
    got = start("lab-onprem", "sleep 100")
    assert "not all have ended" in hpcscale("wait", got.run_id, "--timeout", "1s", code=1).stderr
    process = subprocess.Popen(
        [sys.executable, "-m", "hpcscale", "wait", got.run_id],
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    process.stderr.readline()  # it has asked once
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=patience(20))
    assert process.returncode == 130
    assert "Traceback" not in err


def test_wait_outlives_a_controller_that_is_away(lab_env, tmp_path):
    site = lab_env.site("lab-onprem")
    end = site.paths.scratch / f"end-{tmp_path.name}"
    got = start("lab-onprem", f"until [ -e {end} ]; do sleep 0.2; done")
    running(got.run_id)
    # a controller that dies before it saved would start the job again, on a node that still has it
    saved(site)
    faults.controller(lab_env, "lab-onprem", "kill")
    with impatient(lab_env):
        process = subprocess.Popen(
            [sys.executable, "-m", "hpcscale", "wait", got.run_id],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert process.stderr is not None
        assert "gave no answer" in process.stderr.readline()
    faults.controller(lab_env, "lab-onprem", "restart")
    end.touch()
    out, _ = process.communicate(timeout=patience(100))
    assert process.returncode in {0, 6}, out  # the node may have been declared dead meanwhile


@pytest.mark.parametrize("verb", ["status", "logs", "cancel", "wait"])
def test_an_unknown_job_is_said_in_one_line(lab_env, verb):
    done = hpcscale(verb, "nothing", code=8)
    assert done.stderr.startswith("hpcscale: error: ")
    start("lab-onprem", "true")
    done = hpcscale(verb, "nothing", code=8)
    assert "no job 'nothing'" in done.stderr
    assert "try: hpcscale status" in done.stderr


def test_a_broken_ledger_is_left_as_it_is(lab_env, tmp_path):
    start("lab-onprem", "true")
    path = tmp_path / "state" / "ledger.sqlite3"
    whole = path.read_bytes()
    path.write_bytes(whole[:5000])
    for verb in (["status"], ["cancel", "1"], ["submit", "--site", "lab-onprem", "--", "true"]):
        done = hpcscale(*verb, code=9)
        assert "damaged" in done.stderr
        assert "try: " in done.stderr
    assert path.read_bytes() == whole[:5000]
