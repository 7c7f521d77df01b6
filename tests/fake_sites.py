"""Two faked sites with a ledger, for tests of moves between them."""

import json

import msgspec

from hpcscale.burst.moves import Moves, Step
from hpcscale.burst.policy import Order, Policy
from hpcscale.burst.run import tick
from hpcscale.connect import Connection
from hpcscale.errors import UnreachableError
from hpcscale.ledger import Ledger
from hpcscale.render import render
from hpcscale.site import load_site
from hpcscale.slurm.cli import CliClient
from hpcscale.spec import BurstMode, BurstTerms, JobSpec, Resources
from hpcscale.submit import submit
from hpcscale.testing import FakeSlurm

POLICY = Policy(from_site="lab-onprem", to=("lab-cloud",))
FENCE_FIRST = msgspec.structs.replace(POLICY, order=Order.FENCE_FIRST)
NODES = "node[1-4]"


class Sites:
    """Two faked sites and a ledger; stands in for ``burst.run.Connections``."""

    def __init__(self, tmp_path):
        self.onprem, self.cloud = FakeSlurm(), FakeSlurm(boot_s=30)
        self.ledger = Ledger.open(tmp_path / "ledger.sqlite3")
        self.policy = POLICY
        self.down = set()
        self.project = tmp_path / "project"
        self.project.mkdir(parents=True)
        self.connections = {
            name: Connection(
                site=load_site(name, [f"state_dir={tmp_path / name}"]).site,
                transport=fake,
                client=CliClient(fake),
                clock=fake.clock,
            )
            for name, fake in (("lab-onprem", self.onprem), ("lab-cloud", self.cloud))
        }

    def site(self, name):
        return self.connections[name].site

    def __call__(self, name):
        if name in self.down:
            raise UnreachableError("no route", where=name)
        return self.connections[name]

    def close(self):
        """As ``Connections``: a command drops what it opened; these stay."""

    def fill(self):
        self.batch("-N4", "--exclusive", "--time=9999")
        self.onprem.advance(1)

    def batch(self, *options):
        """A stranger's job on-prem; its id."""
        done = self.onprem.run(["sbatch", "--parsable", *options], stdin="#!/bin/sh\nsleep 99999\n")
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def submit(self, deadline=None, mode=BurstMode.ONLY, **kw):
        spec = JobSpec(
            name="urgent",
            command=("sleep", "60"),
            workdir=str(self.project),
            resources=Resources(nodes=2, gpus_per_node=4, time_limit_s=3600),
            burst=BurstTerms(mode=mode, deadline=deadline),
            **kw,
        )
        connection = self.connections["lab-onprem"]
        done = submit(render(spec, connection.site), connection.site, connection, self.ledger)
        self.both(1)
        return done

    def both(self, seconds):
        self.onprem.advance(seconds)
        self.cloud.advance(seconds)

    def tick(self):
        return tick(self.ledger, self.policy, self)

    def move(self, submission):
        return Moves(self.ledger).of_run(submission.run_id)[-1]

    def target(self, submission):
        return self.ledger.attempt(self.move(submission).target)

    def begin(self, submission):
        """The gang comes to its gate, the handover opens it, the command begins."""
        target = self.target(submission).submission_id
        self.report(target, "gated")
        self.tick()
        assert self.move(submission).step is Step.CANCELLING, self.move(submission).message
        self.report(target)
        self.tick()

    def report(self, submission_id, kind="started", task=None, **data):
        """What the script would write: a fake runs none."""
        attempt = self.ledger.attempt(submission_id)
        element = "" if task is None else f".task{task}"
        path = f"{attempt.run_dir}/events/{submission_id}{element}.0.{kind}"
        event = {"event": kind, "job": str(attempt.job_id), "restart": 0, "time": 1.0, **data}
        connection = self.connections[attempt.site]
        connection.transport.put_bytes(json.dumps(event).encode(), path)

    def user_excludes(self, submission, nodes):
        """Its user, or a controller that has forgotten, changes the on-prem job's list."""
        client = self.connections["lab-onprem"].client
        assert client.update(submission.ref.job_id, {"ExcNodeList": nodes})

    def comment(self, submission):
        return self.connections["lab-onprem"].client.show(submission.ref.job_id).comment

    def excluded(self, submission):
        return self.connections["lab-onprem"].client.show(submission.ref.job_id).exc_nodes


class Waited:
    """A client that tells of a job which waits for another: FakeSlurm knows no dependencies."""

    def __init__(self, real, job_id, dependency):
        self.real, self.job_id, self.dependency = real, str(job_id), dependency

    def __getattr__(self, name):
        return getattr(self.real, name)

    def jobs(self, *args, **kw):
        answer = self.real.jobs(*args, **kw)
        if self.job_id in answer.jobs:
            answer.jobs[self.job_id] = msgspec.structs.replace(
                answer.jobs[self.job_id], dependency=self.dependency, reason="Dependency"
            )
        return answer
