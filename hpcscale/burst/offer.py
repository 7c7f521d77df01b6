"""From the ledger and one query of the origin site to what ``decide`` reads."""

import datetime as dt
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import ROUND_UP, Decimal

import msgspec

from hpcscale.burst.arrays import wholly_pending
from hpcscale.burst.capacity import rested, short
from hpcscale.burst.catalog import Offer
from hpcscale.burst.elements import element_run_id, limited
from hpcscale.burst.elements import waiting as waiting_elements
from hpcscale.burst.moves import Move, Step
from hpcscale.burst.plan import Candidate, Forecast, Option, Start
from hpcscale.burst.policy import Dependents, Policy, TargetTerms
from hpcscale.burst.shapes import Catalog, shapes
from hpcscale.burst.within import FEDERATED, as_it_waits, stays
from hpcscale.cost import CENT
from hpcscale.errors import HpcscaleError
from hpcscale.ledger import Attempt, Ledger, Run
from hpcscale.render import burst_blockers
from hpcscale.site import Site, split_target
from hpcscale.slurm.types import Answer, JobState, JobStatus, SiteFacts
from hpcscale.spec import BurstMode, JobSpec
from hpcscale.units import parse_array
from hpcscale.verify import mismatch

STANDS_IN = ".outcome"  # in a script: a job that lost its claim looks how the owner ended
_UNKNOWN = Forecast()
_EMPTY: Catalog = {}


@dataclass(frozen=True, slots=True)
class Rents:
    """The targets, and what is known of their prices today."""

    targets: Mapping[str, Site]
    catalog: Catalog
    today: dt.date


@dataclass(frozen=True, slots=True)
class Waiting:
    """A run whose latest attempt is open at the policy's origin."""

    run: Run
    attempt: Attempt


def waiting_runs(ledger: Ledger, from_site: str) -> list[Waiting]:
    """This user's runs with burst=auto or only whose open attempt is at ``from_site``."""
    attempts = [a for a in ledger.open_attempts(from_site) if a.job_id is not None]
    runs = {run.run_id: run for run in ledger.runs({a.run_id for a in attempts})}
    return [
        Waiting(runs[a.run_id], a)
        for a in attempts
        if runs[a.run_id].burst_mode is not BurstMode.NEVER
    ]


def spec_for(
    spec: JobSpec, time_limit_s: int | None, site: Site, partition: str | None = None
) -> JobSpec:
    """The job as it would be asked of another site.

    Partition, account, QOS and constraint are the origin's words: the target's profile says its
    own. A limit that the origin's partition set goes along, so that the job means the same. What it
    was to wait for has happened when it moves, and is known at the origin alone.
    """
    directives = {k: v for k, v in spec.directives.items() if k != "dependency"}
    # the script's report is then proof that all nodes are up, not the first alone (sbatch(1))
    directives.setdefault("wait-all-nodes", "1")
    resources = spec.resources
    if resources.time_limit_s is None and time_limit_s is not None:
        resources = msgspec.structs.replace(resources, time_limit_s=time_limit_s)
    return msgspec.structs.replace(
        spec,
        site=site.name,
        partition=partition,
        account=None,
        qos=None,
        constraint=None,
        after=(),
        directives=directives,
        resources=resources,
        outputs=_outputs(spec, site),
    )


def _outputs(spec: JobSpec, site: Site) -> dict[str, str]:
    """A function's files are named by its job id, which the origin may have given out too."""
    if spec.function is None:
        return dict(spec.outputs)
    return {name: f"{path.rstrip('/')}/{site.name}/" for name, path in spec.outputs.items()}


def with_gate_time(spec: JobSpec, seconds: int) -> JobSpec:
    """The job with a time limit that leaves it its own time after the gate and staging."""
    limit_s = spec.resources.time_limit_s
    if limit_s is None:
        return spec
    resources = msgspec.structs.replace(spec.resources, time_limit_s=limit_s + seconds)
    return msgspec.structs.replace(spec, resources=resources)


