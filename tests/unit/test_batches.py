"""Arrays in parts, whatever happens between them."""

import contextlib
from pathlib import Path

import pytest

from hpcscale import batches
from hpcscale.connect import Connection
from hpcscale.errors import NotFoundError, RefusedError, SubmitUnknownError
from hpcscale.ledger import Ledger
from hpcscale.site import load_site
from hpcscale.slurm.cli import CliClient
from hpcscale.spec import Function, JobSpec, Resources
from hpcscale.testing import FakeSlurm


@pytest.fixture
def slurm():
    return FakeSlurm()


@pytest.fixture
def connection(tmp_path, slurm):
    return Connection(
        site=load_site("lab-onprem", [f"state_dir={tmp_path / 'site'}"]).site,
        transport=slurm,
        client=CliClient(slurm),
        clock=slurm.clock,
    )


@pytest.fixture
def ledger():
    with Ledger.open() as opened:
        yield opened


@pytest.fixture
def stored(ledger, tmp_path, monkeypatch):
    """Ten tasks; at most four go into one array."""
    monkeypatch.setattr(batches, "max_array_size", lambda _: 4)
    pickles = tmp_path / "jobs" / ".hpcscale" / "p"
    (pickles / "lib").mkdir(parents=True)
    for task in range(10):
        (pickles / f"{task}.pkl").write_text(str(task))
    spec = JobSpec(
        command=("python",), function=Function(), code="", inputs={"submitit": str(pickles)},
        outputs={"submitit": f"{tmp_path}/jobs/"}, resources=Resources(time_limit_s=60),
    )  # fmt: skip
    return batches.store(ledger, spec, "lab-onprem", 10, 256).run.run_id


def sent_pickles(ledger, run_id):
    """What each array element of each part would load, in order."""
    loaded = []
    for part in batches.read(ledger, run_id).parts:
        if part.attempt is not None:
            inputs = part.attempt.staged["inputs/submitit"]
            size = part.attempt.array_size
            loaded += [int((Path(inputs) / f"{n}.pkl").read_text()) for n in range(size)]
    return loaded


def test_parts_are_numbered_from_zero_and_hold_every_task_once(ledger, connection, stored):
    batch = batches.send(ledger, connection, stored)
    assert [(p.start, p.stop) for p in batch.parts] == [(0, 4), (4, 8), (8, 10)]
    assert [p.number(9) for p in batch.parts[2:]] == [1]
    assert sent_pickles(ledger, stored) == list(range(10))
    assert batches.waiting(ledger) == []


def test_a_batch_does_not_compete_with_its_parts_for_their_name(
    ledger, connection, stored, monkeypatch
):
    run = ledger.run(stored)
    with pytest.raises(NotFoundError, match="waits here until lab-onprem has room"):
        ledger.resolve(run.name)
    monkeypatch.setattr(batches, "max_array_size", lambda _: 1000)
    batch = batches.send(ledger, connection, stored)
    (part,) = batch.parts
    for text in (run.name, stored, stored[:6]):
        assert ledger.resolve(text).attempt.submission_id == part.attempt.submission_id
    other = ledger.new_run(run.spec, site="lab-onprem")  # killed before its attempt was noted
    assert ledger.resolve(run.name).run.run_id == part.attempt.run_id
    with pytest.raises(NotFoundError, match="never submitted"):
        ledger.resolve(other.run_id)


def test_a_batch_of_several_parts_names_them(ledger, connection, stored):
    batch = batches.send(ledger, connection, stored)
    with pytest.raises(NotFoundError, match="in 3 parts") as caught:
        ledger.resolve(stored)
    assert all(part.attempt.run_id in caught.value.hint for part in batch.parts)


@pytest.mark.parametrize("dies", [(at, after) for at in range(3) for after in (False, True)])
def test_a_sender_that_dies_sends_nothing_twice_and_loses_nothing(
    ledger, connection, stored, monkeypatch, dies
):
    dies_at, after = dies
    real, calls = batches.submit, []

    def dying(*args, **kw):
        calls.append(1)
        if len(calls) - 1 == dies_at and not after:
            raise KeyboardInterrupt
        done = real(*args, **kw)
        if len(calls) - 1 == dies_at:
            raise KeyboardInterrupt
        return done

    monkeypatch.setattr(batches, "submit", dying)
    with pytest.raises(KeyboardInterrupt):
        batches.send(ledger, connection, stored)
    assert batches.read(ledger, stored).unsent or (dies_at, after) == (2, True)
    batches.send(ledger, connection, stored)
    assert sorted(sent_pickles(ledger, stored)) == list(range(10))


