"""What ssh transports share: one command line for any login shell, and files through commands.

The login shell may be bash, zsh, tcsh or fish, and its start-up files may export anything. So it is
given one ``exec /bin/sh -c …`` of single-quoted words. Quotes do not mean the same everywhere: in
tcsh a newline ends them and ``!`` acts inside them, in fish a backslash escapes them. A line that
holds one of these goes as base64, which no shell reads anything into. That sh drops Slurm's
variables before it starts the command.
"""

import abc
import base64
import re
import secrets
import shlex
import signal
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, NoReturn

from hpcscale.errors import HpcscaleError, NotFoundError, UnreachableError
from hpcscale.slurm.transport import (
    DEFAULT_TIMEOUT_S,
    KEPT_VARIABLE,
    STRIPPED_PREFIXES,
    Completed,
    input_bytes,
    mode_of,
    open_here,
    require_sendable,
)

GRACE_S = 8.0  # the answer to a killed command's end may need this much more
_KILL_AFTER_S = 3
_MISREAD = re.compile(r"[\n\r!]|\\")  # inside single quotes, by tcsh or fish
_NO_CWD = 119

_UNSET = (
    "unset HPCSCALE_NONE $(awk 'BEGIN{for(v in ENVIRON){"
    f'if(v=="{KEPT_VARIABLE}")continue;'
    f"if(v~/^({'|'.join(STRIPPED_PREFIXES)})[A-Za-z0-9_]*$/)print v}}}}' </dev/null)"
)
_SCRIPT = (
    f'{_UNSET}; hpcscale_mark=$1; if [ -n "$1" ]; then echo "$1" >&2; fi; shift; '
    f'if [ -n "$1" ]; then cd -- "$1" || exit {_NO_CWD}; fi; '
    # no exec: this sh turns a death by signal into a number, which ssh(1) cannot tell from a cut
    f'shift; timeout -k {_KILL_AFTER_S} "$@"; set -- "$?"; '
    'if [ -n "$hpcscale_mark" ] && [ "$1" = 255 ]; then echo "$hpcscale_mark" >&2; fi; exit "$1"'
)


class RawResult(NamedTuple):
    """A finished remote command, undecoded."""

    returncode: int
    stdout: bytes
    stderr: bytes


def command_line(
    argv: Sequence[str],
    env: Mapping[str, str] | None,
    cwd: str | None,
    timeout_s: float,
    *,
    mark: str = "",
) -> str:
    """The one line that the login shell gets; a ``mark`` is said on stderr when it has arrived.

    And once more when the command itself ends with 255.
    """
    require_sendable(argv, env, cwd)
    settings = [f"{name}={value}" for name, value in (env or {}).items()]
    runner = [f"{timeout_s:g}", "env", *settings] if settings else [f"{timeout_s:g}"]
    line = shlex.join(["/bin/sh", "-c", _SCRIPT, "sh", mark, cwd or "", *runner, *argv])
    if _MISREAD.search(line):
        data = line.encode("utf-8", "surrogateescape")
        coded = base64.b64encode(data).decode("ascii")
        line = shlex.join(["/bin/sh", "-c", f'eval "exec $(echo {coded} | base64 -d)"'])
    return f"exec {line}"


def shown_name(host: str, port: int, user: str | None) -> str:
    """``user@host:port`` for messages; 22 is left out, since ``~/.ssh/config`` may change it."""
    name = f"{user}@{host}" if user else host
    return name if port == 22 else f"{name}:{port}"


