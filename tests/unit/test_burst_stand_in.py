"""Jobs that others wait for, and their stand-ins, on two faked sites."""

import datetime as dt

import msgspec
import pytest
from burst_steps import at_the_gate, begun, client
from fake_sites import FENCE_FIRST, NODES, POLICY, Sites, Waited
from render_cases import ONPREM

from hpcscale.burst import held
from hpcscale.burst.arrays import exit_codes
from hpcscale.burst.claims import CLOSED, take
from hpcscale.burst.handover import Handover
from hpcscale.burst.moves import Step
from hpcscale.burst.orphans import Fence, put_fence
from hpcscale.burst.plan import Action
from hpcscale.burst.policy import Dependents
from hpcscale.burst.sight import look
from hpcscale.burst.stuck import dependents
from hpcscale.ledger import utc_now
from hpcscale.slurm.types import Answer, JobState, JobStatus
from hpcscale.units import JobId


@pytest.fixture(params=[POLICY, FENCE_FIRST], ids=["gate-first", "fence-first"])
def sites(request, tmp_path, monkeypatch):
    monkeypatch.setattr("hpcscale.burst.acts.BEGIN_S", 0.0)  # a fake's script begins when told
    sites = Sites(tmp_path)
    sites.policy = request.param
    sites.fill()
    yield sites
    sites.ledger.close()


def waited_for(sites, dependency="afterok:{}(unfulfilled)", **kw):
    job = sites.submit(**kw)
    other = sites.batch("--job-name=urgent")
    connection = sites.connections["lab-onprem"]
    connection.client = Waited(connection.client, other, dependency.format(job.ref.job_id))
    return job, other


@pytest.mark.parametrize(
    "dependency", ["afterok:{}(unfulfilled)", "afterany:{}", "singleton(unfulfilled)"]
)
def test_a_job_that_others_wait_for_stands_in_for_its_cloud_attempt(sites, dependency):
    job, other = waited_for(sites, dependency)
    plan = sites.tick().plan
    assert f"{other} waits for it, so it stays in the queue" in plan.moves[0].reason
    sites.both(40)
    sites.report(sites.target(job).submission_id, "gated", time=100.0)
    begun(sites, job)
    move = sites.move(job)
    assert (move.step, move.stand_in) == (Step.MOVED, True)
    assert client(sites).show(job.ref.job_id).state is JobState.PENDING
    assert sites.excluded(job) == NODES
    sites.user_excludes(job, "")  # a controller forgets the fence
    sites.tick()
    assert sites.excluded(job) == NODES
    sites.both(90)
    sites.tick()
    assert sites.move(job).step is Step.RELEASING
    assert (sites.excluded(job), "fenced" in sites.comment(job)) == ("", False)
    assert outcome(sites, job) == "0\n"
    fake = sites.onprem.jobs[job.ref.job_id.base]
    assert (fake.nodes_wanted, fake.limit_s) == (1, 600), "one node, and time enough on a slow one"
    fake.state, fake.started, fake.ends = "COMPLETED", 1, 2  # its script has read the outcome
    sites.tick()
    assert sites.move(job).step is Step.DONE


def test_a_job_that_others_wait_for_stands_in_also_where_it_has_started_in_vain(sites):
    job, _ = waited_for(sites)
    sites.tick()
    sites.both(40)
    sites.report(sites.target(job).submission_id, "gated", time=100.0)
    sites.tick()
    assert sites.move(job).step is Step.CANCELLING
    fake = sites.onprem.jobs[job.ref.job_id.base]
    fake.state = "RUNNING"  # a controller forgot the fence; its script will find its claim taken
    sites.report(sites.target(job).submission_id, time=104.0)
    sites.tick()
    assert (sites.move(job).step, sites.move(job).stand_in) == (Step.MOVED, True)
    assert fake.state == "RUNNING"
    fake.state, fake.exclude, fake.restarts = "PENDING", "", 1  # as its script asked
    sites.tick()
    assert sites.excluded(job) == NODES


