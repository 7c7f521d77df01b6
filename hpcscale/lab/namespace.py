"""Each site's own mount, UTS and pid namespace: what is covered, what is seen, who lives there.

The plan of the mounts is data (:func:`mount_plan`); ``_nsinit.py`` carries it out. Why it is done
this way stands in ``docs/decisions/0002-lab-isolation.md``.
"""

import contextlib
import errno
import json
import os
import pwd
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hpcscale
from hpcscale.errors import LabError
from hpcscale.lab import _nsinit
from hpcscale.lab.model import LabOptions, SitePaths, SiteState
from hpcscale.lab.process import (
    all_pids,
    find,
    inner_pid,
    kill,
    namespace_of,
    parent,
    start_time,
    wait_until,
)

MARK = "HPCSCALE_LAB"
HELPER = "nsinit.py"
# never covered, whatever a strange $HOME says: without these no daemon starts
VITAL = frozenset(
    Path(p)
    for p in ("/", "/usr", "/etc", "/bin", "/sbin", "/lib", "/lib64", "/proc", "/dev", "/sys")
)
# how a system says that namespaces are not for this user: seccomp, no capability, AppArmor, an old
# kernel, or a limit of 0 in /proc/sys/user
FORBIDDEN = {errno.EPERM, errno.EACCES, errno.EINVAL, errno.ENOSYS, errno.ENOSPC, errno.EUSERS}
GUARANTEES = {
    "mount": "a site sees the other site's files, your home and the checkout: "
    "missing staging goes unnoticed",
    "uts": "`hostname` in a job names this machine, not the node",
    "pid": "`lab down` must search for the processes of the lab",
}


@dataclass(frozen=True, slots=True)
class Mode:
    """One way of making namespaces, in the order in which they are tried."""

    user_ns: bool
    pid_ns: bool


def modes() -> list[Mode]:
    """What to try: a container may refuse a fresh /proc, and with it the pid namespace.

    Root needs no user namespace and could not use one: slurmctld calls setgroups(2) as root,
    which is not allowed there.
    """
    user_ns = os.geteuid() != 0
    return [Mode(user_ns=user_ns, pid_ns=True), Mode(user_ns=user_ns, pid_ns=False)]


def helper_python() -> str:
    """The interpreter itself, not the virtual environment's link to it."""
    return os.path.realpath(sys.executable)


def package_dir() -> Path:
    """Where the running hpcscale lies."""
    return Path(hpcscale.__file__).resolve().parent


def checkout_dir() -> Path | None:
    """The source checkout, when hpcscale runs from one."""
    above = package_dir().parent
    return above if (above / "pyproject.toml").exists() else None


def homes() -> list[Path]:
    """The submitter's home: what the password database says and what $HOME says."""
    found = [Path(pwd.getpwuid(os.getuid()).pw_dir), Path(os.environ.get("HOME") or "/")]
    real = [path.resolve() for path in found if path.is_dir()]
    return [path for path in dict.fromkeys(real) if path not in VITAL]


def mount_plan(
    lab_dir: Path, paths: SitePaths, options: LabOptions, software: Path
) -> list[dict[str, Any]]:
    """What is covered and what is seen in one site, in order."""
    python = Path(helper_python()).parent.parent
    cover = [lab_dir, *(path.resolve() for path in options.cover)]
    checkout = checkout_dir()
    if checkout is not None:
        cover.append(checkout)
    shared = [path for path in dict.fromkeys((python, software)) if path not in VITAL]
    cover = [path for path in dict.fromkeys(cover) if path not in VITAL and path not in shared]
    steps: list[dict[str, Any]] = [
        {"target": "/run", "mode": "755", "mkdir": ["sshd"]},
        {"target": "/dev/shm", "mode": "1777"},  # noqa: S108  # a mount point, not a file
        *(
            {"source": str(paths.tmp), "target": os.path.realpath(name), "optional": True}
            for name in ("/tmp", "/var/tmp")  # noqa: S108  # mount points, not files
        ),
        *({"source": str(paths.home), "target": str(home)} for home in homes()),
        *({"target": str(path), "mode": "755"} for path in sorted(cover)),
        {"source": str(paths.root), "target": str(paths.root)},
        {"source": str(paths.etc / "hosts"), "target": "/etc/hosts", "optional": True},
    ]
    shadow = paths.etc / "shadow"
    if shadow.exists():
        steps.append({"source": str(shadow), "target": "/etc/shadow", "optional": True})
    steps += [{"source": str(path), "target": str(path), "read_only": True} for path in shared]
    # what of hpcscale lies in the shared software: the nodes must do without it. An editable
    # installation leaves its data files there, and Python takes their directory for a package;
    # submitit would load its entry points, and say at length that there is nothing behind them
    packages = "lib*/python*/site-packages"
    installed = {
        path
        for name in ("hpcscale", "hpcscale-*.dist-info")
        for path in software.glob(f"{packages}/{name}")
    }
    if package_dir().is_relative_to(software):
        installed.add(package_dir())
    steps += [{"source": str(paths.etc / "absent"), "target": str(p)} for p in sorted(installed)]
    resolv = Path("/etc/resolv.conf").resolve()
    if resolv.is_relative_to("/run") and resolv.exists():
        steps.append({"source": str(resolv.parent), "target": str(resolv.parent)})
    steps += [{"target": str(path), "seal": True} for path in sorted(cover)]
    return steps


