"""Handovers on real Slurm that are disturbed: each begins its work once, and leaves nothing.

The default suite makes twelve (``injection_set.TELLING``), each on the worker's one fast lab.
Together they hold each class of kills (submit, fence, claim, open, clean up, follow; before and
after the act), each class of faults (controllers killed and stopped, requests and replies lost,
nodes, disk, clock, a lost fence, the user), and all pairs of phase, ledgers and work; of all pairs
of classes not quite half, which docs/handover.md says by number. The slow test makes each kill with
each fault, with all pairs of all other dimensions folded in: all pairs of classes.
"""

import datetime as dt
import itertools
import json
import sys
from pathlib import Path

import injection_lab
import injections
import pytest
from injection_lab import ONPREM
from injection_set import (
    DIMENSIONS,
    FAULT_CLASSES,
    FAULTS,
    KILL_CLASSES,
    KILLS,
    TELLING,
    WORKS,
    Injection,
    Outcome,
    all_class_pairs,
    class_pairs,
    met,
    pairs,
)

from hpcscale import judge
from hpcscale.lab import faults, pytest_plugin

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"


@pytest.fixture(scope="module")
def fast_lab(pytestconfig):
    """A lab whose nodes boot at once, and stay up."""
    lab = pytest_plugin.start(pytestconfig, injections.OPTIONS)
    yield lab
    lab.down()


@pytest.fixture
def site(fast_lab, use_lab, tmp_path, monkeypatch):
    monkeypatch.setattr(judge, "NEVER_REACHED_S", injections.NEVER_REACHED_S)
    site = injections.Site(use_lab(fast_lab), tmp_path)
    yield site
    site.bursts.end()
    pytest_plugin.cancel_all(fast_lab)


@pytest.mark.parametrize("injection", TELLING, ids=lambda i: f"{i.kill}, {i.fault}, {i.work}")
def test_a_handover_that_is_disturbed_begins_once(site, injection):
    out = site.inject(injection)
    assert out.killed or out.struck
    assert not out.double, out
    assert not out.lost, out
    assert not out.orphans, out
    assert not out.wrong_behind, out
    assert not out.unsettled, out


def test_a_lab_that_was_left_in_disorder_becomes_ready(site):
    site.ready()
    lab = site.lab
    site.free()
    faults.controller(lab, ONPREM, "kill")  # it has hardly saved that, and may forget it
    faults.controller(lab, ONPREM, "restart")
    site.fill()
    site.onprem("scontrol", "update", "NodeName=onprem1", "State=DRAIN", "Reason=test", check=True)
    faults.node_crash(lab, "onprem2")
    for ask in (site.onprem, site.cloud):
        ask("sbatch", "-n1", "-o/dev/null", "--wrap=sleep 600", check=True)
    site.ready()
    assert site.onprem("squeue", "-h", "-o", "%T %j %D") == "RUNNING filler 4"
    assert set(lab.site(ONPREM).node_states().values()) == {"alloc"}
    assert not site.cloud("squeue", "-h")


def test_a_lab_that_does_not_become_ready_is_told(site, monkeypatch):
    monkeypatch.setattr(injection_lab, "READY_S", 0.1)
    monkeypatch.setattr(site, "fill", lambda: None)
    site.free()
    with pytest.raises(injections.NotReadyError):
        site.inject(Injection())


def test_what_the_default_suite_covers():
    assert set(FAULT_CLASSES) == set(FAULTS)
    assert set(KILL_CLASSES) == {kill.rpartition(".")[0] for kill in KILLS}
    wanted, made = all_class_pairs(), class_pairs(TELLING)
    assert made < wanted
    # each value of each class; what moves, when and with how many ledgers in all pairs
    assert {side for pair in made for side in pair} == {side for pair in wanted for side in pair}
    assert {i.kill.rpartition(".")[2] for i in TELLING} == {"before", "after"}
    rest = {"phase", "ledgers", "work"}
    assert {p for p in wanted if {name for name, _ in p} <= rest} <= made
    assert wanted <= class_pairs(i for i in pairs() if i.kill and i.fault), "the slow test's"


def test_the_page_says_which_share_of_the_pairs_that_is():
    wanted, made = all_class_pairs(), class_pairs(TELLING)
    disturbed = {("kill class", "fault class")}
    both = [{p for p in some if (p[0][0], p[1][0]) in disturbed} for some in (made, wanted)]
    said = (
        f"{len(TELLING)} injections hold {len(made)} of the {len(wanted)} pairs of classes "
        f"({len(made) / len(wanted):.0%}), {len(both[0])} of the {len(both[1])} of a kill's class"
    )
    page = " ".join((BENCHMARKS.parents[1] / "docs" / "handover.md").read_text().split())
    assert said in page


def test_each_value_meets_each_value_of_each_other_dimension():
    chosen = pairs()
    assert len(chosen) == len(set(chosen)) >= 300
    for names in itertools.combinations(DIMENSIONS, 2):
        assert met(chosen, *names) == set(itertools.product(*(DIMENSIONS[n] for n in names)))
    of_each_fault = len(DIMENSIONS["phase"]) * len(DIMENSIONS["ledgers"]) * len(WORKS)
    for fault in FAULTS:
        folded = met([i for i in chosen if i.fault == fault], "phase", "ledgers", "work")
        assert len(folded) >= of_each_fault - 1


@pytest.mark.parametrize(
    ("starts", "double", "lost"),
    [
        (["a 0 0", "a 0 1", "a 0 2"], False, False),
        (["a 0 0", "a 1 0", "a 0 1", "a 0 2"], False, False),  # requeued by Slurm
        (["a 0 0", "a 0 0", "a 0 1", "a 0 2"], True, False),
        (["a 0 0", "b 0 0", "a 0 1", "a 0 2"], True, False),
        (["a 0 0", "a 0 2"], False, True),
    ],
)
def test_elements_are_judged_one_by_one(starts, double, lost):
    words = [line.split() for line in starts]
    out = Outcome(Injection(work="array"), starts=[["site", "0", *word] for word in words])
    assert out.double is double
    assert ({s[4] for s in out.starts} < set(out.injection.tasks)) is lost


@pytest.mark.slow
@pytest.mark.begins_first(minutes=25)
@pytest.mark.timeout(4000)
def test_each_kill_with_each_fault(monkeypatch):
    """On labs of its own; an interrupted run is gone on with. Kept in tests/benchmarks/results."""
    monkeypatch.setattr(sys, "path", [str(BENCHMARKS), *sys.path])
    import handover

    today = f"{dt.datetime.now(dt.UTC):%Y-%m-%d}"
    out = BENCHMARKS / "results" / f"handover-{today}.json"
    monkeypatch.setattr(sys, "argv", ["handover.py", "--minutes", "30", "--out", str(out)])
    assert handover.main() == 0
    assert not out.with_suffix(".part.json").exists(), "not complete: run it again, it goes on"
    result = json.loads(out.read_text())
    assert result["injections"] >= 300
    assert result["not_carried_out"] == []
