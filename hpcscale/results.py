"""Bringing a finished job's outputs and logs back to the submitting machine."""

from pathlib import Path

from hpcscale.connect import Connection
from hpcscale.ledger import Attempt, Ledger
from hpcscale.settings import state_dir
from hpcscale.staging import Fetched, fetch_results


def logs_dir(attempt: Attempt) -> Path:
    """Where the logs of an attempt on a remote site are kept here."""
    return state_dir() / "logs" / attempt.run_id / attempt.site


def must_fetch(attempt: Attempt, connection: Connection) -> bool:
    """Whether something of the attempt is there that is not here yet."""
    if attempt.fetched or attempt.job_id is None:
        return False
    return not connection.transport.is_local or bool(attempt.staged)


def fetch(ledger: Ledger, connection: Connection, attempt: Attempt) -> Fetched:
    """Fetch outputs, checkpoint and logs, and note it; what is here already is not copied again.

    Raises:
        UnreachableError: the site went away; call again, it goes on from there.
    """
    # a local site's logs are read where they are
    logs_to = None if connection.transport.is_local else logs_dir(attempt)
    fetched = fetch_results(connection.transport, attempt.run_dir, attempt.staged, logs_to)
    if not fetched.skipped and attempt.ended:
        ledger.set_fetched(attempt, [str(f) for f in fetched.files])
    return fetched
