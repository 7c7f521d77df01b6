"""What comes home after a cloud attempt: its cost into the ledger, its outputs and logs here."""

import datetime as dt
from pathlib import Path

from hpcscale.connect import Connection
from hpcscale.cost import held_s, spent_usd
from hpcscale.ledger import Attempt, Ledger
from hpcscale.settings import state_dir
from hpcscale.staging import fetch_results


def results_dir(attempt: Attempt) -> Path:
    """Where an attempt's logs are brought to on this machine."""
    return state_dir() / "runs" / attempt.run_id / "logs" / attempt.site


def bring_home(ledger: Ledger, target: Attempt, connection: Connection) -> str:
    """Settle the cost of an ended attempt and fetch its results; a sentence on both.

    Raises:
        UnreachableError: the site went away; call again, it goes on from there.
    """
    settle_cost(ledger, target)
    target = ledger.attempt(target.submission_id)
    text = f"{target.ref} ended {target.last_state.value}"
    if not target.fetched:
        fetched = fetch_results(
            connection.transport, target.run_dir, target.staged, results_dir(target)
        )
        ledger.set_fetched(target, [str(path) for path in fetched.files])
        if fetched.refused:
            text += f"; refused: {'; '.join(fetched.refused[:3])}"
        if fetched.skipped:
            text += f"; not fetched: {'; '.join(fetched.skipped[:3])}"
    return text


def settle_cost(ledger: Ledger, target: Attempt) -> None:
    """Dollars from the allocation's start to its end, once it has ended."""
    target = ledger.attempt(target.submission_id)
    if target.ended and target.cost_usd is None and target.start_time and target.end_time:
        last_s = held_s(target.start_time, target.end_time, target.end_time)
        seconds = target.earlier_s + last_s
        cost = ledger.cost_of(target, seconds)
        if cost is not None:
            ledger.set_cost(target, cost)


def note_gate_idle(
    ledger: Ledger, target: Attempt, since: dt.datetime | None, until: dt.datetime | None
) -> int | None:
    """Seconds that the gang stood at its gate; an event tells them with what they cost.

    Args:
        ledger: gets the event.
        target: the cloud attempt.
        since: when it came there, by the node's clock; None: never, or not known.
        until: when it went on or ended.
    """
    if since is None or until is None:
        return None
    seconds = max(0, round((until - since).total_seconds()))
    usd = spent_usd(target.gpus, seconds, target.gpu_hour_usd)
    ledger.event(
        target.run_id,
        "attempt.gate_idle",
        {"seconds": seconds, "usd": None if usd is None else str(usd)},
        submission_id=target.submission_id,
    )
    return seconds
