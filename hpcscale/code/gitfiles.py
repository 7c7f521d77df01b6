"""What git says of a checkout: its files, its commit and what was changed since.

The files are read as they lie in the working tree, which is the commit plus all that is staged, not
staged and not yet known to git. Nothing is written into the repository, and neither a hook nor a
file-system monitor that its configuration names is run.
"""

import hashlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from hpcscale.errors import HpcscaleError, InvalidFileError, NotFoundError
from hpcscale.slurm._process import run_process
from hpcscale.slurm.transport import slurm_environment

_TIMEOUT_S = 30.0
_SAFE = ("-c", "core.fsmonitor=false", "-c", "core.hooksPath=/dev/null")


@dataclass(frozen=True, slots=True)
class Checkout:
    """A directory within a git checkout.

    Attributes:
        commit: of HEAD; None before the first one.
        prefix: of the directory within the checkout, ``sub/`` or empty.
        changed: paths, relative to the directory, that differ from the commit or are new.
    """

    commit: str | None
    prefix: str
    changed: tuple[str, ...]


def _git(root: Path, *words: str, fine: tuple[int, ...] = (0,)) -> bytes | None:
    """What git prints; None when it is not installed, or knows no repository here."""
    env = {k: v for k, v in slurm_environment().items() if not k.startswith("GIT_")}
    env |= {"LC_ALL": "C", "GIT_OPTIONAL_LOCKS": "0", "GIT_TERMINAL_PROMPT": "0"}
    try:
        done = run_process(
            ["git", *_SAFE, "-C", str(root), *words],
            stdin=None,
            env=env,
            cwd=None,
            timeout_s=_TIMEOUT_S,
        )
    except FileNotFoundError:
        return None
    if done.timed_out:
        raise HpcscaleError(
            f"git gave no answer within {_TIMEOUT_S:g} s",
            where=str(root),
            hint="--code DIR names a smaller directory",
        )
    if done.returncode in fine:
        return done.stdout
    text = done.stderr.decode("utf-8", "replace").strip()
    if "not a git repository" in text or "must be run in a work tree" in text:
        return None
    raise InvalidFileError(
        f"git cannot read this checkout: {text.splitlines()[0] if text else done.returncode}",
        where=str(root),
        hint="see `git status` there; --code DIR names another directory, --no-code none",
    )


def find_checkout(root: Path) -> Checkout | None:
    """What git knows of a directory; None when it tracks nothing below it (or there is no git)."""
    prefix = _git(root, "rev-parse", "--show-prefix")
    if prefix is None:
        return None
    head = _git(root, "rev-parse", "--verify", "--quiet", "HEAD", fine=(0, 1)) or b""
    if not _git(root, "ls-files", "--cached", "-z", "--", "."):
        return None
    start = os.fsdecode(prefix).rstrip("\n")
    # --porcelain=v1 -z: paths from the top of the checkout, unquoted, whatever the configuration
    status = _git(
        root, "status", "--porcelain=v1", "-z", "--untracked-files=all", "--no-renames", "--", "."
    )
    changed = [os.fsdecode(line[3:]) for line in (status or b"").split(b"\0") if len(line) > 3]
    return Checkout(
        commit=head.decode("ascii", "replace").strip() or None,
        prefix=start,
        changed=tuple(sorted(p.removeprefix(start) for p in changed if p.startswith(start))),
    )


def checkout_files(root: Path, below: str = "") -> Iterator[str]:
    """Paths of tracked files, and of new ones that are not ignored; those of submodules as well.

    Raises:
        NotFoundError: a submodule was never checked out.
    """
    listed = _git(root, "ls-files", "-z", "--cached", "--others", "--exclude-standard", "--", ".")
    for raw in sorted(set((listed or b"").split(b"\0")) - {b""}):
        name = os.fsdecode(raw).rstrip("/")
        path = root / name
        if not path.is_symlink() and path.is_dir():  # a submodule, or a checkout within this one
            if not (path / ".git").exists():
                raise NotFoundError(
                    f"the submodule {below}{name} was not checked out",
                    where=str(root),
                    hint=f"git -C {root} submodule update --init {name}",
                )
            yield from checkout_files(path, f"{below}{name}/")
        else:
            yield below + name


def dirty_hash(checkout: Checkout, digest_of: Callable[[str], str]) -> str | None:
    """SHA-256 over what differs from the commit; None when nothing does.

    Args:
        checkout: the changed paths.
        digest_of: mode and content of a path, in one word; ``gone`` when there is no such file.
    """
    if not checkout.changed:
        return None
    found = hashlib.sha256()
    for path in checkout.changed:
        found.update(f"{digest_of(path)}  {path}\0".encode("utf-8", "surrogateescape"))
    return found.hexdigest()
