"""A lab's directory: may it be used, who works on it, and how it is cleared away."""

import contextlib
import os
import shutil
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import FrameType
from typing import Any

from hpcscale.errors import HpcscaleError, LabError
from hpcscale.lab import clientconfig, faketime, namespace, sshdir
from hpcscale.lab.model import MAX_DIR_BYTES, ONPREM, SITES, LabState, SiteState
from hpcscale.lab.process import locked_now, wait_until


def real(directory: Path) -> Path:
    """Resolved, so that mount points and Slurm's files all say the same path."""
    return Path(os.path.realpath(directory))


def usable_dir(directory: Path) -> Path:
    """Make an empty directory for a lab; the remains of a dead lab are cleared away.

    Raises:
        LabError: a lab lives there, or it holds something else, or cannot be used.
    """
    directory = real(directory)
    if len(os.fsencode(directory)) > MAX_DIR_BYTES:
        raise LabError(
            f"the path {directory} is too long for Unix sockets",
            hint=f"--dir with at most {MAX_DIR_BYTES} bytes",
        )
    if any(c.isspace() or c in "\"'\\,%#" for c in str(directory)):
        raise LabError(
            f"slurm.conf cannot hold the path {str(directory)!r}",
            hint="--dir without spaces, quotes, commas, % and #",
        )
    if clientconfig.is_lab_dir(directory):
        try:
            state = LabState.load(directory)
            alive = any(_site_lives(state, site) for site in state.sites.values())
        except LabError:
            alive = True
        if alive:
            raise LabError(
                f"a lab is already in {directory}",
                hint=f"hpcscale lab down --dir {directory}, or another --dir",
            )
        # the remains of a lab whose machine went down, or whose keepers were killed
        take_down(state, keep=False)
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise LabError(
            f"{directory} exists and is no lab's directory", hint="--dir with a new directory"
        )
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as exc:
        raise LabError(f"cannot make {directory}: {exc.strerror}") from exc
    if directory.stat().st_uid != os.geteuid():
        raise LabError(f"{directory} belongs to another user", hint="--dir with a new directory")
    return directory


def _site_lives(state: LabState, site: SiteState) -> bool:
    if site.keeper_pid is not None:
        return namespace.keeper_alive(site)
    return any(True for _ in namespace.members(site, state.paths(site.name)))


@contextlib.contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Let one ``up`` or ``down`` work at a time. The lock is on the directory: no file stays."""
    try:
        directory.mkdir(mode=0o700, exist_ok=True)
        fd = os.open(directory, os.O_RDONLY)
    except OSError as exc:
        raise LabError(f"cannot use {directory}: {exc.strerror}") from exc
    try:
        # not at once: of an `up` that was just killed, a child may be on its way to exec(2)
        if not wait_until(lambda: locked_now(fd), 3):
            raise LabError(
                f"another `hpcscale lab up` or `down` is at work in {directory}",
                hint="wait for its end",
            )
        yield
    finally:
        os.close(fd)


@contextlib.contextmanager
def sigterm_as_interrupt() -> Iterator[None]:
    """Let SIGTERM during `up` clean up like Ctrl-C."""
    # handlers can be set in the main thread alone
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(number: int, frame: FrameType | None) -> None:
        del number, frame
        raise KeyboardInterrupt

    before: Callable[[int, FrameType | None], Any] | int | None = signal.signal(
        signal.SIGTERM, interrupt
    )
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def take_down(state: LabState, *, keep: bool) -> None:
    """End all processes and remove the directory.

    Raises:
        LabError: some process does not end; the directory stays.
    """
    _end(state.directory, state.sites)
    if not keep and clientconfig.is_lab_dir(state.directory):
        _remove(state.directory)


def take_down_unknown(directory: Path, *, keep: bool) -> bool:
    """Take down a lab whose state file cannot be read; False when it is none for certain.

    Raises:
        LabError: some process does not end; the directory stays.
    """
    helper = LabState.site_paths(directory, ONPREM).etc / namespace.HELPER
    if not (clientconfig.is_lab_dir(directory) and helper.is_file()):
        return False
    try:
        LabState.load(directory)
    except LabError:
        with locked(directory):
            # a keeper takes its whole site with it; without one, marks lead to the processes
            namespace.end_strays(directory)
            _end(directory, {name: SiteState(name) for name in SITES})
            if not keep:
                _remove(directory)
        return True
    return False


def _end(directory: Path, sites: Mapping[str, SiteState]) -> None:
    errors: list[HpcscaleError] = []
    for name, site in sites.items():
        try:
            paths = LabState.site_paths(directory, name)
            namespace.end_site(site, paths)
            faketime.forget(paths)
        except HpcscaleError as exc:
            errors.append(exc)
    if errors:
        raise errors[0]
    # `up` may have been killed between starting a keeper and writing that down
    namespace.end_strays(directory)
    sshdir.removed()


def _remove(directory: Path) -> None:
    shutil.rmtree(directory, ignore_errors=True)
    if directory.exists():
        # jobs and staged code may lie in directories that their owner cannot write
        for parent, names, _ in os.walk(directory):
            for name in names:
                if not (path := Path(parent, name)).is_symlink():
                    path.chmod(0o700)
        shutil.rmtree(directory, ignore_errors=True)
    if directory.exists():
        # a process that was just killed may have created a last file
        shutil.rmtree(directory)
