"""Exactly once on real Slurm: what claim and gate do when things fail."""

import os
import shutil
import signal
import subprocess
import sys

import pytest
from burst_world import World, hpcscale
from lab_helpers import saved

from hpcscale.burst.claims import Word, decision, take
from hpcscale.burst.moves import Moves, Step
from hpcscale.burst.policy import Policy
from hpcscale.lab import faults
from hpcscale.lab.process import patience

SHORT = Policy(from_site="lab-onprem", to=("lab-cloud",), max_wait_s=3600, cron_interval_s=4)


# minutes of real faults; tests/unit/test_burst_gate.py shows the same on faked sites
pytestmark = pytest.mark.slow


class Handed(World):
    """What these tests ask besides."""

    def claims(self, submission):
        state = submission.run_dir.rpartition("/runs/")[0]
        names = self.lab.site("lab-onprem").exec(["ls", f"{state}/claims"]).stdout.split()
        return [n for n in names if n.startswith(submission.run_id)]

    def free(self, filler):
        self.lab.site("lab-onprem").exec(["scancel", filler], check=True)

    def unfence(self, submission):
        """As a controller that has forgotten it."""
        self.lab.site("lab-onprem").exec(
            ["scontrol", "update", f"JobId={submission.ref.job_id}", "ExcNodeList="], check=True
        )

    def ran(self, submission):
        """Sites at which user code began, by its own reports' files."""
        found = []
        for site in ("lab-onprem", "lab-cloud"):
            events = f"{self.connections(site).state_dir}/runs/{submission.run_id}/events"
            listing = self.lab.site(site).exec(["find", events, "-name", "*.started"]).stdout
            found += [site] * len(listing.split())
        return found


@pytest.fixture
def world(lab_factory, use_lab, tmp_path):
    """Every cloud node of it is switched off."""
    project = tmp_path / "project"
    project.mkdir()
    (project / "hello.txt").write_text("goes along as code")
    world = Handed(use_lab(lab_factory(resume_timeout_s=7200)), project)
    yield world
    world.close()


def gated(world, job, policy=SHORT):
    """Until its gang is at the gate; nothing has claimed or opened."""
    # no node boots while this run looks, else it might go on to the opening
    faults.slow_boot(world.lab, 3600)
    world.tick(policy)
    assert world.step(job) is Step.SUBMITTED
    faults.slow_boot(world.lab, 0)
    target = world.target(job)
    events = f"{target.run_dir}/events/{target.submission_id}.0.gated"
    cloud = world.lab.site("lab-cloud")
    world.until(
        lambda: cloud.exec(["test", "-e", events]).returncode == 0, 40, "the gang is at its gate"
    )
    return target


def test_a_lease_that_nobody_opens_ends_the_cloud_job_and_the_on_prem_job_runs(world):
    filler = world.fill()
    job = world.submit("sleep 1")
    target = gated(world, job)
    # nobody comes back; the fence is forgotten
    world.until(
        lambda: world.state("lab-cloud", target.job_id) == "FAILED", 40, "its lease runs out"
    )
    assert world.job("lab-cloud", target.job_id)["ExitCode"] == "98:0"
    transport = world.connections("lab-cloud").transport
    assert decision(transport, target) is Word.EXPIRED
    world.unfence(job)
    world.free(filler)
    world.until(
        lambda: world.state("lab-onprem", job.ref.job_id) == "COMPLETED", 40, "it runs on-prem"
    )
    assert world.ran(job) == ["lab-onprem"]
    assert world.settled(job, policy=SHORT).step in {Step.CANCELLED, Step.WITHDRAWN, Step.FAILED}
    assert world.claims(job) == [f"{job.run_id}.{job.submission_id}.0"]


def test_an_expired_lease_gives_the_fenced_job_its_place_back(world):
    world.fill()
    job = world.submit("sleep 1")
    world.until(
        lambda: world.job("lab-onprem", job.ref.job_id)["AccrueTime"] != "Unknown", 20, "it ages"
    )
    before = world.job("lab-onprem", job.ref.job_id)
    target = gated(world, job)
    world.until(
        lambda: world.state("lab-cloud", target.job_id) == "FAILED", 40, "its lease runs out"
    )
    move = world.settled(job, policy=SHORT)
    assert move.step is Step.FAILED, move
    assert move.gate_idle_s >= SHORT.lease_s
    after = world.job("lab-onprem", job.ref.job_id)
    assert after["ExcNodeList"] == before["ExcNodeList"]
    assert after["AccrueTime"] == before["AccrueTime"]
    assert world.state("lab-onprem", job.ref.job_id) == "PENDING"


def test_an_on_prem_start_that_finds_the_claim_taken_begins_nothing(world):
    filler = world.fill()
    job = world.submit("sleep 1")
    target = gated(world, job, Policy(**{**_fields(SHORT), "cron_interval_s": 300}))
    origin = world.ledger.attempt(job.submission_id)
    claim = take(world.connections("lab-onprem").transport, origin, target.submission_id)
    assert claim.owner == target.submission_id  # and killed here, before it was noted
    world.unfence(job)
    world.free(filler)
    onprem = world.lab.site("lab-onprem")
    log = f"{job.run_dir}/logs/{job.ref.job_id}.log"
    world.until(
        lambda: "has the claim: nothing is started" in onprem.exec(["cat", log]).stdout,
        40,
        "it starts, and begins nothing",
    )
    world.until(
        lambda: world.state("lab-onprem", job.ref.job_id) == "PENDING", 40, "back in the queue"
    )
    assert world.ran(job) == []
    assert world.settled(job).step is Step.DONE
    assert world.ran(job) == ["lab-cloud"]
    assert world.state("lab-onprem", job.ref.job_id) == "CANCELLED"


