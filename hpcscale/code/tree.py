"""Which files of a directory are its program, and one hash over them all.

The hash is that of a manifest which ``sha256sum --check`` understands: a site checks what arrived
with the tools it has. What is no regular file stands in its comment lines.
"""

import contextlib
import hashlib
import os
import stat
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from hpcscale.code.gitfiles import Checkout, checkout_files, dirty_hash, find_checkout
from hpcscale.errors import InvalidFileError, NotFoundError
from hpcscale.spec import CodeId

if TYPE_CHECKING:
    import pathspec

IGNORE_FILE = ".hpcscaleignore"
# never part of a program, and often larger than it
_NO_CODE = (
    ".git", ".hg/", ".svn/", ".venv/", "__pycache__/", ".mypy_cache/", ".ruff_cache/",
    ".pytest_cache/", ".ipynb_checkpoints/", "node_modules/",
)  # fmt: skip
# keys and the like: sent only when .hpcscaleignore says `!NAME`
PRIVATE = (
    ".ssh/", ".aws/", ".azure/", ".gnupg/", ".kube/", ".netrc", ".pypirc", ".env",
    ".git-credentials", "id_rsa", "id_dsa", "id_ecdsa", "id_ed25519",
)  # fmt: skip
MAX_BYTES = 2 * 1024**3
MAX_FILES = 100_000
# of a directory that nobody named: the one that the user stands in
MAX_UNNAMED_BYTES = 100 * 1024**2
MAX_UNNAMED_FILES = 5_000
UNHASHED = "unhashed"  # in place of a hash of changes: they are too large
_CHUNK = 1 << 20


@dataclass(frozen=True, slots=True)
class Entry:
    """One file, link or empty directory.

    Attributes:
        path: relative, with slashes.
        kind: ``f`` file, ``x`` executable file, ``l`` symbolic link, ``d`` empty directory.
        value: SHA-256 of a file's content, a link's target, else empty.
        size: bytes of a file.
    """

    path: str
    kind: str
    value: str
    size: int = 0


@dataclass(frozen=True, slots=True)
class CodeTree:
    """What goes along.

    Attributes:
        root: the directory.
        entries: sorted by path.
        id: kind, commit and hashes.
        changed: paths that differ from the commit.
        private: names that look like keys and were left out.
    """

    root: Path
    entries: tuple[Entry, ...]
    id: CodeId
    changed: tuple[str, ...] = ()
    private: tuple[str, ...] = ()
    size: int = field(default=0)

    @property
    def files(self) -> int:
        """Number of files and links."""
        return sum(e.kind != "d" for e in self.entries)

    def manifest(self) -> bytes:
        """Lines of ``sha256sum``; executables, links and empty directories as comments."""
        return manifest(self.entries)


def manifest(entries: Iterable[Entry]) -> bytes:
    """See ``CodeTree.manifest``."""
    lines = ["# hpcscale tree 1"]
    for entry in entries:
        escaped = entry.path.replace("\\", "\\\\").replace("\n", "\\n")
        if entry.kind in "fx":
            mark = "\\" if escaped != entry.path else ""
            if entry.kind == "x":
                lines.append(f"# x {escaped}")
            lines.append(f"{mark}{entry.value}  {escaped}")
        else:
            target = entry.value.replace("\\", "\\\\").replace("\n", "\\n")
            lines.append(f"# {entry.kind} {escaped}" + (f" -> {target}" if target else ""))
    return ("\n".join(lines) + "\n").encode("utf-8", "surrogateescape")


