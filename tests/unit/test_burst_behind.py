"""Forgotten jobs that wait for others, and those that are found late, on two faked sites."""

import datetime as dt

import msgspec
import pytest
from fake_sites import POLICY, Sites

from hpcscale.burst import resubmit as module
from hpcscale.burst.resubmit import REFUSED, resubmit
from hpcscale.ledger import Role
from hpcscale.slurm.types import Answer, JobState, JobStatus

LATE_S = 1200


@pytest.fixture
def sites(tmp_path, monkeypatch):
    monkeypatch.setattr("hpcscale.burst.acts.BEGIN_S", 0.0)
    sites = Sites(tmp_path)
    sites.fill()
    sites.policy = msgspec.structs.replace(POLICY, to=())
    yield sites
    sites.ledger.close()


def forget(sites, *jobs):
    """Its controller died: it knows nothing of them, and gives their ids out again."""
    bases = {job.ref.job_id.base for job in jobs}
    for number, fake in list(sites.onprem.jobs.items()):
        if fake.base in bases:
            del sites.onprem.jobs[number]
    sites.onprem._next = min(bases)


def again(sites):
    return resubmit(sites.ledger, sites, ["lab-onprem"])


def attempts(sites, job):
    return sites.ledger.attempts(job.run_id)


def fake(sites, attempt):
    (found,) = [f for f in sites.onprem.jobs.values() if f.base == attempt.job_id.base]
    return found


def strangers(sites):
    return sites.batch("--job-name=strangers")


@pytest.mark.parametrize("by", ["run", "id", "name"])
def test_those_behind_it_wait_for_what_it_is_now(sites, by):
    first = sites.submit()
    text = {"run": first.run_id, "id": str(first.ref.job_id), "name": "urgent"}[by]
    second = sites.submit(after=(f"afterok:{text}",))
    forget(sites, first, second)
    other = strangers(sites)
    assert other == str(first.ref.job_id), "its id names a stranger's job now"
    for _ in range(2):
        assert not again(sites)
    one, two = attempts(sites, first)[-1], attempts(sites, second)[-1]
    assert (one.number, two.number) == (2, 2)
    assert fake(sites, two).dependency == f"afterok:{one.job_id}"


def test_all_kinds_and_all_terms(sites):
    first, other = sites.submit(), sites.submit()
    third = sites.submit(
        after=(f"afterany:{first.run_id}:{other.run_id}", f"afternotok:{first.run_id}", "singleton")
    )
    forget(sites, first, other, third)
    for _ in range(2):
        assert not again(sites)
    a, b = (attempts(sites, job)[-1].job_id for job in (first, other))
    wanted = f"afterany:{a},afterany:{b},afternotok:{a},singleton"
    assert fake(sites, attempts(sites, third)[-1]).dependency == wanted


def moved_away(sites, first):
    """As a run whose job was forgotten while it moved: it is alive in the cloud alone."""
    old = attempts(sites, first)[0]
    new = sites.ledger.new_attempt(
        sites.ledger.run(first.run_id), site="lab-cloud", submission_id="hs-" + "7" * 16,
        script=old.script, script_sha256=old.script_sha256, run_dir=old.run_dir, comment="",
        role=Role.BURST, num_nodes=1, gpus=1, time_limit_s=60, array_size=None,
        gpu_hour_usd=None, staged=old.staged,
    )  # fmt: skip
    sites.ledger.set_forgotten(old, "moved")
    return new


@pytest.mark.parametrize(
    ("kind", "end", "begins"),
    [
        ("afterok", JobState.COMPLETED, True),
        ("afterok", JobState.FAILED, False),
        ("afternotok", JobState.FAILED, True),
        ("afternotok", JobState.COMPLETED, False),
        ("afterany", JobState.FAILED, True),
    ],
)
def test_behind_one_that_runs_elsewhere_it_comes_once_that_has_ended(sites, kind, end, begins):
    first = sites.submit()
    second = sites.submit(after=(f"{kind}:{first.run_id}",))
    forget(sites, first, second)
    cloud = moved_away(sites, first)
    for _ in range(2):
        assert not again(sites)
    assert len(attempts(sites, second)) == 1, "Slurm here cannot wait for it"
    cloud = sites.ledger.set_submitted(cloud, first.ref.job_id)
    status = JobStatus(job_id=first.ref.job_id, state=end, raw_state=end.value)
    sites.ledger.record_status(cloud, status)
    again(sites)
    assert (len(attempts(sites, second)) == 2) is begins
    if begins:
        assert fake(sites, attempts(sites, second)[-1]).dependency == ""
    else:
        (told,) = sites.ledger.events(second.run_id, REFUSED)
        assert "which ended" in told.data["why"]
        assert attempts(sites, second)[0].ended, "nobody waits for it for ever"
        assert "not submitted again" in attempts(sites, second)[0].reason


