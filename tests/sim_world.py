"""Deterministic simulation of the handover: the real code, two faked sites, seeded faults.

Everything under ``hpcscale.burst``, the submission, the observation and the ledger is the real
code. It runs in greenlets, one a process; a process may be left and another taken up at each of its
acts (a command or a file at a site, a write of its ledger), and killed before or after each. The
controllers are ``FakeSlurm``; jobs' scripts are ``sim_script``. One seed is one interleaving.

The world keeps what no code under test can touch: who began user code, when, and in which attempt.
"""

import contextlib
import datetime as dt
import itertools
import os
import random
import sqlite3
import sys
import tempfile
import types
from collections import Counter
from decimal import Decimal
from pathlib import Path

import greenlet
from sim_script import Job
from sim_site import MemorySlurm

import hpcscale.judge
import hpcscale.render
import hpcscale.submit
from hpcscale import units
from hpcscale.burst.handover import Handover
from hpcscale.burst.moves import Moves, Step, target_attempt
from hpcscale.burst.policy import Policy
from hpcscale.burst.reap import burst_sites, reap
from hpcscale.burst.run import tick
from hpcscale.connect import Connection
from hpcscale.errors import HpcscaleError, NotSentError, StateError, UnreachableError
from hpcscale.ledger import Ledger, Role
from hpcscale.ledger_file import LedgerFile
from hpcscale.render import render
from hpcscale.site import load_site
from hpcscale.slurm.cli import CliClient
from hpcscale.slurm.transport import DEFAULT_TIMEOUT_S, Completed
from hpcscale.spec import BurstMode, BurstTerms, JobSpec, Resources
from hpcscale.verify import submission_of

ONPREM, CLOUD = "lab-onprem", "lab-cloud"
POLICY = Policy(from_site=ONPREM, to=(CLOUD,), cron_interval_s=20, retry_after_s=60)
START = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
KILL_WAIT_S = 2.0
ALIVE = {"PENDING", "CONFIGURING", "RUNNING"}

# how often each may happen in an interleaving that has it at all
FAULTS = {
    "kill": 3,  # a burst process, before or after an act
    "lost_reply": 2,
    "lost_request": 2,
    "onprem_crash": 2,  # slurmctld forgets what it had not saved, and gives ids out again
    "cloud_crash": 2,
    "onprem_silent": 2,
    "cloud_silent": 2,
    "squeue_empty": 2,
    "squeue_fails": 2,
    "onprem_full": 1,
    "cloud_full": 1,
    "ledger_full": 1,
    "clock_jump": 2,
    "site_jump": 1,
    "cloud_node": 2,
    "onprem_free": 1,  # the strangers' job ends: a job that is not fenced starts
    "onprem_requeue": 2,
    "scancel_onprem": 1,
    "scancel_cloud": 1,
    "cancel_run": 1,
    "undo": 1,
    "unfence": 1,  # somebody edits ExcNodeList
    "reap": 2,
}


class Killed(BaseException):
    """SIGKILL: nothing that the process does afterwards has any effect."""


class Violation(AssertionError):
    """An invariant does not hold."""


class Process:
    """One burst process on a ledger; between its calls it is not there."""

    def __init__(self, name, ledger):
        self.name = name
        self.ledger = ledger
        self.task = None  # a greenlet while it is in a call
        self.dead = False
        self.kill_in = None  # acts until it is killed
        self.fenced_at = self.read_at = 0  # acts counted
        self.acts = 0

    @property
    def busy(self):
        return self.task is not None and not self.task.dead