def read_tree(root: Path, *, named: bool = True, never: frozenset[Path] = frozenset()) -> CodeTree:
    """Choose and hash the files of a program.

    In a git checkout: what is tracked, as it lies there, and what is new and not ignored; also of
    submodules. Else all files. Less, in both, what ``.hpcscaleignore`` names (gitignore's syntax),
    caches, virtual environments and what looks like keys.

    Args:
        root: the directory.
        named: whether the user named it; one that was not may hold less.
        never: files and directories (resolved) that stay here, such as those that secrets are
            read from.

    Raises:
        NotFoundError: no such directory, or a submodule is not there.
        InvalidFileError: too much for a program, git cannot read the checkout, or a file or
            directory cannot be read.
    """
    if not root.is_dir():
        raise NotFoundError(
            f"the code directory {root} does not exist",
            hint="--code DIR or --workdir DIR, of an existing directory; --no-code for none",
        )
    if not named and root.resolve() in {Path.home().resolve(), Path("/")}:
        raise InvalidFileError(
            "this is no program's directory, and it would be copied as the job's code",
            where=str(root),
            hint="--code DIR names the program's directory, --no-code says that there is none",
        )
    rules, private = _rules(root)
    if (checkout := find_checkout(root)) is not None:
        checkout = _relevant(checkout, rules)
    names = checkout_files(root) if checkout else _walk(root, rules)
    staying = _below(root.resolve(), never)
    chosen: list[str] = []
    sizes: dict[str, int] = {}
    left_out: set[str] = set()
    most_files = MAX_FILES if named else MAX_UNNAMED_FILES
    for name in names:
        if rules.match_file(name) or f"{name.rstrip('/')}/".startswith(staying):
            if private.match_file(name):
                left_out.add(name)
            continue
        try:
            found = (root / name).lstat()
        except FileNotFoundError:
            continue  # tracked, and deleted here
        if not (stat.S_ISREG(found.st_mode) or stat.S_ISLNK(found.st_mode) or name[-1] == "/"):
            continue  # sockets, pipes and devices are no program
        chosen.append(name)
        sizes[name] = found.st_size if stat.S_ISREG(found.st_mode) else 0
        if len(chosen) > most_files * 2:
            break  # enough to say what is wrong
    _require_small(root, sizes, named=named, most_files=most_files)
    entries = tuple(_chosen_entry(root, name) for name in sorted(chosen))
    digest = hashlib.sha256(manifest(entries)).hexdigest()
    changed = () if checkout is None else checkout.changed
    return CodeTree(
        root=root,
        entries=entries,
        id=CodeId(
            kind="git" if checkout else "folder",
            commit=checkout.commit if checkout else None,
            dirty_sha256=_dirty(root, checkout, entries) if checkout else None,
            tree_sha256=digest,
        ),
        changed=changed,
        private=tuple(sorted(left_out)),
        size=sum(sizes.values()),
    )


def _below(root: Path, paths: frozenset[Path]) -> tuple[str, ...]:
    """Those of the paths that lie below a directory, relative to it and with a slash."""
    below = [path.relative_to(root) for path in paths if path.is_relative_to(root)]
    return tuple(f"{path.as_posix()}/" for path in below)


def read_identity(root: Path) -> CodeId | None:
    """Commit and changes of code that is used in place; None when git knows nothing of it."""
    checkout = find_checkout(root) if root.is_dir() else None
    if checkout is None:
        return None
    checkout = _relevant(checkout, _rules(root)[0])
    size = 0
    for path in checkout.changed:
        with contextlib.suppress(OSError):
            size += (root / path).lstat().st_size
    if size > MAX_UNNAMED_BYTES:  # data beside the code: not worth the minutes
        return CodeId(kind="git", commit=checkout.commit, dirty_sha256=UNHASHED)
    return CodeId(kind="git", commit=checkout.commit, dirty_sha256=_dirty(root, checkout, ()))


def _relevant(checkout: Checkout, rules: "pathspec.GitIgnoreSpec") -> Checkout:
    """Without changes of what never goes along."""
    return replace(checkout, changed=tuple(p for p in checkout.changed if not rules.match_file(p)))


def _dirty(root: Path, checkout: Checkout, entries: Iterable[Entry]) -> str | None:
    known = {e.path: e for e in entries}

    def digest_of(path: str) -> str:
        entry = known.get(path)
        try:
            entry = entry or _entry(root, path)
        except OSError:
            return "gone"
        if entry.kind == "d":  # a submodule: what lies below it
            inner = [e for e in entries if e.path.startswith(f"{path}/")]
            return f"d {hashlib.sha256(manifest(inner)).hexdigest()}"
        return f"{entry.kind} {entry.value}"

    return dirty_hash(checkout, digest_of)