def waiting_job(number, name="urgent", user="me", dependency=""):
    return JobStatus(
        job_id=JobId(number), state=JobState.PENDING, raw_state="PENDING", name=name, user=user,
        dependency=dependency,
    )  # fmt: skip


def test_anybodys_job_may_wait_for_one_but_singletons_are_of_one_user():
    ours = waiting_job(7)
    others = [
        waiting_job(8, user="other", dependency="afterok:7(unfulfilled)"),
        waiting_job(9, user="other", dependency="singleton(unfulfilled)"),
        waiting_job(10, dependency="singleton(unfulfilled)"),
        waiting_job(11, name="else", dependency="singleton(unfulfilled)"),
        waiting_job(12, user="other", dependency="afterok:77(unfulfilled)"),
    ]
    answer = Answer({str(s.job_id): s for s in [ours, *others]}, complete=True)
    assert dependents(answer, ours) == ["8", "10"]


def outcome(sites, job, task=""):
    state, _, _ = job.run_dir.rpartition("/runs/")
    path = f"{state}/claims/{job.run_id}.{job.submission_id}{task}.outcome"
    return sites.onprem.read_bytes(path).decode()


def standing_in(sites, **kw):
    job, other = waited_for(sites, **kw)
    sites.tick()
    sites.both(40)
    sites.report(sites.target(job).submission_id, "gated", time=100.0)
    begun(sites, job)
    assert sites.move(job).stand_in
    return job, other


def test_a_fence_of_another_ledger_does_not_keep_a_stand_in_for_ever(sites):
    """It was of other nodes, as the job had been in another partition, and yielded to this claim."""
    job, _ = waited_for(sites)
    sites.user_excludes(job, "node2")
    sites.tick()
    sites.both(40)
    sites.report(sites.target(job).submission_id, "gated", time=100.0)
    begun(sites, job)
    assert sites.move(job).stand_in
    theirs = Fence(
        run_id=job.run_id, origin=job.submission_id, to_site="lab-cloud", at=sites.onprem.clock.now(),
        user="node2", nodes="burst[1-4],node2", target="hs-" + "0" * 16,
    )  # fmt: skip
    put_fence(sites.connections["lab-onprem"], sites.ledger.attempt(job.submission_id), theirs)
    sites.user_excludes(job, "burst[1-4],node2")
    sites.tick()
    assert sites.excluded(job) == "burst[1-4],node[1-4]"
    sites.both(90)
    sites.tick()
    assert (sites.move(job).step, sites.excluded(job)) == (Step.RELEASING, "node2")


def test_a_stand_in_fails_as_its_cloud_attempt_does(sites):
    job, _ = standing_in(sites)
    for fake in sites.cloud.jobs.values():
        fake.result = 7
    sites.both(90)
    sites.tick()
    assert outcome(sites, job) == "7\n"


def test_a_stand_in_that_runs_in_vain_finds_how_its_cloud_attempt_ended(sites):
    """Its user lifted the fence, so it starts again and again: each start may be its last."""
    job, _ = standing_in(sites)
    sites.both(90)
    fake = sites.onprem.jobs[job.ref.job_id.base]
    fake.state, fake.exclude, fake.restarts = "RUNNING", "", 20
    sites.tick()
    assert sites.move(job).step is Step.RELEASING
    assert outcome(sites, job) == "0\n"


