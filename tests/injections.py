"""One handover per injection, on real Slurm: what is injected, how it is struck, what came of it.

User code alone appends to a witness file at its site; nothing of ours does. A burst process is the
command line's own ``burst run``, in a forked child, so that SIGKILL is SIGKILL.
"""

import itertools
import os
import random
import shutil
import signal
import time
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path

from hpcscale import judge
from hpcscale.burst.moves import Moves, Step
from hpcscale.burst.policy import load_policy
from hpcscale.burst.reap import burst_sites, reap
from hpcscale.burst.run import Connections, tick
from hpcscale.connect import connect
from hpcscale.errors import HpcscaleError
from hpcscale.lab import faults
from hpcscale.ledger import Ledger
from hpcscale.render import render
from hpcscale.site import load_site
from hpcscale.spec import BurstMode, BurstTerms, JobSpec, Resources
from hpcscale.submit import submit
from hpcscale.verify import submission_of

ONPREM, CLOUD = "lab-onprem", "lab-cloud"
POLICY = f'from = "{ONPREM}"\nto = ["{CLOUD}"]\ncron_interval = "5s"\nretry_after = "1h"\n'
ACTS = ("fence", "sbatch", "claim", "decide", "cancel")
STEPS = ("submitting", "submitted", "claiming", "opening", "cancelling", "moved")
KILLS = (
    "",
    *(f"{act}.{when}" for act in ACTS for when in ("before", "after")),
    *(f"save {step}.{when}" for step in STEPS for when in ("before", "after")),
)
FAULTS = (
    "",
    "onprem ctld killed",
    "cloud ctld killed",
    "onprem ctld stopped",
    "cloud ctld stopped",
    "ssh cut after sbatch",
    "ssh cut after ln",
    "ssh cut before ln",
    "ssh cut after squeue",
    "ssh refused",
    "cloud node crash",
    "never boot",
    "cloud disk full",
    "onprem clock +120 s",
    "cloud clock -120 s",
    "onprem fence lost, nodes free",
    "user cancels on-prem",
    "user cancels in the cloud",
)
PHASES = ("submitted", "gated", "opened")
SETTLE_S = 200.0  # Slurm itself delays what it requeues by 121 s
# a client that was killed is certainly dead here: no need to wait until its credential expires
NEVER_REACHED_S = 15.0


@dataclass(frozen=True)
class Injection:
    """What happens to one handover.

    Attributes:
        kill: where `burst run` is killed with SIGKILL: ``act.before`` or ``act.after``.
        fault: of the sites.
        phase: how far the handover is when the fault strikes.
        ledgers: 2: a second `burst run` on another login node, with a ledger of its own.
    """

    kill: str = ""
    fault: str = ""
    phase: str = "gated"
    ledgers: int = 1


@dataclass
class Outcome:
    """What came of one."""

    injection: Injection
    seconds: float = 0.0
    starts: list = field(default_factory=list)
    struck: bool = False
    killed: bool = False
    lost: bool = False
    orphans: int = 0
    step: str = ""
    gate_idle_s: float | None = None
    gang_to_user_code_s: float | None = None
    cancelled: bool = False
    unsettled: bool = False
    note: str = ""

    @property
    def clean(self):
        """Nothing of what must not happen."""
        return not (self.double or self.lost or self.orphans or self.unsettled)

    @property
    def double(self):
        """Begun in two attempts, or twice at one restart count: a requeue by Slurm is neither."""
        who = [(submission, restart) for _, _, submission, restart in self.starts]
        return len(set(who)) < len(who) or len({submission for submission, _ in who}) > 1

    def data(self):
        return {**asdict(self), "injection": asdict(self.injection), "double_start": self.double}

    @classmethod
    def of(cls, data):
        """From ``data`` of an earlier run."""
        fields = {k: v for k, v in data.items() if k not in {"injection", "double_start"}}
        return cls(Injection(**data["injection"]), **fields)


def pairs(seed=1):
    """Injections in which each kill meets each fault; phases and ledgers in turn, shuffled."""
    turn = itertools.cycle(itertools.product(PHASES, (1, 2)))
    chosen = [
        Injection(kill, fault, *phase)
        for (kill, fault), phase in zip(itertools.product(KILLS, FAULTS), turn, strict=False)
    ]
    random.Random(seed).shuffle(chosen)
    return chosen


