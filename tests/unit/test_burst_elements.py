"""One element of an array that moves alone, on two faked sites."""

import datetime as dt
from decimal import Decimal

import msgspec
import pytest
from fake_sites import FENCE_FIRST, NODES, POLICY, Sites, Waited

from hpcscale.burst.arrays import exit_codes
from hpcscale.burst.claims import Word, decision, holder, take
from hpcscale.burst.elements import element_run_id, make_run, runs_of, waiting
from hpcscale.burst.handover import Handover
from hpcscale.burst.moves import Moves, Step
from hpcscale.burst.orphans import orphans
from hpcscale.burst.plan import Action
from hpcscale.cost import CostEstimate
from hpcscale.ledger import Ledger
from hpcscale.slurm.transport import Completed
from hpcscale.slurm.types import JobState, JobStatus
from hpcscale.spec import BurstMode, BurstTerms
from hpcscale.units import JobId


@pytest.fixture(params=[POLICY, FENCE_FIRST], ids=["gate-first", "fence-first"])
def sites(request, tmp_path, monkeypatch):
    monkeypatch.setattr("hpcscale.burst.acts.BEGIN_S", 0.0)  # a fake's script begins when told
    sites = Sites(tmp_path)
    sites.policy = msgspec.structs.replace(request.param, max_moves_per_run=1)
    sites.batch("-N2", "--exclusive", "--time=9999")
    sites.onprem.advance(1)
    yield sites
    sites.ledger.close()


@pytest.fixture
def job(sites):
    """An array whose first element runs, and for whose others there are no nodes."""
    job = sites.submit(array="0-3")
    states = {str(s.job_id): s.state for s in client(sites).jobs().jobs.values()}
    assert states[f"{job.ref.job_id}_0"] is JobState.RUNNING, states
    return job


def client(sites, site="lab-onprem"):
    return sites.connections[site].client


def element(job, task):
    return JobId(job.ref.job_id.base, task)


def child(sites, job, task=1):
    return Moves(sites.ledger).of_run(element_run_id(job.run_id, task))[-1]


def first(sites, job, task=1):
    return Moves(sites.ledger).of_run(element_run_id(job.run_id, task))[0]


def target(sites, job, task=1):
    return sites.ledger.attempt(child(sites, job, task).target)


def at_the_gate(sites, job, task=1):
    sites.tick()
    sites.both(40)
    sites.report(target(sites, job, task).submission_id, "gated", task=task, time=100.0)


def moved(sites, job, task=1):
    at_the_gate(sites, job, task)
    sites.tick()
    assert decision(sites.cloud, target(sites, job, task)) is Word.OPENED
    sites.report(target(sites, job, task).submission_id, task=task, time=104.0)
    sites.tick()


def test_a_waiting_element_moves_alone(sites, job):
    moved(sites, job)
    move = child(sites, job)
    assert (move.step, move.task) == (Step.MOVED, 1), move
    cloud = target(sites, job)
    assert "#SBATCH --array=1\n" in cloud.script
    assert (cloud.array_size, cloud.run_id) == (1, element_run_id(job.run_id, 1))
    origin = sites.ledger.attempt(job.submission_id)
    # the element's log is the cloud attempt's, the array's its own: the others go on
    assert holder(sites.onprem, origin.element(1)) == cloud.submission_id
    assert take(sites.onprem, origin.element(1), job.submission_id).owner == cloud.submission_id
    assert take(sites.onprem, origin, job.submission_id).owner == job.submission_id
    gone = client(sites).show(element(job, 1))
    assert gone is None or gone.state is JobState.CANCELLED
    assert client(sites).show(element(job, 0)).state is JobState.RUNNING
    # the next one may be on its way by now: one at a time, by this policy
    assert holder(sites.onprem, origin.element(3)) == ""
    assert client(sites).show(element(job, 3)).exc_nodes == ""


def test_what_became_of_it_is_told_of_both_runs(sites, job):
    moved(sites, job)
    array = sites.ledger.attempt(job.submission_id)
    gone = sites.ledger.elements(array)[1]
    assert gone.moved
    assert gone.reason == f"moved to {target(sites, job).ref}"
    assert runs_of(sites.ledger, job.run_id)[1] == element_run_id(job.run_id, 1)
    sites.policy = msgspec.structs.replace(sites.policy, to=())  # no more of them
    sites.both(4000)
    for _ in range(3):
        sites.tick()
    assert child(sites, job).step is Step.DONE
    assert target(sites, job).state is JobState.COMPLETED


