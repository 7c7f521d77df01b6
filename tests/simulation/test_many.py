"""Many interleavings: of the handover's real code, and of the protocol's model.

Minutes of them. The millions are run by ``tests/benchmarks/simulation.py`` and ``model_walks.py``,
whose results are kept; ``HPCSCALE_SIMULATIONS`` sets how many of the first there are here.
"""

import multiprocessing
import os
from collections import Counter

import pytest
from handover_model import walks
from sim_world import simulate

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]

MANY = int(os.environ.get("HPCSCALE_SIMULATIONS", "9000"))
FIRST = 10_000_000  # others than the kept result is of
WALKS = 100_000
CORES = max(1, min(2, os.cpu_count() or 1))


@pytest.mark.begins_first(minutes=4)
def test_in_many_interleavings_nothing_is_begun_twice_or_lost():
    part = 250
    starts = range(0, MANY, part)
    total, wrong = Counter(), []
    with multiprocessing.get_context("fork").Pool(CORES) as pool:
        parts = [(FIRST + start, min(part, MANY - start)) for start in starts]
        for counts, found in pool.starmap(simulate, parts, chunksize=1):
            total += counts
            wrong += found
    print(dict(total), f"with no failure its rate is below {3 / MANY:.2g} at 95 %", sep="\n")
    assert wrong == []
    assert {k for k in total if k.startswith("kind: ")} >= {
        "kind: job",
        "kind: array",
        "kind: afterok",
    }
    assert total["stood in"] > 0


def test_many_random_walks():
    """Through the model's rules with three handovers, beside the exhaustive exploration of two."""
    parts = [(WALKS // 10, 1000 + seed) for seed in range(10)]
    with multiprocessing.get_context("fork").Pool(CORES, maxtasksperchild=1) as pool:
        for taken, _, fault in pool.starmap(walks, parts, chunksize=1):
            assert fault is None
            assert taken > 0
