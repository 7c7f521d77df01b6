"""From the ledger and one query of the origin site to the jobs that ``decide`` reads."""

import datetime as dt
from collections.abc import Callable, Mapping

import msgspec

from hpcscale.burst.asked import spec_for, with_gate_time
from hpcscale.burst.moves import MAX_BACKOFF, Move, Step
from hpcscale.burst.offer import priced
from hpcscale.burst.plan import Candidate, Place
from hpcscale.burst.policy import Policy, TargetTerms
from hpcscale.burst.stuck import behind, notes, stuck
from hpcscale.burst.stuck import dependents as dependents_of
from hpcscale.burst.waiting import Waiting, elements, moved_within, status_of
from hpcscale.burst.within import as_it_waits, stays
from hpcscale.errors import HpcscaleError
from hpcscale.ledger import Attempt
from hpcscale.render import burst_blockers
from hpcscale.site import Site, split_target
from hpcscale.slurm.types import Answer, JobState, JobStatus, SiteFacts
from hpcscale.spec import JobSpec

UNSIZED = (
    "how large its inputs are is not known (a URL, a path of the site), so no more than the "
    "allowance for staging is counted"
)

SendGb = Callable[[JobSpec, Site, str], float | None]


def candidates(
    waiting: list[Waiting],
    *,
    answer: Answer,
    policy: Policy,
    targets: Mapping[str, Site],
    moves: Mapping[str, list[Move]],
    origin: Site,
    others: Answer | None = None,
    facts: SiteFacts | None = None,
    send_gb: SendGb = lambda *_: None,
) -> list[Candidate]:
    """What ``decide`` reads of each waiting run.

    Args:
        waiting: from ``waiting_runs``.
        answer: all of this user's jobs at the origin, from one squeue.
        policy: the rules.
        targets: the policy's targets by name.
        moves: run id -> its moves so far.
        origin: the site that the jobs wait at.
        others: all users' waiting jobs there, which may wait for these; None: not asked for.
        facts: what the origin says of its partitions, where one of them is a target.
        send_gb: gigabytes of a run's inputs that a target has not got.
    """
    waiting = [w for w in waiting if not moved_within(moves.get(w.run.run_id, []))]
    each = [one for w in waiting for one in (elements(w, answer, policy, moves) or [w])]
    each = [one for one in each if not moved_within(moves.get(one.run.run_id, []))]
    return [
        _candidate(
            w,
            answer=answer,
            others=answer if others is None else others,
            policy=policy,
            targets=targets,
            moves=moves,
            origin=origin,
            facts=facts,
            send_gb=send_gb,
        )
        for w in each
    ]


def _candidate(
    waiting: Waiting,
    *,
    answer: Answer,
    others: Answer,
    policy: Policy,
    targets: Mapping[str, Site],
    moves: Mapping[str, list[Move]],
    origin: Site,
    facts: SiteFacts | None,
    send_gb: SendGb,
) -> Candidate:
    run, attempt = waiting.run, waiting.attempt
    status = status_of(attempt, answer)
    waits = dependents_of(others, status) if status else []
    mine = moves.get(run.run_id, [])
    last = mine[-1] if mine else None
    limit_s = status.time_limit_s if status else attempt.time_limit_s
    kept = (
        *stuck(run, attempt, status, answer, origin),
        *behind(attempt, waits, origin, policy),
    )
    # what keeps a job from another site need not keep it from another partition of its own
    within = [name for name in policy.to if split_target(name)[1]]
    places, unsized = [], False
    for name in policy.to:
        target = targets[name]
        if name not in within:
            sent = send_gb(run.spec, target, run.run_id)
            unsized = unsized or (sent is None and bool(run.spec.inputs))
            kind = origin.partition_gpu_type(run.spec.partition)
            other = place(run.spec, limit_s, name, policy, target, send_gb=sent, gpu_type=kind)
            blockers = (*kept, *other.blockers) if within else other.blockers
            places.append(msgspec.structs.replace(other, blockers=blockers))
            continue
        why = stays(run.spec, attempt, status, facts, origin=origin, target=target)
        why += [f"tried before: {m.message}" for m in mine if m.to_site == name and m.refused]
        asked = as_it_waits(run.spec, status, target.default_partition or "")
        here = Place(target=name, spec=priced(asked), blockers=tuple(why), same_job=True)
        places.append(here)
    return Candidate(
        run_id=run.run_id,
        ref=str(attempt.ref),
        name=run.name,
        mode=run.burst_mode,
        state=status.state if status else JobState.UNKNOWN,
        reason=status.reason if status else "",
        nodes=run.spec.resources.nodes,
        gpus=attempt.gpus,
        waiting_since=_since(status, attempt),
        start_estimate=status.start_time if status else None,
        time_limit_s=limit_s,
        deadline=run.deadline,
        max_cost_usd=run.max_cost_usd,
        places=tuple(places),
        blockers=() if within else kept,
        resting_until=last.retry_at if last and last.step is Step.FAILED else None,
        resting_why=last.message if last else "",
        retry_from=_retry_from(mine, policy),
        moving=bool(last and not last.step.settled),
        notes=(*notes(waits), *((UNSIZED,) if unsized else ())),
        user=run.user,
        account=run.spec.account or "",
        project=run.spec.directives.get("wckey") or "",
    )


def _retry_from(mine: list[Move], policy: Policy) -> dt.datetime | None:
    """An interval after its last move failed: a deadline does not wait for the whole rest."""
    failed = [m for m in mine if m.step is Step.FAILED]
    last = failed[-1] if failed else None
    if last is None or last.retry_at is None:
        return None
    rest_s = last.retry_after_s * min(2 ** (len(failed) - 1), MAX_BACKOFF)
    return last.retry_at - dt.timedelta(seconds=rest_s - policy.cron_interval_s)


def place(
    spec: JobSpec,
    limit_s: int | None,
    name: str,
    policy: Policy,
    site: Site,
    *,
    send_gb: float | None = None,
    gpu_type: str | None = None,
) -> Place:
    """One target as it would be asked to take a job.

    Args:
        spec: as it was submitted.
        limit_s: that Slurm holds it to; None is no limit.
        name: of the target.
        policy: whose lease and staging are part of the limit there.
        site: the target's profile.
        send_gb: inputs that are not there yet.
        gpu_type: of the origin's nodes that it waits for; None: unknown.
    """
    terms = policy.target.get(name, TargetTerms())
    staging_s = site.burst.staging_s if terms.staging_s is None else terms.staging_s
    asked = with_gate_time(spec_for(spec, limit_s, site), policy.lease_s + staging_s)
    blockers = [] if site.burst.target else ["it is no burst target (burst.target = false)"]
    try:
        blockers += burst_blockers(asked, site)
    except HpcscaleError as exc:
        blockers.append(str(exc))
    return Place(
        target=name, spec=priced(asked), blockers=tuple(blockers), send_gb=send_gb,
        gpu_type=gpu_type,
    )  # fmt: skip


def _since(status: JobStatus | None, attempt: Attempt) -> dt.datetime | None:
    if status is None:
        return attempt.submit_time
    return status.eligible_time or status.submit_time
