"""The ledger: what is written stays, what is broken is said and left as it is."""

import datetime as dt
import os
import sqlite3
import stat
import subprocess
import sys
import threading
from decimal import Decimal

import msgspec
import pytest

from hpcscale import ledger_schema
from hpcscale.errors import NotFoundError, StateError, UsageError
from hpcscale.ledger import MOVED_TO, Element, Ledger, Role, SiteAnswer, ledger_path, new_run_id
from hpcscale.ledger_rows import changed_fields
from hpcscale.slurm.types import JobState, JobStatus
from hpcscale.spec import BurstMode, BurstTerms, JobSpec, SecretSource
from hpcscale.units import JobId

UGLY = "a'b\"\n$(touch /tmp/x)`id`;--\x1b[31m%s"
NOW = dt.datetime(2026, 11, 22, 12, 0, tzinfo=dt.UTC)


@pytest.fixture
def ledger(tmp_path):
    with Ledger.open(tmp_path / "state" / "ledger.sqlite3") as made:
        yield made


def add(ledger, *, site="onprem", run=None, number=0, job=None, name="train", **fields):
    run = run or ledger.new_run(JobSpec(name=name, command=("true",)), site=site)
    attempt = ledger.new_attempt(
        run,
        site=site,
        submission_id=f"hs-{os.urandom(8).hex()}",
        script="#!/bin/sh\n",
        script_sha256="0" * 64,
        run_dir=f"/state/runs/{run.run_id}",
        comment="hpcscale=…",
        **fields,
    )
    return ledger.set_submitted(attempt, JobId.parse(job)) if job else attempt


def status(job="1", state=JobState.RUNNING, **fields):
    return JobStatus(job_id=JobId.parse(job), state=state, raw_state=state.value, **fields)


# --- what a status changes

SEEN = {
    "reason": "None", "user": "me", "nodes": "n[1-2]", "num_nodes": 2, "gpus": 4, "restarts": 1,
    "time_limit_s": 600, "submit_time": NOW, "start_time": NOW,
}  # fmt: skip
LATER = {
    "raw_state": "STOPPED", "reason": "Priority", "user": "you", "nodes": "n[1-3]", "num_nodes": 3,
    "restarts": 2, "time_limit_s": 900, "submit_time": NOW + dt.timedelta(seconds=1),
    "start_time": None, "state": JobState.COMPLETING,
}  # fmt: skip


def test_the_same_status_again_changes_nothing(ledger):
    attempt = ledger.record_status(add(ledger, job="1"), status(**SEEN))
    assert changed_fields(attempt, status(**SEEN)) == {}


@pytest.mark.parametrize("name", LATER)
def test_each_field_of_a_status_is_seen_to_change(ledger, name):
    attempt = ledger.record_status(add(ledger, job="1"), status(**SEEN))
    later = msgspec.structs.replace(status(**SEEN), **{name: LATER[name]})
    column = {"user": "job_user"}.get(name, name)
    assert column in changed_fields(attempt, later)


def test_gpus_are_noted_once(ledger):
    attempt = ledger.record_status(add(ledger, job="1"), status(**{**SEEN, "gpus": 0}))
    assert changed_fields(attempt, status(**SEEN)) == {"gpus": 4}


# --- what is written


def test_where_a_job_went_is_not_forgotten_for_why_it_waited(ledger):
    told = status(state=JobState.CANCELLED, reason=f"{MOVED_TO}lab-cloud:7")
    moved = ledger.record_status(add(ledger, job="1"), told)
    again = msgspec.structs.replace(told, reason="BadConstraints")
    assert "reason" not in changed_fields(moved, again)
    assert changed_fields(moved, msgspec.structs.replace(again, state=JobState.FAILED))["reason"]


def test_a_run_comes_back_as_it_went_in(ledger):
    spec = JobSpec(
        name=UGLY,
        command=("python", "a b", "$(x)"),
        secrets={"TOKEN": SecretSource(kind="env", name="TOKEN")},
        burst=BurstTerms(mode=BurstMode.AUTO, deadline=NOW, max_cost_usd=Decimal("0.1")),
    )
    run = ledger.new_run(spec, site="onprem", cwd="/home/me")
    again = ledger.run(run.run_id)
    assert again == run
    assert again.spec == spec
    assert again.deadline == NOW
    assert again.max_cost_usd == Decimal("0.1")


