"""Between two ticks: a gang that comes to its gate is let through without waiting for the next."""

import pytest
from fake_sites import Sites

from hpcscale.burst.attend import attend
from hpcscale.burst.claims import Word, decision
from hpcscale.burst.handover import Handover
from hpcscale.burst.moves import Step
from hpcscale.errors import UnreachableError


@pytest.fixture
def sites(tmp_path, monkeypatch):
    monkeypatch.setattr("hpcscale.burst.acts.BEGIN_S", 0.0)
    sites = Sites(tmp_path)
    sites.fill()
    yield sites
    sites.ledger.close()


class Time:
    """Stands still but for what is slept; tells what happens when."""

    def __init__(self):
        self.at = 0.0
        self.then = {}

    def now(self):
        return self.at

    def sleep(self, seconds):
        self.at += seconds
        for when in [w for w in self.then if w <= self.at]:
            self.then.pop(when)()


def wait(sites, time, seconds):
    handover = Handover(sites.ledger, sites, sites.ledger.path.parent)
    return attend(handover, sites, seconds, now=time.now, sleep=time.sleep)


def test_a_gang_that_comes_is_let_through_within_a_look(sites):
    job = sites.submit()
    sites.tick()
    sites.both(40)
    time, opened = Time(), []

    def comes():
        sites.report(sites.target(job).submission_id, "gated", time=100.0)

    def looks():
        opened.append(decision(sites.cloud, sites.target(job)))

    time.then = {0.5: comes, 0.75: looks}
    (move,) = wait(sites, time, 2.0)
    assert opened == [Word.OPENED], "a quarter of a second after it came"
    assert move.step is Step.CANCELLING
    assert time.at == 2.0


def test_nothing_is_asked_of_slurm_meanwhile(sites):
    sites.submit()
    sites.tick()
    sites.both(40)
    before = len(sites.cloud.calls) + len(sites.onprem.calls)
    assert wait(sites, Time(), 2.0) == []
    assert len(sites.cloud.calls) + len(sites.onprem.calls) == before


def test_a_site_without_an_answer_is_left_to_the_next_tick(sites):
    job = sites.submit()
    sites.tick()
    sites.report(sites.target(job).submission_id, "gated", time=100.0)
    asked = []

    def connect(name):
        asked.append(name)
        raise UnreachableError("no route", where=name)

    time = Time()
    handover = Handover(sites.ledger, sites, sites.ledger.path.parent)
    assert attend(handover, connect, 2.0, now=time.now, sleep=time.sleep) == []
    assert asked == ["lab-cloud"]
    assert time.at == 2.0


def test_one_that_cannot_go_on_is_not_tried_at_each_look(sites):
    job = sites.submit()
    sites.tick()  # its nodes boot still
    sites.report(sites.target(job).submission_id, "gated", time=100.0)
    tried = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Handover, "advance", lambda self, move: tried.append(move) or move)
        wait(sites, Time(), 2.0)
    assert len(tried) == 2
