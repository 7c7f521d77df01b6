"""Which injections there are, which of them are made, what came of one, and of all together."""

import itertools
import random
from collections import Counter
from dataclasses import asdict, dataclass, field

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
LEDGERS = (1, 2)
WORKS = ("job", "array", "dependent", "fence-first")
DIMENSIONS = {
    "kill": KILLS,
    "fault": FAULTS,
    "phase": PHASES,
    "ledgers": LEDGERS,
    "work": WORKS,
}
TASKS = ("0", "1", "2")  # of an array


@dataclass(frozen=True)
class Injection:
    """What happens to one handover.

    Attributes:
        kill: where `burst run` is killed with SIGKILL: ``act.before`` or ``act.after``.
        fault: of the sites.
        phase: how far the handover is when the fault strikes.
        ledgers: 2: a second `burst run` on another login node, with a ledger of its own.
        work: what moves: one ``job`` of two nodes; a pending ``array`` of three elements, two at
            once; a job with others behind it (``dependent``), which stays as a stand-in; one job
            in the other order (``fence-first``).
    """

    kill: str = ""
    fault: str = ""
    phase: str = "gated"
    ledgers: int = 1
    work: str = "job"

    @property
    def exit_code(self):
        """Of the user's command: jobs that wait for a good and for a bad end see both."""
        return 3 if self.work == "dependent" and KILLS.index(self.kill) % 2 else 0

    @property
    def tasks(self):
        """Elements that must begin; a job that is no array has one without a number."""
        return TASKS if self.work == "array" else ("-",)


def pairs(seed=1):
    """Injections that cover each two values of two dimensions, shuffled.

    Each kill meets each fault, and this pair of dimensions has by far the most values; into it the
    others are folded, so that each fault meets all but one of their 24 combinations and each kill
    18 of them.
    """
    rest = list(itertools.product(PHASES, LEDGERS, WORKS))
    chosen = [
        # 7 and 24 have no common divisor
        Injection(kill, fault, *rest[(i + 7 * j) % len(rest)])
        for (i, kill), (j, fault) in itertools.product(enumerate(KILLS), enumerate(FAULTS))
    ]
    random.Random(seed).shuffle(chosen)
    return chosen


def met(chosen, *names):
    """Combinations of some dimensions' values that occur in injections."""
    return {tuple(getattr(i, name) for name in names) for i in chosen}


KILL_CLASSES = {
    "": "none",
    "save submitting": "submit",
    "sbatch": "submit",
    "save submitted": "submit",
    "fence": "fence",
    "save claiming": "claim",
    "claim": "claim",
    "save opening": "open",
    "decide": "open",
    "save cancelling": "clean up",
    "cancel": "clean up",
    "save moved": "follow",
}
FAULT_CLASSES = {
    "": "none",
    "onprem ctld killed": "controller killed",
    "cloud ctld killed": "controller killed",
    "onprem ctld stopped": "controller stopped",
    "cloud ctld stopped": "controller stopped",
    "ssh cut after sbatch": "reply lost",
    "ssh cut after ln": "reply lost",
    "ssh cut before ln": "request lost",
    "ssh cut after squeue": "reply lost",
    "ssh refused": "request lost",
    "cloud node crash": "nodes",
    "never boot": "nodes",
    "cloud disk full": "disk",
    "onprem clock +120 s": "clock",
    "cloud clock -120 s": "clock",
    "onprem fence lost, nodes free": "fence lost",
    "user cancels on-prem": "user",
    "user cancels in the cloud": "user",
}

CLASSES = ("kill class", "fault class", "phase", "ledgers", "work")


def classes(injection):
    """What an injection is, told by classes: of kills, of faults, and the other dimensions."""
    kill = KILL_CLASSES[injection.kill.rpartition(".")[0]]
    fault = FAULT_CLASSES[injection.fault]
    return dict(
        zip(CLASSES, (kill, fault, injection.phase, injection.ledgers, injection.work), strict=True)
    )


def class_pairs(chosen):
    """Pairs of two classes' values that meet in injections, each as ((class, value), …)."""
    return {
        pair
        for injection in chosen
        for pair in itertools.combinations(classes(injection).items(), 2)
    }


def all_class_pairs():
    """Each two values of two classes; a handover without a kill or a fault is no matter here."""
    kills = sorted({*KILL_CLASSES.values()} - {"none"})
    faults = sorted({*FAULT_CLASSES.values()} - {"none"})
    values = zip(CLASSES, (kills, faults, PHASES, LEDGERS, WORKS), strict=True)
    of = [[(name, value) for value in some] for name, some in values]
    return {pair for a, b in itertools.combinations(of, 2) for pair in itertools.product(a, b)}


