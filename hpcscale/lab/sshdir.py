"""``/run/sshd``, which root's sshd wants: made for a lab without namespaces, and removed again.

The directory belongs to the whole machine. Several labs may need it at once, and sshd enters it
for each connection, so the last one to leave takes it away: an empty file in it says that a lab
made it. With namespaces every site has its own ``/run``, and nothing of this happens.
"""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from hpcscale.errors import LabError
from hpcscale.lab.process import all_pids, locked_now, namespace_of, start_time, wait_until

RUN_SSHD = Path("/run/sshd")
MADE = ".made-by-hpcscale-lab"


@contextlib.contextmanager
def provided(directory: Path = RUN_SSHD) -> Iterator[None]:
    """Have the directory while an sshd starts.

    Raises:
        LabError: it cannot be made, or another lab holds the lock for long.
    """
    if os.geteuid() != 0:  # an ordinary user's sshd does without
        yield
        return
    with _alone(directory):
        try:
            if not directory.is_dir():
                directory.mkdir()
                directory.chmod(0o755)  # whatever the umask: sshd judges the mode
                (directory / MADE).touch()
        except OSError as exc:
            raise LabError(
                f"cannot make {directory}, which sshd wants: {exc.strerror}",
                hint=f"mkdir -m 755 {directory}, or `lab up` without --no-isolation",
            ) from exc
        yield


def removed(directory: Path = RUN_SSHD) -> None:
    """Remove the directory when a lab made it and no sshd lives that could want it."""
    if os.geteuid() != 0 or not (directory / MADE).exists():
        return
    with _alone(directory), contextlib.suppress(OSError):  # somebody put a file there: it stays
        if not any(map(_wants_it, all_pids())):
            (directory / MADE).unlink()
            directory.rmdir()


def _wants_it(pid: int) -> bool:
    try:
        is_sshd = Path(f"/proc/{pid}/comm").read_text().startswith("sshd")
    except OSError:
        return False
    return (
        is_sshd
        and start_time(pid) is not None
        and namespace_of(pid, "mnt") == namespace_of("self", "mnt")
    )


@contextlib.contextmanager
def _alone(directory: Path) -> Iterator[None]:
    """A lock on the directory above: no file stays."""
    fd = os.open(directory.parent, os.O_RDONLY)
    try:
        if not wait_until(lambda: locked_now(fd), 60):
            raise LabError(f"another process holds a lock on {directory.parent} for too long")
        yield
    finally:
        os.close(fd)
