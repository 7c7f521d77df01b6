"""Observe: absence is no evidence, one squeue a site, nobody else's job."""

import datetime as dt

import msgspec
import pytest
from fake_site import FakeSite

from hpcscale.cancelled import note_asked, note_taken
from hpcscale.cli.cancel import _cancel
from hpcscale.errors import NotFoundError, NotThisJobError, SubmitUnknownError
from hpcscale.judge import is_past_of
from hpcscale.ledger import utc_now
from hpcscale.observe import observe
from hpcscale.slurm.types import Answer, JobState, JobStatus
from hpcscale.spec import Resources
from hpcscale.units import JobId
from hpcscale.verify import mismatch, require_same


@pytest.fixture
def site(tmp_path):
    made = FakeSite(tmp_path)
    yield made
    made.ledger.close()


def test_a_job_is_followed_to_its_end(site):
    got = site.submit("sleep 20\nexit 3")
    assert site.see(got).state is JobState.RUNNING
    site.slurm.advance(30)
    attempt = site.see(got)
    assert attempt.state is JobState.FAILED
    assert (attempt.ended, attempt.exit_code) == (True, 3)
    assert attempt.nodes == "node1"
    assert attempt.cost_usd is not None
    assert [e.data["to"] for e in site.ledger.events(got.run_id, "attempt.state")] == [
        "RUNNING",
        "FAILED",
    ]


def test_one_squeue_whatever_the_number_of_jobs(site):
    for _ in range(30):
        site.submit()
    before = site.count("squeue")
    site.observe()
    assert site.count("squeue") == before + 1
    assert site.count("sacct") == 0


def test_a_job_that_is_not_listed_is_unknown_and_keeps_its_last_state(site):
    got, _other = site.submit(), site.submit()
    assert site.see(got).state is JobState.RUNNING
    before = utc_now()
    site.observe()
    site.forget(got)
    attempt = site.see(got)
    assert (attempt.state, attempt.last_state) == (JobState.UNKNOWN, JobState.RUNNING)
    assert not attempt.ended
    assert attempt.seen_at is not None
    assert before <= attempt.seen_at <= utc_now()
    again = site.see(got)
    assert again == attempt, "asking again changes nothing"


def test_a_site_that_lists_nothing_changes_nothing(site, monkeypatch):
    got = site.submit()
    attempt = site.see(got)
    site.forget(got)
    monkeypatch.setattr(site.slurm, "_squeue", lambda *_: (0, "", ""))
    snapshot = site.observe()
    assert snapshot.silent == ("onprem",)
    assert site.ledger.attempt(got.submission_id) == attempt


@pytest.mark.parametrize("id_is_anothers", [False, True])
def test_in_an_empty_queue_a_job_of_which_squeue_says_there_is_none_is_unknown(
    site, monkeypatch, id_is_anothers
):
    got = site.submit()
    site.see(got)
    site.forget(got)
    if id_is_anothers:  # which is not listed to us
        site.slurm._next = got.ref.job_id.base
        site.slurm.run(["sbatch", "--parsable"], stdin="#!/bin/sh\nsleep 9\n")
        assert site.connection.client.show(got.ref.job_id) is not None
        monkeypatch.setattr(site.connection.client, "jobs", lambda *_: Answer({}, complete=True))
    snapshot = site.observe()
    assert snapshot.silent == ()
    assert site.ledger.attempt(got.submission_id).state is JobState.UNKNOWN


def cancel(site, submission, task=None, *, forget=False):
    attempt = site.ledger.attempt(submission.submission_id)
    return _cancel(site.ledger, lambda _: site.connection, attempt, task, forget=forget)


def drop(site, submission, task):
    """Slurm keeps no record of this element any more."""
    for number, job in list(site.slurm.jobs.items()):
        if job.base == submission.ref.job_id.base:
            job.tasks = [t for t in job.tasks if t != task]
            if job.task == task:
                del site.slurm.jobs[number]