class SimSite(MemorySlurm):
    """A site as burst processes reach it: each act may be the last thing before another's."""

    def __init__(self, world, name, **options):
        super().__init__(**options)
        self.world = world
        self.site_name = name

    def run(self, argv, *, stdin=None, env=None, cwd=None, timeout_s=DEFAULT_TIMEOUT_S):
        world = self.world
        process = world.current()
        if process is None:
            return super().run(argv, stdin=stdin)
        command = argv[0].rpartition("/")[2]
        world.before(process, self)
        if command == "squeue":
            if world.take("squeue_empty"):
                return Completed(tuple(argv), 0, "", "")
            if world.take("squeue_fails"):
                return Completed(tuple(argv), 1, "", "slurm_load_jobs error: Unexpected message\n")
        done = super().run(argv, stdin=stdin)
        world.saw(process, self, command, argv, done)
        world.after(process, self)
        return done

    def _sbatch(self, argv, script):
        done = super()._sbatch(argv, script)
        for job in self.jobs.values():
            if submission_of(job.comment) is not None:
                job.runtime_s = job.limit_s + 1  # its script ends it, or its limit
        return done

    def put_bytes(self, data, remote, *, mode=0o644):
        process = self.world.current()
        if process is None:
            return super().put_bytes(data, remote, mode=mode)
        self.world.before(process, self)
        super().put_bytes(data, remote, mode=mode)
        return self.world.after(process, self)

    def read_bytes(self, remote, *, offset=0, limit=None):
        process = self.world.current()
        if process is None:
            return super().read_bytes(remote, offset=offset, limit=limit)
        self.world.before(process, self)
        data = super().read_bytes(remote, offset=offset, limit=limit)
        self.world.after(process, self)
        return data


class Base:
    """What all interleavings start from, made once: a job in a full on-prem queue, and its ledger."""

    def __init__(self):
        self.folder = Path(tempfile.mkdtemp(prefix="hpcscale-sim-", dir=_fast_folder()))
        os.environ["HPCSCALE_STATE_DIR"] = str(self.folder / "state")
        self.sites = {
            name: load_site(name, [f"state_dir=/site/{name}"]).site for name in (ONPREM, CLOUD)
        }

    def close(self):
        import shutil

        shutil.rmtree(self.folder, ignore_errors=True)


def _fast_folder():
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


