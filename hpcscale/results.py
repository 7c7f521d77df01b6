"""Bringing a job's outputs and logs back to the submitting machine, at its end or before."""

from collections.abc import Sequence
from pathlib import Path

from hpcscale.connect import Connection
from hpcscale.fetching import MAX_BYTES, Fetched
from hpcscale.ledger import Attempt, Ledger
from hpcscale.settings import state_dir
from hpcscale.staging import LOGS, fetch_element, fetch_places, results_of
from hpcscale.transfer import SILENT, Meter
from hpcscale.units import JobId


def logs_dir(attempt: Attempt) -> Path:
    """Where the logs of an attempt on a remote site are kept here."""
    return state_dir() / "logs" / attempt.run_id / attempt.site


def must_fetch(attempt: Attempt, connection: Connection) -> bool:
    """Whether something of the attempt is there that is not here yet."""
    if attempt.fetched or attempt.job_id is None:
        return False
    return not connection.transport.is_local or bool(attempt.staged)


def fetch(
    ledger: Ledger,
    connection: Connection,
    attempt: Attempt,
    *,
    task: int | None = None,
    names: Sequence[str] | None = None,
    to: Path | None = None,
    max_bytes: int = MAX_BYTES,
    meter: Meter = SILENT,
) -> Fetched:
    """Fetch outputs, checkpoint and logs, and note it; what is here already is not copied again.

    Args:
        ledger: notes that all of an ended attempt came.
        connection: to its site.
        attempt: ended or not.
        task: of this array element alone.
        names: of these alone: ``outputs/N``, ``checkpoint``, ``logs``; None: all.
        to: directory in place of where each belongs; an output is ``to/N`` there.
        max_bytes: more is refused.
        meter: told how it goes on.

    Raises:
        RefusedError: it is more than ``max_bytes``, or than there is room for.
        UnreachableError: the site went away; call again, it goes on from there.
    """
    # a local site's logs are read where they are
    at_hand = connection.transport.is_local and to is None and LOGS not in (names or ())
    places = results_of(attempt.staged, None if at_hand else logs_dir(attempt))
    if names is not None:
        places = {name: places[name] for name in names}
    if to is not None:
        places = {name: to / name.rpartition("/")[2] for name in places}
    if task is not None and attempt.job_id is not None:
        return fetch_element(
            connection.transport,
            attempt.run_dir,
            places,
            JobId(attempt.job_id.base, task),
            whole=names or (),
            max_bytes=max_bytes,
            meter=meter,
        )
    fetched = fetch_places(
        connection.transport, attempt.run_dir, places, max_bytes=max_bytes, meter=meter
    )
    if names is None and to is None and not fetched.skipped and attempt.ended:
        ledger.set_fetched(attempt, [*map(str, fetched.files), *fetched.objects])
    return fetched
