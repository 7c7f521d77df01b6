"""What users do while their job moves, on two faked sites: each act counts, at every step."""

import pytest
from fake_sites import FENCE_FIRST, NODES, POLICY, Sites

from hpcscale.burst.claims import CLOSED, Claim, Word, decide, decision, take
from hpcscale.burst.handover import Handover
from hpcscale.burst.moves import Moves, Step
from hpcscale.errors import UnreachableError
from hpcscale.slurm.types import JobState

STEPS = ["_submitting", "_submitted", "_fencing", "_claiming", "_opening", "_cancelling"]


@pytest.fixture(params=[POLICY, FENCE_FIRST], ids=["gate-first", "fence-first"])
def sites(request, tmp_path, monkeypatch):
    monkeypatch.setattr("hpcscale.burst.acts.BEGIN_S", 0.0)  # a fake's script begins when told
    sites = Sites(tmp_path)
    sites.policy = request.param
    sites.fill()
    yield sites
    sites.ledger.close()


@pytest.fixture
def cloud_job(sites):
    """Of the job under test."""

    def find(job):
        return sites.connections["lab-cloud"].client.show(sites.target(job).job_id)

    return find


class Killed(BaseException):
    """In place of SIGKILL: nothing of ours catches it."""


def handover(sites):
    return Handover(sites.ledger, sites, sites.ledger.path.parent)


def killed_before(sites, monkeypatch, step):
    """A job whose move was killed just before it took this step."""
    job = sites.submit()
    with monkeypatch.context() as patch:

        def die(self, move):
            raise Killed

        patch.setattr(Handover, step, die)
        for _ in range(3):
            try:
                sites.tick()
            except Killed:
                return job
            sites.both(40)
            sites.report(sites.target(job).submission_id, "gated", time=100.0)
    pytest.fail(f"{step} was never taken")


def on_prem(sites, job):
    return sites.connections["lab-onprem"].client.show(job.ref.job_id)


def ended_at_both(sites, job):
    target = Moves(sites.ledger).of_run(job.run_id)[0].target
    cloud = target is None or sites.ledger.attempt(target).state is JobState.CANCELLED
    return cloud and on_prem(sites, job).state is JobState.CANCELLED


@pytest.mark.parametrize("step", STEPS)
def test_undo_at_every_step(sites, monkeypatch, step):
    job = killed_before(sites, monkeypatch, step)
    move = handover(sites).undo(sites.move(job))
    assert move.step is Step.FAILED
    assert sites.excluded(job) == ""
    assert "fenced" not in sites.comment(job)
    assert on_prem(sites, job).state is JobState.PENDING
    target = sites.ledger.attempt(move.target) if move.target else None
    if target is not None:
        assert target.ended
        assert target.state in {JobState.CANCELLED, JobState.COMPLETED}
        # whatever Slurm does with it now, it begins nothing
        own = take(sites.cloud, target, target.submission_id)
        assert decision(sites.cloud, target) is Word.CLOSED or own == Claim(CLOSED)
    attempt = sites.ledger.attempt(job.submission_id)
    assert take(sites.onprem, attempt, job.submission_id).owner == job.submission_id


def test_undo_is_too_late_once_the_command_has_begun(sites, monkeypatch):
    job = killed_before(sites, monkeypatch, "_cancelling")
    target = sites.target(job)
    take(sites.cloud, target, target.submission_id)  # its script's own claim
    sites.report(target.submission_id)
    assert handover(sites).undo(sites.move(job)).step is Step.MOVED
    assert on_prem(sites, job).state is JobState.CANCELLED


@pytest.mark.parametrize("step", STEPS)
def test_scancel_on_prem_at_every_step_ends_both(sites, monkeypatch, step):
    job = killed_before(sites, monkeypatch, step)
    sites.connections["lab-onprem"].client.cancel(job.ref.job_id)
    for _ in range(3):
        sites.tick()
    assert sites.move(job).step is Step.CANCELLED, sites.move(job)
    assert ended_at_both(sites, job)


