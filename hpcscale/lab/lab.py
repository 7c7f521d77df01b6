"""A lab as a whole: up, open, status, environment, down."""

import contextlib
import os
import socket
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from hpcscale.errors import LabError
from hpcscale.lab import accounting, build, clientconfig, config, namespace
from hpcscale.lab.daemons import PortTakenError, Site, registered, require, user_name
from hpcscale.lab.model import (
    CLOUD,
    ONPREM,
    SITES,
    LabOptions,
    LabState,
    SiteState,
    default_dir,
)
from hpcscale.lab.place import (
    locked,
    real,
    sigterm_as_interrupt,
    take_down,
    take_down_unknown,
    usable_dir,
)
from hpcscale.lab.process import state_letter, tail, wait_until

ATTEMPTS = 3


class Lab:
    """A running lab. Make one with :meth:`up`, find one with :meth:`open`.

    Used as a context manager it is taken down at the end.
    """

    def __init__(self, state: LabState) -> None:
        self.state = state
        # write end of the pipe whose end ends the lab, see `die_with_me`
        self._life: int | None = None
        self.sites = {name: Site(state, site) for name, site in state.sites.items()}

    def __enter__(self) -> Self:
        """The lab itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Take it down."""
        self.down()

    # ---- making and finding

    @classmethod
    def up(
        cls,
        directory: Path | None = None,
        options: LabOptions | None = None,
        *,
        die_with_me: bool = False,
    ) -> "Lab":
        """Build and start a lab; returns when every node can be used.

        Args:
            directory: must be empty or absent; default :func:`hpcscale.lab.model.default_dir`.
            options: default ``LabOptions()``.
            die_with_me: the lab's processes end when this process does, however it ends (needs
                namespaces; the directory stays).

        Raises:
            LabError: with the end of the log of the daemon that failed. Nothing is left behind.
        """
        options = options or LabOptions()
        require(options)
        user = user_name()
        software = (options.software or Path(sys.prefix)).absolute()
        if not software.is_dir():
            raise LabError(f"no such directory: {software}", hint="--software DIRECTORY")
        directory = usable_dir(directory or default_dir())
        for attempt in range(1, ATTEMPTS + 1):
            with locked(directory), sigterm_as_interrupt():
                state = LabState(
                    directory=directory,
                    user=user,
                    started_at=time.time(),
                    options=asdict(options),
                    software=software,
                )
                state.save()
                try:
                    return cls._start(state, options, die_with_me=die_with_me)
                except BaseException as exc:
                    # an interrupt counts too: what is half up must not stay
                    take_down(state, keep=False)
                    if not isinstance(exc, PortTakenError) or attempt == ATTEMPTS:
                        raise
        raise AssertionError  # the loop returns or raises

    @classmethod
    def _start(cls, state: LabState, options: LabOptions, *, die_with_me: bool) -> "Lab":
        build.make_trees(state, options)
        ports, mysql_port, holder = build.choose_ports(options)
        with holder:
            for name in SITES:
                state.sites[name] = SiteState(name, ports=ports[name])
            lab = cls(state)
            lab._make_namespaces(options, die_with_me=die_with_me)
            state.mysql_port = mysql_port if options.accounting else None
            host_name = socket.gethostname().split(".")[0]
            build.write_configs(state, options, host_name)
            clientconfig.write_overlays(state)
            state.save()
            password = ""
            if options.accounting:
                password = accounting.start_mariadb(lab.sites[ONPREM], mysql_port)
        # the cloud's controller needs the on-prem site's slurmdbd
        with ThreadPoolExecutor(max_workers=1 if options.one_slurmdbd else 2) as pool:
            starts = [
                pool.submit(lab._start_site, lab.sites[name], options, password) for name in SITES
            ]
            for start in starts:
                start.result()
        lab._wait_ready(timeout_s=60)
        state.ready = True
        state.save()
        return lab

    def _make_namespaces(self, options: LabOptions, *, die_with_me: bool) -> None:
        state = self.state
        ends: tuple[int, int] | None = os.pipe() if die_with_me else None
        try:
            reason = self._start_keepers(options, ends[0] if ends else None)
        finally:
            if ends:
                os.close(ends[0])
                self._life = ends[1]
        inside = [site for site in state.sites.values() if site.keeper_pid is not None]
        isolated = len(inside) == len(SITES)
        if not isolated:
            for site in inside:
                namespace.end_site(site, state.paths(site.name))
                site.keeper_pid = site.keeper_start = None
        pid_ns = isolated and all(site.pid_ns for site in inside)
        state.isolation = {"mount": isolated, "uts": isolated, "pid": pid_ns}
        why = reason or "this system allows no new /proc"
        state.notes = [
            f"no {kind} namespace ({why}): {namespace.GUARANTEES[kind]}"
            for kind, holds in state.isolation.items()
            if not holds
        ]

    def _start_keepers(self, options: LabOptions, owner_fd: int | None) -> str | None:
        state = self.state
        reason: str | None = "switched off (--no-isolation)"
        for name, site in state.sites.items():
            if not options.isolate:
                break
            paths = state.paths(name)
            plan = namespace.mount_plan(state.directory, paths, options, state.software)
            reason = namespace.start_keeper(paths, name, plan, site, owner_fd)
            # at once: whoever cleans up must know the keeper
            state.save()
            if reason is not None:
                break
        return reason

    def _start_site(self, site: Site, options: LabOptions, password: str) -> None:
        site.start_munged()
        if options.accounting:
            self._start_accounting(site, options, password)
        site.start_controller()
        if options.accounting:
            new_qos = not options.one_slurmdbd or site.name == ONPREM
            accounting.add_accounts(site, new_qos=new_qos)
        if site.name == CLOUD:
            site.start_sshd()
            return
        with ThreadPoolExecutor(max_workers=8) as pool:
            list(pool.map(site.start_node, site.nodes))

    def _start_accounting(self, site: Site, options: LabOptions, password: str) -> None:
        if options.one_slurmdbd and site.name != ONPREM:
            accounting.add_cluster(site)
            return
        assert self.state.mysql_port is not None
        text = config.SiteConfig(
            site=site.name,
            paths=site.paths,
            options=options,
            user=self.state.user,
            controller=site.name
            if site.state.keeper_pid is not None
            else socket.gethostname().split(".")[0],
            host_names=site.state.keeper_pid is not None,
            ports=site.state.ports,
        )
        accounting.write_slurmdbd_conf(site, text, self.state.mysql_port, password)
        site.start_slurmdbd()
        accounting.add_cluster(site)

    def _wait_ready(self, timeout_s: float) -> None:
        for site in self.sites.values():
            seen: dict[str, str] = {}

            def usable(site: Site = site, seen: dict[str, str] = seen) -> bool:
                seen.update(site.node_states())
                return registered(seen, site.nodes)

            if not wait_until(usable, timeout_s):
                bad = [n for n in site.nodes if not registered(seen, [n])]
                log = site.paths.log / f"slurmd.{bad[0]}.log" if bad else site.paths.log
                raise LabError(
                    f"nodes are not ready after {timeout_s:g} s: "
                    + ", ".join(f"{n} {seen.get(n, 'unknown')}" for n in bad)
                    + f"\n{tail(log)}\n{tail(site.paths.log / 'slurmctld.log')}",
                    where=site.name,
                )
        port = self.state.sites[CLOUD].ports["sshd"]
        if not wait_until(lambda: _ssh_answers(port), 15):
            raise LabError(
                f"sshd does not answer:\n{tail(self.sites[CLOUD].paths.log / 'sshd.log')}",
                where=CLOUD,
            )

    @classmethod
    def open(cls, directory: Path | None = None) -> "Lab":
        """The lab in a directory.

        Raises:
            LabError: there is none.
        """
        return cls(LabState.load(real(directory or default_dir())))

    @staticmethod
    def remove(directory: Path | None = None, *, keep: bool = False) -> Path:
        """Take down the lab in a directory, even one whose state file was damaged.

        Returns:
            The directory.

        Raises:
            LabError: there is no lab, or some process does not end.
        """
        directory = real(directory or default_dir())
        try:
            Lab(LabState.load(directory)).down(keep=keep)
        except LabError:
            if not take_down_unknown(directory, keep=keep):
                raise
        return directory

    # ---- using

    def site(self, name: str) -> Site:
        """``lab-onprem`` or ``lab-cloud``.

        Raises:
            LabError: no such site in this lab.
        """
        try:
            return self.sites[name]
        except KeyError:
            raise LabError(
                f"the lab has no site {name!r}", hint=f"one of {', '.join(SITES)}"
            ) from None

    def env(self) -> dict[str, str]:
        """Variables that point hpcscale and Slurm's commands at this lab."""
        return clientconfig.client_env(self.state)

    def status(self) -> dict[str, Any]:
        """What runs: sites, daemons, nodes, isolation. JSON-ready."""
        state = self.state
        sites: dict[str, Any] = {}
        for name, site in self.sites.items():
            daemons = {daemon: _daemon_state(site, daemon) for daemon in site.daemons()}
            nodes: dict[str, str] = {}
            error = None
            if daemons["slurmctld"] == "running":
                try:
                    nodes = site.node_states(timeout_s=5)
                except LabError as exc:
                    error = str(exc)
            sites[name] = {
                "daemons": daemons,
                "nodes": nodes,
                "ports": dict(site.state.ports),
                "slurm_conf": str(site.paths.slurm_conf),
                "error": error,
            }
        up = state.ready and all(
            site["daemons"]["slurmctld"] == "running" for site in sites.values()
        )
        return {
            "dir": str(state.directory),
            "up": up,
            "user": state.user,
            "software": str(state.software),
            "options": {k: v for k, v in state.options.items() if k != "extra_conf"},
            "isolation": dict(state.isolation),
            "notes": list(state.notes),
            "sites": sites,
            "env": self.env(),
        }

    def log_files(self, site: str | None = None, daemon: str | None = None) -> list[Path]:
        """The daemons' logs, of one site or all, of one daemon or all.

        Raises:
            LabError: no such site or log.
        """
        names = [self.site(site).name] if site else list(self.sites)
        pattern = f"{daemon}.log" if daemon else "*.log"
        found = [
            path for name in names for path in sorted(self.state.paths(name).log.glob(pattern))
        ]
        if not found:
            known = sorted(
                {path.stem for name in names for path in self.state.paths(name).log.glob("*.log")}
            )
            raise LabError(f"no log of {daemon!r}", hint=f"one of {', '.join(known)}")
        return found

    def follow(self, files: list[Path]) -> Iterator[tuple[Path, str]]:
        """Lines as they are written, for as long as the lab lives."""
        with contextlib.ExitStack() as stack:
            handles = [(path, stack.enter_context(path.open(errors="replace"))) for path in files]
            for _, handle in handles:
                handle.seek(0, os.SEEK_END)
            while clientconfig.is_lab_dir(self.state.directory):
                for path, handle in handles:
                    for line in handle:
                        yield path, line.rstrip("\n")
                time.sleep(0.2)

    def down(self, *, keep: bool = False) -> None:
        """End every process of the lab and remove its directory.

        Args:
            keep: leave the directory (logs, state) where it is.
        """
        with locked(self.state.directory):
            take_down(self.state, keep=keep)
        if self._life is not None:
            os.close(self._life)
            self._life = None


def _daemon_state(site: Site, daemon: str) -> str:
    pid = site.pid_of(daemon)
    if pid is None:
        return "dead"
    return "stopped" if state_letter(pid) in {"T", "t"} else "running"


def _ssh_answers(port: int) -> bool:
    with (
        contextlib.suppress(OSError),
        socket.create_connection(("127.0.0.1", port), timeout=5) as sock,
    ):
        return sock.recv(4) == b"SSH-"
    return False
