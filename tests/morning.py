"""A morning of short jobs on real Slurm: submitted by hand, moved by `burst run`, then accounted.

Jobs come over some hours of the controllers' clock, most with deadlines, all under one budget.
``hpcscale submit`` and ``hpcscale burst run --for`` are what moves them; the driver only types.
What came of it is asked of both Slurms, not of the ledger: when each job ended, how often it began,
which nodes were held for how long. Then every decision to move in the audit log is made again.
"""

import contextlib
import datetime as dt
import io
import json
import os
import random
import re
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path

import msgspec

from hpcscale.burst.audit import audit_path, data_hash
from hpcscale.burst.kept import names, read, replay
from hpcscale.burst.moves import Moves
from hpcscale.connect import connect
from hpcscale.errors import BurstRefusedError, LabError, UnreachableError
from hpcscale.ledger import Ledger
from hpcscale.site import load_site
from hpcscale.verify import submission_of

GPUS = 4  # of a node of the lab
PRICE = Decimal("6.88")
BOOT_S, STAGING_S, BOOT_TIMEOUT_S = 240, 60, 1200
POLICY = """\
from = "lab-onprem"
to = ["lab-cloud"]
policy = "value"
hour_usd = {hour_usd}
cron_interval = "{cron}s"
retry_after = "10m"

[target.lab-cloud]
boot = "{boot}s"
staging = "{staging}s"
boot_timeout = "{boot_timeout}s"

[[budget]]
of = "user"
usd_per_month = {budget}
waiting_usd_per_month = {waiting}
"""
PROMISE = "its deadline can be kept by a move until"
NO_MONEY = "is spent and"


@dataclass(frozen=True)
class Job:
    """One job of the morning; times are the controllers' seconds."""

    at_s: float
    run_s: int
    limit_s: int
    nodes: int
    gpus: int
    burst: str
    slack_s: int | None = None  # deadline: so long after what a move needs; None: no deadline
    feasible: bool = True


@dataclass(frozen=True)
class Morning:
    """How many jobs, over how long, and how fast the controllers' clocks run."""

    jobs: int = 300
    hours: float = 3.0
    fast: int = 8
    nodes: int = 4  # on-prem
    cloud_nodes: int = 20  # a cloud that is full keeps no promise
    seed: int = 1
    load: float = 1.3  # GPU-hours asked for / GPU-hours that the on-prem nodes have
    cron_s: int = 300
    hour_usd: int = 12
    budget_usd: int = 600
    waiting_usd: int = 150  # of it, for moves that save waiting alone

    @property
    def margin_s(self) -> int:
        """The policy's own: gate-first loses two runs of cron at most."""
        return 2 * self.cron_s


def options(morning: Morning) -> dict[str, object]:
    """The `LabOptions` of the lab for it: both controllers remember every job until the end."""
    remember = ("MinJobAge=200000",)
    return {
        "nodes": morning.cloud_nodes, "gpus": GPUS, "fast": morning.fast, "suspend_time_s": 600,
        "extra_conf": {"lab-onprem": remember, "lab-cloud": remember},
    }  # fmt: skip


def draw(morning: Morning) -> list[Job]:
    """The jobs, by arrival: the same for the same seed."""
    rng = random.Random(morning.seed)
    found = []
    shapes = [(rng.choice((1, 1, 1, 2)), rng.choice((1, 2, 4))) for _ in range(morning.jobs)]
    lengths = [rng.lognormvariate(0, 0.6) for _ in range(morning.jobs)]
    work = sum(n * g * s for (n, g), s in zip(shapes, lengths, strict=True))
    unit = morning.load * morning.nodes * GPUS * morning.hours * 3600 / work
    for (nodes, gpus), length in zip(shapes, lengths, strict=True):
        run_s = max(60, round(unit * length))
        limit_s = -(-max(run_s * rng.uniform(1.3, 2.5), run_s + 60 * morning.fast) // 60) * 60
        kind = rng.random()
        feasible = rng.random() > 0.04 and len(found) != 5  # one at least
        slack = None
        if kind < 0.6 or not feasible:
            slack = round(limit_s * rng.uniform(0.1, 4.0))
        burst = "never" if kind > 0.9 and feasible else "auto"
        found.append(
            Job(
                at_s=rng.uniform(0, morning.hours * 3600), run_s=run_s, limit_s=int(limit_s),
                nodes=nodes, gpus=gpus, burst=burst, slack_s=slack,
                feasible=feasible,
            )
        )  # fmt: skip
    return sorted(found, key=lambda job: job.at_s)


@dataclass
class Submitted:
    """A job that was typed in, and by when it is wanted."""

    job: Job
    run_id: str
    deadline: dt.datetime | None
    promised: bool = False  # by submit: time and money are there for a move


@dataclass
class Outcome:
    """What the morning came to; ``problems`` is empty when all promises were kept."""

    facts: dict[str, object] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)


