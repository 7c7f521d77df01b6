"""The handover on two faked sites: what real Slurm does too seldom to wait for."""

import datetime as dt
import shlex
import sys
from pathlib import Path

import msgspec
import pytest
from fake_sites import FENCE_FIRST, NODES, Sites

from hpcscale.burst.asked import spec_for
from hpcscale.burst.claims import Word, claims_dir, decision
from hpcscale.burst.handover import Handover
from hpcscale.burst.moves import Move, Moves, Step
from hpcscale.burst.plan import Action
from hpcscale.burst.policy import Dependents
from hpcscale.burst.reap import reap
from hpcscale.errors import BurstRefusedError, UnreachableError
from hpcscale.executor import HpcscaleExecutor
from hpcscale.render import render
from hpcscale.site import load_site
from hpcscale.slurm.remote import link_once, mkdir
from hpcscale.slurm.types import JobState
from hpcscale.spec import Checkpoint, Function, JobSpec, Resources, SecretSource
from hpcscale.units import JobId


@pytest.fixture
def sites(tmp_path, monkeypatch):
    monkeypatch.setattr("hpcscale.burst.acts.BEGIN_S", 0.0)  # a fake's script begins when told
    sites = Sites(tmp_path)
    sites.fill()
    yield sites
    sites.ledger.close()


def test_the_whole_way(sites):
    job = sites.submit()
    sites.tick()
    assert sites.move(job).step is Step.SUBMITTED
    assert sites.excluded(job) == "", "it may still start while the cloud's nodes boot"
    sites.both(10)
    sites.tick()
    assert sites.move(job).step is Step.SUBMITTED, "its nodes still boot"
    sites.both(30)
    sites.tick()
    assert sites.move(job).step is Step.SUBMITTED, "up, but its script is not at the gate"
    sites.begin(job)
    assert sites.move(job).step is Step.MOVED
    assert sites.ledger.attempt(job.submission_id).state is JobState.CANCELLED
    sites.both(90)
    sites.tick()
    assert sites.move(job).step is Step.DONE
    target = sites.target(job)
    assert target.state is JobState.COMPLETED
    assert target.cost_usd is not None
    assert len(sites.cloud.jobs) == 1


def test_the_secrets_of_the_on_prem_job_go_with_it(sites, monkeypatch):
    monkeypatch.setenv("TOKEN", "s3cret")
    job = sites.submit(secrets={"TOKEN": SecretSource(kind="env", name="TOKEN")})
    kept = Path(job.run_dir, "secrets", job.submission_id)
    assert kept.is_dir()
    sites.tick()
    sites.both(60)
    sites.begin(job)
    assert sites.move(job).step is Step.MOVED
    assert not kept.exists()


def test_a_function_moves_to_no_other_python(sites, tmp_path):
    """Asked of the site before anything is submitted there."""
    pickles, here = tmp_path / "pickles", f"{sys.version_info[0]}.{sys.version_info[1]}"
    pickles.mkdir()
    words = {"inputs": {"submitit": str(pickles)}, "outputs": {"submitit": f"{tmp_path}/out/"}}
    python = shlex.quote(sys.executable)
    old = sites.submit(function=Function(python=python, pickled_by="2.7"), **words)
    same = sites.submit(function=Function(python=python, pickled_by=here), **words)
    sites.tick()
    move = sites.move(old)
    assert (move.step, move.target) == (Step.FAILED, None)
    assert f"is Python {here}, and the function was pickled by 2.7" in move.message
    assert sites.move(same).step is Step.SUBMITTED, sites.move(same)
    assert len(sites.cloud.jobs) == 1


def test_a_gate_without_all_nodes_up_is_not_opened(sites):
    job = sites.submit()
    sites.tick()
    sites.report(sites.target(job).submission_id, "gated")
    sites.both(5)  # CONFIGURING: the first node may be up, the others boot
    sites.tick()
    assert sites.move(job).step is Step.SUBMITTED
    assert sites.connections["lab-onprem"].client.show(job.ref.job_id).state is JobState.PENDING


