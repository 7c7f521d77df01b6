"""Random walks through the protocol's model, with three handovers: more than can be explored.

python tests/benchmarks/model_walks.py [--count 1000000] [--out results/model-walks-DATE.json]
"""

import argparse
import datetime as dt
import json
import multiprocessing
import os
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from handover_model import walks

RESULTS = Path(__file__).parent / "results"
PART = 50_000


def main():
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--count", type=int, default=1_000_000)
    options.add_argument("--processes", type=int, default=min(2, os.cpu_count() or 1))
    options.add_argument(
        "--out", type=Path, default=RESULTS / f"model-walks-{dt.datetime.now(dt.UTC):%Y-%m-%d}.json"
    )
    given = options.parse_args()
    begin = time.monotonic()
    parts = [(min(PART, given.count - at), at // PART) for at in range(0, given.count, PART)]
    steps, faults = 0, []
    with multiprocessing.get_context("fork").Pool(given.processes, maxtasksperchild=1) as pool:
        for taken, _, fault in pool.starmap(walks, parts, chunksize=1):
            steps += taken
            faults += [fault] if fault else []
    result = {
        "what": "random walks through the model of the protocol, three handovers",
        "interleavings": given.count,
        "seconds": round(time.monotonic() - begin),
        "steps": steps,
        "double_starts": len(faults),
        "rate_below_at_95_percent": None if faults else 3 / given.count,
    }
    text = json.dumps(result, indent=1)
    given.out.write_text(text + "\n")
    print(text, *faults, sep="\n")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
