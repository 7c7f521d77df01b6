"""Where does an argv run? ``Transport`` is one of hpcscale's two seams.

Implementations: ``local`` (this machine), ``ssh`` (paramiko) and ``openssh`` (the user's own ssh
and ControlMaster, for MFA sites). All pass the same contract tests.
"""

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol

from hpcscale.errors import HpcscaleError, NotFoundError

DEFAULT_TIMEOUT_S = 30.0


@dataclass(frozen=True, slots=True)
class Completed:
    """A finished command.

    Attributes:
        argv: what was run.
        returncode: its exit code; 128+n for a signal n.
        stdout: decoded as UTF-8, undecodable bytes replaced.
        stderr: likewise.
    """

    argv: tuple[str, ...]
    returncode: int
    stdout: str
    stderr: str


class Transport(Protocol):
    """Runs argv lists at a place and moves files to and from it.

    Every method raises ``UnreachableError`` when the place does not answer within the timeout; the
    command's process group is killed then, and its effects are unknown.
    """

    name: str  # for messages: "this machine" or "user@host:port"
    is_local: bool  # whether paths here and there are the same file system

    def run(
        self,
        argv: Sequence[str],
        *,
        stdin: str | bytes | None = None,
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
        timeout_s: float = DEFAULT_TIMEOUT_S,
    ) -> Completed:
        """Run one command; a non-zero exit is returned, not raised.

        A command that does not exist gives 127, as in a shell.

        Args:
            argv: the command; a name without a slash is looked up on the PATH there.
            stdin: sent to it; None is an empty input.
            env: variables to add (visible to others on that machine: no secrets). The place's own
                ``SBATCH_*``, ``SQUEUE_*``, ``SLURM_*`` … never reach the command, but for
                ``SLURM_CONF``.
            cwd: directory to start in; default this process's own, or the remote home.
            timeout_s: the whole process group is killed after it.

        Raises:
            NotSentError: the place could not be reached: the command did not run.
            UnreachableError: no answer in time; whether it ran is unknown.
            NotFoundError: ``cwd`` does not exist.
        """

    def put_file(self, local: Path, remote: str, *, mode: int | None = None) -> None:
        """Copy one file there, by a temporary name and a rename."""

    def put_bytes(self, data: bytes, remote: str, *, mode: int = 0o600) -> None:
        """Write one small file there, by a temporary name and a rename, never readable wider."""

    def get_file(self, remote: str, local: Path) -> None:
        """Copy one file here. Raises NotFoundError when it does not exist."""

    def read_bytes(self, remote: str, *, offset: int = 0, limit: int | None = None) -> bytes:
        """Part of a file there. Raises NotFoundError when it does not exist."""

    def close(self) -> None:
        """Drop connections."""


_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def require_sendable(
    argv: Sequence[str], env: Mapping[str, str] | None = None, cwd: str | None = None
) -> None:
    """Refuse what no command line can hold: nothing may be cut off or change its meaning.

    Raises:
        HpcscaleError: a NUL in a word, or a variable's name that is none.
    """
    for word in (*argv, *(env or {}).values(), cwd or ""):
        if "\0" in word:
            raise HpcscaleError(
                f"a NUL byte in {word!r}: no command can be given that",
                hint="remove it; job names, paths and values cannot hold NUL",
            )
    for name in env or {}:
        if _NAME.fullmatch(name) is None:
            raise HpcscaleError(
                f"{name!r} is no name of an environment variable",
                hint="letters, digits and _ only",
            )


def open_here(local: Path) -> BinaryIO:
    """A file of this machine that is to be copied there.

    Raises:
        NotFoundError: it is not here (any more).
        HpcscaleError: it cannot be read.
    """
    try:
        return local.open("rb")
    except FileNotFoundError as exc:
        raise NotFoundError(f"{local} does not exist") from exc
    except OSError as exc:
        raise HpcscaleError(f"cannot read {local}: {exc.strerror}") from exc


def mode_of(source: BinaryIO) -> int:
    """Permissions of an open file."""
    return os.fstat(source.fileno()).st_mode & 0o777


def input_bytes(stdin: str | bytes | None) -> bytes | None:
    """What a command gets on standard input; undecodable bytes of file names pass unharmed."""
    return stdin.encode("utf-8", "surrogateescape") if isinstance(stdin, str) else stdin


STRIPPED_PREFIXES = (
    "SBATCH_",
    "SQUEUE_",
    "SINFO_",
    "SALLOC_",
    "SRUN_",
    "SLURM_",
    "SACCT_",
    "SCONTROL_",
    "SCANCEL_",
    "SPRIO_",
    "SSHARE_",
)
KEPT_VARIABLE = "SLURM_CONF"


def slurm_environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """This process's environment without what would change Slurm's commands behind our back.

    ``SBATCH_PARTITION`` in somebody's .bashrc would otherwise override the script's directives
    (sbatch(1), INPUT ENVIRONMENT VARIABLES). Nothing is added but ``extra``: sbatch hands its
    environment on to jobs.
    """
    env = {
        name: value
        for name, value in os.environ.items()
        if name == KEPT_VARIABLE or not name.startswith(STRIPPED_PREFIXES)
    }
    env.update(extra or {})
    return env