def test_a_controller_that_forgets_the_fence_gets_it_again(sites):
    sites.policy = FENCE_FIRST
    job = sites.submit()
    sites.onprem.advance(10)  # the job is saved, the fence is not
    sites.tick()
    assert sites.excluded(job) == NODES
    sites.onprem.crash()
    assert sites.excluded(job) == ""
    sites.tick()
    assert sites.excluded(job) == NODES


def test_a_start_counts_also_where_a_controller_forgot_a_requeue(sites):
    """It ran at restart 1 after the controller had come back from a restart count of 2."""
    job = sites.submit()
    sites.tick()
    fake = sites.onprem.jobs[job.ref.job_id.base]
    was = (fake.submitted, fake.eligible)
    fake.restarts, fake.submitted, fake.eligible = 2, was[0] + 5, was[1] + 500
    sites.both(40)
    sites.tick()
    assert sites.ledger.attempt(job.submission_id).restarts == 2
    fake.restarts, fake.submitted, fake.eligible = 1, was[0] + 2, was[1]
    origin = sites.ledger.attempt(job.submission_id)
    for start in (0, 1):
        name = f"{claims_dir(origin)}/{origin.run_id}.{origin.submission_id}.{start}"
        mkdir(sites.onprem, claims_dir(origin))
        assert link_once(sites.onprem, name, f"{origin.submission_id} {start}\n".encode())
    fake.state, fake.started, fake.ends = "COMPLETED", was[0] + 10, was[0] + 20
    sites.report(sites.target(job).submission_id, "gated")
    sites.tick()
    assert sites.move(job).step is Step.WITHDRAWN, sites.move(job)
    assert decision(sites.cloud, sites.target(job)) is Word.CLOSED


def test_a_controller_that_forgets_the_cancel_is_told_again(sites):
    job = sites.submit()
    sites.onprem.advance(10)
    sites.tick()
    sites.both(40)
    sites.onprem.advance(5)
    sites.begin(job)
    assert sites.move(job).step is Step.MOVED
    sites.onprem.crash()
    assert sites.connections["lab-onprem"].client.show(job.ref.job_id).state is JobState.PENDING
    sites.tick()
    assert sites.connections["lab-onprem"].client.show(job.ref.job_id).state is JobState.CANCELLED
    assert "move.origin_back" in [e.kind for e in sites.ledger.events(job.run_id)]


@pytest.mark.parametrize("who", ["run", "reap"])
def test_a_cloud_controller_that_forgets_the_end_does_not_run_it_again(sites, who):
    job = sites.submit()
    sites.tick()
    sites.both(40)
    sites.begin(job)
    sites.both(90)
    sites.tick()
    assert sites.move(job).step is Step.DONE
    (fake,) = sites.cloud.jobs.values()
    assert fake.state == "COMPLETED"
    # it was RUNNING when the controller last saved; no node knows of it, so it is requeued
    fake.state, fake.restarts, fake.started, fake.ends = "PENDING", 1, None, None
    if who == "run":
        sites.tick()
        assert "move.target_back" in [e.kind for e in sites.ledger.events(job.run_id)]
    else:
        ((one,), problems) = reap(sites.ledger, sites, ["lab-cloud"])
        assert (one.ended, one.decision, problems) == (True, "opened", [])
        assert "its end (COMPLETED) was noted" in one.why
    assert fake.state == "CANCELLED"
    assert sites.target(job).state is JobState.COMPLETED


def test_an_id_that_slurm_gave_to_a_stranger_is_not_touched(sites):
    sites.onprem.advance(10)
    job = sites.submit()
    sites.tick()
    sites.onprem.crash()  # the job was never saved; its id goes to the next one
    assert sites.batch("-N4") == str(job.ref.job_id)
    stranger = sites.connections["lab-onprem"].client.show(job.ref.job_id)
    sites.tick()
    sites.both(40)
    sites.begin(job)
    assert sites.move(job).step is Step.MOVED
    after = sites.connections["lab-onprem"].client.show(job.ref.job_id)
    assert (after.state, after.exc_nodes) == (stranger.state, "")


def test_a_lost_answer_of_sbatch_is_resolved_by_the_submission_id(sites):
    job = sites.submit()
    sites.cloud.lose_next_submit_answer()
    sites.tick()
    assert sites.move(job).step is Step.SUBMITTING
    sites.both(1)
    sites.tick()
    assert sites.move(job).step is Step.SUBMITTED
    assert len(sites.cloud.jobs) == 1


