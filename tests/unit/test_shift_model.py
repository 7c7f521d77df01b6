"""The model of moves within a controller (``shift_model``), explored in every order of its steps."""

import pytest
import shift_model
from shift_model import explore


def test_never_twice_never_lost_and_at_the_right_price():
    states, fault, stuck = explore(1)
    assert fault is None
    assert stuck == 0
    assert states > 10_000


@pytest.mark.slow
def test_two_ledgers(monkeypatch):
    monkeypatch.setattr(shift_model, "MAX_RESTART", 1)
    states, fault, stuck = explore(2)
    assert fault is None
    assert stuck == 0
    assert states > 100_000


@pytest.mark.parametrize("rule", shift_model.RULES)
def test_the_model_can_fail(rule):
    """Without any one of the rules it finds a fault, or states that never come to a right end."""
    _, fault, stuck = explore(1, **{rule: False})
    assert fault is not None or stuck
