"""Very many interleavings: of the handover's real code, and of the protocol's model.

``HPCSCALE_SIMULATIONS`` sets how many of the first there are.
"""

import datetime as dt
import json
import multiprocessing
import os
import time
from collections import Counter
from decimal import Decimal
from pathlib import Path

import pytest
from handover_model import walks
from sim_world import simulate

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]

RESULTS = Path(__file__).resolve().parents[1] / "benchmarks" / "results"
MANY = int(os.environ.get("HPCSCALE_SIMULATIONS", "12000"))
CORES = max(1, min(2, os.cpu_count() or 1))


def bound(count):
    """Rule of three: with no failure in ``count`` tries the rate is below this at 95 %."""
    return 3 / count


def keep(name, result):
    print(json.dumps(result, indent=1))
    RESULTS.mkdir(exist_ok=True)
    today = f"{dt.datetime.now(dt.UTC):%Y-%m-%d}"
    (RESULTS / f"{name}-{today}.json").write_text(json.dumps(result, indent=1) + "\n")


def test_in_many_interleavings_nothing_is_begun_twice_or_lost():
    begin = time.monotonic()
    part = 250
    starts = range(0, MANY, part)
    total, wrong = Counter(), []
    with multiprocessing.get_context("fork").Pool(CORES) as pool:
        for counts, found in pool.starmap(simulate, [(s, min(part, MANY - s)) for s in starts]):
            total += counts
            wrong += found
    kinds = Counter(text.partition(": ")[2].partition(":")[0] for text in wrong)
    result = {
        "what": "the handover's real code on faked sites, seeded interleavings",
        "interleavings": MANY,
        "seconds": round(time.monotonic() - begin),
        "double_starts": kinds["double start"],
        "lost": kinds["lost"],
        "orphans": kinds["orphan"],
        "money": kinds["money"],
        "other": sum(kinds.values()) - sum(kinds[k] for k in ("double start", "lost", "orphan", "money")),
        "rate_below_at_95_percent": bound(MANY),
        "counts": {k: float(v) if isinstance(v, Decimal) else v for k, v in sorted(total.items())},
    }  # fmt: skip
    keep("simulation", result)
    assert wrong == []


def test_a_million_random_walks():
    """1,000,000 interleavings of the model's rules, beside the exhaustive exploration above."""
    begin = time.monotonic()
    total = Counter()
    parts = [(50_000, seed) for seed in range(20)]
    with multiprocessing.get_context("fork").Pool(CORES, maxtasksperchild=1) as pool:
        for taken, _, fault in pool.starmap(walks, parts, chunksize=1):
            assert fault is None
            total.update(steps=taken)
    count = sum(size for size, _ in parts)
    result = {
        "what": "random walks through the model of the protocol, three handovers",
        "interleavings": count,
        "seconds": round(time.monotonic() - begin),
        "steps": total["steps"],
        "double_starts": 0,
        "rate_below_at_95_percent": bound(count),
    }
    keep("model-walks", result)
