import datetime as dt
from decimal import Decimal

import pytest

from hpcscale.burst.moves import Move, Moves, Step, target_attempt
from hpcscale.ledger import Ledger, Role
from hpcscale.spec import JobSpec


@pytest.fixture
def ledger(tmp_path):
    with Ledger.open(tmp_path / "ledger.sqlite3") as ledger:
        yield ledger


def attempt(ledger, run, site, submission_id, role):
    return ledger.new_attempt(
        run,
        site=site,
        submission_id=submission_id,
        script="#!/bin/bash\n",
        script_sha256="0" * 64,
        run_dir="/x",
        comment=f"hpcscale={submission_id}",
        role=role,
    )


@pytest.fixture
def run(ledger):
    run = ledger.new_run(JobSpec(name="train"), site="onprem")
    attempt(ledger, run, "onprem", "hs-1", Role.ONPREM)
    return run


def move_of(run, **kw):
    return Move(run_id=run.run_id, from_site="onprem", to_site="cloud", origin="hs-1", **kw)


def test_a_move_reads_back_as_it_was_saved(ledger, run):
    moves = Moves(ledger)
    begun = moves.begin(move_of(run, old_exc="", estimate_usd=Decimal("1.50")))
    saved = moves.save(
        begun,
        step=Step.SUBMITTED,
        target="hs-2",
        asked_at=dt.datetime(2026, 5, 1, tzinfo=dt.UTC),
        message="x",
    )
    assert moves.get(begun.move_id) == saved
    assert moves.unsettled() == [saved]
    assert moves.latest() == {run.run_id: [saved]}
    kinds = [e.kind for e in ledger.events(run.run_id) if e.kind.startswith("move.")]
    assert kinds == ["move.submitting", "move.submitted"]


def test_a_run_has_one_move_at_a_time(ledger, run):
    moves = Moves(ledger)
    first = moves.begin(move_of(run))
    assert moves.begin(move_of(run)) is None
    moves.save(first, step=Step.FAILED)
    assert moves.begin(move_of(run)) is not None
    assert [m.step for m in moves.of_run(run.run_id)] == [Step.FAILED, Step.SUBMITTING]


def test_of_two_processes_one_takes_a_step(ledger, run, tmp_path):
    move = Moves(ledger).begin(move_of(run))
    with Ledger.open(tmp_path / "ledger.sqlite3") as other:
        assert Moves(other).save(move, step=Step.SUBMITTED) is not None
    assert Moves(ledger).save(move, step=Step.SUBMITTED) is None
    assert Moves(ledger).get(move.move_id).step is Step.SUBMITTED


def test_a_cloud_attempt_is_found_though_the_move_did_not_note_it(ledger, run):
    moves = Moves(ledger)
    attempt(ledger, run, "cloud", "hs-older", Role.BURST)
    move = moves.begin(move_of(run))
    assert target_attempt(ledger, move) is None
    attempt(ledger, run, "cloud", "hs-2", Role.BURST)
    assert target_attempt(ledger, move).submission_id == "hs-2"
