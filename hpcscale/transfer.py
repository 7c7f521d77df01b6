"""One file between here and a site: whole or not at all, resumed where it was cut, then checked.

Small files go in one piece. Larger ones go in blocks to a partial file beside their place; when the
connection is cut, the next try (of this process or of the next one) goes on at its end, and SHA-256
over the whole file decides whether it takes its place.
"""

import contextlib
import fcntl
import hashlib
import os
import posixpath
import secrets
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol, TypeVar

from hpcscale.errors import HpcscaleError, NotFoundError, UnreachableError
from hpcscale.settings import state_dir
from hpcscale.slurm.transport import Transport, open_here

SMALL_BYTES = 4 * 1024**2
BLOCK_BYTES = 16 * 1024**2
_TRIES = 4
_BACKOFF_S = 1.0
_TIMEOUT_S = 3600.0
_C = {"LC_ALL": "C"}
_AT_OTHER_SIZE, _OTHER_CONTENT = 30, 31
# $1 partial file, $2 its size as we know it; standard input is the next block
_APPEND = (
    'umask 077; [ "$(stat -c %s -- "$1" 2> /dev/null || echo 0)" = "$2" ] || exit 30; cat >> "$1"'
)
# $1 partial file, $2 its place, $3 SHA-256, $4 mode, $5 time of its last change
_FINISH = (
    'echo "$3  $1" | sha256sum --check --status - || exit 31; '
    'chmod "$4" -- "$1" && touch -c -d "@$5" -- "$1" && mv -fT -- "$1" "$2"'
)
_T = TypeVar("_T")


class Meter(Protocol):
    """Is told how a copy goes on."""

    def begin(self, what: str, total_bytes: int) -> None:
        """So much is going to be copied now."""

    def advance(self, size: int) -> None:
        """So many bytes more were copied."""


class Silent:
    """A meter that nobody looks at."""

    def begin(self, what: str, total_bytes: int) -> None:
        """Nothing."""

    def advance(self, size: int) -> None:
        """Nothing."""


SILENT = Silent()


