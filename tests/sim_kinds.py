"""The work of an interleaving: one job, an array, one that others wait for, or one that may go into
a cloud partition of its own controller."""

import dataclasses

import msgspec
from sim_faults import CLOUD, ONPREM
from sim_judge import ViolationError

import hpcscale.render
import hpcscale.submit
from hpcscale.burst.policy import Order, Policy
from hpcscale.spec import BurstMode, BurstTerms, JobSpec, Resources
from hpcscale.units import parse_array
from hpcscale.verify import submission_of

POLICY = Policy(from_site=ONPREM, to=(CLOUD,), cron_interval_s=20, retry_after_s=60)
FENCE_FIRST = msgspec.structs.replace(POLICY, order=Order.FENCE_FIRST)

# of these kinds the on-prem site has a partition that is paid for, and the job itself moves there
WITHIN = msgspec.structs.replace(POLICY, to=(f"{ONPREM}/cloud",))
BOTH = msgspec.structs.replace(POLICY, to=(f"{ONPREM}/cloud", CLOUD))
BOTH_FENCE_FIRST = msgspec.structs.replace(BOTH, order=Order.FENCE_FIRST)
PARTITION = (
    "partitions.cloud.gpus_per_node=4",
    "partitions.cloud.gpu_hour_usd=6.88",
    "partitions.cloud.fabric.kind=efa",
    "partitions.cloud.burst.target=true",
    "partitions.cloud.burst.boot_allowance_s=60",
    "partitions.cloud.burst.boot_timeout_s=300",
)

# kind of work: its array, and what waits for it
KINDS = {
    "job": (None, ()),
    "array": ("0-1", ()),
    "array%1": ("0-2%1", ()),
    "afterok": (None, ("afterok",)),
    "afterany": (None, ("afterany", "afterok")),
    "singletons": (None, ("singleton", "singleton")),
    "array afterok": ("0-1", ("afterok",)),
    "partition": (None, ()),
    "partition afterok": (None, ("afterok",)),
}
WEIGHTS = (8, 2, 2, 2, 1, 2, 1, 3, 1)


def policies_of(kind):
    """Those of which each ledger has one."""
    if kind.startswith("partition"):
        return [WITHIN, WITHIN, BOTH, BOTH_FENCE_FIRST]
    return [POLICY, POLICY, FENCE_FIRST]


@dataclasses.dataclass
class Start:
    """A job in a full queue, its site and its ledger, as they are before anything goes wrong."""

    job: object
    filler: str
    behind: dict  # number -> what it waits for
    sites: dict
    ledger: object
    now_s: float
    facts: object  # what its controller says of its partitions


