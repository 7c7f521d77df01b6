"""Whether a job that stays is likely to leave soon, so that its data can go ahead of it. Pure.

Sending submits nothing and costs no cloud hour; clouds take no money for what comes in. A job is
likely to leave when a rule will speak before it is expected to start where it is.
"""

import datetime as dt

import msgspec

from hpcscale.burst.plan import Action, Candidate, Decision
from hpcscale.burst.policy import Policy
from hpcscale.burst.words import show_s

SOON = 3  # times the staging's own length: nothing is sent a day ahead


def stage_early(decision: Decision, job: Candidate, policy: Policy, now: dt.datetime) -> Decision:
    """The decision with the target that code and inputs are sent to now; as it was: none."""
    if not policy.stage_early or decision.action is not Action.STAY or job.moving:
        return decision
    if decision.to is None or decision.when is None or decision.when <= now:
        return decision
    option = next((o for o in job.options if o.site == decision.to), None)
    if option is None or option.same_job or option.blockers:
        return decision
    left_s = (decision.when - now).total_seconds()
    need_s = option.staging_s
    # the next look may come when it is too late to begin
    if left_s > max(SOON * need_s, need_s + 2 * policy.cron_interval_s):
        return decision
    if job.start_p50 is None:
        why = "when it starts here is not known"
    elif job.start_p50 >= decision.when:
        why = f"its start here is expected {show_s((job.start_p50 - now).total_seconds())} from now"
    else:
        return decision
    size = "" if not option.send_gb else f" ({option.send_gb:.3g} GB)"
    text = (
        f"it is likely to leave in {show_s(left_s)}, as {why}: its code and inputs{size} go to "
        f"{option.site} now; nothing is submitted, and what comes in costs nothing"
    )
    return msgspec.structs.replace(decision, stage=option.site, stage_why=text)
