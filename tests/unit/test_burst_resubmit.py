"""Jobs that the on-prem controller forgot right after their submission, on two faked sites."""

import datetime as dt
import shutil

import msgspec
import pytest
from fake_sites import POLICY, Sites

from hpcscale.burst import acts, follow
from hpcscale.burst.claims import take
from hpcscale.burst.moves import Step
from hpcscale.burst.resubmit import NOTED, REFUSED, resubmit
from hpcscale.errors import RefusedError, SubmitUnknownError
from hpcscale.ledger import Ledger, Role, utc_now
from hpcscale.slurm.cli import CliClient
from hpcscale.slurm.types import JobState


@pytest.fixture
def sites(tmp_path, monkeypatch):
    monkeypatch.setattr("hpcscale.burst.acts.BEGIN_S", 0.0)
    sites = Sites(tmp_path)
    sites.fill()
    sites.policy = msgspec.structs.replace(POLICY, to=())
    yield sites
    sites.ledger.close()


def forgotten(sites, **kw):
    """A job that its controller has forgotten."""
    job = sites.submit(**kw)
    forget(sites, job)
    return job


def forget(sites, job):
    base = job.ref.job_id.base
    for number, fake in list(sites.onprem.jobs.items()):
        if fake.base == base:
            del sites.onprem.jobs[number]


def attempts(sites, job):
    return sites.ledger.attempts(job.run_id)


def again(sites, ledger=None):
    return resubmit(ledger or sites.ledger, sites, ["lab-onprem"])


def owner(sites, attempt):
    """Who has its claim, after it tried to take it itself."""
    return take(sites.onprem, attempt, attempt.submission_id).owner


@pytest.mark.parametrize("array", [None, "0-2"])
def test_it_is_submitted_again_and_the_forgotten_one_can_begin_nothing(sites, array):
    job = forgotten(sites, array=array)
    sites.tick()
    old, new = attempts(sites, job)
    assert (new.role, new.site, new.number) == (Role.ONPREM, "lab-onprem", 2)
    assert sites.connections["lab-onprem"].client.show(new.job_id).state is JobState.PENDING
    assert old.ended
    assert "forgot it before it began" in old.reason
    assert owner(sites, old) == new.submission_id
    assert owner(sites, new) == new.submission_id
    for _ in range(3):
        sites.tick()
    assert len(attempts(sites, job)) == 2


def test_what_slurm_has_is_left_alone(sites):
    job = sites.submit()
    for _ in range(3):
        assert not again(sites)
    assert len(attempts(sites, job)) == 1
    assert not sites.ledger.events(job.run_id, NOTED)


def test_what_has_begun_is_not_submitted_again(sites):
    job = sites.submit()
    sites.report(job.submission_id)
    forget(sites, job)
    again(sites)
    assert len(attempts(sites, job)) == 1


def test_what_began_without_a_report_keeps_its_claim(sites):
    job = sites.submit()
    assert owner(sites, attempts(sites, job)[0]) == job.submission_id
    forget(sites, job)
    again(sites)
    assert len(attempts(sites, job)) == 1


def test_what_may_have_been_purged_is_not_submitted_again(sites, monkeypatch):
    job = forgotten(sites)
    monkeypatch.setattr("hpcscale.burst.resubmit.keeps_ended_s", lambda _: 0.0)
    again(sites)
    assert len(attempts(sites, job)) == 1


def test_what_its_user_cancelled_is_not_submitted_again(sites):
    job = forgotten(sites)
    sites.ledger.event(job.run_id, "attempt.cancel", {"by": "its user"})
    again(sites)
    assert len(attempts(sites, job)) == 1


def test_two_ledgers_submit_it_once(sites, tmp_path):
    job = sites.submit()
    sites.ledger.close()
    shutil.copy(tmp_path / "ledger.sqlite3", tmp_path / "other.sqlite3")
    forget(sites, job)
    sites.ledger = Ledger.open(tmp_path / "ledger.sqlite3")
    with Ledger.open(tmp_path / "other.sqlite3") as other:
        for _ in range(2):
            again(sites)
            again(sites, other)
        assert len(other.attempts(job.run_id)) == 1
    assert len(attempts(sites, job)) == 2


class Killed(BaseException):
    """In place of SIGKILL."""


