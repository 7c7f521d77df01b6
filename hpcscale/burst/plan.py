"""What ``decide`` reads and what it returns: plain frozen data, printable and storable as JSON."""

import datetime as dt
import enum
from decimal import Decimal

import msgspec

from hpcscale.burst.line import Line
from hpcscale.slurm.types import JobState
from hpcscale.spec import BurstMode, JobSpec


class Frozen(msgspec.Struct, frozen=True, kw_only=True):
    """Plain data that nobody changes."""


class Level(enum.StrEnum):
    """How much of the origin's queue a forecast saw."""

    FULL = "full"
    OWN = "own jobs only"  # PrivateData: other people's jobs are hidden
    ABSENT = "absent"


class Start(Frozen, frozen=True, kw_only=True):
    """When a job would start where it waits; None: not known."""

    p50: dt.datetime | None = None
    p90: dt.datetime | None = None


class Forecast(Frozen, frozen=True, kw_only=True):
    """When waiting jobs would start if nothing moves.

    Attributes:
        level: FULL; else starts are unknown, or bounds alone.
        why: what it lacks, half a sentence; empty when nothing.
        learned_jobs: ended jobs behind the runtimes; 0: limits stand for runtimes.
        pending: jobs of the queue that wait.
        coverage: share of this site's past 90 % bounds that held; None: too few yet.
        starts: by Slurm's job id.
    """

    level: Level = Level.ABSENT
    why: str = ""
    learned_jobs: int = 0
    pending: int = 0
    coverage: float | None = None
    starts: dict[str, Start] = {}


class Option(Frozen, frozen=True, kw_only=True):
    """One target site, as it would be for one job.

    Attributes:
        boot_s: expected seconds until the nodes are up.
        staging_s: expected seconds for copying code and inputs.
        boot_timeout_s: without a start by then the move is undone.
        cost_usd: expected dollars; None when unknown.
        cost_why: how the cost was computed, or why it is unknown.
        blockers: why the job cannot run there; empty when it can.
        worst_usd: the most that moving there can cost, requeues included; None when unknown.
        egress_usd: of both, for what comes back.
        same_job: it is a partition of the origin: the job itself moves, and nothing is copied.
        partition: of the site, the cheapest whose nodes hold the job; None: its default one.
        offer: row of the catalog that its nodes are rented by; empty: the profile's price.
        unpromised: why no budget or maximum cost can be kept at its price; empty: they can.
        interruption_per_hour: chance that a spot node is taken back within an hour, if known.
        resting_until: it had no nodes lately (``resting_why``): only a deadline goes there before.
        send_gb: inputs that must be sent there first; None: not looked at.
        spot: its nodes may be taken back; what follows is the way out of that.
        net: partition of the same site whose nodes are not taken back, and what it needs:
            ``net_boot_s``, ``net_cost_usd`` of the whole job there.
        lost_s: work that a taken node loses at most.
    """

    site: str
    boot_s: int = 0
    staging_s: int = 0
    boot_timeout_s: int = 1800
    cost_usd: Decimal | None = None
    cost_why: str = ""
    blockers: tuple[str, ...] = ()
    worst_usd: Decimal | None = None
    egress_usd: Decimal = Decimal(0)
    same_job: bool = False
    partition: str | None = None
    offer: str = ""
    unpromised: str = ""
    interruption_per_hour: float | None = None
    resting_until: dt.datetime | None = None
    resting_why: str = ""
    send_gb: float | None = None
    spot: bool = False
    net: str | None = None
    net_boot_s: int = 0
    net_cost_usd: Decimal | None = None
    lost_s: int = 0


class Place(Frozen, frozen=True, kw_only=True):
    """One target of the policy, as one job would be asked of it: what no price changes.

    Attributes:
        target: as the policy names it.
        spec: what its cost depends on: resources, array, requeues, outputs.
        blockers: why it cannot run there, whatever the price.
        same_job: see ``Option``.
        send_gb: inputs that are not there yet; None: not looked at.
        gpu_type: of the nodes that it waits for, as in GRES; None: unknown.
    """

    target: str
    spec: JobSpec
    blockers: tuple[str, ...] = ()
    same_job: bool = False
    send_gb: float | None = None
    gpu_type: str | None = None


