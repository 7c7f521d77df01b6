"""After `lab down` no process of a lab lives: with every kind of isolation, whatever happened."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from lab_helpers import ROOT
from nothing_left import SCENARIOS

from hpcscale.lab import Lab, LabOptions, faults, sshdir

PROGRAM = ROOT / "tests" / "nothing_left.py"
WITHOUT = Path(__file__).parent / "without.py"
USERS = ["root", "ordinary"] if os.geteuid() == 0 else ["ordinary"]
# the two that see most; all others are in `make test-all`
QUICK = {("every_fault", "none", "ordinary"), ("every_fault", "all", USERS[0])}
POINTLESS = {
    # without namespaces there are no keepers
    *((what, "none") for what in ("killed_keeper", "killed_up_before_it_wrote")),
    # nothing that the other two do not show
    *((what, "mount") for what in ("killed_up", "damaged_state")),
}
CASES = [
    pytest.param(what, mode, user,
                 marks=[] if (what, mode, user) in QUICK else pytest.mark.slow)
    for user in USERS for mode in ("all", "mount", "none") for what in SCENARIOS
    if (what, mode) not in POINTLESS
]  # fmt: skip


@pytest.mark.parametrize(("what", "mode", "user"), CASES)
def test_nothing_is_left(ordinary, what, mode, user):
    argv = [sys.executable, str(PROGRAM), f"{ordinary.home}/lab", mode, what]
    if user == "ordinary":
        done = ordinary(*argv, timeout_s=100)
    else:
        env = os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT}/tests"}
        done = subprocess.run(
            argv, capture_output=True, text=True, timeout=280, check=False, env=env
        )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {"alive": {}, "directory": False}


# ---- what libfaketime keeps in /dev/shm


def test_the_clocks_of_a_lab_without_namespaces_leave_nothing():
    directory = Path(tempfile.mkdtemp(prefix="hpcscale-lab-", dir="/tmp"))
    options = LabOptions(nodes=1, isolate=False, fast=10)
    with Lab.up(directory, options) as lab:
        faults.controller(lab, "lab-onprem", "kill")
        faults.controller(lab, "lab-onprem", "restart")
        records = [site.paths.etc / "faketime.pids" for site in lab.sites.values()]
        pids = [pid for record in records for pid in record.read_text().split()]
        files = [
            Path("/dev/shm", name)
            for pid in pids
            for name in (f"faketime_shm_{pid}", f"sem.faketime_sem_{pid}")
        ]
        assert len(pids) == 3
        assert any(file.exists() for file in files)
    assert not [file for file in files if file.exists()]


# ---- /run/sshd, which root's sshd wants

SHARED = """
import os, sys
from pathlib import Path
from lab_helpers import ssh
from hpcscale.lab import Lab, LabOptions
assert os.listdir("/run") == []
labs = [Lab.up(Path(sys.argv[1], n), LabOptions(nodes=1, isolate=False)) for n in "ab"]
labs[0].down()
print(ssh(labs[1], "echo in").stdout.strip())
labs[1].down()
print(os.listdir("/run"))
"""


def test_the_last_lab_removes_the_directory_that_sshd_wants():
    parent = Path(tempfile.mkdtemp(prefix="hpcscale-lab-", dir="/tmp"))
    try:
        done = subprocess.run(
            [sys.executable, WITHOUT, "/run", sys.executable, "-c", SHARED, parent],
            capture_output=True, text=True, timeout=120, check=False,
            env=os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT}/tests"},
        )  # fmt: skip
        assert done.stdout.split() == ["in", "[]"], done.stderr
    finally:
        for name in "ab":
            if (parent / name).exists():
                Lab.remove(parent / name)
        shutil.rmtree(parent)


def test_a_directory_that_no_lab_made_stays(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(sshdir, "all_pids", list)
    found, made = tmp_path / "found", tmp_path / "made"
    found.mkdir()
    for directory in (found, made):
        with sshdir.provided(directory):
            assert directory.is_dir()
        sshdir.removed(directory)
    assert found.is_dir()
    assert not made.exists()
