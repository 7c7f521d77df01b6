"""Running submitit's installed tests with our executor in place of its own."""

import json
import os
import re
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

import submitit

HERE = Path(__file__).resolve().parent
DOCUMENT = HERE.parent / "docs" / "submitit.md"
# those that start processes need a site; the rest need submissions and states alone
ON_A_SITE = ("local/", "auto/", "test_helpers.py", "test_pickle.py", "core/test_utils.py")
ON_A_FAKE = ("core/", "slurm/", "auto/")


@cache
def installed():
    """Ids of all tests in submitit's wheel, without parameters."""
    root = Path(submitit.__path__[0])
    return {
        f"{path.relative_to(root).as_posix()}::{name}"
        for path in sorted(root.rglob("test_*.py"))
        for name in re.findall(r"^(?:async )?def (test_\w+)", path.read_text(), re.MULTILINE)
    }


@cache
def excluded():
    """From the documentation: id -> (where it does not apply, why)."""
    rows = re.findall(r"^\| `(\S+::\S+)` \| (.+?) \| (.+?) \|$", DOCUMENT.read_text(), re.MULTILINE)
    return {name: (where, why) for name, where, why in rows}


def chosen(modules, *places):
    """Tests of these modules that apply there."""
    no = {name for name, (where, _) in excluded().items() if where in {"everywhere", *places}}
    return {name for name in installed() - no if name.startswith(modules)}


def run(tmp_path, tests, substitute, *, base=None, workers=0, timeout_s=600):
    """Run them in a process of their own: name -> set of outcomes."""
    # a checkout of submitit, as its snapshot tests expect to stand in one
    here = tmp_path / "checkout"
    shutil.copytree(submitit.__path__[0], here / "submitit", dirs_exist_ok=True)
    git = ["git", "-c", "user.name=x", "-c", "user.email=x@localhost"]
    for argv in (["init", "-q", "."], ["add", "-A"], ["commit", "-qm", "x"]):
        subprocess.run([*git, *argv], cwd=here, check=True, timeout=60)
    only, outcomes = tmp_path / "only.json", tmp_path / "outcomes"
    only.write_text(json.dumps(sorted(tests)))
    done = subprocess.run(
        [
            sys.executable, "-m", "pytest", "-c", os.devnull, f"--rootdir={here}", "-q",
            "-p", "no:cacheprovider", "-p", "no:warnings", "-p", "submitit_substitute",
            f"--basetemp={base or tmp_path / 'own'}", "--tb=short", f"-n{workers}",
            "--pyargs", "submitit",
        ],
        cwd=here,
        env={
            **os.environ,
            "HPCSCALE_SUBSTITUTE": substitute,
            "HPCSCALE_ONLY": str(only),
            "HPCSCALE_OUTCOMES": str(outcomes),
            "PYTHONPATH": os.pathsep.join([str(HERE), str(HERE.parent)]),
            "SUBMITIT_SLOW_TESTS": "1",
        },
        capture_output=True, text=True, timeout=timeout_s, check=False,
    )  # fmt: skip
    found = {}
    for line in outcomes.read_text().splitlines() if outcomes.exists() else ():
        name, outcome = json.loads(line)
        found.setdefault(name, set()).add(outcome)
    return found, done.stdout + done.stderr
