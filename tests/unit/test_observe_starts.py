"""Observe: every start of a job is paid for, also where its controller forgot it."""

import datetime as dt
from decimal import Decimal

import msgspec
import pytest
from fake_site import FakeSite

from hpcscale.cost import spent_usd
from hpcscale.ledger import utc_now
from hpcscale.ledger_rows import FORGOTTEN_S, changed_fields
from hpcscale.slurm.types import JobState, JobStatus
from hpcscale.units import JobId


@pytest.fixture
def site(tmp_path):
    made = FakeSite(tmp_path)
    yield made
    made.ledger.close()


def test_all_starts_of_a_requeued_job_are_paid_for(site):
    got = site.submit("sleep 600")
    site.see(got)
    site.slurm.advance(100)
    site.connection.client.requeue(got.ref.job_id)
    site.slurm.advance(20)  # past the delay: it runs again
    assert site.see(got).restarts == 1
    site.slurm.advance(700)
    attempt = site.see(got)
    assert attempt.ended
    assert attempt.earlier_s == pytest.approx(100, abs=2)
    whole = spent_usd(attempt.gpus, attempt.earlier_s + 600, attempt.gpu_hour_usd)
    assert attempt.cost_usd == pytest.approx(whole, abs=whole / 50)


def test_a_start_that_its_controller_forgot_is_paid_for(site):
    got = site.submit("sleep 600")
    assert site.see(got).state is JobState.RUNNING
    before = site.ledger.attempt(got.submission_id)
    forgotten = JobStatus(
        job_id=got.ref.job_id,
        state=JobState.PENDING,
        raw_state="PENDING",
        observed_at=before.start_time + dt.timedelta(seconds=7),
    )
    assert site.ledger.record_status(before, forgotten).earlier_s == pytest.approx(7)
    # our clock may have jumped meanwhile, and a controller forgets seconds
    later = msgspec.structs.replace(
        forgotten, observed_at=before.start_time + dt.timedelta(hours=2)
    )
    assert changed_fields(before, later)["earlier_s"] == FORGOTTEN_S
    # cancelled as it waits: Slurm gives it a start and an end, which are one moment
    at = before.start_time + dt.timedelta(seconds=5)
    cancelled = msgspec.structs.replace(
        forgotten, state=JobState.CANCELLED, raw_state="CANCELLED", start_time=at, end_time=at
    )
    assert changed_fields(before, cancelled)["earlier_s"] == pytest.approx(5)
    # a job that goes on has one start
    on = msgspec.structs.replace(forgotten, state=JobState.RUNNING, start_time=before.start_time)
    assert "earlier_s" not in changed_fields(before, on)


@pytest.mark.parametrize("restarts", [0, 1])
def test_both_starts_of_a_job_that_ran_again_after_its_end_are_paid_for(site, restarts):
    """Requeued after its end, or its controller forgot that it had run."""
    got = site.submit("sleep 600")
    site.see(got)
    site.slurm.advance(700)
    ended = site.see(got)
    assert ended.ended
    ran_s = (ended.end_time - ended.start_time).total_seconds()
    assert ran_s > 0
    start = ended.end_time + dt.timedelta(seconds=9)
    again = JobStatus(
        job_id=got.ref.job_id, state=JobState.CANCELLED, raw_state="CANCELLED", restarts=restarts,
        start_time=start, end_time=start + dt.timedelta(seconds=ran_s),
    )  # fmt: skip
    recorded = site.ledger.record_status(ended, again)
    assert (recorded.earlier_s, recorded.state) == (ran_s, ended.state), "the first end stands"
    assert recorded.cost_usd == pytest.approx(2 * ended.cost_usd, abs=Decimal("0.01"))
    assert site.ledger.record_status(recorded, again) == recorded, "once"
    # Slurm says the same of its end once more
    same = msgspec.structs.replace(again, start_time=ended.start_time, end_time=ended.end_time)
    assert "earlier_s" not in changed_fields(ended, same)


def test_a_start_that_nobody_watched_is_known_by_its_reports(site):
    got, _other = site.submit("sleep 600"), site.submit()
    site.observe()
    now = utc_now()
    for restart, kind, at in ((0, "started", 0), (0, "ended", 50), (1, "started", 60)):
        time = (now + dt.timedelta(seconds=at)).timestamp()
        site.report(got, kind, restart=restart, exit_code=0, requeued=True, time=time)
    end = (now + dt.timedelta(seconds=100)).timestamp()
    site.report(got, "ended", restart=1, exit_code=0, requeued=False, time=end)
    site.forget(got)
    attempt = site.see(got)
    assert attempt.ended
    assert attempt.earlier_s == pytest.approx(50)


def reported(site, got, *events, task=None):
    """Reports of one job or element: (restart, kind, seconds from now)."""
    now = utc_now()
    last = max(restart for restart, *_ in events)
    for restart, kind, at in events:
        time = (now + dt.timedelta(seconds=at)).timestamp()
        site.report(got, kind, task=task, restart=restart, time=time,
                    exit_code=0, requeued=restart < last)  # fmt: skip


def test_what_stood_at_its_gate_is_paid_for_from_there(site):
    got, _other = site.submit("sleep 600"), site.submit()
    reported(site, got, (0, "gated", 0), (0, "started", 300), (0, "ended", 400))
    site.forget(got)
    attempt = site.see(got)
    assert attempt.ended
    assert attempt.cost_usd == spent_usd(attempt.gpus, 400, attempt.gpu_hour_usd)


@pytest.mark.parametrize("watched", [True, False])
def test_elements_that_only_their_reports_tell_of_are_paid_for(site, watched):
    got, _other = site.submit("sleep 600", array="0-1"), site.submit()
    if watched:
        assert site.see(got).state is JobState.RUNNING
    for task in (0, 1):
        reported(site, got, (0, "gated", 0), (0, "started", 300), (0, "ended", 400), task=task)
    site.forget(got)
    attempt = site.see(got)
    assert attempt.ended
    whole = spent_usd(attempt.gpus, 800, attempt.gpu_hour_usd)
    assert attempt.cost_usd == pytest.approx(whole, abs=whole / 100)


@pytest.mark.parametrize("listed", [True, False])
def test_all_starts_of_an_element_are_paid_for(site, listed):
    got, _other = site.submit("sleep 600", array="0-1"), site.submit()
    site.see(got)
    first = JobId(got.ref.job_id.base, 0)
    site.connection.client.requeue(first)
    site.slurm.advance(700)
    assert site.connection.client.show(first).restarts == 1
    reported(site, got, (0, "started", 0), (0, "ended", 200), (1, "started", 210),
             (1, "ended", 810), task=0)  # fmt: skip
    if not listed:
        reported(site, got, (0, "started", 0), (0, "ended", 600), task=1)
        site.forget(got)
    attempt = site.see(got)
    assert attempt.ended
    whole = spent_usd(attempt.gpus, 200 + 2 * 600, attempt.gpu_hour_usd)
    assert attempt.cost_usd == pytest.approx(whole, abs=whole / 100)