def test_only_its_own_record_is_fenced_and_undone(sites, job):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Handover, "_claiming", lambda self, move: move)
        at_the_gate(sites, job)
        sites.tick()
    move = child(sites, job)
    assert (move.step, move.fenced) == (Step.CLAIMING, True), move
    shown = client(sites).show(element(job, 1))
    assert shown.exc_nodes == NODES
    assert f"burst undo {move.run_id}" in shown.comment
    assert client(sites).show(element(job, 3)).exc_nodes == ""
    assert Handover(sites.ledger, sites, sites.ledger.path.parent).undo(move).step is Step.FAILED
    shown = client(sites).show(element(job, 1))
    assert (shown.exc_nodes, "fenced" in shown.comment) == ("", False)
    origin = sites.ledger.attempt(job.submission_id)
    assert take(sites.onprem, origin.element(1), job.submission_id).owner == job.submission_id


def test_a_silence_of_squeue_does_not_end_an_element(sites, job, monkeypatch):
    """Of an element squeue may list nothing without an error; that alone is no answer."""
    at_the_gate(sites, job)
    run, silent = sites.onprem.run, []

    def once_silent(argv, **options):
        if "squeue" in argv[0] and f"--jobs={element(job, 1)}" in argv and not silent:
            silent.append(argv)
            return Completed(tuple(argv), 0, "", "")
        return run(argv, **options)

    monkeypatch.setattr(sites.onprem, "run", once_silent)
    sites.tick()
    assert silent
    assert decision(sites.cloud, target(sites, job)) is Word.OPENED, child(sites, job)


def test_an_element_that_begins_on_prem_wins(sites, job):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Handover, "_claiming", lambda self, move: move)
        at_the_gate(sites, job)
    origin = sites.ledger.attempt(job.submission_id)
    # as its script does: the array's log first, then its own
    assert take(sites.onprem, origin.element(1), job.submission_id).owner == job.submission_id
    cloud = target(sites, job)
    sites.tick()
    move = first(sites, job)
    assert move.step in {Step.FAILED, Step.WITHDRAWN}, move
    assert decision(sites.cloud, cloud) is not Word.OPENED


def test_who_takes_an_element_keeps_the_array_from_being_taken(sites, job):
    origin = sites.ledger.attempt(job.submission_id)
    one, other = "hs-" + "1" * 16, "hs-" + "2" * 16
    assert take(sites.onprem, origin.element(2), one).owner == one
    whole = take(sites.onprem, origin, other)
    assert (whole.owner, whole.started) == (job.submission_id, True)


def test_a_taken_array_has_its_elements(sites, tmp_path):
    job = sites.submit(array="5-6")
    origin = sites.ledger.attempt(job.submission_id)
    one, other = "hs-" + "1" * 16, "hs-" + "2" * 16
    assert take(sites.onprem, origin, one).owner == one
    assert take(sites.onprem, origin.element(5), other).owner == one


def test_a_users_cancel_of_the_element_ends_both(sites, job):
    at_the_gate(sites, job)
    client(sites).cancel(element(job, 1))
    sites.tick()
    assert child(sites, job).step is Step.CANCELLED
    assert sites.ledger.attempt(target(sites, job).submission_id).state is JobState.CANCELLED


@pytest.mark.parametrize("data", [{"by": "its user"}, {"job": "element"}])
def test_hpcscale_cancel_of_the_array_or_the_element_ends_it(sites, job, data):
    at_the_gate(sites, job)
    told = {"job": str(element(job, 1))} if "job" in data else data
    sites.ledger.event(job.run_id, "attempt.cancel", told)
    sites.tick()
    assert child(sites, job).step is Step.CANCELLED


def test_a_cancel_of_another_element_is_none_of_its_business(sites, job):
    at_the_gate(sites, job)
    sites.ledger.event(job.run_id, "attempt.cancel", {"job": str(element(job, 3))})
    sites.tick()
    assert child(sites, job).step is Step.CANCELLING


def test_one_element_after_the_other_within_the_limit_of_a_run(sites, job):
    sites.policy = msgspec.structs.replace(sites.policy, max_moves_per_run=2)
    plan = sites.tick().plan
    refs = {f"lab-onprem:{element(job, k)}" for k in (1, 2)}
    assert {d.ref for d in plan.moves} == refs, "the first ones that wait"
    assert sites.tick().plan.moves == ()


def test_elements_with_a_deadline_go_together_when_it_asks_for_them(sites):
    soon = sites.connections["lab-onprem"].clock.now() + dt.timedelta(seconds=1500)
    terms = BurstTerms(mode=BurstMode.ONLY, deadline=soon)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fake_sites.BurstTerms", lambda **_: terms)
        job = sites.submit(array="0-3")
    plan = sites.tick().plan
    refs = {f"lab-onprem:{element(job, k)}" for k in (1, 2, 3)}
    assert {d.ref for d in plan.moves} == refs, "though max_moves_per_run = 1"


