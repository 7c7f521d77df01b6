"""Targets that had no nodes lately: remembered from moves, with a rest that doubles."""

import datetime as dt
from collections.abc import Iterable, Sequence

import msgspec

from hpcscale.burst.moves import Move, Step
from hpcscale.burst.plan import Candidate

MAX_RESTS = 8  # of retry_after
_SIGNS = ("nodes of ", "no start on ")  # how the handover says that a boot failed


def short(moves: Iterable[Sequence[Move]]) -> dict[str, tuple[dt.datetime, str]]:
    """Targets whose last moves found no nodes: until when they rest, and what was found.

    Args:
        moves: of each run. The rest is ``retry_after``, twice that after the next such move, and
            so on; a gang that comes up ends it.
    """
    failures: dict[str, list[Move]] = {}
    for move in sorted((m for mine in moves for m in mine), key=lambda m: m.move_id):
        if move.step is Step.FAILED and move.message.startswith(_SIGNS):
            failures.setdefault(move.to_site, []).append(move)
        elif move.step in {Step.MOVED, Step.RELEASING, Step.DONE}:
            failures.pop(move.to_site, None)
    found = {}
    for site, failed in failures.items():
        last = failed[-1]
        if last.retry_at is not None:
            more = min(2 ** (len(failed) - 1), MAX_RESTS) - 1
            until = last.retry_at + dt.timedelta(seconds=last.retry_after_s * more)
            found[site] = (until, last.message)
    return found


def rested(job: Candidate, shortages: dict[str, tuple[dt.datetime, str]]) -> Candidate:
    """The job with what is known of shortages at its targets."""
    if not shortages:
        return job
    options = tuple(
        msgspec.structs.replace(
            option,
            resting_until=shortages[option.site][0],
            resting_why=shortages[option.site][1],
        )
        if option.site in shortages
        else option
        for option in job.options
    )
    return msgspec.structs.replace(job, options=options)
