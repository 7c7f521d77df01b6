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
import random
import types
from collections import Counter

import greenlet
from sim_faults import CLOUD, FAULTS, ONPREM, Faults
from sim_judge import Judge, ViolationError
from sim_kinds import KINDS, POLICY, WEIGHTS, Kinds, policies_of
from sim_patch import START, left_out, patched, simulated
from sim_process import Killed, Process, SimSite
from sim_script import Job
from sim_site import ALIVE

from hpcscale.burst.handover import Handover
from hpcscale.burst.moves import Moves, Step
from hpcscale.burst.reap import burst_sites, reap
from hpcscale.burst.run import tick
from hpcscale.connect import Connection
from hpcscale.errors import HpcscaleError, NotSentError, StateError, UnreachableError
from hpcscale.slurm.cli import CliClient
from hpcscale.verify import submission_of

KILL_WAIT_S = 2.0


class World(Kinds, Faults, Judge):
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
        self.begun = []  # (site, submission, task, restart, script)
        self.done = []  # (site, submission, task, restart)
        self.good = set()  # (site, task) whose command ended well, whether Slurm heard it or not
        self.failed = set()  # tasks whose command ended badly
        self.cancelled_tasks = set()
        self.exits = set()
        self.cancelled_by_user = False
        self.silent_until = {}
        self.full_until = {}
        self.numbers = itertools.count(100)
        self.began_in = None  # the on-prem job's partition
        self.accepted = {}  # cloud submissions that its Slurm ever took
        self.kind = self.random.choices(list(KINDS), WEIGHTS)[0]
        self.counts[f"kind: {self.kind}"] += 1
        self.within = self.kind.startswith("partition")
        self.sites = {**base.sites, ONPREM: base.with_partition} if self.within else base.sites
        self.sim = {
            ONPREM: SimSite(self, ONPREM, nodes=4, gpus=4, cloud_nodes=4 * self.within),
            CLOUD: SimSite(self, CLOUD, nodes=4, gpus=4, boot_s=self.random.choice([0, 3, 12])),
        }
        self.connections = {
            name: Connection(
                site=self.sites[name],
                transport=sim,
                client=CliClient(sim),
                clock=sim.clock,
                _state_dir=f"/site/{name}",
            )
            for name, sim in self.sim.items()
        }
        chosen = self.random.sample(list(FAULTS), self.random.choice([0, 1, 2, 2, 3, 3, 4, 6]))
        if self.random.random() < 0.4:  # what lets the on-prem job start beside its move
            chosen += ["onprem_free", self.random.choice(["unfence", "onprem_crash"])]
        self.left = Counter({name: FAULTS[name] for name in chosen})
        self.chance = self.random.choice([0.02, 0.05, 0.15])
        self.switching = self.random.choice([0.0, 0.05, 0.3, 1.0])
        self.work_s = self.random.choice([2, 15, 60])
        self.code = self.random.choice([0, 0, 0, 0, 0, 3])
        self.processes = []
        self._submit_job()
        self._make_processes()

    # ---- what burst processes ask for ----

    def site(self, name):
        name, _, partition = name.partition("/")
        found = self.sites[name]
        return found.in_partition(partition) if partition else found

    def __call__(self, name):
        return self.connections[name.partition("/")[0]]

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
            if command == "squeue" and any(w.startswith("--jobs=") for w in argv):
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
        if step in {Step.CLAIMING, Step.OPENING}:
            if not process.read_at > process.fenced_at:
                raise ViolationError("it goes on without a look at the fence that it set")
            if step is Step.OPENING and not process.read_at > process.step_at:
                raise ViolationError("a claim is taken without a look at the fence")
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

    def _make_processes(self):
        ledger, other = self.ledgers
        owners = [ledger, other, ledger][: self.random.choice([1, 1, 2, 2, 3])]
        self.processes = [Process(f"burst{i}", owner) for i, owner in enumerate(owners)]
        self.policies = {
            id(ledger): self.random.choice(policies_of(self.kind)) for ledger in self.ledgers
        }
        for process in self.processes:
            self.counts[f"order: {self.policies[id(process.ledger)].order.value}"] += 1

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
        tick(process.ledger, self.policies[id(process.ledger)], self)

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
            if not sim.silent:
                sim.tick()
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
                    wanted[name, submission, job.task, job.restarts, job.started] = job
        here = {script.key for script in self.scripts}
        for key, job in wanted.items():
            if key not in self.known:
                self.known.add(key)
                self._start_script(key, job)
            elif key not in here:
                # its controller has forgotten its end, and hears that no node has it: run again
                sim = self.sim[key[0]]
                sim.plain(["scontrol", "requeue", sim.of(job)])
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
        if self.behind:
            self._look_behind()

    def _start_script(self, key, job):
        name, submission, task, restart, _ = key
        # an on-prem job has no gate; what the cloud script holds was rendered with one
        lease_s = POLICY.lease_s if name == CLOUD else None
        script = Job(
            self.sim[name].files,
            submission=submission,
            run_dir=f"/site/{name}/runs/{self.job.run_id}",
            number=self.sim[name].of(job),
            task=task,
            restart=restart,
            lease_s=lease_s,
            work_s=self.work_s,
            code=self.code,
            requeue=self._requeue,
            left_out=self.left_out,
        )
        script.key, script.site = key, name
        next(script.steps)
        self.scripts.append(script)

    def _requeue(self, script):
        sim = self.sim[script.site]
        if sim.silent:
            return None
        return sim.plain(["scontrol", "requeue", str(script.number)]).returncode == 0

    def step_script(self, script):
        was = script.running
        try:
            wait = script.steps.send(self.sim[script.site].now())
        except StopIteration:
            self.scripts.remove(script)
            if was and script.exit_code == 0:
                self.good.add((script.site, script.task))
            if script.killed_at is not None:
                return  # too late for Slurm, which has ended it
            if was and script.exit_code == 0:
                self.done.append((script.site, script.submission, script.task, script.restart))
            elif was:
                self.failed.add(script.task)
            elif script.exit_code == 0:
                self._stood_in(script)
            self.exits.add(script.exit_code)
            self._finish(script)
            return
        script.wake = self.now_s + wait
        if script.running and not was:
            self._began(script)

    def _stood_in(self, script):
        """It has told those behind it of a good end, as the cloud attempt's."""
        self.counts["stood in"] += 1
        if (CLOUD, script.task) not in self.good:
            raise ViolationError("too soon: a stand-in tells of a good end that was none")

    def _began(self, script):
        for site, submission, task, restart, other in self.begun:
            if task != script.task:
                continue
            if (submission, restart) == (script.submission, script.restart):
                raise ViolationError(f"double start: {site} {submission} restart {restart}")
            if other.running and other in self.scripts:
                raise ViolationError(f"double start: alive at {site} and {script.site}")
            if submission == script.submission:
                continue
            if site == CLOUD:
                raise ViolationError(f"double start: at {script.site} after {site}")
            # on-prem began before: over only when Slurm counts a later restart
            origin = self._origin_job(task)
            if origin is None or origin.restarts <= restart:
                raise ViolationError("double start: in the cloud after on-prem")
        entry = (script.site, script.submission, script.task, script.restart)
        self.begun.append((*entry, script))
        if self.within and script.site == ONPREM:
            self.began_in = self._origin_job().partition
        self.trace.append(f"{self.now_s:7.1f} user code begins: {entry}")

    def _finish(self, script):
        """The node tells the controller that the script has ended."""
        name, submission, task, restart, started = script.key
        for job in self.sim[name].jobs.values():
            if (
                submission_of(job.comment) == submission
                and job.state == "RUNNING"
                and (job.task, job.restarts, job.started) == (task, restart, started)
            ):
                job.state = "COMPLETED" if script.exit_code == 0 else "FAILED"
                job.status = script.exit_code << 8
                job.reason = "None" if script.exit_code == 0 else "NonZeroExitCode"
                job.ends = self.sim[name].now()
                self.sim[name].touched()

    # ---- the scheduler ----

    def run(self):
        """The whole interleaving; raises ``ViolationError``."""
        with patched(self), left_out(self.left_out):
            try:
                for step in range(self.steps):
                    self._one()
                    if step % 8 == 7 and self._quiet():
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
        weights = [4 * bool(ready), 4 * bool(busy), bool(idle), 2]
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
                self._step_scripts()
            for _ in range(8):
                self._step_scripts()
            if turn > 1 and self._quiet():
                return
            for process in {id(p.ledger): p for p in self.processes}.values():
                self.start(process, self.tick)
            self.pass_time(3 if turn < 40 else 30 if turn < 100 else 600)
        # what is wrong is said by the judge

    def _step_scripts(self):
        for script in [s for s in self.scripts if s.wake <= self.now_s]:
            if script in self.scripts:
                self.step_script(script)

    def _quiet(self):
        if any(Moves(ledger).unsettled() for ledger in self._led()):
            return False
        if any(job.state in ALIVE for job in self._origin_records()):
            return False
        return not self.scripts and not self._waiting_behind()

    def _led(self):
        """Ledgers that a process works on."""
        return {id(p.ledger): p.ledger for p in self.processes}.values()

    def _bury(self):
        for process in self.processes:
            process.dead = True
            while process.busy:
                with contextlib.suppress(Killed):
                    process.task.switch()


def one(base, seed, without=(), steps=160):
    """Run one interleaving; its world. Raises ``ViolationError`` with its trace."""
    stub = types.SimpleNamespace(
        current=lambda: None, utc_now=lambda: START, numbers=itertools.count(1)
    )
    with patched(stub):
        world = World(base, seed, without, steps)
    world.run()
    return world


def simulate(first, count):
    """Interleavings of these seeds: the sum of their counts, and what was violated."""
    total, wrong = Counter(), []
    with simulated() as base:
        for seed in range(first, first + count):
            try:
                total += one(base, seed).counts
            except ViolationError as exc:
                wrong.append(f"seed {seed}: {exc}")
    return total, wrong
