"""docs/federation.md says of the handover what the kept injections say."""

import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FAULT = {
    "none": "",
    "on-prem nodes become free": "onprem fence lost, nodes free",
    "on-prem slurmctld killed right after the submission": "onprem ctld killed",
    "cloud slurmctld killed right after the submission": "cloud ctld killed",
    "on-prem slurmctld stopped (SIGSTOP) for three seconds": "onprem ctld stopped",
    "cloud slurmctld stopped for three seconds": "cloud ctld stopped",
}
STRUCK_HERE_ALONE = (
    "cloud node crash",
    "cloud disk full",
    "onprem clock +120 s",
    "cloud clock -120 s",
    "ssh cut after sbatch",
    "ssh refused",
)
PAGE = (ROOT / "docs" / "federation.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def each():
    kept = (ROOT / "tests" / "benchmarks" / "results").glob("handover-????-??-??.json")
    return json.loads(max(kept).read_text(encoding="utf-8"))["each"]


def counts(each, **what):
    """Begun once, lost, twice."""
    mine = [o for o in each if all(o["injection"][k] == v for k, v in what.items())]
    lost, twice = sum(o["lost"] for o in mine), sum(o["double_start"] for o in mine)
    began = sum(bool(o["starts"]) and not o["lost"] and not o["double_start"] for o in mine)
    assert began + lost + twice == len(mine) > 0
    return f"{began} / {lost} / {twice}"


def cell(first):
    row = next(line for line in PAGE.splitlines() if line.startswith(f"| {first} |"))
    return row.split(" | ")[3]


@pytest.mark.parametrize("first", FAULT)
def test_counts_of_a_fault(each, first):
    assert cell(first) == counts(each, fault=FAULT[first])


def test_counts_of_arrays(each):
    by_nobody = [o for o in each if not o["injection"]["fault"].startswith("user ")]
    assert cell("an array of two").startswith(counts(by_nobody, work="array"))


def test_what_was_struck_on_the_handover_alone(each):
    said = re.search(r"handover alone \((\d+) of (\d+) each\)", PAGE)
    assert said
    for fault in STRUCK_HERE_ALONE:
        assert counts(each, fault=fault) == f"{said[1]} / 0 / 0"
    assert said[1] == said[2]
