"""``burst run --shadow``: decide as live, act on nothing, remember, and say what would have been.

A verdict is recorded when it is the first of a run or differs from the last. What a move would have
cost is the plan's figure; a moved job would have ended at the latest after boot, staging and limit.
From its move on a job counts as gone: see ``as_if``.
"""

import datetime as dt
from collections.abc import Sequence
from decimal import Decimal

import msgspec

from hpcscale.burst.as_if import KIND, first_moves, records
from hpcscale.burst.kept import keep
from hpcscale.burst.plan import Action, BurstPlan, Decision
from hpcscale.burst.policy import Policy
from hpcscale.burst.run import Connections, look
from hpcscale.ledger import Attempt, Ledger
from hpcscale.observe import observe
from hpcscale.slurm.types import JobState


class Shadow(msgspec.Struct, frozen=True, kw_only=True):
    """One run of a shadow: the plan, how many of its verdicts are new, and the sums so far."""

    plan: BurstPlan
    new: int
    total: "WouldHave"


class WouldHave(msgspec.Struct, frozen=True, kw_only=True):
    """What shadow runs add up to so far.

    Attributes:
        since: of the first verdict.
        runs: that were looked at.
        moves: of them, that would have moved.
        usd: that their moves would have cost, as far as it is known.
        unknown_costs: moves of unknown cost.
        deadlines: runs with a deadline whose end is known.
        met: of them, that would have met it.
        met_without: of them, that met it as things went, without any move.
        cancelled: runs cancelled before their deadline; they are not of ``deadlines``: nobody can
            say that they would have met it or missed it.
        bounds_held: share of the forecasts' 90 % bounds that held; None: too few have come true.
    """

    since: dt.datetime | None = None
    runs: int = 0
    moves: int = 0
    usd: Decimal = Decimal(0)
    unknown_costs: int = 0
    deadlines: int = 0
    met: int = 0
    met_without: int = 0
    cancelled: int = 0
    bounds_held: float | None = None

    @property
    def sentence(self) -> str:
        """For people."""
        if self.since is None:
            return "no shadow run has decided anything yet"
        money = f"${self.usd:,.2f}"
        if self.unknown_costs:
            money += f" and {self.unknown_costs} moves of unknown cost"
        left_out = ""
        if self.cancelled:
            left_out = f" ({self.cancelled} more, cancelled before theirs, count as neither)"
        bounds = "too few forecasts have come true to say how many of the 90 % bounds hold"
        if self.bounds_held is not None:
            bounds = f"the 90 % bounds held {self.bounds_held:.0%}"
        return (
            f"since {self.since:%Y-%m-%d}: would have moved {self.moves} of {self.runs} jobs and "
            f"spent {money}; would have met {self.met} of {self.deadlines} deadlines, "
            f"and {self.met_without} were met without{left_out}; {bounds}"
        )


def shadow(ledger: Ledger, policy: Policy, connections: Connections) -> Shadow:
    """Look at what became of the jobs here, decide on what waits, remember; acts on nothing.

    Raises:
        NotFoundError: the policy names an unknown site.
        UnreachableError: the origin gave no answer.
        StateError: a snapshot or the ledger cannot be written.
    """
    # whether a deadline was met shows by how the job ended, and nobody else may ask
    observe(ledger, connections, ledger.open_attempts(policy.from_site))
    seen = look(ledger, policy, connections, shadow=True)
    keep(seen, acts=False)
    assert seen.plan is not None
    new = remember(ledger, seen.plan)
    return Shadow(plan=seen.plan, new=new, total=would_have(ledger, seen.forecast.coverage))


def remember(ledger: Ledger, plan: BurstPlan) -> int:
    """Record the verdicts that are new; how many.

    Args:
        ledger: gets a decision of kind ``shadow`` for each.
        plan: of this moment.
    """
    known = records(ledger)
    last = {run: data for run, _, data in known}
    moved = first_moves(known)
    new = 0
    for decision in plan.decisions:
        before = last.get(decision.run_id)
        verdict = {"action": decision.action.value, "to": decision.to}
        if before is not None and {k: before.get(k) for k in verdict} == verdict:
            continue
        if decision.run_id in moved:
            continue  # it would be gone
        found = ledger.resolve(decision.ref)
        data = {
            **verdict,
            "of_run": found.run.run_id,  # an element has no run of its own yet
            "origin": found.attempt.submission_id,
            "task": found.task,
            "cost_usd": None if decision.cost_usd is None else str(decision.cost_usd),
            "now": plan.now.isoformat(),
            "latest_end": _latest_end(ledger, decision, plan),
            "decision": msgspec.to_builtins(decision),
        }
        ledger.decide(KIND, decision.reason, data, run_id=decision.run_id)
        new += 1
    return new


def would_have(ledger: Ledger, bounds_held: float | None = None) -> WouldHave:
    """Add up what was recorded, with how the runs really ended, and how the forecasts did."""
    known = records(ledger)
    seen = {run_id for run_id, _, _ in known}
    since = known[0][1] if known else None
    first_move = first_moves(known)
    costs = [data["cost_usd"] for data in first_move.values()]
    deadlines = met = met_without = cancelled = 0
    for run in ledger.runs(seen):  # an element has a run once it really moves
        run_id = run.run_id
        if run.deadline is None:
            continue
        attempts = ledger.attempts(run_id)
        really = _end(attempts)
        if _was_cancelled(attempts) and (really is None or really <= run.deadline):
            cancelled += 1
            continue
        moved = first_move.get(run_id)
        text = moved.get("latest_end") if moved else None
        planned = dt.datetime.fromisoformat(str(text)) if text else None
        if really is None and planned is None:
            continue
        deadlines += 1
        met_without += really is not None and really <= run.deadline
        end = planned if planned is not None else really
        met += end is not None and end <= run.deadline
    return WouldHave(
        since=since,
        runs=len(seen),
        moves=len(first_move),
        usd=sum((Decimal(str(c)) for c in costs if c is not None), Decimal(0)),
        unknown_costs=sum(c is None for c in costs),
        deadlines=deadlines,
        met=met,
        met_without=met_without,
        cancelled=cancelled,
        bounds_held=bounds_held,
    )


def _end(attempts: Sequence[Attempt]) -> dt.datetime | None:
    """When a run ended; None while one of its attempts has not."""
    if not all(a.ended for a in attempts):
        return None
    return max((a.end_time for a in attempts if a.end_time is not None), default=None)


def _was_cancelled(attempts: Sequence[Attempt]) -> bool:
    """Whether a run ended by a cancel; one of a move's two jobs always does, and is no such end."""
    if not attempts or any(not a.ended or a.state is JobState.COMPLETED for a in attempts):
        return False
    last = max(attempts, key=lambda a: (a.end_time is not None, a.end_time or a.created_at))
    return last.state is JobState.CANCELLED


def _latest_end(ledger: Ledger, decision: Decision, plan: BurstPlan) -> str | None:
    if decision.action is not Action.MOVE or decision.to is None:
        return None
    limit_s = ledger.find(decision.ref).time_limit_s
    if limit_s is None:
        return None
    seconds = decision.boot_s + decision.staging_s + limit_s
    if (line := decision.line) is not None:  # its nodes are taken once, and it ends in the net
        seconds += line.lost_s + line.look_s + line.net_boot_s
    return (plan.now + dt.timedelta(seconds=seconds)).isoformat()
