"""A site on ``FakeSlurm``: connection, ledger and jobs for tests of submit and observe."""

import datetime as dt
import hashlib
import json
from decimal import Decimal

from hpcscale.clock import SiteClock
from hpcscale.connect import Connection
from hpcscale.ledger import Ledger
from hpcscale.observe import observe
from hpcscale.render import RenderedJob
from hpcscale.site import Fabric, Price, Site
from hpcscale.slurm.cli import CliClient
from hpcscale.spec import JobSpec, Resources
from hpcscale.submit import submit
from hpcscale.testing import FakeSlurm


class FakeSite:
    """``slurm`` is what a test breaks; ``submit`` and ``observe`` are what it looks at."""

    def __init__(self, tmp_path, name="onprem", **options):
        self.slurm = FakeSlurm(**options)
        self.site = Site(
            name=name,
            as_of=dt.date(2026, 1, 1),
            fabric=Fabric(kind="loopback"),
            price=Price(gpu_hour_usd=Decimal("2.00"), source="test", as_of=dt.date(2026, 1, 1)),
        )
        client = CliClient(self.slurm)
        self.state_dir = tmp_path / f"site-{name}"
        self.connection = Connection(
            site=self.site,
            transport=self.slurm,
            client=client,
            clock=SiteClock(client.now, trust_s=0),
            _state_dir=str(self.state_dir),
        )
        self.ledger = Ledger.open(tmp_path / "ledger.sqlite3")

    def rendered(self, body="sleep 100", **fields):
        fields.setdefault("command", ("true",))
        fields.setdefault("resources", Resources(nodes=1, gpus_per_node=1, time_limit_s=3600))
        spec = JobSpec(**fields)
        lines = ["#!/bin/bash", f"#SBATCH --nodes={spec.resources.nodes}"]
        lines.append(f"#SBATCH --gpus-per-node={spec.resources.gpus_per_node}")
        if spec.array:
            lines.append(f"#SBATCH --array={spec.array}")
        script = "\n".join([*lines, body, ""])
        return RenderedJob(
            site=self.site.name,
            script=script,
            options=(f"--job-name={spec.name}",),
            spec=spec,
            spec_hash=spec.spec_hash(),
            sha256=hashlib.sha256(script.encode()).hexdigest(),
        )

    def submit(self, body="sleep 100", *, rendered=None, run=None, **fields):
        rendered = rendered or self.rendered(body, **fields)
        return submit(rendered, self.site, self.connection, self.ledger, run=run)

    def observe(self, *attempts):
        return observe(self.ledger, lambda _: self.connection, attempts or None)

    def see(self, submission):
        """Ask the site, then the attempt as the ledger has it."""
        self.observe()
        return self.ledger.attempt(submission.submission_id)

    def report(self, submission, kind, *, restart=0, task=None, **data):
        """What the job's script would write into its run's directory."""
        part = "" if task is None else f".task{task}"
        name = f"{submission.submission_id}{part}.{restart}.{kind}"
        if "job" not in data:
            data["job"] = str(submission.ref.job_id)
        data = {"event": kind, "time": 1795000000, **data}
        path = self.state_dir / "runs" / submission.run_id / "events" / name
        path.write_text(json.dumps(data))

    def count(self, command):
        """How often a Slurm command was called."""
        return sum(call[0].rpartition("/")[2] == command for call in self.slurm.calls)

    def forget(self, submission):
        """The controller drops the job, as after MinJobAge."""
        base = submission.ref.job_id.base
        for number in [n for n, job in self.slurm.jobs.items() if job.base == base]:
            del self.slurm.jobs[number]
