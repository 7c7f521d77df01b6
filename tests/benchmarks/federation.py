"""Slurm's own federation under faults: how often user code begins, on the lab's two clusters.

    python tests/benchmarks/federation.py [--times N] [--fault NAME …] [--out FILE]

Both clusters share one slurmdbd and are one federation. The on-prem cluster is full, so a job that is
submitted there starts in the cloud by its sibling. Each fault is struck as in ``tests/injections.py``
against the handover. User code alone appends to a witness file at each cluster.
"""

import argparse
import datetime as dt
import json
import os
import shutil
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from hpcscale.lab import faults
from hpcscale.lab.lab import Lab
from hpcscale.lab.model import LabOptions

ONPREM, CLOUD = "lab-onprem", "lab-cloud"
RESULTS = Path(__file__).parent / "results"
OPTIONS = LabOptions(
    accounting=True, one_slurmdbd=True, boot_delay_s=0.3, suspend_time_s=3600, resume_timeout_s=20
)
WAIT_S = 60.0
# what starts at all starts within a second or two: what has not by now waits at home
AT_HOME_S = 20.0
SCRIPT = """#!/bin/sh
echo "$SLURM_CLUSTER_NAME ${{SLURM_RESTART_COUNT:-0}} ${{SLURM_ARRAY_TASK_ID:--}}" >> {witness}
sleep {seconds}
"""


