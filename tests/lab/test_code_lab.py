"""Code goes along to real sites: what is there is what was here, sent once, in the job's own copy."""

import hashlib
import json
import re
import subprocess
from pathlib import Path

import pytest
from job_helpers import hpcscale

from hpcscale.ledger import Ledger

JOB = ("--time", "5", "--nodes", "1", "--gpus-per-node", "1")


def submit(site, *command):
    done = hpcscale("submit", "--json", "--site", site, *JOB, "--", *command)
    return json.loads(done.stdout)["data"]


def git(root, *words):
    subprocess.run(
        ["git", "-C", str(root), "-c", "user.name=a", "-c", "user.email=a@b", *words],
        check=True, capture_output=True, timeout=30,
    )  # fmt: skip


@pytest.fixture
def program(tmp_path, monkeypatch):
    root = tmp_path / "program"
    (root / "data").mkdir(parents=True)
    git(root, "init", "-q")
    (root / ".gitignore").write_text("data/\n*.log\n")
    (root / "main.sh").write_text(
        "cat value new; ls; echo wrote > mine; ls ../../../code | wc -l\n"
    )
    (root / "value").write_text("committed\n")
    (root / "data" / "big").write_bytes(bytes(1000))
    git(root, "add", "-A")
    git(root, "commit", "-q", "-m", "one")
    (root / "value").write_text("changed since\n")
    (root / "new").write_text("never added\n")
    monkeypatch.chdir(root)
    return root


@pytest.mark.parametrize("name", [pytest.param("lab-onprem", marks=pytest.mark.slow), "lab-cloud"])
def test_a_checkout_goes_along_with_its_changes(lab_env, program, name):
    first = submit(name, "bash", "main.sh")
    assert any("goes along as the code: 4 files" in n for n in first["notices"])
    assert any("2 changed or new files" in n for n in first["notices"])
    (program / "new").write_text("later\n")  # the job was submitted before
    second = submit(name, "bash", "main.sh")
    (program / "new").write_text("never added\n")
    third = submit(name, "bash", "main.sh")
    outputs = {}
    for got in (first, second, third):
        hpcscale("wait", got["run_id"])
        outputs[got["run_id"]] = hpcscale("logs", got["run_id"]).stdout
    text = "changed since\nnever added\nmain.sh\nnew\nvalue\n"
    for got in (first, third):
        assert re.fullmatch(re.escape(text) + r"\d+\n", outputs[got["run_id"]])
    assert outputs[second["run_id"]].startswith("changed since\nlater\n")
    # equal input, equal header; the store has each tree once
    assert first["script"] == third["script"]
    trees = {re.search(r"files, sha256 (\w+)", got["script"])[1] for got in (first, second, third)}
    assert len(trees) == 2
    store = str(Path(first["run_dir"]).parents[1] / "code")
    there = lab_env.site(name)
    stored = there.exec(["ls", "-A", store], check=True).stdout.split()
    assert trees <= set(stored)
    assert not [n for n in stored if n.startswith(".")]
    for tree in trees:
        sums = there.exec(["cat", f"{store}/{tree}/SHA256SUMS"], check=True).stdout
        assert hashlib.sha256(sums.encode()).hexdigest() == tree
    modes = there.exec(
        ["find", store, first["run_dir"], "-perm", "/077", "!", "-type", "l"], check=True
    ).stdout.split()
    assert [
        m for m in modes if not m.endswith("/mine") and m.split("/")[-2] not in {"logs", "events"}
    ] == []
    with Ledger.open() as ledger:
        events = [e for e in ledger.events(first["run_id"]) if e.kind == "run.code"]
    assert events[0].data["kind"] == "git"
    assert events[0].data["tree_sha256"] in first["script"]
    assert events[0].data["commit"] in first["script"]


@pytest.mark.slow
def test_too_much_is_refused_before_anything_happens(lab_env, tmp_path, monkeypatch):
    root = tmp_path / "much"
    (root / "data").mkdir(parents=True)
    with (root / "data" / "set.bin").open("wb") as file:
        file.truncate(200_000_000)
    monkeypatch.chdir(root)
    done = hpcscale("submit", "--site", "lab-cloud", *JOB, "--", "true", code=3)
    assert "data/ 200 MB" in done.stderr
    assert "--code DIR" in done.stderr
    (root / ".hpcscaleignore").write_text("data/\n")
    hpcscale("wait", submit("lab-cloud", "true")["run_id"])


@pytest.mark.slow
def test_a_job_that_moves_starts_what_was_submitted(lab_env, program, tmp_path):
    onprem = lab_env.site("lab-onprem")
    onprem.exec(["sbatch", "-N4", "--exclusive", "--time=9999", "--wrap", "sleep 900"], check=True)
    policy = tmp_path / "P.toml"
    policy.write_text('from = "lab-onprem"\nto = ["lab-cloud"]\nmax_wait = "1h"\n')
    words = ("--burst", "only", "--", "bash", "main.sh")
    done = hpcscale("submit", "--json", "--site", "lab-onprem", *JOB, *words)
    got = json.loads(done.stdout)["data"]
    (program / "value").write_text("edited after the submit\n")
    hpcscale("burst", "run", "--policy", str(policy), "--wait", timeout_s=170)
    (run,) = json.loads(hpcscale("status", got["run_id"], "--json").stdout)["data"]["runs"]
    there = {a["site"]: a for a in run["attempts"]}["lab-cloud"]
    assert (there["state"], there["exit_code"]) == ("COMPLETED", 0)
    assert hpcscale("logs", got["run_id"]).stdout.startswith("changed since\nnever added\n")
    with Ledger.open() as ledger:
        moved = ledger.attempt(there["submission_id"])
        assert (
            re.search(r"# Code: .*", moved.script)[0] == re.search("# Code: .*", got["script"])[0]
        )
