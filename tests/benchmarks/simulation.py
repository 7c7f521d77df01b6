"""Very many simulated interleavings of the handover: counted over as many calls as it takes.

    python tests/benchmarks/simulation.py --first 0 --count 1000000 --out results/simulation-DATE.json

Each part that is done is in the result at once; the next call goes on with what is missing, so it
may be stopped at any time. A range of seeds is kept with the commit whose code ran: another
commit's interleavings of the same seeds count as interleavings too, and as seeds once.
"""

import argparse
import functools
import gc
import json
import multiprocessing
import os
import subprocess
import sys
import time
from collections import Counter
from decimal import Decimal
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(TESTS.parent), str(TESTS)]

RESULTS = TESTS / "benchmarks" / "results"
KINDS = {"double start": "double_starts", "lost": "lost", "orphan": "orphans", "money": "money"}
WHAT = "the handover's real code on faked sites, seeded interleavings"


def part_of(first, count):
    """One part; a process makes its own world."""
    from sim_world import simulate

    gc.set_threshold(20_000, 20, 20)  # most of what is made is gone soon
    begin = time.process_time()
    counts, wrong = simulate(first, count)
    return first, count, counts, wrong, time.process_time() - begin


def commit():
    """What is checked out; with a plus where files were changed since."""
    git = functools.partial(
        subprocess.run, cwd=TESTS, capture_output=True, text=True, check=True, timeout=60
    )
    changed = git(["git", "status", "--porcelain", "--", "../hpcscale", "../templates", "."]).stdout
    changed = [line for line in changed.splitlines() if "/results/" not in line]
    return git(["git", "rev-parse", "--short=12", "HEAD"]).stdout.strip() + "+" * bool(changed)


def empty():
    return {"ranges": [], "cpu_seconds": 0.0, "counts": {}, "violations": []}


def missing(result, first, count, size, code):
    """Parts of these seeds that this code has not run."""
    seen = [(r["first"], r["first"] + r["count"]) for r in result["ranges"] if r["commit"] == code]
    start, end = first, first + count
    while start < end:
        inside = [b for a, b in seen if a <= start < b]
        if inside:
            start = max(inside)
            continue
        stop = min([start + size, end, *[a for a, _ in seen if a > start]])
        yield start, stop - start
        start = stop


def add(result, part, code):
    """One part more, as ``part_of`` gives it; ranges that touch become one."""
    first, count, counts, wrong, seconds = part
    ranges = [*result["ranges"], {"first": first, "count": count, "commit": code}]
    ranges.sort(key=lambda r: (r["commit"], r["first"]))
    joined = ranges[:1]
    for this in ranges[1:]:
        last = joined[-1]
        if this["commit"] == last["commit"] and last["first"] + last["count"] == this["first"]:
            last["count"] += this["count"]
        else:
            joined.append(this)
    total = Counter(result["counts"])
    for key, value in counts.items():
        total[key] += float(value) if isinstance(value, Decimal) else value
    return {
        "ranges": joined,
        "cpu_seconds": round(result["cpu_seconds"] + seconds, 1),
        "counts": {k: round(v, 2) for k, v in sorted(total.items())},
        "violations": result["violations"] + [f"{code} {text}" for text in wrong],
    }


def different(ranges):
    """How many seeds there are in these ranges."""
    seeds = end = 0
    for one in sorted(ranges, key=lambda r: r["first"]):
        stop = one["first"] + one["count"]
        seeds += max(0, stop - max(end, one["first"]))
        end = max(end, stop)
    return seeds


def summary(result):
    """What the whole of it says; the bound is the rule of three, for no failure at all.

    Two commits may run the same seed, and much the same way: the bound counts it once.
    """
    kinds = Counter()
    for text in result["violations"]:
        kind = text.partition(": ")[2].partition(":")[0]
        kinds[KINDS.get(kind, "other")] += 1
    count = sum(r["count"] for r in result["ranges"])
    seeds = different(result["ranges"])
    failed = {name: kinds[name] for name in (*KINDS.values(), "other")}
    clean = count and not any(failed.values())
    return {
        "what": WHAT,
        "interleavings": count,
        "different_seeds": seeds,
        **failed,
        "rate_below_at_95_percent": 3 / seeds if clean else None,
        **result,
    }


def read(path):
    return json.loads(path.read_text()) if path.exists() else empty()


def write(path, result):
    """Whole or not at all: it may be stopped at any time."""
    new = path.with_suffix(".new")
    new.write_text(json.dumps(summary(result), indent=1) + "\n")
    new.replace(path)


def run(path, first, count, *, size=400, processes=2, say=print):
    """Run what is missing of these seeds and keep it in ``path``; the summary."""
    code = commit()
    result = read(path)
    result = {key: result[key] for key in empty()}
    parts = list(missing(result, first, count, size, code))
    with multiprocessing.get_context("fork").Pool(processes, maxtasksperchild=50) as pool:
        for done in pool.imap_unordered(functools.partial(_unpacked, part_of), parts):
            result = add(result, done, code)
            write(path, result)
            for text in done[3]:
                say(text)
    return summary(result)


def _unpacked(function, args):
    return function(*args)


def main():
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--first", type=int, default=0)
    options.add_argument("--count", type=int, default=1_000_000)
    options.add_argument("--out", type=Path, required=True)
    options.add_argument("--processes", type=int, default=min(2, os.cpu_count() or 1))
    given = options.parse_args()
    result = run(given.out, given.first, given.count, processes=given.processes)
    print(json.dumps({k: v for k, v in result.items() if k != "counts"}, indent=1))
    return 1 if result["violations"] else 0


if __name__ == "__main__":
    sys.exit(main())
