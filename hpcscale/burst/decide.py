"""Which waiting jobs move, where, when and why: a pure function of its arguments.

The rules, in words:

* a job with burst=only moves at once;
* a job that has waited longer than ``max_wait`` moves;
* past *deadline - (boot + staging + time limit + margin)* it moves: later, the cloud could not
  promise the deadline either;
* when Slurm's own estimate of its start makes the deadline impossible on-prem, it moves at once.
  An estimate never holds a move back, and N/A is no estimate;
* a job never moves over its maximum cost, nor when its cost has no bound;
* nor when its worst case does not fit into every budget that it falls under; there it leaves what
  earlier jobs may need for their deadlines, or all such money if its waiting alone moves it;
* it goes to nodes that may be taken back where that is expected to cost less, and where its
  deadline bears that they are;
* of the moves that a later run may start as well, no more than ``max_moves_per_run`` are made.

A policy of another kind puts one rule of its own in the place of ``max_wait``: see ``triggers``.
"""

import datetime as dt
import re
from collections.abc import Sequence

import msgspec

from hpcscale.burst.ahead import stage_early
from hpcscale.burst.budget import Purse, advice
from hpcscale.burst.choice import payer_of
from hpcscale.burst.offer import offers
from hpcscale.burst.plan import (
    NEEDED,
    Action,
    BurstPlan,
    Candidate,
    Decision,
    Forecast,
    Level,
    Option,
    Rule,
    Start,
)
from hpcscale.burst.policy import Policy, PolicyKind
from hpcscale.burst.promise import keep_promises, turn_of
from hpcscale.burst.rests import rested
from hpcscale.burst.seen import Budgets, Catalog, Expected, Snapshot
from hpcscale.burst.triggers import waited_enough
from hpcscale.burst.verdict import aside, landing, pressing, verdict
from hpcscale.burst.worth import Replan, slurm_id, weigh
from hpcscale.slurm.types import JobState


def decide(  # noqa: PLR0917 -- the six things that a decision is made of
    snapshot: Snapshot,
    forecast: Expected,
    catalog: Catalog,
    budgets: Budgets,
    policy: Policy,
    now: dt.datetime,
) -> BurstPlan:
    """Decide for all jobs at once.

    Args:
        snapshot: jobs as just observed, and targets without nodes.
        forecast: of the jobs' starts where they wait; ``value`` asks it for new plans.
        catalog: profiles of the policy's targets, with the offers that they rent.
        budgets: limits, and what earlier moves cost or reserved.
        policy: the rules.
        now: the origin site's clock, aware.
    """
    known = forecast.forecast
    jobs: Sequence[Candidate] = [
        rested(_offered(_foreseen(job, known), catalog, policy, now), snapshot.shortages)
        for job in snapshot.jobs
    ]
    if policy.kind is PolicyKind.VALUE:
        jobs = _weighed(jobs, policy, now, forecast.replan, known.pending)
    depth = sum(c.state is JobState.PENDING for c in jobs)
    decisions = [verdict(job, policy, now, depth) for job in jobs]
    urgency = {c.run_id: _urgency(c, now) for c in jobs}
    moves = sorted(
        (d for d in decisions if d.action is Action.MOVE),
        key=lambda d: (urgency[d.run_id], d.run_id),
    )
    # moves under way count: a tick must not start N more each minute. What a later run would start
    # too late goes all the same
    now_or_never = {job.run_id for job in jobs if pressing(job, policy, now)}
    pressed = [d for d in moves if d.run_id in now_or_never]
    patient = [d for d in moves if d.run_id not in now_or_never]
    room = max(0, policy.max_moves_per_run - sum(c.moving for c in jobs) - len(pressed))
    held_back = [
        msgspec.structs.replace(
            d,
            action=Action.STAY,
            reason=f"{d.reason}; but max_moves_per_run = {policy.max_moves_per_run} is used up, "
            "so a later run moves it",
        )
        for d in patient[room:]
    ]
    rest = [d for d in decisions if d.action is not Action.MOVE]
    purse = Purse(budgets.limits, budgets.charges, now)
    if budgets.limits:
        keep_promises(purse, jobs, policy, now)
    taken = _within_budgets([*pressed, *patient[:room]], jobs, purse)
    by_run = {job.run_id: job for job in jobs}
    later = [stage_early(d, by_run[d.run_id], policy, now) for d in (*held_back, *rest)]
    return BurstPlan(
        now=now,
        from_site=policy.from_site,
        policy=policy.source,
        decisions=(*taken, *later),
        notes=advice(budgets.limits),
    )