def candidates(
    waiting: list[Waiting],
    *,
    answer: Answer,
    policy: Policy,
    targets: Mapping[str, Site],
    moves: Mapping[str, list[Move]],
    origin: Site,
    forecast: Forecast = _UNKNOWN,
    catalog: Catalog = _EMPTY,
    now: dt.datetime | None = None,
    others: Answer | None = None,
    facts: SiteFacts | None = None,
) -> list[Candidate]:
    """What ``decide`` reads of each waiting run.

    Args:
        waiting: from ``waiting_runs``.
        answer: all of this user's jobs at the origin, from one squeue.
        policy: the rules.
        targets: the policy's targets by name.
        moves: run id -> its moves so far.
        origin: the site that the jobs wait at.
        forecast: of their starts there.
        catalog: rows that the targets' partitions may name.
        now: of the prices' age.
        others: all users' waiting jobs there, which may wait for these; None: not asked for.
        facts: what the origin says of its partitions, where one of them is a target.
    """
    waiting = [w for w in waiting if not _moved_within(moves.get(w.run.run_id, []))]
    rents = Rents(targets, catalog, (now or dt.datetime.now(dt.UTC)).date())
    each = [one for w in waiting for one in (_elements(w, answer, policy, moves) or [w])]
    found = [
        _candidate(
            w,
            answer=answer,
            others=answer if others is None else others,
            policy=policy,
            rents=rents,
            moves=moves,
            origin=origin,
            facts=facts,
        )
        for w in each
    ]
    shortages = short(moves.values())
    return [rested(_foreseen(c, w, forecast), shortages) for c, w in zip(found, each, strict=True)]


def _moved_within(mine: list[Move]) -> bool:
    """Whether it is in another partition now, where it waits for nodes that boot, or runs."""
    return bool(mine) and mine[-1].same_job and mine[-1].step is Step.MOVED


def _foreseen(candidate: Candidate, waiting: Waiting, forecast: Forecast) -> Candidate:
    job_id = waiting.attempt.job_id
    start = forecast.starts.get(str(job_id and job_id.base), Start())  # an element as its array
    why = forecast.why
    if start.p50 is None and not why:
        why = "the forecast has no start for it"
    return msgspec.structs.replace(
        candidate, start_p50=start.p50, start_p90=start.p90, unforeseen=why
    )


def to_foresee(
    waiting: list[Waiting], answer: Answer, moves: Mapping[str, list[Move]]
) -> list[str]:
    """Job ids that a decision may turn on the start of: waiting, and not moving yet."""
    found = []
    for one in waiting:
        status = _status(one.attempt, answer)
        mine = moves.get(one.run.run_id, [])
        moving = bool(mine and not mine[-1].step.settled)
        waits = status is not None and status.state is JobState.PENDING
        if waits and one.run.burst_mode is BurstMode.AUTO and not moving:
            found.append(str(one.attempt.job_id))
    return found


def _elements(
    waiting: Waiting, answer: Answer, policy: Policy, moves: Mapping[str, list[Move]]
) -> list[Waiting]:
    """The waiting elements of an array that has begun, each as a job; empty: it is looked at whole.

    Of very many elements those that may move next: the rest would only be held back.
    """
    run, attempt = waiting.run, waiting.attempt
    array = run.spec.array
    if array is None or attempt.job_id is None or STANDS_IN not in attempt.script:
        return []
    records = [s for s in answer.of(attempt.job_id) if mismatch(attempt, s) is None]
    whole = moves.get(run.run_id, [])
    under_way = bool(whole) and not whole[-1].step.settled
    if under_way or not wholly_pending(records, parse_array(array)[0]) or limited(array):
        return []
    spent = _spent_on_elements(attempt, moves) if run.max_cost_usd is not None else None
    # one at a time where a sum bounds them all: each is held against what the others left of it
    room = policy.max_moves_per_run if spent is None else 1
    found = []
    for task in waiting_elements(records):
        run_id = element_run_id(run.run_id, task)
        mine = moves.get(run_id, [])
        if not mine or (mine[-1].step.settled and mine[-1].step is not Step.FAILED):
            room -= 1
            if room < 0:
                continue
        spec = msgspec.structs.replace(run.spec, array=str(task))
        left = None if spent is None or run.max_cost_usd is None else run.max_cost_usd - spent
        alone = msgspec.structs.replace(run, run_id=run_id, spec=spec, max_cost_usd=left)
        found.append(Waiting(alone, attempt.element(task)))
    return found


def _spent_on_elements(attempt: Attempt, moves: Mapping[str, list[Move]]) -> Decimal:
    """Dollars that moves of an array's elements reserved: each at the most it can cost."""
    sums = (
        move.reserved_usd or move.estimate_usd or Decimal(0)
        for each in moves.values()
        for move in each
        if move.task is not None and move.origin == attempt.submission_id
    )
    return sum(sums, Decimal(0))


