"""Claim and gate in the handover, on two faked sites: crashes, lost replies, a second ledger."""

import shutil

import pytest
from fake_sites import FENCE_FIRST, NODES, POLICY, Sites

from hpcscale.burst import claims
from hpcscale.burst.asked import spec_for
from hpcscale.burst.claims import CLOSED, Claim, Word, decide, decision, revoke, take
from hpcscale.burst.handover import Handover
from hpcscale.burst.moves import Moves, Step
from hpcscale.burst.reap import burst_sites, reap
from hpcscale.burst.run import tick
from hpcscale.errors import UnreachableError
from hpcscale.ledger import Ledger
from hpcscale.render import render
from hpcscale.slurm.cli import CliClient
from hpcscale.slurm.types import JobState
from hpcscale.submit import submit


@pytest.fixture
def sites(tmp_path, monkeypatch):
    monkeypatch.setattr("hpcscale.burst.acts.BEGIN_S", 0.0)  # a fake's script begins when told
    sites = Sites(tmp_path)
    sites.fill()
    yield sites
    sites.ledger.close()


class Killed(BaseException):
    """In place of SIGKILL: nothing of ours catches it."""


def at_the_gate(sites):
    """A job whose gang is up; the next tick claims and opens."""
    job = sites.submit()
    sites.tick()
    sites.both(40)
    sites.report(sites.target(job).submission_id, "gated", time=100.0)
    return job


def gate(sites, job):
    return decision(sites.cloud, sites.target(job))


def starts_on_prem(sites, job):
    """Whether the on-prem job's script would begin its command: it takes its own claim."""
    attempt = sites.ledger.attempt(job.submission_id)
    return take(sites.onprem, attempt, job.submission_id).owner == job.submission_id


def kill_after(monkeypatch, module, name, *, before=False):
    """Die once, just before or after an act."""
    original = getattr(module, name)
    armed = [True]

    def wrapped(*args, **kw):
        if before and armed:
            armed.clear()
            raise Killed
        result = original(*args, **kw)
        if armed:
            armed.clear()
            raise Killed
        return result

    monkeypatch.setattr(module, name, wrapped)


def kill_once(monkeypatch, name):
    """Die once, just before a step of the handover."""
    kill_after(monkeypatch, Handover, name, before=True)


def test_claim_then_open_then_the_clean_up(sites):
    job = at_the_gate(sites)
    assert gate(sites, job) is None
    sites.tick()
    assert sites.move(job).step is Step.CANCELLING
    assert gate(sites, job) is Word.OPENED
    assert not starts_on_prem(sites, job)
    client = sites.connections["lab-onprem"].client
    assert client.show(job.ref.job_id).state is JobState.PENDING, "its command has not begun"
    sites.report(sites.target(job).submission_id, time=104.0)
    sites.tick()
    assert sites.move(job).step is Step.MOVED
    assert sites.move(job).gate_idle_s == 4
    (idle,) = [e for e in sites.ledger.events(job.run_id) if e.kind == "attempt.gate_idle"]
    assert idle.data["seconds"] == 4
    assert float(idle.data["usd"]) > 0
    assert client.show(job.ref.job_id).state is JobState.CANCELLED


def test_the_cloud_limit_leaves_the_job_its_own_time(sites):
    job = at_the_gate(sites)
    staging_s = sites.site("lab-cloud").burst.staging_s
    (cloud_job,) = sites.cloud.jobs.values()
    assert cloud_job.limit_s == pytest.approx(3600 + POLICY.lease_s + staging_s, abs=60)
    assert POLICY.lease_s == 2 * POLICY.cron_interval_s
    assert f"hpcscale_left=$(({POLICY.lease_s} * 4))\n" in sites.target(job).script
    assert "hpcscale_gate" not in sites.ledger.attempt(job.submission_id).script


@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("act", ["take", "decide"])
def test_killed_around_claim_and_opening_the_next_run_goes_on(sites, monkeypatch, act, before):
    job = at_the_gate(sites)
    with monkeypatch.context() as patch:
        kill_after(patch, __import__("hpcscale.burst.handover", fromlist=["x"]), act, before=before)
        with pytest.raises(Killed):
            sites.tick()
    sites.tick()
    assert sites.move(job).step is Step.CANCELLING
    assert gate(sites, job) is Word.OPENED
    assert not starts_on_prem(sites, job)