def _foreseen(job: Candidate, forecast: Forecast) -> Candidate:
    """The job with its start as it is forecast, or why it is not."""
    if job.start_p50 is not None or job.unforeseen:
        return job
    why = forecast.why
    if not forecast.starts and not why and forecast.level is Level.ABSENT:
        return job  # nobody made a forecast
    base = re.split("[_+]", slurm_id(job))[0]  # an element as its array
    start = forecast.starts.get(base, Start())
    if start.p50 is None and not why:
        why = "the forecast has no start for it"
    return msgspec.structs.replace(job, start_p50=start.p50, start_p90=start.p90, unforeseen=why)


def _offered(job: Candidate, catalog: Catalog, policy: Policy, now: dt.datetime) -> Candidate:
    """The job with what each of its places costs."""
    if not job.places:
        return job
    options = tuple(o for place in job.places for o in offers(place, catalog, policy, now))
    return msgspec.structs.replace(job, options=options)


def _weighed(
    jobs: Sequence[Candidate],
    policy: Policy,
    now: dt.datetime,
    replan: Replan,
    pending: int,
) -> list[Candidate]:
    """The jobs with the starts on which ``value`` decides: those who leave are left out."""
    depth = 0  # of no use to ``value``
    gone: set[str] = set()
    weighed: list[tuple[Candidate, Option]] = []
    for job in jobs:
        decision = verdict(job, policy, now, depth)
        option = landing(job, policy, now)
        certain = decision.action is Action.MOVE and decision.rule is not Rule.VALUE
        if job.moving or certain:
            gone.add(slurm_id(job))
        elif aside(job, policy, now) is None and job.start_p50 is not None:
            if option is None or option.cost_usd is None:
                continue
            if now >= waited_enough(job, option, policy):
                gone.add(slurm_id(job))
            else:
                weighed.append((job, option))
    found = weigh(weighed, policy, now, gone=frozenset(gone), replan=replan, pending=pending)
    return [found.get(job.run_id, job) for job in jobs]


def _within_budgets(
    moves: list[Decision], jobs: Sequence[Candidate], purse: Purse
) -> list[Decision]:
    """The moves with those that no budget holds turned into stays; urgent ones spend first."""
    by_run = {c.run_id: c for c in jobs}
    kept: list[Decision] = []
    stay: list[Decision] = []
    for move in moves:
        job = by_run[move.run_id]
        payer, turn = payer_of(job), turn_of(job)
        waits = move.rule not in NEEDED
        why = purse.refusal(payer, move.worst_usd, None if waits else turn)
        if why is None:
            purse.reserve(payer, move.worst_usd, turn, waits=waits)
            kept.append(move)
        else:
            text = f"{move.reason}; but {why}"
            stay.append(msgspec.structs.replace(move, action=Action.STAY, reason=text, when=None))
    return [*kept, *stay]


def _urgency(job: Candidate, now: dt.datetime) -> tuple[int, float]:
    """Sort key: deadlines first, the nearest first; then by how long they waited."""
    if job.deadline is not None:
        return (0, (job.deadline - now).total_seconds() - (job.time_limit_s or 0))
    waited = (now - job.waiting_since).total_seconds() if job.waiting_since else 0.0
    return (1, -waited)