def test_no_room_means_smaller_parts_and_then_waiting(ledger, connection, stored, monkeypatch):
    real, room = batches.submit, [7]

    def limited(rendered, *args, **kw):
        size = rendered.spec.array_size
        if size > room[0]:
            raise RefusedError("sbatch refused the job: AssocMaxSubmitJobLimit; violates policy")
        room[0] -= size
        return real(rendered, *args, **kw)

    monkeypatch.setattr(batches, "submit", limited)
    batch = batches.send(ledger, connection, stored)
    assert (batch.unsent, batch.blocked != "") == (3, True)
    assert [b.unsent for b in batches.waiting(ledger)] == [3]
    batches.skip(ledger, stored, 8)
    room[0] = 100
    batches.send(ledger, connection, stored)
    assert sorted(sent_pickles(ledger, stored)) == [0, 1, 2, 3, 4, 5, 6, 7, 9]
    last = batches.read(ledger, stored).part(9)
    assert batches.read(ledger, stored).part(8).number(8) is None
    assert last.number(9) is not None


def test_a_lost_answer_stops_the_sender_and_the_part_counts_as_sent(
    ledger, connection, stored, slurm
):
    slurm.lose_next_submit_answer()
    batch = batches.send(ledger, connection, stored)
    assert [(p.start, p.stop) for p in batch.parts] == [(0, 4)]
    assert batch.blocked
    batches.send(ledger, connection, stored)
    assert sorted(sent_pickles(ledger, stored)) == list(range(10))


def test_two_senders_at_once_are_one(ledger, connection, stored):
    pickles = ledger.run(stored).spec.inputs["submitit"]
    with batches._alone(Path(pickles)) as alone:
        assert alone
        assert batches.send(ledger, connection, stored).parts == ()


@pytest.mark.parametrize(
    ("message", "later"),
    [
        ("AssocMaxSubmitJobLimit; Job violates accounting/QOS policy", True),
        ("QOSMaxSubmitJobPerUserLimit; Job violates accounting/QOS policy", True),
        ("Slurm temporarily unable to accept job, sleeping and retrying", True),
        ("Requested time limit is invalid (missing or exceeds some limit)", False),
        ("Invalid job array specification", False),
        ("AssocMaxWallDurationPerJobLimit; Job violates accounting/QOS policy", False),
    ],
)
def test_what_will_pass_and_what_will_not(message, later):
    assert batches.not_now(RefusedError(message)) is later


def test_an_unknown_submission_is_no_refusal():
    assert not issubclass(SubmitUnknownError, RefusedError)


def test_a_full_controller_is_not_asked_in_vain(ledger, connection, stored, slurm, monkeypatch):
    """Real sbatch sleeps for two minutes before it says that there is no room."""
    monkeypatch.setattr(batches, "MANY", 1)
    slurm.max_jobs = 8  # one must stay free
    batch = batches.send(ledger, connection, stored)
    assert [(p.start, p.stop) for p in batch.parts] == [(0, 4), (4, 7)]
    assert (batch.unsent, batch.blocked) == (3, "the controller has no room (MaxJobCount)")
    assert sum(call[0] == "sbatch" for call in slurm.calls) == 2
    slurm.jobs.clear()
    assert batches.send(ledger, connection, stored).unsent == 0
    assert sent_pickles(ledger, stored) == list(range(10))


def test_a_controller_that_is_full_all_the_same_is_asked_once(
    ledger, connection, stored, slurm, monkeypatch
):
    """Others' jobs may be hidden from this user."""
    monkeypatch.setattr(batches, "room", lambda _: 10_000)
    monkeypatch.setattr(batches, "MANY", 1)
    slurm.max_jobs = 4
    batch = batches.send(ledger, connection, stored)
    assert (batch.unsent, batch.parts) == (10, ())
    assert "Resource temporarily unavailable" in batch.blocked
    assert sum(call[0] == "sbatch" for call in slurm.calls) == 1


@pytest.fixture
def locked_here_alone(monkeypatch):
    """Two login nodes whose NFS keeps flock(2) to each of them."""

    @contextlib.contextmanager
    def alone(_):
        yield True

    monkeypatch.setattr(batches, "_alone", alone)


@pytest.mark.usefixtures("locked_here_alone")
@pytest.mark.parametrize("at", ["prepare", "submit"])
def test_senders_on_two_login_nodes_send_each_task_once(
    ledger, connection, stored, monkeypatch, at
):
    real, inner = getattr(batches, at), []

    def overtaken(*args, **kw):
        if not inner:
            inner.append(1)
            assert batches.send(ledger, connection, stored).unsent == 0
        return real(*args, **kw)

    monkeypatch.setattr(batches, at, overtaken)
    batch = batches.send(ledger, connection, stored)
    assert batch.unsent == 0
    sent = [a for a in ledger.all_attempts() if a.job_id is not None]
    assert sum(a.array_size for a in sent) == 10
    assert sent_pickles(ledger, stored) == list(range(10))


def test_a_task_that_is_cancelled_while_its_part_is_prepared_is_not_sent(
    ledger, connection, stored, monkeypatch
):
    real, calls = batches.prepare, []

    def prepare(*args, **kw):
        if not calls:
            calls.append(1)
            batches.skip(ledger, stored, 2)
            assert batches.read(ledger, stored).part(2) is None, "its user is told that it is off"
        return real(*args, **kw)

    monkeypatch.setattr(batches, "prepare", prepare)
    batches.send(ledger, connection, stored)
    assert sorted(sent_pickles(ledger, stored)) == [0, 1, *range(3, 10)]