def waiting(site, **fields):
    """A job that waits: others hold all nodes."""
    for _ in range(len(site.slurm.node_names) * max(1, site.slurm.gpus)):
        site.submit("sleep 10000")
    return site.submit(**fields)


@pytest.mark.parametrize("observed", [False, True])
def test_what_we_cancelled_while_it_waited_and_is_purged_since_is_cancelled(site, observed):
    got = waiting(site)
    job_id = got.ref.job_id
    if observed:
        assert site.see(got).state is JobState.PENDING
    note_asked(site.ledger, got.attempt, job_id, JobState.PENDING)
    assert site.connection.client.cancel(job_id)
    note_taken(site.ledger, got.attempt, job_id, JobState.PENDING)
    site.forget(got)  # MinJobAge
    attempt = site.see(got)
    assert (attempt.state, attempt.ended) == (JobState.CANCELLED, True)
    assert attempt.cost_usd == 0
    assert "while it waited" in attempt.reason


@pytest.mark.parametrize("why", ["not asked", "not taken", "ran", "seen running", "reported"])
def test_what_may_have_run_or_nobody_cancelled_stays_unknown(site, why):
    runs = why in {"ran", "seen running", "reported"}
    got = site.submit("sleep 10000") if runs else waiting(site)
    job_id = got.ref.job_id
    if why == "seen running":
        assert site.see(got).state is JobState.RUNNING
    if why == "reported":
        site.report(got, "started")
    if why != "not asked":
        note_asked(site.ledger, got.attempt, job_id, JobState.PENDING)
    if why not in {"not asked", "not taken"}:
        state = JobState.RUNNING if why == "ran" else JobState.PENDING
        note_taken(site.ledger, got.attempt, job_id, state)
    site.submit()
    site.forget(got)
    attempt = site.see(got)
    assert (attempt.state, attempt.ended) == (JobState.UNKNOWN, False)


def test_an_element_that_was_cancelled_while_it_waited_has_ended(site):
    got = waiting(site, array="0-2")
    assert cancel(site, got, 0) == "cancelled"
    elements = site.ledger.elements(site.see(got))
    assert [elements[i].state.value for i in range(3)] == ["CANCELLED", "PENDING", "PENDING"]
    assert cancel(site, got, 0) == "had already ended: CANCELLED"
    assert cancel(site, got) == "cancelled"
    attempt = site.see(got)
    assert (attempt.state, attempt.ended) == (JobState.CANCELLED, True)


def test_an_element_is_not_cancelled_by_the_cancel_of_another(site):
    got = waiting(site, array="0-2")
    site.see(got)
    assert cancel(site, got, 0) == "cancelled"
    drop(site, got, 1)
    assert site.ledger.elements(site.see(got))[1].state is JobState.UNKNOWN


def test_the_record_of_a_lost_element_can_be_closed(site):
    got = waiting(site, array="0-1")
    site.see(got)
    drop(site, got, 1)
    with pytest.raises(NotFoundError, match="its end was not seen") as caught:
        cancel(site, got, 1)
    assert f"--forget {got.ref}_1" in caught.value.hint
    assert cancel(site, got, 1, forget=True).startswith("forgotten")
    assert site.ledger.elements(got.attempt)[1].state is JobState.CANCELLED
    assert cancel(site, got, 0, forget=True) == "cancelled", "what Slurm lists is ended"
    assert site.see(got).ended


def test_of_an_array_with_a_lost_element_the_run_can_be_closed(site):
    got = site.submit("sleep 5", array="0-1")
    site.see(got)
    drop(site, got, 1)
    site.slurm.advance(10)
    assert not site.see(got).ended
    with pytest.raises(NotFoundError, match="element 1, and its end was not seen") as caught:
        cancel(site, got)
    assert f"--forget {got.run_id}" in caught.value.hint
    assert cancel(site, got, forget=True).startswith("forgotten")
    attempt = site.see(got)
    assert attempt.ended
    states = [e.state.value for _, e in sorted(site.ledger.elements(attempt).items())]
    assert states == ["COMPLETED", "CANCELLED"]