@pytest.mark.parametrize("step", ["_submitted", "_claiming", "_opening", "_cancelling"])
def test_scancel_in_the_cloud_at_every_step_ends_both(sites, monkeypatch, step):
    job = killed_before(sites, monkeypatch, step)
    sites.connections["lab-cloud"].client.cancel(sites.target(job).job_id)
    for _ in range(3):
        sites.tick()
    assert sites.move(job).step is Step.CANCELLED, sites.move(job)
    assert ended_at_both(sites, job)


@pytest.mark.parametrize("step", STEPS)
def test_cancel_of_the_run_at_every_step_ends_both(sites, monkeypatch, step):
    job = killed_before(sites, monkeypatch, step)
    move = handover(sites).cancel(sites.move(job))
    assert (move.step, move.message) == (Step.CANCELLED, "its user cancelled it")
    assert ended_at_both(sites, job)
    assert not sites.tick().begun


def test_cancel_while_the_cloud_gives_no_answer_is_done_later(sites, monkeypatch):
    job = killed_before(sites, monkeypatch, "_claiming")
    sites.down.add("lab-cloud")
    with pytest.raises(UnreachableError):
        handover(sites).cancel(sites.move(job))
    sites.tick()
    assert sites.move(job).step is Step.ENDING
    sites.down.clear()
    sites.tick()
    assert ended_at_both(sites, job)


def test_cancel_while_an_undo_waits_for_the_cloud(sites, monkeypatch):
    job = killed_before(sites, monkeypatch, "_claiming")
    sites.down.add("lab-cloud")
    with pytest.raises(UnreachableError):
        handover(sites).undo(sites.move(job))
    sites.down.clear()
    assert handover(sites).cancel(sites.move(job)).step is Step.CANCELLED
    assert ended_at_both(sites, job)


def test_a_fenced_job_says_why_and_how_to_undo(sites, monkeypatch):
    job = killed_before(sites, monkeypatch, "_claiming")
    assert sites.comment(job) == (
        f"hpcscale={job.submission_id}; fenced, as it moves to lab-cloud: "
        f"to undo, hpcscale burst undo {job.run_id}"
    )
    assert on_prem(sites, job).reason == "BadConstraints"
    handover(sites).undo(sites.move(job))
    assert sites.comment(job) == f"hpcscale={job.submission_id}"


@pytest.mark.parametrize(
    ("wrote", "fenced", "lifted"),
    [
        ("node2", NODES, "node2"),
        ("node[1-4],x7", "node[1-4],x7", "node3,x7"),
        ("", NODES, ""),
    ],
)
def test_what_its_user_excludes_while_fenced_is_not_lost(sites, monkeypatch, wrote, fenced, lifted):
    job = sites.submit()
    sites.user_excludes(job, "node3")
    sites_submit = sites.submit
    sites.submit = lambda: job
    killed_before(sites, monkeypatch, "_claiming")
    sites.submit = sites_submit
    sites.user_excludes(job, wrote)
    with monkeypatch.context() as patch:
        patch.setattr(Handover, "_opening", lambda self, move: move)
        sites.tick()
    assert sites.excluded(job) == fenced
    handover(sites).undo(sites.move(job))
    assert sites.excluded(job) == lifted


def test_blamed_nodes_stay_excluded_when_the_fence_goes(sites, monkeypatch):
    job = sites.submit()
    sites.ledger.event(job.run_id, "nodes.blamed", {"site": "lab-onprem", "nodes": "node4"})
    sites.ledger.event(job.run_id, "nodes.blamed", {"site": "lab-cloud", "nodes": "node1"})
    sites.user_excludes(job, "node2")
    sites_submit = sites.submit
    sites.submit = lambda: job
    killed_before(sites, monkeypatch, "_claiming")
    sites.submit = sites_submit
    move = handover(sites).undo(sites.move(job))
    assert (move.old_exc, move.blamed, move.fence) == ("node2", "node4", NODES)
    assert sites.excluded(job) == "node[2,4]"


