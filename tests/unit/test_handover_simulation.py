"""The handover's real code in deterministic simulation: seeded interleavings with seeded faults.

What is simulated, and how, is in ``sim_world``; very many of them run in ``tests/simulation``.
"""

import json
import math
from pathlib import Path

import pytest
import sim_patch
import sim_world
from sim_judge import ViolationError

SHORT = 60
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def base():
    with sim_patch.simulated() as base:
        yield base


def test_in_some_interleavings_nothing_is_begun_twice_or_lost():
    total, wrong = sim_world.simulate(0, SHORT)
    assert wrong == []
    assert total["step.moved"] > SHORT / 3
    assert total["end: done.lab-onprem"] > 0
    assert {k for k in total if k.startswith("kind: ")} == {f"kind: {k}" for k in sim_world.KINDS}
    assert total["stood in"] > 0


def test_the_same_seed_is_the_same_interleaving(base):
    one, two = (sim_world.one(base, 7) for _ in range(2))
    assert (one.trace, one.counts) == (two.trace, two.counts)


def test_what_is_remembered_changes_nothing(base):
    quick = [sim_world.one(base, seed) for seed in range(6)]
    with sim_patch.simulated(remembered=False) as plain:
        slow = [sim_world.one(plain, seed) for seed in range(6)]
    assert [w.trace for w in quick] == [w.trace for w in slow]
    assert [w.counts for w in quick] == [w.counts for w in slow]


def latest(name):
    path = max((ROOT / "tests/benchmarks/results").glob(f"{name}-*.json"))
    return json.loads(path.read_text())


@pytest.mark.parametrize(("name", "what"), [("simulation", "simulated interleavings")])
def test_the_page_says_what_was_run(name, what):
    result = latest(name)
    page = " ".join((ROOT / "docs/handover.md").read_text().split())
    assert f"{result['interleavings']:,} {what}" in page
    failed = {k: v for k, v in result.items() if k in {"double_starts", "lost", "orphans"} and v}
    assert failed == {}
    if "ranges" in result:
        assert sum(r["count"] for r in result["ranges"]) == result["interleavings"]
        assert f"{result['different_seeds']:,} different seeds" in page
        assert result["violations"] == []


def test_the_page_says_what_was_injected():
    result = latest("handover")
    page = " ".join((ROOT / "docs/handover.md").read_text().split())
    assert f"On real Slurm {result['injections']} injections" in page
    assert f"of the code of commit {result['commit']}" in page
    bound = math.ceil(3 / result["injections"] * 10_000) / 10_000  # the rule of three, rounded up
    assert f"its rate is below {bound}" in page
    what = ("double_starts", "lost", "orphans", "wrong_behind", "unsettled", "not_carried_out")
    assert {name: result[name] for name in what if result[name]} == {}


@pytest.mark.parametrize(
    ("rule", "seeds", "said"),
    [
        ("claim", (10, 19, 26, 29), "double start"),
        ("gate", (1, 5, 6, 8), "double start"),
        ("fence", (1, 8, 9, 10), "without a look at the fence"),
        ("price", (15, 20, 22, 23), "money: it began in partition"),
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
