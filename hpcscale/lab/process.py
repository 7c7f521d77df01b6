"""Running programs for the lab, and looking at processes through /proc."""

import contextlib
import fcntl
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from hpcscale.errors import LabError

SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
# where sites and distributions put what is not on an ordinary user's PATH
SEARCH_PATH = (
    f"{SYSTEM_PATH}:/opt/slurm/sbin:/opt/slurm/bin"
    ":/usr/lib/openssh:/usr/libexec/openssh:/usr/lib/ssh:/usr/libexec"
)


def find(program: str) -> str | None:
    """Path of a program, looked for on PATH and where distributions put daemons."""
    return shutil.which(program, path=f"{os.environ.get('PATH', '')}:{SEARCH_PATH}")


def run(
    argv: Sequence[str],
    *,
    timeout_s: float,
    env: Mapping[str, str] | None = None,
    stdin: str | None = None,
    cwd: Path | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run a program to its end; at the timeout its whole process group is killed.

    Raises:
        LabError: the program cannot be started, or the time is over.
    """
    try:
        process = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL if stdin is None else subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=env,
            cwd=cwd,
            text=True,
            errors="replace",
            start_new_session=True,
        )
    except OSError as exc:
        raise LabError(f"cannot run {argv[0]}: {exc.strerror}") from exc
    try:
        out, err = process.communicate(stdin, timeout=timeout_s)
    except BaseException as exc:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        if isinstance(exc, subprocess.TimeoutExpired):
            raise LabError(f"no answer within {timeout_s:g} s: {' '.join(argv)}") from None
        raise
    return subprocess.CompletedProcess(list(argv), process.returncode, out, err)


def patience(timeout_s: float) -> float:
    """A limit that fits an idle machine, as this one needs it now.

    Such a limit ends hopeless waiting. It is no claim about speed, and with ten programs on two
    cores everything takes its time.
    """
    return timeout_s * min(6.0, max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1)))


def wait_until(condition: Callable[[], bool], timeout_s: float, poll_s: float = 0.03) -> bool:
    """Poll a condition; False when the time (longer on a busy machine) is over."""
    deadline = time.monotonic() + patience(timeout_s)
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(poll_s)
    return True


def locked_now(fd: int) -> bool:
    """Take the lock on an open file (flock(2)); False when somebody else holds it."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def start_time(pid: int) -> int | None:
    """Start of a process in clock ticks after boot; None when it is gone or a zombie.

    Together with the pid it names one process for ever: proc(5), field 22 of ``stat``.
    """
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (OSError, ValueError):
        return None
    return None if fields[0] in {"Z", "X"} else int(fields[19])


def state_letter(pid: int) -> str | None:
    """``R``, ``S``, ``T`` (stopped) …; None when the process is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        return None


def parent(pid: int) -> int | None:
    """Its parent's pid; None when the process is gone."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except (OSError, IndexError):
        return None


def inner_pid(pid: int) -> int:
    """The pid that a process has in its own (innermost) pid namespace."""
    try:
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("NSpid:"):
                return int(line.split()[-1])
    except OSError:
        pass
    return pid


def namespace_of(pid: int | str, kind: str) -> str | None:
    """Identity of a namespace of a process (``mnt``, ``uts``, ``pid``); None when unreadable."""
    try:
        return os.readlink(f"/proc/{pid}/ns/{kind}")  # noqa: PTH115  # a name, not a path
    except OSError:
        return None


def all_pids() -> list[int]:
    """Every process that this process can see."""
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]  # noqa: PTH208  # names are wanted


def tail(path: Path, lines: int = 15) -> str:
    """The end of a log file; empty when there is none."""
    try:
        return "\n".join(path.read_text(errors="replace").splitlines()[-lines:])
    except OSError:
        return ""


def kill(pid: int, number: int) -> None:
    """Send a signal; a process that is gone is no error."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)
