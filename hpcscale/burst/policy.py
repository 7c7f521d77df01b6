"""A burst policy as data: when may a waiting job leave, where to, and how carefully."""

import datetime as dt
import enum
from decimal import Decimal

import msgspec

_DAY = 24 * 60


class _Frozen(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    pass


class Window(_Frozen, frozen=True, kw_only=True):
    """Hours of a day in UTC, over midnight when it ends before it begins.

    Attributes:
        first: minute of the day at which it opens.
        last: minute at which it has closed.
    """

    first: int
    last: int

    def __str__(self) -> str:
        ends = [f"{minute // 60:02}:{minute % 60:02}" for minute in (self.first, self.last)]
        return f"{ends[0]} and {ends[1]} UTC"

    def opens(self, now: dt.datetime) -> dt.datetime:
        """When it is open next: ``now`` while it is."""
        now = now.astimezone(dt.UTC)
        minute = now.hour * 60 + now.minute
        if (minute - self.first) % _DAY < (self.last - self.first) % _DAY:
            return now
        ahead = dt.timedelta(minutes=(self.first - minute) % _DAY)
        return now.replace(second=0, microsecond=0) + ahead


class PolicyKind(enum.StrEnum):
    """By which rule a job's waiting moves it."""

    RULES = "rules"
    NEVER = "never"
    ALWAYS = "always"
    NO_WAIT = "no-wait"
    THRESHOLD = "threshold"
    CONSTANT_WAIT = "constant-wait"
    COMPUTE_WAIT = "compute-wait"
    DEADLINE = "deadline"
    VALUE = "value"


class BudgetOf(enum.StrEnum):
    """Whose money a budget bounds."""

    USER = "user"
    ACCOUNT = "account"
    PROJECT = "project"  # Slurm's workload characterization key (sbatch --wckey)
    ALL = "all"


class Budget(_Frozen, frozen=True, kw_only=True):
    """The most that may be spent in a calendar month (UTC).

    Attributes:
        of: whose.
        name: which user, account or project; None: each one.
        usd: the limit.
        waiting_usd: of it, for moves that no deadline and no burst=only asks for; None: all of it.
    """

    of: BudgetOf
    name: str | None = None
    usd: Decimal
    waiting_usd: Decimal | None = None


class Order(enum.StrEnum):
    """What comes first when a job moves."""

    GATE_FIRST = "gate-first"  # the on-prem job may still start while the cloud's nodes boot
    FENCE_FIRST = "fence-first"  # it may not, and the cloud job begins as soon as its nodes are up


class AtLimit(enum.StrEnum):
    """What becomes of a cloud job that has cost what was reserved for it."""

    END = "end"  # Slurm ends it, with its signals: a job that checkpoints saves
    WARN = "warn"


class Dependents(enum.StrEnum):
    """What becomes of a job that other jobs wait for."""

    STAND_IN = "stand-in"  # it moves, and waits on-prem for its cloud attempt's end
    REFUSE = "refuse"  # it does not move


class TargetTerms(_Frozen, frozen=True, kw_only=True):
    """A policy's overrides for one target site; None leaves the site's own figure."""

    boot_s: int | None = None
    staging_s: int | None = None
    boot_timeout_s: int | None = None


class Policy(_Frozen, frozen=True, kw_only=True):
    """When a pending job may move, and where to.

    Attributes:
        source: the file it came from, for messages.
        from_site: the site whose queue overflows.
        to: targets, the preferred first: sites, or partitions of the origin, ``SITE/PARTITION``.
        max_wait_s: a job that has waited longer moves; None: waiting alone moves nothing.
        deadline: whether a job's deadline moves it.
        deadline_margin_s: added to boot + staging + time limit.
        use_start_estimate: whether Slurm's estimate may bring a deadline move forward.
        max_moves_per_run: most moves that one run starts, those under way counted; a deadline whose
            last safe moment has come moves all the same.
        retry_after_s: rest after a failed move of the same job.
        cron_interval_s: between two runs of `hpcscale burst run`.
        kind: by which rule waiting moves a job.
        wait_s: constant-wait and threshold: the wait after which it moves.
        depth: threshold: only while more jobs than this wait.
        wait_per_gpu_hour_s: compute-wait: the wait for each GPU-hour of its limit.
        hour_usd: value: dollars an hour of one job's wait is worth.
        margin: value: the wait must be worth so many times what moving costs.
        cap: value: moved at the latest after so many times the wait that is worth the cost.
        budgets: limits on what may be spent.
        order: whether the on-prem job is fenced before its cloud job is submitted.
        dependents: what becomes of a job that other jobs at its site wait for.
        at_limit: what becomes of a cloud job that has cost what was reserved for it.
        only_between: hours at which jobs move but for their deadlines; None: always.
        spot: whether nodes that may be taken back are used, where the slack bears it.
        spot_lost_s: work that a checkpointing job loses with its nodes, at most.
        spot_tries: takings after which a job goes on where nobody takes nodes back.
        stage_early: whether code and inputs are sent while a job is likely to leave.
    """

    source: str = ""
    from_site: str
    to: tuple[str, ...]
    max_wait_s: int | None = None
    deadline: bool = True
    deadline_margin_s: int = 0
    use_start_estimate: bool = True
    max_moves_per_run: int = 10
    retry_after_s: int = 1800
    cron_interval_s: int = 300
    order: Order = Order.GATE_FIRST
    dependents: Dependents = Dependents.STAND_IN
    at_limit: AtLimit = AtLimit.END
    only_between: Window | None = None
    spot: bool = True
    spot_lost_s: int = 1800
    spot_tries: int = 3
    stage_early: bool = True
    target: dict[str, TargetTerms] = msgspec.field(default_factory=dict)
    kind: PolicyKind = PolicyKind.RULES
    wait_s: int = 0
    depth: int = 0
    wait_per_gpu_hour_s: int = 0
    hour_usd: Decimal = Decimal(0)
    margin: float = 1.1
    cap: float = 2.0
    budgets: tuple[Budget, ...] = ()

    @property
    def lease_s(self) -> int:
        """How long a cloud job waits at its gate: a run may come late, or be killed once."""
        return 2 * self.cron_interval_s


def default_margin_s(cron_interval_s: int, order: Order) -> int:
    """What decisions lose between two runs: until the job is looked at, and at its gate."""
    return cron_interval_s * (2 if order is Order.GATE_FIRST else 1)
