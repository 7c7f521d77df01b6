"""Two runs with ledgers of their own, answers that say nothing, clocks that jump, full disks."""

import contextlib
import shutil
from pathlib import Path

import msgspec
import pytest
from fake_sites import FENCE_FIRST, NODES, POLICY, Sites

from hpcscale.burst.claims import Word, decision, take
from hpcscale.burst.handover import Handover
from hpcscale.burst.moves import Moves, Step
from hpcscale.burst.run import tick
from hpcscale.errors import HpcscaleError, StateError
from hpcscale.ledger import Ledger
from hpcscale.slurm.transport import Completed
from hpcscale.slurm.types import JobState

STEPS = ["_submitting", "_submitted", "_fencing", "_claiming", "_opening", "_cancelling", "_moved"]


@pytest.fixture(params=[POLICY, FENCE_FIRST], ids=["gate-first", "fence-first"])
def sites(request, tmp_path, monkeypatch):
    monkeypatch.setattr("hpcscale.burst.acts.BEGIN_S", 0.0)
    sites = Sites(tmp_path)
    sites.policy = request.param
    sites.fill()
    yield sites
    sites.ledger.close()


@pytest.fixture
def gate_first(tmp_path, monkeypatch):
    """Where both orders take the same way."""
    monkeypatch.setattr("hpcscale.burst.acts.BEGIN_S", 0.0)
    sites = Sites(tmp_path)
    sites.fill()
    yield sites
    sites.ledger.close()


class Scripts:
    """What the scripts at both sites do: gate, claim, witness; called between any two steps."""

    def __init__(self, sites, job, ledgers):
        self.sites, self.job, self.ledgers = sites, job, ledgers
        self.witness = []

    def run(self):
        for ledger in self.ledgers:
            for attempt in ledger.attempts(self.job.run_id):
                if attempt.site != "lab-cloud" or attempt.job_id is None:
                    continue
                fake = self.sites.cloud.jobs.get(attempt.job_id.base)
                if fake is None or fake.state != "RUNNING":
                    continue
                self.report(ledger, attempt, "gated")
                if decision(self.sites.cloud, attempt) is Word.OPENED:
                    claim = take(self.sites.cloud, attempt, attempt.submission_id)
                    if claim.owner == attempt.submission_id and not self.reported(attempt):
                        self.witness.append(attempt.submission_id)
                        self.report(ledger, attempt, "started")

    def report(self, ledger, attempt, kind):
        kept, self.sites.ledger = self.sites.ledger, ledger
        self.sites.report(attempt.submission_id, kind, time=1.0)
        self.sites.ledger = kept

    def reported(self, attempt):
        return Path(f"{attempt.run_dir}/events/{attempt.submission_id}.0.started").exists()


@pytest.fixture
def two(sites, tmp_path):
    """A waiting job that two ledgers know."""
    job = sites.submit()
    copy = tmp_path / "other-login-node.sqlite3"
    shutil.copy(sites.ledger.path, copy)
    with Ledger.open(copy) as other:
        yield job, other, Scripts(sites, job, (sites.ledger, other))


def whole_way(sites, ledger, scripts, rounds=6):
    for _ in range(rounds):
        tick(ledger, sites.policy, sites)
        sites.both(8)  # a cloud job boots for 30 s, and lasts 60 s, at its gate too
        scripts.run()


@pytest.mark.parametrize("step", STEPS)
def test_a_slow_run_is_overtaken_at_each_step_by_one_with_another_ledger(sites, two, step):
    """The slow one has read, and acts on it only after the other has gone the whole way."""
    job, other, scripts = two
    original, armed = getattr(Handover, step), [True]

    def slow(self, move):
        if armed and self.ledger is sites.ledger:
            armed.clear()
            whole_way(sites, other, scripts)
        return original(self, move)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Handover, step, slow)
        whole_way(sites, sites.ledger, scripts)
    whole_way(sites, sites.ledger, scripts, 12)
    whole_way(sites, other, scripts, 1)
    assert not armed
    assert len(scripts.witness) == 1, scripts.witness
    assert sites.connections["lab-onprem"].client.show(job.ref.job_id).state is JobState.CANCELLED
    left = [j for j in sites.cloud.jobs.values() if j.state in {"PENDING", "RUNNING"}]
    assert not left
    states = [m.step for led in (sites.ledger, other) for m in Moves(led).of_run(job.run_id)]
    assert states.count(Step.DONE) >= 1
    assert all(s.settled for s in states), states


