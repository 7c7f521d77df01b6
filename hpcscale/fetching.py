"""A site's files come here: listed first, judged one by one, written only below their destination.

The site is not trusted. What it lists is taken as a wish: names that lead out, links, devices and
pipes are refused; nothing is written through a link that is here; no more bytes are read than were
listed, and no more are listed than the limit allows. Archives from there are never unpacked: their
members are looked up by the names that were asked for.
"""

import base64
import binascii
import io
import os
import tarfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from hpcscale.errors import HpcscaleError, NotFoundError, RefusedError, UnreachableError
from hpcscale.slurm.transport import Transport
from hpcscale.transfer import SILENT, Meter, receive, write_new

MAX_BYTES = 50 * 10**9
MAX_FILES = 1_000_000
_BATCH_FILE_BYTES = 256 * 1024
_BATCH_BYTES = 8 * 1024**2
_BATCH_FILES = 2_000
_TIMEOUT_S = 3600.0
_C = {"LC_ALL": "C"}
_KINDS = {
    "l": "a symbolic link", "p": "a pipe", "s": "a socket", "b": "a device", "c": "a device",
}  # fmt: skip
# $1 directory; standard input: names. Text, since a command's answer is text
_PACK = (
    'cd -- "$1" && tar --create --format=posix --hard-dereference --no-recursion '
    "--null --verbatim-files-from --files-from=- 2> /dev/null | base64 -w0"
)


class Listed(NamedTuple):
    """One thing that the site says is there.

    Attributes:
        kind: as find(1) has it: ``f``, ``d``, ``l`` …
        size: bytes.
        changed: seconds since 1970, with decimals, as text.
        name: relative; empty for the root itself.
    """

    kind: str
    size: int
    changed: str
    name: str


@dataclass(slots=True)
class Fetched:
    """What came back.

    Attributes:
        files: local paths that were written.
        objects: URLs of objects that were written.
        unchanged: how many were here already.
        skipped: site paths that were not brought this time, each with the reason.
        refused: site paths that are never brought, each with the reason.
        size: bytes that were copied.
        shared: names that were left where they are, as all elements of the array share them.
    """

    files: list[Path] = field(default_factory=list)
    objects: list[str] = field(default_factory=list)
    unchanged: int = 0
    skipped: list[str] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    size: int = 0
    shared: list[str] = field(default_factory=list)

    def add(self, other: "Fetched") -> None:
        """And what came back another time."""
        self.files += other.files
        self.objects += other.objects
        self.unchanged += other.unchanged
        self.skipped += other.skipped
        self.refused += other.refused
        self.size += other.size
        self.shared += other.shared


@dataclass(slots=True)
class _Wish:
    there: str
    here: Path
    listed: list[Listed]


def fetch_all(
    transport: Transport,
    wanted: Iterable[tuple[str, Path]],
    *,
    max_bytes: int = MAX_BYTES,
    meter: Meter = SILENT,
    same: Callable[[Path, "Listed"], bool] | None = None,
    prefix: str = "",
) -> Fetched:
    """Copy files and directories here; what is here already, by size and time, is not copied again.

    Args:
        transport: of the site.
        wanted: path there, destination here: for a directory there what lies in it comes below the
            destination, a file there becomes the destination.
        max_bytes: more than this is refused before anything is copied.
        meter: told how it goes on.
        same: whether a file is here already; default by size and time.
        prefix: of a directory only what begins so.

    Raises:
        RefusedError: it is more than ``max_bytes``, or than there is room for.
        UnreachableError: the site went away; call again, it goes on from there.
    """
    result = Fetched()
    wishes = [
        _Wish(there, here, [e for e in list_tree(transport, there) if _begins(e, prefix)])
        for there, here in wanted
    ]
    plan = [(wish, list(_needed(wish, result, same or is_same))) for wish in wishes]
    total = sum(entry.size for _, entries in plan for entry in entries)
    _require_room(plan, total, max_bytes)
    meter.begin("fetched", total)
    for wish, entries in plan:
        _fetch_tree(transport, wish, entries, result, meter)
    return result


