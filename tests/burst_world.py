"""The lab's two sites and one user's ledger, for tests of moves on real Slurm."""

import subprocess
import sys
import time

import pytest
from lab_helpers import LEAST_S, until

from hpcscale.burst.moves import Moves
from hpcscale.burst.policy import Order, Policy
from hpcscale.burst.run import Connections, tick
from hpcscale.connect import connect
from hpcscale.lab.process import patience
from hpcscale.ledger import Ledger
from hpcscale.render import render
from hpcscale.site import load_site
from hpcscale.spec import BurstMode, BurstTerms, JobSpec, Resources
from hpcscale.submit import submit

POLICY = Policy(from_site="lab-onprem", to=("lab-cloud",), max_wait_s=3600)
FENCE_FIRST = Policy(
    from_site="lab-onprem", to=("lab-cloud",), max_wait_s=3600, order=Order.FENCE_FIRST
)


# hpcscale … that kills itself where a move reaches a step (with + : and its fence is noted)
KILL_DRIVER = """
import os, signal, sys
from hpcscale.burst.moves import Moves
wanted = sys.argv.pop(1)
def after(name):
    original = getattr(Moves, name)
    def wrapped(self, *args, **kw):
        move = original(self, *args, **kw)
        if move is not None and move.step.value == wanted.rstrip("+") and (
            not wanted.endswith("+") or move.fence is not None
        ):
            os.kill(os.getpid(), signal.SIGKILL)
        return move
    setattr(Moves, name, wrapped)
after("begin")
after("save")
from hpcscale.cli import run
run()
"""


class World:
    """One user's ledger, the lab's two sites, and what the tests ask of them."""

    def __init__(self, lab, project):
        self.lab = lab
        self.project = project
        self.ledger = Ledger.open()
        self.connections = Connections()
        self.said = []

    @property
    def moves(self):
        return Moves(self.ledger)

    def close(self):
        self.connections.close()
        self.ledger.close()

    def fill(self):
        """A stranger's job on every on-prem node; its id."""
        done = self.lab.site("lab-onprem").exec(
            ["sbatch", "--parsable", "-N4", "--exclusive", "--time=60"],
            stdin="#!/bin/sh\nsleep 600\n",
            check=True,
        )
        filler = done.stdout.strip()
        self.until(lambda: self.state("lab-onprem", filler) == "RUNNING", 20, "filler runs")
        return filler

    def submit(self, command="sleep 1", array=None, after=(), **terms):
        terms = {"mode": BurstMode.ONLY, **terms}
        spec = JobSpec(
            name="urgent",
            command=("sh", "-c", command),
            array=array,
            after=after,
            workdir=str(self.project),
            resources=Resources(nodes=2, gpus_per_node=1, time_limit_s=600),
            burst=BurstTerms(**terms),
        )
        site = load_site("lab-onprem").site
        with connect(site) as connection:
            return submit(render(spec, site), site, connection, self.ledger)

    def tick(self, policy=POLICY):
        return tick(self.ledger, policy, self.connections, self.said.append)

    def ticks_until(self, condition, timeout_s, what, policy=POLICY):
        """Tick like cron, only faster."""
        deadline = time.monotonic() + patience(max(timeout_s, LEAST_S))
        while True:
            done = self.tick(policy)
            if condition():
                return done
            if time.monotonic() > deadline:
                pytest.fail(f"not within {timeout_s} s: {what}; {self.said[-5:]} {done.problems}")
            time.sleep(0.5)

    def move(self, submission):
        return self.moves.of_run(submission.run_id)[-1]

    def step(self, submission):
        return self.move(submission).step

    def settled(self, submission, timeout_s=60, policy=POLICY):
        """Tick until the move is settled; the move."""
        self.ticks_until(lambda: self.step(submission).settled, timeout_s, "settled", policy)
        return self.move(submission)

    def target(self, submission):
        return self.ledger.attempt(self.move(submission).target)

    def job(self, site, job_id):
        """Fields of ``scontrol show job``."""
        done = self.lab.site(site).exec(["scontrol", "-o", "show", "job", str(job_id)])
        return dict(word.split("=", 1) for word in done.stdout.split() if "=" in word)

    def state(self, site, job_id):
        return self.job(site, job_id).get("JobState", "")

    def comment(self, submission):
        status = self.connections("lab-onprem").client.show(submission.ref.job_id)
        return status.comment

    def starts(self, submission):
        """How often user code was started, at both sites together."""
        return self.starts_of(submission.run_id)

    def starts_of(self, run_id):
        """How often user code of a run was started, at both sites together."""
        count = 0
        for site in ("lab-onprem", "lab-cloud"):
            run_dir = f"{connect(load_site(site).site).state_dir}/runs/{run_id}/events"
            found = self.lab.site(site).exec(["find", run_dir, "-name", "*.started"])
            count += len(found.stdout.split())
        return count

    def cloud_jobs(self):
        """Every job of this ledger that the cloud site knows, ended ones too."""
        done = self.lab.site("lab-cloud").exec(["squeue", "-h", "-t", "all", "-o", "%i %T %k"])
        mine = [a.submission_id for a in self.ledger.all_attempts("lab-cloud")]
        return [line for line in done.stdout.splitlines() if any(i in line for i in mine)]

    def until(self, condition, timeout_s, what):
        return until(condition, timeout_s, what)


def hpcscale(*argv, **kw):
    """The command line in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "hpcscale", *argv],
        capture_output=True,
        text=True,
        timeout=patience(120),
        check=False,
        **kw,
    )
