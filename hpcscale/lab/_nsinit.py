"""Runs inside a lab site: makes its namespaces, keeps them alive, starts a node in its own.

This file is executed by path (``python -I _nsinit.py …``), also from a copy in the site's own
tree where the rest of hpcscale cannot be seen: standard library only, no import of hpcscale.
System calls are made directly because a process keeps its new capabilities only until ``exec``:
``unshare(1)`` and ``mount(8)`` differ between distributions in how they carry them over.

.. code-block:: text

    keeper PLAN.json            unshare, arrange the mounts, report one JSON line, then wait
    node NAME MODE -- ARGV…     own UTS namespace with hostname NAME, then exec ARGV
    tend -- ARGV…               start ARGV's daemon, and stay as long as anything of it lives
    fill PID MODE TARGET SIZE   inside PID's namespaces, leave SIZE bytes free below TARGET
    unfill PID MODE TARGET      the undo; what was written meanwhile is kept

MODE is ``user`` for an unprivileged user namespace, ``root`` without, ``none`` for no namespaces.

Sources: namespaces(7), user_namespaces(7), mount_namespaces(7), mount(2), proc(5).
"""

import ctypes
import json
import os
import select
import shutil
import signal
import socket
import stat
import sys
import time
from typing import Any

CLONE_NEWNS = 0x00020000
CLONE_NEWUTS = 0x04000000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000

MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_REMOUNT = 1, 2, 4, 8, 32
MS_NOATIME, MS_NODIRATIME, MS_BIND, MS_REC = 1024, 2048, 4096, 16384
MS_PRIVATE, MS_RELATIME = 1 << 18, 1 << 21
MS_MOVE = 8192
MNT_DETACH = 2
# statvfs(3) reports mount flags with its own numbers; only relatime differs from mount(2)
ST_RELATIME = 4096
KEPT_FLAGS = MS_RDONLY | MS_NOSUID | MS_NODEV | MS_NOEXEC | MS_NOATIME | MS_NODIRATIME

PR_SET_CHILD_SUBREAPER = 36

PAGE = os.sysconf("SC_PAGE_SIZE")
# file times are some milliseconds coarse
COARSE_NS = 20_000_000
_libc = ctypes.CDLL(None, use_errno=True)