def test_an_array_that_stands_in_has_ended_when_all_of_it_has(sites):
    """Its user lifted the fence: one element found its outcome, one came too early and waits."""
    job, _ = waited_for(sites, "afterok:{}_*(unfulfilled)", array="0-1")
    sites.tick()
    sites.both(40)
    sites.report(sites.target(job).submission_id, "gated", task=0, time=100.0)
    begun(sites, job, task=0)
    assert sites.move(job).stand_in
    sites.both(90)
    base = job.ref.job_id.base
    for task in (0, 1):
        sites.onprem.run(["scontrol", "update", f"JobId={base}_{task}", "TimeLimit=60"])
    fakes = {f.task: f for f in sites.onprem.jobs.values() if f.base == base}
    fakes[0].state, fakes[0].started, fakes[0].ends = "COMPLETED", 1, 2
    fakes[1].restarts = 1
    sites.tick()
    sites.tick()
    assert sites.move(job).step is Step.RELEASING
    assert fakes[1].state == "PENDING"
    assert (outcome(sites, job, ".task1"), fakes[1].exclude) == ("0\n", "")
    fakes[1].state, fakes[1].started, fakes[1].ends = "COMPLETED", 3, 4
    sites.tick()
    assert sites.move(job).step is Step.DONE


def test_the_ledger_has_each_end_of_an_array_that_stood_in(sites, monkeypatch):
    """Its last element ends right after the ledger was told that it runs."""
    job, _ = waited_for(sites, "afterok:{}_*(unfulfilled)", array="0-1")
    sites.tick()
    sites.both(40)
    sites.report(sites.target(job).submission_id, "gated", task=0, time=100.0)
    begun(sites, job, task=0)
    sites.both(90)
    sites.tick()
    assert sites.move(job).step is Step.RELEASING
    base = job.ref.job_id.base
    for task in (0, 1):
        sites.onprem.run(["scontrol", "update", f"JobId={base}_{task}", "TimeLimit=60"])
    fakes = {f.task: f for f in sites.onprem.jobs.values() if f.base == base}
    fakes[0].state, fakes[0].started, fakes[0].ends = "COMPLETED", 1, 2
    fakes[1].state, fakes[1].started = "RUNNING", 1

    def ends_then(*args, **kw):
        seen = look(*args, **kw)
        fakes[1].state, fakes[1].ends = "COMPLETED", 3
        return seen

    monkeypatch.setattr("hpcscale.burst.follow.look", ends_then)
    sites.tick()
    sites.tick()
    assert sites.move(job).step is Step.DONE
    ends = sites.ledger.elements(sites.ledger.attempt(job.submission_id))
    assert {k: e.state for k, e in ends.items()} == dict.fromkeys((0, 1), JobState.COMPLETED)


def test_a_stand_in_whose_cloud_attempt_is_cancelled_is_cancelled(sites):
    job, _ = standing_in(sites)
    client(sites, "lab-cloud").cancel(sites.target(job).job_id)
    sites.tick()
    assert sites.move(job).step is Step.DONE
    assert client(sites).show(job.ref.job_id).state is JobState.CANCELLED


def forget(fake):
    """Its controller died, has forgotten its start, and met what was left of it."""
    fake.state, fake.reason, fake.restarts = "PENDING", "launch failed requeued held", 1
    fake.started, fake.ends, fake.nodes, fake.held = None, None, [], True


def test_a_cloud_job_that_waits_again_after_its_end_is_over(sites):
    """Its controller died and forgot the start; what the job itself reported counts."""
    job, _ = standing_in(sites)
    target = sites.target(job)
    forget(sites.cloud.jobs[target.job_id.base])
    sites.tick()
    assert sites.move(job).step is Step.MOVED, "no report: Slurm may have had its reasons"
    sites.report(target.submission_id, "ended", exit_code=0, time=130.0)
    sites.tick()
    assert sites.move(job).step is Step.RELEASING
    assert sites.target(job).state is JobState.COMPLETED
    assert client(sites, "lab-cloud").show(target.job_id).state is JobState.CANCELLED
    assert outcome(sites, job) == "0\n"