def test_a_lost_reply_of_the_opening_is_resolved_by_reading(sites, monkeypatch):
    job = at_the_gate(sites)
    original = claims.link_once

    def cut(transport, path, data):
        made = original(transport, path, data)
        if "decision." in path:
            raise UnreachableError("cut", where="lab-cloud")
        return made

    with monkeypatch.context() as patch:
        patch.setattr(claims, "link_once", cut)
        assert sites.tick().problems
    assert sites.move(job).step is Step.OPENING
    sites.tick()
    assert sites.move(job).step is Step.CANCELLING


@pytest.mark.parametrize("step", [Step.SUBMITTED, Step.OPENING])
def test_a_lease_that_ran_out_gives_the_job_back(sites, step):
    job = at_the_gate(sites)
    target = sites.target(job)
    if step is Step.OPENING:  # killed between claim and opening, and long not started again
        take(sites.onprem, sites.ledger.attempt(job.submission_id), target.submission_id)
        Moves(sites.ledger).save(sites.move(job), step=step)
    decide(sites.cloud, target, Word.EXPIRED)
    for fake in sites.cloud.jobs.values():
        fake.state, fake.ends = "FAILED", fake.started
    sites.tick()
    assert sites.move(job).step is Step.FAILED, sites.move(job)
    assert sites.excluded(job) == ""
    assert starts_on_prem(sites, job)


def test_nobody_alive_and_the_fence_forgotten_the_on_prem_job_runs(sites):
    """No run comes back: the lease ends the cloud job, no claim was taken."""
    job = at_the_gate(sites)
    assert decide(sites.cloud, sites.target(job), Word.EXPIRED) is Word.EXPIRED
    assert starts_on_prem(sites, job)


def test_a_job_that_began_on_prem_keeps_its_claim(sites):
    job = at_the_gate(sites)
    assert starts_on_prem(sites, job)  # a controller forgot the fence; Slurm still says PENDING
    target = sites.target(job)
    sites.tick()
    move = Moves(sites.ledger).of_run(job.run_id)[0]
    assert (move.step, sites.excluded(job)) == (Step.FAILED, "")
    assert "Slurm has forgotten" in move.message
    assert decision(sites.cloud, target) is Word.CLOSED
    assert sites.ledger.attempt(target.submission_id).state is JobState.CANCELLED


def test_a_gang_that_dies_between_gate_and_command_gives_the_job_back(sites):
    job = at_the_gate(sites)
    sites.tick()
    assert gate(sites, job) is Word.OPENED
    for fake in sites.cloud.jobs.values():
        fake.state, fake.ends = "NODE_FAIL", fake.started
    sites.tick()
    assert sites.move(job).step is Step.FAILED
    assert sites.excluded(job) == ""
    target = sites.target(job)
    assert take(sites.cloud, target, target.submission_id) == Claim(CLOSED), "it cannot come back"
    assert starts_on_prem(sites, job)


def test_a_command_that_has_its_claim_and_told_no_start_is_not_taken_back_for_ever(sites):
    """One run would take it back, be too late, and begin anew, as long as the command runs."""
    sites.policy = FENCE_FIRST
    job = sites.submit()
    sites.tick()
    assert gate(sites, job) is Word.OPENED
    sites.both(40)
    target = sites.target(job)
    take(sites.cloud, target, target.submission_id)  # its script's own; then its disk was full
    for fake in sites.cloud.jobs.values():
        fake.restarts = 1  # as one whose nodes did not boot
    sites.tick()
    assert (sites.move(job).step, sites.move(job).begun) == (Step.MOVED, True)
    assert not starts_on_prem(sites, job)
    assert sites.connections["lab-onprem"].client.show(job.ref.job_id).state is JobState.CANCELLED


@pytest.mark.parametrize("step", [Step.SUBMITTED, Step.CLAIMING, Step.OPENING])
def test_undo_until_the_gate_is_open(sites, step):
    job = at_the_gate(sites)
    target = sites.target(job)
    if step is Step.OPENING:
        take(sites.onprem, sites.ledger.attempt(job.submission_id), target.submission_id)
    move = Moves(sites.ledger).save(sites.move(job), step=step)
    move = Handover(sites.ledger, sites, sites.ledger.path.parent).undo(move)
    assert move.step is Step.FAILED
    assert gate(sites, job) is Word.CLOSED
    assert sites.excluded(job) == ""
    assert starts_on_prem(sites, job)


def test_undo_that_comes_too_late_for_a_lost_reply(sites):
    job = at_the_gate(sites)
    target = sites.target(job)
    take(sites.onprem, sites.ledger.attempt(job.submission_id), target.submission_id)
    move = Moves(sites.ledger).save(sites.move(job), step=Step.OPENING)
    decide(sites.cloud, target, Word.OPENED)  # the reply was lost
    take(sites.cloud, target, target.submission_id)  # its script's own claim
    sites.report(target.submission_id)
    move = Handover(sites.ledger, sites, sites.ledger.path.parent).undo(move)
    assert move.step is Step.MOVED
    assert not starts_on_prem(sites, job)


