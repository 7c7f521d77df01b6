"""Arrays of functions that one sbatch cannot take: sent in parts, as the site has room.

A batch is a run in the ledger that holds no attempt of its own: ``N`` tasks, with a pickle each.
Parts of it are sent as runs of their own, whose arrays are numbered from 0. What a limit keeps back
(MaxArraySize, MaxSubmitJobs, MaxJobCount) stays in the ledger and on disk, and whoever comes next
sends it: a live ``result()``, ``hpcscale tend``, or cron. The event that names a part's run is
written before the part is submitted, so nothing is sent twice, whenever a sender dies. Of two
senders at a time (flock(2) may hold on one host alone) one writes the row of its attempt first; the
other finds it in the transaction that would write its own.
"""

import contextlib
import fcntl
import os
import re
import shutil
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec

from hpcscale.connect import Connection
from hpcscale.errors import (
    HpcscaleError,
    NotFoundError,
    NotSentError,
    RefusedError,
    SubmitUnknownError,
)
from hpcscale.ledger import Attempt, Ledger, Run
from hpcscale.precheck import cached_facts, fetch_facts
from hpcscale.prepare import EVENT as CODE_EVENT
from hpcscale.prepare import code_of, prepare
from hpcscale.slurm.types import JobState
from hpcscale.spec import JobSpec
from hpcscale.submit import submit

STORED, SENDING, SKIPPED, DROPPED = "batch.stored", "batch.sending", "batch.skip", "batch.dropped"
INPUT = "submitit"
MANY = 200  # tasks for which asking for room is worth a question
SBATCH_TIMEOUT_S = 150.0  # sbatch gives up by itself after 120 s, and says so

# Slurm's words for "not now" (sbatch(1), slurm_errno.c); size and time limits are "never"
_FULL = re.compile(r"Resource temporarily unavailable|job queue full", re.IGNORECASE)
_NOT_NOW = re.compile(
    r"Max(Submit|Jobs)\w*(Limit|PerUser|PerAccount|PerAcct)|SubmitJob\w*Limit"
    r"|temporarily unable to accept job|job submit limit",
    re.IGNORECASE,
)


class _OvertakenError(HpcscaleError):
    """Another sender was there first, or a task was cancelled meanwhile; never leaves here."""


@dataclass(frozen=True, slots=True)
class Part:
    """A part that Slurm has, or may have.

    Attributes:
        start, stop: tasks of the batch, ``stop`` not included.
        skip: tasks among them that were cancelled before they were sent.
        attempt: its submission; None when all of it was cancelled before.
    """

    start: int
    stop: int
    skip: tuple[int, ...]
    attempt: Attempt | None

    def number(self, task: int) -> int | None:
        """The array index of a task of the batch; None when it was not sent."""
        if self.attempt is None or task in self.skip:
            return None
        return task - self.start - (sum(1 for s in self.skip if s < task) if self.skip else 0)


@dataclass(frozen=True, slots=True)
class Batch:
    """What is known of a batch.

    Attributes:
        size: tasks in all.
        parallel: tasks that may run at the same time, in each part.
        skip: tasks that were cancelled.
        dropped: nothing more is to be sent.
        blocked: why the last attempt to send did not send all; empty when it did.
    """

    run: Run
    size: int
    parallel: int
    parts: tuple[Part, ...]
    skip: frozenset[int]
    dropped: bool
    blocked: str = ""

    def part(self, task: int) -> Part | None:
        """The part that a task was sent with."""
        return next((p for p in self.parts if p.start <= task < p.stop), None)

    @property
    def gaps(self) -> list[tuple[int, int]]:
        """Ranges that are still to be sent."""
        if self.dropped:
            return []
        found, at = [], 0
        for part in self.parts:
            if part.start > at:
                found.append((at, part.start))
            at = max(at, part.stop)
        if at < self.size:
            found.append((at, self.size))
        return found

    @property
    def unsent(self) -> int:
        """How many tasks are still to be sent."""
        return sum(
            stop - start - sum(1 for s in self.skip if start <= s < stop)
            for start, stop in self.gaps
        )


