"""``hpcscale submit`` as it is typed, on real Slurm."""

import json
import subprocess
import sys

import pytest
from job_helpers import data, hpcscale
from lab_helpers import job

from hpcscale.lab.process import patience

SMALL = ("--site", "lab-onprem", "--gpus-per-node", "1", "--time", "5")


def test_one_line_says_what_one_needs_next(lab_env, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    line = hpcscale("submit", *SMALL, "--no-code", "--", "echo", "a b", "$HOME").stdout
    ref, _, rest = line.partition("  ")
    assert ref.startswith("lab-onprem:")
    assert "  log lab-onprem:/" in rest
    hpcscale("wait", ref)
    assert hpcscale("logs", ref).stdout == "a b $HOME\n"


def test_json_holds_what_programs_need(lab_env):
    done = hpcscale("submit", *SMALL, "--no-code", "--array", "0-1", "--json", "--", "true")
    got = json.loads(done.stdout)["data"]
    assert got["ref"].startswith("lab-onprem:")
    assert got["site"] == "lab-onprem"
    assert got["script"].startswith("#!/bin/bash")
    assert got["submission_id"].startswith("hs-")
    assert got["array_size"] == 2
    assert data("status", got["run_id"])["runs"][0]["name"] == "true"


def test_an_answer_that_cannot_be_printed_is_said_with_the_job(lab_env):
    words = ["submit", *SMALL, "--no-code", "--name", "unheard", "--", "true"]
    with open("/dev/full", "w") as full:  # noqa: PTH123  # a device
        done = subprocess.run(
            [sys.executable, "-m", "hpcscale", *words],
            stdout=full, stderr=subprocess.PIPE, text=True, timeout=patience(60), check=False,
        )  # fmt: skip
    run = data("status", "unheard")["runs"][0]
    assert done.returncode == 1
    assert f"was submitted as run {run['run_id']}" in done.stderr
    assert f"hpcscale status {run['run_id']}" in done.stderr


def test_a_job_file_is_run_as_it_says(lab_env, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "main.sh").write_text("echo $GREETING > $HPCSCALE_OUTPUT_O\n")
    (tmp_path / "job.toml").write_text(
        """
        name = "from a file"
        site = "lab-cloud"
        command = ["bash", "main.sh"]
        [resources]
        time = "5"
        [env]
        GREETING = "it's me"
        [outputs]
        o = "out.txt"
        """
    )
    hpcscale("submit", "job.toml")
    hpcscale("wait", "from a file")
    assert (tmp_path / "out.txt").read_text() == "it's me\n"


def test_an_existing_script_runs_unchanged(lab_env, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "old.sbatch").write_text(
        "#!/bin/bash\n#SBATCH --job-name=old\n#SBATCH --time=5\n#SBATCH --comment=mine\n"
        '#SBATCH -e old.err\necho "out $1"\necho err >&2\nexit 5\n'
    )
    done = hpcscale(
        "submit", "old.sbatch", "--site", "lab-onprem", "--no-code", "--json", "--", "arg 1"
    )
    got = json.loads(done.stdout)["data"]
    there = job(lab_env.site("lab-onprem"), got["ref"].partition(":")[2])
    assert there["Comment"] == f"mine;hpcscale={got['submission_id']}"
    hpcscale("wait", "old", code=6)
    assert sorted(hpcscale("logs", "old").stdout.splitlines()) == ["err", "out arg 1"]
    row = data("status", "old")["runs"][0]["attempts"][0]
    assert (row["state"], row["exit_code"]) == ("FAILED", 5)


def test_an_answer_that_gets_lost_is_exit_5_and_no_second_job(lab_env):
    from hpcscale.lab import faults

    faults.ssh_cut(lab_env, "after", match="sbatch")
    done = hpcscale(
        "submit", "--site", "lab-cloud", "--no-code", "--time", "5", "--name", "cut", "--", "true",
        code=5,
    )  # fmt: skip
    assert "may or may not exist" in done.stderr
    assert "do not submit again" in done.stderr
    faults.ssh_cut(lab_env, "normal")
    hpcscale("wait", "cut")


@pytest.mark.parametrize("fault", ["refuse", "hostkey"])
def test_a_site_that_cannot_be_reached_is_one_message(lab_env, fault, tmp_path, monkeypatch):
    from hpcscale.lab import faults

    if fault == "refuse":
        faults.ssh_cut(lab_env, "refuse", count=50)
    else:
        (tmp_path / "hosts").write_text("")
        monkeypatch.setenv(
            "HPCSCALE_SITE__LAB_CLOUD__TRANSPORT__KNOWN_HOSTS", str(tmp_path / "hosts")
        )
    done = hpcscale("submit", "--site", "lab-cloud", "--no-code", "--", "true", code=5)
    assert done.stderr.startswith("hpcscale: error: ")
    assert "try: " in done.stderr