def _begins(entry: Listed, prefix: str) -> bool:
    return not entry.name or entry.name.startswith(prefix)


def list_tree(transport: Transport, path: str) -> list[Listed]:
    """Everything at and below a path there; nothing when it does not exist.

    Raises:
        HpcscaleError: the answer cannot be read.
    """
    # -P: links are listed, not followed. NUL-separated: a name may hold anything else.
    done = transport.run(
        ["find", "-P", path, "-printf", r"%y\0%s\0%T@\0%P\0"], env=_C, timeout_s=_TIMEOUT_S
    )
    fields = done.stdout.split("\0")
    if fields.pop() or len(fields) % 4:
        raise HpcscaleError("the list of files came damaged", where=f"{transport.name}:{path}")
    if len(fields) > 4 * MAX_FILES:
        raise RefusedError(
            f"more than {MAX_FILES} files",
            where=f"{transport.name}:{path}",
            hint="let the job pack them into one",
        )
    found = []
    for kind, size, changed, name in zip(*(fields[i::4] for i in range(4)), strict=True):
        try:
            float(changed)
            found.append(Listed(kind, max(0, int(size)), changed, name))
        except ValueError:
            raise HpcscaleError(
                "the list of files came damaged", where=f"{transport.name}:{path}"
            ) from None
    return found


def _fault(entry: Listed) -> str | None:
    """Why an entry is never brought."""
    if entry.kind not in "fd" or len(entry.kind) != 1:
        return _KINDS.get(entry.kind, "neither file nor directory")
    parts = entry.name.split("/")
    if entry.name and (entry.name.startswith("/") or {"..", ".", ""} & set(parts)):
        return "its name leads out of the directory"
    if "\ufffd" in entry.name or any(len(os.fsencode(part)) > 240 for part in parts):
        return "its name cannot be used here"
    return None


def _needed(wish: _Wish, result: Fetched, same: Callable[[Path, Listed], bool]) -> Iterator[Listed]:
    """The entries that must be copied; directories among them."""
    for entry in wish.listed:
        if why := _fault(entry):
            result.refused.append(f"{_there(wish, entry)}: {why}")
        elif entry.kind == "d":
            yield entry._replace(size=0)
        elif same(_here(wish, entry), entry):
            result.unchanged += 1
        else:
            yield entry


def _there(wish: _Wish, entry: Listed) -> str:
    return f"{wish.there}/{entry.name}" if entry.name else wish.there


def _here(wish: _Wish, entry: Listed) -> Path:
    return wish.here / entry.name if entry.name else wish.here


def is_same(here: Path, entry: Listed) -> bool:
    """Whether a file here has the size and the time of change of one there."""
    try:
        found = here.lstat()
    except (OSError, ValueError):
        return False
    return (
        found.st_size == entry.size
        and abs(found.st_mtime - float(entry.changed)) < 1e-3
        and not here.is_symlink()
    )


def _require_room(plan: list[tuple[_Wish, list[Listed]]], total: int, max_bytes: int) -> None:
    files = sorted((e.size, _there(w, e)) for w, entries in plan for e in entries)[-3:]
    biggest = ", ".join(f"{path} {size / 1e9:.1f} GB" for size, path in reversed(files))
    if total > max_bytes:
        raise RefusedError(
            f"{total / 1e9:.1f} GB, more than {max_bytes / 1e9:.1f} GB; the biggest: {biggest}",
            hint=f"hpcscale fetch JOB --max-bytes {total / 1e9 + 1:.0f}G, or one --output NAME",
        )
    for wish, entries in plan:
        need = sum(entry.size for entry in entries)
        near = wish.here
        while not near.exists():
            near = near.parent
        found = os.statvfs(near)
        room = found.f_bavail * found.f_frsize
        if need > room:
            raise RefusedError(
                f"{need / 1e9:.1f} GB, and the room left is {room / 1e9:.1f} GB",
                where=str(near),
                hint="--to DIR names a place with more room",
            )