def test_an_unreachable_cloud_never_lifts_the_fence_of_a_job_that_may_run_there(sites):
    sites.policy = FENCE_FIRST
    job = sites.submit()
    sites.tick()
    sites.down.add("lab-cloud")
    sites.both(7200)  # far past boot_timeout
    sites.tick()
    assert sites.move(job).step is Step.CANCELLING
    assert sites.excluded(job) == NODES


def test_a_failed_move_rests_longer_each_time(sites):
    job = sites.submit()
    sites.cloud.boot_s = 99999
    rests = []
    for _ in range(3):
        sites.tick()
        sites.both(200)  # past boot_timeout
        sites.tick()
        sites.both(1)
        sites.tick()
        move = sites.move(job)
        assert move.step is Step.FAILED
        rests.append(round((move.retry_at - sites.onprem.clock.now()).total_seconds(), -2))
        sites.onprem.clock.advance((move.retry_at - sites.onprem.clock.now()).total_seconds() + 1)
    assert rests == [1800, 3600, 7200]
    assert sites.excluded(job) == ""


def test_a_job_that_was_requeued_before_is_not_taken_for_started(sites):
    """The reports of an earlier start are of an earlier life."""
    job = sites.submit()
    sites.report(job.submission_id)
    sites.onprem.jobs[job.ref.job_id.base].restarts = 1
    sites.tick()
    sites.both(40)
    sites.begin(job)
    assert sites.move(job).step is Step.MOVED


def test_a_user_cancel_while_the_on_prem_job_is_being_cancelled_ends_both(sites):
    job = sites.submit()
    sites.tick()
    sites.both(40)
    sites.report(sites.target(job).submission_id)
    moves = Moves(sites.ledger)
    moves.save(sites.move(job), step=Step.CANCELLING)  # killed just here
    sites.ledger.event(job.run_id, "attempt.cancel", submission_id=job.submission_id)
    sites.connections["lab-onprem"].client.cancel(job.ref.job_id)
    sites.tick()
    assert sites.move(job).step is Step.CANCELLED
    assert sites.target(job).state is JobState.CANCELLED


def test_undo_and_undo_again(sites):
    sites.policy = FENCE_FIRST
    job = sites.submit()
    sites.tick()
    handover = Handover(sites.ledger, sites, sites.ledger.path.parent)
    move = handover.undo(sites.move(job))
    assert move.step is Step.FAILED
    assert sites.excluded(job) == ""
    assert move.message == "taken back by its user"
    with pytest.raises(BurstRefusedError, match="no fence stands"):
        handover.undo(move)


def test_a_fence_that_stands_though_its_move_is_over_can_be_lifted(sites):
    job = sites.submit()
    client = sites.connections["lab-onprem"].client
    client.update(job.ref.job_id, {"ExcNodeList": NODES})
    moves = Moves(sites.ledger)
    move = moves.begin(
        Move(
            run_id=job.run_id,
            from_site="lab-onprem",
            to_site="lab-cloud",
            origin=job.submission_id,
            step=Step.FAILED,
            old_exc="node2",
            fence=NODES,
        )
    )
    Handover(sites.ledger, sites, sites.ledger.path.parent).undo(move)
    assert sites.excluded(job) == "node2"


def test_one_broken_move_does_not_stop_the_others(sites, monkeypatch):
    broken, fine = sites.submit(), sites.submit()
    original = Handover._submit

    def submit_one(self, move, connection):
        if move.run_id == broken.run_id:
            raise UnreachableError("cut")
        return original(self, move, connection)

    monkeypatch.setattr(Handover, "_submit", submit_one)
    sites.tick()
    assert sites.move(broken).step is Step.SUBMITTING
    assert sites.move(fine).step is Step.SUBMITTED


class Patched:
    """A client whose answers say more of one job: FakeSlurm knows no dependencies."""

    def __init__(self, real, job_id, /, **changes):
        self.real, self.job_id, self.changes = real, str(job_id), changes

    def __getattr__(self, name):
        return getattr(self.real, name)

    def jobs(self, *args, **kw):
        answer = self.real.jobs(*args, **kw)
        answer.jobs[self.job_id] = msgspec.structs.replace(answer.jobs[self.job_id], **self.changes)
        return answer


