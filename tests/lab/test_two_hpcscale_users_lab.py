"""Two ordinary users with hpcscale on one machine: neither sees, ends, moves or hinders the other.

The lab runs as root, so its slurmd starts anybody's jobs. Both sites are reached as from a login
node (no ssh): each user has a home, a profile, a ledger and a state directory of their own.
"""

import json
import os
import pwd
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from burst_world import KILL_DRIVER
from lab_helpers import ROOT, until

from hpcscale.errors import NotFoundError, StateError
from hpcscale.lab.process import patience

ONPREM, CLOUD = "lab-onprem", "lab-cloud"
HELPER = Path(__file__).parent / "as_ordinary_user.py"
PLANTED = "planted-secret-of-one-user"

# a lab of its own, and whole handovers; who starts as an ordinary user cannot be two of them
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(400),
    pytest.mark.skipif(os.getuid() != 0, reason="only root's slurmd runs jobs of two users"),
]


class Person:
    """Somebody with a home and a profile of both sites."""

    def __init__(self, lab, name):
        self.lab, self.name = lab, name
        entry = pwd.getpwnam(name)
        self.uid, self.gid = entry.pw_uid, entry.pw_gid
        self.home = lab.site(ONPREM).paths.scratch / name
        self.project = self.home / "project"
        self.there = {
            ONPREM: self.home / "hpcscale",
            CLOUD: lab.site(CLOUD).paths.scratch / name / "hpcscale",
        }
        sites = self.home / "config" / "sites"
        for directory in (sites, self.project, self.there[CLOUD].parent):
            directory.mkdir(parents=True)
        for site, state_dir in self.there.items():
            text = (lab.state.directory / "config" / "sites" / f"{site}.toml").read_text()
            top, _, rest = text.partition("\n[transport]\n")
            partitions = rest[rest.index("\n[partitions") :]
            top = "\n".join(x for x in top.splitlines() if not x.startswith("state_dir"))
            conf = lab.site(site).paths.slurm_conf
            (sites / f"{site}.toml").write_text(
                f'state_dir = "{state_dir}"\n{top}\n[transport]\nkind = "local"\n'
                f'slurm_conf = "{conf}"\n{partitions}'
            )
        (self.home / "policy.toml").write_text(
            f'from = "{ONPREM}"\nto = ["{CLOUD}"]\nmax_wait = "1h"\n'
        )
        for top in (self.home, self.there[CLOUD].parent):
            for path in (top, *top.rglob("*")):
                os.chown(path, self.uid, self.gid)

    def run(self, *argv, check=True, **more):
        """Run a command as this person."""
        values = {
            "HPCSCALE_CONFIG_DIR": self.home / "config",
            "HPCSCALE_STATE_DIR": self.home / "ledger",
            "SLURM_CONF": self.lab.site(ONPREM).paths.slurm_conf,
            **more,
        }
        done = subprocess.run(
            [sys.executable, str(HELPER), f"--user={self.name}", str(self.project),
             "/usr/bin/env", *(f"{k}={v}" for k, v in values.items()), *map(str, argv)],
            capture_output=True, text=True, timeout=patience(120), check=False,
            env=os.environ | {"PYTHONPATH": f"{ROOT}"},
        )  # fmt: skip
        assert "Traceback" not in done.stderr, done.stderr
        assert done.returncode == 0 or not check, f"{done.args}\n{done.stdout}\n{done.stderr}"
        return done

    def hpcscale(self, *argv, **kw):
        return self.run(sys.executable, "-m", "hpcscale", *argv, **kw)

    def data(self, *argv, **kw):
        return json.loads(self.hpcscale(*argv, "--json", **kw).stdout)["data"]

    def submit(self, shell, *options, **env):
        """Submit a line of shell; what ``submit --json`` says."""
        done = self.hpcscale(
            "submit", "--json", "--site", ONPREM, "--name", "urgent", "--nodes", "2", "--time",
            "10", "--gpus-per-node", "1", "--no-code", *options, "--", "sh", "-c", shell, **env,
        )  # fmt: skip
        said = json.loads(done.stdout)["data"]
        return said | {"job_id": said["ref"].rpartition(":")[2]}

    def witness(self):
        """What this person's commands wrote, at both sites."""
        return [
            line
            for site in self.there
            for path in [self.lab.site(site).paths.scratch / self.name / "witness"]
            if path.exists()
            for line in path.read_text().splitlines()
        ]


@pytest.fixture
def two(lab_factory):
    lab = lab_factory(boot_delay_s=0.3)
    for site in (lab.site(ONPREM), lab.site(CLOUD)):
        for path in (
            lab.state.directory, site.paths.root, site.paths.etc, site.paths.run, site.paths.scratch,
        ):  # fmt: skip
            path.chmod(0o755)  # anybody finds munge, slurm.conf and their own home
    return Person(lab, "bin"), Person(lab, "daemon")


def job(person, job_id):
    """``scontrol show job`` as this person sees it."""
    done = person.run("scontrol", "-o", "show", "job", job_id, check=False)
    return dict(word.split("=", 1) for word in done.stdout.split() if "=" in word)


def settled_fence(person, job_id):
    """A job once its controller has looked at its fence, less what the scheduler estimates."""
    until(lambda: job(person, job_id)["Reason"] == "BadConstraints", 60, "the fence is seen")
    return asked_for(person, job_id)


def asked_for(person, job_id):
    estimates = {"StartTime", "EndTime", "SchedNodeList", "LastSchedEval"}
    return {key: value for key, value in job(person, job_id).items() if key not in estimates}


def wait_for(person, name):
    return f"until [ -e {person.home}/{name} ]; do sleep 0.2; done"


def fill(person):
    """Somebody's job on every on-prem node; its id."""
    done = person.lab.site(ONPREM).exec(
        ["sbatch", "--parsable", "-N4", "--exclusive", "--time=60"],
        stdin="#!/bin/sh\nsleep 600\n",
        check=True,
    )
    full = done.stdout.strip()
    until(lambda: job(person, full).get("JobState") == "RUNNING", 30, "the queue is full")
    return full


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
