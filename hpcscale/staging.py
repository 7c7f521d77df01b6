"""Copying to and from a run's directory on a site: code, inputs and secrets there, results back.

A run's directory, seen by the site's login node and by all its nodes::

    RUN_DIR/script.sh  logs/  events/  inputs/N  outputs/N  code/  checkpoint/  secrets/SUBMISSION/

What is copied is named ``code``, ``inputs/N``, ``outputs/N`` or ``checkpoint``: the same name here,
in the ledger and as the path below RUN_DIR. Nothing is removed here, ever; there only what a
refused submission had just made.
"""

import contextlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from hpcscale.code.store import Packed, place
from hpcscale.errors import (
    HpcscaleError,
    InvalidFileError,
    NotFoundError,
    NotOursError,
    StateError,
    UnreachableError,
)
from hpcscale.fetching import MAX_BYTES, Fetched, fetch_all
from hpcscale.inputs import LARGE_BYTES, Item, put_large, read_items
from hpcscale.slurm.transport import Transport
from hpcscale.transfer import SILENT, Meter
from hpcscale.units import JobId
from hpcscale.urls import is_url

if TYPE_CHECKING:
    import tarfile

CODE = "code"
CHECKPOINT = "checkpoint"
LOGS = "logs"
FUNCTION_FILES = "outputs/submitit"
SUBDIRS = ("logs", "events", "inputs", "outputs")
COPY_TIMEOUT_S = 3600.0


def make_run_dir(transport: Transport, run_dir: str) -> None:
    """Make a run's directory and those in it, for this user alone.

    Raises:
        StateError: the site's state directory cannot be written.
        NotOursError: it is another user's, or others may write there.
    """
    runs = str(PurePosixPath(run_dir).parent)
    checked = [str(PurePosixPath(runs).parent), runs, run_dir]
    dirs = [f"{run_dir}/{name}" for name in SUBDIRS]
    if transport.is_local:
        try:
            for directory in (*checked, *dirs):
                _make_private(directory)
            wrong = [d for d in checked if not _private(d)]
        except OSError as exc:
            raise _unwritable(transport, run_dir, exc.strerror or str(exc)) from exc
    else:
        done = transport.run(["/bin/sh", "-c", _MAKE, "sh", *checked, *dirs])
        if done.returncode:
            raise _unwritable(transport, run_dir, done.stderr.strip())
        wrong = done.stdout.splitlines()
    if wrong:
        raise NotOursError(
            "it is not yours alone to write: others could change your jobs",
            where=f"{transport.name}:{wrong[0]}",
            hint=f"chmod go-w {wrong[0]}, or set `state_dir` to a directory of your own",
        )


# new directories are this user's alone; those that are there already are looked at, not changed
_MAKE = (
    'umask 077; mkdir -p -- "$@" && '
    'find -H "$1" "$2" "$3" -maxdepth 0 "(" ! -user "$(id -u)" -o -perm /022 ")" -print'
)


def _make_private(directory: str) -> None:
    missing = []
    path = Path(directory)
    while not path.is_dir():
        missing.append(path)
        path = path.parent
    for each in reversed(missing):
        each.mkdir(mode=0o700, exist_ok=True)


def _private(directory: str) -> bool:
    found = Path(directory).stat()
    return found.st_uid == os.geteuid() and not found.st_mode & 0o022


def _unwritable(transport: Transport, run_dir: str, why: str) -> StateError:
    return StateError(
        f"the run's directory cannot be made: {why}",
        where=f"{transport.name}:{run_dir}",
        hint="check `state_dir` and the room left: hpcscale site check",
    )


def remove_run_dir(transport: Transport, run_dir: str, run_id: str) -> None:
    """Remove what a refused submission had made; failures are no news.

    ``run_id`` guards: a directory that does not end in it is never removed.
    """
    if PurePosixPath(run_dir).parts[-2:] != ("runs", run_id):
        return
    with contextlib.suppress(HpcscaleError):
        transport.run(["rm", "-rf", "--", run_dir])


def put_secrets(
    transport: Transport, run_dir: str, submission_id: str, values: Mapping[str, bytes]
) -> None:
    """Write each secret to its own 0600 file; the script reads it and removes it at its end."""
    if not values:
        return
    directory = f"{run_dir}/secrets/{submission_id}"
    done = transport.run(["install", "-d", "-m", "700", "--", f"{run_dir}/secrets", directory])
    if done.returncode:
        raise _unwritable(transport, directory, done.stderr.strip())
    for name, value in values.items():
        transport.put_bytes(value, f"{directory}/{name}", mode=0o600)


def remove_secrets(transport: Transport, run_dir: str, submission_id: str) -> None:
    """Remove the secrets of a submission whose script will not do it; failures are no news."""
    with contextlib.suppress(HpcscaleError):
        transport.run(["rm", "-rf", "--", f"{run_dir}/secrets/{submission_id}"])


