"""Two ordinary users with hpcscale on one machine: neither sees, ends, moves or hinders the other."""

import os
import signal
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
from burst_world import KILL_DRIVER
from lab_helpers import until
from lab_person import CLOUD, ONPREM, Person, fill, job, let_in

from hpcscale.errors import NotFoundError, StateError

PLANTED = "planted-secret-of-one-user"

# a lab of its own, and whole handovers; who starts as an ordinary user cannot be two of them
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(400),
    pytest.mark.skipif(os.getuid() != 0, reason="only root's slurmd runs jobs of two users"),
]


@pytest.fixture
def two(lab_factory):
    lab = lab_factory(boot_delay_s=0.3)
    let_in(lab)
    return Person(lab, "bin"), Person(lab, "daemon")


def settled_fence(person, job_id):
    """A job once its controller has looked at its fence, less what the scheduler estimates."""
    until(lambda: job(person, job_id)["Reason"] == "BadConstraints", 60, "the fence is seen")
    return asked_for(person, job_id)


def asked_for(person, job_id):
    estimates = {"StartTime", "EndTime", "SchedNodeList", "LastSchedEval"}
    return {key: value for key, value in job(person, job_id).items() if key not in estimates}


def wait_for(person, name):
    return f"until [ -e {person.home}/{name} ]; do sleep 0.2; done"


def test_neither_reads_nor_ends_what_is_the_others(two):
    one, other = two
    show = f'printf %s "$TOKEN" | wc -c > {one.home}/length; {wait_for(one, "go")}'
    mine = one.submit(show, "--secret", "TOKEN=env:TOKEN", TOKEN=PLANTED)
    theirs = other.submit(wait_for(other, "go"))
    length = one.home / "length"
    until(lambda: length.exists() and length.read_text().strip(), 60, "the secret has come")
    assert int(length.read_text()) == len(PLANTED)
    until(lambda: job(other, theirs["job_id"])["JobState"] == "RUNNING", 60, "both run")

    for directory in (one.there[ONPREM], one.home / "ledger"):
        found = other.run("find", directory, check=False)
        assert found.stdout.split() in ([str(directory)], []), found.stdout
        assert "Permission denied" in found.stderr
        refused = other.run("touch", directory / "claims" / "x", check=False)
        assert "Permission denied" in refused.stderr
    assert any(one.there[ONPREM].rglob("*.started")), "there was something to find"

    seen = [
        other.run("sh", "-c", "cat /proc/[0-9]*/cmdline /proc/[0-9]*/environ", check=False),
        other.run("scontrol", "-d", "show", "job", mine["job_id"]),
        other.run("scontrol", "write", "batch_script", mine["job_id"], "-", check=False),
    ]
    assert all(PLANTED not in done.stdout + done.stderr for done in seen)
    assert "job script retrieval failed" in seen[2].stderr, "Slurm keeps the script from others"
    assert one.run("scontrol", "write", "batch_script", mine["job_id"], "-").stdout[:2] == "#!"

    ref = f"{ONPREM}:{mine['job_id']}"
    for name in (mine["run_id"], ref):
        for verb in (["cancel", "--yes"], ["status"], ["logs"], ["wait"], ["burst", "undo"]):
            done = other.hpcscale(*verb, name, check=False)
            assert done.returncode == NotFoundError.exit_code, (verb, name, done.stderr)
    done = other.hpcscale("fetch", mine["run_id"], check=False)
    assert done.returncode == NotFoundError.exit_code, done.stderr
    assert job(one, mine["job_id"])["JobState"] == "RUNNING"

    # the other's ledger, or a state directory that a copied profile names: said, and left alone
    done = other.hpcscale("status", check=False, HPCSCALE_STATE_DIR=one.home / "ledger")
    assert done.returncode == StateError.exit_code, done.stderr
    assert str(one.home / "ledger") in done.stderr
    profile = other.home / "config" / "sites" / f"{ONPREM}.toml"
    text = profile.read_text()
    profile.write_text(text.replace(str(other.there[ONPREM]), str(one.there[ONPREM])))
    done = other.hpcscale("submit", "--site", ONPREM, "--no-code", "--", "true", check=False)
    assert done.returncode == StateError.exit_code, done.stderr
    assert str(one.there[ONPREM]) in done.stderr
    assert "Permission denied" in done.stderr
    queue = other.run("squeue", "-h", "-o", "%i", f"--user={other.name}").stdout.split()
    assert queue == [theirs["job_id"]], "nothing was submitted"
    profile.write_text(text)

    (one.home / "go").touch()
    assert one.hpcscale("wait", mine["run_id"]).returncode == 0
    assert other.data("status", theirs["run_id"])["runs"][0]["attempts"][0]["state"] == "RUNNING"
    other.hpcscale("cancel", "--yes", theirs["run_id"])
    until(lambda: job(other, theirs["job_id"])["JobState"] == "CANCELLED", 60, "its own it ends")


