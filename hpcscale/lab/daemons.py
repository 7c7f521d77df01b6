"""The daemons of one site: which programs are needed, how each is started, is it alive."""

import contextlib
import os
import pwd
import re
import signal
import socket
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hpcscale.errors import LabError
from hpcscale.lab import namespace, sshdir
from hpcscale.lab.faketime import with_faketime
from hpcscale.lab.model import (
    CLOUD,
    ONPREM,
    LabOptions,
    LabState,
    SitePaths,
    SiteState,
    burst_names,
    node_names,
)
from hpcscale.lab.process import SYSTEM_PATH, find, kill, run, start_time, tail, wait_until

PACKAGES = {
    "apt-get install": "slurmctld slurmd slurm-client munge openssh-server openssh-client "
    "util-linux",
    "dnf install epel-release && dnf install": "slurm slurm-slurmctld slurm-slurmd munge "
    "openssh-server openssh-clients util-linux",
    "zypper install": "slurm slurm-node munge openssh util-linux",
}
ACCOUNTING_PACKAGES = {
    "apt-get install": "slurmdbd slurm-wlm-mysql-plugin mariadb-server",
    "dnf install": "slurm-slurmdbd mariadb-server",
    "zypper install": "slurm-slurmdbd mariadb",
}
FAKETIME_PACKAGES = {
    "apt-get install": "libfaketime",
    "dnf install": "libfaketime",
    "zypper install": "libfaketime",
}
FAKETIME = "libfaketimeMT.so.1"
FAMILIES = ("Debian/Ubuntu", "RHEL/Rocky/Alma", "SUSE")


class PortTakenError(LabError):
    """Another process took a port between choosing and using it: choose again."""


def _install_hint(packages: dict[str, str]) -> str:
    return "; ".join(
        f"{family}: {command} {names}"
        for family, (command, names) in zip(FAMILIES, packages.items(), strict=True)
    )


def require(options: LabOptions) -> None:
    """Refuse with one clear line when a program is not installed.

    Raises:
        LabError: names what is missing and the package commands.
    """
    basic = ("slurmctld", "slurmd", "scontrol", "sinfo", "munged", "sshd", "ssh-keygen")
    missing = [name for name in basic if find(name) is None]
    if missing:
        what = "Slurm is" if "slurmctld" in missing else "Some programs of the lab are"
        raise LabError(
            f"{what} not installed (missing: {', '.join(missing)})", hint=_install_hint(PACKAGES)
        )
    if options.accounting:
        needed = ("slurmdbd", "sacctmgr", "mariadbd", "mariadb-install-db", "mariadb")
        missing = [name for name in needed if find(name) is None]
        if missing:
            raise LabError(
                f"--accounting needs MariaDB and slurmdbd (missing: {', '.join(missing)})",
                hint=_install_hint(ACCOUNTING_PACKAGES),
            )
    if options.fast > 1:
        faketime_library()


def faketime_library() -> str:
    """Path of libfaketime.

    Raises:
        LabError: it is not installed.
    """
    for pattern in (f"*/faketime/{FAKETIME}", FAKETIME):
        for root in ("/usr/lib", "/usr/lib64", "/usr/local/lib"):
            for path in Path(root).glob(pattern):
                return str(path)
    for path in Path("/usr/lib64").glob(f"faketime/{FAKETIME}"):
        return str(path)
    raise LabError(
        "libfaketime is not installed: --fast and clock-skew need it",
        hint=_install_hint(FAKETIME_PACKAGES),
    )


def slurm_version() -> tuple[int, int]:
    """Slurm's version as (year, month), such as (22, 5).

    Raises:
        LabError: slurmctld does not say it.
    """
    said = run([_program("slurmctld"), "-V"], timeout_s=20).stdout
    match = re.search(r"(\d+)\.(\d+)\.", said)
    if match is None:
        raise LabError(f"slurmctld -V does not name a version: {said.strip()!r}")
    return int(match[1]), int(match[2])


def user_name() -> str:
    """The name of the user who runs the lab.

    Raises:
        LabError: the password database does not know this uid (Slurm needs a name).
    """
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        raise LabError(
            f"user id {os.geteuid()} has no name in the password database; Slurm needs one"
        ) from None