@pytest.mark.parametrize("told_its_end", [True, False])
def test_a_cloud_job_that_was_cut_short_begins_again(sites, monkeypatch, told_its_end):
    """Its controller forgot the start, and ended what was left of it in the midst of its work."""
    job, _ = standing_in(sites)
    target = sites.target(job)
    fake = sites.cloud.jobs[target.job_id.base]
    forget(fake)
    if told_its_end:  # TERM came through, and Slurm said that it runs again
        sites.report(target.submission_id, "ended", exit_code=143, requeued=True, time=106.0)
    for _ in range(3):
        sites.tick()
    assert fake.held, "what is left of it may still be on its node"
    monkeypatch.setattr(held, "RELEASE_AFTER_S", 0)
    sites.tick()
    assert not fake.held
    assert sites.move(job).step is Step.MOVED
    sites.both(100)
    sites.tick()
    assert sites.move(job).step is Step.RELEASING
    assert outcome(sites, job) == "0\n"


@pytest.mark.parametrize("who", ["its user", "its site"])
def test_a_cloud_job_that_was_cut_short_has_failed_where_nobody_requeues(sites, monkeypatch, who):
    monkeypatch.setattr(held, "RELEASE_AFTER_S", 0)
    directives = {"no-requeue": None} if who == "its user" else {}
    job, _ = standing_in(sites, directives=directives)
    target = sites.target(job)
    if who == "its site":
        facts = client(sites, "lab-cloud").facts()
        facts = msgspec.structs.replace(facts, config={**facts.config, "JobRequeue": "0"})
        monkeypatch.setattr(client(sites, "lab-cloud"), "facts", lambda: facts)
    forget(sites.cloud.jobs[target.job_id.base])
    for _ in range(3):
        sites.tick()
    assert sites.move(job).step is Step.RELEASING
    assert sites.target(job).state is JobState.NODE_FAIL
    assert client(sites, "lab-cloud").show(target.job_id).state is JobState.CANCELLED
    assert outcome(sites, job) == "1\n"


def test_elements_that_are_held_end_or_begin_as_they_reported(sites, monkeypatch):
    job = at_the_gate(sites, array="0-1")
    begun(sites, job, task=0)
    target = sites.target(job)
    fakes = {f.task: f for f in sites.cloud.jobs.values() if f.base == target.job_id.base}
    assert set(fakes) == {0, 1}
    for fake in fakes.values():
        forget(fake)
    now = sites.cloud.now()
    sites.report(target.submission_id, "gated", task=0, time=now - 9)
    sites.report(target.submission_id, task=0, time=now - 5)
    sites.report(target.submission_id, "ended", task=0, exit_code=0, time=now)
    for _ in range(2):
        sites.tick()
    assert fakes[0].state == "CANCELLED", "it has told its end"
    assert sites.ledger.elements(target)[0].state is JobState.COMPLETED
    assert fakes[1].held, "a start of it may be under way"
    monkeypatch.setattr(held, "RELEASE_AFTER_S", 0)
    sites.tick()
    assert not fakes[1].held
    assert len(sites.ledger.events(job.run_id, "attempt.released")) == 1
    sites.both(100)
    sites.tick()
    assert sites.move(job).step is Step.DONE
    states = {task: e.state for task, e in sites.ledger.elements(target).items()}
    assert states == {0: JobState.COMPLETED, 1: JobState.COMPLETED}


def test_an_element_that_was_ended_at_its_gate_has_not_run(sites, monkeypatch):
    """Its controller forgot the start, and ended what was left of it on its node."""
    monkeypatch.setattr(held, "RELEASE_AFTER_S", 0)
    job = at_the_gate(sites, array="0-1")
    begun(sites, job, task=0)
    target = sites.target(job)
    (fake,) = [f for f in sites.cloud.jobs.values() if (f.base, f.task) == (target.job_id.base, 1)]
    forget(fake)
    sites.report(target.submission_id, "gated", task=1, time=100.0)
    sites.report(target.submission_id, "ended", task=1, exit_code=143, time=106.0)
    for _ in range(3):
        sites.tick()
    assert not fake.held
    assert not sites.ledger.elements(target)[1].state.terminal