@pytest.mark.parametrize("fault", ["stop", "hang"])
def test_a_site_that_fails_changes_nothing_and_is_told(site, fault):
    got = site.submit()
    attempt = site.see(got)
    answered = site.ledger.site_answers()["onprem"].answered_at
    getattr(site.slurm, fault)()
    snapshot = site.observe()
    assert "onprem" in snapshot.failed
    assert site.ledger.attempt(got.submission_id) == attempt
    answer = site.ledger.site_answers()["onprem"]
    assert answer.answered_at == answered
    assert answer.error


def test_one_site_down_hides_no_other(site, tmp_path):
    cloud = FakeSite(tmp_path, "cloud")
    here, there = site.submit("sleep 5"), cloud.submit()
    cloud.slurm.stop()
    site.slurm.advance(10)

    def connections(name):
        return {"onprem": site, "cloud": cloud}[name].connection

    snapshot = observe(site.ledger, connections)
    assert list(snapshot.failed) == ["cloud"]
    assert site.ledger.attempt(here.submission_id).state is JobState.COMPLETED
    assert site.ledger.attempt(there.submission_id).state is JobState.PENDING
    cloud.ledger.close()


def test_a_site_without_a_profile_is_an_answer_too(site):
    site.submit()

    def connections(name):
        raise KeyError(name)

    assert "KeyError" in observe(site.ledger, connections).failed["onprem"]


@pytest.mark.parametrize(("code", "state"), [(0, JobState.COMPLETED), (7, JobState.FAILED)])
def test_where_slurm_has_forgotten_the_jobs_own_report_tells(site, code, state):
    got = site.submit()
    site.observe()
    site.report(got, "started", nodes="node1")
    site.report(got, "ended", exit_code=code, requeued=False)
    site.forget(got)
    attempt = site.see(got)
    assert (attempt.state, attempt.exit_code, attempt.ended) == (state, code, True)


def test_a_report_of_a_requeue_is_no_end(site):
    got, _other = site.submit(), site.submit()
    site.observe()
    site.report(got, "ended", exit_code=0, requeued=True)
    site.forget(got)
    assert site.see(got).state is JobState.UNKNOWN


def test_slurms_word_wins_over_the_jobs_own(site):
    got = site.submit("sleep 50")
    site.report(got, "ended", exit_code=0, requeued=False)
    assert site.see(got).state is JobState.RUNNING


def test_a_report_that_somebody_spoilt_is_no_report(site):
    got, _other = site.submit(), site.submit()
    site.observe()
    events = site.state_dir / "runs" / got.run_id / "events"
    for name, text in (("0.ended", "{not json"), ("1.ended", "[]"), ("x.ended", "{}")):
        (events / f"{got.submission_id}.{name}").write_text(text)
    site.forget(got)
    assert site.see(got).state is JobState.UNKNOWN


def test_a_requeued_job_goes_on(site):
    got = site.submit("sleep 50")
    site.observe()
    site.slurm.advance(1)
    site.connection.client.requeue(got.ref.job_id)
    assert site.see(got).state is JobState.PENDING
    site.slurm.advance(30)
    attempt = site.see(got)
    assert (attempt.state, attempt.restarts) == (JobState.RUNNING, 1)


# --- the id that is given out again


def crash_after_submit(site):
    site.submit(name="filler")
    site.slurm.advance(6)  # the state is written, and not again for five seconds
    got = site.submit(name="mine")
    site.observe()
    site.slurm.crash()
    return got


def test_a_job_lost_in_a_crash_is_not_the_next_one_of_its_id(site):
    got = crash_after_submit(site)
    stranger = site.submit(name="stranger")
    assert stranger.ref == got.ref, "the crash gives the id away again"
    assert site.see(got).state is JobState.UNKNOWN
    assert site.ledger.attempt(stranger.submission_id).state is JobState.RUNNING


