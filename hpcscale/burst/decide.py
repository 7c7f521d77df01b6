"""Which waiting jobs move, where, when and why: a pure function of its arguments.

The rules, in words:

* a job with burst=only moves at once;
* a job that has waited longer than ``max_wait`` moves;
* past *deadline - (boot + staging + time limit + margin)* it moves: later, the cloud could not
  promise the deadline either;
* when Slurm's own estimate of its start makes the deadline impossible on-prem, it moves at once.
  An estimate never holds a move back, and N/A is no estimate;
* a job never moves over its maximum cost, nor when its cost has no bound.
"""

import datetime as dt
from collections.abc import Sequence
from decimal import Decimal

import msgspec

from hpcscale.burst.plan import Action, BurstPlan, Candidate, Decision, Option, Rule
from hpcscale.burst.policy import Policy
from hpcscale.slurm.types import JobState
from hpcscale.spec import BurstMode


def decide(candidates: Sequence[Candidate], policy: Policy, now: dt.datetime) -> BurstPlan:
    """Decide for all candidates at once.

    Args:
        candidates: jobs as just observed, with their options at the policy's targets.
        policy: the rules.
        now: the origin site's clock, aware.
    """
    decisions = [_decide_one(c, policy, now) for c in candidates]
    urgency = {c.run_id: _urgency(c, now) for c in candidates}
    moves = sorted(
        (d for d in decisions if d.action is Action.MOVE),
        key=lambda d: (urgency[d.run_id], d.run_id),
    )
    # moves under way count: a tick must not start N more each minute
    room = max(0, policy.max_moves_per_run - sum(c.moving for c in candidates))
    held_back = [
        msgspec.structs.replace(
            d,
            action=Action.STAY,
            reason=f"{d.reason}; but max_moves_per_run = {policy.max_moves_per_run} is used up, "
            "so a later run moves it",
        )
        for d in moves[room:]
    ]
    rest = [d for d in decisions if d.action is not Action.MOVE]
    return BurstPlan(
        now=now,
        from_site=policy.from_site,
        policy=policy.source,
        decisions=(*moves[:room], *held_back, *rest),
    )


def _urgency(job: Candidate, now: dt.datetime) -> tuple[int, float]:
    """Sort key: deadlines first, the nearest first; then by how long they waited."""
    if job.deadline is not None:
        return (0, (job.deadline - now).total_seconds() - (job.time_limit_s or 0))
    waited = (now - job.waiting_since).total_seconds() if job.waiting_since else 0.0
    return (1, -waited)


def _decide_one(job: Candidate, policy: Policy, now: dt.datetime) -> Decision:
    def stay(
        reason: str, when: dt.datetime | None = None, option: Option | None = None
    ) -> Decision:
        return Decision(
            run_id=job.run_id,
            ref=job.ref,
            name=job.name,
            action=Action.STAY,
            reason=reason,
            when=when,
            to=option.site if option else None,
            cost_usd=option.cost_usd if option else None,
            cost_why=option.cost_why if option else "",
        )

    def refuse(
        reason: str, blockers: tuple[str, ...] = (), option: Option | None = None
    ) -> Decision:
        return Decision(
            run_id=job.run_id,
            ref=job.ref,
            name=job.name,
            action=Action.REFUSE,
            reason=reason,
            blockers=blockers,
            to=option.site if option else None,
            cost_usd=option.cost_usd if option else None,
            cost_why=option.cost_why if option else "",
        )

    if job.moving:
        return stay("a move of it is under way")
    if job.mode is BurstMode.NEVER:
        return stay("it was submitted with burst=never")
    if job.state is JobState.UNKNOWN:
        return stay(f"{policy.from_site} gave no word of it: nothing is done on a guess")
    if job.state is not JobState.PENDING:
        return stay(f"it is {job.state.value} on {policy.from_site}")
    if "held" in job.reason.lower():  # JobHeldUser, launch failed requeued held, …
        return stay(f"it is held ({job.reason}): release it first")
    if (
        job.reason.startswith(("Dependency", "BeginTime"))
        or job.waiting_since is None
        or job.waiting_since > now
    ):
        return stay(f"it is not yet allowed to start ({job.reason or 'BeginTime'})")
    if job.blockers:
        return refuse(f"it cannot leave {policy.from_site}: {job.blockers[0]}", job.blockers)
    if job.resting_until is not None and job.resting_until > now:
        return stay(
            f"its last move failed ({job.resting_why}); "
            f"it rests {show_s((job.resting_until - now).total_seconds())} more",
            job.resting_until,
        )

    option, why_not = _choose(job)
    if option is None:
        first = next((o for o in job.options), None)
        return refuse(why_not[0] if why_not else "the policy names no target", why_not, first)

    rule, reason, when, notes = _trigger(job, option, policy, now)
    sentence = "; ".join([reason, *notes])
    if rule is None:
        return stay(sentence, when, option)
    return Decision(
        run_id=job.run_id,
        ref=job.ref,
        name=job.name,
        action=Action.MOVE,
        reason=sentence,
        rule=rule,
        to=option.site,
        when=now,
        cost_usd=option.cost_usd,
        cost_why=option.cost_why,
        boot_timeout_s=option.boot_timeout_s,
        staging_s=option.staging_s,
    )