def test_two_ledgers_share_the_claims_alone(sites, tmp_path):
    job = sites.submit()
    moves = Moves(sites.ledger)
    sites.tick()
    target = sites.move(job)
    assert target.step is Step.SUBMITTED
    # the other login node moves the same job
    copy = tmp_path / "other.sqlite3"
    shutil.copy(sites.ledger.path, copy)
    with Ledger.open(copy) as other:
        theirs = Moves(other).save(Moves(other).get(target.move_id), step=Step.FAILED)
        theirs = Moves(other).begin(
            type(theirs)(
                run_id=job.run_id, from_site="lab-onprem", to_site="lab-cloud",
                origin=job.submission_id,
            )
        )  # fmt: skip
        tick(other, POLICY, sites)
        theirs = Moves(other).get(theirs.move_id)
        assert theirs.step is Step.SUBMITTED
        assert theirs.target != target.target
        sites.both(40)
        for ledger, move in ((sites.ledger, target), (other, theirs)):
            attempt = ledger.attempt(move.target)
            sites.ledger, kept = ledger, sites.ledger
            sites.report(attempt.submission_id, "gated")
            sites.ledger = kept
        tick(other, POLICY, sites)  # they are first
        assert Moves(other).get(theirs.move_id).step is Step.CANCELLING
        sites.tick()
        mine_now = moves.get(target.move_id)
        assert (mine_now.step, mine_now.fence) == (Step.FAILED, None)
        assert "all nodes are excluded already" in mine_now.message
        assert sites.excluded(job) == NODES, "the fence is theirs"
        mine = sites.ledger.attempt(target.target)
        assert decision(sites.cloud, other.attempt(theirs.target)) is Word.OPENED
        assert decision(sites.cloud, mine) is Word.CLOSED
        assert mine.state is JobState.CANCELLED


def test_the_claim_decides_between_two_that_both_fenced(sites):
    """Both had looked before either fence stood."""
    job = at_the_gate(sites)
    take(sites.onprem, sites.ledger.attempt(job.submission_id), "hs-" + "0" * 16)
    sites.tick()
    move, again = Moves(sites.ledger).of_run(job.run_id)
    assert move.step is Step.WITHDRAWN
    assert "another handover has its claim" in move.message
    assert sites.excluded(job) == NODES, "the fence is left to that"
    target = sites.ledger.attempt(move.target)
    assert decision(sites.cloud, target) is Word.CLOSED
    assert target.state is JobState.CANCELLED
    assert (again.step, again.target) == (Step.FAILED, None)


def test_a_withdrawn_move_keeps_no_claim_that_a_run_beside_it_takes_late(sites):
    """Simulation, seed 50005255: the job at home then waited for a claim that nobody gave back."""
    job = at_the_gate(sites)
    attempt, other = sites.ledger.attempt(job.submission_id), "hs-" + "0" * 16
    take(sites.onprem, attempt, other)
    sites.tick()
    move, _ = Moves(sites.ledger).of_run(job.run_id)
    assert move.step is Step.WITHDRAWN
    revoke(sites.onprem, attempt, other)  # the other handover is taken back in its turn
    take(sites.onprem, attempt, move.target)  # by a run that had read the log before
    assert starts_on_prem(sites, job)


def test_a_fence_of_another_ledger_is_not_taken_for_the_users_own(sites):
    job = sites.submit()
    sites.connections["lab-onprem"].client.update(job.ref.job_id, {"ExcNodeList": NODES})
    sites.tick()
    move = sites.move(job)
    assert move.step is Step.FAILED
    assert "all nodes are excluded already" in move.message
    assert sites.excluded(job) == NODES
    assert not sites.cloud.jobs


def test_a_lifted_fence_that_a_controller_brings_back_is_known(sites, monkeypatch):
    job = at_the_gate(sites)
    kill_once(monkeypatch, "_claiming")
    with pytest.raises(Killed):
        sites.tick()
    assert sites.excluded(job) == NODES
    Handover(sites.ledger, sites, sites.ledger.path.parent).undo(sites.move(job))
    assert sites.excluded(job) == ""
    sites.user_excludes(job, NODES)
    sites.onprem.clock.advance(2000)  # past the rest
    sites.tick()
    assert sites.move(job).step is Step.SUBMITTED
    sites.both(40)
    sites.begin(job)
    assert sites.move(job).step is Step.MOVED
    assert sites.move(job).old_exc == ""


