"""``hpcscale burst reap``: end cloud jobs that no decision owns.

Such a job is one that a killed run left, or that a controller brought back after it had forgotten
a cancel or an end. Its lease ends it anyway; reaping saves the dollars until then. A job is ended
only when its decision says that it will never begin, when its move is over and this makes the
decision, or when its end was noted before. Jobs of other ledgers that nobody has decided on are
left to their own runs and their leases.
"""

import re
from collections.abc import Callable, Iterable

import msgspec

from hpcscale.burst.claims import Word, decide
from hpcscale.burst.moves import Moves, target_attempt
from hpcscale.connect import Connection
from hpcscale.errors import HpcscaleError, NotFoundError
from hpcscale.ledger import Attempt, Ledger, Role
from hpcscale.slurm.types import JobState, JobStatus
from hpcscale.verify import submission_of

_BEFORE_ITS_COMMAND = "no decision owns it"


class Reaped(msgspec.Struct, frozen=True, kw_only=True):
    """A live cloud job that is not the work of a move under way.

    Attributes:
        ref: ``site:id``.
        ended: whether it was cancelled; otherwise ``why`` says why not.
        decision: ``opened``, ``closed``, ``expired``, or empty.
    """

    ref: str
    submission_id: str
    ended: bool
    decision: str
    why: str


def burst_sites(ledger: Ledger) -> list[str]:
    """Sites that this ledger has moved jobs to."""
    return sorted({a.site for a in ledger.all_attempts() if a.role is Role.BURST})


def origin_sites(ledger: Ledger) -> list[str]:
    """Sites that this ledger has moved jobs from, or has jobs at that may move."""
    moved = {move.from_site for move in Moves(ledger).all()}
    return sorted(moved | {a.site for a in ledger.open_attempts() if a.role is not Role.BURST})


def reap(
    ledger: Ledger, connect: Callable[[str], Connection], sites: Iterable[str]
) -> tuple[list[Reaped], list[str]]:
    """End what no decision owns at these sites.

    Returns:
        What was looked at more closely, and why sites could not be asked.
    """
    found: list[Reaped] = []
    problems: list[str] = []
    owned = {
        target.submission_id
        for move in Moves(ledger).unsettled()
        if (target := target_attempt(ledger, move)) is not None
    }
    for site in sites:
        try:
            found += _reap_site(ledger, connect(site), owned)
        except HpcscaleError as exc:
            problems.append(str(exc))
    return found, problems


def _reap_site(ledger: Ledger, connection: Connection, owned: set[str]) -> list[Reaped]:
    live = [
        (submission_id, status)
        for status in connection.client.jobs().jobs.values()
        if not status.state.terminal
        and status.state is not JobState.UNKNOWN
        and (submission_id := submission_of(status.comment)) is not None
        and submission_id not in owned
    ]
    if not live:
        return []
    words = _decisions(connection)
    found = []
    for submission_id, status in live:
        try:
            attempt = ledger.attempt(submission_id)
        except NotFoundError:
            attempt = None
        if attempt is not None and attempt.role is not Role.BURST:
            continue  # submitted here by its user
        one = _judge(connection, attempt, status, submission_id, words.get(submission_id, ""))
        if one is not None:
            found.append(one)
            if one.ended and attempt is not None:
                ledger.event(
                    attempt.run_id, "attempt.reaped", {"why": one.why}, submission_id=submission_id
                )
    return found


def _judge(
    connection: Connection,
    attempt: Attempt | None,
    status: JobStatus,
    submission_id: str,
    word: str,
) -> Reaped | None:
    ours = attempt is not None and word != Word.OPENED
    if ours:
        assert attempt is not None
        word = decide(connection.transport, attempt, Word.CLOSED).value  # its move is over
    ref = f"{connection.site.name}:{status.job_id}"
    if word == Word.OPENED and attempt is not None and attempt.ended:
        why, over = f"its end ({attempt.last_state.value}) was noted, and it came back", True
    elif word == Word.OPENED:
        why, over = "its gate was opened: it is the run's work; hpcscale cancel ends it", False
    elif word in {Word.CLOSED, Word.EXPIRED}:
        why, over = f"{_BEFORE_ITS_COMMAND} ({word})", True
    else:
        return None  # of another ledger, or no moved job at all
    if over:
        now = connection.client.show(status.job_id)  # ids are given out again
        alive = now is not None and not now.state.terminal
        if alive and now is not None and submission_of(now.comment) == submission_id:
            connection.client.cancel(status.job_id)
        elif not ours:
            return None  # it went by itself; with our word it read that word at its gate, and went
    return Reaped(ref=ref, submission_id=submission_id, ended=over, decision=word, why=why)


def _decisions(connection: Connection) -> dict[str, str]:
    # two levels down and no deeper: below lie the runs' own trees
    level = ["-mindepth", "2", "-maxdepth", "2", "-name", "decision.hs-*"]
    read = ["-exec", "grep", "-H", "-e", "", "{}", "+"]
    done = connection.transport.run(["find", f"{connection.state_dir}/runs", *level, *read])
    lines = (line.rpartition(":") for line in done.stdout.splitlines())
    return {
        match[1]: text.strip()
        for path, _, text in lines
        if (match := re.search(r"/decision\.(hs-[0-9a-f]{16})$", path))
    }
