"""A lab with a full on-prem queue, made ready before each injection; small questions to it."""

import itertools
import os
import time

from injection_set import TASKS

from hpcscale.burst.elements import element_run_id
from hpcscale.connect import connect
from hpcscale.errors import HpcscaleError
from hpcscale.lab import faults
from hpcscale.lab.daemons import registered
from hpcscale.lab.process import patience
from hpcscale.ledger import Ledger
from hpcscale.render import render
from hpcscale.site import load_site
from hpcscale.spec import BurstMode, BurstTerms, JobSpec, Resources
from hpcscale.submit import submit
from hpcscale.verify import submission_of

ONPREM, CLOUD = "lab-onprem", "lab-cloud"
READY_S = 60
BEHIND = ("afterok", "afternotok")
# what begins is counted, also where the disk is full for a while
COMMAND = r"""
# no cd: where the disk is full, something is mounted over the directory for a while
start="$HPCSCALE_SITE $(date +%s.%N) $HPCSCALE_SUBMISSION_ID $HPCSCALE_RESTART_COUNT"
start="$start ${SLURM_ARRAY_TASK_ID:--}"
# what is mounted over it may hide a line that was being written: it is looked for
until echo "$start" >> "$HPCSCALE_RUN_DIR/witness" \
  && grep -qxF "$start" "$HPCSCALE_RUN_DIR/witness"; do sleep 0.1; done
sleep 0.5
until echo end >> "$HPCSCALE_RUN_DIR/ended"; do sleep 0.1; done"""


class NotReadyError(AssertionError):
    """The lab does not come back from what was before. Nothing was injected into it."""


