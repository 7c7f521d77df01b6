"""Code at a site: each tree once below its own hash, and a checked copy in each run's directory.

::

    STATE_DIR/code/<sha256>/SHA256SUMS   the manifest; its own SHA-256 is the directory's name
    STATE_DIR/code/<sha256>/tree/        the files, read-only

A tree is unpacked beside its place, checked, and renamed: it is there whole or not at all, and of
two submits at once one wins and the other uses what is there. A run gets a copy (by reflink where
the file system can), so no job can change what another one starts from.
"""

import gzip
import hashlib
import io
import os
import secrets
import socket
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from hpcscale.code.tree import CodeTree, Entry
from hpcscale.errors import HpcscaleError, InvalidFileError, NotOursError
from hpcscale.slurm.transport import Transport
from hpcscale.transfer import SILENT, Meter, alone, send

SUMS = "SHA256SUMS"
KEEP_DAYS = 30
_MTIME = 946_684_800  # 2000: the same bytes for the same files, and no year that tools dislike
_TIMEOUT_S = 3600.0
_NOT_THERE, _DAMAGED, _NOT_OURS = 20, 21, 22

# $1 store, $2 hash: the manifest is the one that the name says, and the files are its
_CHECK = (
    'check() { echo "$1  $2" | sha256sum --check --status - && cd -- "$3" && '
    '{ ! grep -q \'^[^#]\' "$2" || sha256sum --check --status --strict "$2"; }; }; '
)
# $1 store, $2 hash, $3 the run's code directory
_USE = (
    'umask 077; d=$1/$2; [ -d "$d" ] || exit 20; '
    '[ -z "$(find "$1" "$d" -maxdepth 0 "(" ! -user "$(id -u)" -o -perm /022 ")" -print)" ] '
    '|| exit 22; touch -c -- "$d"; mkdir -p -- "$3" && '
    'cp -a --reflink=auto --remove-destination -- "$d/tree/." "$3/" && chmod -R u+w -- "$3" '
    f'|| exit 1; {_CHECK} check "$2" "$d/{SUMS}" "$3" || exit 21'
)
_OPEN = 'umask 077; [ ! -d "$1/$2" ] || exit 20; mkdir -p -- "$1"'
# $1 store, $2 hash, $3 archive, $4 nonce: unpack, check, rename; who comes second throws his away
_UNPACK = (
    f"umask 077; t=$1/.$2.$4; {_CHECK} "
    'mkdir -- "$t" && tar -xzf "$3" -C "$t" --no-same-owner || exit 1; '
    f'( check "$2" "$t/{SUMS}" "$t/tree" ); ok=$?; '
    'if [ "$ok" = 0 ]; then chmod -R a-w -- "$t/tree"; '
    'mv -T -- "$t" "$1/$2" 2> /dev/null || [ -d "$1/$2" ] || ok=1; fi; '
    'rm -f -- "$3"; if [ -d "$t" ]; then chmod -R u+w -- "$t"; rm -rf -- "$t"; fi; '
    '[ "$ok" = 0 ] || exit 21; '
    # what no job used for long, and what a killed submit left
    'find "$1" -mindepth 1 -maxdepth 1 -mtime "+$5" -exec chmod -R u+w "{}" ";" '
    '-exec rm -rf -- "{}" "+" 2> /dev/null; exit 0'
)
# $1 the damaged tree: out of the way by one rename
_DISCARD = 'mv -T -- "$1" "$1.$2.bad" && chmod -R u+w -- "$1.$2.bad" && rm -rf -- "$1.$2.bad"'


@dataclass(frozen=True, slots=True)
class Packed:
    """Code that is ready to be sent.

    Attributes:
        sha256: of the tree.
        archive: makes the archive, or finds it, when it is needed.
    """

    sha256: str
    archive: Callable[[], Path]


def pack(tree: CodeTree, cache: Path) -> Path:
    """Write the archive of a tree, once: ``<cache>/<sha256>.tar.gz``.

    Raises:
        InvalidFileError: a file was changed since the tree was read.
        HpcscaleError: the cache cannot be written.
    """
    assert tree.id.tree_sha256 is not None
    target = cache / f"{tree.id.tree_sha256}.tar.gz"
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}")
    try:
        if target.exists():
            os.utime(target)
            return target
        cache.mkdir(parents=True, exist_ok=True, mode=0o700)
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with (
            os.fdopen(fd, "wb") as file,
            gzip.GzipFile("", "wb", 1, file, mtime=0) as packed,
            tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as archive,
        ):
            _fill(archive, tree)
        temporary.replace(target)
    except OSError as exc:
        raise HpcscaleError(f"the code cannot be packed: {exc}", where=str(tree.root)) from exc
    finally:
        temporary.unlink(missing_ok=True)
    return target


