"""Fences whose owner does not come back: any later run of the same user judges them."""

import pytest
from fake_sites import FENCE_FIRST, NODES, POLICY, Sites

from hpcscale.burst.claims import CLOSED, Claim, Word, decide, decision, take
from hpcscale.burst.handover import Handover
from hpcscale.burst.moves import Moves, Step
from hpcscale.burst.orphans import UNSENT_S, orphans
from hpcscale.ledger import Ledger
from hpcscale.slurm.types import JobState


class Killed(BaseException):
    """In place of SIGKILL."""


@pytest.fixture
def sites(tmp_path, monkeypatch):
    monkeypatch.setattr("hpcscale.burst.acts.BEGIN_S", 0.0)
    sites = Sites(tmp_path)
    sites.fill()
    yield sites
    sites.ledger.close()


@pytest.fixture
def stranger(tmp_path):
    """The ledger of another login node: it has never heard of the job."""
    with Ledger.open(tmp_path / "other" / "ledger.sqlite3") as ledger:
        yield ledger


def killed_at(sites, step, policy=POLICY):
    """A fenced job whose owner died before a step and does not come back; it and its target."""
    sites.policy = policy
    job = sites.submit()
    sites.user_excludes(job, "node2")
    with pytest.MonkeyPatch.context() as patch:

        def die(self, move):
            raise Killed

        patch.setattr(Handover, step, die)
        for _ in range(3):
            try:
                sites.tick()
            except Killed:
                break
            sites.both(40)
            sites.report(sites.target(job).submission_id, "gated", time=100.0)
    assert sites.excluded(job) == NODES
    move = sites.move(job)
    return job, sites.ledger.attempt(move.target) if move.target else None


def ends_in_the_cloud(sites):
    for fake in sites.cloud.jobs.values():
        fake.state, fake.ends = "FAILED", fake.started


def starts_on_prem(sites, job):
    attempt = sites.ledger.attempt(job.submission_id)
    return take(sites.onprem, attempt, job.submission_id).owner == job.submission_id


@pytest.mark.parametrize("step", ["_claiming", "_opening"])
def test_a_lease_that_ran_out_frees_the_job_by_anybodys_run(sites, stranger, step):
    job, target = killed_at(sites, step)
    (left,) = orphans(stranger, sites, "lab-onprem")
    assert left.done == "left", "its cloud job stands at its gate"
    assert sites.excluded(job) == NODES
    assert decide(sites.cloud, target, Word.EXPIRED) is Word.EXPIRED
    ends_in_the_cloud(sites)
    (one,) = orphans(stranger, sites, "lab-onprem")
    assert (one.done, one.ref) == ("lifted", f"lab-onprem:{job.ref.job_id}")
    assert "never begin (expired)" in one.why
    assert (sites.excluded(job), "fenced" in sites.comment(job)) == ("node2", False)
    assert starts_on_prem(sites, job), "its claim was given back"
    assert orphans(stranger, sites, "lab-onprem") == []
    sites.tick()  # and then its owner comes back after all
    assert sites.move(job).step in {Step.FAILED, Step.WITHDRAWN}
    assert decision(sites.cloud, target) is Word.EXPIRED


def test_a_cloud_job_that_is_gone_undecided_is_closed_first(sites, stranger):
    job, target = killed_at(sites, "_opening")
    ends_in_the_cloud(sites)  # its node failed; no lease ran out
    (one,) = orphans(stranger, sites, "lab-onprem")
    assert one.done == "lifted"
    assert decision(sites.cloud, target) is Word.CLOSED
    assert starts_on_prem(sites, job)


def test_what_was_opened_is_left_while_it_may_begin(sites, stranger):
    job, target = killed_at(sites, "_cancelling", FENCE_FIRST)
    assert decision(sites.cloud, target) is Word.OPENED
    (one,) = orphans(stranger, sites, "lab-onprem")
    assert (one.done, sites.excluded(job)) == ("left", NODES)
    ends_in_the_cloud(sites)  # before its command
    (one,) = orphans(stranger, sites, "lab-onprem")
    assert one.done == "lifted"
    assert take(sites.cloud, target, target.submission_id) == Claim(CLOSED)
    assert starts_on_prem(sites, job)


def test_what_has_begun_is_left(sites, stranger):
    job, target = killed_at(sites, "_cancelling", FENCE_FIRST)
    take(sites.cloud, target, target.submission_id)  # its script's own claim
    ends_in_the_cloud(sites)
    (one,) = orphans(stranger, sites, "lab-onprem")
    assert (one.done, sites.excluded(job)) == ("left", NODES)
    assert not starts_on_prem(sites, job)


def test_a_fence_without_a_cloud_job_goes_after_an_hour(sites, stranger):
    job, target = killed_at(sites, "_submitting", FENCE_FIRST)
    assert target is None
    (one,) = orphans(stranger, sites, "lab-onprem")
    assert one.done == "left"
    sites.onprem.clock.advance(UNSENT_S + 1)
    (one,) = orphans(stranger, sites, "lab-onprem")
    assert (one.done, sites.excluded(job)) == ("lifted", "node2")
    sites.tick()  # its owner comes back, and goes on
    assert sites.excluded(job) == NODES


