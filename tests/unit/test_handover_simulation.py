"""The handover's real code in deterministic simulation: seeded interleavings with seeded faults.

What is simulated, and how, is in ``sim_world``. ``HPCSCALE_SIMULATIONS`` sets how many of them the
slow test runs.
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
import sim_patch
import sim_world
from sim_judge import ViolationError

RESULTS = Path(__file__).resolve().parents[1] / "benchmarks" / "results"
SHORT = 60
MANY = int(os.environ.get("HPCSCALE_SIMULATIONS", "12000"))


def bound(count):
    """Rule of three: with no failure in ``count`` tries the rate is below this at 95 %."""
    return 3 / count


def simulate(first, count):
    """Their sum and the first violations."""
    total, wrong = Counter(), []
    with sim_patch.simulated() as base:
        for seed in range(first, first + count):
            try:
                total += sim_world.one(base, seed).counts
            except ViolationError as exc:
                wrong.append(f"seed {seed}: {exc}")
    return total, wrong


@pytest.fixture
def base():
    with sim_patch.simulated() as base:
        yield base


def test_in_some_interleavings_nothing_is_begun_twice_or_lost():
    total, wrong = simulate(0, SHORT)
    assert wrong == []
    assert total["step.moved"] > SHORT / 3
    assert total["end: done.lab-onprem"] > 0


def test_the_same_seed_is_the_same_interleaving(base):
    one, two = (sim_world.one(base, 7) for _ in range(2))
    assert (one.trace, one.counts) == (two.trace, two.counts)


@pytest.mark.parametrize(
    ("rule", "seeds", "said"),
    [
        ("claim", (35, 85, 94, 159), "double start"),
        ("gate", (0, 1, 2, 4), "double start"),
        ("fence", (5, 6, 7, 8), "without a look at the fence"),
    ],
)
def test_a_rule_that_is_left_out_is_found(base, rule, seeds, said):
    """Seeds that found it before, then others."""
    for seed in (*seeds, *range(1000, 1800)):
        try:
            sim_world.one(base, seed, [rule])
        except ViolationError as exc:
            if said in str(exc):
                return
    pytest.fail(f"nobody noticed that there is no {rule}")


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_in_many_interleavings_nothing_is_begun_twice_or_lost():
    begin = time.monotonic()
    part = 250
    starts = range(0, MANY, part)
    total, wrong = Counter(), []
    with multiprocessing.get_context("fork").Pool(max(1, min(2, os.cpu_count() or 1))) as pool:
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
    print(json.dumps(result, indent=1))
    RESULTS.mkdir(exist_ok=True)
    today = f"{dt.datetime.now(dt.UTC):%Y-%m-%d}"
    (RESULTS / f"simulation-{today}.json").write_text(json.dumps(result, indent=1) + "\n")
    assert wrong == []