def store(ledger: Ledger, spec: JobSpec, site: str, size: int, parallel: int) -> Batch:
    """Note a batch; nothing is sent yet. Its pickles are the spec's input ``submitit``."""
    run = ledger.new_run(spec, site=site)
    ledger.event(run.run_id, STORED, {"size": size, "parallel": parallel})
    return read(ledger, run.run_id)


def read(ledger: Ledger, run_id: str) -> Batch:
    """A batch as the ledger has it.

    Raises:
        NotFoundError: the run is no batch.
    """
    stored = ledger.events(run_id, STORED)
    if not stored:
        raise NotFoundError(f"run {run_id} is no batch")
    parts = []
    for event in ledger.events(run_id, SENDING):
        live = [
            a for a in ledger.attempts(event.data["run_id"]) if a.state is not JobState.REFUSED
        ] if event.data["run_id"] else [None]  # fmt: skip
        if live:
            parts.append(
                Part(event.data["start"], event.data["stop"], tuple(event.data["skip"]), live[-1])
            )
    return Batch(
        run=ledger.run(run_id),
        size=stored[0].data["size"],
        parallel=stored[0].data["parallel"],
        parts=tuple(sorted(parts, key=lambda p: p.start)),
        skip=frozenset(e.data["task"] for e in ledger.events(run_id, SKIPPED)),
        dropped=bool(ledger.events(run_id, DROPPED)),
    )


def waiting(ledger: Ledger) -> list[Batch]:
    """Batches of which something is still to be sent, oldest first."""
    over = {e.run_id for e in ledger.events(kind=DROPPED)}
    ids = [e.run_id for e in ledger.events(kind=STORED) if e.run_id and e.run_id not in over]
    return [b for b in (read(ledger, run_id) for run_id in ids) if b.unsent]


def skip(ledger: Ledger, run_id: str, task: int) -> None:
    """Cancel a task that was not sent yet."""
    ledger.event(run_id, SKIPPED, {"task": task})


def drop(ledger: Ledger, run_id: str, why: str) -> None:
    """Send nothing more of it."""
    ledger.event(run_id, DROPPED, {"why": why})


def max_array_size(connection: Connection) -> int:
    """Most elements that one array can have there: slurm.conf MaxArraySize, from facts.

    Raises:
        UnreachableError: no answer.
    """
    site = connection.site
    return (cached_facts(site) or fetch_facts(site, connection.client)).max_array_size


def room(connection: Connection) -> int | None:
    """How many more jobs the controller keeps: slurm.conf MaxJobCount, less those it has.

    Asked before a large part is sent: a full controller makes sbatch sleep for two minutes before
    it says no. None when the site does not tell.

    Raises:
        UnreachableError: no answer.
    """
    site = connection.site
    facts = cached_facts(site) or fetch_facts(site, connection.client)
    most = facts.config.get("MaxJobCount", "")
    if not most.isdigit():
        return None
    return max(0, int(most) - 1 - connection.client.job_count())  # it wants to stay below


def send(ledger: Ledger, connection: Connection, run_id: str) -> Batch:
    """Send what the site takes; the rest stays. Another sender at work is left alone.

    Raises:
        RefusedError: for a reason that will not pass.
        UnreachableError, StateError: as ``submit``; what was sent is known.
    """
    batch = read(ledger, run_id)
    with _alone(Path(batch.run.spec.inputs[INPUT])) as alone:
        if not alone:
            return batch
        batch = read(ledger, run_id)
        most = max_array_size(connection)
        left = room(connection) if batch.unsent >= MANY else None
        while gaps := batch.gaps:
            start, stop = gaps[0]
            stop = min(stop, start + most)
            if left is not None:
                if left <= 0:
                    return replace(batch, blocked="the controller has no room (MaxJobCount)")
                stop = min(stop, start + left)
                left -= stop - start
            try:
                _send_part(ledger, connection, batch, start, stop)
            except RefusedError as exc:
                if not not_now(exc):
                    raise
                if stop - start == 1:
                    return replace(batch, blocked=exc.message)
                most = (stop - start) // 2
                left = None
            except NotSentError as exc:
                if not _FULL.search(exc.message):
                    raise
                return replace(read(ledger, run_id), blocked=exc.message)
            except SubmitUnknownError as exc:
                return replace(read(ledger, run_id), blocked=exc.message)
            except _OvertakenError:
                pass  # what is still to be sent is another part
            batch = read(ledger, run_id)
    return batch


