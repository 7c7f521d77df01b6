"""One handover per injection, on real Slurm: what is injected, how it is struck, what came of it.

User code alone appends to a witness file at its site; nothing of ours does. The lab is
``injection_lab``'s, the processes ``injection_burst``'s, the faults ``injection_faults``'.
"""

import os
import shutil
import signal
import time
from pathlib import Path

from injection_burst import Bursts, die_with_parent
from injection_faults import arm_ssh, reached, strike
from injection_lab import CLOUD, ONPREM, InjectionLab, NotReadyError
from injection_set import Injection, Outcome, pairs, summary

from hpcscale.burst.elements import attempts_with_elements
from hpcscale.burst.moves import Moves, Step
from hpcscale.burst.policy_file import load_policy
from hpcscale.burst.reap import burst_sites, reap
from hpcscale.burst.run import Connections, tick
from hpcscale.errors import HpcscaleError
from hpcscale.lab import faults
from hpcscale.lab.model import LabOptions
from hpcscale.lab.process import patience
from hpcscale.ledger import Ledger
from hpcscale.verify import submission_of

__all__ = [
    "Injection",
    "NotReadyError",
    "Outcome",
    "Site",
    "die_with_parent",
    "pairs",
    "summary",
]
POLICY = f'from = "{ONPREM}"\nto = ["{CLOUD}"]\ncron_interval = "5s"\nretry_after = "1h"\n'
OPTIONS = LabOptions(boot_delay_s=0.3, suspend_time_s=3600, resume_timeout_s=12)
SETTLE_S = 200.0
# a client that was killed is certainly dead here: no need to wait until its credential expires
NEVER_REACHED_S = 10.0
ALIVE = {"PENDING", "CONFIGURING", "RUNNING", "COMPLETING"}


