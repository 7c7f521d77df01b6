"""From a gang at its gate to user code, with `hpcscale burst run --for` as it is.

    python tests/benchmarks/gate.py [--count N] [--out FILE]

One process `burst run --for` stays; N jobs are moved one after the other, their cloud nodes cold each
time, so each gang comes at a moment of its own. Both times are of files that the cloud job itself
writes: its report at the gate, and the first line of user code.
"""

import argparse
import datetime as dt
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from hpcscale.lab.lab import Lab
from hpcscale.lab.model import LabOptions

ONPREM, CLOUD = "lab-onprem", "lab-cloud"
RESULTS = Path(__file__).parent / "results"
OPTIONS = LabOptions(boot_delay_s=0.5, suspend_time_s=3600, resume_timeout_s=60)
POLICY = f'from = "{ONPREM}"\nto = ["{CLOUD}"]\n'
AIM_S = 3.0


def hpcscale(*argv):
    argv = [sys.executable, "-m", "hpcscale", *argv]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)["data"] if "--json" in argv else done.stdout


def until(condition, timeout_s=300):
    deadline = time.monotonic() + timeout_s
    while not (value := condition()):
        assert time.monotonic() < deadline, "it takes too long"
        time.sleep(0.1)
    return value


def cold(cloud):
    """All cloud nodes powered down."""

    def down():
        listing = cloud.exec(["sinfo", "-h", "-N", "-o", "%N %t"]).stdout
        states = dict(line.split() for line in listing.splitlines())
        if up := [n for n, state in states.items() if state[-1] not in "~%!"]:
            names = ",".join(up)
            cloud.exec(["scontrol", "update", f"NodeName={names}", "State=POWER_DOWN_FORCE"])
        return bool(states) and all(state == "idle~" for state in states.values())

    until(down)


def one(lab, project):
    """Move one job; the seconds."""
    cold(lab.site(CLOUD))
    witness = "date +%s.%N > $HPCSCALE_RUN_DIR/witness; sleep 1"
    done = hpcscale(
        "submit", "--json", "--site", ONPREM, "--nodes", "2", "--time", "5", "--burst", "only",
        "--workdir", str(project), "--", "sh", "-c", witness,
    )  # fmt: skip
    there = lab.site(CLOUD).paths.scratch / "hpcscale-state" / "runs" / done["run_id"]
    until((there / "witness").exists)
    time.sleep(0.2)
    (gated,) = (there / "events").glob("*.gated")
    seconds = float((there / "witness").read_text()) - gated.stat().st_mtime
    print(f"{seconds:.2f} s  load {os.getloadavg()[0]:.1f}", flush=True)
    until(lambda: any((there / "events").glob("*.ended")))
    return {"seconds": round(seconds, 3), "load": round(os.getloadavg()[0], 1)}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=20)
    today = f"{dt.datetime.now(dt.UTC):%Y-%m-%d}"
    parser.add_argument("--out", type=Path, default=RESULTS / f"gate-{today}.json")
    args = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="hpcscale-gate-", dir="/tmp"))
    each = []
    try:
        with Lab.up(folder / "lab", OPTIONS, die_with_me=True) as lab:
            os.environ.update(lab.env())
            os.environ["HPCSCALE_STATE_DIR"] = str(folder / "state")
            project = folder / "project"
            project.mkdir()
            (folder / "P.toml").write_text(POLICY)
            full = ["sbatch", "-N4", "--exclusive", "--time=600", "--output=/dev/null"]
            lab.site(ONPREM).exec(full, stdin="#!/bin/sh\nsleep 36000\n", check=True)
            version = lab.site(ONPREM).exec(["sbatch", "--version"]).stdout.strip()
            runs = [
                sys.executable,
                "-m",
                "hpcscale",
                "burst",
                "run",
                "--policy",
                f"{folder}/P.toml",
            ]
            with (folder / "log").open("w") as log:
                burst = subprocess.Popen([*runs, "--for", "2h"], stdout=log, stderr=log)
            try:
                each.extend(one(lab, project) for _ in range(args.count))
                moves = hpcscale("burst", "status", "--all", "--json")["moves"]
            finally:
                burst.terminate()
                burst.wait(60)
            seconds = sorted(e["seconds"] for e in each)
            idle = sorted(m["gate_idle_s"] for m in moves if m["gate_idle_s"] is not None)
            result = {
                "date": f"{dt.datetime.now(dt.UTC):%FT%TZ}",
                "slurm": version,
                "cores": os.cpu_count(),
                "what": "seconds from the gang at its gate to user code, burst run --for",
                "at_most_s": AIM_S,
                "median_s": statistics.median(seconds),
                "max_s": seconds[-1],
                "gate_idle_s": {"median": statistics.median(idle), "max": idle[-1]},
                "each": each,
            }
            args.out.write_text(json.dumps(result, indent=1) + "\n")
            print({k: v for k, v in result.items() if k != "each"})
    except AssertionError:
        print((folder / "log").read_text()[-2000:])
        raise
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return 0 if seconds[-1] <= AIM_S else 1


if __name__ == "__main__":
    sys.exit(main())
