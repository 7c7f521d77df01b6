"""A morning of 300 short jobs on the lab, with deadlines and one budget; keeps a result file.

    python tests/benchmarks/morning.py [--jobs N] [--hours H] [--fast N] [--seed N] [--out FILE]

The morning itself is ``tests/morning.py``. Exit 1 when a promise was not kept.
"""

import argparse
import datetime as dt
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from morning import Driver, Morning, options

from hpcscale.lab.lab import Lab
from hpcscale.lab.model import LabOptions


def commit() -> str:
    """Of the checkout; empty where there is none."""
    argv = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD"]
    done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=10)
    return done.stdout.strip()


def main() -> int:
    default = Morning()
    parser = argparse.ArgumentParser(description=__doc__)
    for name, kind in (
        ("jobs", int), ("hours", float), ("fast", int), ("nodes", int), ("cloud-nodes", int), ("seed", int),
        ("load", float), ("hour-usd", int), ("budget-usd", int), ("waiting-usd", int),
        ("cron-s", int),
    ):  # fmt: skip
        key = name.replace("-", "_")
        parser.add_argument(f"--{name}", type=kind, default=getattr(default, key))
    today = dt.datetime.now(dt.UTC).date()
    results = Path(__file__).parent / "results" / f"morning-{today}.json"
    parser.add_argument("--out", type=Path, default=results)
    given = vars(parser.parse_args())
    out = given.pop("out")
    morning = Morning(**given)
    document: dict[str, object] = {
        "at": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        "commit": commit(),
        "cores": os.cpu_count(),
        "morning": given,
    }

    def told(facts: dict[str, object]) -> None:
        out.write_text(json.dumps({**document, "so_far": facts}, indent=1) + "\n")

    work = Path(tempfile.mkdtemp(prefix="hpcscale-morning-", dir="/tmp"))
    lab = Lab.up(work / "lab", LabOptions(**options(morning)), die_with_me=True)
    try:
        os.environ.update(lab.env())
        os.chdir(work)
        outcome = Driver(lab, morning, work, told=told).run()
    finally:
        lab.down()
    if outcome.problems:
        print(f"kept for a look: {work}")
    else:
        shutil.rmtree(work)
    document |= {"outcome": outcome.facts, "problems": outcome.problems}
    out.write_text(json.dumps(document, indent=1) + "\n")
    print(json.dumps(document, indent=1))
    return 1 if outcome.problems else 0


if __name__ == "__main__":
    sys.exit(main())
