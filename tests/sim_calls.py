"""Burst processes of a simulation: what they ask the world for, their acts, and their calls."""

import datetime as dt

import greenlet
from sim_faults import ONPREM
from sim_judge import ViolationError
from sim_kinds import policies_of
from sim_patch import START
from sim_process import Killed, Process

from hpcscale.burst.handover import Handover
from hpcscale.burst.moves import Moves, Step
from hpcscale.burst.reap import burst_sites, reap
from hpcscale.burst.run import tick
from hpcscale.errors import HpcscaleError, NotSentError, StateError, UnreachableError
from hpcscale.verify import require_same


class Calls:
    """Each act of a process may be its last, or another's turn may come; ``World`` is one."""

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
        # what moves again from the cloud, whose controller forgot it, has no fence on-prem
        if step in {Step.CLAIMING, Step.OPENING} and after.from_site == ONPREM:
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
        for attempt in process.ledger.attempts(self.job.run_id):
            process.ledger.event(
                attempt.run_id, "attempt.cancel", {}, submission_id=attempt.submission_id
            )
            if attempt.job_id is not None and not attempt.ended:
                client = self.connections[attempt.site].client
                status = require_same(attempt, client, attempt.job_id)
                if status is not None and not status.state.terminal:
                    client.cancel(attempt.job_id)