def test_an_attempt_stands_before_it_has_an_id(ledger):
    attempt = add(ledger, gpu_hour_usd=Decimal("2.10"), array_size=3, staged={"code": "/c"})
    assert attempt.state is JobState.SUBMITTING
    assert attempt.job_id is None
    assert attempt.ref is None
    assert attempt.gpu_hour_usd == Decimal("2.10")
    assert attempt.staged == {"code": "/c"}
    assert [a.submission_id for a in ledger.open_attempts("onprem")] == [attempt.submission_id]


def test_attempts_of_a_run_are_numbered_and_keep_their_role(ledger):
    first = add(ledger, job="7")
    second = add(ledger, run=ledger.run(first.run_id), site="cloud", role=Role.BURST)
    assert [(a.number, a.role, a.site) for a in ledger.attempts(first.run_id)] == [
        (1, Role.ONPREM, "onprem"),
        (2, Role.BURST, "cloud"),
    ]
    assert second.number == 2


def test_a_refused_attempt_is_over(ledger):
    attempt = ledger.set_refused(add(ledger), "Invalid qos")
    assert attempt.ended
    assert attempt.state is JobState.REFUSED
    assert attempt.reason == "Invalid qos"
    assert ledger.open_attempts() == []


def test_a_status_is_recorded_and_an_equal_one_changes_nothing(ledger):
    attempt = add(ledger, job="1")
    seen = status(nodes="n[1-2]", num_nodes=2, user="me", submit_time=NOW, start_time=NOW)
    assert ledger.record([(attempt, seen)]) == 1
    attempt = ledger.attempt(attempt.submission_id)
    assert (attempt.state, attempt.nodes, attempt.job_user) == (JobState.RUNNING, "n[1-2]", "me")
    assert attempt.submit_time == NOW
    events = len(ledger.events())
    assert ledger.record([(attempt, seen)]) == 0
    assert len(ledger.events()) == events


def test_an_end_is_recorded_with_its_exit_code(ledger):
    attempt = ledger.record_status(
        add(ledger, job="1"), status(state=JobState.FAILED, exit_code=(3, 0), end_time=NOW)
    )
    assert attempt.ended
    assert (attempt.exit_code, attempt.exit_signal, attempt.end_time) == (3, 0, NOW)


def test_elements_of_an_array_are_counted(ledger):
    attempt = add(ledger, job="4", array_size=3)
    ledger.record_elements(
        attempt,
        [
            Element(task=0, state=JobState.COMPLETED, exit_code=0, end_time=NOW),
            Element(task=2, state=JobState.RUNNING, nodes="n1"),
        ],
        {},
    )
    assert ledger.elements(attempt)[2].nodes == "n1"
    assert ledger.element_counts() == {
        attempt.attempt_id: {JobState.COMPLETED: 1, JobState.RUNNING: 1}
    }


def test_an_older_sight_of_an_element_does_not_take_its_end_back(ledger):
    attempt = add(ledger, job="4", array_size=1)
    runs = Element(task=0, state=JobState.RUNNING, nodes="n1")
    ledger.record_elements(attempt, [runs], {})
    before = ledger.elements(attempt)
    ended = Element(task=0, state=JobState.COMPLETED, exit_code=0, end_time=NOW)
    ledger.record_elements(attempt, [ended], before)
    ledger.record_elements(attempt, [msgspec.structs.replace(runs, reason="None")], before)
    assert ledger.elements(attempt) == {0: ended}
    ledger.record_elements(
        attempt, [runs], {0: ended}
    )  # who knows of the end may say that it is back
    assert ledger.elements(attempt) == {0: runs}


def test_a_site_that_fails_keeps_its_last_answer(ledger):
    later = NOW + dt.timedelta(hours=1)
    ledger.record_answers([SiteAnswer(site="onprem", asked_at=NOW, answered_at=NOW)])
    ledger.record_answers([SiteAnswer(site="onprem", asked_at=later, error="no answer")])
    answer = ledger.site_answers()["onprem"]
    assert (answer.answered_at, answer.asked_at, answer.error) == (NOW, later, "no answer")