def _candidate(
    waiting: Waiting,
    *,
    answer: Answer,
    others: Answer,
    policy: Policy,
    rents: Rents,
    moves: Mapping[str, list[Move]],
    origin: Site,
    facts: SiteFacts | None,
) -> Candidate:
    run, attempt = waiting.run, waiting.attempt
    status = _status(attempt, answer)
    waits = dependents(others, status) if status else []
    mine = moves.get(run.run_id, [])
    last = mine[-1] if mine else None
    limit_s = status.time_limit_s if status else attempt.time_limit_s
    stuck = (
        *_stuck(waiting, status, answer, origin),
        *_behind(waiting, waits, origin, policy),
    )
    # what keeps a job from another site need not keep it from another partition of its own
    within = [name for name in policy.to if split_target(name)[1]]
    options = []
    for name in policy.to:
        if name not in within:
            other = option(run.spec, limit_s, name, policy, rents)
            kept = (*stuck, *other.blockers) if within else other.blockers
            options.append(msgspec.structs.replace(other, blockers=kept))
            continue
        target = rents.targets[name]
        blockers = stays(run.spec, attempt, status, facts, origin=origin, target=target)
        blockers += [f"tried before: {m.message}" for m in mine if m.to_site == name and m.refused]
        asked = as_it_waits(run.spec, status, target.default_partition or "")
        there = _rented(asked, blockers, name, policy, rents, staging_s=0)
        options.append(msgspec.structs.replace(there, same_job=True, partition=None))
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
        options=tuple(options),
        blockers=() if within else stuck,
        resting_until=last.retry_at if last and last.step is Step.FAILED else None,
        resting_why=last.message if last else "",
        moving=bool(last and not last.step.settled),
        notes=_notes(waits),
        user=run.user,
        account=run.spec.account or "",
        project=run.spec.directives.get("wckey") or "",
    )


def _status(attempt: Attempt, answer: Answer) -> JobStatus | None:
    """Slurm's word of this attempt; not of another job that got its id."""
    if attempt.job_id is None:
        return None
    return next((s for s in answer.of(attempt.job_id) if mismatch(attempt, s) is None), None)


def _since(status: JobStatus | None, attempt: Attempt) -> dt.datetime | None:
    if status is None:
        return attempt.submit_time
    return status.eligible_time or status.submit_time


def option(spec: JobSpec, limit_s: int | None, name: str, policy: Policy, rents: Rents) -> Option:
    """One target as it would be for a job: the cheapest of its shapes that hold it."""
    site = rents.targets[name]
    terms = policy.target.get(name, TargetTerms())
    staging_s = site.burst.staging_s if terms.staging_s is None else terms.staging_s
    asked = with_gate_time(spec_for(spec, limit_s, site), policy.lease_s + staging_s)
    blockers = [] if site.burst.target else ["it is no burst target (burst.target = false)"]
    try:
        blockers += burst_blockers(asked, site)
    except HpcscaleError as exc:
        blockers.append(str(exc))
    return _rented(asked, blockers, name, policy, rents, staging_s=staging_s)


def _rented(
    asked: JobSpec, blockers: list[str], name: str, policy: Policy, rents: Rents, *, staging_s: int
) -> Option:
    """What the cheapest of a target's shapes that hold the job would cost."""
    site = rents.targets[name]
    terms = policy.target.get(name, TargetTerms())
    found, too_small = shapes(asked, site, rents.catalog, rents.today)
    if not found:
        return Option(site=name, blockers=(*blockers, *too_small))
    shape = found[0]
    cost = shape.cost

    def own(value: int | None, default: int) -> int:
        return default if value is None else value

    why = "; ".join(part for part in (cost.why, shape.note) if part)
    row = shape.offer
    if row is not None:
        why = f"{row.name}: {why}"
    boot_timeout_s = own(terms.boot_timeout_s, site.burst.boot_timeout_s)
    usd, worst, unpromised = cost.usd, cost.usd, shape.unpromised
    if usd is not None and cost.gpu_hour_usd is not None:
        out, unsaid = egress(asked, row)
        unpromised = unpromised or unsaid
        slow_h = Decimal(max(0, boot_timeout_s - shape.boot_s)) / 3600
        once = usd + (cost.gpus * slow_h * cost.gpu_hour_usd).quantize(CENT, ROUND_UP)
        usd, worst = usd + out, once * (1 + _requeues(asked)) + out
        if out:
            why += f", and ${out} for {asked.burst.egress_gb:g} GB that come back"

    return Option(
        site=name,
        boot_s=own(terms.boot_s, shape.boot_s),
        staging_s=staging_s,
        boot_timeout_s=boot_timeout_s,
        cost_usd=usd,
        cost_why=why,
        blockers=tuple(blockers),
        worst_usd=worst,
        partition=shape.partition,
        offer="" if row is None else row.name,
        unpromised=unpromised,
        interruption_per_hour=None if row is None else row.interruption_per_hour,
    )