def test_a_job_that_was_cancelled_and_forgotten_since_is_not_moved_on(sites, monkeypatch):
    """Its record is purged (MinJobAge) before the next run looks, and there is no accounting."""
    job = sites.submit()
    sites.both(60)
    sites_submit = sites.submit
    sites.submit = lambda: job
    killed_before(sites, monkeypatch, "_claiming")
    sites.submit = sites_submit
    del sites.onprem.jobs[job.ref.job_id.base]
    sites.tick()
    assert sites.move(job).step is Step.CANCELLED
    assert sites.target(job).state is JobState.CANCELLED


def test_a_job_that_its_controller_forgot_with_its_submission_runs_in_the_cloud(sites, monkeypatch):
    job = sites.submit()
    if sites.policy is FENCE_FIRST:
        sites.tick()
        assert not sites.move(job).kept
        del sites.onprem.jobs[job.ref.job_id.base]
        sites.both(40)
    else:
        sites.tick()
        del sites.onprem.jobs[job.ref.job_id.base]
        sites.both(40)
        sites.report(sites.target(job).submission_id, "gated")
        sites.tick()
    assert decide(sites.cloud, sites.target(job), Word.CLOSED) is Word.OPENED
    sites.report(sites.target(job).submission_id)
    sites.tick()
    assert sites.move(job).step is Step.MOVED


def test_a_start_that_found_the_claim_taken_is_no_end(sites, monkeypatch):
    """A controller forgot the fence; the site forbids the requeue, so the job ended with 98."""
    job = killed_before(sites, monkeypatch, "_cancelling")
    fake = sites.onprem.jobs[job.ref.job_id.base]
    fake.state, fake.status, fake.started, fake.ends = "FAILED", 98 << 8, 1, 2
    sites.tick()
    assert sites.move(job).step is Step.CANCELLING
    sites.report(sites.target(job).submission_id)
    sites.tick()
    assert sites.move(job).step is Step.MOVED


def test_a_state_that_nobody_knows_is_no_answer(sites, monkeypatch):
    job = killed_before(sites, monkeypatch, "_claiming")
    fake = sites.onprem.jobs[job.ref.job_id.base]
    fake.state = "OF_THE_FUTURE"
    assert sites.tick().problems
    assert sites.move(job).step is Step.CLAIMING
    fake.state = "PENDING"
    sites.tick()
    assert sites.move(job).step is Step.CANCELLING


def test_nor_is_it_once_its_command_has_begun_there(sites, monkeypatch):
    """It was cancelled between two runs, in which its command began, and is purged since."""
    job = sites.submit()
    sites.both(60)
    sites_submit = sites.submit
    sites.submit = lambda: job
    killed_before(sites, monkeypatch, "_cancelling")
    sites.submit = sites_submit
    assert sites.move(job).kept
    sites.report(sites.target(job).submission_id)
    del sites.onprem.jobs[job.ref.job_id.base]
    sites.tick()
    assert sites.move(job).step is Step.CANCELLED
    assert sites.target(job).state is JobState.CANCELLED


@pytest.mark.parametrize("begun", [False, True])
@pytest.mark.parametrize("code", [97, 98])
def test_one_that_ended_by_itself_and_is_purged_was_not_cancelled(sites, monkeypatch, code, begun):
    """It started in vain: its claim was taken (98), or could not be read on a full disk (97)."""
    job = sites.submit()
    sites.both(60)
    sites_submit = sites.submit
    sites.submit = lambda: job
    killed_before(sites, monkeypatch, "_cancelling")
    sites.submit = sites_submit
    sites.report(job.submission_id, "ended", exit_code=code)
    del sites.onprem.jobs[job.ref.job_id.base]
    if begun:
        sites.report(sites.target(job).submission_id)
    sites.tick()
    assert sites.move(job).step is (Step.MOVED if begun else Step.CANCELLING)
