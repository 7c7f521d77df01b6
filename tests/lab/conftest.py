"""Fixtures of the tests on the lab."""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from lab_helpers import ROOT

from hpcscale.lab.process import patience

HELPER = Path(__file__).parent / "as_ordinary_user.py"


@pytest.fixture
def ordinary():
    """Run `hpcscale lab …` as an ordinary user: as somebody else when the tests run as root.

    ``wrapper`` is the start of a command line that runs the rest, still as the tests' own user.
    """
    home = Path(tempfile.mkdtemp(prefix="hpcscale-lab-user-", dir="/tmp"))
    if os.getuid() == 0:
        os.chown(home, 54321, 54321)

    def run(*argv, timeout_s=60, wrapper=()):
        as_user = [sys.executable, str(HELPER), str(home)] if os.getuid() == 0 else []
        if argv[0] == "lab":
            verbs = 3 if argv[1] == "fault" else 2
            command = [sys.executable, "-m", "hpcscale", *argv[:verbs], "--dir", f"{home}/lab"]
            command += argv[verbs:]
        else:
            command = [shutil.which(argv[0]) or argv[0], *argv[1:]]
        return subprocess.run(
            [*wrapper, *as_user, *command], capture_output=True, text=True, timeout=patience(timeout_s), check=False,
            env=os.environ | {"HOME": str(home), "PYTHONPATH": f"{ROOT}:{ROOT}/tests"},
        )  # fmt: skip

    run.home = home
    yield run
    if (home / "lab").exists():
        run("lab", "down")
    shutil.rmtree(home, ignore_errors=True)
