"""Moves that are put off: a target without nodes, and hours at which nothing moves. No deadline is."""

import datetime as dt
from decimal import Decimal

import msgspec
import pytest
from deciding import decided
from hypothesis import given
from hypothesis import strategies as st

from hpcscale.burst.capacity import short
from hpcscale.burst.moves import Move, Step
from hpcscale.burst.plan import Action, Candidate, Option, Rule
from hpcscale.burst.policy import Policy, PolicyKind, Window
from hpcscale.burst.policy_file import policy_from
from hpcscale.errors import InvalidFileError
from hpcscale.slurm.types import JobState
from hpcscale.spec import BurstMode

NOW = dt.datetime(2026, 5, 1, 12, tzinfo=dt.UTC)
CLOUD = Option(site="cloud", boot_s=100, cost_usd=Decimal(5))
ALWAYS = Policy(from_site="o", to=("cloud", "other"), kind=PolicyKind.ALWAYS)
SHORT = {"resting_until": NOW + dt.timedelta(minutes=30), "resting_why": "nodes did not boot"}


def decision(policy, *options, **kw):
    job = Candidate(
        **{"run_id": "r", "ref": "o:1", "name": "j", "mode": BurstMode.AUTO, "options": options,
           "state": JobState.PENDING, "waiting_since": NOW, "time_limit_s": 3600, **kw},
    )  # fmt: skip
    return decided([job], policy, NOW).decisions[0]


def move(number, step, message="nodes of cloud did not boot: BOOT_FAIL", **kw):
    return Move(
        move_id=number, run_id=f"r{number}", from_site="o", to_site="cloud", origin="hs-1",
        step=step, message=message, retry_at=NOW, retry_after_s=600, **kw,
    )  # fmt: skip


def test_the_rest_doubles_and_a_gang_that_comes_up_ends_it():
    failed = [move(n, Step.FAILED) for n in range(1, 8)]
    rests = [(short([failed[:n]])[0].until - NOW).total_seconds() for n in range(1, 8)]
    assert rests == [0, 600, 1800, 4200, 4200, 4200, 4200]  # past the last job's own retry_at
    assert short([failed, [move(9, Step.DONE, "ended COMPLETED")]]) == ()
    assert short([[move(1, Step.FAILED, "cloud refused it: bad partition")]]) == ()
    assert short([[move(1, Step.CANCELLED)]]) == ()


def test_a_target_without_nodes_comes_last_and_waits_unless_a_deadline_is_due():
    resting = msgspec.structs.replace(CLOUD, **SHORT)
    other = msgspec.structs.replace(CLOUD, site="other")
    assert decision(ALWAYS, resting, other).to == "other"
    waits = decision(ALWAYS, resting)
    assert (waits.action, waits.when) == (Action.STAY, SHORT["resting_until"])
    assert "cloud had no nodes (nodes did not boot) and is left alone 30m more" in waits.reason
    assert decision(ALWAYS, resting, mode=BurstMode.ONLY).action is Action.MOVE
    soon = NOW + dt.timedelta(seconds=3700)
    assert decision(ALWAYS, resting, deadline=soon).rule is Rule.DEADLINE
    # looked at again at the last safe moment, not after it
    later = decision(ALWAYS, resting, deadline=soon + dt.timedelta(minutes=10))
    assert later.when == NOW + dt.timedelta(minutes=10)


def test_outside_its_hours_a_policy_moves_deadlines_alone():
    night = msgspec.structs.replace(ALWAYS, only_between=Window(first=20 * 60, last=6 * 60))
    stays = decision(night, CLOUD)
    assert (stays.action, stays.when) == (Action.STAY, NOW.replace(hour=20))
    assert stays.reason.endswith("but the policy moves only between 20:00 and 06:00 UTC")
    assert decision(night, CLOUD, deadline=NOW + dt.timedelta(seconds=3700)).rule is Rule.DEADLINE
    day = msgspec.structs.replace(ALWAYS, only_between=Window(first=6 * 60, last=20 * 60))
    assert decision(day, CLOUD).action is Action.MOVE


@given(first=st.integers(0, 1439), last=st.integers(0, 1439), minute=st.integers(0, 1439))
def test_a_window_is_open_when_it_says_it_opens(first, last, minute):
    window = Window(first=first, last=last)
    now = NOW.replace(hour=minute // 60, minute=minute % 60, second=30)
    opens = window.opens(now)
    assert opens >= now or opens == now.replace(second=0)
    if first != last:
        assert window.opens(opens) == opens
        assert opens - now < dt.timedelta(days=1)


@pytest.mark.parametrize("text", ["20-6", "24:00-06:00", "20:00-20:00", "20:00"])
def test_a_wrong_window_is_refused(text):
    with pytest.raises(InvalidFileError, match="no window"):
        policy_from({"from": "a", "to": ["b"], "only_between": text}, "P.toml")
