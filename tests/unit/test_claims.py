"""The claim and the gate: the scripts' side in real shells, the handover's beside it."""

import json
import signal
import time
from pathlib import Path

import msgspec
import pytest
from claim_script import OTHER, SID, TARGET, Job, Place
from render_cases import APPTAINER, CASES

from hpcscale.burst.claims import CLOSED, Claim, Word, decide, decision, put_outcome, revoke, take
from hpcscale.errors import NotOursError
from hpcscale.render import Gate, render
from hpcscale.reports import cut_short, read_reports
from hpcscale.testing import FakeSlurm


@pytest.fixture(params=["own", "foreign"])
def script(request, tmp_path):
    return Job(tmp_path, foreign=request.param == "foreign")


def test_a_second_start_of_the_same_attempt_starts_nothing(script):
    assert script.run() == 0, script.said
    assert script.run() == 98
    assert "start 0 of this job was begun before" in script.said
    assert script.ran == 1


def test_a_requeued_job_passes_and_a_forgotten_requeue_does_not(script):
    assert [script.run(restart=n) for n in (0, 1, 4)] == [0, 0, 0]
    assert script.run(restart=3) == 98, "start 4 is younger"
    assert script.ran == 3


def test_of_starts_at_once_one_begins(script):
    processes = [script.start() for _ in range(6)]
    outputs = [p.communicate(timeout=60) for p in processes]
    assert sorted(p.returncode for p in processes) == [0, *[98] * 5], outputs
    assert script.ran == 1
    assert not list((script.state / "claims").glob("*.tmp"))


def test_plain_sbatch_makes_no_claim(script):
    assert script.run(args=False) == 0, script.said
    assert script.run(args=False) == 0
    assert not (script.state / "claims").exists()
    assert not list(script.project.rglob("claims"))


def test_what_the_handover_has_is_not_started(script):
    assert script.take() == Claim(TARGET)
    assert script.take() == Claim(TARGET), "a lost reply: asked again, the same answer"
    assert script.run() == 98
    assert f"{TARGET} has the claim" in script.said
    assert script.run(restart=5) == 98
    assert script.ran == 0


def test_what_has_started_is_not_taken(script):
    assert script.run() == 0
    assert script.take() == Claim(SID, started=True)
    assert script.take(restarts=1) == Claim(TARGET), "requeued, it waits again"
    assert script.run(restart=1) == 98


def test_two_handovers_and_a_revoked_one(script):
    assert script.take() == Claim(TARGET)
    assert script.take(OTHER) == Claim(TARGET)
    revoke(FakeSlurm(), script.attempt, TARGET)
    assert script.take(OTHER) == Claim(OTHER)
    assert script.run() == 98
    revoke(FakeSlurm(), script.attempt, OTHER)
    assert script.run() == 0, script.said
    assert script.run() == 98


def test_a_claim_that_comes_after_its_revocation_does_no_harm(script):
    revoke(FakeSlurm(), script.attempt, TARGET)
    script.take()
    assert script.run() == 0, script.said


def test_no_start_where_no_claim_can_be_written(script):
    script.state.chmod(0o700)
    (script.state / "claims").write_text("no directory")
    tool(script, "sleep", "exit 0")
    assert script.run() == 97
    assert "tried again for three minutes" in script.said
    assert script.ran == 0


def test_a_claim_that_cannot_be_written_for_a_while_is_made_later(script):
    claims = script.state / "claims"
    claims.write_text("a full disk")
    slept = script.bin.parent / "slept"
    mends = f'printf . >> {slept}; [ "$(cat {slept})" != ... ] || rm {claims}'
    tool(script, "sleep", mends)
    assert script.run() == 0, script.said
    assert script.ran == 1
    assert slept.read_text() == "..."
    assert script.run() == 98


def test_job_and_handover_at_once_never_both(script):
    for number in range(8):
        script.run_dir = script.state / "runs" / f"rabc{number}"
        script.run_dir.mkdir()
        process = script.start()
        place = Place(script.run_dir.name, SID, str(script.run_dir))
        if number % 2:
            time.sleep(0.02)  # no condition to wait for: the race is wanted
        claim = take(FakeSlurm(), place, TARGET)
        process.communicate(timeout=30)
        assert (process.returncode == 0) == (claim == Claim(SID, started=True))
        assert (process.returncode == 98) == (claim == Claim(TARGET))


def test_elements_of_an_array_have_claims_of_their_own(tmp_path):
    script = Job(tmp_path, array="0-1")
    assert [script.run(task=n) for n in (0, 1, 0)] == [0, 0, 98]


@pytest.fixture(params=["own", "foreign"])
def array(request, tmp_path):
    return Job(tmp_path, foreign=request.param == "foreign", array="0-2")