def check_local(staged: Mapping[str, str]) -> None:
    """Whether inputs are here and readable, and outputs can be brought to where they are wanted.

    Raises:
        NotFoundError: an input is not here.
        InvalidFileError: it cannot be read, or an output's place cannot be written.
    """
    for name, path in staged.items():
        local = Path(path)
        if name.startswith("inputs/") and is_url(path):
            from hpcscale.objects import require_input

            require_input(path)
        elif name.startswith("inputs/"):
            input_name = name.removeprefix("inputs/")
            if not local.exists():
                raise NotFoundError(
                    f"input {input_name!r} does not exist: {path}",
                    hint=f"--input {input_name}=PATH of an existing file or directory",
                )
            if not os.access(local, os.R_OK):
                raise InvalidFileError(f"input {input_name!r} cannot be read", where=str(local))
        elif name.startswith("outputs/"):
            _require_writable(name.removeprefix("outputs/"), local)


def _require_writable(output: str, path: Path) -> None:
    """After hours of computing is too late to find that the result has no place."""
    there = next(p for p in (path, *path.parents) if p.exists())
    if there.is_dir() and os.access(there, os.W_OK | os.X_OK):
        return
    if there == path and there.is_file() and os.access(there, os.W_OK):
        return
    raise InvalidFileError(
        f"output {output!r} cannot be brought to {path}: {there} "
        + ("is not writable" if there.is_dir() or there == path else "is no directory"),
        where=f"--output {output}",
        hint=f"--output {output}=PATH in a directory of yours",
    )


def stage_in(
    transport: Transport,
    run_dir: str,
    staged: Mapping[str, str],
    *,
    code: Packed | None = None,
    never: frozenset[Path] = frozenset(),
    meter: Meter = SILENT,
) -> None:
    """Copy code, inputs and an existing checkpoint into the run's directory.

    Large inputs are kept at the site, and only what changed is sent again.

    Args:
        transport: to the site.
        run_dir: the run's directory there.
        staged: what ``render`` says must be copied.
        code: the code, when it goes along.
        never: files (resolved) that are left out of every directory: those that secrets are read
            from, which would stay at the site otherwise.
        meter: told how it goes on.

    Raises:
        HpcscaleError: a file cannot be read here or written there.
    """
    state = PurePosixPath(run_dir).parent.parent
    if code is not None:
        place(transport, f"{state}/{CODE}", code, f"{run_dir}/{CODE}", meter)
    for name, path in staged.items():
        if name.startswith("inputs/") and is_url(path):
            from hpcscale.objects import put_input

            put_input(transport, str(state), path, f"{run_dir}/{name}", meter=meter)
            continue
        local = Path(path)
        if name.startswith("outputs/") or (name == CHECKPOINT and not local.is_dir()):
            continue  # these begin empty; the script makes them
        if name == CODE:
            continue
        target = f"{run_dir}/{name}"
        items = read_items(local, never)
        if sum(item.size for item in items) >= LARGE_BYTES:
            put_large(
                transport,
                f"{state}/inputs",
                local,
                items,
                target,
                link=name != CHECKPOINT,
                meter=meter,
            )
        elif local.is_dir():
            _put_tree(transport, local, target, items)
        else:
            transport.put_file(local, target, mode=0o600 | local.stat().st_mode & 0o100)


def _private_member(member: "tarfile.TarInfo") -> "tarfile.TarInfo":
    """Without its owner, and for this user alone."""
    member.uid = member.gid = 0
    member.uname = member.gname = ""
    member.mode = 0o700 if member.isdir() else 0o600 | member.mode & 0o100
    return member


def _put_tree(transport: Transport, local: Path, target: str, items: Sequence[Item]) -> None:
    """Copy a small directory as one tar file: a single transfer, however many files it has."""
    import tarfile
    import tempfile

    archive = f"{target}.{os.urandom(4).hex()}.tar"
    try:
        with tempfile.NamedTemporaryFile(prefix="hpcscale-", suffix=".tar") as packed:
            with tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as tar:
                for item in items:
                    tar.add(local / item.path, item.path, recursive=False, filter=_private_member)
            packed.flush()
            transport.put_file(Path(packed.name), archive, mode=0o600)
    except OSError as exc:
        raise HpcscaleError(f"cannot be packed: {exc}", where=str(local)) from exc
    try:
        for argv in (
            ["mkdir", "-p", "--", target],
            ["tar", "-xf", archive, "-C", target, "--no-same-owner"],
        ):
            done = transport.run(argv, timeout_s=COPY_TIMEOUT_S)
            if done.returncode:
                raise HpcscaleError(
                    f"{local} was not copied: {done.stderr.strip()[:300]}",
                    where=f"{transport.name}:{target}",
                    hint="is there room? hpcscale site check",
                )
    finally:
        with contextlib.suppress(HpcscaleError):
            transport.run(["rm", "-f", "--", archive])


