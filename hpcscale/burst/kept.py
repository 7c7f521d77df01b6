"""What a decision was made of, kept by hash: so that it can be made again, and comes out the same.

One file a snapshot below ``state_dir()/burst/snapshots``, gzip of JSON, named by the SHA-256 of the
JSON. Only cycles that move a job or change a verdict are kept, for 90 days and up to 1 GB.
"""

import contextlib
import datetime as dt
import gzip
import hashlib
import os
import time
from pathlib import Path

import msgspec

from hpcscale.burst.decide import decide
from hpcscale.burst.plan import BurstPlan, Forecast, Start
from hpcscale.burst.policy import Policy
from hpcscale.burst.seen import Budgets, Catalog, Expected, Foretold, Recording, Snapshot
from hpcscale.errors import NotFoundError, StateError
from hpcscale.settings import state_dir

KEEP_S = 90 * 86400
MOST_BYTES = 1_000_000_000


class Kept(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that one decision reads, and what was decided.

    Attributes:
        replans: the forecast made anew, by the ids of those who had left, joined by spaces.
    """

    now: dt.datetime
    policy: Policy
    snapshot: Snapshot
    forecast: Forecast = Forecast()
    catalog: Catalog = Catalog()
    budgets: Budgets = Budgets()
    replans: dict[str, dict[str, Start]] = {}
    plan: BurstPlan | None = None


def plan_of(kept: Kept, forecast: Expected | None = None) -> BurstPlan:
    """Decide on what was kept; without ``forecast`` on the plans that were recorded. Pure."""
    if forecast is None:
        forecast = Foretold(kept.forecast, kept.replans)
    return decide(kept.snapshot, forecast, kept.catalog, kept.budgets, kept.policy, kept.now)


def planned(kept: Kept, forecast: Expected) -> Kept:
    """With its plan, its forecast, and every new plan of it that the decision asked for."""
    recording = Recording(forecast)
    plan = plan_of(kept, recording)
    return msgspec.structs.replace(
        kept, forecast=forecast.forecast, replans=recording.replans, plan=plan
    )


def folder() -> Path:
    """Where snapshots are."""
    return state_dir() / "burst" / "snapshots"


def keep(snapshot: Kept, *, acts: bool = True) -> str | None:
    """Write a snapshot down if it is acted on or its verdicts are new; its hash, None where not.

    Args:
        snapshot: with its plan.
        acts: whether its moves are begun; a shadow's are not: one that stands is no news.

    Raises:
        StateError: it cannot be written.
    """
    assert snapshot.plan is not None
    # what a shadow would have moved has had its verdict
    moving = set() if acts else {job.run_id for job in snapshot.snapshot.jobs if job.moving}
    verdicts = {
        d.run_id: [d.action.value, d.to or "", d.rule.value if d.rule else ""]
        for d in snapshot.plan.decisions
        if d.run_id not in moving
    }
    last = folder() / "verdicts.json"
    try:
        before = msgspec.json.decode(last.read_bytes(), type=dict[str, list[str]])
    except (OSError, msgspec.DecodeError):
        before = {}
    moves = acts and bool(snapshot.plan.moves)
    if not moves and all(before.get(run) == v for run, v in verdicts.items()):
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
    files: list[tuple[float, int, Path]] = []
    for path in folder().glob("*.json.gz"):
        with contextlib.suppress(FileNotFoundError):  # another run prunes too
            found = path.stat()
            files.append((found.st_mtime, found.st_size, path))
    total = sum(size for _, size, _ in files)
    for changed_at, size, path in sorted(files):
        if changed_at > time.time() - KEEP_S and total <= MOST_BYTES:
            return
        total -= size
        path.unlink(missing_ok=True)


def names() -> list[str]:
    """Hashes of all kept snapshots, oldest first."""
    if not folder().is_dir():
        return []
    files = sorted(folder().glob("*.json.gz"), key=lambda p: (p.stat().st_mtime, p.name))
    return [path.name.removesuffix(".json.gz") for path in files]


def read(name: str) -> Kept:
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
        return msgspec.json.decode(data, type=Kept)
    except (OSError, EOFError, msgspec.DecodeError, msgspec.ValidationError) as exc:
        raise StateError(f"it cannot be read: {exc}", where=str(path)) from exc


def replay(name: str) -> tuple[Kept, list[str]]:
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
