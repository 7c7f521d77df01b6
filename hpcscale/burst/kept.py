"""What a decision was made of, kept by hash: so that it can be made again, and comes out the same.

One file a snapshot below ``state_dir()/burst/snapshots``, gzip of JSON, named by the SHA-256 of the
JSON. Only cycles that move a job or change a verdict are kept, for 90 days and up to 1 GB.
"""

import datetime as dt
import gzip
import hashlib
import os
import time
from collections.abc import Mapping
from pathlib import Path

import msgspec

from hpcscale.burst.budget import Charge
from hpcscale.burst.decide import decide
from hpcscale.burst.plan import BurstPlan, Candidate, Start
from hpcscale.burst.policy import Policy
from hpcscale.burst.worth import Replan
from hpcscale.errors import NotFoundError, StateError
from hpcscale.settings import state_dir

KEEP_S = 90 * 86400
MOST_BYTES = 1_000_000_000


class Snapshot(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that one decision reads.

    Attributes:
        now: the origin's clock.
        jobs: with their starts and what each target offers them.
        charges: for budgets.
        pending: jobs in the origin's queue.
        coverage: share of the forecast's past 90 % bounds that held; None: too few yet.
        replans: the forecast made anew, by the ids of those who had left, joined by spaces.
        plan: what was decided.
    """

    now: dt.datetime
    policy: Policy
    jobs: tuple[Candidate, ...]
    charges: tuple[Charge, ...] = ()
    pending: int = 0
    coverage: float | None = None
    replans: dict[str, dict[str, Start]] = {}
    plan: BurstPlan | None = None


def plan_of(snapshot: Snapshot, replan: Replan | None = None) -> BurstPlan:
    """Decide on a snapshot; without ``replan`` on what was recorded. Pure."""
    if replan is None:

        def replan(gone: frozenset[str]) -> Mapping[str, Start]:
            return snapshot.replans.get(_key(gone), {})

    return decide(
        snapshot.jobs,
        snapshot.policy,
        snapshot.now,
        snapshot.charges,
        replan=replan,
        pending=snapshot.pending,
    )


def planned(snapshot: Snapshot, replan: Replan) -> Snapshot:
    """The snapshot with its plan, and with every replan that the plan asked for."""
    asked: dict[str, dict[str, Start]] = {}

    def recording(gone: frozenset[str]) -> Mapping[str, Start]:
        return asked.setdefault(_key(gone), dict(replan(gone)))

    plan = plan_of(snapshot, recording)
    return msgspec.structs.replace(snapshot, replans=asked, plan=plan)


def _key(gone: frozenset[str]) -> str:
    return " ".join(sorted(gone))


def folder() -> Path:
    """Where snapshots are."""
    return state_dir() / "burst" / "snapshots"


def keep(snapshot: Snapshot) -> str | None:
    """Write a snapshot down if its verdicts are new; its hash, None where they are not.

    Raises:
        StateError: it cannot be written.
    """
    assert snapshot.plan is not None
    verdicts = {
        d.run_id: [d.action.value, d.to or "", d.rule.value if d.rule else ""]
        for d in snapshot.plan.decisions
    }
    last = folder() / "verdicts.json"
    try:
        before = msgspec.json.decode(last.read_bytes(), type=dict[str, list[str]])
    except (OSError, msgspec.DecodeError):
        before = {}
    if not snapshot.plan.moves and all(before.get(run) == v for run, v in verdicts.items()):
        return None
    data = msgspec.json.encode(snapshot, order="sorted")
    name = hashlib.sha256(data).hexdigest()
    try:
        folder().mkdir(parents=True, exist_ok=True)
        _write(folder() / f"{name}.json.gz", gzip.compress(data, mtime=0))
        _write(last, msgspec.json.encode(verdicts))
        _prune()
    except OSError as exc:
        raise StateError(f"a snapshot cannot be kept: {exc}", where=str(folder())) from exc
    return name


def _write(path: Path, data: bytes) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_bytes(data)
    temporary.replace(path)


def _prune() -> None:
    """Drop what is old, then the oldest until the rest fits."""
    files = sorted(folder().glob("*.json.gz"), key=lambda p: p.stat().st_mtime)
    size = sum(p.stat().st_size for p in files)
    for path in files:
        if path.stat().st_mtime > time.time() - KEEP_S and size <= MOST_BYTES:
            return
        size -= path.stat().st_size
        path.unlink()


def names() -> list[str]:
    """Hashes of all kept snapshots, oldest first."""
    if not folder().is_dir():
        return []
    files = sorted(folder().glob("*.json.gz"), key=lambda p: (p.stat().st_mtime, p.name))
    return [path.name.removesuffix(".json.gz") for path in files]


def read(name: str) -> Snapshot:
    """A kept snapshot by its hash, or the beginning of one.

    Raises:
        NotFoundError: no such snapshot, or several.
        StateError: its content is not that of its name, or of another version.
    """
    found = [other for other in names() if other.startswith(name)]
    if len(found) != 1:
        how = "none" if not found else f"{len(found)} of them"
        raise NotFoundError(f"snapshot {name!r}: {how} kept", hint="hpcscale burst replay")
    path = folder() / f"{found[0]}.json.gz"
    try:
        data = gzip.decompress(path.read_bytes())
        if hashlib.sha256(data).hexdigest() != found[0]:
            raise StateError("its content does not have the hash of its name", where=str(path))
        return msgspec.json.decode(data, type=Snapshot)
    except (OSError, EOFError, msgspec.DecodeError, msgspec.ValidationError) as exc:
        raise StateError(f"it cannot be read: {exc}", where=str(path)) from exc


def replay(name: str) -> tuple[Snapshot, list[str]]:
    """Decide once more on a kept snapshot.

    Returns:
        The snapshot, and the run ids that are decided otherwise now: none, or the rules changed.
    """
    snapshot = read(name)
    assert snapshot.plan is not None
    # through JSON as the kept one went: equal means equal
    again = msgspec.json.decode(msgspec.json.encode(plan_of(snapshot)), type=BurstPlan)
    before = {d.run_id: d for d in snapshot.plan.decisions}
    now = {d.run_id: d for d in again.decisions}
    changed = [run for run in sorted({*before, *now}) if before.get(run) != now.get(run)]
    return snapshot, changed
