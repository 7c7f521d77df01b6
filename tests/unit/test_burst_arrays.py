"""Arrays that move whole, on two faked sites."""

import pytest
from burst_steps import at_the_gate, begun, client
from fake_sites import FENCE_FIRST, NODES, POLICY, Sites

from hpcscale.burst import arrays
from hpcscale.burst.arrays import as_one, wholly_pending
from hpcscale.burst.claims import CLOSED, Claim, Word, decision, take
from hpcscale.burst.handover import Handover
from hpcscale.burst.moves import Moves, Step
from hpcscale.burst.plan import Action
from hpcscale.slurm.types import JobState, JobStatus
from hpcscale.units import JobId


@pytest.fixture(params=[POLICY, FENCE_FIRST], ids=["gate-first", "fence-first"])
def sites(request, tmp_path, monkeypatch):
    monkeypatch.setattr("hpcscale.burst.acts.BEGIN_S", 0.0)  # a fake's script begins when told
    sites = Sites(tmp_path)
    sites.policy = request.param
    sites.fill()
    yield sites
    sites.ledger.close()


def test_a_waiting_array_moves_whole(sites):
    job = at_the_gate(sites, array="0-3%1")
    begun(sites, job, task=0)
    assert sites.move(job).step is Step.MOVED, sites.move(job)
    target = sites.target(job)
    assert "#SBATCH --array=0-3%1" in target.script
    assert target.array_size == 4
    origin = sites.ledger.attempt(job.submission_id)
    assert take(sites.onprem, origin, job.submission_id).owner == target.submission_id
    assert client(sites).show(job.ref.job_id).state is JobState.CANCELLED
    sites.both(4 * 100)
    sites.tick()
    assert sites.move(job).step is Step.DONE, sites.move(job)
    assert sites.target(job).state is JobState.COMPLETED
    assert {e.state for e in sites.ledger.elements(target).values()} == {JobState.COMPLETED}
    assert len(sites.ledger.elements(target)) == 4


def test_the_fence_is_of_all_its_records(sites):
    job = sites.submit(array="0-3")
    element = JobId(job.ref.job_id.base, 2)
    client(sites).update(element, {"ExcNodeList": "node1"})  # Slurm splits it off
    move = at_claiming(sites, job)
    assert move.fenced
    for shown in (job.ref.job_id, element):
        assert client(sites).show(shown).exc_nodes == NODES
    Handover(sites.ledger, sites, sites.ledger.path.parent).undo(move)
    assert client(sites).show(job.ref.job_id).exc_nodes == ""


