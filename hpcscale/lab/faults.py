"""``hpcscale lab fault``: break one thing of a running lab, exactly, and put it right again.

Faults are acts on real processes, mounts and sockets of the lab; none is simulated in the
product. :func:`active` reads them back from what is really the case.
"""

import json
import os
import re
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from hpcscale.errors import LabError, UsageError
from hpcscale.lab import namespace
from hpcscale.lab.daemons import Site, faketime_library, registered
from hpcscale.lab.lab import Lab
from hpcscale.lab.model import CLOUD
from hpcscale.lab.process import (
    kill,
    namespace_of,
    parent,
    run,
    start_time,
    state_letter,
    wait_until,
)

ControllerAct = Literal["stop", "continue", "kill", "restart"]
CutMode = Literal["after", "before", "hang", "refuse", "normal"]


# ---- nodes


def _site_of(lab: Lab, node: str) -> Site:
    for site in lab.sites.values():
        if node in site.nodes or node in site.booting_nodes:
            return site
    known = ", ".join(f"{s.nodes[0]} … {s.nodes[-1]}" for s in lab.sites.values())
    raise LabError(f"no node is called {node!r}", hint=f"one of {known}")


def _processes_on(site: Site, node: str, slurmd: int) -> list[int]:
    """Every process of one node: those with its hostname, that is, in its UTS namespace."""
    if site.state.keeper_pid is not None:
        own = namespace_of(slurmd, "uts")
        return [
            pid
            for pid in namespace.members(site.state, site.paths)
            if namespace_of(pid, "uts") == own
        ]
    mark = f"SLURMD_NODENAME={node}".encode()
    above = parent(slurmd)
    tended = above is not None and namespace.is_tender(above)
    found = list(namespace.descendants([above if tended and above else slurmd]))
    for pid in namespace.members(site.state, site.paths):
        try:
            if mark in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
                found.append(pid)
        except OSError:
            continue
    return found


def node_crash(lab: Lab, node: str, *, keep_stepd: bool = False) -> None:
    """Kill a node: all its processes at once, or only slurmd.

    Args:
        lab: a running lab.
        node: its name.
        keep_stepd: only slurmd dies; slurmstepd and the job's processes live on, as when a
            node is cut off from its controller.

    Raises:
        LabError: no such node, or it is not up.
    """
    site = _site_of(lab, node)
    slurmd = site.pid_of(f"slurmd.{node}")
    if slurmd is None:
        raise LabError(f"node {node} is not up", where=site.name, hint="hpcscale lab status")
    doomed = [slurmd] if keep_stepd else _frozen(site, node, slurmd)
    for pid in _those_below_first(doomed):
        kill(pid, signal.SIGKILL)
    if not wait_until(lambda: all(start_time(pid) is None for pid in doomed), 10):
        raise LabError(f"processes of {node} do not end", where=site.name)
    (site.paths.run / f"slurmd.{node}.pid").unlink(missing_ok=True)
    if not keep_stepd:
        _lost_power(site, node).touch()


def _those_below_first(pids: Sequence[int]) -> list[int]:
    """In which order stopped processes are killed.

    A stopped process group whose last parent dies gets a hang-up and goes on (setpgid(2)): a
    batch script would tell of its end.
    """

    def depth(pid: int) -> int:
        above = parent(pid)
        return 0 if above is None or above <= 1 else 1 + depth(above)

    return sorted(pids, key=depth, reverse=True)


def _frozen(site: Site, node: str, slurmd: int) -> list[int]:
    """All processes of a node, stopped: none may outlive another and tell of its end.

    A slurmstepd that sees its task die reports it, and then the job has failed instead of being
    lost.
    """
    frozen: list[int] = []
    while True:
        found = {slurmd, *_processes_on(site, node, slurmd)}
        fresh = [pid for pid in found.difference(frozen) if start_time(pid) is not None]
        if not fresh:
            return frozen
        for pid in sorted(fresh, key=lambda pid: not _command(pid).startswith("slurm")):
            kill(pid, signal.SIGSTOP)
        wait_until(lambda: all(state_letter(p) in {"T", "t", "Z", None} for p in fresh), 5)  # noqa: B023  # called here
        frozen += fresh


def _lost_power(site: Site, node: str) -> Path:
    return site.paths.run / f"{node}.lost-power"