def results_of(staged: Mapping[str, str], logs_to: Path | None) -> dict[str, Path | str]:
    """What a run brings home: name below its directory -> where it belongs: a path or a URL."""
    wanted: dict[str, Path | str] = {
        k: v if is_url(v) else Path(v)
        for k, v in staged.items()
        if k.startswith("outputs/") or k == CHECKPOINT
    }
    if logs_to is not None:
        wanted[LOGS] = logs_to
    return wanted


def fetch_results(
    transport: Transport,
    run_dir: str,
    staged: Mapping[str, str],
    logs_to: Path | None,
    *,
    max_bytes: int = MAX_BYTES,
    meter: Meter = SILENT,
) -> Fetched:
    """Bring outputs, checkpoint and logs of a run back. Files that are here already are skipped.

    Args:
        transport: of the site.
        run_dir: on the site.
        staged: name -> local path, as submitted.
        logs_to: local directory of the logs, made as needed; None leaves them there.
        max_bytes: more is refused.
        meter: told how it goes on.

    Raises:
        RefusedError: it is more than ``max_bytes``, or than there is room for.
        UnreachableError: the site went away; call again, it goes on from there.
    """
    places = results_of(staged, logs_to)
    return fetch_places(transport, run_dir, places, max_bytes=max_bytes, meter=meter)


def fetch_places(
    transport: Transport,
    run_dir: str,
    places: Mapping[str, Path | str],
    *,
    max_bytes: int = MAX_BYTES,
    meter: Meter = SILENT,
) -> Fetched:
    """Bring what ``results_of`` names; see ``fetch_results``."""
    here = [(f"{run_dir}/{k}", v) for k, v in places.items() if isinstance(v, Path)]
    found = fetch_all(transport, here, max_bytes=max_bytes, meter=meter)
    for name, url in places.items():
        if isinstance(url, str):
            from hpcscale.objects import put_output

            put = put_output(transport, f"{run_dir}/{name}", url, max_bytes=max_bytes, meter=meter)
            found.add(put)
    return found


def fetch_element(
    transport: Transport,
    run_dir: str,
    places: Mapping[str, Path | str],
    job_id: JobId,
    *,
    whole: Sequence[str] = (),
    max_bytes: int = MAX_BYTES,
    meter: Meter = SILENT,
) -> Fetched:
    """Bring what is one array element's own: its log, its checkpoint, its function's files.

    Args:
        transport: of the site.
        run_dir: on the site.
        places: of the whole array, as ``results_of`` names them.
        job_id: the element's.
        whole: names that are brought whole all the same.
        max_bytes: more is refused.
        meter: told how it goes on.

    Returns:
        What came; ``shared`` names the outputs that all elements write to.
    """
    own: list[tuple[str, Path]] = []
    found = Fetched()
    rest: dict[str, Path | str] = {}
    for name, here in places.items():
        if name == LOGS and isinstance(here, Path):
            own.append((f"{run_dir}/{LOGS}/{job_id}.log", here / f"{job_id}.log"))
        elif name == CHECKPOINT and isinstance(here, Path):
            task = f"task-{job_id.array_task}"
            own.append((f"{run_dir}/{CHECKPOINT}/{task}", here / task))
        elif name == FUNCTION_FILES and isinstance(here, Path):  # submitit's names begin so
            found.add(
                fetch_all(
                    transport,
                    [(f"{run_dir}/{name}", here)],
                    max_bytes=max_bytes,
                    meter=meter,
                    prefix=f"{job_id}_",
                )
            )
        elif name in whole:
            rest[name] = here
        else:
            found.shared.append(name)
    found.add(fetch_all(transport, own, max_bytes=max_bytes, meter=meter))
    found.add(fetch_places(transport, run_dir, rest, max_bytes=max_bytes, meter=meter))
    return found


def read_text_files(transport: Transport, paths: Sequence[str], pattern: str) -> dict[str, str]:
    """Content of all files whose names match ``pattern`` below directories, by one command.

    Args:
        transport: of the site.
        paths: directories there; those that do not exist are passed over.
        pattern: shell wildcard of the file's name.

    Returns:
        Path -> content. Only for small one-line files.
    """
    found: dict[str, str] = {}
    for start in range(0, len(paths), 500):
        part = paths[start : start + 500]
        done = transport.run(["grep", "-rHsZ", "-e", "", f"--include={pattern}", "--", *part])
        if done.returncode > 2:  # 1: nothing found; 2: some directory is not there
            raise UnreachableError(
                f"the runs' event files cannot be read: {done.stderr.strip()[:200]}",
                where=transport.name,
            )
        for line in done.stdout.splitlines():
            path, nul, text = line.partition("\0")
            if nul:
                found[path] = found.get(path, "") + text
    return found