# For every change of the code: each class of kills, before and after the act; each class of faults;
# all pairs of phase, ledgers and work; of the other pairs of classes as many as twelve can hold
# (a kill's class and a fault's alone are 54). All pairs: ``pairs``.
TELLING = (
    Injection("sbatch.after", "onprem ctld killed", "submitted", 2, "job"),
    Injection("save submitted.before", "ssh cut after sbatch", "submitted", 1, "array"),
    Injection("fence.after", "onprem fence lost, nodes free", "gated", 1, "dependent"),
    Injection("claim.after", "cloud ctld stopped", "gated", 2, "array"),
    Injection("claim.before", "cloud disk full", "gated", 1, "fence-first"),
    Injection("decide.before", "ssh cut before ln", "opened", 1, "job"),
    Injection("decide.after", "cloud node crash", "opened", 2, "fence-first"),
    Injection("save cancelling.before", "onprem clock +120 s", "opened", 1, "array"),
    Injection("cancel.after", "user cancels in the cloud", "opened", 2, "dependent"),
    Injection("save moved.before", "onprem ctld stopped", "submitted", 1, "dependent"),
    Injection("cancel.after", "cloud node crash", "gated", 1, "job"),
    Injection("save submitting.before", "user cancels on-prem", "submitted", 1, "fence-first"),
)


@dataclass
class Outcome:
    """What came of one.

    Attributes:
        starts: site, time, submission id, restart count and element of each start of user code.
        struck: the fault was there.
        killed: the `burst run` was killed at its act.
        lost: user code, or an element, did not begin though nobody cancelled it.
        orphans: live cloud jobs that are left after `burst reap`.
        step: how the moves ended, one word for each ledger.
        why: what the moves say of their ends.
        behind: what became of the jobs behind it, such as ``afterok ran``.
        wrong_behind: one of them ended otherwise than the command's end says; empty: none.
        unsettled: within the time the moves did not come to an end.
        code: of which code.
    """

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
    behind: str = ""
    wrong_behind: str = ""
    unsettled: bool = False
    note: str = ""
    why: str = ""
    code: str = ""

    @property
    def clean(self):
        """Nothing of what must not happen."""
        return not (self.double or self.lost or self.orphans or self.unsettled or self.wrong_behind)

    @property
    def double(self):
        """Begun in two attempts, or twice at one restart count: a requeue by Slurm is neither.

        Elements of an array are looked at one by one.
        """
        for task in {start[4] for start in self.starts}:
            who = [(s[2], s[3]) for s in self.starts if s[4] == task]
            if len(set(who)) < len(who) or len({submission for submission, _ in who}) > 1:
                return True
        return False

    def data(self):
        return {**asdict(self), "injection": asdict(self.injection), "double_start": self.double}

    @classmethod
    def of(cls, data):
        """From ``data`` of an earlier run."""
        fields = {k: v for k, v in data.items() if k not in {"injection", "double_start"}}
        return cls(Injection(**data["injection"]), **fields)


def summary(outcomes):
    """Counts, and the bound that they support."""
    kinds = Counter()
    for out in outcomes:
        for name in DIMENSIONS:
            kinds[f"{name}: {getattr(out.injection, name) or 'none'}"] += 1
    gangs = [o for o in outcomes if o.gang_to_user_code_s is not None]
    clean = [o for o in gangs if not o.injection.fault and not o.injection.kill]
    count = len(outcomes)
    return {
        "injections": count,
        "double_starts": sum(o.double for o in outcomes),
        "lost": sum(o.lost for o in outcomes),
        "orphans": sum(o.orphans for o in outcomes),
        "wrong_behind": sum(bool(o.wrong_behind) for o in outcomes),
        "unsettled": sum(o.unsettled for o in outcomes),
        "end_not_seen": sum("its end was not seen" in o.why for o in outcomes),
        "killed": sum(o.killed for o in outcomes),
        "struck": sum(o.struck for o in outcomes),
        "rate_below_at_95_percent": round(3 / count, 5) if count else None,
        "gang_to_user_code_s": quantiles(o.gang_to_user_code_s for o in gangs),
        "gang_to_user_code_undisturbed_s": quantiles(o.gang_to_user_code_s for o in clean),
        "gate_idle_s": quantiles(o.gate_idle_s for o in outcomes if o.gate_idle_s is not None),
        "seconds_each": quantiles(o.seconds for o in outcomes),
        "ends": dict(Counter(o.step for o in outcomes)),
        "begun_at": dict(Counter(o.starts[0][0] if o.starts else "nowhere" for o in outcomes)),
        "behind": dict(Counter(o.behind for o in outcomes if o.behind)),
        "codes": dict(Counter(o.code for o in outcomes)),
        "kinds": dict(sorted(kinds.items())),
    }


def quantiles(values):
    """Median and extremes."""
    values = sorted(values)
    if not values:
        return None
    return {
        "count": len(values),
        "median": values[len(values) // 2],
        "p95": values[min(len(values) - 1, int(len(values) * 0.95))],
        "max": values[-1],
    }