def _check(result: int, what: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def unshare(flags: int) -> None:
    """Leave namespaces: unshare of section 2."""
    _check(_libc.unshare(flags), "unshare")


def mount(source: str, target: str, fstype: str | None, flags: int, data: str = "") -> None:
    """Make one mount: mount of section 2."""
    _check(
        _libc.mount(
            os.fsencode(source),
            os.fsencode(target),
            fstype.encode() if fstype else None,
            ctypes.c_ulong(flags),
            data.encode() or None,
        ),
        f"mount {target}",
    )


def unshare_as_self(flags: int, user_ns: bool) -> None:
    """Leave namespaces, when asked in a new user namespace in which only this user exists."""
    uid, gid = os.geteuid(), os.getegid()
    unshare(flags | (CLONE_NEWUSER if user_ns else 0))
    if user_ns:
        for name, text in (
            ("setgroups", "deny"),  # must come first: user_namespaces(7)
            ("uid_map", f"{uid} {uid} 1"),
            ("gid_map", f"{gid} {gid} 1"),
        ):
            with open(f"/proc/self/{name}", "w") as handle:  # noqa: PTH123  # as small as it gets
                handle.write(text)


def read_only(target: str) -> None:
    """Remount a bind read-only, keeping the flags that a user namespace may not clear."""
    have = os.statvfs(target).f_flag
    flags = have & KEPT_FLAGS | (MS_RELATIME if have & ST_RELATIME else 0)
    mount("none", target, None, MS_REMOUNT | MS_BIND | MS_RDONLY | flags)


def apply_mounts(steps: list[dict[str, Any]]) -> None:
    """Cover and re-expose.

    A source may lie below a path that an earlier step covers, so all sources are opened first
    and bound through their descriptors.
    """
    sources = {
        step["source"]: os.open(step["source"], os.O_PATH) for step in steps if "source" in step
    }
    covered = set()
    for step in steps:
        target = step["target"]
        if "source" in step:
            fd = sources[step["source"]]
            if not os.path.lexists(target):
                if step.get("optional"):
                    continue
                os.makedirs(target, exist_ok=True)  # noqa: PTH103  # as small as it gets
            mount(f"/proc/self/fd/{fd}", target, None, MS_BIND | MS_REC)
            if step.get("read_only"):
                read_only(target)
        elif step.get("seal"):
            if target in covered:
                read_only(target)
        elif os.path.isdir(target):  # noqa: PTH112  # as small as it gets
            mount("hpcscale-lab", target, "tmpfs", MS_NOSUID | MS_NODEV, f"mode={step['mode']}")
            covered.add(target)
            for name in step.get("mkdir", ()):
                os.makedirs(f"{target}/{name}", exist_ok=True)  # noqa: PTH103  # likewise
    for fd in sources.values():
        os.close(fd)


def keep(plan: dict[str, Any]) -> None:
    """Make the namespaces of one site, report, and stay as their keeper (and as init)."""
    report = os.dup(1)
    try:
        pid_ns = plan["pid_ns"]
        flags = CLONE_NEWNS | CLONE_NEWUTS | (CLONE_NEWPID if pid_ns else 0)
        unshare_as_self(flags, plan["user_ns"])
        if pid_ns and os.fork() > 0:
            os._exit(0)  # the child is process 1 of the site: when it dies, the kernel ends all
        outer_pid = int(os.readlink("/proc/self"))  # noqa: PTH115  # still the parent's /proc
        mount("none", "/", None, MS_REC | MS_PRIVATE)
        if pid_ns:
            mount("proc", "/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC)
        apply_mounts(plan["mounts"])
        socket.sethostname(plan["hostname"])
        os.chdir("/")
    except OSError as exc:
        answer = {"error": str(exc), "errno": exc.errno}
        os.write(report, json.dumps(answer).encode() + b"\n")
        os._exit(1)
    woken, wake = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.set_wakeup_fd(wake)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    null = os.open("/dev/null", os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(null, fd)
    os.write(report, json.dumps({"pid": outer_pid}).encode() + b"\n")
    os.close(report)
    poll = select.poll()
    poll.register(woken, select.POLLIN)
    if plan["owner_fd"] is not None:
        poll.register(plan["owner_fd"], 0)  # nobody writes: only its end is an event
    while True:
        for fd, _ in poll.poll():
            if fd == plan["owner_fd"]:
                os._exit(0)  # whoever started the lab is gone
            os.read(fd, 512)
        try:
            while os.waitpid(-1, os.WNOHANG)[0] > 0:
                pass
        except ChildProcessError:
            pass


def tend(argv: list[str]) -> int:
    """Start a daemon below a process that inherits all its orphans; its exit code.

    For systems without a pid namespace: whatever the daemon and its jobs start, however often it
    forks and forgets where it came from, stays a descendant of the tender (prctl(2),
    PR_SET_CHILD_SUBREAPER) and can be found. The tender ends with the last of them.
    """
    reading, writing = os.pipe2(os.O_CLOEXEC)
    if os.fork() > 0:
        os.close(writing)
        code = os.read(reading, 8)
        return int(code) if code else 1
    os.close(reading)
    os.setsid()
    _check(_libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0), "prctl")
    daemon = os.fork()
    if daemon == 0:
        os.execvp(argv[0], argv)  # noqa: S606  # what we were asked to run
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    os.chdir("/")
    while True:
        try:
            pid, status = os.wait()
        except ChildProcessError:
            os._exit(0)
        if pid == daemon:
            null = os.open("/dev/null", os.O_RDWR)
            for fd in (0, 1, 2):
                os.dup2(null, fd)
            end = os.waitstatus_to_exitcode(status)
            os.write(writing, str(end if end >= 0 else 128 - end).encode())
            os.close(writing)


def enter(pid: int, user_ns: bool) -> None:
    """Join a keeper's user and mount namespaces: setns(2)."""
    names = (("user", CLONE_NEWUSER), ("mnt", CLONE_NEWNS)) if user_ns else (("mnt", CLONE_NEWNS),)
    fds = [(os.open(f"/proc/{pid}/ns/{name}", os.O_RDONLY), kind) for name, kind in names]
    for fd, kind in fds:
        _check(_libc.setns(fd, kind), "setns")


def fill(target: str, free: int) -> None:
    """Put a size-limited tmpfs over a directory, with a copy of what is in it."""
    used = 0
    for parent, _, names in os.walk(target):
        for name in names:
            size = os.lstat(f"{parent}/{name}").st_size
            used += -(-size // PAGE) * PAGE
    mode = os.stat(target).st_mode & 0o7777  # noqa: PTH116  # as small as it gets
    # the old content stays reachable as the working directory, although it is covered
    os.chdir(target)
    began = time.time_ns()
    parent, name = os.path.split(target)
    # filled first, and then put in its place: whoever opens a file there finds its directory
    aside = f"{parent}/.{name}.full"
    os.makedirs(aside, 0o700, exist_ok=True)  # noqa: PTH103  # as small as it gets
    # a tmpfs of size=0 would be unlimited
    limits = f"size={max(PAGE, used + free)},mode={mode:o}"
    try:
        mount("hpcscale-lab-full", aside, "tmpfs", MS_NOSUID | MS_NODEV, limits)
        try:
            shutil.copytree(".", aside, symlinks=True, dirs_exist_ok=True, ignore=_special)
            mount(aside, target, None, MS_MOVE)
            moved = time.time_ns()
        except OSError:  # shutil.Error is one: a file has grown since, and has no room
            _libc.umount2(os.fsencode(aside), MNT_DETACH)
            raise
    finally:
        os.rmdir(aside)  # noqa: PTH106  # as small as it gets
    try:
        _copy_back(target, since=began)  # what was written meanwhile
    except OSError:
        unfill(target)
        raise
    for parent, _, names in os.walk(target):  # and what was removed
        for name in names:
            copied = os.lstat(f"{parent}/{name}").st_ctime_ns < moved - COARSE_NS
            if copied and not os.path.lexists(os.path.relpath(f"{parent}/{name}", target)):
                os.unlink(f"{parent}/{name}")  # noqa: PTH108  # as small as it gets


def unfill(target: str) -> None:
    """Take the tmpfs away; what is in it is by then where it would have been.

    Copied first and uncovered then, so that what programs append goes to the end of a whole file.
    """
    os.chdir(target)
    if not os.path.ismount(target):  # an earlier undo was cut short
        return
    began = time.time_ns()
    parent, name = os.path.split(target)
    below = f"{parent}/.{name}.below"
    os.makedirs(below, 0o700, exist_ok=True)  # noqa: PTH103  # as small as it gets
    try:
        mount(parent, below, "", MS_BIND)  # not recursive: without the tmpfs
        _copy_back(f"{below}/{name}", since=0)
    finally:
        _libc.umount2(os.fsencode(below), MNT_DETACH)
        os.rmdir(below)  # noqa: PTH106  # as small as it gets
    _check(_libc.umount2(os.fsencode(target), MNT_DETACH), f"umount {target}")
    _copy_back(target, since=began)


def _copy_back(target: str, since: int) -> None:
    """Copy what has changed since then in the working directory, unless it is newer there."""
    same = set()
    for parent, directories, names in os.walk("."):
        for name in (*directories, *names):
            # copytree would trip over a link that is there already
            here, there = f"{parent}/{name}", f"{target}/{parent}/{name}"
            if not (os.path.islink(here) and os.path.islink(there)):  # noqa: PTH114  # as small as it gets
                continue
            if os.readlink(here) == os.readlink(there):  # noqa: PTH115  # likewise
                same.add(here)  # never gone for a moment: it may be a claim
            else:
                os.unlink(there)  # noqa: PTH108  # likewise

    def age(path: str) -> tuple[int, int]:
        found = os.stat(path)  # noqa: PTH116  # as small as it gets
        return found.st_ctime_ns, found.st_size  # file times are some milliseconds coarse

    def copy(source: str, there: str) -> None:
        if since and age(source)[0] < since:
            return
        if since and os.path.exists(there) and age(there) >= age(source):  # noqa: PTH110  # as small as it gets
            return
        shutil.copy2(source, there)

    shutil.copytree(
        ".",
        target,
        symlinks=True,
        dirs_exist_ok=True,
        ignore=lambda at, names: [
            *_special(at, names),
            *(name for name in names if f"{at}/{name}" in same),
        ],
        copy_function=copy,
    )


def _special(directory: str, names: list[str]) -> list[str]:
    """Sockets, pipes and devices: copytree cannot copy them."""
    modes = {name: os.lstat(f"{directory}/{name}").st_mode for name in names}
    plain = (stat.S_ISREG, stat.S_ISDIR, stat.S_ISLNK)
    return [name for name, mode in modes.items() if not any(is_a(mode) for is_a in plain)]


def main(argv: list[str]) -> None:
    """Dispatch; see the module's docstring."""
    verb = argv[0]
    if verb == "keeper":
        with open(argv[1]) as handle:  # noqa: PTH123  # as small as it gets
            plan = json.load(handle)
        keep(plan)
    elif verb == "node":
        # slurmctld starts its programs with signals blocked; a slurmd must not inherit that
        signal.pthread_sigmask(signal.SIG_SETMASK, set())
        name, mode = argv[1], argv[2]
        if mode != "none":
            unshare_as_self(CLONE_NEWUTS, mode == "user")
            socket.sethostname(name)
        os.execv(argv[4], argv[4:])  # noqa: S606  # argv[3] is `--`
    elif verb == "tend":
        raise SystemExit(tend(argv[2:]))  # argv[1] is `--`
    elif verb in {"fill", "unfill"}:
        enter(int(argv[1]), argv[2] == "user")
        if verb == "fill":
            fill(argv[3], int(argv[4]))
        else:
            unfill(argv[3])
    else:
        raise SystemExit(f"unknown verb {verb}")


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except OSError as exc:
        raise SystemExit(str(exc)) from None
