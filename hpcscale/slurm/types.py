"""What the Slurm room hands out: job states, statuses, partition and node facts. Pure data."""

import datetime as dt
import enum
from functools import cached_property

import msgspec

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


class JobStatus(msgspec.Struct, frozen=True):
    """One job (or array element) as Slurm told it.

    Attributes:
        job_id: the element or job; the pending rest of an array is reported by its base id with
            ``array_pending`` set to Slurm's text, such as ``0-99%4``.
        state: ours; ``raw_state`` keeps Slurm's own word.
        exit_code: ``(code, signal)`` once the state is terminal.
        exc_nodes: by ``show`` only (squeue's ``--Format`` has no such field).
        submit_time: a requeue sets it anew (seen on 22.05), so an equal time means the same start.
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


class PartitionFacts(msgspec.Struct, frozen=True):
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
    deny_accounts: tuple[str, ...] = ()
    deny_qos: tuple[str, ...] = ()
    node_list: str = ""
    features: tuple[str, ...] = ()  # what --constraint may name, of any node
    gres: tuple[str, ...] = ()  # the kinds of nodes by their GRES, such as gpu:h100:4
    preempt_mode: str = "OFF"
    priority_tier: int = 1
    qos: str = ""  # whose limits hold for every job in it
    boots: bool = False  # some nodes are State=CLOUD: powered up when a job wants them


class Switch(msgspec.Struct, frozen=True):
    """One switch of the controller's topology (scontrol show topology).

    Attributes:
        level: 0 for the leaves.
        nodes: hostlist of all nodes below it.
    """

    name: str
    level: int
    nodes: str


class SiteFacts(msgspec.Struct, frozen=True):
    """What a site's controller says of itself; cached at most 10 minutes for checks at submit.

    Attributes:
        version: such as ``22.05.8``.
        accounts: this user's accounts; None when there is no slurmdbd to say.
        qos: this user's QOS names; None likewise.
        max_array_size: slurm.conf MaxArraySize; the largest index is one less.
        fetched_at: aware UTC.
        notes: what could not be asked, and why; the fields concerned keep their defaults.
    """

    version: str
    cluster: str
    partitions: dict[str, PartitionFacts]
    fetched_at: dt.datetime
    accounts: tuple[str, ...] | None = None
    qos: tuple[str, ...] | None = None
    max_array_size: int = 1001
    has_accounting: bool = False
    config: dict[str, str] = msgspec.field(default_factory=dict)
    notes: tuple[str, ...] = ()


class Answer(msgspec.Struct, frozen=True, dict=True):
    """What one batched query gave.

    Attributes:
        jobs: the jobs Slurm named, by id text (``123``, ``123_4``).
        complete: whether the query answered for all it was asked: with False, absence from
            ``jobs`` says nothing.
    """

    jobs: dict[str, JobStatus]
    complete: bool

    def of(self, job_id: JobId) -> list[JobStatus]:
        """Records of a job: itself, or of a base id all its array elements or het components.

        The pending rest of an array stands for each of its elements.
        """
        if (exact := self.jobs.get(str(job_id))) is not None and not exact.array_pending:
            return [exact]
        if job_id.array_task is not None:
            rest = self.jobs.get(str(job_id.base))
            if rest is not None and in_array(rest.array_pending, job_id.array_task):
                return [msgspec.structs.replace(rest, job_id=job_id, array_pending="")]
            return []
        if job_id.het_offset is not None:
            return []
        return list(self._by_base.get(job_id.base, ()))

    @cached_property
    def _by_base(self) -> dict[int, list[JobStatus]]:
        """Asked once for each of our jobs, of answers as long as the queue."""
        found: dict[int, list[JobStatus]] = {}
        for status in self.jobs.values():
            found.setdefault(status.job_id.base, []).append(status)
        return found

    @cached_property
    def waiting_for_others(self) -> tuple[JobStatus, ...]:
        """Jobs that have not ended and depend on something."""
        return tuple(s for s in self.jobs.values() if s.dependency and not s.state.terminal)


def in_array(pending: str, task: int) -> bool:
    """Whether ``pending``, such as ``1,4-9:2%3``, holds this index."""
    if not pending:
        return False
    for part in pending.partition("%")[0].split(","):
        span, _, step = part.partition(":")
        first, dash, last = span.partition("-")
        if not first.isdigit() or (dash and not last.isdigit()):
            continue  # "..." where Slurm cut the text
        low, high = int(first), int(last or first)
        if low <= task <= high and (task - low) % int(step or 1) == 0:
            return True
    return False