class Driver:
    """Types the morning's commands on one lab, whose environment is this process's."""

    def __init__(self, lab, morning: Morning, folder: Path, say=print, told=lambda _: None):
        self.lab, self.morning, self.folder, self.say = lab, morning, folder, say
        self.told, self.told_at = told, 0.0  # is given facts as they are, each minute
        self.connection = connect(load_site("lab-onprem").site)
        self.submitted: list[Submitted] = []
        self.refused: list[Job] = []
        self.policy = folder / "morning.toml"
        self.policy.write_text(
            POLICY.format(
                hour_usd=morning.hour_usd, cron=morning.cron_s, boot=BOOT_S, staging=STAGING_S,
                boot_timeout=BOOT_TIMEOUT_S, budget=morning.budget_usd,
                waiting=morning.waiting_usd,
            )
        )  # fmt: skip
        config = Path(os.environ["HPCSCALE_CONFIG_DIR"]) / "config.toml"
        said = config.read_text() if config.exists() else ""
        # by which submit promises, too; a key goes before tables
        config.write_text(f'burst_policy = "{self.policy}"\n{said}')
        self.runs = self.unanswered = 0
        self.burst: subprocess.Popen[bytes] | None = None
        self.log = (folder / "burst.log").open("wb")
        self.problems: list[str] = []

    def run(self) -> Outcome:
        """The morning, and what came of it."""
        begin, load = time.monotonic(), os.getloadavg()
        spare = [
            f"onprem{at}" for at in range(self.morning.nodes + 1, self.morning.cloud_nodes + 1)
        ]
        if spare:  # both sites of a lab have as many
            drain = ["scontrol", "update", f"NodeName={','.join(spare)}", "State=DRAIN", "Reason=-"]
            self.lab.site("lab-onprem").exec(drain, check=True)
        first = self.now()
        try:
            for job in draw(self.morning):
                due = first + dt.timedelta(seconds=job.at_s)
                while self.now() < due:
                    self.keep_moving()
                    time.sleep(0.2)
                self.keep_moving()
                self.submit(job)
            self.say(f"all submitted after {time.monotonic() - begin:.0f} s")
            while self.open_jobs():
                self.keep_moving()
                time.sleep(2)
            self.settle()
        finally:
            if self.burst is not None and self.burst.poll() is None:
                self.burst.terminate()
                self.burst.wait(60)
            self.log.close()
        outcome = judge(self)
        outcome.facts["real_s"] = round(time.monotonic() - begin)
        outcome.facts["load"] = [round(load[0], 1), round(os.getloadavg()[0], 1)]
        self.connection.close()
        return outcome

    def now(self) -> dt.datetime:
        """The controllers' time; a machine that is busy for a while ends no morning."""
        return patiently(self.connection.clock.now)

    def submit(self, job: Job) -> None:
        """`hpcscale submit`, in this process: 300 interpreters would be a benchmark of Python."""
        from hpcscale.cli.submit import command

        argv = [
            "--site", "lab-onprem", "--nodes", str(job.nodes), "--gpus-per-node", str(job.gpus),
            "--time", f"{job.limit_s // 60}", "--burst", job.burst, "--no-code", "--json",
        ]  # fmt: skip
        deadline = None
        if job.slack_s is not None:
            needs = self.morning.margin_s + BOOT_S + STAGING_S + job.limit_s
            ahead = needs + job.slack_s if job.feasible else job.limit_s * 0.8
            deadline = self.now() + dt.timedelta(seconds=ahead)
            deadline = deadline.replace(microsecond=0)
            argv += ["--deadline", deadline.isoformat()]
        argv += ["--", "sleep", f"{job.run_s / self.morning.fast:.2f}"]
        out, err = io.StringIO(), io.StringIO()
        try:
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                command.main(argv, standalone_mode=False)
        except BurstRefusedError:
            self.refused.append(job)
            if job.feasible:
                self.problems.append(f"refused though it could be met: {job}")
            return
        except UnreachableError:  # it may be there: never twice; `status` finds it
            self.unanswered += 1
            return
        if not job.feasible:
            self.problems.append(f"accepted though it cannot be met: {job}")
        data = json.loads(out.getvalue())["data"]
        promised = any(PROMISE in note for note in data["notices"])
        self.submitted.append(Submitted(job, data["run_id"], deadline, promised))

    def keep_moving(self) -> None:
        """`hpcscale burst run --for 1m`, again and again, as a cron line has it."""
        self.tell()
        if self.burst is not None and self.burst.poll() is None:
            return
        if self.burst is not None and self.burst.returncode not in {0, 5}:
            self.problems.append(f"burst run: exit {self.burst.returncode}")
        self.runs += 1
        self.burst = subprocess.Popen(
            [sys.executable, "-m", "hpcscale", "burst", "run", "--for", "1m"],
            stdout=self.log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
        )  # fmt: skip

    def tell(self) -> None:
        """Once a minute: how far it is."""
        if time.monotonic() < self.told_at + 60:
            return
        self.told_at = time.monotonic()
        with Ledger.open() as ledger:
            steps = Counter(m.step.value for m in Moves(ledger).all())
        at = self.now().isoformat(timespec="seconds")
        promised = sum(each.promised for each in self.submitted)
        self.told({"controllers_time": at, "submitted": len(self.submitted), "promised": promised,
                   "refused_as_infeasible": len(self.refused), "moves": dict(steps),
                   "load": round(os.getloadavg()[0], 1)})  # fmt: skip

    def open_jobs(self) -> int:
        """Jobs that wait or run at either site."""
        listing = ["squeue", "-h", "-o", "%i"]
        return sum(
            len(patiently(lambda at=at: self.lab.site(at).exec(listing, check=True)).stdout.split())
            for at in ("lab-onprem", "lab-cloud")
        )

    def settle(self) -> None:
        """Until each move is settled, and the ledger knows all ends."""
        if self.burst is not None:
            self.burst.wait(300)
        for argv in (("burst", "run", "--wait"), ("status",)):
            subprocess.run(
                [sys.executable, "-m", "hpcscale", *argv],
                stdout=self.log, stderr=subprocess.STDOUT, check=False, timeout=600,
            )  # fmt: skip


