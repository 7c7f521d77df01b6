"""``hpcscale forecast`` on real Slurm: what the site shows decides what is said."""

import json
import os
import pwd
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from lab_helpers import job_state, sbatch, until

from hpcscale.cli import main
from hpcscale.errors import HpcscaleError


def forecast(*args):
    result = CliRunner().invoke(main, ["forecast", "--json", *args], standalone_mode=False)
    if result.exception:
        raise result.exception
    document, *_ = json.loads(result.stdout)["data"]  # its own site comes first
    return document


def fill(site, nodes, minutes=60):
    """A job on every node, running."""
    running = sbatch(site, f"-N{nodes}", "--exclusive", f"-t{minutes}", "-o/dev/null")
    until(lambda: job_state(site, running) == "RUNNING", 30, "the nodes are taken")
    return running


def test_without_slurmdbd_limits_are_believed_and_said_to_be(lab_env):
    site = lab_env.site("lab-onprem")
    fill(site, 4)
    first = sbatch(site, "-N4", "--exclusive", "-t30", "-o/dev/null", "--priority=1000")
    second = sbatch(site, "-N1", "--exclusive", "-t10", "-o/dev/null", "--priority=10")
    held = sbatch(site, "-N1", "-H", "-o/dev/null")

    said = forecast(f"lab-onprem:{second}")
    assert (said["queue_level"], said["history_level"]) == ("full", "absent")
    assert said["learned_jobs"] == 0
    assert any("no slurmdbd" in note for note in said["notes"])
    # behind one that runs an hour at most and one that may take half an hour
    assert 85 * 60 < said["p50_s"] <= 90 * 60
    assert said["p90_s"] >= said["p50_s"]
    assert "not calibrated" in said["bound"]
    assert 55 * 60 < forecast(f"lab-onprem:{first}")["p50_s"] <= 60 * 60
    assert forecast("--site", "lab-onprem", "--nodes", "4", "--", "true")["p50_s"] > 99 * 60 - 60

    said = forecast(f"lab-onprem:{held}")
    assert said["p50_s"] is None
    assert said["bound"] == "Slurm holds it: JobHeldUser"


def test_a_singleton_and_any_one_of_two_are_waited_for(lab_env):
    site = lab_env.site("lab-onprem")
    small = ("-N1", "-n1", "-o/dev/null")
    ends = {}
    for minutes, name in ((20, "chain"), (40, "long"), (60, "longer")):
        ends[name] = sbatch(site, *small, f"-t{minutes}", f"-J{name}")
        until(lambda name=name: job_state(site, ends[name]) == "RUNNING", 30, "it runs")
    of_two = f"afterany:{ends['longer']}?afterany:{ends['long']}"
    for minutes, words in (
        (20, ("-Jchain", "-dsingleton")),
        (40, ("-Jother", f"-d{of_two}")),
        (60, ("-Jother", f"-d{of_two.replace('?', ',')}")),
    ):
        waiting = sbatch(site, *small, "-t5", *words)
        # nodes are free: nothing but its dependency keeps it
        assert (minutes - 5) * 60 < forecast(f"lab-onprem:{waiting}")["p50_s"] <= minutes * 60


def test_a_job_in_a_reservation_is_planned_in_it_and_the_cloud_is_asked_too(lab_env):
    site = lab_env.site("lab-onprem")
    me = pwd.getpwuid(os.geteuid()).pw_name
    site.exec(
        ["scontrol", "create", "reservation", "ReservationName=mine", f"Users={me}", "NodeCnt=2",
         "StartTime=now+30minutes", "Duration=60"], check=True,
    )  # fmt: skip
    jobs = []
    try:
        jobs += [sbatch(site, "-N2", "--exclusive", "-t10", "--reservation=mine", "-o/dev/null")]
        jobs += [sbatch(site, "-N4", "--exclusive", "-t60", "-o/dev/null")]
        assert 20 * 60 < forecast(f"lab-onprem:{jobs[0]}")["p50_s"] <= 30 * 60
        result = CliRunner().invoke(main, ["forecast", "--json", f"lab-onprem:{jobs[1]}"])
        own, *others = json.loads(result.stdout)["data"]
        # four nodes are free for less than an hour before the reservation
        assert 80 * 60 < own["p50_s"] <= 90 * 60
        (cloud,) = [other for other in others if other["site"] == "lab-cloud"]
        assert cloud["boot_p95_s"] > 0
        assert cloud["p50_s"] is None or cloud["p50_s"] >= cloud["staging_s"] + cloud["boot_p50_s"]
    finally:
        if jobs:
            site.exec(["scancel", *jobs], check=True)
        site.exec(["scontrol", "delete", "ReservationName=mine"], check=True)