def test_an_act_on_a_strangers_job_is_refused(site):
    got = crash_after_submit(site)
    site.submit(name="stranger")
    with pytest.raises(NotThisJobError, match="another job") as caught:
        require_same(site.ledger.attempt(got.submission_id), site.connection.client, got.ref.job_id)
    assert caught.value.exit_code == 4


def test_a_job_that_is_gone_is_none(site):
    got = site.submit()
    site.forget(got)
    assert require_same(got.attempt, site.connection.client, got.ref.job_id) is None


def test_user_and_submit_time_must_agree(site):
    got = site.submit()
    attempt = site.see(got)
    status = site.connection.client.show(got.ref.job_id)
    assert status is not None
    assert mismatch(attempt, status) is None
    later = status.submit_time + dt.timedelta(seconds=1)

    def other(**changes):
        fields = {name: getattr(status, name) for name in JobStatus.__slots__}
        return mismatch(attempt, JobStatus(**{**fields, **changes}))

    assert "comment" in other(comment="hpcscale=hs-ffffffffffffffff")
    assert "user" in other(user="mallory")
    assert "submitted" in other(submit_time=later)
    assert other(submit_time=later, restarts=1) is None, "a requeue sets it anew"
    earlier = status.submit_time - dt.timedelta(1)
    assert "submitted" in other(submit_time=earlier, restarts=1)
    attempt = msgspec.structs.replace(attempt, restarts=2)
    assert other(submit_time=earlier, restarts=1) is None, "its controller forgot a requeue"
    assert other(submit_time=later, restarts=2) is None, "and it was requeued once more"


# --- sbatch that gave no answer


def lost(site):
    site.slurm.lose_next_submit_answer()
    with pytest.raises(SubmitUnknownError):
        site.submit()
    return site.ledger.open_attempts()[-1]


def never(site, monkeypatch):
    monkeypatch.setattr(
        site.connection.client, "sbatch", lambda *_, **__: (_ for _ in ()).throw(OSError("cut"))
    )
    with pytest.raises(OSError, match="cut"):
        site.submit()
    monkeypatch.undo()
    return site.ledger.open_attempts()[-1]


def test_an_array_that_began_behind_a_lost_answer_is_known_by_its_reports(site):
    """Its controller has forgotten it since: without its id its move would wait for ever."""
    site.slurm.lose_next_submit_answer()
    with pytest.raises(SubmitUnknownError):
        site.submit(array="0-1")
    attempt = site.ledger.open_attempts()[-1]
    base = min(job.base for job in site.slurm.jobs.values())
    (site.state_dir / "runs" / attempt.run_id / "events").mkdir(parents=True, exist_ok=True)
    site.report(attempt, "gated", task=0, job=f"{base}_0")
    site.slurm.jobs.clear()
    site.submit()  # so that something is listed
    site.observe()
    after = site.ledger.attempt(attempt.submission_id)
    assert (str(after.job_id), after.ended) == (str(base), False)


def age(monkeypatch, seconds):
    later = utc_now() + dt.timedelta(seconds=seconds)
    monkeypatch.setattr("hpcscale.judge.utc_now", lambda: later)


def test_what_never_arrived_is_said_only_after_its_bound(site, monkeypatch):
    site.submit()
    attempt = never(site, monkeypatch)
    assert attempt.state is JobState.SUBMIT_UNKNOWN
    site.observe()
    assert not site.ledger.attempt(attempt.submission_id).ended
    age(monkeypatch, 700)
    site.observe()
    attempt = site.ledger.attempt(attempt.submission_id)
    assert (attempt.state, attempt.reason) == (JobState.REFUSED, "never reached Slurm")


def test_no_answer_says_nothing_of_what_never_arrived(site, monkeypatch):
    attempt = never(site, monkeypatch)
    age(monkeypatch, 700)
    site.slurm.stop()
    site.observe()
    assert site.ledger.attempt(attempt.submission_id) == attempt