def install_helpers(paths: SitePaths) -> None:
    """Copy into the site's own tree what must run where hpcscale cannot be seen."""
    shutil.copy(_nsinit.__file__, paths.etc / HELPER)
    absent = paths.etc / "absent"
    absent.mkdir()
    (absent / "__init__.py").write_text(
        'raise ModuleNotFoundError("hpcscale is not installed on the nodes", name="hpcscale")\n'
    )


def start_keeper(
    paths: SitePaths,
    hostname: str,
    mounts: list[dict[str, Any]],
    site: SiteState,
    owner_fd: int | None = None,
) -> str | None:
    """Make the namespaces of a site and fill in ``site``.

    Args:
        paths: where the site's files lie.
        hostname: what ``hostname`` says in the site.
        mounts: see :func:`mount_plan`.
        site: its keeper and namespaces are entered here.
        owner_fd: read end of a pipe; the site ends when all its write ends are closed.

    Returns:
        None, or the reason why this system does not allow it.

    Raises:
        LabError: it is allowed, but failed.
    """
    reason = "nsenter (util-linux) is missing"
    if find("nsenter") is None:
        return reason
    for mode in modes():
        plan = {
            "hostname": hostname,
            "user_ns": mode.user_ns,
            "pid_ns": mode.pid_ns,
            "mounts": mounts,
            "owner_fd": owner_fd,
        }
        file = paths.etc / "namespaces.json"
        file.write_text(json.dumps(plan, indent=1))
        with (paths.log / "keeper.log").open("ab") as log:
            process = subprocess.Popen(
                [*_helper(paths), "keeper", str(file)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                start_new_session=True,
                pass_fds=() if owner_fd is None else (owner_fd,),
                env={"PATH": os.defpath, MARK: str(paths.root.parent)},
                text=True,
            )
        assert process.stdout is not None
        with process.stdout:
            line = process.stdout.readline()
        answer: dict[str, Any] = json.loads(line) if line else {"error": "the keeper died"}
        if mode.pid_ns or "error" in answer:
            process.wait(timeout=10)  # its child is the keeper
        else:
            process.returncode = 0  # it lives on by design: no warning from Popen's destructor
        if "pid" in answer:
            site.keeper_pid = answer["pid"]
            site.keeper_start = start_time(answer["pid"])
            site.user_ns, site.pid_ns = mode.user_ns, mode.pid_ns
            site.namespace = namespace_of(answer["pid"], "pid" if mode.pid_ns else "mnt")
            return None
        reason = str(answer["error"])
        if answer.get("errno") not in FORBIDDEN:
            raise LabError(f"cannot arrange the site's file systems: {reason}", where=site.name)
    return reason


def enter_argv(site: SiteState, cwd: Path) -> list[str]:
    """The start of a command line that runs the rest of it inside the site."""
    if site.keeper_pid is None:
        return []
    nsenter = find("nsenter")
    assert nsenter is not None
    argv = [nsenter, "-t", str(site.keeper_pid), "-m", "-u"]
    if site.user_ns:
        argv += ["-U", "--preserve-credentials"]
    if site.pid_ns:
        argv.append("-p")
    # not `nsenter --wd`: it opens the directory outside, and `cd ..` would lead out of the site
    return [*argv, "--", "env", "-C", str(cwd)]


def node_argv(paths: SitePaths, site: SiteState, node: str) -> list[str]:
    """The start of a command line that runs the rest of it under a node's own hostname."""
    return [*_helper(paths), "node", node, _mode_name(site), "--"]


def tend_argv(paths: SitePaths, site: SiteState) -> list[str]:
    """The start of a command line that starts a daemon so that all it starts can be found."""
    return [] if site.pid_ns else [*_helper(paths), "tend", "--"]


def descendants(pids: Iterable[int]) -> set[int]:
    """All processes below some processes."""
    children: dict[int | None, list[int]] = {}
    for pid in all_pids():
        children.setdefault(parent(pid), []).append(pid)
    found: set[int] = set()
    look = list(pids)
    while look:
        below = [pid for pid in children.get(look.pop(), []) if pid not in found]
        found.update(below)
        look += below
    return found


def is_tender(pid: int) -> bool:
    """Is it the process above a daemon of a site without a pid namespace?"""
    with contextlib.suppress(OSError):
        argv = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        return b"tend" in argv and any(word.endswith(f"/{HELPER}".encode()) for word in argv)
    return False


def fill_argv(paths: SitePaths, site: SiteState, target: Path, free_bytes: int) -> list[str]:
    """The command line that makes a directory full, as processes of the site see it."""
    pid = str(site.keeper_pid)
    return [*_helper(paths), "fill", pid, _mode_name(site), str(target), str(free_bytes)]


def unfill_argv(paths: SitePaths, site: SiteState, target: Path) -> list[str]:
    """The undo of :func:`fill_argv`."""
    return [*_helper(paths), "unfill", str(site.keeper_pid), _mode_name(site), str(target)]


def _mode_name(site: SiteState) -> str:
    return "none" if site.keeper_pid is None else "user" if site.user_ns else "root"


def _helper(paths: SitePaths) -> list[str]:
    return [helper_python(), "-I", "-S", str(paths.etc / HELPER)]


def keeper_alive(site: SiteState) -> bool:
    """Is the keeper that we started still there (and not a reused pid)?"""
    if site.keeper_pid is None or site.keeper_start is None:
        return False
    return start_time(site.keeper_pid) == site.keeper_start


def members(site: SiteState, paths: SitePaths) -> Iterator[int]:
    """Every process of a site, by the namespace that it lives in.

    Without a pid namespace: also by marks and descent (see :func:`_marked`).
    """
    found: set[int] = set() if site.pid_ns else _marked(paths)
    # the kernel gives the number of a namespace that is gone to the next one
    if keeper_alive(site):
        kind = "pid" if site.pid_ns else "mnt"
        found.update(pid for pid in all_pids() if namespace_of(pid, kind) == site.namespace)
    yield from found


def _marked(paths: SitePaths) -> set[int]:
    """Processes of a site without a pid namespace.

    They carry the site's name in their environment; daemons that have overwritten theirs (sshd
    does) name a file of the site in their arguments; all others descend from one of them, at
    least from the tender (:func:`tend_argv`) above the daemon that they came from.
    """
    mark = f"{MARK}={paths.root.parent}:{paths.root.name}".encode()
    inside = os.fsencode(f"{paths.root}/")
    found: set[int] = set()
    for pid in all_pids():
        try:
            process = Path(f"/proc/{pid}")
            name = (process / "comm").read_text()
            arguments = (process / "cmdline").read_bytes()
        except OSError:
            continue
        # only daemons: an editor may well have a log of the lab open
        daemon = name.startswith(("slurm", "munge", "sshd", "maria"))
        if _environ_has(pid, mark) or (daemon and inside in arguments):
            found.add(pid)
    found |= descendants(found)
    # this process may have been started in the site's environment itself
    return found - {os.getpid(), os.getppid()}


def _environ_has(pid: int, mark: bytes) -> bool:
    try:
        return mark in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return False


def marked_keepers(lab_dir: Path) -> list[int]:
    """The keepers of a lab that its state file does not tell of, by the mark they carry."""
    mark = f"{MARK}={lab_dir}".encode()
    return [p for p in all_pids() if _environ_has(p, mark) and start_time(p) is not None]


def end_strays(lab_dir: Path, timeout_s: float = 15) -> int:
    """End keepers of a lab that are left when its sites are down; how many there were.

    Raises:
        LabError: one does not end.
    """
    strays = marked_keepers(lab_dir)
    for pid in strays:
        kill(pid, 9)
    if not wait_until(lambda: all(start_time(pid) is None for pid in strays), timeout_s):
        raise LabError(f"keepers of {lab_dir} do not end: {strays}")
    return len(strays)


def by_inner_pid(site: SiteState, paths: SitePaths) -> dict[int, int]:
    """A site's processes: pid inside the site (as in its pid files) -> pid here."""
    return {inner_pid(pid): pid for pid in members(site, paths)}


def end_site(site: SiteState, paths: SitePaths, timeout_s: float = 15) -> None:
    """End every process of a site.

    Raises:
        LabError: some process could not be ended.
    """
    if site.pid_ns and site.keeper_pid is not None:
        if not keeper_alive(site):
            return
        # the kernel kills everything in a pid namespace whose first process dies
        everyone = list(members(site, paths))
        kill(site.keeper_pid, 9)
        gone = wait_until(lambda: all(start_time(p) is None for p in everyone), timeout_s)
        if not gone:
            left = [p for p in everyone if start_time(p) is not None]
            raise LabError(f"processes of {site.name} do not end: {left}")
        return

    rest: list[int] = []

    def none_left() -> bool:
        rest[:] = [p for p in members(site, paths) if p != site.keeper_pid and start_time(p)]
        for pid in rest:
            # a tender ends by itself when nothing is left below it
            if not is_tender(pid):
                with contextlib.suppress(PermissionError):  # it is named below
                    kill(pid, 9)
        return all(start_time(pid) is None for pid in rest)

    # a process may fork while it is looked at: repeat until a look finds nobody
    if not wait_until(none_left, timeout_s):
        raise LabError(f"processes of {site.name} do not end: {rest}")
    if keeper_alive(site) and site.keeper_pid is not None:
        keeper = site.keeper_pid
        kill(keeper, 9)
        wait_until(lambda: start_time(keeper) is None, timeout_s)
