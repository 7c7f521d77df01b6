"""The torchrun example on real Slurm: stopped in every way, it goes on where it last saved."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from job_helpers import attempts, hpcscale
from lab_helpers import until

ROOT = Path(__file__).resolve().parents[2]
STEPS = 60


@pytest.fixture
def project(tmp_path, monkeypatch):
    """The example's directory, with made-up data of the digits' shape."""
    shutil.copy(ROOT / "docs/demo/train_digits.py", tmp_path)
    shutil.copy(ROOT / "hpcscale/train/checkpoint.py", tmp_path)
    random = np.random.default_rng(1)
    labels = random.integers(0, 10, 640)
    images = random.random((640, 64)) + labels[:, None]
    np.savez_compressed(tmp_path / "digits.npz", images=images, labels=labels)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def train(partition, *options, step_s=0.3):
    """Submit two nodes with two ranks each; the run's id."""
    done = hpcscale(
        "submit", "--json", "--site", "lab-onprem", "--partition", partition, "--name", "train",
        "--nodes", "2", "--gpus-per-node", "2", "--launcher", "torchrun",
        "--software", "lab-python", "--input", "digits=digits.npz", "--output", "result=result/",
        "--checkpoint-dir", "checkpoints", *options, "--",
        "train_digits.py", "--steps", str(STEPS), "--checkpoint-every", "7",
        "--step-seconds", str(step_s),
    )  # fmt: skip
    return json.loads(done.stdout)["data"]["run_id"]


def log(run):
    return hpcscale("logs", run, code=None).stdout


def saving(run):
    until(lambda: "checkpoint saved" in log(run), 240, "it saves")


def goes_on_to_the_end(run, restarts=1):
    """It ends well, and each start took up the step of the last whole checkpoint before it."""
    hpcscale("wait", run, "--timeout", "5m", timeout_s=320)
    text = log(run)
    last, starts = 0, 0
    for line in text.splitlines():
        if begun := re.match(r"start: 4 ranks on lab-onprem, step (\d+), restart (\d+)", line):
            assert int(begun[1]) == last, text
            assert int(begun[2]) == starts, text
            starts += 1
        elif saved := re.match(r"step (\d+): .*checkpoint saved", line):
            assert int(saved[1]) > last, text
            last = int(saved[1])
    assert starts == restarts + 1, text
    assert f"done: step {STEPS}," in text
    assert '"restarts": ' + str(restarts) in Path("result/result.json").read_text()


def job_id(run):
    return str(attempts(run)["lab-onprem"]["job_id"])


def urgent(lab):
    """Somebody needs all nodes at once, for a moment."""
    command = ["sbatch", "-p", "urgent", "-N4", "--exclusive", "--output=/dev/null"]
    lab.site("lab-onprem").exec([*command, "--wrap", "sleep 1"], check=True)


@pytest.mark.slow  # torch is imported by eight processes
@pytest.mark.timeout(500)
def test_scontrol_requeue(lab_env, project):
    run = train("gpu", "--time", "10")
    saving(run)
    lab_env.site("lab-onprem").exec(["scontrol", "requeue", job_id(run)], check=True)
    goes_on_to_the_end(run)


@pytest.mark.slow  # Slurm looks at time limits every 30 s
@pytest.mark.begins_first(minutes=3)
@pytest.mark.timeout(1000)
def test_the_time_limit(lab_env, project):
    # asked for 60 s before the end, the signal comes up to 30 s earlier: 90 s after the start, when
    # torch is loaded on a slow machine too, and in the midst of 120 s of steps
    run = train("gpu", "--time", "3", "--checkpoint-lead", "60", step_s=2)
    hpcscale("wait", run, "--timeout", "15m", timeout_s=920)
    text = log(run)
    assert "stop: asked to" in text
    starts = [
        int(step) for step in re.findall(r"^start: .* step (\d+), restart", text, re.MULTILINE)
    ]
    stops = [
        int(step) for step in re.findall(r"^stop: asked to, after step (\d+)", text, re.MULTILINE)
    ]
    # asked to stop after its very last step, it is begun once more, and finds nothing to do
    assert [n for n in starts if n < STEPS] == [0, *(n for n in stops if n < STEPS)], text
    assert f"done: step {STEPS}," in text


@pytest.mark.slow  # torch is imported by twelve processes
@pytest.mark.timeout(500)
def test_preemption_without_grace(lab_env, project):
    run = train("spot", "--time", "10")
    saving(run)
    urgent(lab_env)
    goes_on_to_the_end(run)


@pytest.mark.slow  # the end of the grace is seen by slurmctld's 30 s tick
@pytest.mark.timeout(500)
def test_preemption_with_grace(lab_factory, use_lab, project):
    lab = use_lab(lab_factory(grace_time_s=20))
    run = train("spot", "--time", "10")
    saving(run)
    urgent(lab)
    goes_on_to_the_end(run)
