"""Shadow runs: the same verdicts as live, nothing done, and what they add up to."""

import datetime as dt
import json
from decimal import Decimal

import msgspec
import pytest
from click.testing import CliRunner
from fake_sites import Sites

from hpcscale.burst import kept
from hpcscale.burst.moves import Moves
from hpcscale.burst.plan import Action
from hpcscale.burst.policy import Budget, BudgetOf, PolicyKind
from hpcscale.burst.run import look as look_at
from hpcscale.burst.run import make_plan
from hpcscale.burst.shadow import remember, shadow, would_have
from hpcscale.cli import main
from hpcscale.ledger import Role
from hpcscale.slurm.types import JobState, JobStatus
from hpcscale.spec import BurstMode
from hpcscale.units import JobId


@pytest.fixture
def sites(tmp_path):
    sites = Sites(tmp_path)
    sites.fill()
    yield sites
    sites.ledger.close()


class Opened:
    """The test's ledger, which a command does not close."""

    def __init__(self, ledger):
        self.ledger = ledger

    def __enter__(self):
        return self.ledger

    def __exit__(self, *_):
        pass


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


def test_a_standing_verdict_is_kept_once(sites, tmp_path, monkeypatch):
    sites.submit()
    monkeypatch.setattr("hpcscale.burst.run.Connections", lambda: sites)
    monkeypatch.setattr("hpcscale.ledger.Ledger.open", lambda: Opened(sites.ledger))
    policy = tmp_path / "P.toml"
    policy.write_text('from = "lab-onprem"\nto = ["lab-cloud"]\n')
    said = []
    for seconds in (0, 10, 60):
        sites.both(seconds)
        done = CliRunner().invoke(
            main, ["burst", "run", "--shadow", "--policy", str(policy), "--json"]
        )
        assert done.exit_code == 0, done.output
        data = json.loads(done.stdout)["data"]
        assert len(kept.names()) == 1, "a move that stands is no news"
        assert data["would_have"]["moves"] == 1
        said.append([data["new_verdicts"], [d["action"] for d in data["plan"]["decisions"]]])
    # as live: while its nodes would boot a move is under way, then the job would be gone
    assert said == [[1, ["move"]], [0, ["stay"]], [0, []]]


def test_a_standing_move_is_kept_once_where_nothing_is_pretended(sites):
    """Of two looks at the same moment: ``acts`` alone makes the difference."""
    sites.submit()
    first = look_at(sites.ledger, sites.policy, sites)
    assert kept.keep(first, acts=False)
    sites.both(60)
    again = look_at(sites.ledger, sites.policy, sites)
    assert again.plan.moves
    assert kept.keep(again, acts=False) is None
    assert kept.keep(again) in kept.names()


def moved(sites):
    return [d.run_id for d in shadow(sites.ledger, sites.policy, sites).plan.moves]


def test_what_a_shadow_would_have_spent_is_taken_out_of_the_budget(sites):
    price = Decimal("64.75")
    budget = Budget(of=BudgetOf.USER, usd=2 * price - 1)
    sites.policy = msgspec.structs.replace(sites.policy, budgets=(budget,))
    first = sites.submit()
    assert moved(sites) == [first.run_id]
    sites.both(60)
    second = sites.submit()
    done = shadow(sites.ledger, sites.policy, sites)
    (decision,) = done.plan.decisions
    assert (decision.run_id, decision.action) == (second.run_id, Action.STAY)
    assert "$0.00 is spent and $66.13 reserved" in decision.reason
    assert (done.total.moves, done.total.usd) == (1, price)
    sites.both(2 * 3600)  # once it would have ended, what it costs takes the reservation's place
    (decision,) = shadow(sites.ledger, sites.policy, sites).plan.decisions
    assert f"${price} is spent and $0.00 reserved" in decision.reason
    assert all(kept.replay(name)[1] == [] for name in kept.names())


def test_a_shadow_keeps_to_the_number_of_moves_of_a_run(sites):
    always = {"max_moves_per_run": 1, "kind": PolicyKind.ALWAYS}
    sites.policy = msgspec.structs.replace(sites.policy, **always)
    jobs = {sites.submit(mode=BurstMode.AUTO).run_id for _ in range(2)}
    found = [moved(sites)]
    for seconds in (10, 60, 10):
        sites.both(seconds)
        found.append(moved(sites))
    assert [len(each) for each in found] == [1, 0, 1, 0]
    assert {run for each in found for run in each} == jobs