def test_reap_ends_what_no_decision_owns(sites):
    job = at_the_gate(sites)
    jobs, problems = reap(sites.ledger, sites, burst_sites(sites.ledger))
    assert (jobs, problems) == ([], []), "a move under way owns it"
    Moves(sites.ledger).save(sites.move(job), step=Step.FAILED)  # and its cancel was forgotten
    ((one,), problems) = reap(sites.ledger, sites, burst_sites(sites.ledger))
    assert (one.ended, one.decision) == (True, "closed")
    assert problems == []
    assert sites.connections["lab-cloud"].client.show(sites.target(job).job_id).state.terminal
    assert reap(sites.ledger, sites, ["lab-cloud"]) == ([], [])


def test_reap_tells_of_a_job_that_read_its_word_and_went(sites, monkeypatch):
    job = at_the_gate(sites)
    Moves(sites.ledger).save(sites.move(job), step=Step.FAILED)
    cloud = sites.connections["lab-cloud"].client

    def decided_and_read(transport, attempt, word):
        said = decide(transport, attempt, word)
        cloud.cancel(attempt.job_id)  # the gate's loop is quicker than the next question
        return said

    monkeypatch.setattr("hpcscale.burst.reap.decide", decided_and_read)
    ((one,), problems) = reap(sites.ledger, sites, ["lab-cloud"])
    assert (one.ended, one.decision, problems) == (True, "closed", [])


def test_reap_leaves_what_was_opened_and_what_it_does_not_know(sites, tmp_path):
    job = at_the_gate(sites)
    sites.cloud.run(["sbatch", "--parsable"], stdin="#!/bin/sh\nsleep 9\n")
    with Ledger.open(tmp_path / "empty.sqlite3") as stranger:
        assert reap(stranger, sites, ["lab-cloud"]) == ([], [])
        sites.tick()
        Moves(sites.ledger).save(sites.move(job), step=Step.DONE)
        ((one,), _) = reap(sites.ledger, sites, ["lab-cloud"])
        assert (one.ended, one.decision) == (False, "opened")
        sites.down.add("lab-cloud")
        assert reap(stranger, sites, ["lab-cloud"])[1] == ["lab-cloud: no route"]
        sites.down.clear()
    assert not sites.connections["lab-cloud"].client.show(sites.target(job).job_id).state.terminal


def test_a_refused_submission_of_another_ledger_leaves_the_run_its_decision(sites, tmp_path):
    job = at_the_gate(sites)
    target = sites.target(job)
    decide(sites.cloud, target, Word.OPENED)
    copy = tmp_path / "other.sqlite3"
    shutil.copy(sites.ledger.path, copy)
    with Ledger.open(copy) as other:
        move = Moves(other).of_run(job.run_id)[-1]
        Moves(other).save(move, step=Step.FAILED)
        connection = sites.connections["lab-cloud"]
        run, origin = other.run(job.run_id), other.attempt(job.submission_id)
        rendered = render(spec_for(run.spec, 3600, connection.site), connection.site)
        sites.cloud.stop()
        with pytest.raises(UnreachableError):
            submit(rendered, connection.site, connection, other, run=run)
        sites.cloud.resume()
        assert origin.number == 1
    assert decision(sites.cloud, target) is Word.OPENED


def test_where_owners_may_not_fence_the_message_holds_the_operators_line(sites, monkeypatch):
    job = at_the_gate(sites)
    update = CliClient.update
    monkeypatch.setattr(
        CliClient, "update", lambda s, j, f: "ExcNodeList" not in f and update(s, j, f)
    )
    sites.tick()
    move = sites.move(job)
    assert move.step is Step.FAILED
    assert f"scontrol update JobId={job.ref.job_id} ExcNodeList={NODES}" in move.message
    assert starts_on_prem(sites, job)
    assert sites.ledger.attempt(sites.target(job).submission_id).state is JobState.CANCELLED


def test_where_owners_may_not_lift_it_either(sites, monkeypatch):
    job = at_the_gate(sites)
    sites.tick()
    assert sites.excluded(job) == NODES
    said = []
    handover = Handover(sites.ledger, sites, sites.ledger.path.parent, said.append)
    monkeypatch.setattr(CliClient, "update", lambda *_: False)
    handover.undo(sites.move(job))
    assert any(f"scontrol update JobId={job.ref.job_id} ExcNodeList=" in text for text in said)
    assert sites.move(job).step is Step.UNFENCING