class World:
    """One interleaving.

    Args:
        base: made once.
        seed: chooses everything.
        left_out: rules left out of scripts or handover, to see that it is found.
        steps: of the scheduler, until the faults end.
    """

    def __init__(self, base, seed, left_out=(), steps=160):
        self.random = random.Random(seed)
        self.seed = seed
        self.base = base
        self.left_out = frozenset(left_out)
        self.steps = steps
        self.now_s = 0.0
        self.login_offset_s = 0.0
        self.trouble = True
        self.counts = Counter()
        self.trace = []
        self.main = greenlet.getcurrent()
        self.scripts = []
        self.known = set()
        self.begun = []  # (site, submission, restart, number)
        self.done = []
        self.cancelled_by_user = False
        self.silent_until = {}
        self.full_until = {}
        self.numbers = itertools.count(1)
        self.accepted = {}  # cloud submissions that its Slurm ever took
        self.sim = {
            ONPREM: SimSite(self, ONPREM, nodes=4, gpus=4),
            CLOUD: SimSite(self, CLOUD, nodes=4, gpus=4, boot_s=self.random.choice([0, 3, 12])),
        }
        self.connections = {
            name: Connection(
                site=base.sites[name],
                transport=sim,
                client=CliClient(sim),
                clock=sim.clock,
                _state_dir=f"/site/{name}",
            )
            for name, sim in self.sim.items()
        }
        pool = list(FAULTS)
        size = self.random.choice([0, 1, 2, 2, 3, 3, 4, 6])
        self.left = Counter({name: FAULTS[name] for name in self.random.sample(pool, size)})
        self.chance = self.random.choice([0.02, 0.05, 0.15])
        self.switching = self.random.choice([0.0, 0.05, 0.3, 1.0])
        self.work_s = self.random.choice([2, 15, 60])
        self.ledgers = []
        self.processes = []
        self._submit_job()

    # ---- what burst processes ask for ----

    def site(self, name):
        return self.base.sites[name]

    def __call__(self, name):
        return self.connections[name]

    def current(self):
        task = greenlet.getcurrent()
        return getattr(task, "process", None)

    def utc_now(self):
        return START + dt.timedelta(seconds=self.now_s + self.login_offset_s)

    def monotonic(self):
        return self.now_s

    def sleep(self, seconds):
        process = self.current()
        if process is None:
            self.pass_time(seconds)
            return
        self._check_alive(process)
        process.wake = self.now_s + seconds
        while self.now_s < process.wake:
            self.main.switch()
            self._check_alive(process)

    # ---- hooks around each act of a process ----

    def _check_alive(self, process):
        if process.dead:
            raise Killed
        if process.kill_in is not None:
            process.kill_in -= 1
            if process.kill_in < 0:
                process.kill_in = None
                process.dead = True
                raise Killed

    def _maybe_switch(self, process):
        if self.random.random() < self.switching:
            self.main.switch()
            if process.dead:
                raise Killed

    def before(self, process, site):
        process.acts += 1
        self._check_alive(process)
        self._maybe_switch(process)
        if self.silent_until.get(site.site_name, 0) > self.now_s:
            raise UnreachableError("no route", where=site.site_name)
        if self.take("lost_request"):
            raise NotSentError("the connection broke", where=site.site_name)

    def after(self, process, site):
        self._check_alive(process)
        self._maybe_switch(process)
        if self.take("lost_reply"):
            raise UnreachableError("the connection broke", where=site.site_name)

    def saw(self, process, site, command, argv, done):
        """Remembers what a process has really looked at."""
        if site.site_name == ONPREM:
            if command == "scontrol" and any(w.startswith("ExcNodeList=") for w in argv):
                process.fenced_at = process.acts
            if command == "squeue" and any(w.startswith("--format=%i") for w in argv):
                process.read_at = process.acts

    def around_save(self, process):
        process.acts += 1
        self._check_alive(process)
        self._maybe_switch(process)
        if self.take("ledger_full"):
            raise StateError("no room to write the ledger", where="ledger")

    def after_save(self, process):
        self._check_alive(process)
        self._maybe_switch(process)

    def moved(self, process, before, after):
        """A move has gone on: has its process looked before?"""
        step = after.step
        if step is before.step:
            return
        self.counts[f"step.{step.value}"] += 1
        if step is Step.SUBMITTING and not process.read_at > process.fenced_at:
            raise Violation("a cloud job is submitted without a look at the fence")
        if step is Step.OPENING and not process.read_at > process.step_at:
            raise Violation("a claim is taken without a look at the fence")
        process.step_at = process.acts

    def take(self, fault):
        """Whether this fault happens now."""
        if not self.trouble or not self.left[fault] or self.random.random() >= self.chance:
            return False
        self._count(fault)
        return True

    def _count(self, fault):
        self.left[fault] -= 1
        self.counts[f"fault.{fault}"] += 1
        self.trace.append(f"{self.now_s:7.1f} {fault}")

    # ---- the job, and who moves it ----

    def _submit_job(self):
        ledger = memory_ledger(self.base.folder / "ledger.sqlite3")
        onprem = self.connections[ONPREM]
        self.filler = self.sim[ONPREM].run(
            ["sbatch", "--parsable", "-N4", "--exclusive", "--time=9999"], stdin="#!/bin/sh\nsleep 99999\n"
        ).stdout.strip()  # fmt: skip
        self.pass_time(1)
        spec = JobSpec(
            name="urgent",
            command=("true",),
            resources=Resources(nodes=2, gpus_per_node=4, time_limit_s=3600),
            burst=BurstTerms(mode=BurstMode.ONLY),
        )
        self.job = hpcscale.submit.submit(
            hpcscale.render.render(spec, onprem.site), onprem.site, onprem, ledger
        )
        self.pass_time(6)  # its controller has saved it
        other = memory_ledger(self.base.folder / "other.sqlite3", ledger)
        self.ledgers = [ledger, other]
        count = self.random.choice([1, 1, 2, 2, 3])
        owners = [ledger, other, ledger][:count]
        self.processes = [Process(f"burst{i}", owner) for i, owner in enumerate(owners)]

    def start(self, process, act):
        """Begin a call of a process."""
        process.dead = False
        process.kill_in = None
        if self.trouble and self.left["kill"] and self.random.random() < 0.5:
            self._count("kill")
            process.kill_in = self.random.randrange(60)
        process.step_at = process.acts

        def call():
            try:
                act(process)
            except Killed:
                return
            except HpcscaleError:
                self.counts["told"] += 1

        process.task = greenlet.greenlet(call)
        process.task.process = process
        process.wake = 0.0
        process.task.switch()

    def tick(self, process):
        tick(process.ledger, POLICY, self)

    def undo(self, process):
        mine = Moves(process.ledger).of_run(self.job.run_id)
        if mine:
            Handover(process.ledger, self, self.base.folder / "jobs").undo(mine[-1])

    def reap(self, process):
        reap(process.ledger, self, burst_sites(process.ledger))

    def cancel_run(self, process):
        """``hpcscale cancel RUN``: note it, and cancel at each site."""
        from hpcscale.verify import require_same

        for attempt in process.ledger.attempts(self.job.run_id):
            process.ledger.event(
                attempt.run_id, "attempt.cancel", {}, submission_id=attempt.submission_id
            )
            if attempt.job_id is not None and not attempt.ended:
                client = self.connections[attempt.site].client
                status = require_same(attempt, client, attempt.job_id)
                if status is not None and not status.state.terminal:
                    client.cancel(attempt.job_id)

    # ---- time, controllers and scripts ----

    def pass_time(self, seconds):
        self.now_s += seconds
        for sim in self.sim.values():
            sim.clock.advance(seconds)
            if not sim.down:
                sim._tick()
        self._sync()

    def _sync(self):
        """Start scripts of jobs that run, end those that Slurm does not have any more."""
        wanted = {}
        for name, sim in self.sim.items():
            for job in sim.jobs.values():
                submission = submission_of(job.comment)
                if submission is None:
                    continue
                if name == CLOUD and submission not in self.accepted:
                    self.accepted[submission] = job.number
                if job.state == "RUNNING":
                    wanted[name, submission, job.restarts, job.started] = job
        for key, job in wanted.items():
            if key not in self.known:
                self.known.add(key)
                self._start_script(key, job)
        strays = {ONPREM: False, CLOUD: False}
        for script in list(self.scripts):
            if script.key in wanted:
                continue
            if script.killed_at is None:
                script.killed_at = self.now_s + self.random.random() * KILL_WAIT_S
            elif self.now_s >= script.killed_at:
                self.scripts.remove(script)
                if script.running:
                    self.counts["killed while running"] += 1
                continue
            strays[script.site] = True
        for name, sim in self.sim.items():
            sim.frozen = strays[name] and sim.frozen

    def _start_script(self, key, job):
        name, submission, restart, _ = key
        # an on-prem job has no gate; what the cloud script holds was rendered with one
        lease_s = POLICY.lease_s if name == CLOUD else None
        script = Job(
            self.sim[name].files,
            submission,
            f"/site/{name}/runs/{self.job.run_id}",
            job.number,
            restart,
            lease_s,
            self.work_s,
            self._requeue,
            self.left_out,
        )
        script.key, script.site = key, name
        next(script.steps)
        self.scripts.append(script)

    def _requeue(self, script):
        sim = self.sim[script.site]
        if sim.down:
            return False
        return sim.plain(["scontrol", "requeue", str(script.number)]).returncode == 0

    def step_script(self, script):
        was = script.running
        try:
            wait = script.steps.send(self.now_s)
        except StopIteration:
            self.scripts.remove(script)
            if was and script.exit_code == 0:
                self.done.append((script.site, script.submission, script.restart))
            self._finish(script)
            return
        script.wake = self.now_s + wait
        if script.running and not was:
            self._began(script)

    def _began(self, script):
        entry = (script.site, script.submission, script.restart, script)
        for site, submission, restart, other in self.begun:
            if (submission, restart) == (script.submission, script.restart):
                raise Violation(f"double start: {site} {submission} restart {restart}")
            if other.running and other in self.scripts:
                raise Violation(f"double start: alive at {site} and {script.site}")
            if submission == script.submission:
                continue
            if site == CLOUD:
                raise Violation(f"double start: at {script.site} after {site}")
            # on-prem began before: over only when Slurm counts a later restart
            origin = self._origin_job()
            if origin is None or origin.restarts <= restart:
                raise Violation("double start: in the cloud after on-prem")
        self.begun.append(entry)
        self.trace.append(f"{self.now_s:7.1f} user code begins: {entry[:3]}")

    def _origin_job(self):
        jobs = self.sim[ONPREM].jobs.values()
        return next(
            (j for j in jobs if submission_of(j.comment) == self.job.submission_id), None
        )

    def _finish(self, script):
        """The node tells the controller that the script has ended."""
        name, submission, restart, started = script.key
        for job in self.sim[name].jobs.values():
            if (
                submission_of(job.comment) == submission
                and job.state == "RUNNING"
                and (job.restarts, job.started) == (restart, started)
            ):
                job.state = "COMPLETED" if script.exit_code == 0 else "FAILED"
                job.status = script.exit_code << 8
                job.reason = "None" if script.exit_code == 0 else "NonZeroExitCode"
                job.ends = sim_now(self.sim[name])

    # ---- faults ----

    def _fault(self):
        choices = [name for name, left in self.left.items() if left and name in self._acts]
        if not choices or self.random.random() >= self.chance:
            return
        name = self.random.choice(choices)
        act = self._acts[name]
        if act(self) is not False:
            self._count(name)

    def _crash(self, name):
        self.sim[name].crash()
        self.sim[name].frozen = True
        self.sim[name].resume()
        self._sync()
        if self.random.random() < 0.5:  # somebody else gets the id
            self.sim[name].plain_submit = self._stranger(name)

    def _stranger(self, name):
        return FakeSubmit(self.sim[name])

    def _silent(self, name):
        self.silent_until[name] = self.now_s + self.random.choice([1, 5, 30, 120])
        if self.random.random() < 0.5:
            self.sim[name].stop()

    def _full(self, name):
        self.sim[name].files.full = True
        self.full_until[name] = self.now_s + self.random.choice([2, 20, 90])

    def _free(self):
        self.sim[ONPREM].plain(["scancel", self.filler])

    def _cloud_node(self):
        live = [j for j in self.sim[CLOUD].jobs.values() if j.state in {"CONFIGURING", "RUNNING"}]
        if not live:
            return False
        job = self.random.choice(live)
        if self.random.random() < 0.5:
            job.state, job.ends = "NODE_FAIL", sim_now(self.sim[CLOUD])
        else:  # Slurm requeues it
            self.sim[CLOUD].plain(["scontrol", "requeue", str(job.number)])
        self._sync()
        return True

    def _onprem_requeue(self):
        job = self._origin_job()
        if job is None or job.state != "RUNNING":
            return False
        self.sim[ONPREM].plain(["scontrol", "requeue", str(job.number)])
        self._sync()
        return True

    def _scancel_onprem(self):
        job = self._origin_job()
        if job is None or job.state not in ALIVE:
            return False
        self.sim[ONPREM].plain(["scancel", str(job.number)])
        self.cancelled_by_user = True
        return True

    def _scancel_cloud(self):
        live = [
            j
            for j in self.sim[CLOUD].jobs.values()
            if j.state in ALIVE and submission_of(j.comment) is not None
        ]
        if not live:
            return False
        self.sim[CLOUD].plain(["scancel", str(self.random.choice(live).number)])
        self.cancelled_by_user = True
        return True

    def _unfence(self):
        job = self._origin_job()
        if job is not None and job.state == "PENDING":
            job.exclude = ""

    def _site_jump(self):
        sim = self.random.choice(list(self.sim.values()))
        sim.clock.advance(self.random.choice([30, 400, 4000]))
        if not sim.down:
            sim._tick()

    def _clock_jump(self):
        self.login_offset_s += self.random.choice([-3600, -30, 30, 700, 3600])

    def _call(self, name):
        idle = [p for p in self.processes if not p.busy]
        if not idle:
            return False
        if name == "cancel_run":
            self.cancelled_by_user = True
        self.start(self.random.choice(idle), getattr(self, name))
        return True

    _acts = {  # noqa: RUF012 # a table
        "onprem_crash": lambda w: w._crash(ONPREM),
        "cloud_crash": lambda w: w._crash(CLOUD),
        "onprem_silent": lambda w: w._silent(ONPREM),
        "cloud_silent": lambda w: w._silent(CLOUD),
        "onprem_full": lambda w: w._full(ONPREM),
        "cloud_full": lambda w: w._full(CLOUD),
        "clock_jump": _clock_jump,
        "site_jump": _site_jump,
        "cloud_node": _cloud_node,
        "onprem_free": _free,
        "onprem_requeue": _onprem_requeue,
        "scancel_onprem": _scancel_onprem,
        "scancel_cloud": _scancel_cloud,
        "unfence": _unfence,
        "cancel_run": lambda w: w._call("cancel_run"),
        "undo": lambda w: w._call("undo"),
        "reap": lambda w: w._call("reap"),
    }

    # ---- the scheduler ----

    def run(self):
        """The whole interleaving; raises ``Violation``."""
        with patched(self):
            try:
                for step in range(self.steps):
                    self._one()
                    if step % 16 == 15 and self._quiet():
                        break
                self._settle()
                self._judge()
            finally:
                self._bury()

    def _one(self):
        for name, until in list(self.silent_until.items()):
            if self.now_s >= until:
                del self.silent_until[name]
                self.sim[name].resume()
        for name, until in list(self.full_until.items()):
            if self.now_s >= until:
                del self.full_until[name]
                self.sim[name].files.full = False
        if self.trouble:
            self._fault()
        ready = [s for s in self.scripts if s.wake <= self.now_s]
        busy = [p for p in self.processes if p.busy and p.wake <= self.now_s]
        idle = [p for p in self.processes if not p.busy]
        # what is under way goes on; a call like cron's comes now and then
        weights = [4 * bool(ready), 4 * bool(busy), 2 * bool(idle), 2]
        match self.random.choices("srtp", weights)[0]:
            case "s":
                self.step_script(self.random.choice(ready))
            case "r":
                self.random.choice(busy).task.switch()
            case "t":
                self.start(self.random.choice(idle), self.tick)
            case "p":
                self.pass_time(self.random.choice([0.5, 1, 1, 3, 10]))

    def _settle(self):
        """No more faults: everybody comes back, and time passes."""
        self.trouble = False
        self.silent_until.clear()
        self.full_until.clear()
        for sim in self.sim.values():
            sim.resume()
            sim.files.full = False
        self._free()
        self.switching = 0.0
        for process in self.processes:
            process.kill_in = None
        for turn in range(400):
            while busy := [p for p in self.processes if p.busy]:
                if all(p.wake > self.now_s for p in busy):
                    self.pass_time(1)
                for process in busy:
                    if process.busy and process.wake <= self.now_s:
                        process.task.switch()
            for _ in range(8):
                for script in [s for s in self.scripts if s.wake <= self.now_s]:
                    if script in self.scripts:
                        self.step_script(script)
            if turn > 3 and self._quiet():
                return
            for process in self.processes:
                self.start(process, self.tick)
            self.pass_time(3 if turn < 40 else 30 if turn < 100 else 600)
        # what is wrong is said by the judge

    def _quiet(self):
        if any(Moves(ledger).unsettled() for ledger in self._led()):
            return False
        origin = self._origin_job()
        if origin is not None and origin.state in ALIVE:
            return False
        return not self.scripts

    def _led(self):
        """Ledgers that a process works on."""
        return {id(p.ledger): p.ledger for p in self.processes}.values()

    def _judge(self):
        for ledger in self._led():
            if moves := Moves(ledger).unsettled():
                raise Violation(f"a move does not settle: {moves[0].step} {moves[0].message}")
            _, problems = reap(ledger, self, [CLOUD])
            if problems:
                raise Violation(f"reap: {problems[0]}")
        for sim in self.sim.values():
            if self._origin_job() is not None and sim is self.sim[ONPREM]:
                state = self._origin_job().state
                if state in ALIVE:
                    raise Violation(f"lost: the on-prem job is {state} for ever")
        for job in self.sim[CLOUD].jobs.values():
            if job.state in ALIVE and submission_of(job.comment) is not None:
                raise Violation(f"orphan: cloud job {job.number} is {job.state}")
        if not self.done and not self.cancelled_by_user:
            raise Violation("lost: user code was never run to its end")
        self._judge_money()
        self.counts["done" if self.done else "cancelled"] += 1
        self.counts["done." + (self.done[-1][0] if self.done else "nowhere")] += 1

    def _judge_money(self):
        """Each cloud job that Slurm ever took belongs to one move of one ledger."""
        owners = Counter()
        for ledger in self._led():
            moves = Moves(ledger).of_run(self.job.run_id)
            for move in moves:
                target = target_attempt(ledger, move)
                if target is not None:
                    owners[target.submission_id] += 1
            decided = len(ledger.decisions(self.job.run_id))
            if decided != len(moves):
                raise Violation(f"money: {len(moves)} moves of {decided} decisions")
            for attempt in ledger.all_attempts(CLOUD):
                if attempt.role is Role.BURST and attempt.ended and attempt.start_time:
                    if attempt.cost_usd is None:
                        raise Violation(f"money: {attempt.ref} has no cost")
                    self.counts["cloud_usd"] += attempt.cost_usd or Decimal(0)
        for submission in self.accepted:
            self.counts["cloud_jobs"] += 1
            if owners[submission] != 1:
                raise Violation(f"money: cloud job of {owners[submission]} decisions")

    def _bury(self):
        for process in self.processes:
            process.dead = True
            while process.busy:
                with contextlib.suppress(Killed):
                    process.task.switch()
        for ledger in self.ledgers:
            ledger.close()


