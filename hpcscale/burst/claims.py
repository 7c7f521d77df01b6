"""What both sides must win before user code: the claim on an attempt, and the gate's decision.

Both are files that ``link(2)`` makes whole, once, and that nobody changes afterwards; so whoever
reads one knows as much as whoever made it, and a lost reply is resolved by reading.

*The claim* is a log, ``<state>/claims/<run>.<submission id>.<entry>``, on the attempt's own site.
An entry holds ``<owner> <restart>``: the attempt's own submission id for a start of the job itself,
or the submission id of the attempt that takes its place. Each adds itself behind the last entry,
unless an owner stands there that is not revoked (``<state>/claims/<owner>.revoked``).

An array has such a log too, and ``….task<k>.<entry>`` for each element besides: an element takes
the array's (any element may) before its own, so who has the array's has all of them. Who wants one
element alone takes the array's for the array itself, as its elements do, and then the element's.

*The decision* is ``<run dir>/decision.<submission id>`` on the target's site: ``opened`` or
``closed`` by the handover, ``expired`` by the job at the end of its lease.
"""

import enum
import re
from dataclasses import dataclass
from typing import Protocol

from hpcscale.errors import HpcscaleError, NotFoundError
from hpcscale.slurm.remote import exists, link_once, private_dir
from hpcscale.slurm.transport import Transport
from hpcscale.staging import read_text_files

CLOSED = "closed"  # the owner of an attempt that nobody may start any more
_TRIES = 20  # each lost race means that somebody else made progress


class Word(enum.StrEnum):
    """A decision."""

    OPENED = "opened"  # the command may begin
    CLOSED = "closed"  # the handover took the move back
    EXPIRED = "expired"  # nobody decided within the lease


@dataclass(frozen=True, slots=True)
class Claim:
    """Who has an attempt.

    Attributes:
        owner: a submission id, or ``closed``.
        started: the attempt's job itself has begun.
    """

    owner: str
    started: bool = False


class Claimed(Protocol):
    """What a claim or a decision is of; an ``Attempt`` is one."""

    @property
    def run_id(self) -> str: ...  # noqa: D102
    @property
    def submission_id(self) -> str: ...  # noqa: D102
    @property
    def run_dir(self) -> str: ...  # noqa: D102
    @property
    def task(self) -> int | None: ...  # noqa: D102


@dataclass(frozen=True, slots=True)
class Place:
    """An attempt of which no more is known: it is of another ledger."""

    run_id: str
    submission_id: str
    run_dir: str
    task: int | None = None


def claims_dir(attempt: Claimed) -> str:
    """Where the script of this attempt looks for claims."""
    state, runs, _ = attempt.run_dir.rpartition("/runs/")
    return f"{state if runs else attempt.run_dir}/claims"


def take(transport: Transport, attempt: Claimed, owner: str, restarts: int = 0) -> Claim:
    """Take an attempt's claim, so that its job starts no user code; may be repeated.

    Args:
        transport: of the attempt's site.
        attempt: whose job must not start.
        owner: who takes it.
        restarts: of the job as Slurm has it now: earlier starts are over.

    Returns:
        Who has it: ``owner`` means that this call, or an earlier one, won.

    Raises:
        UnreachableError: no answer: call again.
        HpcscaleError: the claim can be neither read nor made (a full disk).
    """
    private_dir(transport, claims_dir(attempt))
    if attempt.task is not None:
        array = _array_of(attempt)
        whose = _append(transport, array, array.submission_id, None)
        if whose.owner != array.submission_id:
            return whose  # the whole array is somebody else's
    return _append(transport, attempt, owner, restarts)


def _array_of(attempt: Claimed) -> Place:
    return Place(attempt.run_id, attempt.submission_id, attempt.run_dir)


