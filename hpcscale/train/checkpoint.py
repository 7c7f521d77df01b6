"""Checkpoints that are whole or do not count, for programs that run inside a job.

The standard library and torch are all this file needs, and torch only to save and load: it works
where hpcscale is not installed, so a project may ship this one file beside its training script.

A checkpoint is a directory ``step-000000000120`` holding one file per named object, then
``manifest.json`` (step, world size, size and SHA-256 of each file), then ``COMPLETE``, which holds
the manifest's own hash and is written last. All of it is made under a temporary name, flushed to
disk and renamed. ``latest`` is a small text file naming the newest one, replaced by rename; it is
for people. Resuming never trusts names or ``latest``: it takes the newest directory that verifies.

Inside a job, ``save`` first makes sure that the job's claim still counts: a start that Slurm has
lost sight of and begun again elsewhere, or whose run has moved, commits nothing and ends with
``SUPERSEDED`` as its exit code.

Typical use, on every rank::

    store = CheckpointStore(os.environ["HPCSCALE_CHECKPOINT_DIR"])
    found = store.newest()
    step = found.step if found else 0
    if found:
        model.load_state_dict(store.load(found, "model"))
    while step < last:
        step += 1
        train_one(step)
        stop = stop_agreed()
        if rank == 0 and (stop or step % 100 == 0):
            store.save(step, {"model": model.state_dict()})
        if stop:
            break
"""

from __future__ import annotations  # a node's Python may be older than ours: 3.9 is enough

import hashlib
import json
import os
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MANIFEST = "manifest.json"
MARKER = "COMPLETE"
LATEST = "latest"
_PREFIX = "step-"
_TEMPORARY = ".saving-"
SUPERSEDED = 96  # exit code of a start that another one has replaced


class SupersededError(SystemExit):
    """Another start of this job counts now; uncaught, the process ends with ``SUPERSEDED``."""

    def __init__(self, why: str) -> None:
        super().__init__(SUPERSEDED)
        self.why = why