class Candidate(Frozen, frozen=True, kw_only=True):
    """One of this user's jobs with burst=auto or burst=only, with what its site said of it.

    Attributes:
        ref: ``site:id`` of its latest attempt.
        state: as just observed; UNKNOWN when the site gave no word of it.
        waiting_since: when it became eligible (else its submit time), by the site's clock.
        start_estimate: Slurm's own expected start; None is N/A.
        time_limit_s: the limit that Slurm holds it to; None is no limit.
        blockers: why it cannot leave at all (an array, a held job, …).
        resting_until: after a failed move; ``resting_why`` says what failed.
        retry_from: when its deadline may ask for the next move, though it rests.
        moving: whether a move of it is already under way.
        notes: what else its move would mean, half a sentence each.
        start_p50: when a forecast expects it to start here; None: no forecast.
        start_p90: by when it starts here in nine cases of ten.
        others_s: seconds that this user's other waiting jobs start sooner if it leaves, together.
        unforeseen: why there is no forecast, or what it lacks, half a sentence.
        user: whose it is; so ``account`` and ``project``: for budgets.
        places: the policy's targets as it would be asked of them; ``decide`` makes options of them.
    """

    run_id: str
    ref: str
    name: str
    mode: BurstMode
    state: JobState
    reason: str = ""
    nodes: int = 1
    gpus: int = 0
    waiting_since: dt.datetime | None = None
    start_estimate: dt.datetime | None = None
    time_limit_s: int | None = None
    deadline: dt.datetime | None = None
    max_cost_usd: Decimal | None = None
    options: tuple[Option, ...] = ()
    blockers: tuple[str, ...] = ()
    resting_until: dt.datetime | None = None
    resting_why: str = ""
    retry_from: dt.datetime | None = None
    moving: bool = False
    notes: tuple[str, ...] = ()
    start_p50: dt.datetime | None = None
    start_p90: dt.datetime | None = None
    others_s: float = 0.0
    unforeseen: str = ""
    user: str = ""
    account: str = ""
    project: str = ""
    places: tuple[Place, ...] = ()


class Action(enum.StrEnum):
    """What the plan does with a job."""

    MOVE = "move"
    STAY = "stay"  # not now; ``when`` says from when on, if a rule will ever speak
    REFUSE = "refuse"  # it may never move as it is; ``reason`` says what to change


class Rule(enum.StrEnum):
    """Which rule asks for a move."""

    ONLY = "only"
    DEADLINE = "deadline"
    START_ESTIMATE = "start_estimate"
    MAX_WAIT = "max_wait"
    ALWAYS = "always"
    NO_WAIT = "no-wait"
    THRESHOLD = "threshold"
    CONSTANT_WAIT = "constant-wait"
    COMPUTE_WAIT = "compute-wait"
    VALUE = "value"


# by what somebody asked for; the others save waiting alone
NEEDED = frozenset({Rule.ONLY, Rule.DEADLINE, Rule.START_ESTIMATE})


class Decision(Frozen, frozen=True, kw_only=True):
    """What happens to one job, and why.

    Attributes:
        to: target site of a move (for a stay: where it would go).
        partition: there; None: its default one.
        when: for a move now; for a stay the earliest time a rule will ask for one.
        reason: one sentence with its numbers.
        cost_usd: expected dollars at ``to``; None when unknown.
        worst_usd: what is reserved for it; None when unknown.
        egress_usd: of both, for what comes back.
        runner_up: what would have been done otherwise, in half a sentence.
        start_p50: when the job is expected to start here; so ``start_p90``.
        net: partition that takes it over when its nodes are taken back, and ``line``: when; None:
            nobody takes them.
        stage: target that its code and inputs are sent to beforehand; ``stage_why`` says why.
    """

    run_id: str
    ref: str
    name: str
    action: Action
    reason: str
    rule: Rule | None = None
    to: str | None = None
    partition: str | None = None
    when: dt.datetime | None = None
    cost_usd: Decimal | None = None
    cost_why: str = ""
    boot_s: int = 0
    boot_timeout_s: int | None = None
    staging_s: int = 0
    blockers: tuple[str, ...] = ()
    worst_usd: Decimal | None = None
    egress_usd: Decimal = Decimal(0)
    runner_up: str = ""
    start_p50: dt.datetime | None = None
    start_p90: dt.datetime | None = None
    net: str | None = None
    line: Line | None = None
    stage: str | None = None
    stage_why: str = ""


class BurstPlan(Frozen, frozen=True, kw_only=True):
    """The decisions of one moment, in the order in which they would be acted on.

    Attributes:
        now: the origin site's clock.
        notes: what its budgets do not bound, one sentence each.
    """

    now: dt.datetime
    from_site: str
    policy: str
    decisions: tuple[Decision, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def moves(self) -> tuple[Decision, ...]:
        """Those that move now."""
        return tuple(d for d in self.decisions if d.action is Action.MOVE)

    @property
    def known_cost_usd(self) -> Decimal:
        """Sum of the known costs of the moves; see ``unknown_costs``."""
        return sum((d.cost_usd for d in self.moves if d.cost_usd is not None), Decimal(0))

    @property
    def unknown_costs(self) -> int:
        """How many moves have no known cost."""
        return sum(d.cost_usd is None for d in self.moves)