def test_events_and_decisions_are_append_only(ledger):
    ledger.event(None, "fence", {"old": ""})
    ledger.decide("burst", "waited too long", {"at": NOW, "usd": Decimal("1.5")})
    assert ledger.decisions()[0].data["usd"] == "1.5"
    db = sqlite3.connect(ledger.path)
    for statement in (
        "UPDATE events SET kind = 'x'",
        "DELETE FROM events",
        "UPDATE decisions SET reason = 'x'",
        "DELETE FROM decisions",
    ):
        with pytest.raises(sqlite3.IntegrityError, match="append-only"):
            db.execute(statement)
    db.close()


def test_nobody_else_can_read_it(ledger):
    assert stat.S_IMODE(ledger.path.stat().st_mode) == 0o600


def test_no_write_ahead_log_is_used(ledger):
    add(ledger)
    db = sqlite3.connect(ledger.path)
    assert db.execute("PRAGMA journal_mode").fetchone() == ("delete",)
    db.close()
    assert sorted(p.name for p in ledger.path.parent.iterdir()) == ["ledger.sqlite3"]


# --- finding


def test_a_job_is_found_by_every_name_it_has(ledger):
    attempt = add(ledger, job="123", name=UGLY)
    other = add(ledger, site="cloud", job="500", name="other")
    for text in (
        attempt.run_id,
        attempt.run_id[:6],
        attempt.run_id.upper(),
        attempt.submission_id,
        "onprem:123",
        "123",
        f" {UGLY}\t",
    ):
        assert ledger.find(text).attempt_id == attempt.attempt_id, text
    assert ledger.find("cloud:500").attempt_id == other.attempt_id
    assert ledger.resolve(attempt.run_id).whole_run


def test_elements_are_found_and_those_that_are_none_are_not(ledger):
    run = ledger.new_run(JobSpec(name="a", command=("true",), array="0-6:2,7"), site="onprem")
    add(ledger, run=run, job="123", array_size=5)
    found = ledger.resolve("onprem:123_7")
    assert (found.task, found.whole_run) == (7, False)
    add(ledger, job="500")
    for text, says in (("onprem:123_5", "no element 5"), ("500_0", "onprem:500 is no array")):
        with pytest.raises(NotFoundError, match=says):
            ledger.resolve(text)


def test_an_id_given_out_twice_means_the_newest_job(ledger):
    old = ledger.record_status(add(ledger, job="9"), status("9", JobState.COMPLETED))
    new = add(ledger, job="9")
    assert old.attempt_id != new.attempt_id
    assert ledger.find("onprem:9").attempt_id == new.attempt_id


def test_the_same_id_at_two_sites_must_be_told_apart(ledger):
    add(ledger, job="5")
    add(ledger, site="cloud", job="5")
    with pytest.raises(UsageError, match="2 sites") as caught:
        ledger.find("5")
    assert "cloud:5" in (caught.value.hint or "")
    assert ledger.find("cloud:5").site == "cloud"


def test_a_name_of_several_runs_is_ambiguous(ledger):
    first, second = add(ledger), add(ledger)
    with pytest.raises(UsageError, match="fits 2 runs") as caught:
        ledger.find("train")
    assert first.run_id in (caught.value.hint or "")
    assert second.run_id in (caught.value.hint or "")


@pytest.mark.parametrize("text", ["nothing", "", "site:1", "%", "_", "r%", "0", "1_2"])
def test_an_unknown_job_is_not_found(ledger, text):
    add(ledger, job="123")
    with pytest.raises(NotFoundError) as caught:
        ledger.find(text)
    assert caught.value.hint


def test_a_run_means_its_attempt_that_goes_on(ledger):
    first = add(ledger, job="1")
    second = add(ledger, run=ledger.run(first.run_id), site="cloud", job="2")
    assert ledger.find(first.run_id).site == "cloud"
    ledger.record_status(second, status("2", JobState.CANCELLED))
    assert ledger.find(first.run_id).site == "onprem"


# --- broken files


def broken(tmp_path, make):
    path = tmp_path / "ledger.sqlite3"
    make(path)
    before = path.read_bytes()
    with pytest.raises(StateError) as caught, Ledger.open(path) as ledger:
        ledger.all_attempts()
    assert path.read_bytes() == before, "a broken ledger must be left as it is"
    assert str(path) in str(caught.value)
    assert caught.value.hint
    return caught.value


