"""A move on real Slurm while the ledger's disk is full, and while clocks jump."""

import json
import os
import subprocess
import sys
import time
from decimal import Decimal

import pytest
from burst_world import World, hpcscale

from hpcscale.burst.audit import AuditLog
from hpcscale.burst.moves import Moves, Step
from hpcscale.errors import StateError
from hpcscale.lab import faults
from hpcscale.lab.daemons import faketime_library
from hpcscale.lab.process import patience
from hpcscale.ledger import ledger_path

# whole moves, with a process for each run
pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture
def world(lab_env, tmp_path):
    project = tmp_path / "project"
    project.mkdir()
    world = World(lab_env, project)
    yield world
    world.close()


@pytest.fixture
def policy_file(tmp_path):
    path = tmp_path / "P.toml"
    path.write_text('from = "lab-onprem"\nto = ["lab-cloud"]\nmax_wait = "1h"\n')
    return path


def cloud_jobs(world):
    """Ids of all jobs that the cloud site still knows, whoever submitted them."""
    done = world.lab.site("lab-cloud").exec(["squeue", "-h", "-t", "all", "-o", "%i"], check=True)
    return set(done.stdout.split())


def moves(run=hpcscale):
    """What ``burst status`` says."""
    done = run("burst", "status", "--all", "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)["data"]["moves"]


# --- the ledger's disk


# hpcscale … whose disk is full from where a move reaches a step (with + : and its fence is noted)
FILL_DRIVER = """
import os, sys
from hpcscale.burst.moves import Moves
from hpcscale.ledger import ledger_path
wanted = sys.argv.pop(1)
def fill():
    number = os.open(ledger_path().parent / "filler", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    try:
        while True:
            os.write(number, bytes(1 << 12))
    except OSError:
        os.close(number)
def after(name):
    original = getattr(Moves, name)
    def wrapped(self, *args, **kw):
        move = original(self, *args, **kw)
        if move is not None and move.step.value == wanted.rstrip("+") and (
            not wanted.endswith("+") or move.fence is not None
        ):
            fill()
        return move
    setattr(Moves, name, wrapped)
if wanted == "nothing":
    fill()
after("begin")
after("save")
from hpcscale.cli import run
run()
"""


class SmallDisk:
    """The ledger's directory on a file system of its own, which only our commands see."""

    MAKE = (
        'cp -a "$0" "$0.copy" && mount -t tmpfs -o mode=700,size=8m none "$0" && '
        'cp -a "$0.copy/." "$0" && echo ready && exec sleep infinity'
    )

    def __init__(self, directory):
        self.directory = directory
        alone = [] if os.getuid() == 0 else ["--user", "--map-current-user", "--keep-caps"]
        self.keeper = subprocess.Popen(
            ["unshare", *alone, "--mount", "--propagation", "private", "sh", "-c",
             self.MAKE, str(directory)],
            stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert self.keeper.stdout.readline() == "ready\n"

    def run(self, *argv):
        user = [] if os.getuid() == 0 else ["--user", "--preserve-credentials"]
        return subprocess.run(
            ["nsenter", f"--target={self.keeper.pid}", *user, "--mount", "--wdns=/", *argv],
            capture_output=True, text=True, timeout=patience(120), check=False,
        )  # fmt: skip

    def hpcscale(self, *argv):
        done = self.run(sys.executable, "-m", "hpcscale", *argv)
        assert "Traceback" not in done.stderr, done.stderr
        return done

    def hpcscale_filling(self, wanted, *argv):
        done = self.run(sys.executable, "-c", FILL_DRIVER, wanted, *argv)
        assert "Traceback" not in done.stderr, done.stderr
        return done

    @property
    def full(self):
        return self.run("test", "-e", f"{self.directory}/filler").returncode == 0

    def make_room(self):
        assert self.run("rm", f"{self.directory}/filler").returncode == 0

    def close(self):
        self.keeper.kill()
        self.keeper.wait()
        self.keeper.stdout.close()


@pytest.mark.parametrize(
    "step",
    ["nothing", "submitting", "submitted", "fencing", "fencing+", "claiming", "opening",
     "cancelling", "moved"],
)  # fmt: skip
def test_the_ledgers_disk_is_full_from_a_step_on(world, policy_file, step):
    world.fill()
    job = world.submit("echo done")
    before = cloud_jobs(world)
    world.ledger.close()
    disk = SmallDisk(ledger_path().parent)
    words = ("burst", "run", "--policy", str(policy_file))
    try:
        deadline = time.monotonic() + patience(200)
        while not disk.full:
            assert time.monotonic() < deadline, moves(disk.hpcscale)
            disk.hpcscale_filling(step, *words)
        submitted = cloud_jobs(world) - before
        assert len(submitted) <= 1
        for _ in range(2):  # cron comes again
            done = disk.hpcscale(*words)
            assert done.returncode == StateError.exit_code, done.stderr
            assert "full" in done.stderr or "No space left" in done.stderr
            assert str(disk.directory) in done.stderr
        assert len(cloud_jobs(world) - before) == len(submitted), "nothing more was begun"
        disk.make_room()
        found = []
        while not found or not found[0]["settled"]:
            assert time.monotonic() < deadline, found
            done = disk.hpcscale(*words)
            assert done.returncode == 0, done.stderr
            found = moves(disk.hpcscale)
        assert [(m["run_id"], m["step"]) for m in found] == [(job.run_id, "done")]
        assert found[0]["target_state"] == "COMPLETED"
        assert len(cloud_jobs(world) - before) == 1
        assert world.starts(job) == 1
        assert Decimal(found[0]["cost_usd"]) > 0
        assert world.state("lab-onprem", job.ref.job_id) in {"CANCELLED", ""}
        done = disk.hpcscale("burst", "audit")
        assert done.returncode == 0, done.stdout + done.stderr
        assert disk.hpcscale("burst", "reap").stdout == "nothing to reap\n"
    finally:
        disk.close()


# --- clocks


# hpcscale … whose clock jumps back and forth whenever a move is written down
CLOCK_DRIVER = """
import os, select, sys, time
from pathlib import Path
from hpcscale.burst.moves import Moves
# Python sleeps until a moment of the monotonic clock, which libfaketime takes for one of the clock
# that it fakes: "Invalid argument", or two hours. No real jump does that
time.sleep = lambda seconds: select.select([], [], [], max(0.0, seconds))
clock = Path(os.environ["FAKETIME_TIMESTAMP_FILE"])
def jump():
    text = clock.read_text()
    new = clock.with_suffix(".new")
    new.write_text({"+": "-", "-": "+"}[text[0]] + text[1:])
    new.replace(clock)
def after(name):
    original = getattr(Moves, name)
    def wrapped(self, *args, **kw):
        move = original(self, *args, **kw)
        jump()
        return move
    setattr(Moves, name, wrapped)
after("begin")
after("save")
from hpcscale.cli import run
run()
"""


@pytest.mark.parametrize("first", ["+7200s", "-7200s"], ids=["forward", "back"])
def test_our_own_clock_jumps_hours_at_every_step(world, policy_file, tmp_path, first):
    world.fill()
    job = world.submit("echo done")
    before = cloud_jobs(world)
    clock = tmp_path / "clock"
    clock.write_text(first)
    env = {**os.environ, "LD_PRELOAD": faketime_library(), "FAKETIME_TIMESTAMP_FILE": str(clock),
           "FAKETIME_NO_CACHE": "1", "FAKETIME_DONT_FAKE_MONOTONIC": "1"}  # fmt: skip
    found = []
    deadline = time.monotonic() + patience(200)
    while not found or not found[0]["settled"]:
        assert time.monotonic() < deadline, found
        done = subprocess.run(
            [sys.executable, "-c", CLOCK_DRIVER, "burst", "run", "--policy", str(policy_file)],
            capture_output=True, text=True, timeout=patience(120), check=False, env=env,
        )  # fmt: skip
        print(clock.read_text(), done.stdout, done.stderr)  # shown where this fails
        assert done.returncode == 0, done.stderr
        found = moves()
        print(found)
    print(AuditLog().path.read_text())
    assert [(m["run_id"], m["step"]) for m in found] == [(job.run_id, "done")], found
    assert found[0]["target_state"] == "COMPLETED"
    assert len(cloud_jobs(world) - before) == 1
    assert world.starts(job) == 1
    assert world.state("lab-onprem", job.ref.job_id) in {"CANCELLED", ""}
    lines = AuditLog().path.read_text().splitlines()
    assert len({json.loads(line)["at"][:13] for line in lines}) >= 2, "it jumped in the middle"
    assert hpcscale("burst", "audit").returncode == 0
    assert hpcscale("burst", "reap", env=env).stdout == "nothing to reap\n"


@pytest.mark.parametrize(
    ("site", "first_s"), [("lab-onprem", -110), ("lab-cloud", 110)], ids=["on-prem", "cloud"]
)
def test_a_controllers_clock_jumps_at_every_step(world, monkeypatch, site, first_s):
    """Less than two minutes: beyond that slurmd itself refuses what its controller sends."""
    world.fill()
    job = world.submit("echo done")
    before = cloud_jobs(world)
    seen = []

    def jumping(original):
        def stepped(*args, **kw):
            move = original(*args, **kw)
            if move is not None and move.step not in seen:
                seen.append(move.step)
                faults.clock_skew(world.lab, site, first_s if len(seen) % 2 else -first_s)
            return move

        return stepped

    for name in ("begin", "save"):
        monkeypatch.setattr(Moves, name, jumping(getattr(Moves, name)))
    deadline = time.monotonic() + patience(300)
    while not seen or not seen[-1].settled:
        assert time.monotonic() < deadline, (seen, world.said[-5:])
        world.tick()
        time.sleep(0.3)
    faults.clear(world.lab)
    move = world.move(job)
    assert len(seen) >= 3, "it jumped back and forth"
    if move.step is Step.DONE:
        assert len(cloud_jobs(world) - before) == 1
        assert world.starts(job) == 1
        assert world.state("lab-onprem", job.ref.job_id) in {"CANCELLED", ""}
    else:  # taken back: it waits on, with its place
        assert move.step is Step.FAILED, (seen, move)
        assert world.starts(job) == 0
        assert world.state("lab-onprem", job.ref.job_id) == "PENDING"
        assert world.job("lab-onprem", job.ref.job_id)["ExcNodeList"] in {"", "(null)"}
    done = hpcscale("burst", "reap")
    assert (done.returncode, done.stdout) == (0, "nothing to reap\n"), done.stderr
