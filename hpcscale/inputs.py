"""Large inputs at a site: kept there, brought up to date by what changed, linked into each run.

::

    STATE_DIR/inputs/<key>/data   a file or a directory, as it is on this machine

A file is copied again when its size or its time of change differs, and always to a new file that
takes the old one's name: a run that was linked to the old one keeps it. Small inputs are copied
whole, straight into the run's directory (``hpcscale.staging``).
"""

import contextlib
import hashlib
import os
import re
import secrets
import socket
import stat
import tarfile
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from hpcscale.errors import HpcscaleError, InvalidFileError, NotOursError
from hpcscale.fetching import list_tree
from hpcscale.slurm.transport import Transport
from hpcscale.transfer import SILENT, SMALL_BYTES, Meter, alone, send

LARGE_BYTES = 16 * 1024**2
KEEP_DAYS = 30
PART = re.compile(r"(?:^|/)\.[^/]*\.[0-9a-f]{12}\.part$")
FIND_PART = r".*/\.[^/]*\.[0-9a-f]\{12\}\.part"
_BATCH_BYTES = 64 * 1024**2
_TIMEOUT_S = 3600.0
_C = {"LC_ALL": "C"}
# $1 the kept copy, $2 its place in the run; $3 link or copy
_USE = (
    'umask 077; touch -c -- "${1%/*}"; mkdir -p -- "${2%/*}"; rm -rf -- "$2"; '
    'if [ "$3" = link ] && cp -al -- "$1" "$2" 2> /dev/null; then exit 0; fi; '
    'rm -rf -- "$2"; cp -a --reflink=auto -- "$1" "$2" && chmod -R u+w -- "$2"'
)
_OPEN = (
    'umask 077; mkdir -p -- "$2" && '
    'find -H "$1" "$2" -maxdepth 0 "(" ! -user "$(id -u)" -o -perm /022 ")" -print; '
    'find "$1" -mindepth 1 -maxdepth 1 -mtime "+$3" ! -path "$2" -exec rm -rf -- "{}" "+" '
    "2> /dev/null; exit 0"
)
_REMOVE = 'cd -- "$1" && xargs -0 -r rm -rf --'


@dataclass(frozen=True, slots=True)
class Item:
    """One thing below an input.

    Attributes:
        path: relative; empty for an input that is one file.
        kind: ``f``, ``d`` or ``l``.
    """

    path: str
    kind: str
    size: int = 0
    mtime_ns: int = 0


def read_items(root: Path, never: frozenset[Path]) -> list[Item]:
    """Files, links and directories of an input, sorted; sockets and the like are no data.

    What vanishes while it is listed is left out.

    Raises:
        InvalidFileError: a link leads out of the directory, or a directory cannot be read.
    """
    if not root.is_dir():
        found = root.stat()
        return [Item("", "f", found.st_size, found.st_mtime_ns)]
    real_root = root.resolve()
    items: list[Item] = []
    for directory, names, files in os.walk(root, onerror=_not_listed):
        names.sort()
        here = Path(directory)
        for name in [*names, *files]:
            path = here / name
            below = str(path.relative_to(root))
            if never and real_root / below in never:
                continue
            try:
                found = path.lstat()
            except FileNotFoundError:
                continue
            if stat.S_ISLNK(found.st_mode):
                # Never followed out of the tree: a link in a cloned repository may point at a key.
                if not path.resolve().is_relative_to(real_root):
                    raise InvalidFileError(
                        f"a link leads out of the directory, to {path.resolve()}",
                        where=str(path),
                        hint="name what it points to as an input of its own, or copy it in",
                    )
                items.append(Item(below, "l", 0, found.st_mtime_ns))
            elif stat.S_ISDIR(found.st_mode):
                items.append(Item(below, "d"))
            elif stat.S_ISREG(found.st_mode):
                items.append(Item(below, "f", found.st_size, found.st_mtime_ns))
    return sorted(items, key=lambda item: item.path)


def _not_listed(exc: OSError) -> None:
    """``os.walk`` would pass over a directory that it cannot read: the job would lack it."""
    if not isinstance(exc, FileNotFoundError):
        raise InvalidFileError(
            f"a directory of an input cannot be read: {exc.strerror}",
            where=str(exc.filename),
            hint="chmod u+rx it, or name as inputs what is to go along",
        ) from exc


def put_large(
    transport: Transport,
    store: str,
    local: Path,
    items: list[Item],
    target: str,
    *,
    link: bool,
    bring: Callable[[Item], None] | None = None,
    meter: Meter = SILENT,
) -> int:
    """Bring the kept copy of an input up to date, and link it (or copy it) into a run.

    Args:
        transport: to the site.
        store: ``STATE_DIR/inputs`` there.
        local: the input here.
        items: from ``read_items``.
        target: its place in the run's directory.
        link: hard links to read-only files; False for what the job will write.
        bring: makes an item that must be sent be there below ``local``.
        meter: told how it goes on.

    Returns:
        Bytes that had to be sent.

    Raises:
        UnreachableError: cut; call again, it goes on from there.
        HpcscaleError: no room there, or it cannot be read here.
    """
    key = hashlib.sha256(f"{socket.gethostname()}\0{local}".encode("utf-8", "surrogateescape"))
    name = f"{key.hexdigest()[:24]}"
    kept = f"{store}/{name}"
    with alone(f"{transport.name}-{name}"):
        _open_store(transport, store, kept)
        data = f"{kept}/data"
        single = len(items) == 1 and not items[0].path
        needed = _compare(transport, data, items, single=single)
        size = sum(item.size for item in needed)
        meter.begin("copied", size)
        if bring is not None:
            for item in needed:
                bring(item)
        _send(transport, local, data, needed, meter, single=single)
        if any(item.size > SMALL_BYTES for item in items) and not single:
            transport.run(["find", data, "-regex", FIND_PART, "-delete"], env=_C)
        done = transport.run(
            ["/bin/sh", "-c", _USE, "sh", data, target, "link" if link else "copy"],
            env=_C,
            timeout_s=_TIMEOUT_S,
        )
        if done.returncode:
            raise _failed(transport, target, done.stderr)
    return size