def test_who_has_the_array_has_all_its_elements(array):
    assert array.take() == Claim(TARGET)
    assert [array.run(task=n) for n in (0, 2)] == [98, 98]
    assert f"{TARGET} has the claim" in array.said
    assert array.ran == 0
    revoke(FakeSlurm(), array.attempt, TARGET)
    assert [array.run(task=n) for n in (0, 1, 0)] == [0, 0, 98]


def test_of_an_array_that_has_begun_nothing_is_taken(array):
    assert array.run(task=1) == 0, array.said
    assert array.take() == Claim(SID, started=True)
    assert array.take(restarts=3) == Claim(SID, started=True)
    assert [array.run(task=n) for n in (0, 2)] == [0, 0]
    assert array.run(task=1, restart=1) == 0, "a requeued element"


def test_an_array_and_its_handover_at_once_never_both(array):
    for number in range(4):
        array.run_dir = array.state / "runs" / f"rabc{number}"
        array.run_dir.mkdir()
        processes = [array.start(task=n) for n in range(3)]
        claim = take(FakeSlurm(), Place(array.run_dir.name, SID, str(array.run_dir)), TARGET)
        for process in processes:
            process.communicate(timeout=30)
        codes = {p.returncode for p in processes}
        assert codes == ({0} if claim.started else {98})


def test_a_stand_in_ends_as_the_owner_of_its_claim_did(script):
    assert script.take() == Claim(TARGET)
    put_outcome(FakeSlurm(), script.attempt, "", 7)
    put_outcome(FakeSlurm(), script.attempt, "", 0)  # a second one does not count
    assert script.run() == 7
    assert f"it ran as {TARGET}" in script.said
    assert script.ran == 0


def test_elements_that_stand_in_end_each_as_its_own(array):
    assert array.take() == Claim(TARGET)
    for task, code in ((0, 0), (1, 9)):
        put_outcome(FakeSlurm(), array.attempt, f".task{task}", code)
    assert [array.run(task=n) for n in range(3)] == [0, 9, 98]
    assert array.ran == 0


def test_user_code_is_told_where_its_claim_is(tmp_path):
    script = Job(tmp_path, command="echo $HPCSCALE_CLAIM >")
    assert script.run() == 0
    claim = Path(script.witness.read_text().strip())
    assert claim == script.state / "claims" / f"rabc.{SID}.0"
    assert claim.read_text().split() == [SID, "0"]


# --- the gate --------------------------------------------------------------------------------


@pytest.fixture(params=["own", "foreign"])
def gated(request, tmp_path):
    return Job(tmp_path, gate=Gate(lease_s=3), foreign=request.param == "foreign")


def wait_for(condition):
    deadline = time.monotonic() + 15
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def at_the_gate(script):
    events = script.run_dir / "events"
    wait_for((events / f"{SID}.0.gated").exists)
    assert not list(events.glob("*.started"))
    assert script.ran == 0


def test_it_waits_until_it_is_opened(gated):
    process = gated.start()
    at_the_gate(gated)
    assert decide(FakeSlurm(), gated.attempt, Word.OPENED) is Word.OPENED
    said, _ = process.communicate(timeout=15)
    assert process.returncode == 0, said
    assert gated.ran == 1
    assert gated.run(restart=1) == 0, "requeued: it was opened for this attempt"


def test_nobody_comes_and_nobody_can_open_it_later(gated):
    process = gated.start()
    at_the_gate(gated)
    process.communicate(timeout=30)
    assert process.returncode == 98
    assert decide(FakeSlurm(), gated.attempt, Word.OPENED) is Word.EXPIRED
    assert gated.run(restart=1) == 98
    assert gated.ran == 0


def test_closed_before_it_came(gated):
    assert decision(FakeSlurm(), gated.attempt) is None
    assert decide(FakeSlurm(), gated.attempt, Word.CLOSED) is Word.CLOSED
    assert decide(FakeSlurm(), gated.attempt, Word.OPENED) is Word.CLOSED
    assert gated.run() == 98
    assert gated.ran == 0


def test_opened_and_then_taken_back_before_it_began(gated):
    """Its own claim decides: Slurm may have forgotten the cancel of an opened job."""
    decide(FakeSlurm(), gated.attempt, Word.OPENED)
    assert gated.take(CLOSED) == Claim(CLOSED)
    assert gated.run() == 98
    assert gated.ran == 0


def test_plain_sbatch_knows_no_gate(gated):
    assert gated.run(args=False) == 0, gated.said
    assert gated.ran == 1


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_ended_at_the_gate_from_outside_it_tells_no_good_end(tmp_path, number):
    script = Job(tmp_path, gate=Gate(lease_s=60))
    process = script.start()
    at_the_gate(script)
    process.send_signal(number)
    process.communicate(timeout=60)
    ended = json.loads((script.run_dir / "events" / f"{SID}.0.ended").read_text())
    assert ended["exit_code"] == 128 + number
    reports = read_reports(FakeSlurm(), [str(script.run_dir)])[SID]
    assert cut_short(reports[-1], reports)
    assert script.ran == 0


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGINT])
def test_ended_from_outside_in_its_command_it_tells_no_good_end(tmp_path, number):
    script = Job(tmp_path, command="sleep 5; echo ran >>")
    process = script.start()
    events = script.run_dir / "events"
    wait_for((events / f"{SID}.0.started").exists)
    process.send_signal(number)
    process.communicate(timeout=60)
    ended = json.loads((events / f"{SID}.0.ended").read_text())
    assert ended["exit_code"] == 128 + number