def test_two_runs_in_turn_with_ledgers_of_their_own(sites, two):
    job, other, scripts = two
    for _ in range(8):
        tick(sites.ledger, sites.policy, sites)
        tick(other, sites.policy, sites)
        sites.both(40)
        scripts.run()
    assert len(scripts.witness) == 1
    assert sites.connections["lab-onprem"].client.show(job.ref.job_id).state is JobState.CANCELLED


# --- answers that say nothing


@contextlib.contextmanager
def squeue_says(fake, returncode, stdout, stderr):
    """squeue is broken at a site; all other commands work."""
    original = fake.run

    def run(argv, **kw):
        if argv[0].rpartition("/")[2] == "squeue":
            return Completed(tuple(argv), returncode, stdout, stderr)
        return original(argv, **kw)

    fake.run = run
    try:
        yield
    finally:
        del fake.run


BROKEN = [(0, "", ""), (1, "", "slurm_load_jobs error: Socket timed out\n"), (0, "x y z\n", "")]


def at_its_gate(sites, job):
    """Its nodes are up; it lasts a minute, so no time is wasted."""
    fake = sites.cloud.jobs[sites.target(job).job_id.base]
    if fake.state == "CONFIGURING":
        sites.both(31)
    sites.report(sites.target(job).submission_id, "gated", time=100.0)


def stopped_before(sites, step):
    """A job whose move stands just before a step."""
    job = sites.submit()
    sites.both(60)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Handover, step, lambda self, move: move)
        for _ in range(3):
            sites.tick()
            if sites.move(job).target:
                at_its_gate(sites, job)
    return job


@pytest.mark.parametrize("broken", BROKEN)
@pytest.mark.parametrize("step", ["_submitting", "_fencing", "_claiming", "_cancelling"])
def test_an_empty_or_failing_squeue_on_prem_changes_nothing(gate_first, step, broken):
    sites = gate_first
    job = stopped_before(sites, step)
    before = sites.move(job).step
    excluded = sites.excluded(job)
    with squeue_says(sites.onprem, *broken):
        sites.tick()
    after = sites.move(job).step
    assert sites.connections["lab-onprem"].client.show(job.ref.job_id).state is JobState.PENDING
    assert (after, sites.excluded(job)) == (before, excluded)


@pytest.mark.parametrize("broken", BROKEN)
@pytest.mark.parametrize("step", ["_submitted", "_cancelling"])
def test_an_empty_or_failing_squeue_in_the_cloud_ends_nothing(gate_first, step, broken):
    sites = gate_first
    job = stopped_before(sites, step)
    with squeue_says(sites.cloud, *broken):
        sites.tick()
    assert sites.move(job).step not in {Step.ENDING, Step.FAILED, Step.CANCELLED, Step.WITHDRAWN}
    assert not sites.target(job).ended


def test_an_empty_squeue_begins_nothing(gate_first):
    sites = gate_first
    job = sites.submit()
    with squeue_says(sites.onprem, 0, "", ""):
        plan = sites.tick().plan
    assert "nothing is done on a guess" in plan.decisions[0].reason
    assert Moves(sites.ledger).of_run(job.run_id) == []


# --- clocks


@pytest.mark.parametrize("jump_s", [-7200, 7200])
@pytest.mark.parametrize("step", ["_submitting", "_claiming"])
def test_a_clock_that_jumps_does_no_harm(gate_first, monkeypatch, step, jump_s):
    """This machine's own: the sites' clocks stay. What a move compares are orders, not times."""
    sites = gate_first
    import datetime as dt

    from hpcscale.ledger import utc_now

    job = stopped_before(sites, step)
    real = utc_now
    for module in ("ledger", "ledger_rows", "burst.moves", "burst.acts", "burst.follow"):
        monkeypatch.setattr(
            f"hpcscale.{module}.utc_now", lambda: real() + dt.timedelta(seconds=jump_s)
        )
    sites.tick()
    at_its_gate(sites, job)
    sites.tick()
    sites.report(sites.target(job).submission_id, time=104.0)
    sites.tick()
    assert sites.move(job).step is Step.MOVED
    assert len(sites.cloud.jobs) == 1


@pytest.mark.parametrize("late", [False, True], ids=["our clock alone", "the site's too"])
def test_between_an_open_gate_and_its_command_one_clock_alone_ends_nothing(
    gate_first, monkeypatch, late
):
    sites = gate_first
    import datetime as dt

    from hpcscale.ledger import utc_now

    job = stopped_before(sites, "_cancelling")
    fake = sites.cloud.jobs[sites.target(job).job_id.base]
    assert (decision(sites.cloud, sites.target(job)), fake.state) == (Word.OPENED, "RUNNING")
    real = utc_now
    monkeypatch.setattr("hpcscale.burst.acts.utc_now", lambda: real() + dt.timedelta(hours=5))
    if late:
        fake.started -= sites.move(job).boot_timeout_s + 1
    sites.tick()
    move = Moves(sites.ledger).of_run(job.run_id)[0]
    if late:
        assert "of its gate's opening" in move.message
    else:
        assert move.step is Step.CANCELLING, move.message