def _choose(job: Candidate) -> tuple[Option | None, tuple[str, ...]]:
    """The first target that can take the job within its maximum cost; else all the reasons."""
    why_not: list[str] = []
    for option in job.options:
        if option.blockers:
            why_not += [f"{option.site}: {blocker}" for blocker in option.blockers]
        elif problem := _over_cost(job, option):
            why_not.append(f"{option.site}: {problem}")
        else:
            return option, ()
    return None, tuple(why_not)


def _over_cost(job: Candidate, option: Option) -> str | None:
    if job.max_cost_usd is None:
        return None
    if job.time_limit_s is None:
        return (
            f"it has no time limit, so its cost has no bound to hold "
            f"against --max-cost {usd(job.max_cost_usd)}"
        )
    if option.cost_usd is None:
        return (
            f"its cost there is unknown ({option.cost_why or 'no price'}), "
            f"so --max-cost {usd(job.max_cost_usd)} cannot be kept"
        )
    if option.cost_usd > job.max_cost_usd:
        return f"it would cost {usd(option.cost_usd)}, over its --max-cost {usd(job.max_cost_usd)}"
    return None


def _trigger(
    job: Candidate, option: Option, policy: Policy, now: dt.datetime
) -> tuple[Rule | None, str, dt.datetime | None, list[str]]:
    """The rule that asks for a move now, or None with the earliest time when one will."""
    if job.mode is BurstMode.ONLY:
        return Rule.ONLY, "it was submitted with burst=only", now, []
    assert job.waiting_since is not None
    notes: list[str] = []
    later: list[dt.datetime] = []
    if policy.deadline and job.deadline is not None:
        rule, text, when = _deadline_rule(job, option, policy, now)
        if rule is not None:
            return rule, text, now, []
        notes.append(text)
        if when is not None:
            later.append(when)
    waited_s = (now - job.waiting_since).total_seconds()
    if policy.max_wait_s is not None:
        if waited_s > policy.max_wait_s:
            text = f"it has waited {show_s(waited_s)}, longer than max_wait = "
            return Rule.MAX_WAIT, text + show_s(policy.max_wait_s), now, notes
        later.append(job.waiting_since + dt.timedelta(seconds=policy.max_wait_s))
        wait_text = f"it has waited {show_s(waited_s)} of max_wait = {show_s(policy.max_wait_s)}"
    else:
        wait_text = f"it has waited {show_s(waited_s)} and the policy sets no max_wait"
    return None, wait_text, min(later, default=None), notes


def _deadline_rule(
    job: Candidate, option: Option, policy: Policy, now: dt.datetime
) -> tuple[Rule | None, str, dt.datetime | None]:
    assert job.deadline is not None
    left_s = (job.deadline - now).total_seconds()
    start_s = option.boot_s + option.staging_s
    if left_s <= start_s:
        text = (
            f"its deadline {show_time(job.deadline)} can no longer be met: {option.site} needs "
            f"{show_s(start_s)} before the first step and "
            + (f"only {show_s(left_s)} are left" if left_s > 0 else "it is past")
        )
        return None, text, None
    if job.time_limit_s is None:
        return None, "its deadline cannot be planned for, as it has no time limit", None
    need_s = start_s + job.time_limit_s
    latest = job.deadline - dt.timedelta(seconds=need_s + policy.deadline_margin_s)
    parts = (
        f"boot {show_s(option.boot_s)} + staging {show_s(option.staging_s)} + limit "
        f"{show_s(job.time_limit_s)}"
    )
    if policy.deadline_margin_s:
        parts += f" + margin {show_s(policy.deadline_margin_s)}"
    if now >= latest:
        text = (
            f"its deadline {show_time(job.deadline)} is {show_s(left_s)} away and {option.site} "
            f"needs {parts}"
        )
        if left_s < need_s:
            text += f", so it is met only if the job runs no longer than {show_s(left_s - start_s)}"
        return Rule.DEADLINE, text, now
    if policy.use_start_estimate and job.start_estimate is not None:
        start = max(job.start_estimate, now)
        end = start + dt.timedelta(seconds=job.time_limit_s)
        if end > job.deadline:
            text = (
                f"Slurm expects it to start at {show_time(start)}, which with its limit of "
                f"{show_s(job.time_limit_s)} misses its deadline {show_time(job.deadline)}"
            )
            return Rule.START_ESTIMATE, text, now
    return None, f"its deadline allows {show_s((latest - now).total_seconds())} more", latest


def usd(amount: Decimal) -> str:
    """``$12.34``; four digits below a cent, so that a lab's prices do not all read $0.00."""
    return f"${amount:.2f}" if amount >= Decimal("0.01") or not amount else f"${amount:.4f}"


def show_s(seconds: float) -> str:
    """Seconds for a sentence: ``45s``, ``12m``, ``2h05m``, ``3d04h``."""
    total = max(0, round(seconds))
    if total < 120:
        return f"{total}s"
    minutes, rest = divmod(total, 60)
    if minutes < 60:
        return f"{minutes}m{rest:02}s" if rest else f"{minutes}m"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours}h{minutes:02}m"
    days, hours = divmod(hours, 24)
    return f"{days}d{hours:02}h"


def show_time(when: dt.datetime) -> str:
    """A moment for a sentence, in UTC."""
    return when.astimezone(dt.UTC).strftime("%Y-%m-%d %H:%M:%SZ")
