"""What a site's profile holds: the types behind ``site-configs/NAME.toml``.

``docs/site_config.py`` makes the reference page from the docstrings here.
"""

import datetime as dt
import enum
from decimal import Decimal
from typing import Annotated

import msgspec


class _Frozen(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    pass


class TransportKind(enum.StrEnum):
    """How commands reach the site."""

    LOCAL = "local"
    SSH = "ssh"  # paramiko
    OPENSSH = "openssh"  # the user's ssh(1), its config and ControlMaster


class TransportConfig(_Frozen, frozen=True, kw_only=True):
    """How to reach the site's login node.

    Attributes:
        kind: ``local`` runs the commands here; ``ssh`` connects by itself; ``openssh`` uses the
            user's ssh(1) with its configuration and open connections (sites that ask for a second
            factor).
        host: the login node: name, address or alias of ``~/.ssh/config``, which both kinds read.
        port: of its sshd; 22 leaves it to ``~/.ssh/config``.
        user: the name there; default that of ``~/.ssh/config``, else the name here.
        identity_file: private key; default what ``~/.ssh/config``, the agent and ``~/.ssh`` offer.
        known_hosts: file that pins the host key; default ``~/.ssh/known_hosts``.
        proxy_jump: ``[user@]host[:port]`` to go through, several with commas; default that of
            ``~/.ssh/config``; ``none`` for no jump.
        ssh_config: read instead of ``~/.ssh/config``.
        cluster: given as ``-M`` to every Slurm command: the host is a login node of another
            cluster that shares its slurmdbd with this one (sbatch(1), --clusters).
        slurm_conf: value of ``SLURM_CONF`` for every Slurm command there.
        slurm_bin: directory of the Slurm commands when they are not on PATH.
        connect_timeout_s: longest wait for the login node.
    """

    kind: TransportKind = TransportKind.LOCAL
    host: str | None = None
    port: int = 22
    user: str | None = None
    identity_file: str | None = None
    known_hosts: str | None = None
    proxy_jump: str | None = None
    ssh_config: str | None = None
    cluster: str | None = None
    slurm_conf: str | None = None
    slurm_bin: str | None = None
    connect_timeout_s: float = 10.0


class Evidence(enum.StrEnum):
    """How a fabric variable is known."""

    RUN = "run"
    DOCUMENTED = "documented, not run"


class FabricVariable(_Frozen, frozen=True, kw_only=True):
    """One environment variable of the fabric, with where it comes from.

    A stronger layer may write just ``NAME = "value"``: its own file is the source then.

    Attributes:
        value: what is exported.
        source: URL, document or file that asks for it.
        as_of: the day the source was read; not asked of the user's own layers.
        status: ``run`` or ``documented, not run``.
        example: the value is the source's example and must be replaced with the site's own.
        note: for people.
    """

    value: str
    source: str
    as_of: dt.date | None
    status: Evidence
    example: bool = False
    note: str | None = None


class Fabric(_Frozen, frozen=True, kw_only=True):
    """The network between nodes.

    Attributes:
        kind: ``infiniband``, ``efa``, ``ethernet`` or ``loopback``.
        env: variables that jobs get; a job gets no others of the fabric.
        forbidden: variable -> why it is not to be set here, by the sources (lint reports it).
        note: for people.
    """

    kind: str
    env: dict[str, FabricVariable] = msgspec.field(default_factory=dict)
    forbidden: dict[str, str] = msgspec.field(default_factory=dict)
    note: str | None = None


class ContainerRuntime(enum.StrEnum):
    """What starts a container in a job step."""

    NONE = "none"
    PYXIS = "pyxis"
    APPTAINER = "apptainer"


class Container(_Frozen, frozen=True, kw_only=True):
    """The site's container runtime and what a container needs of the host.

    Attributes:
        runtime: what starts containers in a job step.
        mounts: ``host:container`` directories that every container gets.
    """

    runtime: ContainerRuntime = ContainerRuntime.NONE
    mounts: tuple[str, ...] = ()


class Price(_Frozen, frozen=True, kw_only=True):
    """What a GPU-hour costs, on-prem too. A price of 0 means unknown.

    Attributes:
        gpu_hour_usd: dollars for one GPU for one hour.
        source: who says so.
        as_of: the day it was valid.
    """

    gpu_hour_usd: Decimal
    source: str
    as_of: dt.date


class DataRules(_Frozen, frozen=True, kw_only=True):
    """Where data would be, and what the site may hold.

    Attributes:
        regions: where the site's storage stands.
        tags: kinds of data that may go there, such as ``public``.
    """

    regions: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()


class BurstTarget(_Frozen, frozen=True, kw_only=True):
    """What to expect of nodes that must first boot.

    Attributes:
        target: whether jobs may be moved here.
        boot_allowance_s: billed and waited for in estimates (p95 of a boot).
        boot_timeout_s: without a start by then the move is undone.
        staging_s: allowance for copying code and inputs.
        transfer_mb_s: megabytes a second from this machine to there; large inputs are counted at
            this rate, besides ``staging_s``. Left out: not known, ``staging_s`` alone counts.
    """

    target: bool = False
    boot_allowance_s: int = 0
    boot_timeout_s: int = 1800
    staging_s: int = 60
    transfer_mb_s: float | None = None


class Software(_Frozen, frozen=True, kw_only=True):
    """A named environment, as this site provides it; the parts are applied in this order.

    Attributes:
        modules: names for ``module load``.
        venv: directory of a Python virtual environment there.
        conda: name or directory of a conda environment there.
        image: container image there.
        python: version of the Python in the image, such as ``3.11``: compared before a function is
            sent. Left out: the image is asked on the login node, where it can be started there.
        note: for people.
    """

    modules: tuple[str, ...] = ()
    venv: str | None = None
    conda: str | None = None
    image: str | None = None
    python: Annotated[str, msgspec.Meta(pattern=r"^\d+\.\d+(\.\d+)?$")] | None = None
    note: str | None = None


class Partition(_Frozen, frozen=True, kw_only=True):
    """What the profile knows of a partition; the live controller's word wins in ``site check``.

    A partition whose nodes are other nodes (a cloud partition of the same controller) says below
    what differs for jobs there; everything else is the site's. With ``burst.target`` jobs that
    wait in other partitions may be moved into it: a burst policy names it ``SITE/PARTITION``.

    Attributes:
        nodes: how many it has.
        gpus_per_node: when it differs from the site's.
        gpu_type: as in GRES, such as ``h100``.
        cpus_per_node: as Slurm counts them.
        mem_gb_per_node: memory that jobs can have of a node.
        max_time: longest time limit, a Slurm duration; left out when unlimited or unknown.
        max_nodes: most nodes of one job; left out when unlimited or unknown.
        features: what ``--constraint`` may name here.
        default: the controller's own default partition.
        preemptible: its jobs may be stopped for others, its nodes taken back. With ``offer`` they
            cost the row's spot price, and bursts use them where the slack bears it.
        gpu_hour_usd: price of a GPU-hour here when it differs from the site's; of a burst target
            it must be said, else it is unknown.
        offer: row of the catalog whose instances its nodes are, such as
            ``aws/us-east-1/p5.48xlarge``; price, boot and interruption rate are the row's then.
        shared_dirs: when its nodes see fewer of the site's ``shared_dirs``. They must see the
            site's ``state_dir``.
        fabric: its own network; needed of a burst target.
        env: exported besides the site's own, and stronger: its scratch directories.
        container: what containers need of the host, when it differs.
        software: named environments that are provided in another way here.
        data: where data would be; of a burst target that says nothing: nowhere.
        burst: whether jobs may be moved here, and what to expect of nodes that must first boot.
        note: for people.
    """

    nodes: int | None = None
    gpus_per_node: int | None = None
    gpu_type: str | None = None
    cpus_per_node: int | None = None
    mem_gb_per_node: float | None = None
    max_time: str | None = None
    max_nodes: int | None = None
    features: tuple[str, ...] = ()
    default: bool = False
    preemptible: bool = False
    gpu_hour_usd: Decimal | None = None
    offer: str | None = None
    shared_dirs: tuple[str, ...] | None = None
    fabric: Fabric | None = None
    env: dict[str, str] = msgspec.field(default_factory=dict)
    container: Container | None = None
    software: dict[str, Software] = msgspec.field(default_factory=dict)
    data: DataRules | None = None
    burst: BurstTarget = BurstTarget()
    note: str | None = None

    @property
    def own_profile(self) -> bool:
        """Whether jobs here need other lines in their scripts than elsewhere on the site."""
        return bool(self.burst.target or self.fabric or self.env or self.container or self.software)


class Launch(_Frozen, frozen=True, kw_only=True):
    """Options that the site's nodes want on every srun line.

    Attributes:
        srun_args: put on every srun line of a rendered script.
        cpus_per_gpu: CPUs that go with a GPU when the job does not say.
    """

    srun_args: tuple[str, ...] = ("--kill-on-bad-exit=1", "--wait=60")
    cpus_per_gpu: int | None = None


class Site(_Frozen, frozen=True, kw_only=True):
    """One place where jobs run.

    Attributes:
        name: the file's name without ``.toml``.
        title: one line for people.
        as_of: the day the profile was last checked.
        state_dir: directory on the site, seen by its login node and all its nodes, where scripts,
            logs, staged files and claims live; ``~`` and ``$USER`` are expanded there.
        shared_dirs: directories that this machine and the site's nodes see at the same path (a
            local site's shared file system): code, inputs and outputs below them are used in
            place, all others are copied to and from the site.
        default_partition: used when a job names none.
        account: likewise.
        qos: likewise.
        gpus_per_node: of the nodes that jobs with GPUs run on.
        gpu_type: as in GRES, such as ``h100``.
        topology: the switches, for people (``hpcscale site detect`` writes what it saw).
        max_array_size: the controller's MaxArraySize; the largest array index is one less.
        keep_env: variables that ``--export`` lets through in spite of NONE.
        env: exported in every job.
        directives: extra ``#SBATCH`` options for every job, such as ``constraint = "gpu"``.
        note: for people.
    """

    name: str
    title: str = ""
    as_of: dt.date
    state_dir: str = "~/.local/state/hpcscale/site"
    transport: TransportConfig = TransportConfig()
    shared_dirs: tuple[str, ...] = ()
    default_partition: str | None = None
    account: str | None = None
    qos: str | None = None
    partitions: dict[str, Partition] = msgspec.field(default_factory=dict)
    gpus_per_node: int | None = None
    gpu_type: str | None = None
    topology: str | None = None
    max_array_size: int | None = None
    fabric: Fabric
    container: Container = Container()
    launch: Launch = Launch()
    price: Price | None = None
    data: DataRules = DataRules()
    burst: BurstTarget = BurstTarget()
    software: dict[str, Software] = msgspec.field(default_factory=dict)
    env: dict[str, str] = msgspec.field(default_factory=dict)
    keep_env: tuple[str, ...] = ()
    directives: dict[str, str] = msgspec.field(default_factory=dict)
    note: str | None = None

    def gpu_hour_usd(self, partition: str | None = None) -> Decimal | None:
        """Dollars for a GPU-hour; None when unknown (a price of 0 is unknown)."""
        known = self.partitions.get(partition or "")
        price = known.gpu_hour_usd if known else None
        rented = known is not None and known.burst.target  # what the floor costs says nothing
        if price is None and self.price is not None and not rented:
            price = self.price.gpu_hour_usd
        return price or None

    def partition_gpus_per_node(self, partition: str | None) -> int | None:
        """GPUs on a node of this partition, by the profile; None when unknown."""
        known = self.partitions.get(partition or self.default_partition or "")
        if known is not None and known.gpus_per_node is not None:
            return known.gpus_per_node
        return self.gpus_per_node

    def partition_gpu_type(self, partition: str | None) -> str | None:
        """Kind of GPU that a job of this partition waits for; None: unknown, or not one kind."""
        types = set()
        for name in (partition or self.default_partition or "").split(","):
            known = self.partitions.get(name)
            types.add((known.gpu_type if known is not None else None) or self.gpu_type)
        return types.pop() if len(types) == 1 else None

    @property
    def burst_partitions(self) -> tuple[str, ...]:
        """Partitions that jobs of the others may be moved into."""
        return tuple(name for name, known in self.partitions.items() if known.burst.target)

    def in_partition(self, name: str) -> "Site":
        """The site as a job in this partition sees it, called ``SITE/PARTITION``."""
        own = self.partitions[name]
        rented = own.burst.target
        data = own.data or (DataRules() if rented else self.data)
        changed: Site = msgspec.structs.replace(
            self,
            name=f"{self.name}/{name}",
            default_partition=name,
            gpus_per_node=self.partition_gpus_per_node(name),
            gpu_type=own.gpu_type or self.gpu_type,
            shared_dirs=self.shared_dirs if own.shared_dirs is None else own.shared_dirs,
            fabric=own.fabric or self.fabric,
            env=self.env | own.env,
            container=own.container or self.container,
            software=self.software | own.software,
            data=data,
            burst=own.burst if rented else self.burst,
            price=None if rented else self.price,  # what the floor costs says nothing
        )
        return changed

    def profile_of(self, partition: str | None) -> "Site":
        """The profile of a job in this partition (None: the default): the site's or its own."""
        name = partition or self.default_partition or ""
        known = self.partitions.get(name)
        own = known is not None and known.own_profile and "/" not in self.name
        return self.in_partition(name) if own else self
