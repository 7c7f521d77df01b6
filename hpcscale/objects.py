"""Object stores as inputs and outputs: read and written by this machine, with this machine's keys.

An input ``s3://…`` is brought here object by object, and from here into the site's store of inputs
(``hpcscale.inputs``); an output ``s3://…`` is fetched like any other and put into the store from
here. So no key of a store, and no library for it, is ever needed at a site. What has not changed,
by size and version, is moved neither way again.
"""

import datetime as dt
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from hpcscale.errors import HpcscaleError, InvalidFileError, NotFoundError, UnreachableError
from hpcscale.extras import require
from hpcscale.fetching import MAX_BYTES, Fetched, Listed, fetch_all
from hpcscale.inputs import Item, put_large
from hpcscale.settings import state_dir
from hpcscale.slurm.transport import Transport
from hpcscale.transfer import SILENT, Meter
from hpcscale.urls import is_url


@dataclass(frozen=True, slots=True)
class Object:
    """One object below a URL.

    Attributes:
        path: relative to the URL; empty for the object that it names itself.
        key: as the store has it.
        size: bytes.
        changed: when it was written, by the store's clock.
    """

    path: str
    key: str
    size: int
    changed: dt.datetime


class Store:
    """What a URL names in an object store.

    Args:
        url: ``s3://bucket/key`` or ``s3://bucket/prefix/``.

    Raises:
        HpcscaleError: the library for it is not installed.
        InvalidFileError: the URL is none of an object store.
    """

    def __init__(self, url: str) -> None:
        assert is_url(url)
        self.url = url
        require("s3" if url.startswith("s3:") else "objects", "an object store")
        try:
            import fsspec

            # listings must be the store's own, not those of a minute ago
            self._fs, self._root = fsspec.core.url_to_fs(url, use_listings_cache=False)
        except ImportError as exc:
            raise HpcscaleError(
                f"its library is not installed: {exc}",
                where=url,
                hint="pip install the fsspec library of this store, as gcsfs or adlfs",
            ) from exc
        except ValueError as exc:
            raise InvalidFileError(f"cannot be used: {exc}", where=url) from exc
        self._root = self._root.rstrip("/")

    def objects(self) -> list[Object]:
        """Everything at and below the URL, sorted; empty when there is nothing.

        Raises:
            HpcscaleError: the store refuses or does not answer.
        """
        with _said(self.url):
            self._fs.invalidate_cache()
            try:
                found = self._fs.find(self._root, detail=True)
            except FileNotFoundError:
                return []
        objects = []
        for key, info in sorted(found.items()):
            path = "" if key == self._root else key.removeprefix(f"{self._root}/")
            if path.endswith("/") or info.get("type") != "file":
                continue  # the empty objects that consoles show as folders
            if path and (path.startswith("/") or {"..", ".", ""} & set(path.split("/"))):
                raise InvalidFileError(
                    f"an object's key cannot be a path: {key!r}",
                    where=self.url,
                    hint="name a prefix without it",
                )
            objects.append(Object(path, key, int(info["size"]), _changed(info)))
        return objects

    def download(self, item: Object, to: Path) -> None:
        """Copy an object here, unless it is here; by a temporary name and a rename."""
        if to.is_file() and to.stat().st_size == item.size:
            return
        to.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        temporary = to.with_name(f".{to.name[:200]}.{os.getpid()}.tmp")
        try:
            with _said(self.url):
                self._fs.get_file(item.key, str(temporary))
            if temporary.stat().st_size != item.size:
                raise HpcscaleError("an object was changed while it was read", where=item.key)
            os.utime(temporary, ns=(_ns(item.changed), _ns(item.changed)))
            temporary.replace(to)
        finally:
            temporary.unlink(missing_ok=True)

    def upload(self, path: str, source: Path) -> None:
        """Put a file below the URL, or as the object itself for an empty path; then look at it."""
        key = f"{self._root}/{path}" if path else self._root
        with _said(self.url):
            self._fs.put_file(str(source), key)
            self._fs.invalidate_cache()
            size = self._fs.info(key)["size"]
        if size != source.stat().st_size:
            raise HpcscaleError("an object is not what was written; try again", where=key)


