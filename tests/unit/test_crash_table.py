"""docs/handover.md has a row for each step of a move, and for each kill that is injected."""

import re
from pathlib import Path

from injection_set import KILLS

from hpcscale.burst.moves import Step

DOC = Path(__file__).parents[2] / "docs" / "handover.md"
WITHIN = {Step.SHIFTING, Step.RESTORING}  # of a move into a partition of the same controller


def rows(begin, end):
    """Cells of the rows of all tables about kills between two headings."""
    text = DOC.read_text(encoding="utf-8")
    found = []
    for block in text[text.index(begin) : text.index(end)].split("\n\n"):
        lines = [line for line in block.splitlines() if line.startswith("|")]
        if lines and lines[0].startswith("| killed |"):
            found += [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]
    return found


def steps_of(table):
    return {m[1].lower() for row in table if (m := re.match(r"(?:element, )?([A-Z]+):", row[0]))}


def test_each_step_that_has_an_act_has_a_row():
    crashes = steps_of(rows("## Crash points", "## What shows that it holds"))
    unsettled = {step for step in Step if not step.settled}
    assert crashes == unsettled - WITHIN
    within = steps_of(rows("### Into a partition of the same controller", "### What users do"))
    assert within == WITHIN | {Step.MOVED}


def test_each_injected_kill_is_named_in_a_row_of_its_step():
    named = {}
    for row in rows("## Crash points", "## What shows that it holds"):
        if len(row) == 5:
            for kill in re.findall(r"`([^`]+)`", row[4]):
                named.setdefault(kill, []).append(row[0].partition(":")[0].lower())
    assert set(named) == set(KILLS) - {""}
    for kill, steps in named.items():
        act, _, when = kill.rpartition(".")
        step = act.removeprefix("save ")
        if act.startswith("save "):  # before: the ledger has the step that led there
            assert all((step == each) == (when == "after") for each in steps), kill
