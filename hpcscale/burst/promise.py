"""Money that is kept for what was promised: deadlines, and jobs that run nowhere else. Pure.

A job with a deadline that is submitted while its worst case fits into what its budgets have left
finds it there when it needs it: nobody who came later spends it, and nobody whose waiting alone
moves them. What it needs is free again as soon as it has begun where it waits.
"""

import datetime as dt
import re
from collections.abc import Iterable

from hpcscale.burst.budget import Purse, Turn
from hpcscale.burst.choice import choose, payer_of
from hpcscale.burst.plan import Candidate
from hpcscale.burst.policy import Policy
from hpcscale.burst.worth import slurm_id
from hpcscale.slurm.types import JobState
from hpcscale.spec import BurstMode


def turn_of(job: Candidate) -> Turn:
    """Its place in the order of submission: Slurm counts its ids upwards."""
    return tuple(int(number) for number in re.findall(r"\d+", slurm_id(job)))


def needs_money(job: Candidate, policy: Policy) -> bool:
    """Whether somebody counts on its move: it runs nowhere else, or its deadline may ask for it."""
    if job.moving or job.mode is BurstMode.NEVER or job.blockers:
        return False
    if job.state not in {JobState.PENDING, JobState.UNKNOWN}:
        return False
    if job.mode is BurstMode.ONLY:
        return True
    return policy.deadline and job.deadline is not None and job.time_limit_s is not None


def keep_promises(
    purse: Purse, jobs: Iterable[Candidate], policy: Policy, now: dt.datetime
) -> None:
    """Keep the worst case of each job that may yet need it.

    A forecast that its deadline is met where it waits frees nothing: one in ten is wrong, and the
    money would be gone then.
    """
    for job in jobs:
        if not needs_money(job, policy):
            continue
        option, _ = choose(job, policy, now)
        if option is None or option.worst_usd is None:
            continue
        starts = now + dt.timedelta(seconds=option.boot_s + option.staging_s)
        if job.mode is BurstMode.AUTO and job.deadline is not None and starts >= job.deadline:
            continue  # no move is made for it any more
        purse.keep(payer_of(job), option.worst_usd, turn_of(job))