def test_the_reply_of_the_opening_is_lost(world):
    world.fill()
    job = world.submit("sleep 1")
    gated(world, job, Policy(**{**_fields(SHORT), "cron_interval_s": 300}))
    faults.ssh_cut(world.lab, "after", match="ln -T")
    move = world.settled(job, 60)
    assert move.step is Step.DONE, move
    assert world.ran(job) == ["lab-cloud"]
    assert world.state("lab-onprem", job.ref.job_id) == "CANCELLED"


def test_two_runs_with_separate_ledgers_share_the_claims_alone(world, tmp_path):
    world.fill()
    job = world.submit("sleep 2")
    policy = tmp_path / "P.toml"
    policy.write_text('from = "lab-onprem"\nto = ["lab-cloud"]\ncron_interval = "10s"\n')
    one = world.ledger.path.parent
    two = tmp_path / "other-login-node"
    two.mkdir()
    shutil.copy(world.ledger.path, two / world.ledger.path.name)
    argv = [
        sys.executable,
        "-m",
        "hpcscale",
        "burst",
        "run",
        "--policy",
        str(policy),
        "--wait",
    ]
    both = [
        subprocess.Popen(
            argv, env={**os.environ, "HPCSCALE_STATE_DIR": str(folder)},
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for folder in (one, two)
    ]  # fmt: skip
    outputs = [p.communicate(timeout=patience(150)) for p in both]
    assert all("Traceback" not in err for _, err in outputs), outputs
    world.until(lambda: world.ran(job), 30, "it has begun somewhere")
    assert world.ran(job) == ["lab-cloud"], outputs
    assert world.state("lab-onprem", job.ref.job_id) == "CANCELLED"
    world.until(
        lambda: not world.lab.site("lab-cloud").exec(["squeue", "-h"]).stdout.strip(), 60,
        "no cloud job is left",
    )  # fmt: skip


def test_reap_ends_what_a_forgotten_cancel_left(world):
    world.fill()
    job = world.submit("sleep 1")
    gated(world, job, Policy(**{**_fields(SHORT), "cron_interval_s": 300}))
    target = world.target(job)
    done = hpcscale("burst", "reap")
    assert (done.returncode, done.stdout) == (0, "nothing to reap\n"), done.stderr
    world.moves.save(world.move(job), step=Step.FAILED)  # its cancel was forgotten by slurmctld
    done = hpcscale("burst", "reap")
    assert done.returncode == 0, done.stderr
    assert f"lab-cloud:{target.job_id}" in done.stdout
    world.until(
        lambda: world.state("lab-cloud", target.job_id) in {"CANCELLED", "FAILED"},
        20,
        "it is ended",
    )
    assert world.ran(job) == []
    world.unfence(job)


def test_requeued_on_prem_jobs_pass_their_own_claims(world):
    job = world.submit("sleep 60")
    world.until(lambda: world.ran(job) == ["lab-onprem"], 30, "it has begun")
    onprem = world.lab.site("lab-onprem")
    onprem.exec(["scontrol", "requeue", str(job.ref.job_id)], check=True)
    world.until(
        lambda: world.state("lab-onprem", job.ref.job_id) == "PENDING", 30, "back in the queue"
    )
    # no StartTime=now here: a start within the second of the requeue has a revoked credential
    world.until(lambda: world.ran(job) == ["lab-onprem"] * 2, 150, "it begins again")
    assert len(world.claims(job)) == 2
    onprem.exec(["scancel", str(job.ref.job_id)], check=True)


@pytest.mark.slow  # a controller's crash and its restart; slurmctld's own delays
def test_a_controller_killed_right_after_the_fence(world):
    filler = world.fill()
    job = world.submit("sleep 1")
    onprem = world.lab.site("lab-onprem")
    saved(onprem)
    killed = subprocess.run(
        [sys.executable, "-c", KILL_AFTER_FENCE],
        capture_output=True, text=True, timeout=patience(120), check=False,
    )  # fmt: skip
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    faults.controller(world.lab, "lab-onprem", "kill")
    faults.controller(world.lab, "lab-onprem", "restart")
    world.free(filler)
    # nobody holds it back any more: on-prem or cloud, but once
    policy = Policy(**{**_fields(SHORT), "cron_interval_s": 60})
    world.settled(job, 120, policy)
    world.until(lambda: world.ran(job), 60, "it has begun")
    assert len(world.ran(job)) == 1
    assert len(Moves(world.ledger).of_run(job.run_id)) >= 1


KILL_AFTER_FENCE = """
import os, signal, time
from hpcscale.burst.policy import Policy
from hpcscale.burst.run import Connections, tick
from hpcscale.ledger import Ledger
from hpcscale.slurm.cli import CliClient
update = CliClient.update
def fenced(self, job, fields):
    update(self, job, fields)
    os.kill(os.getpid(), signal.SIGKILL)
CliClient.update = fenced
while True:  # the fence comes once the gang is at its gate
    tick(Ledger.open(), Policy(from_site="lab-onprem", to=("lab-cloud",)), Connections())
    time.sleep(0.2)
"""


def _fields(policy):
    return {name: getattr(policy, name) for name in policy.__struct_fields__}