@contextmanager
def _said(url: str) -> Iterator[None]:
    """The libraries' errors in our words; what a message may hold of keys is not repeated."""
    try:
        yield
    except HpcscaleError:
        raise
    except FileNotFoundError as exc:
        raise NotFoundError("there is no such bucket or object", where=url) from exc
    except PermissionError as exc:
        raise HpcscaleError(
            f"the store refuses: {exc.strerror or type(exc).__name__}",
            where=url,
            hint="whose keys? `aws sts get-caller-identity` reads the same ones",
        ) from exc
    except OSError as exc:
        raise UnreachableError(
            f"the store gives no answer: {exc.strerror or type(exc).__name__}", where=url
        ) from exc
    except Exception as exc:  # botocore has a family of its own, which we do not import
        raise HpcscaleError(
            f"the store cannot be used: {type(exc).__name__}",
            where=url,
            hint="are there keys (AWS_PROFILE, ~/.aws), and is AWS_ENDPOINT_URL right?",
        ) from exc


def _changed(info: dict[str, Any]) -> dt.datetime:
    changed = info.get("LastModified") or info.get("mtime") or info.get("last_modified")
    if isinstance(changed, dt.datetime):
        return changed.astimezone(dt.UTC)
    return dt.datetime.fromtimestamp(0, dt.UTC)


def _ns(when: dt.datetime) -> int:
    return int(when.timestamp()) * 10**9


def require_input(url: str) -> None:
    """Whether there is anything at a URL.

    Raises:
        NotFoundError: there is not.
        HpcscaleError: the store cannot be used.
    """
    if not Store(url).objects():
        raise NotFoundError("there is no object", where=url, hint="`aws s3 ls` shows what there is")


def put_input(
    transport: Transport, state: str, url: str, target: str, *, meter: Meter = SILENT
) -> int:
    """Bring the site's copy of a URL up to date, and link it into a run.

    Args:
        transport: to the site.
        state: the site's state directory.
        url: of an object, or a prefix.
        target: its place in the run's directory.
        meter: told how it goes on.

    Returns:
        Bytes that had to be sent.

    Raises:
        NotFoundError: there is nothing at the URL.
        HpcscaleError: what ``Store`` and ``put_large`` raise.
    """
    store = Store(url)
    here = _cache(url)
    objects = {each.path: each for each in store.objects()}
    if not objects:
        raise NotFoundError("there is no object", where=url)
    items: dict[str, Item] = {}
    for each in objects.values():
        items[each.path] = Item(each.path, "f", each.size, _ns(each.changed))
        for parent in PurePosixPath(each.path).parents:
            if str(parent) != ".":
                items.setdefault(str(parent), Item(str(parent), "d"))

    def bring(item: Item) -> None:
        if item.kind == "d":
            (here / item.path).mkdir(parents=True, exist_ok=True, mode=0o700)
        else:
            store.download(objects[item.path], here / item.path if item.path else here)

    size = put_large(
        transport,
        f"{state}/inputs",
        here,
        [items[path] for path in sorted(items)],
        target,
        link=True,
        bring=bring,
        meter=meter,
    )
    _forget(here)  # not before the site has it: a cut does not cost the download twice
    return size


def put_output(
    transport: Transport,
    remote: str,
    url: str,
    *,
    max_bytes: int = MAX_BYTES,
    meter: Meter = SILENT,
) -> Fetched:
    """Fetch what a site has below a path, and put it below a URL; what was put before stays.

    Args:
        transport: of the site.
        remote: an output there, a file or a directory.
        url: of an object, or a prefix.
        max_bytes: more is refused.
        meter: told how it goes on.

    Returns:
        What was done; ``objects`` are the URLs written.

    Raises:
        HpcscaleError: what ``fetch_all`` and ``Store`` raise.
    """
    store = Store(url)
    have = {each.path: each.size for each in store.objects()}
    here = _cache(f"{transport.name}\0{remote}\0{url}")
    index = here.with_suffix(".json")
    try:
        put: dict[str, list[Any]] = json.loads(index.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        put = {}

    def same(_: Path, entry: Listed) -> bool:
        version = [entry.size, entry.changed]
        return put.get(entry.name) == version and have.get(entry.name) == entry.size

    versions = {}

    def note(path: Path, entry: Listed) -> bool:
        versions[path] = (entry.name, [entry.size, entry.changed])
        return same(path, entry)

    result = fetch_all(transport, [(remote, here)], max_bytes=max_bytes, meter=meter, same=note)
    for path in result.files:
        name, version = versions[path]
        store.upload(name, path)
        path.unlink()
        put[name] = version
        index.write_text(json.dumps(put), encoding="utf-8")
        result.objects.append(f"{url.rstrip('/')}/{name}" if name else url)
    result.files.clear()
    _forget(here)
    return result


def _forget(here: Path) -> None:
    if here.is_dir():
        shutil.rmtree(here, ignore_errors=True)
    else:
        here.unlink(missing_ok=True)


def _cache(what: str) -> Path:
    directory = state_dir() / "objects"
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    return directory / hashlib.sha256(what.encode("utf-8", "surrogateescape")).hexdigest()[:24]