def _open_store(transport: Transport, store: str, kept: str) -> None:
    done = transport.run(
        ["/bin/sh", "-c", _OPEN, "sh", store, kept, str(KEEP_DAYS)], env=_C, timeout_s=_TIMEOUT_S
    )
    if done.returncode:
        raise _failed(transport, kept, done.stderr)
    if done.stdout.strip():
        bad = done.stdout.splitlines()[0]
        raise NotOursError(
            "it is not yours alone to write: others could change what your jobs read",
            where=f"{transport.name}:{bad}",
            hint=f"chmod go-w {bad}",
        )


def _compare(transport: Transport, data: str, items: list[Item], *, single: bool) -> list[Item]:
    """What must be sent; what is there and not here is removed."""
    there = {e.name: e for e in list_tree(transport, data)}
    if single != (there[""].kind == "f" if "" in there else single):
        transport.run(["rm", "-rf", "--", data], timeout_s=_TIMEOUT_S)
        there = {}
    here = {item.path for item in items}
    # what was cut goes on there
    if extra := [n for n in there if n and n not in here and not PART.search(n)]:
        done = transport.run(
            ["/bin/sh", "-c", _REMOVE, "sh", data],
            stdin="".join(f"{name}\0" for name in extra),
            env=_C,
            timeout_s=_TIMEOUT_S,
        )
        if done.returncode:
            raise _failed(transport, data, done.stderr)
    needed = []
    for item in items:
        known = there.get(item.path)
        if known is not None and known.kind == item.kind:
            changed = abs(float(known.changed) - item.mtime_ns / 1e9) >= 1e-3
            if item.kind == "d" or (not changed and (item.kind == "l" or known.size == item.size)):
                continue
        needed.append(item)
    return needed


def _send(
    transport: Transport,
    local: Path,
    data: str,
    needed: list[Item],
    meter: Meter,
    *,
    single: bool,
) -> None:
    if single:
        if needed:
            send(transport, local, data, mode=0o400, meter=meter)
        return
    done = transport.run(["mkdir", "-p", "-m", "700", "--", data], env=_C)
    if done.returncode:
        raise _failed(transport, data, done.stderr)
    batch: list[Item] = []
    size = 0
    big = []
    for item in needed:
        if item.size > SMALL_BYTES:
            big.append(item)
            continue
        if batch and size + item.size > _BATCH_BYTES:
            _send_batch(transport, local, data, batch, meter)
            batch, size = [], 0
        batch.append(item)
        size += item.size
    if batch:
        _send_batch(transport, local, data, batch, meter)
    for item in big:
        parent = f"{data}/{item.path}".rpartition("/")[0]
        done = transport.run(["mkdir", "-p", "-m", "700", "--", parent], env=_C)
        if done.returncode:
            raise _failed(transport, parent, done.stderr)
        send(transport, local / item.path, f"{data}/{item.path}", mode=0o400, meter=meter)


def _send_batch(
    transport: Transport, local: Path, data: str, batch: list[Item], meter: Meter
) -> None:
    """Small files, links and directories in one archive."""
    archive = f"{data}.{secrets.token_hex(4)}.tar"
    try:
        with tempfile.NamedTemporaryFile(prefix="hpcscale-", suffix=".tar") as packed:
            with tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as tar:
                for item in batch:
                    tar.add(local / item.path, item.path, recursive=False, filter=_private)
            packed.flush()
            transport.put_file(Path(packed.name), archive, mode=0o600)
    except OSError as exc:
        raise HpcscaleError(f"cannot be packed: {exc}", where=str(local)) from exc
    try:
        argv = ["tar", "-xf", archive, "-C", data, "--no-same-owner", "--unlink-first", "-p"]
        done = transport.run(argv, env=_C, timeout_s=_TIMEOUT_S)
        if done.returncode:
            raise _failed(transport, data, done.stderr)
    finally:
        with contextlib.suppress(HpcscaleError):
            transport.run(["rm", "-f", "--", archive])
    meter.advance(sum(item.size for item in batch))


def _private(member: tarfile.TarInfo) -> tarfile.TarInfo:
    member.uid = member.gid = 0
    member.uname = member.gname = ""
    member.mode = 0o700 if member.isdir() else 0o500 if member.mode & 0o100 else 0o400
    return member


def _failed(transport: Transport, where: str, text: str) -> HpcscaleError:
    return HpcscaleError(
        f"it was not copied: {text.strip()[:300] or 'no reason given'}",
        where=f"{transport.name}:{where}",
        hint="is there room? hpcscale site check",
    )
