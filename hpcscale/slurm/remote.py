"""Small acts on a site's files, for any transport: all through ``run``, so all alike everywhere.

Paths are absolute (``expand`` makes them so). Commands are coreutils' and tar's.
"""

import io
import os
import posixpath
import re
import secrets
import stat
import tarfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import NamedTemporaryFile, TemporaryDirectory

from hpcscale.errors import HpcscaleError, NotFoundError, NotOursError, StateError
from hpcscale.slurm.transport import Completed, Transport

_C_LOCALE = {"LC_ALL": "C"}  # messages are read here
_TRANSFER_TIMEOUT_S = 600.0
_VARIABLE = re.compile(r"\$(?:\{(\w+)\}|(\w+))")


def expand(transport: Transport, path: str) -> str:
    """Absolute path there of ``~/x``, ``$USER/x`` or ``${SCRATCH}/x``; nothing else is expanded.

    Args:
        transport: the place.
        path: a relative path is taken from the home directory there.

    Raises:
        NotFoundError: a variable is not set there.
    """
    names = sorted({a or b for a, b in _VARIABLE.findall(path)} | {"HOME"})
    # printenv prints no names; asked for one at a time a value may hold anything.
    values = {name: _variable(transport, name) for name in names}
    if missing := [name for name, value in values.items() if value is None]:
        raise NotFoundError(
            f"${missing[0]} is not set on {transport.name}, but {path} needs it",
            hint="write the path out in the site's profile",
        )
    known = {name: value or "" for name, value in values.items()}
    text = _VARIABLE.sub(lambda m: known[m[1] or m[2]], path)
    if text == "~" or text.startswith("~/"):
        text = known["HOME"] + text[1:]
    if not text.startswith("/"):
        text = posixpath.join(known["HOME"], text)
    return posixpath.normpath(text)


def _variable(transport: Transport, name: str) -> str | None:
    done = transport.run(["printenv", name])
    if done.returncode == 0 and done.stdout.strip():
        return done.stdout.removesuffix("\n")
    if done.returncode == 127:  # env(1) and every shell: the command was not found
        raise NotFoundError(
            f"printenv was not found on {transport.name}",
            hint="PATH lacks the system's own commands: export PATH=$PATH:/usr/bin:/bin",
        )
    if name in {"USER", "LOGNAME"}:  # neither cron nor a bare container sets them
        return _ok(transport.run(["id", "-un"]), transport).stdout.strip()
    return None


def mkdir(transport: Transport, path: str, mode: int = 0o700) -> None:
    """Make a directory and its parents; the mode is for those that are new."""
    _ok(transport.run(["mkdir", "-p", f"-m{mode:o}", "--", path], env=_C_LOCALE), transport)


# as ``staging`` makes a run's directories; the mode is not this umask's alone to say
_PRIVATE = (
    'umask 077; mkdir -p -- "$@" && '
    'find -H "$@" -maxdepth 0 "(" ! -user "$(id -u)" -o -perm /022 ")" -print'
)


def private_dir(transport: Transport, path: str) -> None:
    """Make a directory for this user alone (0700); one that is there is looked at, not changed.

    Raises:
        StateError: it cannot be made.
        NotOursError: it is another user's, or others may write there.
    """
    done = transport.run(["/bin/sh", "-c", _PRIVATE, "sh", path], env=_C_LOCALE)
    if done.returncode:
        raise StateError(
            f"the directory cannot be made: {_failed(done, transport).message}",
            where=f"{transport.name}:{path}",
            hint="check `state_dir` and the room left: hpcscale site check",
        )
    if done.stdout.strip():
        raise NotOursError(
            "it is not yours alone to write: others could change what your jobs do",
            where=f"{transport.name}:{path}",
            hint=f"look who owns it; if it is yours: chmod go-w {path}",
        )


def exists(transport: Transport, path: str) -> bool:
    """Whether anything has this name; a link that leads nowhere too."""
    done = transport.run(["stat", "-c%F", "--", path], env=_C_LOCALE)
    if done.returncode == 0:
        return True
    if "No such file or directory" in done.stderr or "Not a directory" in done.stderr:
        return False
    raise _failed(done, transport)


