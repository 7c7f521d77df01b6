"""A Hydra sweep on real Slurm, here and over SSH: no hpcscale there, no common file system."""

import os
import subprocess
import sys

import pytest

from hpcscale.lab.process import patience

APP = """
import platform
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig


@hydra.main(version_base=None, config_path=None)
def main(cfg):
    if cfg.x < 0:
        raise ValueError(f"{cfg.x} is too small")
    out = Path(HydraConfig.get().runtime.output_dir)
    (out / "result.txt").write_text(f"{cfg.x * cfg.y} {platform.node()}")
    return cfg.x * cfg.y


main()
"""


def sweep(directory, site, xs):
    """Run the app as a user does; the finished process."""
    app = directory / "app.py"
    app.write_text(APP)
    return subprocess.run(
        [
            sys.executable, str(app), "--multirun", "hydra/launcher=hpcscale",
            f"hydra.launcher.site={site}", f"hydra.launcher.python={sys.executable}",
            "hydra.launcher.timeout_min=5", "hydra.sweep.dir=sweep", f"+x={xs}", "+y=10",
        ],
        cwd=directory, env=dict(os.environ), capture_output=True, text=True, timeout=patience(150),
        check=False,
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("site", ["lab-onprem", "lab-cloud"])
def test_a_sweep_runs_at_the_site_and_its_directories_are_here(lab_env, tmp_path, site):
    directory = tmp_path / "project"
    if site == "lab-onprem":
        directory = lab_env.site(site).paths.scratch / "project"
    directory.mkdir()
    done = sweep(directory, site, "1,2,3")
    assert done.returncode == 0, done.stdout + done.stderr
    for number in range(3):
        job = directory / "sweep" / str(number)
        value, node = (job / "result.txt").read_text().split()
        assert value == str((number + 1) * 10)
        assert node.startswith(site.removeprefix("lab-"))
        overrides = (job / ".hydra" / "overrides.yaml").read_text()
        assert f"+x={number + 1}" in overrides
        assert (job / "app.log").exists()
    # one array
    (script,) = (directory / "sweep" / ".submitit").glob("*_submission.sh")
    assert "--array=0-2%3" in script.read_text()


@pytest.mark.slow
def test_a_job_that_fails_fails_the_sweep_and_the_others_results_are_here(lab_env, tmp_path):
    directory = tmp_path / "project"
    directory.mkdir()
    done = sweep(directory, "lab-cloud", "-1,2")
    assert done.returncode != 0
    assert "ValueError: -1 is too small" in done.stderr
    assert (directory / "sweep" / "1" / "result.txt").read_text().startswith("20 cloud")