def at_claiming(sites, job):
    """Fenced, nothing claimed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Handover, "_claiming", lambda self, move: move)
        sites.tick()
        if sites.policy is POLICY:
            sites.both(40)
            sites.report(sites.target(job).submission_id, "gated", task=0, time=100.0)
            sites.tick()
    assert sites.move(job).step is Step.CLAIMING
    return sites.move(job)


def test_an_element_that_begins_on_prem_ends_the_move(sites):
    job = sites.submit(array="0-3")
    at_claiming(sites, job)
    # a controller forgot the fence: element 0 begins, and takes the array's claim as its script does
    origin = sites.ledger.attempt(job.submission_id)
    assert take(sites.onprem, origin, job.submission_id).owner == job.submission_id
    target = sites.target(job)
    sites.tick()
    first = Moves(sites.ledger).of_run(job.run_id)[0]
    assert first.step in {Step.FAILED, Step.WITHDRAWN}
    assert decision(sites.cloud, target) is not Word.OPENED
    assert sites.ledger.attempt(target.submission_id).state is JobState.CANCELLED
    assert sites.excluded(job) == ""


def test_elements_that_wait_keep_no_fence_when_one_began_in_between(sites, monkeypatch):
    job = sites.submit(array="0-3%1")
    sites.user_excludes(job, "node1")
    fence = Handover._fence
    filler = min(sites.onprem.jobs)

    def one_begins_first(self, *args):
        client(sites).cancel(JobId(filler))
        sites.onprem.advance(1)
        return fence(self, *args)

    monkeypatch.setattr(Handover, "_fence", one_begins_first)
    sites.tick()
    if sites.policy is POLICY:
        sites.both(40)
        sites.report(sites.target(job).submission_id, "gated", task=0, time=100.0)
        sites.tick()
    assert sites.move(job).step is Step.WITHDRAWN, sites.move(job)
    waits = [j for j in sites.onprem.jobs.values() if j.tasks]
    assert [j.exclude for j in waits] == ["node1"]
    assert "fenced" not in waits[0].comment


def test_of_an_array_that_is_not_whole_elements_move(sites):
    job = sites.submit(array="0-3")
    records = client(sites).jobs([job.ref.job_id]).of(job.ref.job_id)
    assert wholly_pending(records, range(4)) == ""
    assert "are gone" in wholly_pending(records, range(5))
    sites.connections["lab-onprem"].client.cancel(JobId(job.ref.job_id.base, 1))
    moves = sites.tick().plan.moves
    assert {d.ref for d in moves} == {f"lab-onprem:{job.ref.job_id}_{k}" for k in (0, 2, 3)}


def test_an_element_that_its_user_cancels_mid_move_begins_nowhere(sites):
    job = sites.submit(array="0-3")
    at_claiming(sites, job)
    client(sites).cancel(JobId(job.ref.job_id.base, 2))
    sites.tick()
    assert sites.move(job).step is Step.CANCELLING
    target = sites.target(job)
    records = client(sites, "lab-cloud").jobs([target.job_id]).jobs
    assert f"{target.job_id}_2" not in {
        str(s.job_id) for s in records.values() if not s.state.terminal
    }
    (event,) = [e for e in sites.ledger.events(job.run_id) if e.kind == "move.element_cancelled"]
    assert event.data["task"] == 2


def test_an_array_is_taken_back_by_one_claim(sites):
    job = at_the_gate(sites, array="0-3%1")
    sites.tick()
    assert sites.move(job).step is Step.CANCELLING
    target = sites.target(job)
    move = Handover(sites.ledger, sites, sites.ledger.path.parent).undo(sites.move(job))
    assert move.step is Step.FAILED
    assert take(sites.cloud, target, target.submission_id) == Claim(CLOSED)
    origin = sites.ledger.attempt(job.submission_id)
    assert take(sites.onprem, origin, job.submission_id).owner == job.submission_id
    assert client(sites).show(job.ref.job_id).exc_nodes == ""


def record(state, task=None, pending="", restarts=0):
    return JobStatus(
        job_id=JobId(7, task), state=state, raw_state=state.value, array_pending=pending,
        restarts=restarts,
    )  # fmt: skip


def test_an_element_that_starts_in_vain_is_not_cancelled(monkeypatch):
    seen = [
        record(JobState.PENDING, pending="3"),
        record(JobState.RUNNING, task=0),
        record(JobState.CANCELLED, task=1),
        record(JobState.COMPLETING, task=2),
    ]
    monkeypatch.setattr(arrays, "records_of", lambda *_: seen)
    # 4 was cancelled so long ago that Slurm has forgotten it
    assert arrays.cancelled_elements(None, None, range(5)) == [1, 4]
    monkeypatch.setattr(arrays, "records_of", lambda *_: seen[1:])
    assert arrays.cancelled_elements(None, None, range(5)) == [], "nothing waits: nothing is known"


def test_an_array_as_one_job():
    rest = record(JobState.PENDING, pending="2-3")
    runs, done = record(JobState.RUNNING, 0), record(JobState.COMPLETED, 1)
    gone, again = record(JobState.CANCELLED, 0), record(JobState.PENDING, 1, restarts=1)
    assert as_one([rest, runs], wholly=True) is runs
    assert as_one([rest, done], wholly=True) is done
    assert as_one([rest, done], wholly=False) is rest
    assert as_one([rest, gone], wholly=True) is rest
    assert as_one([rest, again], wholly=True) is again
    assert as_one([gone], wholly=True) is gone
    assert "have begun" in wholly_pending([rest, again], range(1, 4))


def test_jobs_of_a_federation_stay(sites):
    job = sites.submit()
    fake = sites.onprem.jobs.pop(job.ref.job_id.base)
    fake.number = fake.base = (2 << 26) + 7
    sites.onprem.jobs[fake.number] = fake
    sites.ledger.set_submitted(sites.ledger.attempt(job.submission_id), JobId(fake.base))
    (decision_,) = sites.tick().plan.decisions
    assert decision_.action is Action.REFUSE
    assert "federation" in decision_.reason
