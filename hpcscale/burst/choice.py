"""Which target a job would go to, within its maximum cost and in time for its deadline. Pure."""

import datetime as dt
from collections.abc import Sequence
from decimal import Decimal

from hpcscale.burst.budget import Payer, bounded
from hpcscale.burst.plan import Candidate, Option
from hpcscale.burst.policy import Policy, PolicyKind
from hpcscale.burst.triggers import last_safe
from hpcscale.burst.words import usd


def payer_of(job: Candidate) -> Payer:
    """Under whose budgets a job falls."""
    return Payer(user=job.user, account=job.account, project=job.project)


def choose(
    job: Candidate, policy: Policy, now: dt.datetime
) -> tuple[Option | None, tuple[str, ...]]:
    """The first target that can take the job within its maximum cost; else all the reasons.

    The policy's order stands, but for ``value``, which counts dollars and, at what an hour of
    waiting is worth to it, boot and staging; a target that had no nodes lately comes last. One
    that can no longer keep the job's deadline stands behind those that can.
    """
    why_not: list[str] = []
    free: list[Option] = []
    options = tuple(o for o in job.options if not o.spot)
    if policy.kind is PolicyKind.VALUE:
        options = tuple(sorted(options, key=lambda o: whole_price(o, policy)))
    options = tuple(sorted(options, key=lambda o: rests(o, now)))
    for option in options:
        if option.blockers:
            why_not += [f"{option.site}: {blocker}" for blocker in option.blockers]
        elif option.unpromised and hard_money(job, policy):
            why_not.append(f"{option.site}: {option.unpromised}")
        elif problem := over_cost(job, option):
            why_not.append(f"{option.site}: {problem}")
        else:
            free.append(option)
    return (_in_time(free, job, policy, now), ()) if free else (None, tuple(why_not))


def _in_time(free: Sequence[Option], job: Candidate, policy: Policy, now: dt.datetime) -> Option:
    """The first that keeps the deadline; where none surely does, the one that starts the soonest.

    Where not even that one starts before it, the first: the deadline is lost, and chooses nothing.
    """
    for option in free:
        if not too_late(option, job, policy, now):
            return option
    assert job.deadline is not None
    left_s = (job.deadline - now).total_seconds()
    begun = [option for option in free if option.boot_s + option.staging_s < left_s]
    return min(begun, key=lambda o: o.boot_s + o.staging_s, default=free[0])


def too_late(option: Option, job: Candidate, policy: Policy, now: dt.datetime) -> bool:
    """Whether a move now no longer surely keeps the job's deadline; False without one.

    Of the margin, an interval between two looks may be gone by then; the rest is for the gate.
    """
    if not policy.deadline or job.deadline is None or job.time_limit_s is None:
        return False
    look = dt.timedelta(seconds=min(policy.cron_interval_s, policy.deadline_margin_s))
    return now > last_safe(job.deadline, option, job.time_limit_s, policy) + look


def price(option: Option) -> tuple[bool, Decimal]:
    """Sort key: known prices first, the lowest first."""
    return (option.cost_usd is None, option.cost_usd or Decimal(0))


def whole_price(option: Option, policy: Policy) -> tuple[bool, Decimal]:
    """Sort key as ``price``, the wait for nodes and data counted in."""
    unknown, cost = price(option)
    return unknown, cost + Decimal(option.boot_s + option.staging_s) / 3600 * policy.hour_usd


def rests(option: Option, now: dt.datetime) -> bool:
    """Whether it had no nodes lately."""
    return option.resting_until is not None and option.resting_until > now


def hard_money(job: Candidate, policy: Policy) -> bool:
    """Whether a promise about money holds for it: a maximum cost or a budget."""
    return job.max_cost_usd is not None or bounded(policy.budgets, payer_of(job))


def over_cost(job: Candidate, option: Option) -> str | None:
    """Why the job's maximum cost cannot be kept there, in half a sentence; None: it can."""
    if job.max_cost_usd is None:
        return None
    worst = option.worst_usd if option.worst_usd is not None else option.cost_usd
    if job.time_limit_s is None:
        return (
            f"it has no time limit, so its cost has no bound to hold "
            f"against --max-cost {usd(job.max_cost_usd)}"
        )
    if worst is None:
        return (
            f"its cost there is unknown ({option.cost_why or 'no price'}), "
            f"so --max-cost {usd(job.max_cost_usd)} cannot be kept"
        )
    if worst > job.max_cost_usd:
        would = "would" if worst == option.cost_usd else "could, with slow boots and requeues,"
        return f"it {would} cost {usd(worst)}, over its --max-cost {usd(job.max_cost_usd)}"
    return None