def test_a_forecast_is_remembered_and_compared_with_the_start(lab_env):
    from hpcscale.settings import state_dir

    site = lab_env.site("lab-onprem")
    running = fill(site, 4)
    waiting = sbatch(site, "-N4", "--exclusive", "-t30", "-o/dev/null")
    assert forecast(f"lab-onprem:{waiting}")["p50_s"] > 3000
    site.exec(["scancel", running], check=True)
    until(lambda: job_state(site, waiting) == "RUNNING", 30, "the waiting job runs")
    assert forecast(f"lab-onprem:{waiting}")["p50_s"] == 0
    kept = json.loads((state_dir() / "forecast" / "lab-onprem.json").read_text())
    assert not kept["asked"]
    ((planned, waited, upper, *_),) = kept["residuals"]
    assert planned > 3000
    assert 0 <= waited < 60
    assert upper is None


@pytest.mark.slow  # a lab with accounting
def test_limits_of_a_qos_and_an_account_are_in_the_plan(lab_factory, use_lab):
    lab = use_lab(lab_factory(nodes=2, accounting=True))
    site = lab.site("lab-onprem")
    small = ("-N1", "-n1", "--gpus-per-node=1", "-t30", "-o/dev/null")
    first = sbatch(site, *small)
    until(lambda: job_state(site, first) == "RUNNING", 60, "the first runs")
    row = site.exec(["squeue", "-h", "-j", first, "-o", "%a %q"], check=True).stdout.split()
    for what, name, limit in (
        ("qos", row[1], "MaxTRESPU=gres/gpu={}"), ("account", row[0], "GrpJobs={}"),
    ):  # fmt: skip
        modify = ["sacctmgr", "-i", "modify", what, name, "set"]
        site.exec([*modify, limit.format(1)], check=True)
        waiting = sbatch(site, *small)
        until(lambda job=waiting: reason(site, job).startswith(("QOS", "Assoc")), 60, "it is held")
        # nodes are free, so without the limit it is 0; it starts when the first has ended, which
        # those that were cancelled may have taught to be soon
        assert 0 < forecast(f"lab-onprem:{waiting}")["p50_s"] <= 30 * 60
        site.exec([*modify, limit.format(-1)], check=True)
        until(lambda job=waiting: job_state(site, job) == "RUNNING", 60, "nothing limits it")
        site.exec(["scancel", waiting], check=True)
    # the same by a QOS of the partition, which no job names, and by what it gives each account
    site.exec(["sacctmgr", "-i", "add", "qos", "of_part"], check=True)
    site.exec(["scontrol", "update", "PartitionName=gpu", "QoS=of_part"], check=True)
    site.exec(["scancel", first], check=True)  # Slurm counts only what starts from now on
    first = sbatch(site, *small)
    until(lambda: job_state(site, first) == "RUNNING", 60, "another one runs")
    for limit in ("GrpTRES=gres/gpu={}", "MaxJobsPA={}"):
        modify = ["sacctmgr", "-i", "modify", "qos", "of_part", "set"]
        site.exec([*modify, limit.format(1)], check=True)
        other = sbatch(site, *small)
        # QOSGrpGRES, MaxJobsPerAccount
        until(lambda job=other: reason(site, job).startswith(("QOS", "Max")), 60, "it is held")
        assert 0 < forecast(f"lab-onprem:{other}")["p50_s"] <= 30 * 60
        site.exec(["scancel", other], check=True)
        site.exec([*modify, limit.format(-1)], check=True)


