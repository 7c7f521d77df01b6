"""map_array of 20,000 functions where a controller holds 10,000 jobs: accepted when, sent when.

    python tests/benchmarks/accept.py [--out FILE]

slurm.conf's own defaults for arrays and jobs (MaxArraySize=1001, MaxJobCount=10000). All functions
are held, and cancelled as soon as the controller is full, so that it has room for the rest, which
`hpcscale tend` sends. `tests/lab/test_executor_lab.py` does the same and looks at each part.
"""

import argparse
import datetime as dt
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from hpcscale.lab.lab import Lab
from hpcscale.lab.model import LabOptions

RESULTS = Path(__file__).parent / "results"
TASKS = 20_000
CONF = ("MaxArraySize=1001", "MaxJobCount=10000", "MinJobAge=2")
MAP = """
import sys, time
from hpcscale import Executor
executor = Executor(sys.argv[1], site="lab-onprem")
executor.update_parameters(timeout_min=5, additional_parameters={"hold": True})
begin = time.perf_counter()
jobs = executor.map_array(pow, range(int(sys.argv[2])), [2] * int(sys.argv[2]))
print(time.perf_counter() - begin, len({job.job_id for job in jobs}))
"""


def ask(env: dict[str, str], *argv: str) -> str:
    done = subprocess.run(
        argv, env=env, capture_output=True, text=True, timeout=600, check=True, cwd="/"
    )
    return done.stdout


def tend(env: dict[str, str]) -> tuple[float, int]:
    """Send what there is room for: seconds, and what waits after it."""
    begin = time.perf_counter()
    said = json.loads(ask(env, sys.executable, "-m", "hpcscale", "tend", "--json"))
    (batch,) = said["data"]["batches"]
    return time.perf_counter() - begin, batch["waiting"]


def measure(folder: Path, env: dict[str, str]) -> dict[str, Any]:
    seconds, jobs = ask(env, sys.executable, "-c", MAP, str(folder / "jobs"), str(TASKS)).split()
    assert int(jobs) == TASKS
    sent = []
    waiting = TASKS
    while waiting:
        assert len(sent) < 10, "it does not get less"
        ask(env, "scancel", "--user", str(os.getuid()))
        while ask(env, "squeue", "--noheader", "--states=all", "--format=%i").strip():
            time.sleep(0.5)
        took_s, waiting = tend(env)
        sent.append({"seconds": round(took_s, 2), "still_waiting": waiting})
    return {"map_array_s": round(float(seconds), 2), "tend": sent}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    today = f"{dt.datetime.now(dt.UTC):%Y-%m-%d}"
    parser.add_argument("--out", type=Path, default=RESULTS / f"accept-{today}.json")
    args = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="hpcscale-accept-", dir="/tmp"))
    options = LabOptions(extra_conf={"lab-onprem": CONF})
    try:
        with Lab.up(folder / "lab", options, die_with_me=True) as lab:
            env = os.environ | lab.env() | {"HPCSCALE_STATE_DIR": str(folder / "state")}
            result = {
                "date": f"{dt.datetime.now(dt.UTC):%FT%TZ}",
                "slurm": ask(env, "sbatch", "--version").strip(),
                "cores": os.cpu_count(),
                "load": round(os.getloadavg()[0], 1),
                "tasks": TASKS,
                "conf": CONF,
                **measure(folder, env),
            }
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    args.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