def test_a_shadow_itself_sees_that_a_deadline_was_met(sites, tmp_path):
    sites = Sites(tmp_path / "more")
    sites.onprem.run(
        ["sbatch", "--parsable", "-N4", "--exclusive", "--time=60"], stdin="#!/bin/sh\nsleep 30\n"
    )
    sites.onprem.advance(1)
    sites.policy = msgspec.structs.replace(sites.policy, kind=PolicyKind.NEVER)
    deadline = sites.onprem.clock.now() + dt.timedelta(hours=9)
    job = sites.submit(deadline=deadline)
    assert shadow(sites.ledger, sites.policy, sites).total.deadlines == 0
    sites.both(120)
    assert not sites.ledger.attempt(job.submission_id).ended, "nobody has asked meanwhile"
    total = shadow(sites.ledger, sites.policy, sites).total
    assert (total.deadlines, total.met, total.met_without) == (1, 1, 1)
    sites.ledger.close()


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


def ends(sites, attempt, state, at):
    status = JobStatus(job_id=attempt.job_id, state=state, raw_state=state.value, end_time=at)
    sites.ledger.record_status(attempt, status)


def with_deadline(sites, state, *, late=False):
    """A run that waited here, and ended so an hour before its deadline, or an hour after it."""
    deadline = dt.datetime.now(dt.UTC) + dt.timedelta(hours=9)
    job = sites.submit(deadline=deadline)
    look(sites)
    at = deadline + dt.timedelta(hours=1 if late else -1)
    ends(sites, sites.ledger.attempt(job.submission_id), state, at)
    return job


def sums(sites):
    total = would_have(sites.ledger)
    return total.deadlines, total.met, total.met_without, total.cancelled


def test_a_run_cancelled_before_its_deadline_has_neither_met_nor_missed_it(sites):
    with_deadline(sites, JobState.COMPLETED)
    assert sums(sites) == (1, 1, 1, 0)
    assert "cancelled" not in would_have(sites.ledger).sentence
    with_deadline(sites, JobState.CANCELLED)
    assert sums(sites) == (1, 1, 1, 1)
    with_deadline(sites, JobState.CANCELLED)
    assert sums(sites) == (1, 1, 1, 2)
    assert "would have met 1 of 1 deadlines, and 1 were met without" in (
        said := would_have(sites.ledger).sentence
    )
    assert "(2 more, cancelled before theirs, count as neither)" in said


def test_a_run_cancelled_after_its_deadline_had_missed_it(sites):
    job = with_deadline(sites, JobState.CANCELLED, late=True)
    # its move would have ended in time, by the plan
    assert sums(sites) == (1, 1, 0, 0), sites.ledger.attempts(job.run_id)


def second(sites, job, **kw):
    """One more attempt of a run, which nothing is known of yet."""
    return sites.ledger.new_attempt(
        sites.ledger.run(job.run_id),
        submission_id="hs-" + "0" * 16,
        script="",
        script_sha256="",
        run_dir="",
        comment="",
        **kw,
    )


def test_what_was_cancelled_here_because_it_moved_has_not_been_cancelled(sites):
    job = with_deadline(sites, JobState.CANCELLED)
    other = second(sites, job, site="lab-cloud", role=Role.BURST)
    assert sums(sites)[3] == 0  # it goes on there
    other = sites.ledger.set_submitted(other, JobId(7))
    in_time = sites.ledger.run(job.run_id).deadline - dt.timedelta(hours=2)
    ends(sites, other, JobState.COMPLETED, in_time)
    assert sums(sites) == (1, 1, 1, 0)


def test_a_run_that_is_tried_again_has_not_ended_with_its_first_try(sites):
    job = with_deadline(sites, JobState.NODE_FAIL)
    assert sums(sites) == (1, 1, 1, 0)
    second(sites, job, site="lab-onprem")
    assert sums(sites) == (1, 1, 0, 0)  # by the plan alone
