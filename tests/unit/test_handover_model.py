"""The protocol's model (``handover_model``), explored in every order of its steps."""

import pytest
from handover_model import explore, walks


@pytest.mark.begins_first
def test_never_twice_and_never_lost():
    states, fault, lost = explore()
    assert fault is None
    assert lost == 0
    assert states > 10_000


@pytest.mark.parametrize("rule", ["claim", "gate", "close"])
def test_the_model_can_fail(rule):
    """Without any one of the rules it finds a fault: it does look."""
    _, fault, _ = explore(**{rule: False})
    assert fault is not None


def test_ids_that_are_given_out_again_and_a_scancel_on_prem():
    """One handover, explored: no stranger's job is cancelled, and all else holds."""
    states, fault, lost = explore(handovers=1, ids=True)
    assert fault is None
    assert lost == 0
    assert states > explore(handovers=1)[0]


@pytest.mark.parametrize("rule", ["claim", "gate", "close", "comment"])
def test_the_model_with_ids_can_fail(rule):
    assert explore(handovers=1, ids=True, **{rule: False})[1] is not None


def test_random_walks_of_two_handovers_with_ids():
    """Too many states to explore."""
    assert walks(2_000, 3, handovers=2, ids=True)[2] is None


@pytest.mark.parametrize("rule", ["claim", "gate", "close"])
def test_random_walks_find_a_rule_that_is_left_out(rule):
    assert walks(20_000, 1, **{rule: False})[2] is not None


def test_random_walks_of_three_handovers():
    taken, states, fault = walks(2_000, 2)
    assert fault is None
    assert states > 10_000
    assert taken > 20_000
