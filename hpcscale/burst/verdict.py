"""The verdict on one waiting job: the rules of its policy, one after the other. Pure.

``decide`` asks for it, and then holds the moves against their number and against budgets.
"""

import datetime as dt

import msgspec

from hpcscale.burst.choice import choose, hard_money, over_cost, price, rests, too_late
from hpcscale.burst.line import REQUEUE_S, Line
from hpcscale.burst.plan import Action, Candidate, Decision, Option, Rule
from hpcscale.burst.policy import Policy, PolicyKind
from hpcscale.burst.triggers import last_safe, waiting_rule
from hpcscale.burst.words import show_s, show_time, usd
from hpcscale.slurm.types import JobState
from hpcscale.spec import BurstMode


def _stay(
    job: Candidate,
    reason: str,
    when: dt.datetime | None = None,
    option: Option | None = None,
    runner_up: str = "",
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
        runner_up=runner_up,
        start_p50=job.start_p50,
        start_p90=job.start_p90,
    )


def _refuse(
    job: Candidate, reason: str, blockers: tuple[str, ...] = (), option: Option | None = None
) -> Decision:
    return msgspec.structs.replace(
        _stay(job, reason, option=option), action=Action.REFUSE, blockers=blockers
    )


def aside(job: Candidate, policy: Policy, now: dt.datetime) -> Decision | None:
    """What is said of a job that no rule is asked about; None: the rules decide."""
    if job.moving:
        return _stay(job, "a move of it is under way")
    if job.mode is BurstMode.NEVER:
        return _stay(job, "it was submitted with burst=never")
    if job.state is JobState.UNKNOWN:
        return _stay(job, f"{policy.from_site} gave no word of it: nothing is done on a guess")
    if job.state is not JobState.PENDING:
        return _stay(job, f"it is {job.state.value} on {policy.from_site}")
    if "held" in job.reason.lower():  # JobHeldUser, launch failed requeued held, …
        return _stay(job, f"it is held ({job.reason}): release it first")
    if (
        job.reason.startswith(("Dependency", "BeginTime"))
        or job.waiting_since is None
        or job.waiting_since > now
    ):
        return _stay(job, f"it is not yet allowed to start ({job.reason or 'BeginTime'})")
    if job.blockers:
        return _refuse(job, f"it cannot leave {policy.from_site}: {job.blockers[0]}", job.blockers)
    resting = job.resting_until is not None and job.resting_until > now
    if resting and job.resting_until is not None and not _due(job, policy, now):
        rest = show_s((job.resting_until - now).total_seconds())
        return _stay(
            job, f"its last move failed ({job.resting_why}); it rests {rest} more",
            job.resting_until,
        )  # fmt: skip
    if policy.kind is PolicyKind.NEVER:
        return _stay(job, "the policy moves nothing")
    return None


def _due(job: Candidate, policy: Policy, now: dt.datetime) -> bool:
    """Whether a deadline's last safe moment has come: no rest after a failed move outlasts it."""
    if job.retry_from is None or now < job.retry_from:
        return False
    return pressing(job, policy, now)


def pressing(job: Candidate, policy: Policy, now: dt.datetime) -> bool:
    """Whether the last safe moment of its deadline has come: a later look would be too late."""
    if not policy.deadline or job.deadline is None or job.time_limit_s is None:
        return False
    option, _ = choose(job, policy, now)
    return option is not None and now >= last_safe(job.deadline, option, job.time_limit_s, policy)


def verdict(job: Candidate, policy: Policy, now: dt.datetime, depth: int) -> Decision:
    """What its policy does with a job; ``depth`` of them wait."""
    if (said := aside(job, policy, now)) is not None:
        return said
    option, why_not = choose(job, policy, now)
    if option is None:
        first = next((o for o in job.options), None)
        why = why_not[0] if why_not else "the policy names no target"
        return _refuse(job, why, why_not, first)

    land = _landing(job, option, policy, now)
    rule, reason, when, notes = _trigger(job, option, land, policy, now, depth)
    sentence = "; ".join([reason, *notes])
    if rule is Rule.DEADLINE:
        land = option  # no time is left in which a node might be taken
    if rule is not None and land.spot:
        sentence += f"; on spot nodes ({land.partition}), with {land.net} as the net"
    if rule is None:
        return _stay(job, sentence, when, land, f"else to {land.site} now{_at(land)}")
    if (put_off := _not_now(rule, option, policy, now)) is not None:
        why, later = put_off
        safe = [later] if when is None or when <= now else [later, when]
        if policy.deadline and job.deadline is not None and job.time_limit_s is not None:
            safe.append(last_safe(job.deadline, option, job.time_limit_s, policy))
        return _stay(job, f"{sentence}; but {why}", max(now, min(safe)), option)
    return Decision(
        run_id=job.run_id,
        ref=job.ref,
        name=job.name,
        action=Action.MOVE,
        reason="; ".join([sentence, *([] if land.same_job else job.notes)]),
        rule=rule,
        to=land.site,
        partition=land.partition,
        when=now,
        cost_usd=land.cost_usd,
        cost_why=land.cost_why,
        boot_s=land.boot_s,
        boot_timeout_s=land.boot_timeout_s,
        staging_s=land.staging_s,
        worst_usd=land.worst_usd if land.worst_usd is not None else land.cost_usd,
        egress_usd=land.egress_usd,
        runner_up=_runner_up(job, land, policy, now),
        start_p50=job.start_p50,
        start_p90=job.start_p90,
        net=land.net,
        line=line_of(job, land, policy, now) if land.spot else None,
    )


