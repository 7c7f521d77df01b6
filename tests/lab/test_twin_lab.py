"""The site model is what real Slurm does: a slice of drawn jobs on a lab of 16 slurmd."""

import json

import numpy as np
import pytest
from click.testing import CliRunner

from hpcscale.cli import main

pytestmark = pytest.mark.slow


def test_the_model_starts_jobs_as_slurm_does(tmp_path):
    rng = np.random.default_rng(11)
    size = 60
    submit = np.cumsum(rng.exponential(900, size)).round()
    run = (rng.exponential(5400, size) + 300).round()
    limit = (run * rng.uniform(1, 3, size)).round()
    nodes = rng.choice([1, 2, 4, 8, 12], size)
    lines = [
        f"{j + 1} {submit[j]:.0f} -1 {run[j]:.0f} {nodes[j]} -1 -1 {nodes[j]} {limit[j]:.0f} "
        "-1 1 1 1 1 1 -1 -1 -1"
        for j in range(size)
    ]
    path = tmp_path / "drawn.swf"
    path.write_text("\n".join(lines) + "\n")
    out = CliRunner().invoke(
        main,
        ["burst", "simulate", "--history", str(path), "--nodes", "16", "--gpus-per-node", "1",
         "--check-on-lab", "--lab-jobs", "60", "--lab-minutes", "4", "--json"],
    )  # fmt: skip
    assert out.exit_code == 0, out.output
    data = json.loads(out.stdout)["data"]
    assert data["jobs"] == 60
    assert data["jobs_that_waited"] > 20
    # a loaded machine delays starts: a result file has what a quiet one gives
    assert abs(data["mean_wait_error"]) < 0.2
    assert data["start_order_correlation"] > 0.95