@dataclass(slots=True)
class Site:
    """A site of a running lab: runs programs inside it and looks after its daemons."""

    lab: LabState
    state: SiteState

    @property
    def name(self) -> str:
        """``lab-onprem`` or ``lab-cloud``."""
        return self.state.name

    @property
    def paths(self) -> SitePaths:
        """Where the site's files lie."""
        return self.lab.paths(self.name)

    @property
    def nodes(self) -> list[str]:
        """The names of the site's nodes, without those of a cloud partition beside others."""
        return node_names(self.name, int(self.lab.options["nodes"]))

    @property
    def booting_nodes(self) -> list[str]:
        """The names of its nodes that boot when a job wants them."""
        if self.name == CLOUD:
            return self.nodes
        own = self.name == ONPREM and self.lab.options.get("cloud_partition")
        return burst_names(int(self.lab.options["nodes"])) if own else []

    def env(self) -> dict[str, str]:
        """The environment of a login on this site: nothing of the caller's leaks in."""
        home = pwd.getpwuid(os.geteuid()).pw_dir
        if self.state.keeper_pid is None or not Path(home).is_dir() or home == "/":
            home = str(self.paths.home)
        scontrol = find("scontrol") or "/usr/bin/scontrol"
        return {
            "PATH": f"{Path(scontrol).parent}:{SYSTEM_PATH}",
            "HOME": home,
            "USER": self.lab.user,
            "LOGNAME": self.lab.user,
            "SHELL": "/bin/sh",
            "LANG": "C.UTF-8",
            "TERM": os.environ.get("TERM", "dumb"),
            "SLURM_CONF": str(self.paths.slurm_conf),
            namespace.MARK: f"{self.lab.directory}:{self.name}",
        }

    def argv(self, command: Sequence[str], cwd: Path | None = None) -> list[str]:
        """The command line that runs ``command`` inside the site."""
        return [*namespace.enter_argv(self.state, cwd or self.paths.scratch), *command]

    def exec(
        self,
        command: Sequence[str],
        *,
        timeout_s: float = 60,
        stdin: str | None = None,
        env: dict[str, str] | None = None,
        check: bool = False,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command inside the site, as on its login node.

        Args:
            command: argv.
            timeout_s: then its process group is killed.
            stdin: text for its standard input.
            env: added to the environment of a login.
            check: raise when the exit code is not 0.

        Raises:
            LabError: not started, timed out, or (``check``) failed.
        """
        # where there are no namespaces, nsenter does not set the working directory
        cwd = self.paths.scratch if self.state.keeper_pid is None else None
        done = run(
            self.argv(command),
            timeout_s=timeout_s,
            env=self.env() | (env or {}),
            stdin=stdin,
            cwd=cwd,
        )
        if check and done.returncode != 0:
            raise LabError(
                f"`{' '.join(command)}` exited {done.returncode}: "
                f"{(done.stderr or done.stdout).strip()[-500:]}",
                where=self.name,
            )
        return done

    def interactive(self, command: Sequence[str]) -> int:
        """Run a command inside the site on the caller's own terminal; its exit code."""
        cwd = self.paths.scratch if self.state.keeper_pid is None else None
        # Ctrl-C goes to the command as well as to us: it decides, we wait for it
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)
        try:
            process = subprocess.Popen(
                self.argv(command),
                env=self.env(),
                cwd=cwd,
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509  # no threads here
            )
        except OSError as exc:
            raise LabError(f"cannot run {command[0]}: {exc.strerror}", where=self.name) from exc
        else:
            code = process.wait()
        finally:
            signal.signal(signal.SIGINT, before)
        return code if code >= 0 else 128 - code

    def start(self, what: str, command: Sequence[str], env: dict[str, str] | None = None) -> None:
        """Start a daemon that goes into the background by itself.

        Raises:
            LabError: with the end of its log.
        """
        output = self.paths.log / f"{what}.start"
        with output.open("wb") as file:
            try:
                done = subprocess.run(
                    self.argv([*namespace.tend_argv(self.paths, self.state), *command]),
                    stdin=subprocess.DEVNULL,
                    stdout=file,
                    stderr=file,
                    env=self.env() | (env or {}),
                    timeout=60,
                    start_new_session=True,
                    check=False,
                )
                code: int | None = done.returncode
            except subprocess.TimeoutExpired:
                code = None
        if code == 0:
            output.unlink()
            return
        log = tail(output) + "\n" + tail(self.paths.log / f"{what}.log")
        kind = PortTakenError if "ddress already in use" in log else LabError
        how = "timeout" if code is None else f"exit code {code}"
        raise kind(f"{what} did not start ({how}):\n{log.strip()}", where=self.name)

    def pid_of(self, daemon: str) -> int | None:
        """The pid (as seen here) of a daemon, by its pid file; None when it does not run."""
        try:
            inner = int((self.paths.run / f"{daemon}.pid").read_text())
        except (OSError, ValueError):
            return None
        pid = namespace.by_inner_pid(self.state, self.paths).get(inner)
        return pid if pid is not None and start_time(pid) is not None else None

    def stop(self, daemon: str, number: int = signal.SIGTERM, timeout_s: float = 20) -> bool:
        """Send a signal to a daemon and wait for its end; False when it did not run."""
        pid = self.pid_of(daemon)
        if pid is None:
            return False
        kill(pid, number)
        if not wait_until(lambda: start_time(pid) is None, timeout_s):
            kill(pid, signal.SIGKILL)
            wait_until(lambda: start_time(pid) is None, 5)
        (self.paths.run / f"{daemon}.pid").unlink(missing_ok=True)
        return True

    # ---- the daemons, in the order in which they start

    def start_munged(self) -> None:
        """The site's own munged with its own key."""
        paths = self.paths
        self.start(
            "munged",
            [
                _program("munged"),
                "--force",
                f"--socket={paths.munge_socket}",
                f"--key-file={paths.etc}/munge.key",
                f"--pid-file={paths.run}/munged.pid",
                f"--log-file={paths.log}/munged.log",
                f"--seed-file={paths.state}/munge.seed",
                "--num-threads=2",
            ],
        )

    def controller_env(self) -> dict[str, str]:
        """Settings of libfaketime for slurmctld; empty when its clock is the machine's."""
        fast = int(self.lab.options["fast"])
        if fast == 1 and not self.state.clock_skew_s:
            return {}
        # a restarted controller goes on where its accelerated clock stood
        ahead = (time.time() - self.lab.started_at) * (fast - 1) + self.state.clock_skew_s
        return {"LD_PRELOAD": faketime_library(), "FAKETIME": f"{ahead:+.0f} x{fast}"}

    def start_controller(self) -> None:
        """Slurmctld; returns when it answers."""
        argv = [_program("slurmctld"), "-f", str(self.paths.slurm_conf)]
        env = self.controller_env()
        if env:
            own_shm = self.state.keeper_pid is not None
            argv = with_faketime(argv, env, self.paths, own_shm=own_shm)
        self.start("slurmctld", argv)
        self.wait_controller()

    def wait_controller(self, timeout_s: float = 20) -> None:
        """Wait until slurmctld answers.

        Raises:
            LabError: with the end of its log.
        """
        # asked without munge or an RPC first: connecting is cheap and does not wait
        port = self.state.ports["slurmctld"]

        def listens() -> bool:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                return True
            return False

        log = self.paths.log / "slurmctld.log"
        if wait_until(lambda: listens() or self.pid_of("slurmctld") is None, timeout_s):
            if self.pid_of("slurmctld") is None:
                # the daemon is there before its pid file: a second look decides
                wait_until(lambda: self.pid_of("slurmctld") is not None or listens(), 2)
            end = time.monotonic() + timeout_s
            while time.monotonic() < end:
                if self.exec(["scontrol", "ping"], timeout_s=20).returncode == 0:
                    return
                if self.pid_of("slurmctld") is None:
                    break
        text = tail(log)
        kind = PortTakenError if "ddress already in use" in text else LabError
        raise kind(f"slurmctld does not answer:\n{text}", where=self.name)

    def start_node(self, node: str, *, booted: bool = False) -> None:
        """One slurmd, under its own hostname.

        Args:
            node: its name.
            booted: the node comes from a boot: what ran on it is gone.
        """
        self.start(
            f"slurmd.{node}",
            [
                *namespace.node_argv(self.paths, self.state, node),
                _program("slurmd"),
                *(["-b"] if booted or node in self.booting_nodes else []),
                "-N",
                node,
                "-f",
                str(self.paths.slurm_conf),
            ],
        )

    def start_sshd(self) -> None:
        """The only door to the cloud site."""
        paths = self.paths
        argv = [_program("sshd"), "-f", f"{paths.etc}/sshd_config", "-E", f"{paths.log}/sshd.log"]
        if self.state.keeper_pid is None:
            with sshdir.provided():
                self.start("sshd", argv)
        else:
            self.start("sshd", argv)  # its keeper has made /run/sshd

    def start_slurmdbd(self) -> None:
        """Slurmdbd; returns when sacctmgr is answered."""
        self.start("slurmdbd", [_program("slurmdbd")])

        def answers() -> bool:
            done = self.exec(["sacctmgr", "-n", "show", "cluster"], timeout_s=30)
            return done.returncode == 0

        if not wait_until(answers, 30):
            raise LabError(
                f"slurmdbd does not answer:\n{tail(self.paths.log / 'slurmdbd.log')}",
                where=self.name,
            )

    # ---- what the site says about itself

    def node_states(self, timeout_s: float = 20) -> dict[str, str]:
        """Node -> Slurm's short state (``idle``, ``mix``, ``idle~`` …)."""
        done = self.exec(["sinfo", "-h", "-N", "-o", "%N %t"], timeout_s=timeout_s, check=True)
        return dict(line.split() for line in done.stdout.splitlines())

    def daemons(self) -> list[str]:
        """The daemons that belong to this site; cloud nodes come and go and are not listed."""
        names = ["munged", "slurmctld"]
        if "slurmdbd" in self.state.ports:
            names.append("slurmdbd")
        if self.name == CLOUD:
            return [*names, "sshd"]
        return [*names, *(f"slurmd.{node}" for node in self.nodes)]


def _program(name: str) -> str:
    path = find(name)
    if path is None:
        raise LabError(f"{name} is not installed", hint=_install_hint(PACKAGES))
    return path


def registered(states: dict[str, str], nodes: Sequence[str]) -> bool:
    """Are all nodes usable: idle, busy, or a cloud node at rest?"""
    return all(re.match(r"(idle|mix|alloc)[~%#]?$", states.get(node, "")) for node in nodes)
