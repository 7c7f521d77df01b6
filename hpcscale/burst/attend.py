"""Between two ticks of `hpcscale burst run --for`: no gang is kept waiting at its gate.

All of a cloud's nodes cost money while they stand at a gate. So the time until the next tick is
spent looking for the reports of gangs that have come there: one listing of files for each cloud
site, four times a second, and no question to any Slurm. A gang that has come is let through at
once.
"""

import contextlib
import time
from collections.abc import Callable

from hpcscale.burst.handover import Handover
from hpcscale.burst.moves import Move, Step
from hpcscale.connect import Connection
from hpcscale.errors import HpcscaleError
from hpcscale.ledger import Attempt
from hpcscale.reports import read_reports

LOOK_S = 0.25
AGAIN_S = 1.0  # a node may not answer yet when its gang is at the gate


def attend(
    handover: Handover,
    connect: Callable[[str], Connection],
    for_s: float,
    *,
    now: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> list[Move]:
    """Wait, and take moves further whose gangs come to their gates meanwhile.

    Args:
        handover: advances them.
        connect: gives the connection of a site; one that gives no answer is left to the next tick.
        for_s: how long; a move under way may take a little longer.
        now: seconds, for tests.
        sleep: likewise.

    Returns:
        The moves that it worked on, as they stand now.
    """
    until = now() + for_s
    silent: set[str] = set()
    again: dict[int, float] = {}
    done: dict[int, Move] = {}
    while (left := until - now()) > 0:
        for move in _at_their_gates(handover, connect, silent):
            if now() < again.get(move.move_id, 0.0):
                continue
            with contextlib.suppress(HpcscaleError):  # the next tick tries, and tells
                done[move.move_id] = handover.advance(move)
            again[move.move_id] = now() + AGAIN_S
        sleep(min(LOOK_S, left))
    return list(done.values())


def _at_their_gates(
    handover: Handover, connect: Callable[[str], Connection], silent: set[str]
) -> list[Move]:
    """Moves that wait for their gangs, which have come."""
    waiting: dict[str, list[tuple[Move, Attempt]]] = {}
    for move in handover.moves.unsettled():
        if move.step is Step.SUBMITTED and move.target and move.to_site not in silent:
            pair = (move, handover.ledger.attempt(move.target))
            waiting.setdefault(move.to_site, []).append(pair)
    found = []
    for site, pairs in waiting.items():
        try:
            said = read_reports(connect(site).transport, [a.run_dir for _, a in pairs])
        except HpcscaleError:
            silent.add(site)
            continue
        for move, attempt in pairs:
            reports = said.get(attempt.submission_id, [])
            if reports and reports[-1].gated:
                found.append(move)
    return found