def _fill(archive: tarfile.TarFile, tree: CodeTree) -> None:
    sums = tree.manifest()
    member = _member(SUMS, tarfile.REGTYPE)
    member.size = len(sums)
    archive.addfile(member, io.BytesIO(sums))
    archive.addfile(_member("tree", tarfile.DIRTYPE))
    parents: set[str] = set()
    for entry in tree.entries:
        for parent in reversed(PurePosixPath(entry.path).parents):
            if str(parent) not in parents and str(parent) != ".":
                parents.add(str(parent))
                archive.addfile(_member(f"tree/{parent}", tarfile.DIRTYPE))
        _add(archive, tree.root, entry)


def _add(archive: tarfile.TarFile, root: Path, entry: Entry) -> None:
    name = f"tree/{entry.path}"
    if entry.kind == "l":
        member = _member(name, tarfile.SYMTYPE)
        member.linkname = entry.value
        archive.addfile(member)
        return
    if entry.kind == "d":
        archive.addfile(_member(name, tarfile.DIRTYPE))
        return
    # O_NOFOLLOW: it was a file when the tree was read
    fd = os.open(root / entry.path, os.O_RDONLY | os.O_NOFOLLOW)
    with os.fdopen(fd, "rb") as source:
        reader = _Hashing(source)
        member = _member(name, tarfile.REGTYPE)
        member.size = entry.size
        if entry.kind == "x":
            member.mode = 0o700
        archive.addfile(member, reader)
        if reader.digest.hexdigest() != entry.value or source.read(1):
            raise InvalidFileError(
                "it was changed while the code was packed; nothing was submitted",
                where=str(root / entry.path),
                hint="submit again",
            )


def _member(name: str, kind: bytes) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type = kind
    member.mode = 0o700 if kind == tarfile.DIRTYPE else 0o600
    member.mtime = _MTIME
    return member


class _Hashing:
    def __init__(self, source: io.BufferedReader) -> None:
        self._source = source
        self.digest = hashlib.sha256()

    def read(self, size: int = -1) -> bytes:
        block = self._source.read(size)
        self.digest.update(block)
        return block


def place(
    transport: Transport, store: str, packed: Packed, target: str, meter: Meter = SILENT
) -> bool:
    """Make ``target`` a checked copy of the tree; send it first where the site lacks it.

    Args:
        transport: to the site.
        store: ``STATE_DIR/code`` there.
        packed: the tree.
        target: the run's code directory.
        meter: told how it goes on.

    Returns:
        Whether it had to be sent.

    Raises:
        NotOursError: others may write in the store.
        HpcscaleError: no room.
    """
    sent = False
    for _ in range(3):
        done = transport.run(
            ["/bin/sh", "-c", _USE, "sh", store, packed.sha256, target],
            env={"LC_ALL": "C"},
            timeout_s=_TIMEOUT_S,
        )
        if done.returncode == 0:
            return sent
        if done.returncode == _NOT_OURS:
            raise NotOursError(
                "the store of code is not yours alone: others could change what your jobs run",
                where=f"{transport.name}:{store}",
                hint=f"look who owns it; if it is yours: chmod -R go-w {store}",
            )
        if done.returncode == _DAMAGED:
            transport.run(
                ["/bin/sh", "-c", _DISCARD, "sh", f"{store}/{packed.sha256}", secrets.token_hex(4)]
            )
        elif done.returncode != _NOT_THERE:
            raise _failed(transport, target, done.stderr)
        with alone(f"{transport.name} {store} {packed.sha256}"):
            sent = _send(transport, store, packed, meter) or sent
    raise HpcscaleError(
        "the code was damaged on its way, three times",
        where=f"{transport.name}:{store}/{packed.sha256}",
        hint="is the file system there well? hpcscale site check",
    )


def _send(transport: Transport, store: str, packed: Packed, meter: Meter) -> bool:
    """Send and unpack; False when another process has just done it."""
    done = transport.run(["/bin/sh", "-c", _OPEN, "sh", store, packed.sha256])
    if done.returncode == _NOT_THERE:
        return False
    if done.returncode:
        raise _failed(transport, store, done.stderr)
    archive = packed.archive()
    meter.begin("code", archive.stat().st_size)
    nonce = secrets.token_hex(4)
    # one name for each machine: what was cut goes on there
    machine = hashlib.sha256(socket.gethostname().encode()).hexdigest()[:8]
    remote = f"{store}/.{packed.sha256}.{machine}.tar.gz"
    send(transport, archive, remote, meter=meter)
    done = transport.run(
        ["/bin/sh", "-c", _UNPACK, "sh", store, packed.sha256, remote, nonce, str(KEEP_DAYS)],
        env={"LC_ALL": "C"},
        timeout_s=_TIMEOUT_S,
    )
    if done.returncode not in {0, _DAMAGED}:
        raise _failed(transport, store, done.stderr)
    return True


def _failed(transport: Transport, where: str, text: str) -> HpcscaleError:
    return HpcscaleError(
        f"the code was not copied: {text.strip()[:300] or 'no reason given'}",
        where=f"{transport.name}:{where}",
        hint="is there room? hpcscale site check",
    )