class Federation:
    def __init__(self, lab):
        self.lab = lab
        self.count = 0

    def exec(self, site, *argv, stdin=None):
        return self.lab.site(site).exec(list(argv), stdin=stdin)

    def join(self):
        """Make the federation; its controllers see each other within seconds."""
        names = [self.name(ONPREM), self.name(CLOUD)]
        done = self.exec(
            ONPREM, "sacctmgr", "-i", "add", "federation", "both", f"clusters={','.join(names)}"
        )
        assert done.returncode == 0, done.stderr + done.stdout
        self.until(
            lambda: "ACTIVE" in self.exec(ONPREM, "scontrol", "show", "federation").stdout, 30
        )
        return self.exec(ONPREM, "scontrol", "show", "federation").stdout

    def name(self, site):
        text = self.exec(site, "scontrol", "show", "config").stdout
        return next(
            w.split("=")[1].strip() for w in text.splitlines() if w.startswith("ClusterName")
        )

    def until(self, condition, timeout_s, poll_s=0.2):
        deadline = time.monotonic() + timeout_s
        while not (value := condition()):
            if time.monotonic() > deadline:
                return False
            time.sleep(poll_s)
        return value

    def fill(self):
        name = self.name(ONPREM)
        done = self.exec(
            ONPREM, "sbatch", "--parsable", f"--clusters={name}", "-N4", "--exclusive", "--time=600",
            "--chdir=/tmp", "--output=/dev/null", stdin="#!/bin/sh\nsleep 36000\n",
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        self.filler = done.stdout.strip().partition(";")[0]
        self.until(lambda: self.state(ONPREM, self.filler) == "RUNNING", 40)

    def state(self, site, job):
        done = self.exec(site, "squeue", "-h", "--local", "-t", "all", "-j", job, "-o", "%T")
        return done.stdout.strip().splitlines()[0] if done.stdout.strip() else ""

    def submit(self, *options, seconds=1):
        self.count += 1
        witness = f"/tmp/witness.{self.count}"
        done = self.exec(
            ONPREM, "sbatch", "--parsable", "-N2", "--time=5", "--chdir=/tmp", "--output=/dev/null",
            *options, stdin=SCRIPT.format(witness=witness, seconds=seconds),
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout.strip().partition(";")[0], witness

    def starts(self, witness):
        found = []
        for site in (ONPREM, CLOUD):
            found += [
                f"{site} {line}" for line in self.exec(site, "cat", witness).stdout.splitlines()
            ]
        return found

    def first_of_two(self):
        """A job that begins in the cloud, for another to wait for; its id."""
        job, witness = self.submit(seconds=3)
        self.until(lambda: self.starts(witness), WAIT_S)
        return job

    def one(self, fault):
        """Submit, strike, wait; what came of it."""
        strike = STRIKES[fault]
        first = self.first_of_two() if fault in BEHIND_ANOTHER else ""
        begin = time.monotonic()
        array = ["--array=0-1"] if fault in ARRAYS else []
        behind = [f"--dependency=afterany:{first}"] if first else []
        job, witness = self.submit(*array, *behind)
        undo = strike(self, job)
        if undo is not None:
            time.sleep(3)
            undo()
        waits_at_home = fault in ARRAYS | BEHIND_ANOTHER
        self.until(lambda: self.starts(witness), AT_HOME_S if waits_at_home else WAIT_S)
        first_s = round(time.monotonic() - begin, 1)
        time.sleep(6)  # a second start would come now
        starts = self.starts(witness)
        states = {site: self.state(site, job) for site in (ONPREM, CLOUD)}
        self.exec(ONPREM, "scancel", job)
        self.exec(CLOUD, "scancel", job)
        if first:
            states["the job before it"] = self.state(CLOUD, first) or self.state(ONPREM, first)
        return {"starts": starts, "first_s": first_s if starts else None, "states": states}


def controller(site, act, back):
    def strike(fed, _):
        faults.controller(fed.lab, site, act)
        return lambda: faults.controller(fed.lab, site, back)

    return strike


def free(fed, _):
    """The on-prem nodes become free in the moment in which the sibling may start."""
    fed.exec(ONPREM, "scancel", fed.filler)


def killed_later(fed, job):
    fed.until(lambda: fed.state(CLOUD, job) in {"RUNNING", "COMPLETED"}, 20, 0.05)
    faults.controller(fed.lab, CLOUD, "kill")
    return lambda: faults.controller(fed.lab, CLOUD, "restart")


def slurmdbd(fed, _):
    faults.slurmdbd(fed.lab, "stop")
    return lambda: faults.slurmdbd(fed.lab, "start")


STRIKES = {
    "none": lambda *_: None,
    "on-prem nodes free at once": free,
    "onprem ctld killed at once": controller(ONPREM, "kill", "restart"),
    "cloud ctld killed at once": controller(CLOUD, "kill", "restart"),
    "cloud ctld killed after the start": killed_later,
    "onprem ctld stopped": controller(ONPREM, "stop", "continue"),
    "cloud ctld stopped": controller(CLOUD, "stop", "continue"),
    "slurmdbd stopped": slurmdbd,
    "an array": lambda *_: None,
    "a dependent job": lambda *_: None,
}
ARRAYS = {"an array"}
BEHIND_ANOTHER = {"a dependent job"}


def begun(each):
    """How often its command began: the number for a job, for an array the most of one element."""
    return max(Counter(line.split()[-1] for line in each["starts"]).values(), default=0)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--times", type=int, default=10)
    parser.add_argument(
        "--fault", action="append", choices=STRIKES, help="only this one; the file keeps the others"
    )
    today = f"{dt.datetime.now(dt.UTC):%Y-%m-%d}"
    parser.add_argument("--out", type=Path, default=RESULTS / f"federation-{today}.json")
    args = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="hpcscale-federation-", dir="/tmp"))
    found = json.loads(args.out.read_text())["faults"] if args.fault and args.out.exists() else {}
    try:
        with Lab.up(folder / "lab", OPTIONS, die_with_me=True) as lab:
            fed = Federation(lab)
            print(fed.join(), flush=True)
            version = fed.exec(ONPREM, "sbatch", "--version").stdout.strip()
            fed.fill()
            for fault in args.fault or STRIKES:
                each = []
                for _ in range(args.times):
                    if fed.state(ONPREM, fed.filler) != "RUNNING":
                        fed.fill()
                    each.append(fed.one(fault))
                    faults.clear(lab)
                found[fault] = {
                    "times": len(each),
                    "load": round(os.getloadavg()[0], 1),
                    "began_once": sum(begun(e) == 1 for e in each),
                    "began_twice": sum(begun(e) > 1 for e in each),
                    "never_began": sum(not e["starts"] for e in each),
                    "where": dict(Counter(s.split()[0] for e in each for s in e["starts"])),
                    "each": each,
                }
                print(fault, {k: v for k, v in found[fault].items() if k != "each"}, flush=True)
                result = {
                    "date": f"{dt.datetime.now(dt.UTC):%FT%TZ}", "slurm": version,
                    "faults": found,
                }  # fmt: skip
                args.out.write_text(json.dumps(result, indent=1) + "\n")
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