def test_a_sum_bounds_all_elements_together(sites, monkeypatch):
    monkeypatch.setattr(
        "hpcscale.burst.shapes.estimate", lambda spec, site: CostEstimate(Decimal(4), "as told")
    )
    sites.policy = msgspec.structs.replace(sites.policy, max_moves_per_run=4)
    terms = BurstTerms(mode=BurstMode.ONLY, max_cost_usd=Decimal(10))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fake_sites.BurstTerms", lambda **_: terms)
        job = sites.submit(array="0-3")
    refs = []
    for _ in range(3):
        plan = sites.tick().plan
        refs += [d.ref for d in plan.moves]
    assert refs == [f"lab-onprem:{element(job, k)}" for k in (1, 2)], "4 + 4 + 4 is more than 10"
    (last,) = [d for d in plan.decisions if d.ref.endswith("_3")]
    assert last.action is Action.REFUSE
    assert "over its --max-cost $2" in last.reason


def test_an_array_with_a_limit_that_has_begun_stays_and_the_plan_says_why(sites):
    sites.submit(array="0-3%1")
    (refused,) = sites.tick().plan.decisions
    assert refused.action is Action.REFUSE
    assert "at most 1 at a time (%1)" in refused.reason


def test_a_limit_that_never_binds_is_none(sites):
    sites.submit(array="0-3%256")
    assert sites.tick().plan.moves


def test_behind_which_a_job_waits_it_stands_in(sites, job):
    other = sites.batch("--job-name=behind")
    connection = sites.connections["lab-onprem"]
    connection.client = Waited(connection.client, other, f"afterok:{job.ref.job_id}_*(unfulfilled)")
    moved(sites, job)
    assert child(sites, job).stand_in
    assert client(sites).show(element(job, 1)).state is JobState.PENDING
    sites.policy = msgspec.structs.replace(sites.policy, to=())
    sites.cloud.jobs[max(sites.cloud.jobs)].result = 7
    sites.cloud.advance(120)
    for _ in range(2):
        sites.tick()
    assert child(sites, job).step is Step.RELEASING
    state, _, _ = job.run_dir.rpartition("/runs/")
    name = f"{state}/claims/{job.run_id}.{job.submission_id}.task1.outcome"
    assert sites.onprem.read_bytes(name) == b"7\n"
    assert client(sites).show(element(job, 1)).exc_nodes == ""


def test_a_fence_left_behind_is_lifted_by_another_ledger(sites, job, tmp_path):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Handover, "_opening", lambda self, move: move)
        at_the_gate(sites, job)
        sites.tick()
    assert child(sites, job).step is Step.OPENING
    client(sites, "lab-cloud").cancel(target(sites, job).job_id)
    with Ledger.open(tmp_path / "other.sqlite3") as other:
        (found,) = orphans(other, sites, "lab-onprem")
    assert (found.done, found.ref) == ("lifted", f"lab-onprem:{element(job, 1)}")
    shown = client(sites).show(element(job, 1))
    assert (shown.exc_nodes, "fenced" in shown.comment) == ("", False)
    origin = sites.ledger.attempt(job.submission_id)
    assert take(sites.onprem, origin.element(1), job.submission_id).owner == job.submission_id