class InjectionLab:
    """Both sites, and what users and strangers do there."""

    def __init__(self, lab):
        self.lab = lab

    # ---- small questions ----

    def onprem(self, *argv, check=False):
        return self.lab.site(ONPREM).exec(list(argv), check=check).stdout.strip()

    def cloud(self, *argv, check=False):
        return self.lab.site(CLOUD).exec(list(argv), check=check).stdout.strip()

    def jobs(self, job_id):
        """State, name and reason of each record on-prem; None: no answer."""
        argv = ["squeue", "-h", "-t", "all", "-j", str(job_id), "-o", "%T %j %r"]
        done = self.lab.site(ONPREM).exec(argv)
        if done.returncode and "Invalid job id" not in done.stderr:
            return None
        return [line.split(" ", 2) for line in done.stdout.splitlines()]

    def all_jobs(self, job, states):
        """The same of all that was submitted on-prem for its run: one that is forgotten is again."""
        found = []
        for state in states:
            with Ledger.open(state / "ledger.sqlite3") as ledger:
                for attempt in ledger.attempts(job.run_id):
                    if attempt.site == ONPREM and attempt.job_id is not None:
                        if (records := self.jobs(attempt.job_id)) is None:
                            return None
                        found += records
        return found

    def until(self, condition, timeout_s, poll_s=0.05):
        deadline = time.monotonic() + timeout_s
        while not (value := condition()):
            if time.monotonic() > deadline:
                return False
            time.sleep(poll_s)
        return value

    # ---- before an injection ----

    def ready(self):
        """Nothing is left of what was before, each node can be used, strangers have those on-prem.

        Raises:
            NotReadyError: it does not come to that.
        """
        deadline = time.monotonic() + patience(READY_S)
        for rounds in itertools.count():
            try:
                if (
                    rounds % 20 == 2
                ):  # not at once: most jobs and nodes come to their end by themselves
                    faults.clear(self.lab)
                why = self._hinders()
            except HpcscaleError as exc:
                why = str(exc)
            if not why:
                return
            if time.monotonic() > deadline:
                raise NotReadyError(why)
            time.sleep(0.2)

    def _hinders(self):
        """One thing that is not as it must be, and is put right; empty: nothing.

        Jobs are known by their names. A controller that died forgets what it was told last: one that
        was cancelled may be back, and its number be another's.
        """
        listings = {}
        for name in (ONPREM, CLOUD):
            done = self.lab.site(name).exec(["squeue", "-h", "-o", "%A %T %j"])
            if done.returncode:
                return f"{name} does not answer: {done.stderr.strip()}"
            listings[name] = [line.split(" ", 2) for line in done.stdout.splitlines()]
        fillers = sorted(
            (job for job in listings[ONPREM] if job[2] == "filler" and job[1] != "COMPLETING"),
            key=lambda job: (job[1] != "RUNNING", int(job[0])),
        )
        for name, jobs in listings.items():
            if left := [job for job in jobs if job not in fillers[:1]]:
                if waits := [job[0] for job in left if job[1] != "COMPLETING"]:
                    self.lab.site(name).exec(["scancel", *waits])
                return f"jobs are left on {name}: {left}"
        self.undrain()
        for name in (ONPREM, CLOUD):
            states = self.lab.site(name).node_states()
            if bad := {n: state for n, state in states.items() if not registered(states, [n])}:
                return f"nodes of {name} cannot be used: {bad}"
        if not fillers:
            self.fill()
            return "the strangers' job is new"
        return "" if fillers[0][1] == "RUNNING" else f"the strangers' job does not run: {fillers}"

    def undrain(self):
        """As an operator does: a controller that forgot a start drains nodes (Duplicate jobid)."""
        for ask in (self.onprem, self.cloud):
            listing = ask("sinfo", "-h", "-N", "-o", "%N %T")
            for node in {line.split()[0] for line in listing.splitlines() if "drain" in line}:
                ask("scontrol", "update", f"NodeName={node}", "State=RESUME")

    def fill(self):
        """Strangers take all on-prem nodes."""
        self.lab.site(ONPREM).exec(
            ["sbatch", "--parsable", "-N4", "--exclusive", "--time=600", "--job-name=filler"],
            stdin="#!/bin/sh\nsleep 36000\n", check=True,
        )  # fmt: skip

    def free(self):
        """The strangers leave."""
        self.onprem("scancel", "--name=filler")

    def cold(self):
        """All cloud nodes are powered down.

        Raises:
            NotReadyError: they do not go down.
        """

        def down():
            listing = self.cloud("sinfo", "-h", "-N", "-o", "%N %t")
            states = dict(line.split() for line in listing.splitlines())
            if up := [n for n, state in states.items() if state[-1] not in "~%!"]:
                self.cloud(
                    "scontrol", "update", f"NodeName={','.join(up)}", "State=POWER_DOWN_FORCE"
                )
            return bool(states) and all(state == "idle~" for state in states.values())

        if not self.until(down, patience(60), 0.5):
            raise NotReadyError(f"cloud nodes stay up: {self.cloud('sinfo', '-h', '-N')}")

    # ---- the job ----

    def submit(self, state, injection):
        os.environ["HPCSCALE_STATE_DIR"] = str(state)
        site = load_site(ONPREM).site
        array = injection.work == "array"
        spec = JobSpec(
            name="injected",
            command=("sh", "-c", f"{COMMAND}\nexit {injection.exit_code}"),
            array=f"{injection.tasks[0]}-{injection.tasks[-1]}%2" if array else None,
            resources=Resources(nodes=1 if array else 2, gpus_per_node=1, time_limit_s=600),
            burst=BurstTerms(mode=BurstMode.ONLY),
        )
        with connect(site) as connection, Ledger.open() as ledger:
            return submit(render(spec, site), site, connection, ledger)

    def submit_behind(self, job):
        """Jobs that wait for a good and for a bad end; kind -> id."""
        found = {}
        for kind in BEHIND:
            done = self.lab.site(ONPREM).exec(
                ["sbatch", "--parsable", "--job-name=behind", "--time=5", "--output=/dev/null",
                 f"--dependency={kind}:{job.ref.job_id}"],
                stdin=f"#!/bin/sh\n: > {self.behind_ran(job, kind)}\n", check=True,
            )  # fmt: skip
            found[kind] = done.stdout.strip()
        return found

    def behind_ran(self, job, kind):
        return self.lab.site(ONPREM).paths.scratch / f"{job.run_id}.{kind}"

    def run_dir(self, site_name, job):
        return self.lab.site(site_name).paths.scratch / "hpcscale-state" / "runs" / job.run_id

    def starts(self, job):
        """What user code wrote; read inside the sites, where a full disk is mounted over it."""
        lines = self.written(job, "witness")
        # a line that came back from below a mount may be there twice, with the same nanosecond
        return [line for i, line in enumerate(lines) if line not in lines[:i]]

    def written(self, job, name):
        """Lines of a file that user code writes, of both sites, as words.

        Elements that moved alone have run directories of their own.
        """
        runs = [job.run_id, *(element_run_id(job.run_id, int(task)) for task in TASKS)]
        found = []
        for site_name in (ONPREM, CLOUD):
            top = self.run_dir(site_name, job).parent
            paths = [str(top / run / name) for run in runs]
            text = self.lab.site(site_name).exec(["cat", *paths]).stdout
            found += [line.split() for line in text.splitlines()]
        return found

    def begun(self, injection, job):
        """Whether all of it has begun."""
        return {start[4] for start in self.starts(job)} >= set(injection.tasks)

    def cloud_node(self):
        """A node on which a cloud job of ours runs."""
        for line in self.cloud("squeue", "-h", "-t", "R", "-o", "%k %B").splitlines():
            comment, _, node = line.rpartition(" ")
            if submission_of(comment):
                return node
        return None