def not_now(error: RefusedError) -> bool:
    """Whether the same request may be taken later: a limit on how many jobs there are."""
    return bool(_NOT_NOW.search(f"{error.message} {error.hint or ''}"))


def _send_part(ledger: Ledger, connection: Connection, batch: Batch, start: int, stop: int) -> None:
    tasks = [t for t in range(start, stop) if t not in batch.skip]
    left_out = [t for t in range(start, stop) if t in batch.skip]
    noted = {"start": start, "stop": stop, "skip": left_out}
    if not tasks:
        ledger.event(batch.run.run_id, SENDING, {**noted, "run_id": ""})
        return
    spec = batch.run.spec
    pickles = Path(spec.inputs[INPUT])
    if len(tasks) < batch.size:
        pickles = part_of(pickles, tasks)
    parallel = min(batch.parallel, len(tasks))
    spec = msgspec.structs.replace(
        spec, array=f"0-{len(tasks) - 1}%{parallel}", inputs={**spec.inputs, INPUT: str(pickles)}
    )
    run = ledger.new_run(spec, site=batch.run.site, cwd=batch.run.cwd)
    ledger.event(batch.run.run_id, SENDING, {**noted, "run_id": run.run_id})
    try:
        known = code_of(ledger, batch.run.run_id)
        rendered = prepare(spec, connection.site, code=known)
        if known is None and rendered.code is not None:  # later parts start the same program
            ledger.event(batch.run.run_id, CODE_EVENT, msgspec.to_builtins(rendered.code))
        submit(
            rendered,
            connection.site,
            connection,
            ledger,
            run=run,
            check=lambda: _require_unsent(ledger, batch.run.run_id, start, stop, tasks),
            timeout_s=SBATCH_TIMEOUT_S,
        )
    except (RefusedError, NotSentError, _OvertakenError):
        if len(tasks) < batch.size:
            shutil.rmtree(pickles, ignore_errors=True)
        raise


def _require_unsent(
    ledger: Ledger, run_id: str, start: int, stop: int, tasks: Sequence[int]
) -> None:
    """Within the transaction that notes the submission: are these tasks still to be sent?"""
    now = read(ledger, run_id)
    if now.dropped or now.skip & set(tasks):
        raise _OvertakenError("tasks were cancelled")
    if any(part.start < stop and start < part.stop for part in now.parts):
        raise _OvertakenError("another sender has sent some of it")


def part_of(directory: Path, tasks: Sequence[int]) -> Path:
    """A directory with some of the pickles, renumbered from 0; the files are shared."""
    part = directory.with_name(f"{directory.name}-{uuid.uuid4().hex[:8]}")
    part.mkdir(mode=0o700)
    for position, task in enumerate(tasks):
        link(directory / f"{task}.pkl", part / f"{position}.pkl")
    shutil.copytree(directory / "lib", part / "lib")
    return part


def link(source: str | Path, target: str | Path) -> None:
    """The same file under another name, or a copy where there are no hard links."""
    try:
        os.link(source, target)
    except FileExistsError:
        Path(target).unlink(missing_ok=True)
        link(source, target)
    except OSError:
        shutil.copyfile(source, target)


@contextlib.contextmanager
def _alone(pickles: Path) -> Iterator[bool]:
    """Whether this process alone sends the batch now."""
    path = pickles.with_name(f"{pickles.name}.lock")
    try:
        handle = os.open(path, os.O_CREAT | os.O_RDWR, 0o600)
    except FileNotFoundError:
        raise NotFoundError(
            f"the pickles are gone: {pickles}", hint="they were removed with submitit's folder"
        ) from None
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            yield False
            return
        yield True
    finally:
        os.close(handle)
