"""One child process with a timeout that kills its whole process group."""

import contextlib
import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from typing import NamedTuple

_DRAIN_S = 2.0  # a killed group's pipes close at once, unless something escaped the group


class Finished(NamedTuple):
    """What the child left; ``timed_out`` means that it was killed by us."""

    returncode: int
    stdout: bytes
    stderr: bytes
    timed_out: bool


def run_process(
    argv: Sequence[str],
    *,
    stdin: bytes | None,
    env: Mapping[str, str],
    cwd: str | None,
    timeout_s: float,
) -> Finished:
    """Run to the end or to the timeout.

    Raises:
        OSError: the command cannot be started (FileNotFoundError: no such command, or no cwd).
    """
    child = subprocess.Popen(
        list(argv),
        stdin=subprocess.DEVNULL if stdin is None else subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=dict(env),
        cwd=cwd,
        start_new_session=True,
    )
    try:
        out, err = child.communicate(stdin, timeout=timeout_s)
    except subprocess.TimeoutExpired:
        _kill_group(child)
        out, err = b"", b""
        with contextlib.suppress(subprocess.TimeoutExpired, ValueError):
            out, err = child.communicate(timeout=_DRAIN_S)
        _close_pipes(child)
        return Finished(-signal.SIGKILL, out, err, timed_out=True)
    except BaseException:  # Ctrl-C and the like: leave no child behind
        _kill_group(child)
        child.wait()
        _close_pipes(child)
        raise
    code = child.returncode
    return Finished(128 - code if code < 0 else code, out, err, timed_out=False)


def _kill_group(child: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(child.pid, signal.SIGKILL)


def _close_pipes(child: subprocess.Popen[bytes]) -> None:
    for pipe in (child.stdin, child.stdout, child.stderr):
        if pipe is not None:
            with contextlib.suppress(OSError):
                pipe.close()
