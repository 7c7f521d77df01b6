"""Machines that lack what Slurm looks for by itself."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from lab_helpers import ROOT

from hpcscale.lab.process import patience

WITHOUT = Path(__file__).parent / "without.py"
WORK = """
import sys
from pathlib import Path
from hpcscale.lab import Lab, LabOptions
assert list(Path("/sys/fs/cgroup").iterdir()) == []
with Lab.up(Path(sys.argv[1]), LabOptions(nodes=1)) as lab:
    print(lab.site("lab-onprem").exec(["srun", "hostname"], check=True).stdout)
"""


@pytest.mark.parametrize("user", ["root", "ordinary"] if os.geteuid() == 0 else ["ordinary"])
def test_slurmd_starts_where_there_are_no_cgroups(ordinary, user):
    without = [sys.executable, str(WITHOUT), "/sys/fs/cgroup"]
    work = [sys.executable, "-c", WORK, f"{ordinary.home}/lab"]
    if user == "ordinary":
        done = ordinary(*work, wrapper=without)
    else:
        done = subprocess.run(
            [*without, *work], capture_output=True, text=True, timeout=patience(60), check=False,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
        )  # fmt: skip
    assert done.stdout.split() == ["onprem1"], done.stderr
