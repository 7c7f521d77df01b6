"""The waiting rules of the policies: does this job's waiting move it now? Pure.

``value`` compares what is left of the wait with what moving costs. Time that was waited already is
lost either way and does not count, except for the cap: a forecast that keeps promising a start
soon is believed up to ``cap`` times the wait that would have paid for the move (ski rental).
"""

import datetime as dt
from decimal import Decimal

from hpcscale.burst.plan import Candidate, Option, Rule
from hpcscale.burst.policy import Policy, PolicyKind
from hpcscale.burst.words import show_s, usd
from hpcscale.burst.worth import even_s, gains, left_s, worth_usd

_LONG_S = 3e9  # a century: what a date still holds

Verdict = tuple[Rule | None, str, dt.datetime | None]


def waiting_rule(
    job: Candidate, option: Option, policy: Policy, now: dt.datetime, depth: int
) -> Verdict:
    """What the policy's own rule says of a job that waits.

    Args:
        job: waiting, with ``waiting_since``.
        option: where it would go.
        policy: of any kind but ``rules``.
        now: the origin's clock.
        depth: how many candidates wait.

    Returns:
        The rule that moves it now (None: it stays), the reason, and when a rule will speak.
    """
    assert job.waiting_since is not None
    waited_s = (now - job.waiting_since).total_seconds()
    waited = f"it has waited {show_s(waited_s)}"
    match policy.kind:
        case PolicyKind.ALWAYS:
            return Rule.ALWAYS, "the policy moves every job that may leave", now
        case PolicyKind.NO_WAIT:
            # a plan that says "now" is believed until the next look, not for ever
            soon = waited_s <= policy.cron_interval_s
            if job.start_p50 is not None and job.start_p50 <= now and soon:
                until = job.waiting_since + dt.timedelta(seconds=policy.cron_interval_s)
                return None, "it fits now, and is expected to start", until
            return (
                Rule.NO_WAIT,
                f"it did not start at once ({job.reason or 'no reason given'})",
                now,
            )
        case PolicyKind.CONSTANT_WAIT:
            return _after(Rule.CONSTANT_WAIT, job, policy.wait_s, now, "wait")
        case PolicyKind.COMPUTE_WAIT:
            return _compute_wait(job, policy, now)
        case PolicyKind.THRESHOLD:
            if depth <= policy.depth:
                return (
                    None,
                    f"{waited}, and {depth} wait, no more than depth = {policy.depth}",
                    None,
                )
            return _after(Rule.THRESHOLD, job, policy.wait_s, now, "wait")
        case PolicyKind.VALUE:
            return _value(job, option, policy, now)
        case PolicyKind.DEADLINE:
            return None, f"{waited}, and the policy moves for deadlines alone", None
        case _:
            return None, "the policy moves nothing", None


def _after(rule: Rule, job: Candidate, wait_s: float, now: dt.datetime, key: str) -> Verdict:
    assert job.waiting_since is not None
    waited_s = (now - job.waiting_since).total_seconds()
    text = f"it has waited {show_s(waited_s)}"
    if waited_s >= wait_s:
        return rule, f"{text}, {key} = {show_s(wait_s)} or longer", now
    until = job.waiting_since + dt.timedelta(seconds=wait_s)
    return None, f"{text} of {key} = {show_s(wait_s)}", until


def _compute_wait(job: Candidate, policy: Policy, now: dt.datetime) -> Verdict:
    if job.time_limit_s is None:
        return None, "without a time limit its GPU-hours, and so its wait, are not known", None
    gpu_hours = max(job.gpus, 1) * job.time_limit_s / 3600
    rule, text, when = _after(
        Rule.COMPUTE_WAIT, job, gpu_hours * policy.wait_per_gpu_hour_s, now, "its wait"
    )
    return rule, f"{text} ({gpu_hours:.4g} GPU-hours)", when


def _value(job: Candidate, option: Option, policy: Policy, now: dt.datetime) -> Verdict:
    assert job.waiting_since is not None
    if option.cost_usd is None:
        return None, f"what moving costs is unknown ({option.cost_why or 'no price'})", None
    left, source = left_s(job, now), "start p50"
    if left is None:
        unknown = "when it starts here is unknown"
        if job.unforeseen:
            unknown += f" ({job.unforeseen})"
        if policy.max_wait_s is not None:
            rule, text, when = _after(Rule.MAX_WAIT, job, policy.max_wait_s, now, "max_wait")
            return rule, f"{unknown}; {text}", when
        if not policy.use_start_estimate or job.start_estimate is None:
            return None, f"{unknown}, and the policy sets no max_wait", None
        left, source = max(0.0, (job.start_estimate - now).total_seconds()), "Slurm's start"
    worth, saved = worth_usd(job, option, policy, left)
    text = f"{source} {show_s(left)}"
    if job.start_p90 is not None and source == "start p50":
        text += f", p90 {show_s((job.start_p90 - now).total_seconds())}"
    if (slack := slack_s(job, option, policy, now)) is not None:
        text += f", slack {show_s(slack)}"
    text += f"; moving now costs {usd(option.cost_usd)} to save {show_s(saved)}"
    if job.others_s >= 1:
        text += f", {show_s(job.others_s)} of it for your other jobs"
    text += f", worth {usd(worth.quantize(Decimal('0.01')))} at {usd(policy.hour_usd)} an hour"
    if gains(job, option, policy, left) >= 0:
        return Rule.VALUE, text, now
    until = waited_enough(job, option, policy)
    if now >= until:
        waited = (now - job.waiting_since).total_seconds()
        text += f"; it has waited {show_s(waited)}, {policy.cap:g} times what the cost is worth"
        return Rule.VALUE, text, now
    return None, text, until


def waited_enough(job: Candidate, option: Option, policy: Policy) -> dt.datetime:
    """From when on no forecast is believed any more."""
    assert job.waiting_since is not None
    seconds = min(policy.cap * even_s(option, policy), _LONG_S)
    return job.waiting_since + dt.timedelta(seconds=seconds)


def slack_s(job: Candidate, option: Option, policy: Policy, now: dt.datetime) -> float | None:
    """Seconds until the last safe moment of its deadline; None: no deadline to keep."""
    if not policy.deadline or job.deadline is None or job.time_limit_s is None:
        return None
    return (last_safe(job.deadline, option, job.time_limit_s, policy) - now).total_seconds()


def last_safe(deadline: dt.datetime, option: Option, limit_s: int, policy: Policy) -> dt.datetime:
    """The last moment at which a move surely meets a deadline: less boot, staging and limit."""
    needs = option.boot_s + option.staging_s + limit_s + policy.deadline_margin_s
    return deadline - dt.timedelta(seconds=needs)