@contextlib.contextmanager
def alone(what: str) -> Iterator[None]:
    """One process of this machine at a time copies this; the others wait, and find it there."""
    directory = state_dir() / "locks"
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    name = hashlib.sha256(what.encode("utf-8", "surrogateescape")).hexdigest()[:24]
    fd = os.open(directory / name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def file_sha256(path: Path) -> str:
    """SHA-256 of a local file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def send(
    transport: Transport, local: Path, remote: str, *, mode: int = 0o600, meter: Meter = SILENT
) -> None:
    """Copy one file there. Its time of change goes along; its place is taken by one rename.

    Raises:
        UnreachableError: cut, and not mended by some tries; call again, it goes on from there.
        NotFoundError: it is not here.
        HpcscaleError: no room there, or it cannot be read here or was changed meanwhile.
    """
    with open_here(local) as source:
        found = os.fstat(source.fileno())
    if found.st_size <= SMALL_BYTES or transport.is_local:
        transport.put_file(local, remote, mode=mode)
        _run(transport, ["touch", "-c", "-d", f"@{_stamp(found.st_mtime_ns)}", "--", remote])
        meter.advance(found.st_size)
        return
    part = _part_name(remote, socket.gethostname(), str(local), found.st_size, found.st_mtime_ns)
    digest = file_sha256(local)
    for last in (False, True):
        _append_all(transport, local, part, found.st_size, meter)
        argv = ["/bin/sh", "-c", _FINISH, "sh", part, remote, digest, f"{mode:o}"]
        argv.append(_stamp(found.st_mtime_ns))
        done = _again(lambda: transport.run(argv, env=_C, timeout_s=_TIMEOUT_S))  # noqa: B023 # called at once
        if done.returncode == 0:
            return
        if done.returncode != _OTHER_CONTENT:
            raise _failed(transport, remote, done.stderr)
        transport.run(["rm", "-f", "--", part])
        if last:
            raise HpcscaleError(
                "it did not arrive as it is here",
                where=str(local),
                hint="was it written to meanwhile? Try again",
            )
        meter.advance(-found.st_size)


def _append_all(transport: Transport, local: Path, part: str, size: int, meter: Meter) -> None:
    told = 0
    failures = 0
    with local.open("rb") as source:
        while True:
            try:
                offset = _remote_size(transport, part)
                if offset > size:
                    transport.run(["rm", "-f", "--", part])
                    offset = 0
                meter.advance(offset - told)
                told = offset
                while told < size:
                    source.seek(told)
                    block = source.read(min(BLOCK_BYTES, size - told))
                    if not block:
                        raise HpcscaleError(
                            "it became shorter while it was copied", where=str(local)
                        )
                    done = transport.run(
                        ["/bin/sh", "-c", _APPEND, "sh", part, str(told)],
                        stdin=block,
                        env=_C,
                        timeout_s=_TIMEOUT_S,
                    )
                    if done.returncode == _AT_OTHER_SIZE:
                        break  # what was cut had arrived after all: look again
                    if done.returncode:
                        with contextlib.suppress(HpcscaleError):
                            transport.run(["rm", "-f", "--", part])  # the room is needed
                        raise _failed(transport, part, done.stderr)
                    told += len(block)
                    meter.advance(len(block))
                    failures = 0
                else:
                    return
            except UnreachableError as exc:
                failures += 1
                if failures >= _TRIES or not exc.transient:
                    raise
                time.sleep(_BACKOFF_S * 2 ** (failures - 1))


def receive(
    transport: Transport,
    remote: str,
    local: Path,
    *,
    size: int,
    changed: str,
    meter: Meter = SILENT,
) -> None:
    """Copy one file here, at most ``size`` bytes of it; its place is taken by one rename.

    Args:
        transport: of the site.
        remote: the file there.
        local: its place here; the directory exists.
        size: bytes, as it was listed.
        changed: time of its last change, seconds since 1970, as it was listed.
        meter: told how it goes on.

    Raises:
        NotFoundError: it is not there any more.
        UnreachableError: cut, and not mended by some tries; call again, it goes on from there.
        HpcscaleError: it cannot be written, or is not what it was when it was listed.
    """
    try:
        if size <= SMALL_BYTES:
            _receive_small(transport, remote, local, size)
            meter.advance(size)
        else:
            part = Path(_part_name(str(local), transport.name, remote, size, changed))
            with _only_one(part) as file:
                _receive_blocks(transport, remote, file, size, meter)
                if file_sha256(part) != _remote_sha256(transport, remote, size):
                    part.unlink()
                    raise HpcscaleError("it was changed while it was copied; fetch it again")
                part.replace(local)
        os.utime(local, ns=(time.time_ns(), int(float(changed) * 1e9)))
    except OSError as exc:
        raise HpcscaleError(f"cannot be written: {exc.strerror}", where=str(local)) from exc


def _receive_small(transport: Transport, remote: str, local: Path, size: int) -> None:
    data = _again(lambda: transport.read_bytes(remote, limit=size)) if size else b""
    if len(data) != size:
        raise HpcscaleError("it was changed while it was copied; fetch it again")
    write_new(local, data)


def write_new(local: Path, data: bytes) -> None:
    """Write a small file, by a temporary name and a rename; a link in its place is replaced."""
    temporary = local.with_name(f".{local.name[:200]}.{secrets.token_hex(4)}.tmp")
    try:
        with temporary.open("xb") as file:
            file.write(data)
        temporary.replace(local)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def _only_one(part: Path) -> Iterator[int]:
    """The partial file, open to append; one process at a time has it."""
    fd = os.open(part, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise HpcscaleError("another process is copying it") from None
        yield fd
    finally:
        os.close(fd)


def _receive_blocks(transport: Transport, remote: str, fd: int, size: int, meter: Meter) -> None:
    offset = os.fstat(fd).st_size
    if offset > size:
        os.ftruncate(fd, 0)
        offset = 0
    meter.advance(offset)
    while offset < size:
        start, want = offset, min(BLOCK_BYTES, size - offset)
        block = _again(lambda: transport.read_bytes(remote, offset=start, limit=want))  # noqa: B023 # called at once
        if not block or len(block) > want:
            raise HpcscaleError("it was changed while it was copied; fetch it again")
        os.pwrite(fd, block, offset)
        offset += len(block)
        meter.advance(len(block))


def _again(act: Callable[[], _T]) -> _T:
    """Do it, and again when the connection is cut: some times, later and later."""
    for attempt in range(_TRIES - 1):
        try:
            return act()
        except UnreachableError as exc:
            if not exc.transient:
                raise
        time.sleep(_BACKOFF_S * 2**attempt)
    return act()


def _remote_size(transport: Transport, path: str) -> int:
    done = transport.run(["stat", "-c", "%s", "--", path], env=_C)
    return int(done.stdout) if done.returncode == 0 and done.stdout.strip().isdigit() else 0


def _remote_sha256(transport: Transport, path: str, size: int) -> str:
    """Of as much as was listed: a log that grows meanwhile is no damage."""
    argv = ["/bin/sh", "-c", 'head -c "$2" < "$1" | sha256sum', "sh", path, str(size)]
    done = _again(lambda: transport.run(argv, env=_C, timeout_s=_TIMEOUT_S))
    if done.returncode:
        raise NotFoundError(f"cannot be read: {done.stderr.strip()[:200]}", where=path)
    return done.stdout[:64]


def _run(transport: Transport, argv: list[str]) -> None:
    done = transport.run(argv, env=_C)
    if done.returncode:
        raise _failed(transport, argv[-1], done.stderr)


def _part_name(path: str, *version: object) -> str:
    """The partial file's name: another version of the file has another one."""
    which = hashlib.sha256("\0".join(map(str, version)).encode("utf-8", "surrogateescape"))
    directory, name = posixpath.split(path)
    return posixpath.join(directory, f".{name[:200]}.{which.hexdigest()[:12]}.part")


def _stamp(mtime_ns: int) -> str:
    """Seconds with nine decimals, as touch(1) and find(1) have them."""
    return f"{mtime_ns // 10**9}.{mtime_ns % 10**9:09d}"


def _failed(transport: Transport, where: str, text: str) -> HpcscaleError:
    return HpcscaleError(
        f"it was not copied: {text.strip()[:300] or 'no reason given'}",
        where=f"{transport.name}:{where}",
        hint="is there room? hpcscale site check",
    )
