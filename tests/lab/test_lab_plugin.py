"""The pytest fixtures: skipped only where that is allowed, and a failure shows what Slurm says."""

import os
import subprocess
import sys

import pytest

from hpcscale.lab.process import patience

NO_SLURM = """
from hpcscale.lab import daemons
pytest_plugins = ["hpcscale.lab.pytest_plugin"]
daemons.find = lambda name: None
"""
WITH_SLURM = """
pytest_plugins = ["hpcscale.lab.pytest_plugin"]
"""
TEST = """
def test_it(lab_factory, request):
    assert request.node.get_closest_marker("lab")
    lab = lab_factory(nodes=1)
    lab.site("lab-onprem").exec(["sbatch", "--hold", "-J", "seen-in-report", "--wrap", "true"])
    assert lab is None
"""


def run_pytest(tmp_path, conftest, **env):
    (tmp_path / "conftest.py").write_text(conftest)
    (tmp_path / "test_it.py").write_text(TEST)
    environment = {k: v for k, v in os.environ.items() if k not in {"CI", "HPCSCALE_STRICT_SLURM"}}
    # it wants none of the plugins installed here, some of which load for seconds
    environment["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-rs", "-p", "no:cacheprovider", str(tmp_path)],
        capture_output=True, text=True, timeout=patience(120), check=False, env=environment | env,
        cwd=tmp_path,
    )  # fmt: skip
    return done.stdout


def test_without_slurm_a_developer_may_go_on(tmp_path):
    out = run_pytest(tmp_path, NO_SLURM)
    assert "1 skipped" in out
    assert "Slurm is not installed" in out


@pytest.mark.parametrize("env", [{"CI": "true"}, {"HPCSCALE_STRICT_SLURM": "1"}])
def test_without_slurm_ci_is_red(tmp_path, env):
    out = run_pytest(tmp_path, NO_SLURM, **env)
    assert "skipped" not in out
    assert "1 error" in out or "1 failed" in out
    assert "apt-get install slurmctld" in out


def test_a_failure_shows_the_queue_and_the_controllers_log(tmp_path):
    out = run_pytest(tmp_path, WITH_SLURM)
    assert "1 failed" in out
    assert "seen-in-report" in out
    assert "started on cluster lab-cloud" in out