def full(path, runs=50):
    with Ledger.open(path) as ledger:
        for _ in range(runs):
            add(ledger)


@pytest.mark.parametrize("size", [1, 100, 5000, 4096 * 9])
def test_a_ledger_cut_anywhere_is_refused(tmp_path, size):
    def make(path):
        full(path)
        os.truncate(path, size)

    broken(tmp_path, make)


def test_a_damaged_page_is_said(tmp_path):
    def make(path):
        full(path)
        with path.open("r+b") as file:
            file.seek(4096)
            file.write(b"\xff" * (path.stat().st_size - 4096))

    assert "damaged" in str(broken(tmp_path, make))


def test_a_file_of_another_kind_is_refused(tmp_path):
    assert "damaged" in str(broken(tmp_path, lambda p: p.write_text("my thesis\n" * 1000)))


def test_another_programs_database_is_refused(tmp_path):
    def make(path):
        db = sqlite3.connect(path)
        db.execute("CREATE TABLE photos (name TEXT)")
        db.commit()
        db.close()

    assert "not hpcscale's" in str(broken(tmp_path, make))


def test_a_newer_ledger_is_refused(tmp_path):
    def make(path):
        full(path, 1)
        db = sqlite3.connect(path)
        db.execute(f"PRAGMA user_version = {len(ledger_schema.MIGRATIONS) + 1}")
        db.close()

    assert "newer hpcscale" in str(broken(tmp_path, make))


def test_an_empty_file_is_a_damaged_ledger(tmp_path):
    # ours is made whole at once: what is empty was cut short, and its jobs must not be forgotten
    assert "damaged" in str(broken(tmp_path, lambda path: path.touch()))


def test_two_that_make_it_at_once_get_the_same(tmp_path):
    path = tmp_path / "ledger.sqlite3"
    together = threading.Barrier(8)

    def work():
        together.wait()
        full(path, 1)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with Ledger.open(path) as ledger:
        assert len(ledger.runs()) == 8
    assert not list(tmp_path.glob(".*"))