def _rules(root: Path) -> "tuple[pathspec.GitIgnoreSpec, pathspec.GitIgnoreSpec]":
    import pathspec

    own: list[str] = []
    try:
        own = (root / IGNORE_FILE).read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        pass
    except (OSError, UnicodeDecodeError) as exc:
        raise InvalidFileError(f"cannot be read: {exc}", where=str(root / IGNORE_FILE)) from exc
    try:
        return (
            pathspec.GitIgnoreSpec.from_lines([*_NO_CODE, *PRIVATE, *own]),
            pathspec.GitIgnoreSpec.from_lines(
                [*PRIVATE, *(line for line in own if line[:1] == "!")]
            ),
        )
    except ValueError as exc:
        raise InvalidFileError(
            f"a pattern is wrong: {exc}",
            where=str(root / IGNORE_FILE),
            hint="the syntax is that of gitignore(5)",
        ) from exc


def _walk(root: Path, rules: "pathspec.GitIgnoreSpec") -> Iterator[str]:
    """Files and links, and empty directories with a slash at their end; links are not followed."""
    for directory, names, files in os.walk(root, onerror=_not_listed):
        here = Path(directory)
        below = "" if here == root else f"{here.relative_to(root)}/"
        links = [n for n in names if (here / n).is_symlink()]
        names[:] = sorted(
            n for n in names if n not in links and not rules.match_file(f"{below}{n}/")
        )
        yield from sorted(f"{below}{n}" for n in [*files, *links])
        if below and not names and not files and not links:
            yield below


def _not_listed(exc: OSError) -> None:
    """``os.walk`` would pass over a directory that it cannot read: the program would lack it."""
    if not isinstance(exc, FileNotFoundError):
        raise InvalidFileError(
            f"a directory of the code cannot be read: {exc.strerror}",
            where=str(exc.filename),
            hint=f"name it in {IGNORE_FILE} of the code's directory, or make it readable",
        ) from exc


def _chosen_entry(root: Path, name: str) -> Entry:
    try:
        return _entry(root, name)
    except FileNotFoundError as exc:
        raise InvalidFileError(
            "it vanished while the code was read; nothing was submitted",
            where=str(root / name),
            hint=f"submit again; what comes and goes may stand in {root / IGNORE_FILE}",
        ) from exc


def _entry(root: Path, name: str) -> Entry:
    path = root / name
    found = path.lstat()
    if stat.S_ISLNK(found.st_mode):
        # Never followed: a link in a cloned repository may point at a key.
        return Entry(name, "l", str(path.readlink()))
    if stat.S_ISDIR(found.st_mode):
        return Entry(name.rstrip("/"), "d", "")
    digest = hashlib.sha256()
    size = 0
    try:
        with path.open("rb") as file:
            while block := file.read(_CHUNK):
                digest.update(block)
                size += len(block)
    except PermissionError as exc:
        raise InvalidFileError(
            "it cannot be read, and would go along as code",
            where=str(path),
            hint=f"name it in {root / IGNORE_FILE}, or make it readable",
        ) from exc
    return Entry(name, "x" if found.st_mode & 0o100 else "f", digest.hexdigest(), size)


def _require_small(root: Path, sizes: dict[str, int], *, named: bool, most_files: int) -> None:
    total, count = sum(sizes.values()), len(sizes)
    most = MAX_BYTES if named else MAX_UNNAMED_BYTES
    if total <= most and count <= most_files:
        return
    below: Counter[str] = Counter()
    numbers: Counter[str] = Counter()
    for name, size in sizes.items():
        top, slash, _ = name.partition("/")
        below[top + slash] += size
        numbers[top + slash] += 1
    if total > most:
        what = f"{show_bytes(total)}, more than {show_bytes(most)}"
        biggest = ", ".join(f"{n} {show_bytes(s)}" for n, s in below.most_common(5))
    else:
        what = f"{'over ' if count > most_files * 2 else ''}{count} files, more than {most_files}"
        biggest = ", ".join(f"{n} {s} files" for n, s in numbers.most_common(5))
    hint = (
        f"name what is no code in {IGNORE_FILE}, and data as --input NAME=PATH"
        if named
        else f"--code DIR names the program's own directory, --no-code says that there is none; "
        f"or name what is no code in {IGNORE_FILE}"
    )
    raise InvalidFileError(
        f"too much to go along as the job's code: {what}; the biggest: {biggest}",
        where=str(root),
        hint=hint,
    )


def show_bytes(size: float) -> str:
    """``1.5 MB``: powers of 1000, as disks are sold."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "bytes" or size >= 10 else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"