def egress(spec: JobSpec, row: Offer | None) -> tuple[Decimal, str]:
    """Dollars for what comes back, and why they have no bound (empty: they have)."""
    rate = None if row is None else row.egress_usd_per_gb
    if not rate:
        return Decimal(0), ""  # no row says that it costs
    size = spec.burst.egress_gb
    if size is None:
        if not spec.outputs:
            return Decimal(0), ""  # logs alone
        return Decimal(0), (
            f"its outputs cost ${rate} a GB to bring back and their size is not said: "
            "egress_gb in [burst] of the job file"
        )
    return (Decimal(str(size)) * rate).quantize(CENT, ROUND_UP), ""


def _requeues(spec: JobSpec) -> int:
    """How often it may start again by itself; each start may take the whole limit."""
    return spec.checkpoint.max_restarts if spec.checkpoint else 0


def _stuck(waiting: Waiting, status: JobStatus | None, answer: Answer, origin: Site) -> list[str]:
    """Why the job cannot leave its site, whatever the target."""
    spec, attempt = waiting.run.spec, waiting.attempt
    found: list[str] = []
    if (script := spec.script) is not None:
        found += [
            f"{script.path}:{line}: --{option} names jobs of {origin.name}"
            for line, option, _ in script.directives
            if option in {"dependency", "d"}
        ]
    claims = "hpcscale_claim" in attempt.script
    if spec.array is not None:
        claims = STANDS_IN in attempt.script  # as old as the claim on an array as a whole
    if not claims:
        found.append("its script makes no claim (an older hpcscale submitted it): submit it again")
    if status is None or attempt.job_id is None:
        return found
    if status.job_id.het_offset is not None:
        found.append("it is a heterogeneous job, and these do not move")
    if attempt.job_id.base >= FEDERATED:
        found.append("it is a job of a federation, and its siblings may start elsewhere")
    if spec.array is not None and attempt.task is None:
        records = [s for s in answer.of(attempt.job_id) if mismatch(attempt, s) is None]
        if why := wholly_pending(records, parse_array(spec.array)[0]):
            found.append(limited(spec.array) or why)
    if status.restarts and not _local_checkpoint(spec, origin):
        found.append(f"it has run here before, and what it left stays on {origin.name}")
    if status.dependency not in {"", "(null)"}:
        found.append(f"it waits for other jobs ({status.dependency}), which are known here alone")
    return found


def _behind(waiting: Waiting, waits: list[str], origin: Site, policy: Policy) -> list[str]:
    """Why a job that others wait for cannot leave."""
    if not waits or (
        policy.dependents is not Dependents.REFUSE and STANDS_IN in waiting.attempt.script
    ):
        return []
    text = f"{_list(waits)} on {origin.name} depends on it"
    return [f"{text}, and cancelling it here would start or strand that"]


def _notes(waits: list[str]) -> tuple[str, ...]:
    if not waits:
        return ()
    return (f"{_list(waits)} waits for it, so it stays in the queue until its cloud job has ended",)


def dependents(answer: Answer, job: JobStatus) -> list[str]:
    """Ids of the jobs that wait for a job: anybody's by its id, its user's own as singletons."""
    return [
        str(other.job_id)
        for other in answer.jobs.values()
        if other.job_id.base != job.job_id.base
        and not other.state.terminal
        and _depends(other, job)
    ]


def _local_checkpoint(spec: JobSpec, origin: Site) -> bool:
    """Whether an earlier start's checkpoint is seen from this machine, and so goes along."""
    if spec.checkpoint is None:
        return True  # it begins anew at each start, here as there
    path = spec.checkpoint.dir
    return any(path.startswith(root.rstrip("/") + "/") for root in origin.shared_dirs)


def _depends(other: JobStatus, job: JobStatus) -> bool:
    for term in other.dependency.replace("?", ",").split(","):
        kind, _, ids = term.partition(":")
        same = (other.name, other.user) == (job.name, job.user)
        if kind.partition("(")[0] == "singleton" and same:
            return True
        numbers = [part.partition("(")[0].partition("+")[0].partition("_")[0]
                   for part in ids.split(":")]  # fmt: skip
        if str(job.job_id.base) in numbers:
            return True
    return False


def _list(ids: list[str]) -> str:
    return ids[0] if len(ids) == 1 else f"{ids[0]} and {len(ids) - 1} more"
