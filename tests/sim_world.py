"""Deterministic simulation of the handover: the real code, two faked sites, seeded faults.

Everything under ``hpcscale.burst``, the submission, the observation and the ledger is the real
code. It runs in greenlets, one a process; a process may be left and another taken up at each of its
acts (a command or a file at a site, a write of its ledger), and killed before or after each. The
controllers are ``FakeSlurm``; jobs' scripts are ``sim_script``. One seed is one interleaving.

The world keeps what no code under test can touch: who began user code, when, and in which attempt.
"""

import bisect
import contextlib
import itertools
import random
import types
from collections import Counter

import greenlet
from sim_calls import Calls
from sim_faults import CLOUD, FAULTS, ONPREM, Faults
from sim_judge import Judge, ViolationError
from sim_kinds import KINDS, WEIGHTS, Kinds
from sim_life import Life
from sim_patch import START, left_out, patched, simulated
from sim_process import Killed, SimSite
from sim_site import ALIVE

from hpcscale.burst.moves import Moves
from hpcscale.connect import Connection
from hpcscale.slurm.cli import CliClient


class World(Kinds, Calls, Life, Faults, Judge):
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
        self.settled_s = 0.0  # when the faults ended
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
        at = self.random.random() * sum(weights)
        turn = "srtp"[bisect.bisect(list(itertools.accumulate(weights)), at)]
        match turn:
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
        self.settled_s = self.now_s
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
            self._until_at_rest()
            if turn and self._quiet():
                return
            for process in {id(p.ledger): p for p in self.processes}.values():
                self.start(process, self.tick)
                self._until_at_rest()
            # as cron does: a gang waits for two of its rounds; then in longer ones
            for seconds in [4] * 5 if turn < 200 else [600]:
                self.pass_time(seconds)
                self._step_scripts()
        # what is wrong is said by the judge

    def _until_at_rest(self):
        """Calls under way come to their end."""
        while busy := [p for p in self.processes if p.busy]:
            if all(p.wake > self.now_s for p in busy):
                self.pass_time(1)
                self._step_scripts()
            for process in busy:
                if process.busy and process.wake <= self.now_s:
                    process.task.switch()

    def _step_scripts(self):
        """All that scripts do until now, each in its own time."""
        for script in list(self.scripts):
            while script.wake <= self.now_s and script in self.scripts:
                self.step_script(script, late=True)

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