def test_a_writer_killed_in_its_transaction_leaves_the_last_whole_state(tmp_path):
    path = tmp_path / "ledger.sqlite3"
    full(path, 3)
    code = (
        "import os, sys\nfrom pathlib import Path\nfrom hpcscale.ledger import Ledger\n"
        "ledger = Ledger.open(Path(sys.argv[1]))\n"
        "ledger._db.execute('PRAGMA cache_size = 1')\n"  # so that half of it reaches the file
        "ledger._db.execute('BEGIN IMMEDIATE')\n"
        "for i in range(2000):\n"
        "    ledger._event(None, None, 'half', {'i': i, 'pad': 'x' * 500})\n"
        "os.kill(os.getpid(), 9)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], check=False)
    assert done.returncode == -9
    assert path.with_name(path.name + "-journal").exists()
    with Ledger.open(path) as ledger:
        assert len(ledger.runs()) == 3
        assert ledger.events(kind="half") == []


def test_a_missing_ledger_is_not_made_when_only_read(tmp_path):
    path = tmp_path / "none" / "ledger.sqlite3"
    with pytest.raises(NotFoundError):
        Ledger.open(path, create=False)
    assert not path.parent.exists()


def test_a_directory_in_its_place_is_said(tmp_path):
    path = tmp_path / "ledger.sqlite3"
    path.mkdir()
    with pytest.raises(StateError, match="ledger"):
        Ledger.open(path)


def test_a_file_where_its_directory_should_be_is_said(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("HPCSCALE_STATE_DIR", str(tmp_path / "file"))
    with pytest.raises(StateError, match="cannot be used") as caught:
        Ledger.open()
    assert "HPCSCALE_STATE_DIR" in (caught.value.hint or "")


@pytest.mark.skipif(os.getuid() != 0, reason="needs to become another user")
@pytest.mark.parametrize("create", [True, False])
@pytest.mark.parametrize("mode", [0o555, 0o700])
def test_a_directory_one_may_not_use_is_said(tmp_path, mode, create):
    place = tmp_path / "state"
    full(place / "ledger.sqlite3", 1)
    for directory in (tmp_path.parent.parent, tmp_path.parent, tmp_path):
        directory.chmod(directory.stat().st_mode | 0o011)
    place.chmod(mode)
    read, write = os.pipe()
    if (child := os.fork()) == 0:
        os.setuid(65534)
        try:
            Ledger.open(place / "ledger.sqlite3", create=create)
        except StateError as exc:
            os.write(write, f"{exc} {exc.hint}".encode())
        except BaseException as exc:  # noqa: BLE001 # a child of pytest must not live on
            os.write(write, repr(exc).encode())
        os._exit(0)
    os.close(write)
    os.waitpid(child, 0)
    with os.fdopen(read) as pipe:
        told = pipe.read()
    assert "HPCSCALE_STATE_DIR" in told, told


# --- several processes


def test_many_processes_write_at_once(tmp_path):
    path = tmp_path / "ledger.sqlite3"  # they also race for creating it
    code = (
        "import sys\nfrom pathlib import Path\nfrom hpcscale.ledger import Ledger\n"
        "from hpcscale.spec import JobSpec\n"
        "with Ledger.open(Path(sys.argv[1])) as ledger:\n"
        "    for i in range(10): ledger.new_run(JobSpec(command=('true',)), site='s')\n"
    )
    crowd = [
        subprocess.Popen([sys.executable, "-c", code, str(path)], stderr=subprocess.PIPE)
        for _ in range(6)
    ]
    for process in crowd:
        _, error = process.communicate(timeout=120)
        assert process.returncode == 0, error.decode()
    with Ledger.open(path) as ledger:
        assert len(ledger.runs()) == 60
        assert len({r.run_id for r in ledger.runs()}) == 60


def test_a_busy_ledger_is_said_in_the_end(ledger, monkeypatch):
    monkeypatch.setattr("hpcscale.ledger_file.BUSY_TIMEOUT_S", 0.05)
    blocker = sqlite3.connect(ledger.path, isolation_level=None)
    blocker.execute("BEGIN EXCLUSIVE")
    with pytest.raises(StateError, match="busy") as caught, Ledger.open(ledger.path) as second:
        second.runs()
    blocker.close()
    assert "try again" in (caught.value.hint or "")


def test_it_stands_in_the_state_directory(tmp_path, monkeypatch):
    monkeypatch.setenv("HPCSCALE_STATE_DIR", str(tmp_path / "mine"))
    assert ledger_path() == tmp_path / "mine" / "ledger.sqlite3"


def test_run_ids_differ_and_are_easy_to_type():
    ids = {new_run_id() for _ in range(1000)}
    assert len(ids) == 1000
    assert all(len(i) == 11 and i[0] == "r" and i.isalnum() and i.islower() for i in ids)


# --- migrations


def test_an_older_ledger_is_brought_up_to_date_without_loss(tmp_path, monkeypatch):
    path = tmp_path / "ledger.sqlite3"
    full(path, 2)
    more = (*ledger_schema.MIGRATIONS, ("ALTER TABLE runs ADD COLUMN note TEXT",))
    monkeypatch.setattr("hpcscale.ledger_file.MIGRATIONS", more)
    with Ledger.open(path) as ledger:
        assert len(ledger.runs()) == 2
        assert ledger.rows("PRAGMA user_version")[0][0] == len(more)


def test_a_migration_that_fails_leaves_the_old_ledger(tmp_path, monkeypatch):
    path = tmp_path / "ledger.sqlite3"
    full(path, 2)
    bad = (*ledger_schema.MIGRATIONS, ("CREATE TABLE new (x)", "CREATE TABLE runs (x)"))
    with monkeypatch.context() as patch:
        patch.setattr("hpcscale.ledger_file.MIGRATIONS", bad)
        with pytest.raises(StateError):
            Ledger.open(path)
    with Ledger.open(path) as ledger:
        assert len(ledger.runs()) == 2
        assert not ledger.rows("SELECT 1 FROM sqlite_master WHERE name = 'new'")


def test_an_end_is_not_taken_back_by_an_older_sight(ledger):
    attempt = add(ledger, job="1")  # what a slower process still holds
    ended = ledger.record_status(attempt, status(state=JobState.COMPLETED, exit_code=(0, 0)))
    ledger.record([(attempt, status(state=JobState.RUNNING))])
    assert ledger.attempt(attempt.submission_id) == ended
    ledger.set_submitted(ended, JobId(1))  # a submit that was thought dead may take it up again
    assert not ledger.attempt(attempt.submission_id).ended