def remove(transport: Transport, path: str, *, recursive: bool = False) -> None:
    """Remove a file, or a whole directory; fine when it does not exist."""
    if posixpath.normpath(path) in {"/", ".", "//"} or not path:
        raise HpcscaleError(f"will not remove {path!r}")
    flags = "-rf" if recursive else "-f"
    _ok(transport.run(["rm", flags, "--", path], env=_C_LOCALE), transport)


def list_dir(transport: Transport, path: str) -> list[str]:
    """Names in a directory, sorted.

    Raises:
        NotFoundError: no such directory.
    """
    argv = ["find", path, "-mindepth", "1", "-maxdepth", "1", "-printf", r"%f\0"]
    return sorted(_ok(transport.run(argv, env=_C_LOCALE), transport).stdout.split("\0")[:-1])


def link_once(transport: Transport, path: str, data: bytes) -> bool:
    """Create a file whole, or not at all when the name is taken: link(2), atomic on NFS too.

    Returns:
        True when this call made it. When an answer got lost the file's content tells who did.
    """
    temporary = f"{path}.{secrets.token_hex(6)}.tmp"
    transport.put_bytes(data, temporary, mode=0o600)
    try:
        done = transport.run(["ln", "-T", "--", temporary, path], env=_C_LOCALE)
        if done.returncode == 0:
            return True
        if "File exists" in done.stderr:
            # NFS may answer EEXIST to its own resent request: two links say it was ours.
            return _links(transport, temporary) == 2
        raise _failed(done, transport)
    finally:
        transport.run(["rm", "-f", "--", temporary], env=_C_LOCALE)


def _links(transport: Transport, path: str) -> int:
    return int(_ok(transport.run(["stat", "-c%h", "--", path], env=_C_LOCALE), transport).stdout)


def put_tree(
    transport: Transport,
    local_dir: Path,
    remote_dir: str,
    files: Iterable[str] | None = None,
    *,
    timeout_s: float = _TRANSFER_TIMEOUT_S,
) -> int:
    """Copy files below ``local_dir`` to the same relative paths below ``remote_dir``.

    Args:
        transport: the place.
        local_dir: where the relative paths start.
        remote_dir: made when it does not exist.
        files: relative paths of files, links and directories; None is everything. Links stay links.
        timeout_s: for the whole transfer.

    Returns:
        Bytes of the archive, which for a moment lies beside the files there.
    """
    mkdir(transport, remote_dir)
    names = sorted(_walk(local_dir)) if files is None else list(files)
    with NamedTemporaryFile(prefix="hpcscale-") as spool:
        try:
            with tarfile.open(fileobj=spool, mode="w", format=tarfile.PAX_FORMAT) as archive:
                for name in names:
                    archive.add(local_dir / name, arcname=name, recursive=False, filter=_anonymous)
        except FileNotFoundError as exc:
            raise NotFoundError(f"{exc.filename} does not exist") from exc
        except OSError as exc:
            raise HpcscaleError(f"cannot read {exc.filename}: {exc.strerror}") from exc
        spool.flush()
        size = os.fstat(spool.fileno()).st_size
        there = posixpath.join(remote_dir, f".hpcscale-{secrets.token_hex(6)}.tar")
        argv = [
            "tar",
            "--extract",
            "--no-same-owner",
            f"--file={there}",
            f"--directory={remote_dir}",
        ]
        try:
            transport.put_file(Path(spool.name), there, mode=0o600)
            _ok(transport.run(argv, env=_C_LOCALE, timeout_s=timeout_s), transport)
        finally:
            transport.run(["rm", "-f", "--", there], env=_C_LOCALE)
    return size


def _walk(top: Path) -> Iterator[str]:
    for directory, subdirectories, files in os.walk(top):
        here = Path(directory)
        for name in [*subdirectories, *files]:
            yield str((here / name).relative_to(top))


def _anonymous(member: tarfile.TarInfo) -> tarfile.TarInfo | None:
    """Without the owner; sockets and devices stay behind."""
    if not (member.isreg() or member.isdir() or member.issym() or member.islnk()):
        return None
    member.uid = member.gid = 0
    member.uname = member.gname = ""
    return member