class Site(InjectionLab):
    """A lab with a full on-prem queue, and one handover after another."""

    def __init__(self, lab, folder):
        super().__init__(lab)
        self.folder = Path(folder)
        self.policy = self.folder / "P.toml"
        self.bursts = Bursts(self.policy)
        self.count = 0

    def inject(self, injection):
        """One injection.

        Raises:
            NotReadyError: it did not begin, and may be tried again on another lab.
        """
        begin = time.monotonic()
        self.count += 1
        out = Outcome(injection, cancelled=injection.fault.startswith("user cancels"))
        order = "fence-first" if injection.work == "fence-first" else "gate-first"
        self.policy.write_text(f'{POLICY}order = "{order}"\n')
        states = [self.folder / f"state{self.count}.{n}" for n in range(injection.ledgers)]
        for state in states:
            state.mkdir()
        self.ready()
        if injection.fault == "never boot":
            self.cold()
            faults.no_boot(self.lab, 4)
            out.struck = True
        job = self.submit(states[0], injection)
        behind = self.submit_behind(job) if injection.work == "dependent" else {}
        for state in states[1:]:
            shutil.copy(states[0] / "ledger.sqlite3", state)
        out.struck |= arm_ssh(self, injection.fault)
        try:
            self._run(injection, out, job, states)
            self._settle(out, job, states)
            self._settle_behind(out, job, behind)
        finally:
            self.bursts.end()
            faults.clear(self.lab)
        self._judge(injection, out, job, states)
        out.seconds = round(time.monotonic() - begin, 1)
        return out

    def moves(self, state, job):
        with Ledger.open(state / "ledger.sqlite3") as ledger:
            return Moves(ledger).of_run(job.run_id)

    def _reached(self, phase, job, state):
        moves = self.moves(state, job) if phase == "submitted" else []
        return reached(self, phase, job, moves)

    def _run(self, injection, out, job, states):
        """Until the fault has struck and its end has come, and the killed process is dead."""
        first = self.bursts.start(states[0], injection.kill)
        others = [self.bursts.start(state) for state in states[1:]]
        gone = {}
        deadline = time.monotonic() + 25
        heal = None
        heal_at = 0.0
        waits = bool(injection.fault) and not out.struck
        while time.monotonic() < deadline:
            for pid in [first, *others]:
                if pid not in gone and (status := self.bursts.ended(pid)) is not None:
                    gone[pid] = status
                    out.killed |= os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
            now = time.monotonic()
            over = len(gone) == len(others) + 1
            if waits and (self._reached(injection.phase, job, states[0]) or over):
                heal = strike(self, injection.fault, job)
                out.struck, waits = True, False
                heal_at = now + 1.5
            if heal is not None and now > heal_at:
                heal()
                heal = None
            if over and not waits and heal is None:
                return
            if first in gone and gone[first] and not waits and heal is None:
                return  # killed: the next one goes on
            time.sleep(0.05)
        if heal is not None:
            heal()

    def _settle(self, out, job, states):
        """No more faults: cron comes again, at both login nodes."""
        self.bursts.end()
        faults.clear(self.lab)
        deadline = time.monotonic() + SETTLE_S
        policy = load_policy(self.policy)
        connections = {state: Connections() for state in states}
        try:
            while time.monotonic() < deadline:
                moves = []
                for state in states:
                    os.environ["HPCSCALE_STATE_DIR"] = str(state)
                    try:
                        with Ledger.open() as ledger:
                            done = tick(ledger, policy, connections[state])
                            moves += Moves(ledger).of_run(job.run_id)
                        out.note = "; ".join(done.problems)
                    except HpcscaleError as exc:
                        out.note = str(exc)
                        moves.append(None)
                    if out.note:  # what is broken is connected anew
                        connections[state].close()
                if any(m is not None and m.step is Step.RELEASING for m in moves):
                    self.free()  # a stand-in needs a node for a moment
                if not any(m is None or not m.step.settled for m in moves):
                    if self.begun(out.injection, job):
                        return
                    records = self.all_jobs(job, states)
                    if records is not None and not ALIVE.intersection(r[0] for r in records):
                        return
                    self.free()  # it came back to its place: now it may run there
                time.sleep(0.2)
            out.unsettled = True
        finally:
            for each in connections.values():
                each.close()

    def _settle_behind(self, out, job, behind):
        """Until each of the jobs behind it has run, or never will."""
        if not behind:
            return
        self.free()

        def ends():
            found = {}
            for kind, job_id in behind.items():
                records = self.jobs(job_id)
                if records is None:
                    return False
                state, name, reason = records[0] if records else ("", "", "")
                if self.behind_ran(job, kind).exists():
                    found[kind] = "ran"
                elif name != "behind":
                    found[kind] = "forgotten"  # its controller died soon after its submission
                elif reason == "DependencyNeverSatisfied":
                    found[kind] = "never"
                elif state not in ALIVE:
                    found[kind] = state
            return len(found) == len(behind) and found

        if not (found := self.until(ends, patience(60), 0.3)):
            out.wrong_behind = "within the time they did not come to an end"
            return
        out.behind = ", ".join(f"{kind} {end}" for kind, end in found.items())
        ended = [line for line in self.written(job, "ended") if line]
        good = bool(ended) and out.injection.exit_code == 0
        if found["afterok"] == "ran" and not good:
            out.wrong_behind = "afterok ran behind a command that did not end well"
        if out.cancelled:
            return  # by then the command may have ended
        if found["afterok"] == "never" and good:
            out.wrong_behind = "afterok never runs behind a command that ended well"
        if found["afternotok"] == "ran" and good:
            out.wrong_behind = "afternotok ran behind a command that ended well"

    def _judge(self, injection, out, job, states):
        for state in states:
            os.environ["HPCSCALE_STATE_DIR"] = str(state)
            connections = Connections()
            try:
                with Ledger.open() as ledger:
                    reap(ledger, connections, burst_sites(ledger) or [CLOUD])
                    last = Moves(ledger).of_run(job.run_id)[-1:]
            finally:
                connections.close()
            if last:
                out.why = f"{out.why} {last[0].message}".strip()
                out.step = f"{out.step} {last[0].step.value}".strip()
                if last[0].gate_idle_s is not None:
                    out.gate_idle_s = last[0].gate_idle_s
        mine = set()
        for state in states:
            with Ledger.open(state / "ledger.sqlite3") as ledger:
                mine |= {a.submission_id for a in attempts_with_elements(ledger, job.run_id)}

        def live():
            listing = self.cloud("squeue", "-h", "-o", "%k")
            return sum(submission_of(line) in mine for line in listing.splitlines())

        self.until(lambda: not live(), 15, 0.2)
        out.orphans = live()
        out.starts = self.starts(job)
        begun = {start[4] for start in out.starts}
        out.lost = not begun >= set(injection.tasks) and not out.cancelled
        self._measure(out, job)
        self.onprem("scancel", "--name=injected")
        self.onprem("scancel", "--name=behind")
        self.cloud("scancel", "--user", self.lab.state.user)  # the next one begins on free nodes

    def _measure(self, out, job):
        """From the gang at its gate to user code, both by the node's clock."""
        gated = sorted((self.run_dir(CLOUD, job) / "events").glob("*.gated"))
        if len(gated) == len(out.starts) == 1 and out.starts[0][0] == CLOUD:
            seconds = float(out.starts[0][1]) - gated[-1].stat().st_mtime
            out.gang_to_user_code_s = round(seconds, 2)
