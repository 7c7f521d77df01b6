"""One handover per injection, on real Slurm: what is injected, how it is struck, what came of it.

User code alone appends to a witness file at its site; nothing of ours does. A burst process is the
command line's own ``burst run``, in a forked child, so that SIGKILL is SIGKILL.
"""

import os
import shutil
import signal
import time
from pathlib import Path

from injection_set import TASKS, Injection, Outcome, pairs, summary

import hpcscale.cli.burst as burst_cli
from hpcscale.burst.elements import attempts_with_elements, element_run_id
from hpcscale.burst.moves import Moves, Step
from hpcscale.burst.policy_file import load_policy
from hpcscale.burst.reap import burst_sites, reap
from hpcscale.burst.run import Connections, tick
from hpcscale.connect import connect
from hpcscale.errors import HpcscaleError, LabError
from hpcscale.lab import _nsinit, faults
from hpcscale.lab.model import LabOptions
from hpcscale.lab.process import patience
from hpcscale.ledger import Ledger
from hpcscale.render import render
from hpcscale.site import load_site
from hpcscale.spec import BurstMode, BurstTerms, JobSpec, Resources
from hpcscale.submit import submit
from hpcscale.verify import submission_of

__all__ = ["Injection", "Outcome", "Site", "pairs", "summary"]
ONPREM, CLOUD = "lab-onprem", "lab-cloud"
POLICY = f'from = "{ONPREM}"\nto = ["{CLOUD}"]\ncron_interval = "5s"\nretry_after = "1h"\n'
OPTIONS = LabOptions(boot_delay_s=0.3, suspend_time_s=3600, resume_timeout_s=12)
SETTLE_S = 200.0
PR_SET_PDEATHSIG = 1
# a client that was killed is certainly dead here: no need to wait until its credential expires
NEVER_REACHED_S = 10.0
BEHIND = ("afterok", "afternotok")
ALIVE = {"PENDING", "CONFIGURING", "RUNNING", "COMPLETING"}
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


class Site:
    """A lab with a full on-prem queue, and one handover after another."""

    def __init__(self, lab, folder):
        self.lab = lab
        self.folder = Path(folder)
        self.policy = self.folder / "P.toml"
        self.filler = None
        self.count = 0
        self.children = []

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

    def undrain(self):
        """As an operator does: a controller that forgot a start drains nodes (Duplicate jobid)."""
        for ask in (self.onprem, self.cloud):
            listing = ask("sinfo", "-h", "-N", "-o", "%N %T")
            for node in {line.split()[0] for line in listing.splitlines() if "drain" in line}:
                ask("scontrol", "update", f"NodeName={node}", "State=RESUME")

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
            nodes = self.onprem("sinfo", "-h", "-N", "-o", "%N %t %E")
            jobs = self.onprem("squeue", "-h", "-o", "%i %T %r %j")
            raise AssertionError(f"the strangers' job does not start: {nodes}; {jobs}")

    def free(self):
        if self.filler:
            self.onprem("scancel", self.filler)
            self.filler = None

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

    # ---- burst processes ----

    def burst(self, state, kill=""):
        """``hpcscale burst run --wait`` in a child of its own; its pid."""
        mine = os.getpid()
        pid = os.fork()
        if pid:
            self.children.append(pid)
            return pid
        try:
            die_with_parent(mine, signal.SIGKILL)
            os.setsid()
            log = os.open(state / "burst.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
            os.dup2(log, 1)
            os.dup2(log, 2)
            os.environ["HPCSCALE_STATE_DIR"] = str(state)
            if kill:
                arm(kill)
            burst_cli.POLL_S = 0.5
            burst_cli.run.main(["--policy", str(self.policy), "--wait"], standalone_mode=False)
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
        if phase == "gated":  # fence-first, its command may begin without a wait
            return any((there / "events").glob("*.*ed"))
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
                self.fill_disk(lab.site(CLOUD).paths.scratch / "hpcscale-state")
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

    def fill_disk(self, path):
        """A file that is written while the directory is copied may have no room: once more."""
        for attempt in range(5):
            try:
                faults.disk_full(self.lab, CLOUD, path=path)
                return
            except LabError:
                if attempt == 4:
                    raise

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
        out = Outcome(injection, cancelled=injection.fault.startswith("user cancels"))
        order = "fence-first" if injection.work == "fence-first" else "gate-first"
        self.policy.write_text(f'{POLICY}order = "{order}"\n')
        states = [self.folder / f"state{self.count}.{n}" for n in range(injection.ledgers)]
        for state in states:
            state.mkdir()
        self.undrain()
        self.fill()
        if injection.fault == "never boot":
            self.cold()
            faults.no_boot(self.lab, 4)
            out.struck = True
        job = self.submit(states[0], injection)
        behind = self.submit_behind(job) if injection.work == "dependent" else {}
        for state in states[1:]:
            shutil.copy(states[0] / "ledger.sqlite3", state)
        out.struck |= self.arm_ssh(injection.fault)
        try:
            self._run(injection, out, job, states)
            self._settle(out, job, states)
            self._settle_behind(out, job, behind)
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

    def heal(self):
        faults.clear(self.lab)


def die_with_parent(parent, number):
    """This process gets a signal when its parent ends, however that ends (prctl(2))."""
    _nsinit._check(_nsinit._libc.prctl(PR_SET_PDEATHSIG, number, 0, 0, 0), "prctl")
    if os.getppid() != parent:  # it ended before we asked
        os.kill(os.getpid(), number)


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