def get_tree(
    transport: Transport,
    remote_dir: str,
    local_dir: Path,
    files: Iterable[str] = (".",),
    *,
    timeout_s: float = _TRANSFER_TIMEOUT_S,
) -> list[str]:
    """Copy files and directories below ``remote_dir`` to ``local_dir``; what is there is replaced.

    Writes only below ``local_dir``: a stream that holds absolute paths, ``..``, hard links, devices
    or links that lead outside is refused before anything is written.

    Returns:
        Relative paths of the files and links written.

    Raises:
        NotFoundError: the directory or one of the files does not exist there.
        HpcscaleError: the stream is unsafe or broken.
    """
    remote_file = posixpath.join(posixpath.dirname(remote_dir), f".hpcscale-{secrets.token_hex(6)}")
    argv = ["tar", "--create", f"--file={remote_file}.tar", f"--directory={remote_dir}", "--"]
    done = transport.run([*argv, *files], env=_C_LOCALE, timeout_s=timeout_s)
    try:
        _ok(done, transport)
        with _spool(transport, f"{remote_file}.tar") as path:
            return extract_below(path, local_dir, transport.name)
    finally:
        transport.run(["rm", "-f", "--", f"{remote_file}.tar"], env=_C_LOCALE)


@contextmanager
def _spool(transport: Transport, remote: str) -> Iterator[Path]:
    with TemporaryDirectory(prefix="hpcscale-") as directory:
        path = Path(directory) / "stream.tar"
        transport.get_file(remote, path)
        yield path


def extract_below(archive_path: Path, local_dir: Path, origin: str) -> list[str]:
    """Unpack a tar file below ``local_dir`` after every member was found harmless."""
    local_dir.mkdir(parents=True, exist_ok=True)
    root = local_dir.resolve()
    try:
        with tarfile.open(archive_path, mode="r:") as archive:
            members = archive.getmembers()
            links = {posixpath.normpath(m.name) for m in members if m.issym()}
            for member in members:
                if (fault := _fault(member, links)) is not None:
                    raise HpcscaleError(
                        f"refused to unpack {member.name!r} from {origin}: {fault}",
                        hint="remove it from the job's outputs; nothing was written",
                    )
            return [name for member in members if (name := _write(archive, member, root))]
    except tarfile.TarError as exc:
        raise HpcscaleError(f"the files from {origin} came damaged: {exc}") from exc
    except OSError as exc:
        raise HpcscaleError(f"cannot write {exc.filename}: {exc.strerror}") from exc


def _fault(member: tarfile.TarInfo, links: set[str]) -> str | None:
    parts = member.name.split("/")
    if member.name.startswith("/") or ".." in parts:
        return "it leads out of the directory"
    if not (member.isreg() or member.isdir() or member.issym()):
        return "neither file, directory nor symbolic link"
    if member.issym():
        target = posixpath.normpath(posixpath.join(posixpath.dirname(member.name), member.linkname))
        if member.linkname.startswith("/") or target == ".." or target.startswith("../"):
            return f"a link that leads out of the directory ({member.linkname})"
    parents = posixpath.normpath(member.name).split("/")[:-1]
    if any("/".join(parents[: n + 1]) in links for n in range(len(parents))):
        return "it would be written through a link"
    return None


def _write(archive: tarfile.TarFile, member: tarfile.TarInfo, root: Path) -> str | None:
    """Write one checked member; never through a link that was here before."""
    name = posixpath.normpath(member.name)
    if name == ".":
        return None
    target = root / name
    if not target.parent.resolve().is_relative_to(root):
        raise HpcscaleError(f"refused to write {name!r}: a link here leads out of {root}")
    if member.isdir():
        if target.is_symlink():
            raise HpcscaleError(f"refused to write {name!r}: it is a link here")
        target.mkdir(parents=True, exist_ok=True)
        return None
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
    if member.issym():
        temporary.symlink_to(member.linkname)
    else:
        source = archive.extractfile(member)
        if source is None:  # a regular file always has content
            return None
        with temporary.open("xb") as out:
            while block := source.read(io.DEFAULT_BUFFER_SIZE * 128):
                out.write(block)
        temporary.chmod(stat.S_IMODE(member.mode) & 0o777)
        os.utime(temporary, (member.mtime, member.mtime))
    temporary.replace(target)
    return name


def _ok(done: Completed, transport: Transport) -> Completed:
    if done.returncode != 0:
        raise _failed(done, transport)
    return done


def _failed(done: Completed, transport: Transport) -> HpcscaleError:
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    text = lines[0].strip() if lines else f"{done.argv[0]} failed with {done.returncode}"
    kind = NotFoundError if "No such file or directory" in done.stderr else HpcscaleError
    return kind(text, where=transport.name)