def test_a_singleton_comes_behind_one_of_its_name_that_runs_elsewhere(sites):
    first = sites.submit()
    second = sites.submit(after=("singleton",))
    forget(sites, first, second)
    cloud = moved_away(sites, first)
    again(sites)
    assert len(attempts(sites, second)) == 1
    sites.ledger.set_forgotten(cloud, "over")
    again(sites)
    assert fake(sites, attempts(sites, second)[-1]).dependency in {"singleton", ""}


def test_behind_a_stranger_whose_id_was_given_out_again_it_is_not_submitted(sites):
    stranger = strangers(sites)
    job = sites.submit(after=(f"afterok:{stranger}",))
    for number, known in list(sites.onprem.jobs.items()):
        if known.base >= int(stranger):
            del sites.onprem.jobs[number]
    sites.onprem._next = int(stranger)
    sites.both(5)
    assert strangers(sites) == stranger
    again(sites)
    assert len(attempts(sites, job)) == 1
    assert "another job by now" in attempts(sites, job)[0].reason


def test_behind_a_stranger_who_is_still_there_it_waits_again(sites):
    stranger = strangers(sites)
    job = sites.submit(after=(f"afterok:{stranger}",))
    forget(sites, job)
    assert not again(sites)
    assert fake(sites, attempts(sites, job)[-1]).dependency == f"afterok:{stranger}"


# --- found late: cron came after MinJobAge


def late(sites, monkeypatch):
    """Later than Slurm shows what has ended, by both clocks."""
    sites.both(LATE_S)
    now = module.utc_now
    monkeypatch.setattr(module, "utc_now", lambda: now() + dt.timedelta(seconds=LATE_S))


def test_what_may_have_been_purged_is_left_alone(sites, monkeypatch):
    job = sites.submit()
    base = job.ref.job_id.base
    for number, known in list(sites.onprem.jobs.items()):
        if known.base == base:
            del sites.onprem.jobs[number]
    late(sites, monkeypatch)
    strangers(sites)
    again(sites)
    assert len(attempts(sites, job)) == 1, "its user may have cancelled it"


@pytest.mark.parametrize("who", ["a stranger", "an earlier id of its user's"])
def test_what_ids_that_came_again_show_to_be_forgotten_is_submitted_again(sites, monkeypatch, who):
    before = sites.submit()
    job = sites.submit()
    forget(sites, before, job)
    late(sites, monkeypatch)
    if who == "a stranger":  # has exactly its id, and is seen by that
        sites.onprem._next = job.ref.job_id.base
        assert strangers(sites) == str(job.ref.job_id)
    else:  # its user is seen to have a lower one
        done = sites.onprem.run(
            ["sbatch", "--parsable", "--job-name=later"], stdin="#!/bin/sh\nsleep 99999\n"
        )
        assert int(done.stdout) < job.ref.job_id.base
    again(sites)
    assert len(attempts(sites, job)) == 2
    again(sites)
    assert len(attempts(sites, job)) == 2


def test_a_requeued_job_with_a_lower_id_shows_nothing(sites, monkeypatch):
    older = sites.submit()
    job = sites.submit()
    known = sites.onprem.jobs
    for number in [n for n, f in known.items() if f.base == job.ref.job_id.base]:
        del known[number]
    late(sites, monkeypatch)
    for one in known.values():
        if one.base == older.ref.job_id.base:
            one.submitted, one.restarts = sites.onprem.now(), 1
    again(sites)
    assert len(attempts(sites, job)) == 1


@pytest.mark.parametrize(
    ("boot", "record", "expected"),
    [
        ("after", None, 2),
        ("after", JobState.PENDING, 2),
        ("after", JobState.CANCELLED, 1),
        ("before", None, 1),
        ("unknown", None, 1),
        ("after", "no answer", 1),
    ],
)
def test_what_accounting_lacks_is_forgotten(sites, monkeypatch, boot, record, expected):
    job = sites.submit()
    client = sites.connections["lab-onprem"].client
    status = msgspec.structs.replace(client.show(job.ref.job_id), comment="", submit_time=None)
    base = job.ref.job_id.base
    for number, known in list(sites.onprem.jobs.items()):
        if known.base == base:
            del sites.onprem.jobs[number]
    booted = {"after": 4_000_000_000, "before": 1000, "unknown": "Unknown"}[boot]
    facts = client.facts()
    facts = msgspec.structs.replace(facts, config={**facts.config, "BOOT_TIME": str(booted)})
    monkeypatch.setattr(client, "facts", lambda: facts)

    def history(ids, *, since):
        if record == "no answer":
            return Answer({}, complete=False)
        if record is None:
            return Answer({}, complete=True)
        found = msgspec.structs.replace(status, state=record)
        return Answer({str(job.ref.job_id): found}, complete=True)

    monkeypatch.setattr(client, "history", history)
    late(sites, monkeypatch)
    again(sites)
    assert len(attempts(sites, job)) == expected
