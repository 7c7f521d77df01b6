"""What to run. A ``JobSpec`` knows no site: ``render`` joins it with one.

Words follow PSI/J (JobSpec, Resources, Launcher) and sbatch(1).
"""

import datetime as dt
import enum
import hashlib
from decimal import Decimal

import msgspec

IN_CONTAINER = "container:"


class Launcher(enum.StrEnum):
    """How ranks start once Slurm has given the nodes."""

    PLAIN = "plain"  # the command runs once, on the first node
    SRUN = "srun"  # one rank per GPU (or per task), each with its rank in the environment
    TORCHRUN = "torchrun"  # one torchrun per node, which starts a rank per GPU


class BurstMode(enum.StrEnum):
    """Whether the job may run on another site."""

    NEVER = "never"
    AUTO = "auto"  # on-prem first; a policy may move it
    ONLY = "only"  # burst at the next `burst run`, whatever the queue


class _Frozen(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    pass


class Resources(_Frozen, frozen=True, kw_only=True):
    """How much: sbatch(1)'s own words. None means the site's default."""

    nodes: int = 1
    gpus_per_node: int = 0
    tasks_per_node: int | None = None
    cpus_per_task: int | None = None
    mem_gb: float | None = None  # per node; 0 means all of the node's memory, as in --mem=0
    time_limit_s: int | None = None
    exclusive: bool = False


class Checkpoint(_Frozen, frozen=True, kw_only=True):
    """Where checkpoints live, and how the job is told to stop.

    Attributes:
        dir: site-independent name of the directory; reaches the command as
            ``$HPCSCALE_CHECKPOINT_DIR`` with the site's own path.
        lead_s: seconds before the time limit at which the stop signal is asked for.
        stop_wait_s: longest wait for the command after the stop flag is raised.
        max_restarts: requeues after which the job ends instead.
    """

    dir: str
    lead_s: int = 120
    stop_wait_s: int = 90
    max_restarts: int = 20


class BurstTerms(_Frozen, frozen=True, kw_only=True):
    """May the job leave for the cloud, until when are results wanted, and for how much."""

    mode: BurstMode = BurstMode.NEVER
    deadline: dt.datetime | None = None  # aware, UTC
    max_cost_usd: Decimal | None = None
    data: tuple[str, ...] = ()  # tags of its data: where it may not go
    egress_gb: float | None = None  # most that comes back: outputs, logs; None: not said


class SecretSource(_Frozen, frozen=True, kw_only=True):
    """Where a secret's value is read at submit time; the value itself is never stored here.

    Attributes:
        kind: ``env`` or ``file``.
        name: the variable's name or the file's path.
    """

    kind: str
    name: str


class Script(_Frozen, frozen=True, kw_only=True):
    """A foreign sbatch script, kept byte for byte.

    Attributes:
        path: where it was read, for messages.
        text: the whole script.
        directives: its ``#SBATCH`` options as (line number, option, value), in order; long names.
        site: the site it was written for; elsewhere its partition and the like mean nothing.
    """

    path: str
    text: str
    directives: tuple[tuple[int, str, str | None], ...] = ()
    site: str | None = None


class Function(_Frozen, frozen=True, kw_only=True):
    """A pickled Python function in place of a command, for submitit's job side.

    Its pickles are the input ``submitit`` (``0.pkl``, ``1.pkl`` …, one an array element), its
    results and logs the output ``submitit``, under submitit's own file names.

    Attributes:
        python: the interpreter, as shell words.
        setup: shell lines before the tasks start.
        teardown: shell lines after they ended.
        srun_args: further options of srun.
        use_srun: False: the function runs in the batch script itself, once.
        stderr_to_stdout: one log for both.
        pickled_by: the Python that made the pickles, ``3.11``: another version cannot read them.
    """

    python: str = "python3"
    setup: tuple[str, ...] = ()
    teardown: tuple[str, ...] = ()
    srun_args: tuple[str, ...] = ()
    use_srun: bool = True
    stderr_to_stdout: bool = False
    pickled_by: str = ""


class CodeId(_Frozen, frozen=True, kw_only=True):
    """Which program it is: what stands in a script's header and in the ledger.

    Attributes:
        kind: ``git``, ``folder`` or ``container``.
        commit: of git; None: no checkout, or none yet.
        dirty_sha256: over what differed from the commit; None: nothing did.
        tree_sha256: over all files that go along; None: they are used in place.
    """

    kind: str
    commit: str | None = None
    dirty_sha256: str | None = None
    tree_sha256: str | None = None


class JobSpec(_Frozen, frozen=True, kw_only=True):
    """What to run, complete; the same spec renders for every site.

    Attributes:
        command: argv; empty only with ``script``.
        inputs: name -> path on the submitting machine (or an absolute path on the site).
        outputs: name -> path that is fetched back to the submitting machine.
        after: Slurm dependency terms such as ``afterok:onprem:123``.
        workdir: directory that the job starts in, on the submitting machine (absolute).
        code: directory that goes along when ``workdir`` is not seen by the nodes; default workdir.
            ``container:DIR``: the program is in the image of ``software``, nothing goes along.
        function: the command is a pickled function; ``command`` then tells people what it is.
    """

    name: str = "hpcscale"
    command: tuple[str, ...] = ()
    script: Script | None = None
    script_args: tuple[str, ...] = ()
    launcher: Launcher = Launcher.PLAIN
    resources: Resources = Resources()
    site: str | None = None
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    comment: str | None = None
    env: dict[str, str] = msgspec.field(default_factory=dict)
    secrets: dict[str, SecretSource] = msgspec.field(default_factory=dict)
    inputs: dict[str, str] = msgspec.field(default_factory=dict)
    outputs: dict[str, str] = msgspec.field(default_factory=dict)
    checkpoint: Checkpoint | None = None
    software: str | None = None
    workdir: str | None = None
    code: str | None = None
    directives: dict[str, str | None] = msgspec.field(default_factory=dict)  # other sbatch options
    array: str | None = None
    after: tuple[str, ...] = ()
    burst: BurstTerms = BurstTerms()
    function: Function | None = None

    @property
    def array_size(self) -> int | None:
        """Number of array elements; None when the job is no array."""
        if self.array is None:
            return None
        from hpcscale.units import parse_array

        return len(parse_array(self.array)[0])

    def spec_hash(self) -> str:
        """First 16 hex digits of the SHA-256 over the canonical JSON: equal specs, equal hash.

        Where it runs is no part of what runs: the hash is the same on every site.
        """
        return hashlib.sha256(to_json(msgspec.structs.replace(self, site=None))).hexdigest()[:16]


def to_json(spec: JobSpec) -> bytes:
    """Canonical JSON of a spec, keys sorted; ``from_json`` reads it back. Holds no secret value."""
    plain = msgspec.to_builtins(spec)
    # not there, not written: hashes stay what they were
    if spec.function is None:
        del plain["function"]
    if not spec.burst.data:
        del plain["burst"]["data"]
    return msgspec.json.encode(plain, order="sorted")


def from_json(data: bytes) -> JobSpec:
    """Inverse of ``to_json``."""
    return msgspec.json.decode(data, type=JobSpec)
