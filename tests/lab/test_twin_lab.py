"""The site model is what real Slurm does: a slice of drawn jobs on a lab of 8 slurmd."""

import json
import re

import numpy as np
import pytest
from click.testing import CliRunner

from hpcscale.cli import main
from hpcscale.errors import LabError
from hpcscale.lab import Lab, LabOptions
from hpcscale.lab.model import ONPREM
from hpcscale.lab.process import wait_until
from hpcscale.twin import lab as twin

# the jobs of the slice take some 190 s by themselves
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]


@pytest.mark.begins_first(minutes=3)
def test_the_model_starts_jobs_as_slurm_does(tmp_path):
    rng = np.random.default_rng(13)
    size = 40
    submit = np.cumsum(rng.exponential(2000, size)).round()
    run = (rng.exponential(5400, size) + 300).round()
    limit = (run * rng.uniform(1, 3, size)).round()
    nodes = rng.choice([1, 2, 3, 4, 6], size)
    lines = [
        f"{j + 1} {submit[j]:.0f} -1 {run[j]:.0f} {nodes[j]} -1 -1 {nodes[j]} {limit[j]:.0f} "
        "-1 1 1 1 1 1 -1 -1 -1"
        for j in range(size)
    ]
    path = tmp_path / "drawn.swf"
    path.write_text("\n".join(lines) + "\n")
    out = CliRunner().invoke(
        main,
        ["burst", "simulate", "--history", str(path), "--nodes", "8", "--gpus-per-node", "1",
         "--check-on-lab", "--lab-jobs", "40", "--lab-minutes", "2", "--json"],
    )  # fmt: skip
    assert out.exit_code == 0, out.output
    data = json.loads(out.stdout)["data"]
    assert data["jobs"] == 40
    # a busy machine ends some a second late, which is a minute of that clock: past their limits
    assert data["jobs_not_completed"] <= 3
    assert data["jobs_that_waited"] > 20
    # a loaded machine delays starts: a result file has what a quiet one gives
    assert abs(data["mean_wait_error"]) < 0.2
    assert data["start_order_correlation"] > 0.95


def test_backfill_keeps_whole_nodes_for_a_job_that_waits(tmp_path_factory):
    """What ``SiteModel.bf_whole_nodes`` says of Slurm: beside a plan for 2 GPUs, none of 4 is free."""
    options = LabOptions(
        nodes=1, gpus=4, scheduler=twin.SCHEDULER.replace("bf_interval=30", "bf_interval=1")
    )
    with Lab.up(tmp_path_factory.mktemp("w") / "lab", options, die_with_me=True) as lab:
        site = lab.site(ONPREM)

        def submit(gpus, minutes):
            asked = ["-J", "w", "--mem=100", "-o", "/dev/null", f"--gres=gpu:{gpus}"]
            argv = ["sbatch", "--parsable", *asked, f"-t{minutes}", "--wrap", "sleep 900"]
            return site.exec(argv, check=True).stdout.strip()

        def says(job):
            shown = site.exec(["scontrol", "show", "job", "-o", job], check=True).stdout
            return dict(re.findall(r"(JobState|StartTime|EndTime|Reason)=(\S+)", shown))

        first = submit(3, 60)
        assert wait_until(lambda: says(first)["JobState"] == "RUNNING", 60)
        waits = submit(2, 60)
        assert wait_until(lambda: says(waits)["StartTime"] != "Unknown", 60)
        long = submit(1, 300)
        assert wait_until(lambda: says(long)["StartTime"] != "Unknown", 60)
        # a GPU is free and would stay so, beside the first as beside the second
        assert says(long)["JobState"] == "PENDING"
        assert says(long)["StartTime"] > says(waits)["StartTime"] >= says(first)["EndTime"][:16]
        site.exec(["scancel", waits], check=True)
        assert wait_until(lambda: says(long)["JobState"] == "RUNNING", 60), says(long)


def test_a_slice_that_does_not_move_ends_with_what_slurm_says(tmp_path_factory, monkeypatch):
    monkeypatch.setattr(twin, "STALLED_S", 0.5)
    folder = tmp_path_factory.mktemp("s") / "lab"
    with Lab.up(folder, LabOptions(nodes=2), die_with_me=True) as lab:
        site = lab.site(ONPREM)
        job = site.exec(["sbatch", "--parsable", "-H", "--wrap", "true"], check=True).stdout.strip()
        with pytest.raises(
            LabError, match="1 of 1 have not; jobs: 1 PENDING JobHeldUser; nodes: 2 idle"
        ):
            twin._wait(site, folder / "none.log", [job], 0.0, lambda _what, _share: None)


def test_a_line_that_slurm_is_writing_is_not_read():
    line = (
        "JobId=7 UserId=a(1) Name=twin0 JobState=TIMEOUT StartTime=2026-01-02T03:04:05 "
        "EndTime=2026-01-02T03:05:05 SubmitTime=2026-01-02T03:04:00 ExitCode=0:0 \n"
    )
    row = twin.completed(line + line.replace("=7", "=8")[:-40])
    assert list(row) == ["7"]
    assert (row["7"].end_s - row["7"].start_s, row["7"].state) == (60, "TIMEOUT")