@pytest.mark.parametrize("act", ["hpcscale.burst.resubmit.take", "hpcscale.submit.submit"])
@pytest.mark.parametrize("before", [True, False])
def test_killed_at_any_act_it_is_submitted_once(sites, monkeypatch, act, before):
    module, _, name = act.rpartition(".")
    original = getattr(__import__(module, fromlist=["x"]), name)

    def killed(*args, **kw):
        if not before:
            original(*args, **kw)
        raise Killed

    job = forgotten(sites)
    with monkeypatch.context() as patch:
        patch.setattr(act, killed)
        with pytest.raises(Killed):
            again(sites)
    for _ in range(2):
        assert not again(sites)
    old, new = attempts(sites, job)
    assert owner(sites, old) == new.submission_id
    assert old.ended
    live = [f for f in sites.onprem.jobs.values() if f.state == "PENDING"]
    assert len(live) == 1


def test_no_answer_of_sbatch_is_waited_for(sites, monkeypatch):
    job = forgotten(sites)
    real = CliClient.sbatch

    def silent(self, *args, **kw):
        real(self, *args, **kw)
        raise SubmitUnknownError("no answer")

    with monkeypatch.context() as patch:
        patch.setattr(CliClient, "sbatch", silent)
        assert again(sites)
    for _ in range(2):
        assert not again(sites)
    old, new = attempts(sites, job)
    assert old.ended
    assert new.job_id is not None


def test_a_refusal_is_told_and_gives_the_claim_back(sites, monkeypatch):
    def refused(self, *args, **kw):
        raise RefusedError("no such account")

    job = forgotten(sites)
    monkeypatch.setattr(CliClient, "sbatch", refused)
    (problem,) = again(sites)
    assert "no such account" in problem
    assert sites.ledger.events(job.run_id, REFUSED)
    assert owner(sites, attempts(sites, job)[0]) == job.submission_id
    assert not again(sites)
    assert len(attempts(sites, job)) == 2


def test_one_that_is_back_after_all_is_ended(sites):
    job = sites.submit()
    (fake,) = [(n, f) for n, f in sites.onprem.jobs.items() if f.base == job.ref.job_id.base]
    forget(sites, job)
    again(sites)
    number, back = fake
    sites.onprem.jobs[number] = back
    new = attempts(sites, job)[1]
    if new.job_id.base == number:  # the id was given out again
        pytest.fail("two jobs of one id")
    again(sites)
    assert back.state == "CANCELLED"


def test_a_move_that_fails_for_a_forgotten_job_submits_it_again(sites):
    sites.policy = POLICY
    job = sites.submit()
    sites.tick()
    forget(sites, job)
    sites.tick()
    assert len(attempts(sites, job)) == 2, "the move goes on"
    assert sites.move(job).step is Step.SUBMITTED
    assert sites.ledger.events(job.run_id, NOTED)
    target = sites.target(job)
    sites.connections["lab-cloud"].transport.put_bytes(
        b"closed\n", f"{target.run_dir}/decision.{target.submission_id}"
    )
    sites.both(40)
    sites.report(target.submission_id, "gated")
    sites.onprem.advance(400)  # past MinJobAge: it was noted before
    for _ in range(4):
        sites.tick()
    assert sites.move(job).step is Step.FAILED
    third = attempts(sites, job)[-1]
    assert (third.role, third.number) == (Role.ONPREM, 3)
    assert owner(sites, attempts(sites, job)[0]) == third.submission_id


@pytest.mark.parametrize("purged", [False, True])
def test_what_the_cloud_forgot_after_it_had_begun_is_told(sites, monkeypatch, purged):
    sites.policy = POLICY
    job = sites.submit()
    sites.tick()
    sites.both(40)
    now = sites.cloud.now()
    target = sites.target(job)
    sites.report(target.submission_id, "gated", time=now)
    sites.tick()
    sites.report(target.submission_id, time=now)
    sites.tick()
    assert sites.move(job).step is Step.MOVED
    sites.cloud.jobs.clear()
    if purged:
        sites.both(301)  # MinJobAge
    sites.tick()
    assert sites.move(job).step is Step.MOVED, "it may still tell its end"
    monkeypatch.setattr(follow, "FORGOTTEN_S", 0)
    sites.tick()
    if purged:
        assert sites.move(job).step is Step.MOVED, "it may have ended long ago"
        with monkeypatch.context() as patch:  # our own clock jumps, that site's does not
            later = utc_now() + dt.timedelta(hours=1)
            patch.setattr(acts, "utc_now", lambda: later)
            sites.tick()
        assert sites.move(job).step is Step.MOVED
        monkeypatch.setattr(follow, "LOST_S", 0)
        sites.tick()
    assert sites.move(job).step is Step.DONE
    assert "its end was not seen" in sites.move(job).message
    assert ("forgotten by its controller" in sites.move(job).message) is not purged
