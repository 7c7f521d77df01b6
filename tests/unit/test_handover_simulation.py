"""The handover's real code in deterministic simulation: seeded interleavings with seeded faults.

What is simulated, and how, is in ``sim_world``; very many of them run in ``tests/simulation``.
"""

import pytest
import sim_patch
import sim_world
from sim_judge import ViolationError

SHORT = 60


@pytest.fixture
def base():
    with sim_patch.simulated() as base:
        yield base


def test_in_some_interleavings_nothing_is_begun_twice_or_lost():
    total, wrong = sim_world.simulate(0, SHORT)
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
