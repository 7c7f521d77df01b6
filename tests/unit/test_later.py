"""Questions side by side, or one after the other."""

import threading

import pytest

from hpcscale.errors import UnreachableError
from hpcscale.outlook.later import Later


def test_questions_wait_side_by_side():
    met = threading.Barrier(3, timeout=60)  # passed only when all three are under way
    asked = [Later(met.wait, at_once=True) for _ in range(3)]
    assert sorted(one.answer() for one in asked) == [0, 1, 2]


def test_an_error_is_the_askers():
    def fail():
        raise UnreachableError("no answer")

    for at_once in (True, False):
        asked = Later(fail, at_once=at_once)
        with pytest.raises(UnreachableError, match="no answer"):
            asked.answer()


def test_one_after_the_other_in_the_order_of_their_results():
    order = []
    asked = [Later(lambda k=k: order.append(k), at_once=False) for k in range(3)]
    for one in reversed(asked):
        one.answer()
    assert order == [2, 1, 0]