def test_a_cloud_that_gives_no_answer_leaves_the_fence(sites, stranger):
    job, _ = killed_at(sites, "_opening")
    sites.down.add("lab-cloud")
    (one,) = orphans(stranger, sites, "lab-onprem")
    assert (one.done, one.why) == ("left", "lab-cloud: no route")
    assert sites.excluded(job) == NODES


def test_a_fence_without_its_record_is_named_and_left(sites, stranger):
    job, target = killed_at(sites, "_claiming")
    state = job.run_dir.rpartition("/runs/")[0]
    name = f"{job.run_id}.{job.submission_id}.{target.submission_id}.fence"
    sites.onprem.put_bytes(b"{", f"{state}/claims/{name}")
    (one,) = orphans(stranger, sites, "lab-onprem")
    assert one.done == "left"
    assert "scontrol update ExcNodeList= lifts it" in one.why


def test_the_next_tick_lifts_what_a_controller_brought_back(sites):
    """The fence of a failed move, forgotten as lifted; and a cancel of one that is over."""
    job, _ = killed_at(sites, "_claiming")
    fenced = sites.comment(job)
    Handover(sites.ledger, sites, sites.ledger.path.parent).undo(sites.move(job))
    client = sites.connections["lab-onprem"].client
    client.update(job.ref.job_id, {"ExcNodeList": NODES, "Comment": fenced})
    sites.tick()
    assert (sites.excluded(job), "fenced" in sites.comment(job)) == ("node2", False)
    moves = Moves(sites.ledger)
    moves.save(moves.of_run(job.run_id)[-1], step=Step.CANCELLED)
    client.update(job.ref.job_id, {"ExcNodeList": NODES, "Comment": fenced})
    sites.tick()
    assert client.show(job.ref.job_id).state is JobState.CANCELLED


def test_a_move_under_way_keeps_its_fence(sites):
    job, target = killed_at(sites, "_opening")
    decide(sites.cloud, target, Word.EXPIRED)
    assert orphans(sites.ledger, sites, "lab-onprem") == [], "its own run goes on with it"
    assert sites.excluded(job) == NODES


def test_who_has_the_claim_counts_not_who_fenced_last(sites, stranger):
    """Two ledgers fenced the job; the one whose cloud job is over is not the one that has it."""
    job, target = killed_at(sites, "_claiming")
    decide(sites.cloud, target, Word.EXPIRED)
    take(sites.onprem, sites.ledger.attempt(job.submission_id), "hs-" + "0" * 16)
    (one,) = orphans(stranger, sites, "lab-onprem")
    assert (one.done, sites.excluded(job)) == ("left", NODES)
    assert "has its claim" in one.why


def test_a_slow_process_that_fences_after_an_undo_leaves_no_fence_without_its_note(sites):
    """It looked while the undo was under way: the list was lifted, the note not yet."""
    job, _ = killed_at(sites, "_claiming")
    sites.user_excludes(job, "node2")
    original, slow = Handover._fence, [True]

    def overtaken(self, *args):
        if slow.pop() if slow else False:
            Handover(sites.ledger, sites, sites.ledger.path.parent).undo(sites.move(job))
            assert "fenced" not in sites.comment(job)
        return original(self, *args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Handover, "_fence", overtaken)
        sites.tick()
    assert not slow
    assert sites.move(job).step is Step.FAILED
    # by its note the same run finds the fence, and lifts it
    assert (sites.excluded(job), "fenced" in sites.comment(job)) == ("node2", False)


def test_between_the_fence_and_its_note_nobody_can_come(sites, monkeypatch):
    """One update sets both: an undo between two of them would leave a fence without its note."""
    asked, run = [], sites.onprem.run

    def heeding(argv, **options):
        asked.append(list(argv))
        return run(argv, **options)

    monkeypatch.setattr(sites.onprem, "run", heeding)
    killed_at(sites, "_claiming")
    setting = [a for a in asked if any(w == f"ExcNodeList={NODES}" for w in a)]
    assert setting
    for argv in setting:
        assert any(word.startswith("Comment=") and "fenced" in word for word in argv)


def test_what_began_behind_its_fence_and_is_requeued_is_found_by_its_note(sites):
    """A list stays with a job that runs; once requeued it would wait behind it for ever."""
    job, _ = killed_at(sites, "_claiming")
    fake = sites.onprem.jobs[job.ref.job_id.base]
    fake.state, fake.started, fake.nodes = "RUNNING", sites.onprem.now(), ["node1"]
    take(sites.onprem, sites.ledger.attempt(job.submission_id), job.submission_id)
    sites.tick()
    assert sites.move(job).step is Step.WITHDRAWN
    assert (sites.excluded(job), "fenced" in sites.comment(job)) == (NODES, True)
    fake.state, fake.started, fake.nodes, fake.restarts = "PENDING", None, [], 1
    sites.policy = POLICY
    orphans(sites.ledger, sites, "lab-onprem")
    assert (sites.excluded(job), "fenced" in sites.comment(job)) == ("node2", False)