class FakeSubmit:
    """A stranger's job, that may get a forgotten id."""

    def __init__(self, sim):
        MemorySlurm.run(
            sim, ["sbatch", "--parsable", "-N1", "--time=1"], stdin="#!/bin/sh\nsleep 30\n"
        )


def sim_now(sim):
    return int(sim.clock.now().timestamp())


def memory_ledger(path, source=None):
    """A ledger in memory: a new one, or a copy."""
    db = sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False)
    if source is not None:
        source._db.backup(db)
    ledger = Ledger(path, db)
    ledger._prepare()
    return ledger


PURE = (units.expand_hostlist, units.fold_hostlist)
_RENDERED = {}
_REAL_RENDER = render
_REAL_WRITE = LedgerFile._write
_REAL_SAVE = Moves.save
_REAL_UTC_NOW = hpcscale.ledger.utc_now


def _render(spec, site, **options):
    """Rendering is pure: the same job is rendered once for all interleavings."""
    key = (repr(spec), site.name, repr(options))
    if key not in _RENDERED:
        _RENDERED[key] = _REAL_RENDER(spec, site, **options)
    return _RENDERED[key]


_WORLD = [None]


@contextlib.contextmanager
def _write(self):
    world = _WORLD[0]
    process = world.current() if world else None
    if process is not None:
        world.around_save(process)
    with _REAL_WRITE(self):
        yield
    if process is not None:
        world.after_save(process)


