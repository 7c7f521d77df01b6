"""``LocalTransport``: Slurm's commands and the files are on this machine."""

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

from hpcscale.errors import HpcscaleError, NotFoundError, UnreachableError
from hpcscale.slurm._process import run_process
from hpcscale.slurm.transport import (
    DEFAULT_TIMEOUT_S,
    Completed,
    input_bytes,
    mode_of,
    open_here,
    require_sendable,
    slurm_environment,
)


class LocalTransport:
    """Runs commands here. See ``hpcscale.slurm.transport.Transport`` for the contract."""

    name = "this machine"
    is_local = True
    at_once = True  # several threads may run commands here

    def run(
        self,
        argv: Sequence[str],
        *,
        stdin: str | bytes | None = None,
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
        timeout_s: float = DEFAULT_TIMEOUT_S,
    ) -> Completed:
        """Run one command in its own process group."""
        require_sendable(argv, env, cwd)
        if cwd is not None and not os.path.isdir(cwd):  # noqa: PTH112  # no Path on the hot path
            raise NotFoundError(f"directory {cwd} does not exist on {self.name}")
        data = input_bytes(stdin)
        try:
            done = run_process(
                argv, stdin=data, env=slurm_environment(env), cwd=cwd, timeout_s=timeout_s
            )
        except FileNotFoundError:
            return Completed(tuple(argv), 127, "", f"{argv[0]}: command not found\n")
        except PermissionError:
            return Completed(tuple(argv), 126, "", f"{argv[0]}: not executable\n")
        except OSError as exc:
            raise HpcscaleError(f"cannot run {argv[0]}: {exc.strerror}", where=self.name) from exc
        if done.timed_out:
            raise UnreachableError(
                f"{Path(argv[0]).name} gave no answer within {timeout_s:g} s and was killed",
                where=self.name,
                hint="try again; a Slurm command may wait for its controller: scontrol ping",
            )
        return Completed(
            tuple(argv),
            done.returncode,
            done.stdout.decode("utf-8", "replace"),
            done.stderr.decode("utf-8", "replace"),
        )

    def put_file(self, local: Path, remote: str, *, mode: int | None = None) -> None:
        """Copy a file by a temporary name and a rename."""
        import shutil  # takes three compression libraries along: only where it is used

        with (
            open_here(local) as source,
            _replacing(remote, mode_of(source) if mode is None else mode) as target,
        ):
            shutil.copyfileobj(source, target)

    def put_bytes(self, data: bytes, remote: str, *, mode: int = 0o600) -> None:
        """Write a file by a temporary name and a rename; its mode is set before its content."""
        with _replacing(remote, mode) as target:
            target.write(data)

    def get_file(self, remote: str, local: Path) -> None:
        """Copy a file to ``local``, by a temporary name and a rename."""
        import shutil

        with (
            _reading(remote),
            open(remote, "rb") as source,  # noqa: PTH123  # a text path
            _replacing(str(local), os.fstat(source.fileno()).st_mode & 0o777) as target,
        ):
            shutil.copyfileobj(source, target)

    def read_bytes(self, remote: str, *, offset: int = 0, limit: int | None = None) -> bytes:
        """Bytes ``offset`` up to ``offset + limit`` of a file."""
        with _reading(remote), open(remote, "rb") as source:  # noqa: PTH123  # a text path
            source.seek(offset)
            return source.read(-1 if limit is None else limit)

    def close(self) -> None:
        """Nothing is held open."""


@contextlib.contextmanager
def _reading(path: str) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as exc:
        raise NotFoundError(f"{exc.filename or path} does not exist") from exc
    except OSError as exc:
        raise HpcscaleError(f"cannot read {path}: {exc.strerror}") from exc


@contextlib.contextmanager
def _replacing(path: str, mode: int) -> Iterator[BinaryIO]:
    """A file open for writing that takes the place of ``path`` only when all went well."""
    temporary = f"{path}.{os.urandom(4).hex()}.tmp"
    try:
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            with os.fdopen(fd, "wb") as target:
                os.fchmod(fd, mode)
                yield target
            os.replace(temporary, path)  # noqa: PTH105  # a text path
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temporary)  # noqa: PTH108  # a text path
            raise
    except FileNotFoundError as exc:
        raise NotFoundError(f"{Path(path).parent} does not exist") from exc
    except OSError as exc:
        raise HpcscaleError(f"cannot write {path}: {exc.strerror}") from exc