def node_restart(lab: Lab, node: str) -> None:
    """Start a crashed node again and wait until its controller takes it back.

    What ran on a node that lost its power is gone: its jobs end with NODE_FAIL, and batch jobs are
    requeued. (The controller would find out by itself, but only some 20 s after a job's start.)

    Raises:
        LabError: no such node, or it does not come back.
    """
    site = _site_of(lab, node)
    if site.pid_of(f"slurmd.{node}") is None:
        mark = _lost_power(site, node)
        if mark.exists():
            update = ["scontrol", "update", f"NodeName={node}", "State=DOWN", "Reason=lost power"]
            site.exec(update, check=True)
        site.start_node(node, booted=mark.exists())
        mark.unlink(missing_ok=True)
    _revive(site, node)


def _revive(site: Site, node: str) -> None:
    def back() -> bool:
        state = site.node_states().get(node, "")
        if state.startswith(("down", "drain", "fail")):
            site.exec(["scontrol", "update", f"NodeName={node}", "State=RESUME"])
        return registered({node: state}, [node])

    if not wait_until(back, 40, poll_s=0.1):
        state = site.node_states().get(node, "unknown")
        raise LabError(f"node {node} does not come back: {state}", where=site.name)


# ---- boots of cloud nodes


def _boot_faults(site: Site) -> Path:
    return site.paths.etc / "faults.json"


def _set_boot_fault(lab: Lab, **changes: Any) -> None:
    for site in lab.sites.values():
        if not site.booting_nodes:
            continue
        file = _boot_faults(site)
        faults = json.loads(file.read_text()) if file.exists() else {}
        faults.update(changes)
        temporary = file.with_suffix(".tmp")
        temporary.write_text(json.dumps(faults))
        # slurmctld's programs read it at any moment
        temporary.replace(file)


def no_boot(lab: Lab, which: int | Sequence[str]) -> None:
    """From now on, some nodes do not come up when they are resumed.

    Args:
        lab: a running lab.
        which: the last k nodes of each request, or nodes by name. 0 ends the fault.
    """
    if isinstance(which, int):
        most = len(lab.site(CLOUD).nodes)
        if not 0 <= which <= most:
            raise UsageError(f"the lab has {most} cloud nodes, not {which}")
        _set_boot_fault(lab, no_boot=which)
        return
    known = [node for site in lab.sites.values() for node in site.booting_nodes]
    for node in which:
        if node not in known:
            raise LabError(f"no cloud node is called {node!r}", hint=", ".join(known))
    _set_boot_fault(lab, no_boot=list(which))


def slow_boot(lab: Lab, seconds: float, nodes: Sequence[str] = ()) -> None:
    """From now on, nodes boot this many seconds later (all, or those named).

    0 ends the fault, for nodes that boot just now too.
    """
    if seconds < 0:
        raise UsageError("a boot cannot be faster than its boot delay", hint="seconds >= 0")
    _set_boot_fault(lab, slow_boot_s=seconds, slow_boot_nodes=list(nodes))


# ---- daemons


def controller(lab: Lab, site_name: str, act: ControllerAct) -> None:
    """Stop (SIGSTOP), continue, kill -9 or restart a site's slurmctld.

    A killed controller loses what it has not saved: about its last five seconds. ``restart``
    shuts a running one down in an orderly way first; a killed one is started.

    Raises:
        LabError: it is not running (stop, continue, kill), or does not come up (restart).
    """
    site = lab.site(site_name)
    pid = site.pid_of("slurmctld")
    if act == "restart":
        if pid is not None:
            kill(pid, signal.SIGCONT)
            site.stop("slurmctld")
        site.start_controller()
        return
    if pid is None:
        raise LabError(
            "slurmctld is not running",
            where=site_name,
            hint=f"hpcscale lab fault controller {site_name} restart",
        )
    if act == "stop":
        kill(pid, signal.SIGSTOP)
        wait_until(lambda: state_letter(pid) == "T", 5)
    elif act == "continue":
        kill(pid, signal.SIGCONT)
    else:
        site.stop("slurmctld", signal.SIGKILL)


