"""Which of this user's runs wait at the origin, and which of their jobs are decided on."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal

import msgspec

from hpcscale.burst.arrays import wholly_pending
from hpcscale.burst.elements import element_run_id, limited
from hpcscale.burst.elements import waiting as waiting_elements
from hpcscale.burst.moves import Move, Step
from hpcscale.burst.policy import Policy
from hpcscale.burst.stuck import STANDS_IN
from hpcscale.ledger import Attempt, Ledger, Run
from hpcscale.slurm.types import Answer, JobState, JobStatus
from hpcscale.spec import BurstMode
from hpcscale.units import parse_array
from hpcscale.verify import mismatch


@dataclass(frozen=True, slots=True)
class Waiting:
    """A run whose latest attempt is open at the policy's origin."""

    run: Run
    attempt: Attempt


def waiting_runs(ledger: Ledger, from_site: str) -> list[Waiting]:
    """This user's runs with burst=auto or only whose open attempt is at ``from_site``."""
    attempts = [a for a in ledger.open_attempts(from_site) if a.job_id is not None]
    runs = {run.run_id: run for run in ledger.runs({a.run_id for a in attempts})}
    return [
        Waiting(runs[a.run_id], a)
        for a in attempts
        if runs[a.run_id].burst_mode is not BurstMode.NEVER
    ]


def moved_within(mine: list[Move]) -> bool:
    """Whether it is in another partition now, where it waits for nodes that boot, or runs."""
    return bool(mine) and mine[-1].same_job and mine[-1].step is Step.MOVED


def to_foresee(
    waiting: list[Waiting], answer: Answer, moves: Mapping[str, list[Move]]
) -> list[str]:
    """Job ids that a decision may turn on the start of: waiting, and not moving yet."""
    found = []
    for one in waiting:
        status = status_of(one.attempt, answer)
        mine = moves.get(one.run.run_id, [])
        moving = bool(mine and not mine[-1].step.settled)
        waits = status is not None and status.state is JobState.PENDING
        if waits and one.run.burst_mode is BurstMode.AUTO and not moving:
            found.append(str(one.attempt.job_id))
    return found


def elements(
    waiting: Waiting, answer: Answer, policy: Policy, moves: Mapping[str, list[Move]]
) -> list[Waiting]:
    """The waiting elements of an array that has begun, each as a job; empty: it is looked at whole.

    Of very many elements those that may move next: the rest would only be held back.
    """
    run, attempt = waiting.run, waiting.attempt
    array = run.spec.array
    if array is None or attempt.job_id is None or STANDS_IN not in attempt.script:
        return []
    records = [s for s in answer.of(attempt.job_id) if mismatch(attempt, s) is None]
    whole = moves.get(run.run_id, [])
    under_way = bool(whole) and not whole[-1].step.settled
    if under_way or not wholly_pending(records, parse_array(array)[0]) or limited(array):
        return []
    spent = _spent_on_elements(attempt, moves) if run.max_cost_usd is not None else None
    # one at a time where a sum bounds them all: each is held against what the others left of it
    room: float = policy.max_moves_per_run if spent is None else 1
    if spent is None and policy.deadline and run.deadline is not None:
        room = math.inf  # they may all be due at once
    found = []
    for task in waiting_elements(records):
        run_id = element_run_id(run.run_id, task)
        mine = moves.get(run_id, [])
        if not mine or (mine[-1].step.settled and mine[-1].step is not Step.FAILED):
            room -= 1
            if room < 0:
                continue
        spec = msgspec.structs.replace(run.spec, array=str(task))
        left = None if spent is None or run.max_cost_usd is None else run.max_cost_usd - spent
        alone = msgspec.structs.replace(run, run_id=run_id, spec=spec, max_cost_usd=left)
        found.append(Waiting(alone, attempt.element(task)))
    return found


def _spent_on_elements(attempt: Attempt, moves: Mapping[str, list[Move]]) -> Decimal:
    """Dollars that moves of an array's elements reserved: each at the most it can cost."""
    sums = (
        move.reserved_usd or move.estimate_usd or Decimal(0)
        for each in moves.values()
        for move in each
        if move.task is not None and move.origin == attempt.submission_id
    )
    return sum(sums, Decimal(0))


def status_of(attempt: Attempt, answer: Answer) -> JobStatus | None:
    """Slurm's word of this attempt; not of another job that got its id."""
    if attempt.job_id is None:
        return None
    return next((s for s in answer.of(attempt.job_id) if mismatch(attempt, s) is None), None)