def _fetch_tree(
    transport: Transport, wish: _Wish, entries: list[Listed], result: Fetched, meter: Meter
) -> None:
    small: list[Listed] = []
    for entry in entries:
        here = _here(wish, entry)
        try:
            _require_below(wish.here, here)
            if entry.kind == "d":
                here.mkdir(parents=True, exist_ok=True)
                continue
            here.parent.mkdir(parents=True, exist_ok=True)
            if entry.name and entry.size <= _BATCH_FILE_BYTES:
                small.append(entry)
                continue
            receive(
                transport,
                _there(wish, entry),
                here,
                size=entry.size,
                changed=entry.changed,
                meter=meter,
            )
            result.files.append(here)
            result.size += entry.size
        except UnreachableError:
            raise
        except NotFoundError:
            result.skipped.append(f"{_there(wish, entry)}: gone meanwhile")
        except (HpcscaleError, OSError) as exc:
            result.skipped.append(f"{_there(wish, entry)}: {exc}")
    for batch in _batches(small):
        _fetch_batch(transport, wish, batch, result, meter)


def _require_below(root: Path, here: Path) -> None:
    """Nothing is written through a link that leads out of the destination."""
    if here == root:
        return
    near = here.parent
    while not near.exists() and near != root:
        near = near.parent
    if not near.resolve().is_relative_to(root.resolve()):
        raise HpcscaleError(f"a link here leads out of {root}")


def _batches(entries: list[Listed]) -> Iterator[list[Listed]]:
    batch: list[Listed] = []
    size = 0
    for entry in entries:
        if batch and (size + entry.size > _BATCH_BYTES or len(batch) >= _BATCH_FILES):
            yield batch
            batch, size = [], 0
        batch.append(entry)
        size += entry.size
    if batch:
        yield batch


def _fetch_batch(
    transport: Transport, wish: _Wish, batch: list[Listed], result: Fetched, meter: Meter
) -> None:
    """Many small files by one command."""
    asked = {f"./{entry.name}": entry for entry in batch}
    done = transport.run(
        ["/bin/sh", "-c", _PACK, "sh", wish.there],
        stdin="".join(f"{name}\0" for name in asked),
        env=_C,
        timeout_s=_TIMEOUT_S,
    )
    try:
        for member, data in _members(base64.b64decode(done.stdout, validate=True)):
            entry = asked.pop(member.name, None)
            if entry is None:
                result.refused.append(f"{wish.there}: it sent what nobody asked for")
                continue
            if data is None or len(data) > max(entry.size * 2, _BATCH_FILE_BYTES):
                result.skipped.append(f"{_there(wish, entry)}: changed meanwhile")
                continue
            here = _here(wish, entry)
            try:
                write_new(here, data)
                # of an older time than its content: it is copied again next time
                os.utime(here, (float(entry.changed),) * 2)
            except OSError as exc:
                result.skipped.append(f"{_there(wish, entry)}: {exc}")
                continue
            result.files.append(here)
            result.size += len(data)
            meter.advance(entry.size)
    except (tarfile.TarError, binascii.Error, EOFError) as exc:
        raise HpcscaleError(
            f"the files came damaged: {exc}",
            where=f"{transport.name}:{wish.there}",
            hint="try again",
        ) from exc
    result.skipped += [f"{_there(wish, entry)}: gone meanwhile" for entry in asked.values()]


def _members(data: bytes) -> Iterator[tuple[tarfile.TarInfo, bytes | None]]:
    """Name and content of regular files; None for the content of anything else."""
    if not data:
        return
    with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as archive:
        for member in archive:
            source = archive.extractfile(member) if member.isreg() else None
            yield member, source.read() if source is not None else None


def inside(name: str) -> bool:
    """Whether a name that a site or a user gave is one plain component of a path."""
    return bool(name) and PurePosixPath(name).parts == (name,) and name not in {".", ".."}
