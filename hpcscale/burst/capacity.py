"""Targets that had no nodes lately: remembered from moves, with a rest that doubles."""

import datetime as dt
from collections.abc import Iterable, Sequence

from hpcscale.burst.moves import Move, Step
from hpcscale.burst.seen import Shortage

MAX_RESTS = 8  # of retry_after
_SIGNS = ("nodes of ", "no start on ")  # how the handover says that a boot failed


def short(moves: Iterable[Sequence[Move]]) -> tuple[Shortage, ...]:
    """Partitions of targets whose last moves found no nodes: until when they rest, and why.

    Args:
        moves: of each run. The rest is ``retry_after``, twice that after the next such move, and
            so on; a gang that comes up ends it.
    """
    failures: dict[tuple[str, str | None], list[Move]] = {}
    for move in sorted((m for mine in moves for m in mine), key=lambda m: m.move_id):
        where = (move.to_site, move.partition)
        if _no_nodes(move):
            failures.setdefault(where, []).append(move)
        elif move.step in {Step.MOVED, Step.RELEASING, Step.DONE}:
            failures.pop(where, None)
    found = []
    for (target, partition), failed in failures.items():
        last = failed[-1]
        if last.retry_at is not None:
            more = min(2 ** (len(failed) - 1), MAX_RESTS) - 1
            until = last.retry_at + dt.timedelta(seconds=last.retry_after_s * more)
            why = last.spot_short or last.message
            found.append(Shortage(target=target, partition=partition, until=until, why=why))
    return tuple(found)


def _no_nodes(move: Move) -> bool:
    if move.spot_short:  # it went on in the net, whatever became of it there
        return True
    return move.step is Step.FAILED and move.message.startswith(_SIGNS)