def patiently(ask, tries: int = 10):
    """Ask until there is an answer."""
    for left in reversed(range(tries)):
        try:
            return ask()
        except (LabError, UnreachableError):
            if not left:
                raise
    raise AssertionError


def said_of(each: Submitted) -> str:
    """What the last kept decisions said of a job."""
    said = []
    for name in names():
        seen = read(name)
        said += [
            f"{seen.plan.now:%H:%M:%S} {d.action.value}: {d.reason}"
            for d in seen.plan.decisions
            if d.run_id == each.run_id
        ]
    return " | ".join(said[-3:])


def jobs_at(lab, name: str) -> dict[str, dict[str, str]]:
    """Each job that a Slurm remembers, by submission id."""
    words = ["env", "SLURM_TIME_FORMAT=%s", "scontrol", "-o", "show", "jobs"]
    done = patiently(lambda: lab.site(name).exec(words, check=True, timeout_s=60))
    found = {}
    for line in done.stdout.splitlines():
        fields = dict(re.findall(r"(\w+)=(\S*)", line))
        if fields.get("Comment") and (key := submission_of(fields["Comment"])):
            found[key] = fields
    return found


def judge(driver: Driver) -> Outcome:
    """Compare what both Slurms say with what was promised."""
    lab, morning, problems = driver.lab, driver.morning, list(driver.problems)
    here, there = jobs_at(lab, "lab-onprem"), jobs_at(lab, "lab-cloud")
    with Ledger.open() as ledger:
        attempts = {a.submission_id: a for a in ledger.all_attempts()}
        runs = {key: a.run_id for key, a in attempts.items()}
        moves = Moves(ledger).all()
        reserved = {m.run_id: m.reserved_usd for m in moves}
    ends: dict[str, list[dt.datetime]] = {}
    for key, job in [*here.items(), *there.items()]:
        if job["JobState"] == "COMPLETED" and key in runs:
            end = dt.datetime.fromtimestamp(int(job["EndTime"]), dt.UTC)
            ends.setdefault(runs[key], []).append(end)
    met, late_s, unpromised = 0, [], Counter()
    for each in driver.submitted:
        done = ends.get(each.run_id, [])
        if len(done) != 1:
            problems.append(f"{each.run_id} completed {len(done)} times: {each.job}")
        if each.deadline is None or not done:
            continue
        late = (done[0] - each.deadline).total_seconds()
        if not each.promised:  # its user was told so
            unpromised["met" if late <= 0 else "missed"] += 1
            continue
        late_s.append(late)
        if late <= 0:
            met += 1
        else:
            problems.append(f"{each.run_id} ended {late:.0f} s late: {each.job}; {said_of(each)}")
    # money: whole nodes from their allocation on, by the cloud's own records
    spent = known_usd = Decimal(0)
    for key, job in there.items():
        if not job["StartTime"].isdigit() or job["NodeList"] in {"", "(null)"}:
            continue
        held_s = int(job["EndTime"]) - int(job["StartTime"])
        usd = int(job["NumNodes"].partition("-")[0]) * GPUS * PRICE * held_s / 3600
        spent += usd
        known = attempts[key].cost_usd if key in attempts else None
        # an end that its own report told first is a moment before Slurm's
        if known is None or abs(known - usd) > Decimal("0.05") * usd + Decimal("0.05"):
            problems.append(f"{key} cost ${usd:.2f}, and the ledger says ${known}")
        known_usd += known or 0
        most = reserved.get(runs.get(key, ""))
        if most is not None and usd > most:
            problems.append(f"{key} cost ${usd:.2f}, and ${most} was reserved")
    if spent > morning.budget_usd:
        problems.append(f"${spent:.2f} was spent of ${morning.budget_usd}")
    starts = user_starts(lab)
    twice = [run for run, count in starts.items() if count > 1]
    problems += [f"{run} began {starts[run]} times" for run in twice]
    rules = Counter(m.rule for m in moves)
    waits = {m.target for m in moves if m.rule == "value"}
    for_waiting = sum(
        (a.cost_usd or Decimal(0) for k, a in attempts.items() if k in waits), Decimal(0)
    )
    if for_waiting > morning.waiting_usd:
        problems.append(f"${for_waiting:.2f} for waiting alone, of ${morning.waiting_usd}")
    facts: dict[str, object] = {
        "jobs": len(driver.submitted), "refused_as_infeasible": len(driver.refused),
        "deadlines": len(late_s), "deadlines_met": met,
        "deadlines_without_promise": dict(unpromised),
        "least_spare_s": round(-max(late_s)) if late_s else None,
        "moves": len(moves), "moves_by_rule": dict(rules),
        "moves_by_end": dict(Counter(m.step.value for m in moves)),
        "spent_usd": f"{spent:.2f}", "spent_usd_by_ledger": f"{known_usd:.2f}",
        "budget_usd": morning.budget_usd, "spent_on_waiting_usd": f"{for_waiting:.2f}",
        "waiting_budget_usd": morning.waiting_usd, "began_twice": len(twice),
        "burst_runs": driver.runs, "submits_without_answer": driver.unanswered, "fast": morning.fast,
    }  # fmt: skip
    facts |= replayed(problems, moves, Decimal(morning.budget_usd))
    return Outcome(facts, problems)


