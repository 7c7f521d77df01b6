"""What the commands on jobs share: finding them, and connections opened when first needed."""

import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Self

from hpcscale.cli._output import notice

if TYPE_CHECKING:
    from hpcscale.connect import Connection
    from hpcscale.ledger import Attempt, Found, Ledger
    from hpcscale.observe import Snapshot


class SitePool:
    """Connections by a site's name, each made once; call it from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._made: dict[str, Connection] = {}

    def __call__(self, name: str) -> "Connection":
        """The connection to a site. Raises what ``load_site`` and ``connect`` raise."""
        from hpcscale.connect import connect
        from hpcscale.site import load_site

        with self._lock:
            if name not in self._made:
                self._made[name] = connect(load_site(name).site)
            return self._made[name]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for connection in self._made.values():
            connection.close()


def attempts_of(ledger: "Ledger", found: "Found") -> "list[Attempt]":
    """The attempts that a JOB argument means: all of a run, or the one named.

    Of an array's run also those of elements that moved alone.
    """
    from hpcscale.burst.elements import attempts_with_elements

    if not found.whole_run:
        return [found.attempt]
    return attempts_with_elements(ledger, found.run.run_id)


def resolve_all(ledger: "Ledger", jobs: Sequence[str]) -> "list[Found]":
    """Every JOB argument, before anything is done to the first one."""
    return [ledger.resolve(job) for job in jobs]


def report_sites(snapshot: "Snapshot") -> None:
    """Say on stderr which sites gave no answer, and which listed nothing."""
    for name, error in sorted(snapshot.failed.items()):
        answered = snapshot.answers[name].answered_at
        seen = f"as seen {local_time(answered)}" if answered else "as submitted"
        notice(f"{name} gave no answer, its jobs are shown {seen}: {error}")
    for name in snapshot.silent:
        notice(f"{name} lists no jobs of yours; those not known to have ended stay as last seen")


def local_time(when: Any) -> str:
    """A time in the reader's zone; ``N/A`` for None."""
    return when.astimezone().strftime("%Y-%m-%d %H:%M:%S") if when else "N/A"


def attempt_json(attempt: "Attempt") -> dict[str, Any]:
    """One attempt for programs, without the script's text."""
    import msgspec

    data: dict[str, Any] = msgspec.structs.asdict(attempt)
    for name in ("script", "attempt_id", "run_id", "staged"):
        del data[name]
    data["job_id"] = str(attempt.job_id) if attempt.job_id else None
    data["ref"] = str(attempt.ref) if attempt.ref else None
    return data