def test_expiry_and_opening_at_once_have_one_winner(tmp_path):
    script = Job(tmp_path, gate=Gate(lease_s=1))
    ran = 0
    for number in range(4):
        script.run_dir = script.state / "runs" / f"rabc{number}"
        script.run_dir.mkdir()
        place = Place(script.run_dir.name, SID, str(script.run_dir))
        process = script.start()
        time.sleep(0.9 + 0.07 * number)  # around the end of the lease
        word = decide(FakeSlurm(), place, Word.OPENED)
        process.communicate(timeout=30)
        ran += word is Word.OPENED
        assert process.returncode == (0 if word is Word.OPENED else 98)
        assert script.ran == ran


@pytest.mark.parametrize("gate", [None, Gate(lease_s=1)], ids=["plain", "gate"])
def test_claims_and_reports_are_their_users_alone_whatever_the_umask(tmp_path, gate):
    job = Job(tmp_path, gate=gate)
    assert job.run(umask=0) == (98 if gate else 0), job.said  # nobody opens
    take(FakeSlurm(), job.attempt, TARGET)
    if not gate:
        claims = job.state / "claims"
        assert claims.stat().st_mode & 0o777 == 0o700
        assert {p.stat().st_mode & 0o777 for p in claims.iterdir()} == {0o600}
    made = [p for p in job.run_dir.rglob("*") if p.is_file() and p.suffix != ".sh"]
    assert made
    assert all(p.stat().st_mode & 0o077 == 0 for p in made), made


def test_claims_where_others_may_write_are_not_used(script):
    claims = script.state / "claims"
    claims.mkdir()
    claims.chmod(0o770)
    with pytest.raises(NotOursError, match="not yours alone") as caught:
        script.take()
    assert "chmod go-w" in caught.value.hint


@pytest.mark.parametrize("up", [False, True], ids=["no answer at first", "refused"])
def test_a_start_in_vain_asks_for_its_requeue_until_the_controller_answers(script, up):
    asked = script.bin.parent / "asked"
    answers = "echo no >&2; exit 1" if up else f'[ "$(cat {asked})" = "...." ]'
    tool(
        script, "scontrol", f'[ "$1" = ping ] && exit {int(not up)}; printf . >> {asked}; {answers}'
    )
    tool(script, "sleep", "exit 0")
    script.take()
    assert script.run() == 98
    assert asked.read_text() == (".." if up else "....")


def tool(script, name, text):
    path = script.bin / name
    path.unlink(missing_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


@pytest.mark.parametrize(
    ("asks", "state", "requeued"),
    [(True, "RUNNING", True), (False, "RUNNING", False), (True, "CANCELLED", False)],
)
def test_a_function_in_an_image_has_its_job_requeued_by_the_script(tmp_path, asks, state, requeued):
    """No scontrol in the image: it leaves a file, and its step ends with an error."""
    script = Job(tmp_path)
    (script.run_dir / "inputs" / "submitit").mkdir(parents=True)
    (script.run_dir / "inputs" / "submitit" / "0.pkl").touch()
    spec = CASES["function-apptainer"].spec
    rendered = render(msgspec.structs.replace(spec, array=None, code="", workdir=None), APPTAINER)
    script.script.write_text(rendered.script)
    asked = tmp_path / "asked"
    tool(script, "cp", 'exec /bin/cp "$@"')
    tool(
        script,
        "srun",
        f'echo "$@" > {tmp_path}/srun; {": > $HPCSCALE_REQUEUE_FILE; " * asks}exit 255',
    )
    tool(script, "scontrol", f'case $1 in requeue) echo "$2" >> {asked} ;; *) echo "JobId=7 '
         f'JobState={state} Restarts=0 Requeue=1" ;; esac')  # fmt: skip
    assert script.run() == 255, script.said
    words = (tmp_path / "srun").read_text()
    assert "--ntasks=8" in words
    assert "apptainer exec --nv --pwd" in words
    assert (asked.read_text() if asked.exists() else "") == ("7\n" if requeued else "")
    (end,) = (script.run_dir / "events").glob("*.ended")
    assert json.loads(end.read_text())["requeued"] is requeued
    # a later start begins without the wish of an earlier one
    tool(script, "srun", "test ! -e $HPCSCALE_REQUEUE_FILE")
    assert script.run(restart=1) == 0, script.said