def _save(self, move, **changes):
    world = _WORLD[0]
    after = _REAL_SAVE(self, move, **changes)
    process = world.current() if world else None
    if after is not None and process is not None:
        world.moved(process, move, after)
    return after


def _utc_now():
    return _WORLD[0].utc_now() if _WORLD[0] else _REAL_UTC_NOW()


_FAKE_TIME = types.SimpleNamespace(
    sleep=lambda seconds: _WORLD[0].sleep(seconds), monotonic=lambda: _WORLD[0].monotonic()
)


@contextlib.contextmanager
def simulated():
    """Time, kills and ledger writes are the world's, for all of hpcscale."""
    undo = []
    remembered = {f.__name__: _remembered(f) for f in PURE}

    def put(where, name, value):
        undo.append((where, name, getattr(where, name)))
        setattr(where, name, value)

    for name, module in list(sys.modules.items()):
        if not name.startswith("hpcscale"):
            continue
        if getattr(module, "utc_now", None) is _REAL_UTC_NOW:
            put(module, "utc_now", _utc_now)
        if name.startswith("hpcscale.burst") and isinstance(
            getattr(module, "time", None), types.ModuleType
        ):
            put(module, "time", _FAKE_TIME)
        for pure in PURE:
            if getattr(module, pure.__name__, None) is pure:
                put(module, pure.__name__, remembered[pure.__name__])
    put(LedgerFile, "_write", _write)
    put(Moves, "save", _save)
    put(hpcscale.render, "render", _render)
    put(hpcscale.judge, "_still_submitting", lambda *_: _submitting())
    put(hpcscale.submit, "new_submission_id", lambda: f"hs-{next(_WORLD[0].numbers):016x}")
    put(hpcscale.submit, "new_run_id", lambda: "rsimulation")
    base = Base()
    try:
        yield base
    finally:
        base.close()
        for where, name, value in reversed(undo):
            setattr(where, name, value)


def _remembered(pure):
    """A pure function of a text or of names; callers may change the list that they get."""
    known = {}

    def call(arg):
        key = arg if isinstance(arg, str) else tuple(arg)
        if key not in known:
            known[key] = pure(arg)
        found = known[key]
        return list(found) if isinstance(found, list) else found

    return call


def _submitting():
    """Whether a process that wrote a row of ours may still live: one that is in a call."""
    world = _WORLD[0]
    me = world.current()
    return any(p.busy and p is not me and not p.dead for p in world.processes)


@contextlib.contextmanager
def patched(world):
    _WORLD[0] = world
    try:
        yield
    finally:
        _WORLD[0] = None


def one(base, seed, left_out=(), steps=160):
    """Run one interleaving; its world. Raises ``Violation`` with its trace."""
    with patched(None):
        pass
    _WORLD[0] = stub = types.SimpleNamespace(current=lambda: None, utc_now=lambda: START, numbers=itertools.count(1))
    try:
        world = World(base, seed, left_out, steps)
    finally:
        _WORLD[0] = None
    del stub
    world.numbers = itertools.count(100)
    world.run()
    return world