class RemoteShell(abc.ABC):
    """Base of the ssh transports: ``run`` and files on top of ``_exec``."""

    name: str
    is_local = False
    _mark = ""  # said on stderr by a command that has arrived, where that is not known otherwise

    @abc.abstractmethod
    def _exec(self, line: str, stdin: bytes | None, timeout_s: float) -> RawResult:
        """Send one line to the login shell and wait for its end.

        Raises:
            NotSentError: it was not sent.
            UnreachableError: it may have been, but there is no answer.
        """

    def run(
        self,
        argv: Sequence[str],
        *,
        stdin: str | bytes | None = None,
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
        timeout_s: float = DEFAULT_TIMEOUT_S,
    ) -> Completed:
        """Run one command there; ``timeout(1)`` there kills it even when the connection is cut."""
        data = input_bytes(stdin)
        raw = self._run_raw(argv, data, env, cwd, timeout_s)
        return Completed(
            tuple(argv),
            raw.returncode,
            raw.stdout.decode("utf-8", "replace"),
            raw.stderr.decode("utf-8", "replace"),
        )

    def _run_raw(
        self,
        argv: Sequence[str],
        stdin: bytes | None,
        env: Mapping[str, str] | None,
        cwd: str | None,
        timeout_s: float,
    ) -> RawResult:
        began = time.monotonic()
        line = command_line(argv, env, cwd, timeout_s, mark=self._mark)
        raw = self._exec(line, stdin, timeout_s + _KILL_AFTER_S + GRACE_S)
        if raw.returncode == _NO_CWD and cwd:
            raise NotFoundError(f"directory {cwd} does not exist on {self.name}")
        ended_by_timeout = raw.returncode in {124, 128 + signal.SIGKILL}
        if ended_by_timeout and time.monotonic() - began >= timeout_s:
            raise UnreachableError(
                f"{argv[0]} gave no answer within {timeout_s:g} s and was killed",
                where=self.name,
                hint="try again; a Slurm command may wait for its controller: scontrol ping",
            )
        return raw

    # ---- files ----

    def put_file(self, local: Path, remote: str, *, mode: int | None = None) -> None:
        """Copy a file by a temporary name and a rename."""
        with open_here(local) as source:
            wanted = mode_of(source) if mode is None else mode
            data = source.read()
        self.put_bytes(data, remote, mode=wanted)

    def put_bytes(self, data: bytes, remote: str, *, mode: int = 0o600) -> None:
        """Write a file by a temporary name and a rename; its mode is set before its content."""
        script = (
            # where the connection is cut the input just ends: what is not whole takes no name
            'umask 077; : > "$1" && chmod "$3" "$1" && cat > "$1" && '
            '{ [ "$(wc -c < "$1")" -eq "$4" ] || { echo "a part arrived" >&2; false; }; } && '
            'mv -fT -- "$1" "$2" || { rm -f -- "$1"; exit 1; }'
        )
        temporary = f"{remote}.{secrets.token_hex(4)}.tmp"
        argv = ["/bin/sh", "-c", script, "sh", temporary, remote, f"{mode:o}", str(len(data))]
        raw = self._run_raw(argv, data, {"LC_ALL": "C"}, None, _file_timeout_s(len(data)))
        if raw.returncode != 0:
            self._file_failed(f"cannot write {remote}", raw)

    def get_file(self, remote: str, local: Path) -> None:
        """Copy a file to ``local``, by a temporary name and a rename."""
        data = self.read_bytes(remote)
        temporary = local.with_name(f"{local.name}.{secrets.token_hex(4)}.tmp")
        try:
            temporary.write_bytes(data)
            temporary.replace(local)
        except OSError as exc:
            temporary.unlink(missing_ok=True)
            raise HpcscaleError(f"cannot write {local}: {exc.strerror}") from exc

    def read_bytes(self, remote: str, *, offset: int = 0, limit: int | None = None) -> bytes:
        """Bytes ``offset`` up to ``offset + limit`` of a file."""
        script = 'exec < "$1" || exit 1; tail -c "+$2"'
        words = ["sh", remote, str(offset + 1)]
        if limit is not None:
            script += ' | head -c "$3"'
            words.append(str(limit))
        argv = ["/bin/sh", "-c", script, *words]
        raw = self._run_raw(argv, None, {"LC_ALL": "C"}, None, _file_timeout_s(0))
        if raw.returncode != 0:
            self._file_failed(f"cannot read {remote}", raw)
        return raw.stdout

    @abc.abstractmethod
    def close(self) -> None:
        """Drop connections; the next use opens others."""

    def _file_failed(self, what: str, raw: RawResult) -> NoReturn:
        text = raw.stderr.decode("utf-8", "replace").strip().splitlines()
        reason = text[0] if text else f"exit code {raw.returncode}"
        missing = "No such file" in reason or "nonexistent" in reason or "cannot open" in reason
        kind = NotFoundError if missing else HpcscaleError
        raise kind(f"{what}: {reason.rpartition(': ')[2]}", where=self.name)


def _file_timeout_s(size: int) -> float:
    """Half a minute, and a second for each 256 KiB."""
    return max(120.0, DEFAULT_TIMEOUT_S + size / 262_144)