def _at(option: Option) -> str:
    return " at an unknown cost" if option.cost_usd is None else f" for {usd(option.cost_usd)}"


def _runner_up(job: Candidate, chosen: Option, policy: Policy, now: dt.datetime) -> str:
    """What else could have been done, with its numbers."""
    others = [o for o in job.options if o is not chosen and not o.blockers]
    if others:
        other = min(others, key=price)
        late = ", too late for its deadline" if too_late(other, job, policy, now) else ""
        return f"else to {other.site}{_at(other)}{late}"
    if job.start_p50 is None:
        return "else it would wait on"
    if job.start_p50 <= now:
        return "else it would start here about now"
    wait = show_s((job.start_p50 - now).total_seconds())
    return f"else it would start here in {wait} (p50)"


def landing(job: Candidate, policy: Policy, now: dt.datetime) -> Option | None:
    """Where a move that has time would go: as ``choose``, or spot nodes at the same site."""
    option, _ = choose(job, policy, now)
    return None if option is None else _landing(job, option, policy, now)


def _landing(job: Candidate, option: Option, policy: Policy, now: dt.datetime) -> Option:
    """The cheapest spot option beside an option, where it costs less and the deadline bears it."""
    found = [
        spot
        for spot in job.options
        if spot.spot
        and spot.site == option.site
        and not spot.blockers
        and not rests(spot, now)
        and not (spot.unpromised and hard_money(job, policy))
        and over_cost(job, spot) is None
        and spot.cost_usd is not None
        and option.cost_usd is not None
        and spot.cost_usd < option.cost_usd
        and (job.deadline is None or line_of(job, spot, policy, now).bears(now))
    ]
    return min(found, key=price, default=option)


def line_of(job: Candidate, spot: Option, policy: Policy, now: dt.datetime) -> Line:
    """What a job on spot nodes is held against, from now on."""
    limit_s = job.time_limit_s or 0
    margin = dt.timedelta(seconds=policy.deadline_margin_s + spot.staging_s)
    deadline = None
    if policy.deadline and job.deadline is not None:
        # without a limit nothing is known of its end, and its slack is none
        deadline = job.deadline - margin if job.time_limit_s is not None else now
    line = Line(
        deadline=deadline,
        limit_s=limit_s,
        boot_s=spot.boot_s,
        net_boot_s=spot.net_boot_s,
        lost_s=min(spot.lost_s, limit_s),
        look_s=policy.cron_interval_s + REQUEUE_S,
        boot_timeout_s=spot.boot_timeout_s,
        tries=policy.spot_tries,
    )
    slack_s = line.slack_s(now)
    return msgspec.structs.replace(line, first_slack_s=slack_s if deadline else 0.0)


def _not_now(
    rule: Rule, option: Option, policy: Policy, now: dt.datetime
) -> tuple[str, dt.datetime] | None:
    """Why a move that a rule asks for is put off, and until when; no deadline is put off."""
    if rule in {Rule.ONLY, Rule.DEADLINE}:
        return None
    if option.resting_until is not None and rests(option, now):
        rest = show_s((option.resting_until - now).total_seconds())
        why = f"{option.site} had no nodes ({option.resting_why}) and is left alone {rest} more"
        return why, option.resting_until
    if rule is not Rule.START_ESTIMATE and policy.only_between is not None:
        opens = policy.only_between.opens(now)
        if opens > now:
            return f"the policy moves only between {policy.only_between}", opens
    return None


def _trigger(  # noqa: PLR0917 -- a job, its two ways out, and what the rules are asked of
    job: Candidate, option: Option, land: Option, policy: Policy, now: dt.datetime, depth: int
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
    if policy.kind is not PolicyKind.RULES:
        rule, text, when = waiting_rule(job, land, policy, now, depth)
        if policy.kind is PolicyKind.VALUE and ", slack " in text:
            notes.clear()  # it says the same
        if rule is not None:
            return rule, text, now, notes
        return None, text, min([*later, *([when] if when else [])], default=None), notes
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
    latest = last_safe(job.deadline, option, job.time_limit_s, policy)
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
    if policy.use_start_estimate:
        # learned runtimes are nearer the truth than limits; Slurm's own estimate knows limits alone
        expected, who = job.start_p50, "here it is expected to start (the forecast's p50)"
        if expected is None:
            expected, who = job.start_estimate, "Slurm expects it to start here"
        if expected is not None:
            start = max(expected, now)
            if start + dt.timedelta(seconds=job.time_limit_s) > job.deadline:
                text = (
                    f"{who} at {show_time(start)}, and with its limit of "
                    f"{show_s(job.time_limit_s)} that is too late for its deadline "
                    f"{show_time(job.deadline)}"
                )
                return Rule.START_ESTIMATE, text, now
    return None, f"its deadline allows {show_s((latest - now).total_seconds())} more", latest
