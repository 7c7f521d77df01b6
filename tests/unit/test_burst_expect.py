"""The forecast that decisions get: its levels, what it lacks, and how often it is asked."""

from types import SimpleNamespace

import pytest
from queue_views import HOUR, NOW, pending, running, snapshot

from hpcscale.burst import expect as module
from hpcscale.burst.expect import Fresh, expect
from hpcscale.burst.plan import Level
from hpcscale.burst.policy import Policy, PolicyKind
from hpcscale.errors import UnreachableError
from hpcscale.outlook import snapshot as seen_site
from hpcscale.outlook import starts

POLICY = Policy(from_site="onprem", to=("cloud",), kind=PolicyKind.VALUE)
BUSY = running(1, "gpu[1-4]", num_nodes=4, cpus=32)


@pytest.fixture
def site(monkeypatch):
    """A connection to a site that shows what the test says, and counts who asks."""
    connection = SimpleNamespace(
        site=SimpleNamespace(name="onprem"),
        client=SimpleNamespace(question=None),
        shows=None,
        asked=0,
    )

    def take(_):
        connection.asked += 1
        if isinstance(connection.shows, Exception):
            raise connection.shows
        return connection.shows

    monkeypatch.setattr(starts, "take", take)
    monkeypatch.setattr(starts, "asker_of", lambda _: None)
    monkeypatch.setattr(starts, "history", lambda *_: (None, ()))
    connection.shows = snapshot(
        BUSY, pending(2, num_nodes=4, cpus=32, limit_s=2 * HOUR), pending(3, num_nodes=4, cpus=32)
    )
    return connection


def near(moment, hours):
    """Within the plan's steps of a minute, one for each job before it."""
    return abs(moment.timestamp() - NOW - hours * HOUR) <= 180


def test_starts_of_the_jobs_asked_for_and_again_without_those_that_left(site):
    found = expect(site, POLICY, ["2", "3"])
    assert (found.forecast.level, found.forecast.pending) == (Level.FULL, 2)
    assert set(found.forecast.starts) == {"2", "3"}
    assert near(found.forecast.starts["2"].p50, 1)
    assert near(found.forecast.starts["3"].p50, 3)
    assert near(found.forecast.starts["3"].p90, 3)
    assert near(found.replan(frozenset({"2"}))["3"].p50, 1)
    assert site.asked == 1


def test_hidden_jobs_give_no_start_and_say_why(site):
    site.shows = snapshot(pending(3), queue_level=seen_site.Level.OWN)
    found = expect(site, POLICY, ["3"])
    assert found.forecast.level is Level.OWN
    assert found.forecast.starts["3"].p50 is None
    assert "hides other people's jobs" in found.forecast.why
    assert found.replan(frozenset({"9"})) == found.forecast.starts


def test_no_slurmdbd_is_said_and_no_answer_is_no_error(site):
    site.shows = snapshot(BUSY, pending(3), history_level=seen_site.Level.ABSENT)
    assert "by time limits alone" in expect(site, POLICY, ["3"]).forecast.why
    site.shows = UnreachableError("no route")
    blind = expect(site, POLICY, ["3"]).forecast
    assert (blind.level, blind.why, blind.starts) == (Level.ABSENT, "no route", {})


def test_policies_that_do_not_look_ahead_ask_nothing(site):
    for kind in (PolicyKind.NEVER, PolicyKind.ALWAYS):
        expect(site, Policy(from_site="onprem", to=("cloud",), kind=kind), ["3"])
    expect(site, POLICY, [])
    assert site.asked == 0


def test_a_run_that_stays_asks_once_a_minute_and_for_new_jobs(site, monkeypatch):
    foresee = Fresh()
    now = 100.0
    monkeypatch.setattr(module.time, "monotonic", lambda: now)
    foresee(site, POLICY, ["2", "3"])
    foresee(site, POLICY, ["3"])
    assert site.asked == 1
    foresee(site, POLICY, ["3", "4"])
    assert site.asked == 2
    now = 161.0
    foresee(site, POLICY, ["3", "4"])
    assert site.asked == 3
