"""What the Slurm room hands out: job states, statuses, partition and node facts. Pure data."""

import datetime as dt
import enum
from dataclasses import dataclass, field

from hpcscale.units import JobId


class JobState(enum.StrEnum):
    """A job's state. UNKNOWN always exists: absence of an answer is no answer."""

    PENDING = "PENDING"
    CONFIGURING = "CONFIGURING"
    RUNNING = "RUNNING"
    SUSPENDED = "SUSPENDED"
    COMPLETING = "COMPLETING"
    REQUEUED = "REQUEUED"
    COMPLETED = "COMPLETED"
    FAILED = "FAILED"
    TIMEOUT = "TIMEOUT"
    OUT_OF_MEMORY = "OUT_OF_MEMORY"
    CANCELLED = "CANCELLED"
    PREEMPTED = "PREEMPTED"
    NODE_FAIL = "NODE_FAIL"
    BOOT_FAIL = "BOOT_FAIL"
    DEADLINE = "DEADLINE"
    REVOKED = "REVOKED"
    SUBMITTING = "SUBMITTING"  # ours: the ledger row exists, sbatch has not answered yet
    SUBMIT_UNKNOWN = "SUBMIT_UNKNOWN"  # ours: sbatch gave no answer
    REFUSED = "REFUSED"  # ours: sbatch said no, or the job never reached it
    UNKNOWN = "UNKNOWN"

    @property
    def terminal(self) -> bool:
        """Whether the state is final. PREEMPTED is not: Slurm may requeue the job."""
        return self in TERMINAL_STATES

    @property
    def active(self) -> bool:
        """Whether the job holds nodes."""
        return self in ACTIVE_STATES


TERMINAL_STATES = frozenset(
    {
        JobState.COMPLETED,
        JobState.FAILED,
        JobState.TIMEOUT,
        JobState.OUT_OF_MEMORY,
        JobState.CANCELLED,
        JobState.NODE_FAIL,
        JobState.BOOT_FAIL,
        JobState.DEADLINE,
        JobState.REVOKED,
        JobState.REFUSED,
    }
)
ACTIVE_STATES = frozenset(
    {JobState.CONFIGURING, JobState.RUNNING, JobState.SUSPENDED, JobState.COMPLETING}
)


@dataclass(frozen=True, slots=True)
class JobStatus:
    """One job (or array element) as Slurm told it.

    Attributes:
        job_id: the element or job; a wholly pending array is reported by its base id with
            ``array_pending`` set to Slurm's text, such as ``0-99%4``.
        state: ours; ``raw_state`` keeps Slurm's own word.
        exit_code: ``(code, signal)`` once known.
        source: ``squeue`` or ``sacct`` or ``scontrol``.
        observed_at: aware UTC, this machine's clock.
    """

    job_id: JobId
    state: JobState
    raw_state: str
    name: str = ""
    user: str = ""
    account: str = ""
    partition: str = ""
    qos: str = ""
    reason: str = ""
    comment: str = ""
    nodes: str = ""
    num_nodes: int = 0
    gpus: int = 0
    exc_nodes: str = ""
    dependency: str = ""
    array_pending: str = ""
    restarts: int = 0
    priority: int | None = None
    time_limit_s: int | None = None
    submit_time: dt.datetime | None = None
    eligible_time: dt.datetime | None = None
    start_time: dt.datetime | None = None  # expected start while pending; None is N/A
    end_time: dt.datetime | None = None
    exit_code: tuple[int, int] | None = None
    source: str = "squeue"
    observed_at: dt.datetime | None = None


@dataclass(frozen=True, slots=True)
class PartitionFacts:
    """One partition as the controller has it (scontrol show partition, sinfo)."""

    name: str
    up: bool = True
    default: bool = False
    max_time_s: int | None = None  # None is UNLIMITED
    default_time_s: int | None = None
    max_nodes: int | None = None
    total_nodes: int = 0
    gpus_per_node: int = 0  # most that one node of it has
    gpu_type: str | None = None
    cpus_per_node: int = 0
    mem_mb_per_node: int = 0
    allow_accounts: tuple[str, ...] | None = None  # None is ALL
    allow_qos: tuple[str, ...] | None = None
    node_list: str = ""


@dataclass(frozen=True, slots=True)
class SiteFacts:
    """What a site's controller says of itself; cached at most 10 minutes for checks at submit.

    Attributes:
        version: such as ``22.05.8``.
        accounts: this user's accounts; None when there is no slurmdbd to say.
        qos: this user's QOS names; None likewise.
        max_array_size: slurm.conf MaxArraySize; the largest index is one less.
        fetched_at: aware UTC.
    """

    version: str
    cluster: str
    partitions: dict[str, PartitionFacts]
    fetched_at: dt.datetime
    accounts: tuple[str, ...] | None = None
    qos: tuple[str, ...] | None = None
    max_array_size: int = 1001
    has_accounting: bool = False
    config: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Answer:
    """What one batched query gave.

    Attributes:
        jobs: the jobs Slurm named, by id text (``123``, ``123_4``).
        complete: whether the query answered for all it was asked: with False, absence from
            ``jobs`` says nothing.
    """

    jobs: dict[str, JobStatus]
    complete: bool