def test_a_job_that_is_held_before_it_began_is_released_so_that_it_begins(sites, monkeypatch):
    monkeypatch.setattr(held, "RELEASE_AFTER_S", 0)
    job = at_the_gate(sites)
    sites.tick()
    assert sites.move(job).step is Step.CANCELLING
    target = sites.target(job)
    fake = sites.cloud.jobs[target.job_id.base]
    forget(fake)
    sites.report(target.submission_id, "ended", exit_code=143, time=106.0)
    for _ in range(3):
        sites.tick()
    if sites.policy is FENCE_FIRST:  # it looks for a start until its command has begun
        assert sites.move(job).step is Step.FAILED
        return
    assert not fake.held
    assert sites.move(job).step is Step.CANCELLING
    assert client(sites).show(job.ref.job_id).state is JobState.PENDING


def test_a_command_that_does_not_begin_behind_its_open_gate_is_taken_back(sites):
    """Its controller forgot the start, and drained the nodes: nobody may come to set them free."""
    sites.policy = POLICY  # fence-first has looked for that since it was submitted
    job = at_the_gate(sites)
    sites.tick()
    assert sites.move(job).step is Step.CANCELLING
    target = sites.target(job)
    sites.cloud.jobs[target.job_id.base].state = "PENDING"
    sites.cloud.jobs[target.job_id.base].held = True
    sites.tick()
    assert sites.move(job).step is Step.CANCELLING
    move = sites.move(job)
    long_ago = utc_now() - dt.timedelta(seconds=move.boot_timeout_s + 1)
    aged = msgspec.structs.replace(move, updated_at=long_ago)
    after = Handover(sites.ledger, sites, sites.ledger.path.parent).advance(aged)
    assert after.step is Step.FAILED
    assert take(sites.cloud, target, target.submission_id).owner == CLOSED
    origin = sites.ledger.attempt(job.submission_id)
    assert take(sites.onprem, origin, job.submission_id).owner == job.submission_id


def test_a_user_who_cancels_the_stand_in_ends_both(sites):
    job, _ = standing_in(sites)
    client(sites).cancel(job.ref.job_id)
    for _ in range(2):
        sites.tick()
    assert sites.target(job).state is JobState.CANCELLED
    assert sites.move(job).step is Step.DONE


def test_cancel_of_the_run_ends_both(sites):
    job, _ = standing_in(sites)
    move = Handover(sites.ledger, sites, sites.ledger.path.parent).cancel(sites.move(job))
    assert move.step is Step.DONE
    assert sites.target(job).state is JobState.CANCELLED
    assert client(sites).show(job.ref.job_id).state is JobState.CANCELLED


def test_a_policy_may_refuse_what_others_wait_for(sites):
    sites.policy = msgspec.structs.replace(sites.policy, dependents=Dependents.REFUSE)
    job, other = waited_for(sites)
    decision_ = next(d for d in sites.tick().plan.decisions if d.run_id == job.run_id)
    assert decision_.action is Action.REFUSE
    assert f"{other} on lab-onprem depends on it" in decision_.reason


def test_what_a_stand_in_ends_with(tmp_path):
    with Sites(tmp_path).ledger as ledger:
        run = ledger.new_run(msgspec_spec(), site=ONPREM.name)
        attempt = ledger.new_attempt(
            run, site="x", submission_id="hs-" + "1" * 16, script="", script_sha256="0",
            run_dir="/x", comment="", array_size=None,
        )  # fmt: skip
        for state, code, signal, expected in [
            (JobState.COMPLETED, 0, 0, 0),
            (JobState.FAILED, 3, 0, 3),
            (JobState.FAILED, 0, 9, 137),
            (JobState.TIMEOUT, None, None, 1),
        ]:
            told = msgspec.structs.replace(attempt, state=state, exit_code=code, exit_signal=signal)
            assert exit_codes(ledger, told, None) == {"": expected}
        assert exit_codes(ledger, attempt, "1,3") == {".task1": 1, ".task3": 1}


def msgspec_spec():
    from hpcscale.spec import JobSpec

    return JobSpec(name="x", command=("true",))
