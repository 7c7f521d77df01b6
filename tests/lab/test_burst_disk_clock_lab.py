"""A move on real Slurm while the ledger's disk is full, and while clocks jump."""

import json
import os
import subprocess
import sys
import time
from decimal import Decimal

import pytest
from burst_world import World, hpcscale

from hpcscale.burst.moves import Step
from hpcscale.lab import faults
from hpcscale.lab.daemons import faketime_library
from hpcscale.lab.process import patience
from hpcscale.ledger import ledger_path

# whole moves, with a process for each run
pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

PAGE = 4096


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


class SmallDisk:
    """The ledger's directory on a file system of its own, which only our commands see."""

    MAKE = (
        'cp -a "$0" "$0.copy" && mount -t tmpfs -o mode=700 none "$0" && '
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

    def argv(self, *argv):
        user = [] if os.getuid() == 0 else ["--user", "--preserve-credentials"]
        return ["nsenter", f"--target={self.keeper.pid}", *user, "--mount", "--wdns=/", *argv]

    def leave_free(self, free_bytes):
        """So much room, and no more."""
        used = subprocess.run(
            self.argv("df", "--output=used", "-B1", str(self.directory)),
            capture_output=True, text=True, check=True, timeout=60,
        ).stdout.split()[-1]  # fmt: skip
        size = int(used) + free_bytes
        subprocess.run(
            self.argv("mount", "-o", f"remount,size={size}", str(self.directory)),
            check=True, timeout=60,
        )  # fmt: skip

    def hpcscale(self, *argv):
        done = subprocess.run(
            self.argv(sys.executable, "-m", "hpcscale", *argv),
            capture_output=True, text=True, timeout=patience(120), check=False,
        )  # fmt: skip
        assert "Traceback" not in done.stderr, done.stderr
        return done

    def close(self):
        self.keeper.kill()
        self.keeper.wait()
        self.keeper.stdout.close()


def test_a_ledger_on_a_full_disk_stops_a_move_and_loses_nothing(world, policy_file):
    """From no room at all to a page more each time: it fills up in act after act."""
    world.fill()
    job = world.submit("echo done")
    before = cloud_jobs(world)
    world.ledger.close()
    disk = SmallDisk(ledger_path().parent)
    try:
        failed, found = 0, []
        deadline = time.monotonic() + patience(400)
        while not found or found[0]["step"] != "done":
            assert time.monotonic() < deadline, found
            disk.leave_free(PAGE * failed)
            done = disk.hpcscale("burst", "run", "--policy", str(policy_file))
            failed += done.returncode != 0
            disk.leave_free(1 << 24)
            found = moves(disk.hpcscale)
            assert len(found) <= 1
            assert len(cloud_jobs(world) - before) <= 1
        assert failed >= 3, "it was full again and again"
        assert (found[0]["run_id"], found[0]["target_state"]) == (job.run_id, "COMPLETED")
        assert len(cloud_jobs(world) - before) == 1
        assert world.starts(job) == 1
        assert Decimal(found[0]["cost_usd"]) > 0
        done = disk.hpcscale("burst", "audit")
        assert done.returncode == 0, done.stdout + done.stderr
        assert disk.hpcscale("burst", "reap").stdout == "nothing to reap\n"
    finally:
        disk.close()


# --- clocks


def jumping(offset_s):
    """This machine's clock as the command sees it."""
    return {**os.environ, "LD_PRELOAD": faketime_library(), "FAKETIME": f"{offset_s:+d}s",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1"}  # fmt: skip


@pytest.mark.parametrize("first_s", [7200, -7200], ids=["forward", "back"])
def test_our_own_clock_jumps_hours_at_every_run(world, policy_file, first_s):
    world.fill()
    job = world.submit("echo done")
    before = cloud_jobs(world)
    offset_s, found = first_s, []
    deadline = time.monotonic() + patience(200)
    while not found or not found[0]["settled"]:
        assert time.monotonic() < deadline, found
        env = jumping(offset_s)
        done = hpcscale("burst", "run", "--policy", str(policy_file), env=env)
        assert done.returncode == 0, done.stderr
        offset_s, found = -offset_s, moves()
    assert [(m["run_id"], m["step"]) for m in found] == [(job.run_id, "done")]
    assert found[0]["target_state"] == "COMPLETED"
    assert len(cloud_jobs(world) - before) == 1
    assert world.starts(job) == 1
    assert hpcscale("burst", "audit").returncode == 0
    assert hpcscale("burst", "reap", env=jumping(7200)).stdout == "nothing to reap\n"


@pytest.mark.parametrize(
    ("site", "first_s"), [("lab-onprem", -110), ("lab-cloud", 110)], ids=["on-prem", "cloud"]
)
def test_a_controllers_clock_jumps_at_every_step(world, site, first_s):
    """Less than two minutes: beyond that slurmd itself refuses what its controller sends."""
    world.fill()
    job = world.submit("echo done")
    before = cloud_jobs(world)
    seen, skew_s = [], first_s
    deadline = time.monotonic() + patience(300)
    while not seen or not seen[-1].settled:
        assert time.monotonic() < deadline, (seen, world.said[-5:])
        world.tick()
        if world.moves.of_run(job.run_id) and (step := world.step(job)) not in seen:
            seen.append(step)
            faults.clock_skew(world.lab, site, skew_s)
            skew_s = -skew_s
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