def decision_on(sites, job, patched_job, **changes):
    connection = sites.connections["lab-onprem"]
    connection.client = Patched(connection.client, patched_job.ref.job_id, **changes)
    plan = sites.tick().plan
    assert not [m for m in Moves(sites.ledger).all() if m.run_id == job.run_id]
    return next(d for d in plan.decisions if d.run_id == job.run_id)


@pytest.mark.parametrize(
    "dependency", ["afterany:{}(unfulfilled)", "afterok:7:{},after:9", "singleton"]
)
def test_a_job_that_others_wait_for_does_not_move(sites, dependency):
    job, other = sites.submit(), sites.submit()
    text = dependency.format(job.ref.job_id)
    sites.policy = msgspec.structs.replace(sites.policy, dependents=Dependents.REFUSE)
    decision = decision_on(sites, job, other, dependency=text, reason="Dependency")
    assert decision.action is Action.REFUSE
    assert f"{other.ref.job_id} on lab-onprem depends on it" in decision.reason


@pytest.mark.parametrize(
    ("changes", "action", "says"),
    [
        ({"dependency": "afterok:7(failed)"}, Action.REFUSE, "waits for other jobs"),
        ({"reason": "DependencyNeverSatisfied"}, Action.STAY, "not yet allowed"),
        ({"reason": "launch failed requeued held"}, Action.STAY, "held"),
        ({"comment": "hpcscale=hs-0000000000000000"}, Action.STAY, "gave no word"),
        ({"job_id": JobId(2, het_offset=0)}, Action.REFUSE, "heterogeneous job"),
    ],
)
def test_what_keeps_a_job_at_its_site(sites, changes, action, says):
    job = sites.submit()
    decision = decision_on(sites, job, job, **changes)
    assert decision.action is action
    assert says in decision.reason


def test_jobs_with_a_past_do_not_move(sites):
    checkpointed = sites.submit(checkpoint=Checkpoint(dir="elsewhere"))
    sites.onprem.jobs[checkpointed.ref.job_id.base].restarts = 1
    plan = sites.tick().plan
    reasons = {d.run_id: d.reason for d in plan.decisions}
    assert "it has run here before" in reasons[checkpointed.run_id]
    assert Moves(sites.ledger).all() == []


def test_the_cloud_gets_its_own_words_and_the_same_limit():
    spec = JobSpec(
        command=("true",),
        site="lab-onprem",
        partition="gpu",
        account="physics",
        qos="high",
        constraint="h100",
        after=("afterok:lab-onprem:7",),
        directives={"dependency": "afterok:7", "requeue": None},
    )
    moved = spec_for(spec, 5400, load_site("lab-cloud").site)
    assert (moved.site, moved.partition, moved.account, moved.qos) == (
        "lab-cloud",
        None,
        None,
        None,
    )
    assert (moved.constraint, moved.after) == (None, ())
    assert moved.resources.time_limit_s == 5400
    assert moved.directives == {"requeue": None, "wait-all-nodes": "1"}


def test_executor_gives_a_submitit_job(sites, tmp_path):
    connection = sites.connections["lab-cloud"]
    executor = HpcscaleExecutor(tmp_path / "jobs", connection=connection, ledger=sites.ledger)
    spec = JobSpec(
        name="x",
        command=("sleep", "5"),
        workdir=str(sites.project),
        resources=Resources(time_limit_s=600),
    )
    job = executor.submit_rendered(render(spec, connection.site))
    assert str(job.ref) == f"lab-cloud:{job.job_id}"
    assert not job.done(force_check=True)
    assert job.state in {"PENDING", "CONFIGURING"}
    sites.cloud.advance(60)
    # submitit asks anew after a millisecond at the earliest, and a fake's minute may be shorter
    assert any(job.done(force_check=True) for _ in range(10_000))
    assert job.result() == {"ref": str(job.ref), "state": "COMPLETED", "exit_code": 0}
    assert job.exception() is None
    assert dt.datetime.now(dt.UTC) > sites.ledger.attempt(job.submission_id).created_at
    assert job.job_id == str(JobId.parse(job.job_id))