class Kinds:
    """The job, and those that wait for it; ``World`` is one."""

    def _submit_job(self):
        """Submitted once for all interleavings; each goes on from there."""
        starts = self.base.starts
        if self.kind not in starts:
            starts[self.kind] = self._make_start()
        start = starts[self.kind]
        self.job, self.fillers, self.now_s = start.job, [start.filler], start.now_s
        self.facts = start.facts
        for name, sim in self.sim.items():
            sim.put_back(start.sites[name])
        if self.within and self.random.random() < 0.3:  # others have all of the cloud's nodes
            self.fillers.append(
                self._stranger("-N4", "-pcloud", "--time=9999", script="sleep 99999")
            )
        array = KINDS[self.kind][0]
        self.tasks = [None] if array is None else parse_array(array)[0]
        self.behind = dict.fromkeys(start.behind, False)  # number -> has it begun?
        self.terms = start.behind
        self.ledgers = [self.base.ledger(f"{n}.sqlite3", start.ledger) for n in ("one", "other")]

    def _make_start(self):
        array, behind = KINDS[self.kind]
        self.behind = {}
        ledger = self.base.ledger(f"start {self.kind}.sqlite3")
        onprem = self.connections[ONPREM]
        filler = self._stranger("-N4", "--exclusive", "--time=9999", script="sleep 99999")
        self.pass_time(1)
        spec = JobSpec(
            name="urgent",
            command=("true",),
            array=array,
            resources=Resources(
                nodes=2 if array is None else 1, gpus_per_node=4, time_limit_s=3600
            ),
            burst=BurstTerms(mode=BurstMode.ONLY),
        )
        rendered = hpcscale.render.render(spec, onprem.site)
        job = hpcscale.submit.submit(rendered, onprem.site, onprem, ledger)
        waits = {}
        for kind in behind:
            term = kind if kind == "singleton" else f"{kind}:{job.ref.job_id}"
            options = ["-N1", "--gpus-per-node=1", "--time=5", "--job-name=urgent"]
            number = self._stranger(*options, f"--dependency={term}", script="sleep 5")
            waits[int(number)] = term
        self.pass_time(6)  # its controller has saved them
        sites = {name: sim.as_it_stands() for name, sim in self.sim.items()}
        facts = onprem.client.facts()
        return Start(job, filler, waits, sites, ledger, self.now_s, facts)

    def _stranger(self, *options, script):
        sim = self.sim[ONPREM]
        return sim.run(
            ["sbatch", "--parsable", *options], stdin=f"#!/bin/sh\n{script}\n"
        ).stdout.strip()

    def _origin_records(self):
        jobs = self.sim[ONPREM].jobs.values()
        return [j for j in jobs if submission_of(j.comment) == self.job.submission_id]

    def _origin_job(self, task=None):
        """The record of the on-prem job, or of that element."""
        records = self._origin_records()
        return next((j for j in records if task is None or task == j.task or task in j.tasks), None)

    def _look_behind(self):
        """Whoever waits for the job begins when it may."""
        for number, begun in self.behind.items():
            job = self.sim[ONPREM].jobs.get(number)
            if job is None or (job.started is None) is not begun or job.state == "CANCELLED":
                continue
            self.behind[number] = not begun  # or its controller has forgotten that it began
            if begun:
                continue
            self.counts["those behind it: begun"] += 1
            self.trace.append(f"{self.now_s:7.1f} {number} begins, which waited for it")
            if self.terms[number].startswith("afterok") and not self._all_done():
                raise ViolationError(f"too soon: {self.terms[number]} begins before a good end")
            if self.cancelled_by_user or self.counts["fault.cloud_crash"]:
                continue  # both ends go their own way; or the end was forgotten after it was told
            for script in self.scripts:
                if script.running and script.killed_at is None:
                    raise ViolationError(
                        f"too soon: {self.terms[number]} begins, it runs at {script.site}"
                    )

    def _all_done(self, *, heard=False):
        ended = {end[2] for end in self.done} if heard else {task for _, task in self.good}
        done = ended | self.cancelled_tasks
        return all(task in done for task in self.tasks)

    def _waiting_behind(self):
        """Those that can still begin; Slurm itself keeps those whose term has failed."""
        found = [self.sim[ONPREM].jobs.get(number) for number in self.behind]
        return [
            j
            for j in found
            if j and j.state == "PENDING" and j.reason != "DependencyNeverSatisfied"
        ]

    def _judge_behind(self):
        for number in self.behind:
            job = self.sim[ONPREM].jobs.get(number)
            if job is None or job.state != "PENDING":
                continue
            if job.reason != "DependencyNeverSatisfied":
                raise ViolationError(f"lost: {self.terms[number]} waits for ever ({job.reason})")
            self.counts["those behind it: never"] += 1
            # a stand-in is a job too, and may fail by itself: then they hear of no good end
            faults = ("onprem_crash", "site_jump", "onprem_full", "cloud_crash")
            failed = any(self.counts[f"fault.{name}"] for name in faults)
            cancelled = self.cancelled_by_user or self.cancelled_tasks
            if self._all_done(heard=True) and not cancelled and not failed:
                raise ViolationError(f"lost: {self.terms[number]} never begins after a good end")