def user_starts(lab) -> Counter[str]:
    """How often the user's command began, by run: each start reports itself."""
    counts: Counter[str] = Counter()
    for name in ("lab-onprem", "lab-cloud"):
        with connect(load_site(name).site) as connection:
            folder = f"{connection.state_dir}/runs"
        listed = lab.site(name).exec(["find", folder, "-name", "*.started"], timeout_s=60)
        counts.update(Path(path).parts[-3] for path in listed.stdout.split())
    return counts


def replayed(problems: list[str], moves, budget: Decimal) -> dict[str, object]:
    """Each decision to move in the audit log, made again of the snapshot that it names."""
    lines = [json.loads(line) for line in audit_path().read_text().splitlines()]
    decided = [line for line in lines if line["act"] == "decide to move"]
    kept = {}
    for name in names():
        snapshot, changed = replay(name)
        if changed:
            problems.append(f"snapshot {name[:12]} gives another plan for {', '.join(changed)}")
        kept[name] = snapshot
    same = 0
    for line in decided:
        name = line["snapshot"]
        snapshot = kept[name]  # whose plan is what was made again just now
        (again,) = [d for d in snapshot.plan.moves if d.run_id == line["run"]]
        data = {
            "policy": msgspec.to_builtins(snapshot.policy),
            "decision": msgspec.to_builtins(again),
            "now": snapshot.plan.now.isoformat(),
            "snapshot": name,
        }
        if data_hash(data) == line["decision"]:
            same += 1
        else:
            problems.append(f"line {line['n']} of the audit log is decided otherwise now")
    if len(decided) != len(moves):
        problems.append(f"{len(moves)} moves, and {len(decided)} decisions in the audit log")
    most = Decimal(0)
    poor: dict[str, set[str]] = {"waiting": set(), "deadline": set()}
    for snapshot in kept.values():
        bound = sum((c.usd or Decimal(0) for c in snapshot.budgets.charges), Decimal(0))
        bound += sum((d.worst_usd or Decimal(0) for d in snapshot.plan.moves), Decimal(0))
        most = max(most, bound)
        due = {job.run_id for job in snapshot.snapshot.jobs if job.deadline is not None}
        for d in snapshot.plan.decisions:
            if NO_MONEY in d.reason:
                moved_for = "value" if d.rule is None else d.rule.value
                needs = moved_for != "value" and d.run_id in due
                poor["deadline" if needs else "waiting"].add(d.run_id)
    if most > budget:
        problems.append(f"${most} was spent and reserved at once, of ${budget}")
    return {
        "snapshots": len(kept), "decisions": len(decided), "decided_the_same": same,
        "most_spent_and_reserved_usd": f"{most:.2f}",
        "refused_for_money": {kind: len(runs) for kind, runs in poor.items()},
    }  # fmt: skip