@dataclass(frozen=True)
class Found:
    """A checkpoint that verified.

    Attributes:
        step: the training step after which it was saved.
        path: its directory.
        world_size: ranks of the job that saved it.
        files: the names of its objects.
    """

    step: int
    path: Path
    world_size: int
    files: tuple[str, ...]


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _flush(path: Path) -> None:
    """Force a file or a directory to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _write(path: Path, data: bytes) -> None:
    path.write_bytes(data)
    _flush(path)


def verify(path: Path) -> Found | None:
    """The checkpoint in a directory, or None when it is torn, foreign or changed.

    Reads every byte: sizes and hashes must be those of the manifest, and the marker must hold the
    manifest's hash.
    """
    try:
        manifest = (path / MANIFEST).read_bytes()
        if (path / MARKER).read_text().strip() != hashlib.sha256(manifest).hexdigest():
            return None
        data = json.loads(manifest)
        for name, entry in data["files"].items():
            file = path / name
            if file.stat().st_size != entry["size"] or _sha256(file) != entry["sha256"]:
                return None
        return Found(
            step=int(data["step"]),
            path=path,
            world_size=int(data["world_size"]),
            files=tuple(data["files"]),
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


class CheckpointStore:
    """The checkpoints of one training, in one directory of one file system.

    Args:
        root: the directory; made on the first save.
        keep: complete checkpoints to keep; older ones are removed after a save. At least 2 is
            wise: the newest may lie on a disk that fails.
    """

    def __init__(self, root: str | os.PathLike[str], *, keep: int = 2) -> None:
        if keep < 1:
            raise ValueError(f"keep must be at least 1, not {keep}")
        self.root = Path(root)
        self.keep = keep

    def _directories(self) -> list[Path]:
        """Directories named like checkpoints, newest step first; complete or not."""
        if not self.root.is_dir():
            return []
        named = [p for p in self.root.iterdir() if p.name.removeprefix(_PREFIX).isdecimal()]
        return sorted(
            (p for p in named if p.name.startswith(_PREFIX)),
            key=lambda p: int(p.name.removeprefix(_PREFIX)),
            reverse=True,
        )

    def newest(self) -> Found | None:
        """The newest checkpoint that verifies; None when there is none. Read-only."""
        for path in self._directories():
            found = verify(path)
            if found is not None:
                return found
        return None

    def save(self, step: int, objects: Mapping[str, Any], *, world_size: int | None = None) -> Path:
        """Save named objects with ``torch.save``. One rank calls this; the others go on.

        Args:
            step: the step that has been finished.
            objects: file name without suffix -> what to save (state dicts, tensors, numbers).
            world_size: ranks of the job; default ``$WORLD_SIZE``.

        Returns:
            The checkpoint's directory, complete and on disk.

        Raises:
            SupersededError: another start of this job counts now; nothing was committed.
        """
        import torch

        _require_claim()
        final = self.root / f"{_PREFIX}{step:012d}"
        if verify(final) is not None:
            # a run that resumed and reached the same step again: the first copy is as good
            self._point(final)
            return final
        self.root.mkdir(parents=True, exist_ok=True)
        work = self.root / f"{_TEMPORARY}{step:012d}-{os.getpid()}-{os.urandom(4).hex()}"
        work.mkdir()
        files = {}
        for name, value in objects.items():
            file = work / f"{name}.pt"
            torch.save(value, file)
            _flush(file)
            files[file.name] = {"size": file.stat().st_size, "sha256": _sha256(file)}
        ranks = world_size if world_size is not None else int(os.environ.get("WORLD_SIZE", "1"))
        manifest = json.dumps(
            {"step": step, "world_size": ranks, "files": files}, indent=1, sort_keys=True
        ).encode()
        _write(work / MANIFEST, manifest)
        _write(work / MARKER, hashlib.sha256(manifest).hexdigest().encode())
        _flush(work)
        try:
            _require_claim()  # writing takes minutes, and then it may be too late
        except SupersededError:
            shutil.rmtree(work, ignore_errors=True)
            raise
        if final.exists():
            shutil.rmtree(final)  # it did not verify
        work.rename(final)
        _flush(self.root)
        self._point(final)
        self._prune(work)
        return final

    def load(self, found: Found, name: str, *, map_location: Any = "cpu") -> Any:
        """One object of a checkpoint; code inside the file is not run (``weights_only``)."""
        import torch

        return torch.load(found.path / f"{name}.pt", map_location=map_location, weights_only=True)

    def _point(self, final: Path) -> None:
        """Move ``latest``: a reader sees the old name or the new one, never half of one."""
        temporary = self.root / f"{_TEMPORARY}{LATEST}-{os.getpid()}-{os.urandom(4).hex()}"
        _write(temporary, f"{final.name}\n".encode())
        temporary.replace(self.root / LATEST)
        _flush(self.root)

    def _prune(self, mine: Path) -> None:
        """Remove old checkpoints, and what killed processes left half-written."""
        whole = [p for p in self._directories() if (p / MARKER).is_file()]
        for path in whole[self.keep :]:
            # the marker first: a removal cut short must not leave something that looks whole
            (path / MARKER).unlink(missing_ok=True)
            shutil.rmtree(path, ignore_errors=True)
        for path in self.root.glob(f"{_TEMPORARY}*"):
            if path != mine and path.is_dir():
                shutil.rmtree(path, ignore_errors=True)


def superseded() -> str:
    """Why this start of the job counts no more; empty while it does, or when nobody can tell.

    The job script names its entry in the log of claims in ``$HPCSCALE_CLAIM``. An entry behind it
    means that the job was begun again, or was given to another attempt; ``<submission id>.revoked``
    beside it that all its claims were taken back. Without the variable, or where that directory is
    not to be seen, nobody asks.
    """
    claim = os.environ.get("HPCSCALE_CLAIM", "")
    directory, name = os.path.split(claim)
    log, _, number = name.rpartition(".")
    if not (directory and log and number.isdecimal()):
        return ""
    try:
        # a listing: asked for one name that was missing before, NFS answers from memory (nfs(5))
        names = set(os.listdir(directory))  # noqa: PTH208 - names alone, at each save
    except OSError:
        return ""
    if name not in names:
        return ""
    if f"{log}.{int(number) + 1}" in names:
        return f"{log}.{int(number) + 1} has been claimed after {name}"
    submission_id = os.environ.get("HPCSCALE_SUBMISSION_ID", "")
    if f"{submission_id}.revoked" in names:
        return f"the claims of {submission_id} were revoked"
    return ""


def _require_claim() -> None:
    why = superseded()
    if why:
        sys.stderr.write(f"hpcscale: superseded, nothing is saved: {why}\n")
        sys.stderr.flush()
        raise SupersededError(why)


def stop_requested() -> bool:
    """Whether the job script has raised the stop flag: save now and end.

    The flag is the file ``$HPCSCALE_STOP_FILE``; the script raises it when the time limit or a
    preemption comes near. Without the variable nobody asks.
    """
    flag = os.environ.get("HPCSCALE_STOP_FILE")
    return bool(flag) and os.path.exists(flag or "")  # noqa: PTH110 - called every step


def stop_agreed(device: Any = "cpu") -> bool:
    """``stop_requested`` of any rank, told to all: every rank gets the same answer.

    A collective call: all ranks call it at the same place, or the job hangs. Without an
    initialised process group it is ``stop_requested`` itself.
    """
    import torch
    import torch.distributed as dist

    if not (dist.is_available() and dist.is_initialized()):
        return stop_requested()
    flag = torch.tensor([int(stop_requested())], device=device)
    dist.all_reduce(flag, op=dist.ReduceOp.MAX)
    return bool(flag.item())