def test_a_lost_job_is_found_by_its_own_report(site):
    attempt = lost(site)
    events = site.state_dir / "runs" / attempt.run_id / "events"
    for kind, more in (("started", ""), ("ended", ', "exit_code": 0, "requeued": false')):
        (events / f"{attempt.submission_id}.0.{kind}").write_text(f'{{"job": "1"{more}}}')
    site.slurm.jobs.clear()
    site.observe()
    attempt = site.ledger.attempt(attempt.submission_id)
    assert attempt.job_id == JobId(1)
    assert attempt.state is JobState.COMPLETED


def test_a_process_that_still_copies_is_left_alone(site, monkeypatch):
    run = site.ledger.new_run(site.rendered().spec, site="onprem")
    attempt = site.ledger.new_attempt(
        run,
        site="onprem",
        submission_id="hs-0123456789abcdef",
        script="",
        script_sha256="x",
        run_dir=str(site.state_dir / "runs" / run.run_id),
        comment="",
    )
    age(monkeypatch, 5000)
    site.observe()  # this very process is the submitter, and it lives
    assert site.ledger.attempt(attempt.submission_id).state is JobState.SUBMITTING
    monkeypatch.setattr("hpcscale.judge._still_submitting", lambda *_: False)
    site.observe()
    assert site.ledger.attempt(attempt.submission_id).state is JobState.REFUSED


# --- arrays


def test_an_array_is_counted_and_ends_with_its_last_element(site):
    got = site.submit("sleep 10", array="0-5%2", resources=Resources(nodes=1, gpus_per_node=1))
    attempt = site.see(got)
    assert attempt.state is JobState.RUNNING
    counts = site.ledger.element_counts()[attempt.attempt_id]
    assert counts == {JobState.RUNNING: 2, JobState.PENDING: 4}
    site.slurm.advance(12)
    site.observe()
    counts = site.ledger.element_counts()[attempt.attempt_id]
    assert counts == {JobState.COMPLETED: 2, JobState.RUNNING: 2, JobState.PENDING: 2}
    site.slurm.advance(60)
    attempt = site.see(got)
    assert (attempt.state, attempt.ended) == (JobState.COMPLETED, True)
    assert len(site.ledger.elements(attempt)) == 6


def test_an_array_with_a_failed_element_has_failed(site):
    got = site.submit("sleep 10", array="0,2")
    site.observe()
    site.report(got, "ended", task=0, exit_code=0)
    site.report(got, "ended", task=2, exit_code=5)
    site.forget(got)
    attempt = site.see(got)
    assert (attempt.state, attempt.exit_code, attempt.ended) == (JobState.FAILED, 5, True)


def test_elements_that_are_not_listed_are_unknown(site):
    got, _other = site.submit(array="0-1"), site.submit()
    site.observe()
    site.report(got, "ended", task=0, exit_code=0)
    site.forget(got)
    attempt = site.see(got)
    assert attempt.state is JobState.UNKNOWN
    assert not attempt.ended
    assert {t: e.state for t, e in site.ledger.elements(attempt).items()} == {
        0: JobState.COMPLETED,
        1: JobState.UNKNOWN,
    }


# --- money


def test_a_past_job_without_a_comment_is_ours_by_the_submit_time_that_was_seen_alone(site):
    """A controller that died may give the id out again within seconds, to the same user too."""
    attempt = site.ledger.attempt(site.submit().submission_id)
    at = attempt.created_at + dt.timedelta(seconds=3)
    past = JobStatus(
        job_id=attempt.job_id, state=JobState.COMPLETED, raw_state="COMPLETED", submit_time=at
    )
    never_seen = msgspec.structs.replace(attempt, submit_time=None)
    assert not is_past_of(never_seen, past)
    assert is_past_of(msgspec.structs.replace(attempt, submit_time=at), past)
