"""What becomes of an injection whose lab does not become ready: another lab, and the same again."""

import contextlib
import os
import queue
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).resolve().parents[1] / "benchmarks"))
import handover
from injection_set import Injection, Outcome

from hpcscale.errors import LabError


@pytest.fixture
def results(monkeypatch):
    """Work with labs as told: one list of answers for each of them."""
    monkeypatch.setattr(handover.signal, "signal", lambda *_: None)
    monkeypatch.setattr(handover.injections, "die_with_parent", lambda *_: None)
    monkeypatch.setattr(handover.judge, "NEVER_REACHED_S", handover.judge.NEVER_REACHED_S)

    def of(labs, chosen):
        answers = iter(labs)

        class SomeLab:
            @staticmethod
            @contextlib.contextmanager
            def up(*_, **__):
                told = next(answers)
                if told is None:
                    raise LabError("no lab")
                lab = SomeLab()
                lab.told = iter(told)
                yield lab

            def env(self):
                return {}

        class SomeSite:
            def __init__(self, lab, folder):
                self.lab = lab
                assert folder.is_dir()

            def onprem(self, *_, check):
                return "slurm"

            def inject(self, injection):
                told = next(self.lab.told)
                if isinstance(told, Exception):
                    raise told
                return Outcome(injection)

        monkeypatch.setattr(handover, "Lab", SomeLab)
        monkeypatch.setattr(handover.injections, "Site", SomeSite)
        todo, done = queue.Queue(), queue.Queue()
        for each in (*chosen, None):
            todo.put(each)
        handover.work(0, todo, done, os.getpid())
        got = []
        while not done.empty():
            got.append(done.get())
        assert got.pop() is None
        return [each for each in got if each != "slurm"]

    return of


A, B = Injection(ledgers=1), Injection(ledgers=2)
NOT_READY = handover.injections.NotReadyError("nodes")


def made(results):
    return [each.injection for each in results if isinstance(each, Outcome)]


def broken(results):
    return [each[0] for each in results if isinstance(each, tuple)]


def test_it_is_tried_again_on_a_new_lab(results):
    got = results([[True, NOT_READY], [True]], [A, B])
    assert made(got) == [A, B]
    assert not broken(got)
    assert [each.why for each in got if isinstance(each, handover.NewLab)] == [f"{B}: nodes"]


def test_one_that_began_is_not_tried_again(results):
    got = results([[ValueError("in the middle"), True]], [A, B])
    assert made(got) == [B]
    assert broken(got) == [A]


def test_after_some_labs_it_is_told_and_the_next_one_comes(results):
    got = results([[NOT_READY], [NOT_READY], [NOT_READY], [True]], [A, B])
    assert made(got) == [B]
    assert broken(got) == [A]


def test_a_lab_that_does_not_start_is_started_again(results):
    assert made(results([None, [True, True]], [A, B])) == [A, B]
    assert not results([None] * 3, [A])[3:]