def test_two_who_overflow_at_once_are_two_moves(two):
    fill(two[0])
    jobs = {p.name: p.submit("exit 0", "--burst", "only") for p in two}
    with ThreadPoolExecutor() as pool:
        run = ["burst", "run", "--wait", "--json", "--policy"]
        done = list(pool.map(lambda p: p.data(*run, p.home / "policy.toml"), two))
    for person, said in zip(two, done, strict=True):
        run_id = jobs[person.name]["run_id"]
        assert [(m["run_id"], m["step"]) for m in said["moves"]] == [(run_id, "done")]
        moves = person.data("burst", "status", "--all")["moves"]
        assert [m["run_id"] for m in moves] == [run_id], "of its own alone"
        started = [path for site in person.there for path in person.there[site].rglob("*.started")]
        assert len(started) == 1, started
        assert person.there[CLOUD] in started[0].parents
        owners = {path.stat().st_uid for top in person.there.values() for path in top.rglob("*")}
        assert owners == {person.uid}
        assert person.hpcscale("burst", "reap").stdout == "nothing to reap\n"


def test_one_who_dies_mid_move_is_left_alone_by_the_other(two):
    """Fence, claim and cloud job of one stand there without a process; the other runs everything."""
    one, other = two
    full = fill(one)
    mine = one.submit(f"echo begun >> {one.there[CLOUD].parent}/witness", "--burst", "only")
    run = ["burst", "run", "--policy"]
    died = one.run(
        sys.executable, "-c", KILL_DRIVER, "opening", *run, one.home / "policy.toml", "--wait",
        check=False,
    )  # fmt: skip
    assert died.returncode == -signal.SIGKILL, died.stderr
    fenced = settled_fence(one, mine["job_id"])
    assert fenced["ExcNodeList"] == "onprem[1-4]"
    (cloud_job,) = one.data("burst", "status", "--all")["moves"]
    assert cloud_job["to"].startswith(f"{CLOUD}:"), "it is there, and it waits"

    theirs = other.submit("exit 0", "--burst", "only")
    said = other.data(*run, other.home / "policy.toml", "--wait")
    assert [(m["run_id"], m["step"]) for m in said["moves"]] == [(theirs["run_id"], "done")]
    assert other.hpcscale("burst", "reap").stdout == "nothing to reap\n"
    done = other.hpcscale("burst", "undo", f"{ONPREM}:{mine['job_id']}", check=False)
    assert done.returncode == NotFoundError.exit_code, done.stderr
    assert asked_for(one, mine["job_id"]) == fenced
    assert not one.witness()

    one.hpcscale(*run, one.home / "policy.toml", "--wait")
    assert one.witness() == ["begun"]
    (move,) = one.data("burst", "status", "--all")["moves"]
    assert move["step"] == "done"
    assert move["to"] == cloud_job["to"], "the same cloud job as before"
    one.lab.site(ONPREM).exec(["scancel", full], check=True)
