"""Which jobs ``value`` moves, each with what the others do counted in. Pure.

As in ``burst.value``, which the simulator compiles: the move that gains most is taken, the plan is
made anew without that job, and so on until no move gains. A job's move saves its own remaining wait
and what it lets this user's other waiting jobs start sooner; strangers' waits are not this user's
to pay for. A test decides drawn snapshots with both, and finds the same jobs.
"""

import datetime as dt
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal

import msgspec

from hpcscale.burst.plan import Candidate, Option, Start
from hpcscale.burst.policy import Policy

Replan = Callable[[frozenset[str]], Mapping[str, Start]]

PLANNED_JOBS = 20_000  # pending jobs that all plans of one decision may hold together


def slurm_id(job: Candidate) -> str:
    """Its id in its site's Slurm."""
    return job.ref.partition(":")[2]


def left_s(job: Candidate, now: dt.datetime) -> float | None:
    """Seconds of waiting that a forecast still expects; None: no forecast."""
    return None if job.start_p50 is None else max(0.0, (job.start_p50 - now).total_seconds())


def worth_usd(job: Candidate, option: Option, policy: Policy, left: float) -> tuple[Decimal, float]:
    """What moving is worth, and the seconds it saves: its own, and this user's other jobs'."""
    saved = max(0.0, left - option.boot_s - option.staging_s) + job.others_s
    return Decimal(max(0.0, saved)) / 3600 * policy.hour_usd, saved


def even_s(option: Option, policy: Policy) -> float:
    """Seconds of waiting that are worth what moving costs."""
    return float((option.cost_usd or Decimal(0)) / policy.hour_usd) * 3600


def gains(job: Candidate, option: Option, policy: Policy, left: float) -> Decimal:
    """Dollars gained over the margin; from 0 on it moves."""
    worth, _ = worth_usd(job, option, policy, left)
    return worth - (option.cost_usd or Decimal(0)) * Decimal(policy.margin)


def weigh(
    jobs: Sequence[tuple[Candidate, Option]],
    policy: Policy,
    now: dt.datetime,
    *,
    gone: frozenset[str],
    replan: Replan,
    pending: int,
) -> dict[str, Candidate]:
    """The jobs with the starts and ``others_s`` on which each is to be decided, by run id.

    Args:
        jobs: that nothing but their worth moves, each with where it would go; starts are known.
        policy: ``value``.
        now: the origin's clock.
        gone: Slurm ids of jobs that leave anyway.
        replan: starts of the others once some have left; the same for the same ids.
        pending: jobs in the queue: what one plan takes.
    """
    plans = PLANNED_JOBS // max(1, pending)
    open_jobs = {job.run_id: (job, option) for job, option in jobs}
    found: dict[str, Candidate] = {}
    starts: Mapping[str, Start] = {}
    if gone and open_jobs and plans:
        plans -= 1
        starts = replan(gone)
    while open_jobs:
        open_jobs = {
            run: (_starting(job, starts), option) for run, (job, option) in open_jobs.items()
        }
        if not plans:  # no start changes any more, whoever leaves
            break
        lefts = {run: left_s(job, now) or 0.0 for run, (job, _) in open_jobs.items()}
        if plans >= len(open_jobs) > 1 and sum(lefts.values()) > 0:
            plans -= len(open_jobs)
            open_jobs = {
                run: (
                    _with_others(job, lefts, open_jobs, now, replan(gone | {slurm_id(job)})),
                    option,
                )
                for run, (job, option) in open_jobs.items()
            }
        best = max(open_jobs, key=lambda run: gains(*open_jobs[run], policy, lefts[run]))
        job, option = open_jobs[best]
        if gains(job, option, policy, lefts[best]) < 0:
            break
        found[best] = job
        del open_jobs[best]
        gone |= {slurm_id(job)}
        if plans and open_jobs:
            plans -= 1
            starts = replan(gone)
    found.update((run, job) for run, (job, _) in open_jobs.items())
    return found


def _starting(job: Candidate, starts: Mapping[str, Start]) -> Candidate:
    start = starts.get(slurm_id(job))
    if start is None or start.p50 is None:
        return job
    return msgspec.structs.replace(job, start_p50=start.p50, start_p90=start.p90, others_s=0.0)


def _with_others(
    job: Candidate,
    lefts: Mapping[str, float],
    open_jobs: Mapping[str, tuple[Candidate, Option]],
    now: dt.datetime,
    starts: Mapping[str, Start],
) -> Candidate:
    saved = 0.0
    for run, (other, _) in open_jobs.items():
        if run != job.run_id:
            saved += lefts[run] - (left_s(_starting(other, starts), now) or 0.0)
    return msgspec.structs.replace(job, others_s=saved)