def slurmdbd(lab: Lab, act: Literal["stop", "start"], site_name: str | None = None) -> None:
    """Stop or start slurmdbd of one site or of both.

    Raises:
        LabError: the lab has no accounting.
    """
    if not lab.state.options["accounting"]:
        raise LabError("the lab has no slurmdbd", hint="hpcscale lab up --accounting")
    for name in [site_name] if site_name else list(lab.sites):
        site = lab.site(name)
        if "slurmdbd" not in site.state.ports:
            continue  # it uses the other site's
        if act == "stop":
            site.stop("slurmdbd")
        elif site.pid_of("slurmdbd") is None:
            site.start_slurmdbd()


def clock_skew(lab: Lab, site_name: str, seconds: int) -> None:
    """Restart a site's controller with a clock that is off by some seconds. 0 ends the fault.

    Raises:
        LabError: libfaketime is not installed.
    """
    site = lab.site(site_name)
    if seconds:
        faketime_library()
    site.state.clock_skew_s = seconds
    lab.state.save()
    controller(lab, site_name, "restart")


# ---- ssh


def ssh_cut(lab: Lab, mode: CutMode, *, count: int = 1, match: str = "") -> None:
    """Break SSH to the cloud site.

    Args:
        lab: a running lab.
        mode: ``after``: the next command is carried out, then the connection breaks before any
            reply; ``before``: it breaks before the command is carried out; ``hang``: the command
            is carried out and no reply ever comes; ``refuse``: sshd and all its sessions end;
            ``normal``: no fault.
        count: how many commands are hit (after, before, hang).
        match: only commands that contain this text are hit, such as ``sbatch``.
    """
    site = lab.site(CLOUD)
    tokens = site.paths.run / "ssh-cut"
    sessions = [
        pid
        for pid in namespace.members(site.state, site.paths)
        if _command(pid).startswith("sshd") and pid != site.pid_of("sshd")
    ]
    if mode == "normal":
        for token in tokens.glob("token.*"):
            token.unlink(missing_ok=True)
        for pid in sessions:
            if state_letter(pid) == "T":
                kill(pid, signal.SIGKILL)
        if site.pid_of("sshd") is None:
            site.start_sshd()
        return
    if mode == "refuse":
        site.stop("sshd")
        for pid in sessions:
            kill(pid, signal.SIGKILL)
        return
    if not (site.paths.etc / "sshd_config").read_text().count("ForceCommand"):
        raise LabError("no sftp-server was found, so commands cannot be cut")
    if count < 1:
        raise UsageError(f"--count {count}: at least 1")
    if "\n" in match:
        raise UsageError("--match holds a newline")
    if re.search(r"[\\*?\[]", match):
        raise UsageError("--match is plain text: without \\, *, ? and [")
    for i in range(count):
        token = tokens / f"token.{i}"
        temporary = tokens / f"new.{i}"
        temporary.write_text(f"{mode}\n{match}\n")
        temporary.replace(token)


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return ""


# ---- disk


def size_bytes(text: str) -> int:
    """``0``, ``64k``, ``2m`` or ``1g`` as bytes."""
    match = re.fullmatch(r"(\d+)([kmg]?)", text.lower())
    if match is None:
        raise UsageError(f"{text!r} is no size", hint="--size 0, 64k, 2m or 1g")
    return int(match[1]) << 10 * " kmg".index(match[2] or " ")


def disk_full(lab: Lab, site_name: str, *, path: Path | None = None, free_bytes: int = 0) -> Path:
    """Let a directory have only this much free space, as all processes of the site see it.

    A size-limited tmpfs is mounted over it, with a copy of its content. This machine, as the
    login node of lab-onprem, goes on seeing the directory below it.

    Args:
        lab: a running lab.
        site_name: the site.
        path: default the site's scratch directory.
        free_bytes: rounded up to pages.

    Returns:
        The directory.

    Raises:
        LabError: no namespaces, no such directory, or it is full already.
    """
    site = lab.site(site_name)
    target = Path(os.path.abspath(path or site.paths.scratch))  # noqa: PTH100  # links are the site's
    if site.state.keeper_pid is None:
        raise LabError("disk-full needs the site's own mount namespace", where=site_name)
    if str(target) in site.state.full:
        raise LabError(f"{target} is full already", hint="hpcscale lab fault clear")
    if site.exec(["test", "-d", str(target)]).returncode != 0:
        raise LabError(f"the site sees no directory {target}", where=site_name)
    done = run(namespace.fill_argv(site.paths, site.state, target, free_bytes), timeout_s=120)
    if done.returncode != 0:
        raise LabError(f"cannot limit {target}: {done.stderr.strip()}", where=site_name)
    site.state.full.append(str(target))
    lab.state.save()
    return target


