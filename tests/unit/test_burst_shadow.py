"""Shadow runs: the same verdicts as live, nothing done, and what they add up to."""

import datetime as dt

import msgspec
import pytest
from fake_sites import Sites

from hpcscale.burst.moves import Moves
from hpcscale.burst.run import make_plan
from hpcscale.burst.shadow import remember, would_have


@pytest.fixture
def sites(tmp_path):
    sites = Sites(tmp_path)
    sites.fill()
    yield sites
    sites.ledger.close()


def look(sites):
    made = make_plan(sites.ledger, sites.policy, sites)
    return made, remember(sites.ledger, made)


def test_a_shadow_decides_as_live_and_moves_nothing(sites):
    job = sites.submit()
    made, new = look(sites)
    assert new == 1
    assert [d.run_id for d in made.moves] == [job.run_id]
    assert not Moves(sites.ledger).all()
    assert would_have(sites.ledger).moves == 1
    # the same verdict is not recorded again
    assert look(sites)[1] == 0
    live = sites.tick()
    assert [msgspec.structs.replace(d, when=None) for d in live.plan.moves] == [
        msgspec.structs.replace(d, when=None) for d in made.moves
    ]


def test_what_it_adds_up_to_is_a_sentence(sites):
    assert "has decided anything yet" in would_have(sites.ledger).sentence
    sites.submit()
    look(sites)
    total = would_have(sites.ledger)
    assert total.since is not None
    assert total.since <= dt.datetime.now(dt.UTC)
    assert "would have moved 1 of 1 jobs" in total.sentence
    assert "deadlines" in total.sentence
    assert "too few forecasts have come true" in total.sentence
    assert would_have(sites.ledger, 0.912).sentence.endswith("; the 90 % bounds held 91%")
