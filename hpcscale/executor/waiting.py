"""Tasks of a batch that a limit kept back: sent by whoever waits for them, now and then."""

import time
from pathlib import Path

from hpcscale import batches
from hpcscale.errors import RefusedError, UnreachableError
from hpcscale.executor.notice import warn
from hpcscale.executor.watch import HpcscaleInfoWatcher, own_ledger
from hpcscale.ledger import Attempt, Ledger

RESEND_S = 10.0  # between two attempts of this process to send what a limit kept back
RECENT_S = 0.5  # thousands of waiting tasks ask one after the other
_LAST_SENT: dict[str, float] = {}
_READ: dict[tuple[str, int], tuple[float, batches.Batch]] = {}


def find_sent(
    run_id: str, task: int, watcher: HpcscaleInfoWatcher, *, send: bool = False
) -> tuple[Attempt, str] | None:
    """The attempt that a task became part of, and its job id there; None: it still waits.

    Args:
        run_id: of the batch.
        task: its number in the batch.
        watcher: of its site.
        send: whether what waits is sent, where the last try was some seconds ago.
    """
    ledger = own_ledger()
    batch = _recent(ledger, run_id)
    if batch.part(task) is None and send:
        now = time.monotonic()
        if now - _LAST_SENT.get(run_id, -RESEND_S) >= RESEND_S:
            _LAST_SENT[run_id] = now
            _READ.clear()
            try:
                batch = batches.send(ledger, watcher.connection, run_id)
            except UnreachableError as exc:
                warn(f"{watcher.site}: {exc}")
            except RefusedError as exc:
                batches.drop(ledger, run_id, exc.message)
    part = batch.part(task)
    number = part.number(task) if part is not None else None
    if part is None or number is None or part.attempt is None or part.attempt.job_id is None:
        return None
    return part.attempt, f"{part.attempt.job_id.base}_{number}"


def pickle_of(run_id: str, task: int) -> Path:
    """Where the task's pickle was written."""
    return Path(own_ledger().run(run_id).spec.inputs["submitit"]) / f"{task}.pkl"


def skip(run_id: str, task: int) -> None:
    """Its user cancels it: it is not sent, unless it was sent meanwhile."""
    batches.skip(own_ledger(), run_id, task)
    _READ.clear()


def why_dropped(run_id: str, task: int) -> str | None:
    """Why a task will never be sent; None: it was, or it will be."""
    batch = _recent(own_ledger(), run_id)
    if task in batch.skip:
        return "it was cancelled"
    if batch.dropped and batch.part(task) is None:
        return str(own_ledger().events(run_id, batches.DROPPED)[-1].data["why"])
    return None


def _recent(ledger: Ledger, run_id: str) -> batches.Batch:
    """A batch as the ledger has it, or had it a moment ago."""
    key, now = (run_id, id(ledger)), time.monotonic()
    at, batch = _READ.get(key, (0.0, None))
    if batch is None or now - at > RECENT_S:
        batch = batches.read(ledger, run_id)
        _READ[key] = now, batch
    return batch