def _append(transport: Transport, attempt: Claimed, owner: str, restarts: int | None) -> Claim:
    """Add ``owner`` to a log; ``restarts`` None: for the array itself, whatever began of it."""
    log = f"{claims_dir(attempt)}/{_log_name(attempt)}"
    for _ in range(_TRIES):
        entries = _entries(transport, attempt)
        entry = 0
        while found := entries.get(entry):
            holder, _, start = found.partition(" ")
            if holder == owner:
                return Claim(owner)
            if restarts is not None and holder == attempt.submission_id:
                if not start.strip().isdigit() or int(start) >= restarts:
                    return Claim(holder, started=True)
            elif not exists(transport, _revoked(attempt, holder)):
                return Claim(holder)
            entry += 1
        if link_once(transport, f"{log}.{entry}", f"{owner} -\n".encode()):
            return Claim(owner)
    raise HpcscaleError("the claim can be neither read nor made", where=f"{transport.name}: {log}")


def holder(transport: Transport, attempt: Claimed) -> str:
    """Who has an attempt's claim and has not given it back; empty: nobody."""
    entries = _entries(transport, attempt)
    entry = 0
    while found := entries.get(entry):
        owner = found.partition(" ")[0]
        if owner != attempt.submission_id and not exists(transport, _revoked(attempt, owner)):
            return owner
        entry += 1
    return ""


def revoke(transport: Transport, attempt: Claimed, owner: str) -> None:
    """Give back all that ``owner`` has or will ever take of the attempt; may be repeated.

    Only once ``owner`` can never start: its decision or its own claim says so.
    """
    private_dir(transport, claims_dir(attempt))
    link_once(transport, _revoked(attempt, owner), b"revoked\n")


def put_outcome(transport: Transport, attempt: Claimed, suffix: str, code: int) -> None:
    """Leave for an attempt's own script what the one that has its claim ended with.

    Args:
        transport: of the attempt's site.
        attempt: whose job stands in.
        suffix: ``.task3`` for an element.
        code: exit code.
    """
    private_dir(transport, claims_dir(attempt))
    name = f"{attempt.run_id}.{attempt.submission_id}{suffix}.outcome"
    link_once(transport, f"{claims_dir(attempt)}/{name}", f"{code}\n".encode())


def decide(transport: Transport, target: Claimed, word: Word) -> Word:
    """Make the target's decision, unless there is one; what it is. May be repeated.

    Raises:
        UnreachableError: no answer: it may have been made; call again.
    """
    link_once(transport, decision_path(target), f"{word.value}\n".encode())
    decided = decision(transport, target)
    if decided is None:
        raise HpcscaleError("a decision that was made is gone", where=decision_path(target))
    return decided


def decision(transport: Transport, target: Claimed) -> Word | None:
    """What was decided; None: nothing yet."""
    try:
        text = transport.read_bytes(decision_path(target)).decode("utf-8", "replace").strip()
    except NotFoundError:
        return None
    try:
        return Word(text)
    except ValueError:
        raise HpcscaleError(f"no decision: {text[:40]!r}", where=decision_path(target)) from None


def decision_path(target: Claimed) -> str:
    """The decision's file on the target's site."""
    return f"{target.run_dir}/decision.{target.submission_id}"


def _log_name(attempt: Claimed) -> str:
    element = "" if attempt.task is None else f".task{attempt.task}"
    return f"{attempt.run_id}.{attempt.submission_id}{element}"


def _entries(transport: Transport, attempt: Claimed) -> dict[int, str]:
    name = _log_name(attempt)
    found: dict[int, str] = {}
    for path, text in read_text_files(transport, [claims_dir(attempt)], f"{name}.*").items():
        if match := re.search(rf"/{re.escape(name)}\.(\d+)$", path):
            found[int(match[1])] = text
    return found


def _revoked(attempt: Claimed, owner: str) -> str:
    if not re.fullmatch(r"hs-[0-9a-f]{16}|closed", owner):
        owner = "unknown"
    return f"{claims_dir(attempt)}/{owner}.revoked"
