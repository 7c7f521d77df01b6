"""What goes along with a function: submitit's job side, in the job's own words."""

import os
import subprocess
import sys
import threading

import pytest
from fake_executor import fresh
from lab_helpers import until
from submitit.core import utils

from hpcscale.executor import (
    HpcscaleJobEnvironment,
    jobside,
    pickles,
)
from hpcscale.lab.process import patience


@pytest.fixture(autouse=True)
def _fresh_registries(monkeypatch):
    fresh(monkeypatch)


def test_inside_a_job_the_environment_is_ours(monkeypatch):
    monkeypatch.setenv("SUBMITIT_EXECUTOR", "hpcscale")
    monkeypatch.setenv("SLURM_JOB_ID", "12")
    environment = HpcscaleJobEnvironment()
    assert environment.activated()
    assert environment.job_id == "12"


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
