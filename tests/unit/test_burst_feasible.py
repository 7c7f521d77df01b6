import datetime as dt

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpcscale.burst.feasible import deadline_note
from hpcscale.errors import BurstRefusedError

NOW = dt.datetime(2026, 5, 1, 12, tzinfo=dt.UTC)


def s(seconds):
    return dt.timedelta(seconds=seconds)


def test_a_deadline_that_nothing_can_meet_is_refused_with_the_earliest_time():
    with pytest.raises(BurstRefusedError) as caught:
        deadline_note(NOW + s(3599), NOW, 3600, [("cloud", 600)], here=True)
    assert "the earliest possible is 2026-05-01 13:00:00Z (starting here at once)" in str(
        caught.value
    )
    assert caught.value.hint == "--deadline 2026-05-01T13:01Z, or a shorter --time"
    with pytest.raises(BurstRefusedError, match="13:10:00Z"):
        deadline_note(NOW + s(4199), NOW, 3600, [("far", 900), ("cloud", 600)], here=False)


def test_what_only_an_immediate_start_meets_is_said():
    note = deadline_note(NOW + s(3700), NOW, 3600, [("cloud", 600)], here=True)
    assert "only if it starts here at once" in note


def test_the_last_moment_of_a_move_is_said():
    note = deadline_note(NOW + s(7200), NOW, 3600, [("cloud", 600)], here=True)
    assert note == "its deadline can be kept by a move until 2026-05-01 12:50:00Z"


def test_without_a_limit_there_is_no_promise():
    assert "no time limit" in deadline_note(NOW + s(1), NOW, None, [], here=True)
    assert deadline_note(NOW + s(1), NOW, 5, [], here=False) is None


@given(st.integers(1, 10**6), st.integers(1, 10**6), st.integers(0, 10**4), st.booleans())
def test_it_is_refused_exactly_when_no_start_is_early_enough(left, limit, delay, here):
    feasible = limit + (0 if here else delay) <= left
    try:
        deadline_note(NOW + s(left), NOW, limit, [("cloud", delay)], here=here)
    except BurstRefusedError:
        assert not feasible
    else:
        assert feasible


def test_what_the_time_between_decisions_may_lose_is_not_promised():
    cloud = {"cloud_s": [("cloud", 600)], "here": True, "margin_s": 600}
    sure = deadline_note(NOW + s(4800), NOW, 3600, **cloud)
    assert sure == "its deadline can be kept by a move until 2026-05-01 12:00:00Z"
    close = deadline_note(NOW + s(4799), NOW, 3600, **cloud)
    assert "begins by 2026-05-01 12:09:59Z" in close
    assert "not sure" in close
    note = deadline_note(NOW + s(9999), NOW, 3600, [], here=True, why_not="no money")
    assert note.endswith("runs shorter than its limit: no money")