class Site:
    """A lab with a full on-prem queue, and one handover after another."""

    def __init__(self, lab, folder):
        self.lab = lab
        self.folder = Path(folder)
        self.policy = self.folder / "P.toml"
        self.policy.write_text(POLICY)
        judge.NEVER_REACHED_S = NEVER_REACHED_S  # and of the children, which are forked
        self.filler = None
        self.count = 0
        self.children = []

    # ---- small questions ----

    def onprem(self, *argv, check=False):
        return self.lab.site(ONPREM).exec(list(argv), check=check).stdout.strip()

    def cloud(self, *argv, check=False):
        return self.lab.site(CLOUD).exec(list(argv), check=check).stdout.strip()

    def until(self, condition, timeout_s, poll_s=0.05):
        deadline = time.monotonic() + timeout_s
        while not (value := condition()):
            if time.monotonic() > deadline:
                return False
            time.sleep(poll_s)
        return value

    def fill(self):
        if self.filler and self.onprem("squeue", "-h", "-j", self.filler, "-o", "%T") == "RUNNING":
            return
        done = self.lab.site(ONPREM).exec(
            ["sbatch", "--parsable", "-N4", "--exclusive", "--time=600", "--job-name=filler"],
            stdin="#!/bin/sh\nsleep 36000\n", check=True,
        )  # fmt: skip
        self.filler = done.stdout.strip()
        running = lambda: (  # noqa: E731 # two words
            self.onprem("squeue", "-h", "-j", self.filler, "-o", "%T") == "RUNNING"
        )
        if not self.until(running, 60, 0.2):
            raise AssertionError("the strangers' job does not start")

    def free(self):
        if self.filler:
            self.onprem("scancel", self.filler)
            self.filler = None

    # ---- the job ----

    def submit(self, state):
        os.environ["HPCSCALE_STATE_DIR"] = str(state)
        site = load_site(ONPREM).site
        line = "$HPCSCALE_SITE $(date +%s.%N) $HPCSCALE_SUBMISSION_ID $HPCSCALE_RESTART_COUNT"
        witness = f'echo "{line}" >> witness'
        spec = JobSpec(
            name="injected",
            command=("sh", "-c", f'cd "$HPCSCALE_RUN_DIR" && {witness} && sleep 0.5'),
            resources=Resources(nodes=2, gpus_per_node=1, time_limit_s=600),
            burst=BurstTerms(mode=BurstMode.ONLY),
        )
        with connect(site) as connection, Ledger.open() as ledger:
            return submit(render(spec, site), site, connection, ledger)

    def run_dir(self, site_name, job):
        return self.lab.site(site_name).paths.scratch / "hpcscale-state" / "runs" / job.run_id

    def starts(self, job):
        """What user code wrote; read inside the sites, where a full disk is mounted over it."""
        found = []
        for name in (ONPREM, CLOUD):
            path = self.run_dir(name, job) / "witness"
            text = self.lab.site(name).exec(["cat", str(path)]).stdout
            found += [line.split() for line in text.splitlines()]
        return found

    # ---- burst processes ----

    def burst(self, state, kill=""):
        """``hpcscale burst run --wait`` in a child of its own; its pid."""
        pid = os.fork()
        if pid:
            self.children.append(pid)
            return pid
        try:
            os.setsid()
            log = os.open(state / "burst.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
            os.dup2(log, 1)
            os.dup2(log, 2)
            os.environ["HPCSCALE_STATE_DIR"] = str(state)
            if kill:
                arm(kill)
            import hpcscale.cli.burst as cli

            cli.POLL_S = 0.5
            cli.run.main(["--policy", str(self.policy), "--wait"], standalone_mode=False)
        except BaseException as exc:  # noqa: BLE001 # a child never goes back into the parent's code
            os.write(2, f"{type(exc).__name__}: {exc}\n".encode())
        os._exit(0)

    def ended(self, pid):
        """Its wait status once it has ended, else None."""
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            self.children.remove(pid)
        return status if done else None

    def end_children(self):
        for pid in list(self.children):
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            self.children.remove(pid)

    def moves(self, state, job):
        with Ledger.open(state / "ledger.sqlite3") as ledger:
            return Moves(ledger).of_run(job.run_id)

    # ---- how far it is ----

    def reached(self, phase, job, state):
        there = self.run_dir(CLOUD, job)
        if phase == "gated":
            return any((there / "events").glob("*.gated"))
        if phase == "opened":
            return any(there.glob("decision.*[0-9a-f]"))
        return any(m.step is not Step.FENCING for m in self.moves(state, job))

    # ---- faults ----

    def arm_ssh(self, fault):
        how = {
            "ssh cut after sbatch": ("after", "sbatch"),
            "ssh cut after ln": ("after", "ln -T"),
            "ssh cut before ln": ("before", "ln -T"),
            "ssh cut after squeue": ("after", "squeue"),
        }.get(fault)
        if how is not None:
            faults.ssh_cut(self.lab, how[0], match=how[1])
        return how is not None

    def strike(self, fault, job):
        """Returns how to end it; None: it has ended by itself."""
        lab = self.lab
        match fault:
            case "onprem ctld killed" | "cloud ctld killed":
                name = ONPREM if fault.startswith("onprem") else CLOUD
                faults.controller(lab, name, "kill")
                return lambda: faults.controller(lab, name, "restart")
            case "onprem ctld stopped" | "cloud ctld stopped":
                name = ONPREM if fault.startswith("onprem") else CLOUD
                faults.controller(lab, name, "stop")
                return lambda: faults.controller(lab, name, "continue")
            case "ssh refused":
                faults.ssh_cut(lab, "refuse")
                return lambda: faults.ssh_cut(lab, "normal")
            case "cloud node crash":
                node = self.cloud_node(job)
                if node is None:
                    return None
                faults.node_crash(lab, node)
                return lambda: faults.node_restart(lab, node)
            case "cloud disk full":
                faults.disk_full(lab, CLOUD, path=lab.site(CLOUD).paths.scratch / "hpcscale-state")
                return lambda: faults.disk_free(lab, CLOUD)
            case "onprem clock +120 s":
                faults.clock_skew(lab, ONPREM, 120)
                return lambda: faults.clock_skew(lab, ONPREM, 0)
            case "cloud clock -120 s":
                faults.clock_skew(lab, CLOUD, -120)
                return lambda: faults.clock_skew(lab, CLOUD, 0)
            case "onprem fence lost, nodes free":
                self.onprem("scontrol", "update", f"JobId={job.ref.job_id}", "ExcNodeList=")
                self.free()
            case "user cancels on-prem":
                self.onprem("scancel", str(job.ref.job_id))
            case "user cancels in the cloud":
                self.cloud("scancel", "--user", self.lab.state.user)
        return None

    def cloud_node(self, job):
        for line in self.cloud("squeue", "-h", "-t", "R", "-o", "%k %B").splitlines():
            comment, _, node = line.rpartition(" ")
            if submission_of(comment):
                return node
        return None

    def cold(self):
        """All cloud nodes powered down."""

        def down():
            listing = self.cloud("sinfo", "-h", "-N", "-o", "%N %t")
            states = dict(line.split() for line in listing.splitlines())
            if up := [n for n, state in states.items() if state[-1] not in "~%!"]:
                self.cloud(
                    "scontrol", "update", f"NodeName={','.join(up)}", "State=POWER_DOWN_FORCE"
                )
            return bool(states) and all(state == "idle~" for state in states.values())

        return self.until(down, 60, 0.5)

    # ---- one injection ----

    def inject(self, injection):
        begin = time.monotonic()
        self.count += 1
        out = Outcome(injection)
        states = [self.folder / f"state{self.count}.{n}" for n in range(injection.ledgers)]
        for state in states:
            state.mkdir()
        self.fill()
        if injection.fault == "never boot":
            self.cold()
            faults.no_boot(self.lab, 4)
            out.struck = True
        job = self.submit(states[0])
        for state in states[1:]:
            shutil.copy(states[0] / "ledger.sqlite3", state)
        out.struck |= self.arm_ssh(injection.fault)
        try:
            self._run(injection, out, job, states)
            self._settle(out, job, states)
        finally:
            self.end_children()
            self.heal()
        self._judge(injection, out, job, states)
        out.seconds = round(time.monotonic() - begin, 1)
        return out

    def _run(self, injection, out, job, states):
        """Until the fault has struck and its end has come, and the killed process is dead."""
        first = self.burst(states[0], injection.kill)
        others = [self.burst(state) for state in states[1:]]
        gone = {}
        deadline = time.monotonic() + 25
        heal = None
        heal_at = 0.0
        waits = bool(injection.fault) and not out.struck
        while time.monotonic() < deadline:
            for pid in [first, *others]:
                if pid not in gone and (status := self.ended(pid)) is not None:
                    gone[pid] = status
                    out.killed |= os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
            now = time.monotonic()
            over = len(gone) == len(others) + 1
            if waits and (self.reached(injection.phase, job, states[0]) or over):
                heal = self.strike(injection.fault, job)
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
        self.end_children()
        self.heal()
        freed = False
        deadline = time.monotonic() + SETTLE_S
        policy = load_policy(self.policy)
        while time.monotonic() < deadline:
            busy = False
            for state in states:
                os.environ["HPCSCALE_STATE_DIR"] = str(state)
                connections = Connections()
                try:
                    with Ledger.open() as ledger:
                        tick(ledger, policy, connections)
                        mine = Moves(ledger).of_run(job.run_id)
                        busy |= any(not m.step.settled for m in mine)
                except HpcscaleError as exc:
                    out.note = str(exc)
                    busy = True
                finally:
                    connections.close()
            if not busy:
                if self.starts(job):
                    break
                word = self.onprem(
                    "squeue", "-h", "-t", "all", "-j", str(job.ref.job_id), "-o", "%T"
                )
                if word not in {"PENDING", "CONFIGURING", "RUNNING", "COMPLETING"}:
                    break
                if not freed:  # it came back to its place: now it may run there
                    self.free()
                    freed = True
            time.sleep(0.3)
        else:
            out.unsettled = True

    def _judge(self, injection, out, job, states):
        out.cancelled = injection.fault.startswith("user cancels")
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
                out.step = f"{out.step} {last[0].step.value}".strip()
                if last[0].gate_idle_s is not None:
                    out.gate_idle_s = last[0].gate_idle_s
        mine = set()
        for state in states:
            with Ledger.open(state / "ledger.sqlite3") as ledger:
                mine |= {a.submission_id for a in ledger.attempts(job.run_id)}

        def live():
            listing = self.cloud("squeue", "-h", "-o", "%k")
            return sum(submission_of(line) in mine for line in listing.splitlines())

        self.until(lambda: not live(), 15, 0.2)
        out.orphans = live()
        out.starts = self.starts(job)
        out.lost = not out.starts and not out.cancelled
        self._measure(out, job)
        self.onprem("scancel", "--name=injected")
        self.cloud("scancel", "--user", self.lab.state.user)  # the next one begins on free nodes

    def _measure(self, out, job):
        """From the gang at its gate to user code, both by the node's clock."""
        gated = sorted((self.run_dir(CLOUD, job) / "events").glob("*.gated"))
        if gated and out.starts and out.starts[0][0] == CLOUD:
            seconds = float(out.starts[0][1]) - gated[-1].stat().st_mtime
            out.gang_to_user_code_s = round(seconds, 2)

    def heal(self):
        faults.clear(self.lab)


def arm(kill):
    """In this process: SIGKILL before or after the first act of that name."""
    from hpcscale.burst import handover
    from hpcscale.slurm.cli import CliClient

    act, _, when = kill.rpartition(".")

    def put(where, name, chosen=lambda *_: True):
        original = getattr(where, name)

        def wrapped(*args, **kw):
            mine = chosen(args, kw)
            if mine and when == "before":
                os.kill(os.getpid(), signal.SIGKILL)
            result = original(*args, **kw)
            if mine:
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        setattr(where, name, wrapped)

    match act:
        case "fence":
            put(CliClient, "update", lambda args, _: "ExcNodeList" in args[2])
        case "sbatch":
            put(CliClient, "sbatch")
        case "claim":
            put(handover, "take")
        case "decide":
            put(handover, "decide")
        case "cancel":
            put(CliClient, "cancel")
        case _:
            step = act.removeprefix("save ")
            put(Moves, "save", lambda _, kw: kw.get("step") == step)


def summary(outcomes):
    """Counts, and the bound that they support."""
    kinds = Counter()
    for out in outcomes:
        kinds[f"kill: {out.injection.kill or 'none'}"] += 1
        kinds[f"fault: {out.injection.fault or 'none'}"] += 1
        kinds[f"ledgers: {out.injection.ledgers}"] += 1
    gangs = sorted(o.gang_to_user_code_s for o in outcomes if o.gang_to_user_code_s is not None)
    clean = sorted(
        o.gang_to_user_code_s
        for o in outcomes
        if o.gang_to_user_code_s is not None and not o.injection.fault and not o.injection.kill
    )
    idle = sorted(o.gate_idle_s for o in outcomes if o.gate_idle_s is not None)
    count = len(outcomes)
    return {
        "injections": count,
        "double_starts": sum(o.double for o in outcomes),
        "lost": sum(o.lost for o in outcomes),
        "orphans": sum(o.orphans for o in outcomes),
        "unsettled": sum(o.unsettled for o in outcomes),
        "killed": sum(o.killed for o in outcomes),
        "struck": sum(o.struck for o in outcomes),
        "rate_below_at_95_percent": round(3 / count, 5) if count else None,
        "gang_to_user_code_s": quantiles(gangs),
        "gang_to_user_code_undisturbed_s": quantiles(clean),
        "gate_idle_s": quantiles(idle),
        "ends": dict(Counter(o.step for o in outcomes)),
        "begun_at": dict(Counter(o.starts[0][0] if o.starts else "nowhere" for o in outcomes)),
        "kinds": dict(sorted(kinds.items())),
    }


def quantiles(values):
    """Median and extremes of sorted numbers."""
    if not values:
        return None
    return {
        "count": len(values),
        "median": values[len(values) // 2],
        "p95": values[min(len(values) - 1, int(len(values) * 0.95))],
        "max": values[-1],
    }