def test_two_ledgers_that_move_one_element_share_the_claim(sites, job, tmp_path):
    """The loser ends its own cloud job and leaves the fence."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Handover, "_claiming", lambda self, move: move)
        at_the_gate(sites, job)
        sites.tick()
    origin = sites.ledger.attempt(job.submission_id)
    elsewhere = "hs-" + "e" * 16
    assert take(sites.onprem, origin.element(1), elsewhere).owner == elsewhere
    sites.tick()
    move = first(sites, job)
    assert (move.step, move.yielded) == (Step.WITHDRAWN, True)
    assert client(sites).show(element(job, 1)).exc_nodes == NODES


def test_which_elements_wait():
    rest = JobStatus(
        job_id=JobId(7), state=JobState.PENDING, raw_state="PENDING", array_pending="3-4"
    )
    alone = msgspec.structs.replace(rest, job_id=JobId(7, 1), array_pending="")
    runs = msgspec.structs.replace(alone, job_id=JobId(7, 0), state=JobState.RUNNING)
    assert list(waiting([rest, alone, runs])) == [1, 3, 4]
    assert {str(s.job_id) for s in waiting([rest]).values()} == {"7_3", "7_4"}


def test_its_run_is_the_same_for_every_ledger():
    assert element_run_id("rabc", 4) == element_run_id("rabc", 4) != element_run_id("rabc", 5)
    assert len(element_run_id("rabc", 4)) == 11


def test_two_processes_that_make_its_run_make_one(sites, job, monkeypatch):
    run = sites.ledger.run(job.run_id)
    first = make_run(sites.ledger, run, 2)
    monkeypatch.setattr(sites.ledger, "runs", lambda _: [])  # it was not there a moment ago
    assert make_run(sites.ledger, run, 2) == first


# --- forgotten by the cloud's controller


@pytest.fixture
def forgotten(sites):
    """A moved array whose element 0 has begun, and of which its controller knows nothing more."""
    for stranger in list(sites.onprem.jobs):
        sites.onprem.run(["scancel", str(stranger)])
    sites.fill()
    job = sites.submit(array="0-1")
    sites.tick()
    sites.both(40)
    array = Moves(sites.ledger).of_run(job.run_id)[-1].target
    now = sites.cloud.now()
    sites.report(array, "gated", task=0, time=now)
    sites.tick()
    assert decision(sites.cloud, sites.ledger.attempt(array)) is Word.OPENED
    sites.report(array, task=0, time=now)
    base = sites.ledger.attempt(array).job_id.base
    origin = sites.ledger.attempt(array)
    # as its script does
    assert take(sites.cloud, origin.element(0), array).owner == array
    sites.tick()
    assert Moves(sites.ledger).of_run(job.run_id)[-1].step is Step.MOVED
    for number, fake in list(sites.cloud.jobs.items()):
        if fake.base == base:
            del sites.cloud.jobs[number]
    return job


def whole(sites, job):
    return Moves(sites.ledger).of_run(job.run_id)[-1]


def test_an_element_that_was_forgotten_before_it_began_moves_again(sites, forgotten):
    job = forgotten
    for _ in range(3):
        sites.tick()
    array = sites.ledger.attempt(whole(sites, job).target)
    again = child(sites, job)
    assert (again.from_site, again.to_site, again.origin) == (
        "lab-cloud", "lab-cloud", array.submission_id,
    )  # fmt: skip
    assert not Moves(sites.ledger).of_run(element_run_id(job.run_id, 0)), "it has begun"
    sites.both(40)
    second = target(sites, job)
    sites.report(second.submission_id, "gated", task=1, time=200.0)
    for _ in range(3):
        sites.tick()
    assert decision(sites.cloud, second) is Word.OPENED
    # should it come back, it begins nothing
    assert take(sites.cloud, array.element(1), array.submission_id).owner == second.submission_id
    sites.report(second.submission_id, task=1, time=204.0)
    sites.report(array.submission_id, "ended", task=0, exit_code=0, time=sites.cloud.now())
    sites.tick()
    assert whole(sites, job).step is Step.MOVED, "one of its elements has not ended"
    sites.both(4000)
    for _ in range(4):
        sites.tick()
    assert child(sites, job).step is Step.DONE
    assert whole(sites, job).step is Step.DONE, whole(sites, job)
    assert sites.ledger.elements(array)[1].moved
    assert exit_codes(sites.ledger, array, "0-1") == {".task0": 0, ".task1": 0}


def test_an_element_that_began_after_all_keeps_its_claim(sites, forgotten):
    job = forgotten
    for _ in range(2):
        sites.tick()
    array = sites.ledger.attempt(whole(sites, job).target)
    assert child(sites, job).step is Step.SUBMITTED
    assert take(sites.cloud, array.element(1), array.submission_id).owner == array.submission_id
    sites.both(40)
    sites.report(target(sites, job).submission_id, "gated", task=1, time=200.0)
    for _ in range(4):
        sites.tick()
    assert child(sites, job).step is Step.WITHDRAWN
    assert decision(sites.cloud, target(sites, job)) is Word.CLOSED


def test_what_its_user_cancelled_is_not_submitted_again(sites, forgotten):
    sites.ledger.event(forgotten.run_id, "attempt.cancel", {"by": "its user"})
    for _ in range(3):
        sites.tick()
    assert not Moves(sites.ledger).of_run(element_run_id(forgotten.run_id, 1))


def test_an_array_that_may_have_ended_long_ago_is_not_taken_for_forgotten(sites, forgotten):
    sites.both(301)  # MinJobAge
    for _ in range(3):
        sites.tick()
    assert not Moves(sites.ledger).of_run(element_run_id(forgotten.run_id, 1))