def disk_free(lab: Lab, site_name: str) -> None:
    """Undo every disk-full of a site; files written meanwhile stay."""
    site = lab.site(site_name)
    for target in list(site.state.full):
        done = run(namespace.unfill_argv(site.paths, site.state, Path(target)), timeout_s=120)
        if done.returncode != 0:
            raise LabError(f"cannot free {target}: {done.stderr.strip()}", where=site_name)
        site.state.full.remove(target)
        lab.state.save()


# ---- all together


def active(lab: Lab) -> list[dict[str, str]]:
    """The faults that hold now: ``{"fault": …, "site": …, "detail": …}``."""
    found: list[dict[str, str]] = []

    def add(fault: str, site: Site, detail: str) -> None:
        found.append({"fault": fault, "site": site.name, "detail": detail})

    for site in lab.sites.values():
        pids = {daemon: site.pid_of(daemon) for daemon in site.daemons()}
        for daemon, pid in pids.items():
            if pid is None:
                fault = {"slurmctld": "controller", "sshd": "ssh-cut", "slurmdbd": "slurmdbd"}
                add(fault.get(daemon, "node-crash"), site, f"{daemon} is dead")
            elif state_letter(pid) == "T":
                add("controller", site, f"{daemon} is stopped")
        if site.state.clock_skew_s:
            add("clock-skew", site, f"{site.state.clock_skew_s:+d} s")
        for path in site.state.full:
            add("disk-full", site, path)
    cloud = lab.site(CLOUD)
    file = _boot_faults(cloud)
    for key, value in (json.loads(file.read_text()) if file.exists() else {}).items():
        if value and key in {"no_boot", "slow_boot_s"}:
            nodes = value if isinstance(value, list) else [str(value)]
            add(key.removesuffix("_s").replace("_", "-"), cloud, ", ".join(nodes))
    tokens = sorted((cloud.paths.run / "ssh-cut").glob("token.*"))
    if tokens:
        mode, match = tokens[0].read_text().split("\n")[:2]
        commands = f"{len(tokens)} commands" + (f" with {match!r}" if match else "")
        add("ssh-cut", cloud, f"{mode}: {commands}")
    return found


def clear(lab: Lab) -> None:
    """End every fault; returns when all nodes can be used again."""
    for site in lab.sites.values():
        _boot_faults(site).unlink(missing_ok=True)
    ssh_cut(lab, "normal")
    for site in lab.sites.values():
        if "slurmdbd" in site.state.ports and site.pid_of("slurmdbd") is None:
            site.start_slurmdbd()
        pid = site.pid_of("slurmctld")
        if site.state.clock_skew_s:
            clock_skew(lab, site.name, 0)
        elif pid is None:
            site.start_controller()
        elif state_letter(pid) == "T":
            kill(pid, signal.SIGCONT)
        disk_free(lab, site.name)
        states = site.node_states()
        for node in site.nodes:
            running = site.pid_of(f"slurmd.{node}") is not None
            if site.name != CLOUD and not running:
                node_restart(lab, node)
            elif not registered(states, [node]) and states.get(node, "").startswith("down"):
                _power_off(site, node) if site.name == CLOUD else _revive(site, node)
        if site.name != CLOUD:
            for node in site.booting_nodes:
                if states.get(node, "").startswith("down"):
                    _power_off(site, node)


def _power_off(site: Site, node: str) -> None:
    """A cloud node that never booted, or died: switch it off, so that it can be resumed again."""

    def off() -> bool:
        state = site.node_states().get(node, "")
        if not state.startswith("down"):
            return True  # meanwhile its controller has switched it off, or it has come after all
        act = "RESUME" if state.endswith("~") else "POWER_DOWN_FORCE"
        update = ["scontrol", "update", f"NodeName={node}", f"State={act}"]
        return site.exec(update).returncode == 0

    if not wait_until(off, 20, poll_s=0.2):
        state = site.node_states().get(node, "unknown")
        raise LabError(f"node {node} cannot be switched off: {state}", where=site.name)
    _revive(site, node)
