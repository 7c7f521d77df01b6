"""Which paths are used in place, which are copied to the run's directory, and how a script says so.

In place are paths below one of the site's ``shared_dirs``, on a site whose commands run here.
All others are copied to and from ``RUN_DIR``; they keep the name they were declared by.
"""

import os
import re
import shlex
from dataclasses import dataclass
from pathlib import PurePosixPath

from hpcscale.site import Site, TransportKind
from hpcscale.spec import IN_CONTAINER, JobSpec
from hpcscale.urls import is_url

RUN_DIR = "$HPCSCALE_RUN_DIR"


@dataclass(frozen=True, slots=True)
class Place:
    """One declared path.

    Attributes:
        kind: ``code``, ``input``, ``output`` or ``checkpoint``.
        name: of an input or output.
        variable: that the command reads it from.
        local: on the submitting machine.
        key: its name below the run's directory.
        in_place: whether the nodes see it under its own path.
    """

    kind: str
    name: str
    variable: str
    local: str
    key: str
    in_place: bool

    @property
    def staged(self) -> str:
        """Shell word of the copy's path; empty when used in place."""
        return "" if self.in_place else f"{RUN_DIR}/{self.key}"

    @property
    def plain(self) -> str:
        """Shell word of its path on the machine where the script was made."""
        return shlex.quote(self.local.rstrip("/") or "/")

    @property
    def directory(self) -> bool:
        """Whether it was declared as a directory, by a slash at its end."""
        return self.local.endswith("/")


def variable_name(name: str) -> str:
    """``train-data`` -> ``TRAIN_DATA``."""
    return re.sub(r"[^A-Z0-9_]", "_", name.upper())


# srun's own signs in the names of log files, srun(1) "filename pattern": submitit's logs would not
# be where they belong
_PATTERN = frozenset("\\%")


def is_below(path: str, directories: tuple[str, ...]) -> bool:
    """Whether an absolute path is one of these directories or below one."""
    normal = PurePosixPath(os.path.normpath(path))
    return any(d and normal.is_relative_to(os.path.normpath(d)) for d in directories)


def _shared(path: str, site: Site) -> bool:
    return (
        not is_url(path)
        and site.transport.kind is TransportKind.LOCAL
        and is_below(path, site.shared_dirs)
    )


def code_root(spec: JobSpec) -> str | None:
    """The directory that the program lives in; None when none goes along (``code = ""``)."""
    if container_code(spec) is not None:
        return None
    if spec.code is not None:
        return spec.code or None
    return spec.workdir


def container_code(spec: JobSpec) -> str | None:
    """The program's directory within its image, of ``code = "container:DIR"``; else None."""
    if spec.code is None or not spec.code.startswith(IN_CONTAINER):
        return None
    return spec.code.removeprefix(IN_CONTAINER)


def code_in_place(spec: JobSpec, site: Site) -> bool:
    """Whether the job starts in the submitter's own directory."""
    root = code_root(spec)
    return root is not None and _shared(root, site)


def start_dir(spec: JobSpec) -> str:
    """Shell word of the directory the command starts in: the workdir's place within the code."""
    root = code_root(spec)
    if root is None or spec.workdir is None:
        return '"$HPCSCALE_CODE_DIR"'
    workdir = PurePosixPath(os.path.normpath(spec.workdir))
    root = os.path.normpath(root)
    if str(workdir) == root or not workdir.is_relative_to(root):
        return '"$HPCSCALE_CODE_DIR"'
    return '"$HPCSCALE_CODE_DIR"/' + shlex.quote(str(workdir.relative_to(root)))


def places(spec: JobSpec, site: Site) -> list[Place]:
    """Every declared path, the code first."""
    found: list[Place] = []
    if root := code_root(spec):
        found.append(
            Place("code", "", "HPCSCALE_CODE_DIR", root, "code", in_place=_shared(root, site))
        )
    for kind, declared in (("input", spec.inputs), ("output", spec.outputs)):
        found += [
            Place(
                kind,
                name,
                f"HPCSCALE_{kind.upper()}_{variable_name(name)}",
                path,
                f"{kind}s/{name}",
                in_place=_shared(path, site) and not (spec.function and set(path) & _PATTERN),
            )
            for name, path in sorted(declared.items())
        ]
    if spec.checkpoint is not None:
        path = spec.checkpoint.dir
        found.append(
            Place(
                "checkpoint",
                "",
                "HPCSCALE_CHECKPOINT_DIR",
                path,
                "checkpoint",
                in_place=_shared(path, site),
            )
        )
    return found


def staged_paths(spec: JobSpec, site: Site) -> dict[str, str]:
    """Name below the run's directory -> path here, of all that is copied."""
    return {p.key: p.local for p in places(spec, site) if not p.in_place}


def shell_words(command: tuple[str, ...], found: list[Place]) -> str:
    """The command as shell words; a declared path in it is replaced by its variable.

    With ``--input d=/data/x``, ``--in=/data/x/a`` becomes ``--in="$HPCSCALE_INPUT_D"/a``.
    """
    return " ".join(_word(word, found) for word in command)


def _word(word: str, found: list[Place]) -> str:
    option, equals, value = word.partition("=")
    if not (equals and option.startswith("-")):
        option, equals, value = "", "", word
    place = declared(value, found)
    if place is None:
        return shlex.quote(word)
    rest = os.path.normpath(value)[len(os.path.normpath(place.local)) :]
    head = shlex.quote(option) + equals if option else ""
    return f'{head}"${place.variable}"{shlex.quote(rest) if rest else ""}'


def declared(path: str, found: list[Place]) -> Place | None:
    """The longest declared path that ``path`` is or lies below; None when there is none.

    Hidden directories of the code (``.venv``, ``.git``) are no part of what goes along.
    """
    if not path.startswith("/"):
        return None
    normal = PurePosixPath(os.path.normpath(path))
    fits = []
    for place in found:
        local = os.path.normpath(place.local)
        if not normal.is_relative_to(local) or local == "/":
            continue
        parts = normal.relative_to(local).parts
        if place.kind == "code" and any(part.startswith(".") for part in parts):
            continue
        fits.append(place)
    return max(fits, key=lambda p: len(os.path.normpath(p.local)), default=None)
