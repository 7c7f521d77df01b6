"""What a lab is made of: options, where its files lie, and the state kept in ``lab.json``."""

import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from hpcscale.errors import LabError, UsageError

ONPREM = "lab-onprem"
CLOUD = "lab-cloud"
SITES = (ONPREM, CLOUD)
NODE_PREFIX = {ONPREM: "onprem", CLOUD: "cloud"}
BURST_PREFIX = "burst"  # nodes of the on-prem controller's own cloud partition
# not "hpcscale": a directory of that name in the working directory would be importable
STATE_DIR = "hpcscale-state"
STATE_FILE = "lab.json"
# sun_path of unix(7) holds 107 bytes; the longest socket is <dir>/lab-onprem/run/munge.sock
MAX_DIR_BYTES = 78


@dataclass(frozen=True, slots=True)
class LabOptions:
    """How a lab is built. Times are seconds.

    Args:
        nodes: nodes of each site.
        gpus: GPUs of each node (``gpu:h100``).
        accounting: slurmdbd on MariaDB for both sites.
        one_slurmdbd: with accounting: one slurmdbd and one munge key for both, so that each site's
            commands reach the other with ``-M``.
        fast: the controllers' clocks run this many times faster (libfaketime).
        software: the one directory shared by both sites, read-only; default ``sys.prefix``.
        boot_delay_s: real seconds between ResumeProgram and a cloud node's slurmd.
        suspend_time_s: idle seconds (the controller's) until a cloud node is powered down.
        grace_time_s: GraceTime of partition ``spot`` (the controller's seconds).
        kill_wait_s: KillWait: seconds between SIGTERM and SIGKILL.
        resume_timeout_s: ResumeTimeout (the controller's seconds); default from the boot delay.
        isolate: own namespaces for each site, where the system allows them.
        cover: further directories that the sites must not see.
        cloud_partition: lab-onprem's controller has a partition ``cloud`` too, of as many nodes
            that boot when a job wants them.
        scheduler: SchedulerParameters, in the controllers' seconds; default: quick ones, for tests.
        extra_conf: lines appended to a site's slurm.conf.
    """

    nodes: int = 4
    gpus: int = 4
    accounting: bool = False
    one_slurmdbd: bool = False
    fast: int = 1
    software: Path | None = None
    boot_delay_s: float = 1.0
    suspend_time_s: int = 20
    grace_time_s: int = 0
    kill_wait_s: int = 5
    resume_timeout_s: int | None = None
    isolate: bool = True
    cover: tuple[Path, ...] = ()
    cloud_partition: bool = False
    scheduler: str = ""
    extra_conf: dict[str, tuple[str, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse numbers that no lab can have."""
        if self.one_slurmdbd and not self.accounting:
            raise UsageError(
                "--one-slurmdbd is about accounting", hint="--accounting --one-slurmdbd"
            )
        limits = (
            ("--nodes", self.nodes, 1, 256),
            ("--gpus", self.gpus, 0, 16),
            ("--fast", self.fast, 1, 60),
            ("--boot-delay", self.boot_delay_s, 0, 3600),
            ("--suspend-time", self.suspend_time_s, 1, 86400),
            ("--grace-time", self.grace_time_s, 0, 65533),
        )
        for flag, value, low, high in limits:
            if not low <= value <= high:
                raise UsageError(
                    f"{flag} {value} is out of range", hint=f"a number from {low} to {high}"
                )


@dataclass(frozen=True, slots=True)
class SitePaths:
    """The tree of one site, ``<lab dir>/<site>``: seen at the same path inside the site."""

    root: Path

    @property
    def etc(self) -> Path:
        """Configuration, keys and programs."""
        return self.root / "etc"

    @property
    def run(self) -> Path:
        """Sockets and pid files."""
        return self.root / "run"

    @property
    def log(self) -> Path:
        """Logs of the daemons."""
        return self.root / "log"

    @property
    def state(self) -> Path:
        """StateSaveLocation and the nodes' spool directories."""
        return self.root / "state"

    @property
    def home(self) -> Path:
        """What ``~`` is inside the site."""
        return self.root / "home"

    @property
    def scratch(self) -> Path:
        """The site's shared file system."""
        return self.root / "scratch"

    @property
    def tmp(self) -> Path:
        """What /tmp is inside the site."""
        return self.root / "tmp"

    @property
    def slurm_conf(self) -> Path:
        """The site's slurm.conf."""
        return self.etc / "slurm.conf"

    @property
    def munge_socket(self) -> Path:
        """The site's own munged."""
        return self.run / "munge.sock"

    def make(self) -> None:
        """Create the tree, closed to other users."""
        self.root.mkdir(mode=0o700, parents=True)
        for path in (self.etc, self.run, self.log, self.state, self.home, self.scratch, self.tmp):
            path.mkdir()
        (self.state / "ctld").mkdir()
        self.tmp.chmod(0o1777)


@dataclass(slots=True)
class SiteState:
    """One running site.

    Attributes:
        keeper_pid: the process that holds the namespaces, None where there are none.
        keeper_start: its start time in clock ticks after boot (``/proc/PID/stat``), so that a
            reused pid is never mistaken for it.
        namespace: identity of the pid namespace, or of the mount namespace without one.
        pid_ns: every process of the site ends with the keeper.
        user_ns: the site lives in an unprivileged user namespace.
        ports: ``slurmctld``, ``slurmd`` (the first of a row), ``slurmd_burst`` (likewise),
            ``sshd``, ``slurmdbd``, or ``slurmdbd_there`` where it is the other site's.
        clock_skew_s: offset of the controller's clock, by ``lab fault clock-skew``.
        full: directories made full by ``lab fault disk-full``.
    """

    name: str
    keeper_pid: int | None = None
    keeper_start: int | None = None
    namespace: str | None = None
    pid_ns: bool = False
    user_ns: bool = False
    ports: dict[str, int] = field(default_factory=dict)
    clock_skew_s: int = 0
    full: list[str] = field(default_factory=list)


@dataclass(slots=True)
class LabState:
    """The content of ``lab.json``.

    Attributes:
        started_at: Unix time; the controllers' accelerated clocks count from it.
        isolation: guarantee -> does it hold.
        notes: for each guarantee that falls, a sentence.
    """

    directory: Path
    user: str
    started_at: float
    options: dict[str, Any]
    software: Path
    ready: bool = False
    sites: dict[str, SiteState] = field(default_factory=dict)
    isolation: dict[str, bool] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    mysql_port: int | None = None

    def save(self) -> None:
        """Write ``lab.json`` in one step: a reader sees the old or the new state."""
        path = self.directory / STATE_FILE
        temporary = path.with_suffix(".tmp")
        temporary.write_text(json.dumps(asdict(self), indent=2, default=str) + "\n")
        temporary.replace(path)

    @classmethod
    def load(cls, directory: Path) -> "LabState":
        """Read ``lab.json``.

        Raises:
            LabError: there is none, or it cannot be understood.
        """
        path = directory / STATE_FILE
        try:
            data = json.loads(path.read_text())
            data["directory"] = Path(data["directory"])
            data["software"] = Path(data["software"])
            data["sites"] = {name: SiteState(**site) for name, site in data["sites"].items()}
            return cls(**data)
        except FileNotFoundError:
            raise LabError(
                f"no lab in {directory}", hint=f"hpcscale lab up --dir {directory}"
            ) from None
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as exc:
            raise LabError(
                f"the lab's state cannot be read: {exc}",
                where=str(path),
                hint=f"hpcscale lab down --dir {directory}",
            ) from exc

    def paths(self, site: str) -> SitePaths:
        """Where a site's files lie."""
        return self.site_paths(self.directory, site)

    @staticmethod
    def site_paths(directory: Path, site: str) -> SitePaths:
        """Where the files of a site of the lab in ``directory`` lie."""
        return SitePaths(directory / site)

    def lab_options(self) -> LabOptions:
        """The options that the lab was built with."""
        data = dict(self.options)
        data["software"] = Path(data["software"]) if data.get("software") else None
        data["cover"] = tuple(Path(p) for p in data.get("cover", ()))
        data["extra_conf"] = {k: tuple(v) for k, v in data.get("extra_conf", {}).items()}
        return LabOptions(**data)


def default_dir() -> Path:
    """``$HPCSCALE_LAB_DIR``, else ``/tmp/hpcscale-lab-<uid>``."""
    return Path(os.environ.get("HPCSCALE_LAB_DIR") or f"/tmp/hpcscale-lab-{os.getuid()}")  # noqa: S108  # the name carries the uid and the tree is 0700


def node_names(site: str, count: int) -> list[str]:
    """``onprem1 … onpremN`` or ``cloud1 … cloudN``."""
    return [f"{NODE_PREFIX[site]}{i}" for i in range(1, count + 1)]


def burst_names(count: int) -> list[str]:
    """``burst1 … burstN``: the nodes of lab-onprem's partition ``cloud``."""
    return [f"{BURST_PREFIX}{i}" for i in range(1, count + 1)]