def reason(site, job_id):
    return site.exec(["squeue", "-h", "-j", job_id, "-o", "%r"], check=True).stdout


@pytest.mark.begins_first
def test_private_data_and_learned_runtimes(lab_factory, use_lab, ordinary, monkeypatch):
    lab = use_lab(
        lab_factory(
            nodes=2, accounting=True, extra_conf={"lab-onprem": ("PrivateData=jobs,usage",)}
        )
    )
    site = lab.site("lab-onprem")
    sbatch(site, "--array=1-12", "-t600", "-o/dev/null", script="sleep 1")
    listing = ["squeue", "-h", "-t", "PD,R,CG"]
    until(lambda: not site.exec(listing, check=True).stdout, 60, "short jobs have ended")
    fill(site, 1, minutes=120)
    ahead = sbatch(site, "-N2", "--exclusive", "-t1200", "-o/dev/null", "--priority=1000")
    waiting = sbatch(site, "-N1", "--exclusive", "-t600", "-o/dev/null", "--priority=10")

    def learned():
        said = forecast(f"lab-onprem:{waiting}")
        # slurmdbd knows a job before it knows its limit, from which nothing can be learned; three
        # such limits are enough for a lever, and not for a job of another limit
        return said if said["levers"] and said["p50_s"] < 10 * 3600 else None

    said = until(learned, 60, "sacct knows the ended jobs")
    assert said["learned_jobs"] == 12
    assert said["history_level"] == "full"
    with pytest.raises(HpcscaleError, match="its history says too little"):
        forecast("--site", "lab-onprem", "--backtest")
    # the one ahead asked for 20 h, and its like took seconds: it is not believed to stay
    assert said["p90_s"] > 10 * 3600
    # ten hours do not fit before the head's start, what such jobs take does
    levers = {lever["change"]: lever for lever in said["levers"]}
    assert levers["time"]["start_s"] == 0
    assert levers["time"]["sooner_s"] > 60
    site.exec(
        ["scontrol", "update", f"JobId={waiting}", f"TimeLimit={levers['time']['value']}"],
        check=True,
    )
    until(lambda: job_state(site, waiting) == "RUNNING", 60, "the shorter limit starts it")
    assert job_state(site, ahead) == "PENDING"

    if os.geteuid() != 0:
        return  # the lab is ours, and there is nobody else whom we could be
    # the same accounting as a history to replay
    monkeypatch.setenv("HPCSCALE_NO_NUMBA", "1")  # a dozen jobs: not worth a compiler
    replay = CliRunner().invoke(
        main,
        ["burst", "simulate", "--history", "live:2d", "--site", "lab-onprem", "--cloud",
         "lab-cloud", "--nodes", "2", "--policy", "no-wait", "--json"], standalone_mode=False,
    )  # fmt: skip
    assert replay.exception is None, replay.exception
    data = json.loads(replay.stdout)["data"]
    assert [p["policy"] for p in data["policies"]] == ["no-wait"]
    assert data["jobs"] == 12

    # somebody else: other people's jobs are hidden, and nothing is made up
    directory = Path(lab.state.directory)
    for path in (directory, directory / "lab-onprem"):
        path.chmod(0o755)
    settings = [f"{key}={value}" for key, value in lab.env().items() if key != "PATH"]
    words = ["--site", "lab-onprem", "--nodes", "2", "--json", "--", "true"]
    done = ordinary(
        "env", *settings, f"HPCSCALE_STATE_DIR={ordinary.home}/state",
        f"PATH={lab.env().get('PATH') or '/usr/bin:/bin'}",
        sys.executable, "-m", "hpcscale", "forecast", *words,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (said,) = json.loads(done.stdout)["data"]
    assert said["queue_level"] == "own jobs only"
    assert (said["pending_jobs"], said["p50_s"], said["p90_s"]) == (0, None, None)
    assert said["bound"].startswith("unknown: the site hides")
