"""A faked site with a cloud partition of its own, for tests of moves into it."""

from fake_sites import Sites

from hpcscale.burst.handover import Handover
from hpcscale.burst.policy import Policy
from hpcscale.connect import Connection
from hpcscale.site import load_site
from hpcscale.slurm.cli import CliClient
from hpcscale.testing import FakeSlurm

SETTINGS = [
    "partitions.cloud.gpus_per_node=4",
    "partitions.cloud.gpu_hour_usd=6.88",
    "partitions.cloud.fabric.kind=efa",
    "partitions.cloud.burst.target=true",
    "partitions.cloud.burst.boot_allowance_s=60",
    "partitions.cloud.burst.boot_timeout_s=300",
    "partitions.cloud.env.SCRATCH=/nvme",
]
WITHIN = Policy(from_site="lab-onprem", to=("lab-onprem/cloud",), retry_after_s=600)
BOTH = Policy(from_site="lab-onprem", to=("lab-onprem/cloud", "lab-cloud"))


class Partitions(Sites):
    """The on-prem site has a partition of its own that boots on demand."""

    def __init__(self, tmp_path):
        super().__init__(tmp_path)
        self.policy = WITHIN
        self.onprem = FakeSlurm(cloud_nodes=4)
        self.connections["lab-onprem"] = Connection(
            site=load_site("lab-onprem", [f"state_dir={tmp_path / 'lab-onprem'}", *SETTINGS]).site,
            transport=self.onprem,
            client=CliClient(self.onprem),
            clock=self.onprem.clock,
        )

    def site(self, name):
        site, _, partition = name.partition("/")
        found = self.connections[site].site
        return found.in_partition(partition) if partition else found

    def __call__(self, name):
        return super().__call__(name.partition("/")[0])

    def partition(self, submission):
        return self.connections["lab-onprem"].client.show(submission.ref.job_id).partition

    def attempt(self, submission):
        return self.ledger.attempt(submission.submission_id)

    def busy_cloud(self):
        """Strangers have all of the cloud partition."""
        options = ["-N4", "-pcloud", "--time=9999"]
        self.batch(*options)
        self.both(1)

    def handover(self):
        return Handover(self.ledger, self, self.project)