def test_a_cancel_counts_whatever_the_clocks_say(gate_first, monkeypatch):
    sites = gate_first
    import datetime as dt

    from hpcscale.ledger import utc_now

    job = stopped_before(sites, "_claiming")
    real = utc_now
    for module in ("ledger", "ledger_records", "ledger_rows"):
        monkeypatch.setattr(f"hpcscale.{module}.utc_now", lambda: real() - dt.timedelta(hours=2))
    sites.ledger.event(job.run_id, "attempt.cancel", {"job": str(job.ref.job_id)})
    sites.tick()
    assert sites.move(job).step is Step.CANCELLED


def test_a_site_whose_clock_jumps_takes_back_at_worst(gate_first):
    sites = gate_first
    job = stopped_before(sites, "_submitted")
    sites.cloud.clock.advance(7 * 86400)  # past the boot timeout, the time limit, everything
    sites.tick()
    sites.tick()
    move = Moves(sites.ledger).of_run(job.run_id)[0]
    assert move.step in {Step.FAILED, Step.CANCELLING}
    if move.step is Step.FAILED:
        origin = sites.ledger.attempt(job.submission_id)
        assert take(sites.onprem, origin, job.submission_id).owner == job.submission_id


# --- full disks


def test_a_full_disk_under_the_ledger_stops_before_each_act(sites, monkeypatch):
    """Each step is on disk before its act: no room for the step, no act."""
    job = sites.submit()
    sites.both(60)
    original = Moves.save
    full = []

    def save(self, move, **changes):
        if len(full) % 2 == 0:  # every other write fails
            full.append(True)
            raise StateError("database or disk is full", where="ledger.sqlite3")
        full.append(False)
        return original(self, move, **changes)

    monkeypatch.setattr(Moves, "save", save)
    for _ in range(30):
        before = full.count(True)
        with contextlib.suppress(StateError):
            assert sites.tick().unwritten is (full.count(True) > before)
        if sites.move(job).target:
            sites.both(20)
            sites.report(sites.target(job).submission_id, "gated", time=100.0)
            if decision(sites.cloud, sites.target(job)) is Word.OPENED:
                sites.report(sites.target(job).submission_id, time=104.0)
        if sites.move(job).step is Step.MOVED:
            break
    assert sites.move(job).step is Step.MOVED, sites.move(job)
    assert len(sites.cloud.jobs) == 1
    assert True in full


def test_a_full_disk_on_prem_opens_nothing(gate_first, tmp_path):
    sites = gate_first
    job = stopped_before(sites, "_claiming")
    claims = tmp_path / "lab-onprem" / "claims"
    shutil.rmtree(claims)
    claims.write_text("no room")  # neither read nor written
    assert sites.tick().problems
    assert sites.move(job).step is Step.CLAIMING
    assert decision(sites.cloud, sites.target(job)) is None
    claims.unlink()
    sites.tick()
    assert sites.move(job).step is Step.CANCELLING


def test_no_record_no_fence(sites, tmp_path):
    job = stopped_before(sites, "_fencing")
    if sites.policy is FENCE_FIRST:
        assert sites.move(job).target is None
    claims = tmp_path / "lab-onprem" / "claims"
    shutil.rmtree(claims, ignore_errors=True)
    claims.write_text("no room")
    assert sites.tick().problems
    assert (sites.move(job).step, sites.excluded(job)) == (Step.FENCING, "")
    claims.unlink()
    sites.tick()
    assert sites.excluded(job) == NODES


# --- ids and users


def test_a_job_of_another_user_with_our_comment_is_not_ours(gate_first):
    """An id given out again, to somebody who copied the whole job with its comment."""
    sites = gate_first
    job = stopped_before(sites, "_claiming")
    fake = sites.onprem.jobs[job.ref.job_id.base]
    attempt = sites.ledger.attempt(job.submission_id)
    assert attempt.job_user == fake.user
    fake.user, fake.exclude = "somebody", ""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sites.onprem, "user", "somebody")
        for _ in range(3):
            with contextlib.suppress(HpcscaleError):
                sites.tick()
    assert (fake.state, fake.exclude) == ("PENDING", "")
    assert msgspec.structs.asdict(sites.move(job))["step"] is not Step.MOVED
