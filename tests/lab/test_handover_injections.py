"""A few of the injections into the handover on real Slurm; all of them, on several labs, are slow."""

import datetime as dt
import json
import sys
from pathlib import Path

import injections
import pytest
from injections import Injection

TELLING = [
    Injection("claim.after", "onprem ctld killed", "gated", 2),
    Injection("decide.after", "ssh cut after ln", "gated", 1),
    Injection("save opening.after", "onprem fence lost, nodes free", "gated", 1),
]
BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"


@pytest.fixture
def site(lab_env, tmp_path):
    site = injections.Site(lab_env, tmp_path)
    yield site
    site.end_children()
    site.free()


@pytest.mark.parametrize(
    "injection", TELLING, ids=lambda i: f"{i.kill}-{i.fault}".replace(" ", "-")
)
def test_a_handover_that_is_disturbed_begins_once(site, injection):
    out = site.inject(injection)
    assert out.killed or out.struck
    assert not out.double, out
    assert not out.lost, out
    assert not out.orphans, out
    assert not out.unsettled, out


def test_each_kill_meets_each_fault():
    chosen = injections.pairs()
    assert len(chosen) >= 300
    met = {(i.kill, i.fault) for i in chosen}
    assert len(met) == len(injections.KILLS) * len(injections.FAULTS)


@pytest.mark.slow
@pytest.mark.timeout(4000)
def test_each_kill_with_each_fault(monkeypatch):
    """Three labs of their own; the result is kept in tests/benchmarks/results."""
    monkeypatch.setattr(sys, "path", [str(BENCHMARKS), *sys.path])
    import handover

    today = f"{dt.datetime.now(dt.UTC):%Y-%m-%d}"
    out = BENCHMARKS / "results" / f"handover-{today}.json"
    monkeypatch.setattr(sys, "argv", ["handover.py", "--minutes", "45", "--out", str(out)])
    assert handover.main() == 0
    result = json.loads(out.read_text())
    assert result["injections"] >= 300
    assert result["not_carried_out"] == []
