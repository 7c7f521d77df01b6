"""When a job would start, how sure that is, and what would start it sooner without paying."""

import math
from collections.abc import Callable
from typing import Any

import msgspec

from hpcscale.connect import Connection
from hpcscale.errors import NotFoundError
from hpcscale.history.reading import Reading
from hpcscale.outlook.learned import Track, history
from hpcscale.outlook.model import SiteModel, shorter
from hpcscale.outlook.snapshot import Level, Snapshot, asker_of, take
from hpcscale.slurm.types import JobState, PartitionFacts
from hpcscale.slurm.whole import QueuedJob
from hpcscale.spec import JobSpec, Resources
from hpcscale.units import format_duration

_STEP_S = 300  # limits are offered in steps of five minutes
_SPARE = 1.1  # on top of the runtime that is hardly exceeded
_ENOUGH_LIKE = 3.0  # ended jobs of the same kind from which a shorter limit is offered
_WORTH_S = 60.0
SPEC_ID = "0"


class Lever(msgspec.Struct, frozen=True):
    """A change of the request, and what it gains.

    Attributes:
        change: ``time``, ``partition`` or ``nodes``.
        value: as one would type it behind the option.
        why: where the value comes from, and what to mind.
        start_s: seconds from now with the change.
        sooner_s: gained over the request as it is.
    """

    change: str
    value: str
    why: str
    start_s: float
    sooner_s: float


class Forecast(msgspec.Struct, frozen=True):
    """One job at one site; seconds from now, None: not known.

    Attributes:
        p50_s: the plan's start; once forecasts have come true, the median of what its like came to.
        p90_s: upper bound that nine of ten starts keep, as far as ``bound`` says.
        bound: how the bound was made.
        coverage: share of past bounds that held; None: too few yet.
        level: what this site shows: of its queue, and of its history.
        learned_jobs: ended jobs behind the runtimes.
        slurm_s: Slurm's own estimate, where it gives one.
        state: of the job; ``NEW`` for one that is not submitted.
        staging_s, boot_p50_s, boot_p95_s: where nodes boot on demand; counted in the start.
    """

    site: str
    job: str
    state: str
    p50_s: float | None
    p90_s: float | None
    bound: str
    coverage: float | None
    queue_level: Level
    history_level: Level
    learned_jobs: int
    pending_jobs: int
    slurm_s: float | None
    levers: tuple[Lever, ...]
    notes: tuple[str, ...]
    staging_s: float = 0.0
    boot_p50_s: float | None = None
    boot_p95_s: float | None = None


def forecast_job(connection: Connection, job_id: str) -> Forecast:
    """When a pending job of the site's queue will start.

    Raises:
        NotFoundError: no such pending or running job is seen.
        UnreachableError: no answer.
    """
    return forecast_queued(connection, job_id)[0]


def forecast_queued(connection: Connection, job_id: str) -> tuple[Forecast, JobSpec]:
    """As ``forecast_job``, and the request as the queue shows it: what another site would get."""
    snapshot = take(connection)
    found = next((job for job in snapshot.jobs if job.job_id == job_id), None)
    if found is None:
        raise NotFoundError(
            f"{snapshot.site} shows no pending or running job {job_id}",
            hint="hpcscale status  (it may have ended, or the site hides it from you)",
        )
    return _forecast(connection, snapshot, lambda _: found), as_spec(found)


def as_spec(job: QueuedJob) -> JobSpec:
    """A job of the queue as a request: its size and its limit, nothing of what it does."""
    size = Resources(
        nodes=job.num_nodes, gpus_per_node=math.ceil(job.gpus / job.num_nodes),
        tasks_per_node=1, cpus_per_task=max(1, math.ceil(job.cpus / job.num_nodes)),
        time_limit_s=job.limit_s, exclusive=job.exclusive,
    )  # fmt: skip
    return JobSpec(resources=size, array=job.array_pending or None)


def forecast_spec(connection: Connection, spec: JobSpec) -> Forecast:
    """When a job would start if it were submitted now, behind all that wait."""
    snapshot = take(connection)
    return _forecast(connection, snapshot, lambda seen: as_queued(spec, seen))


def as_queued(spec: JobSpec, snapshot: Snapshot) -> QueuedJob:
    """A job that is not submitted yet, as the queue would show it; the last in priority."""
    parts = snapshot.facts.partitions
    default = next((p.name for p in parts.values() if p.default), next(iter(parts), ""))
    names = tuple((spec.partition or default).split(","))
    for name in names:
        if name not in parts:
            raise NotFoundError(
                f"{snapshot.site} has no partition {name!r}; it has: {', '.join(parts)}",
                hint=f"--partition {next(iter(parts), 'NAME')}",
            )
    there = parts[names[0]]
    need = spec.resources
    tasks = need.tasks_per_node or max(1, need.gpus_per_node)
    cpus = need.nodes * tasks * (need.cpus_per_task or 1)
    limit = need.time_limit_s or there.default_time_s or there.max_time_s
    return QueuedJob(
        job_id=SPEC_ID, state=JobState.PENDING, user=snapshot.user, account=spec.account or "",
        partitions=names, qos=spec.qos or "", reason="", nodes="", num_nodes=need.nodes,
        cpus=min(cpus, need.nodes * max(1, there.cpus_per_node)),
        gpus=need.nodes * need.gpus_per_node, exclusive=need.exclusive, dependency="",
        array_pending=spec.array or "", priority=1, limit_s=limit, submit_s=snapshot.now_s,
        eligible_s=snapshot.now_s, start_s=None,
        reservation=spec.directives.get("reservation") or "",
    )  # fmt: skip


def _forecast(
    connection: Connection, snapshot: Snapshot, choose: Callable[[Snapshot], QueuedJob]
) -> Forecast:
    job = choose(snapshot)
    new = job.job_id == SPEC_ID
    past, notes = history(snapshot, asker_of(connection))
    track = Track(snapshot, past)
    model = SiteModel(snapshot, past)
    model.learn((job,) if new else ())
    slurm = None
    if job.state is JobState.PENDING and job.start_s:
        slurm = float(max(0, job.start_s - snapshot.now_s))
    seen = Forecast(
        site=snapshot.site,
        job="" if new else job.job_id,
        state="NEW" if new else str(job.state),
        p50_s=None,
        p90_s=None,
        bound="",
        coverage=_known(track.coverage),
        queue_level=snapshot.queue_level,
        history_level=_history_level(snapshot, past),
        learned_jobs=model.learned_jobs,
        pending_jobs=sum(other.state is JobState.PENDING for other in snapshot.jobs),
        slurm_s=slurm,
        levers=(),
        notes=(*snapshot.notes, *notes),
    )
    if job.state.active:
        return _with(seen, p50_s=0.0, p90_s=0.0, bound="it has started")
    if snapshot.queue_level is Level.OWN:
        return _blind(track, seen)
    added = job if new else None
    times = model.times(changed=None if new else job, added=added)
    if job.job_id not in times.learned_s:
        return _with(seen, bound=f"Slurm holds it: {job.reason}")
    point, worst = times.start_s(job.job_id), times.limits_s[job.job_id]
    middle = upper = math.nan
    if math.isfinite(point):
        middle, upper = track.say(job, point)
    bound = f"adaptive, from {track.residuals} forecasts that have come true or not"
    if math.isnan(upper):
        upper = max(point, worst)
        bound = "every job runs to its limit; not calibrated yet, nobody new comes first"
    likely = point if point <= 0 or math.isnan(middle) else middle
    upper = max(upper, likely)
    if not new:
        everyone = model.times()
        waits = {name: everyone.start_s(name) for name in everyone.learned_s}
        track.remember({name: wait for name, wait in waits.items() if math.isfinite(wait)})
    if not math.isfinite(point):
        why = "no node of the partition holds it as things are (down, or too small)"
        if job.reservation:
            why = f"reservation {job.reservation} has no room for it in its time, or is not shown"
        seen = _with(seen, notes=(*seen.notes, why))
    levers = tuple(_shifted(lever, point, likely) for lever in _levers(model, job, point, new=new))
    return _with(seen, p50_s=_known(likely), p90_s=_known(upper), bound=bound, levers=levers)


def _shifted(lever: Lever, point: float, likely: float) -> Lever:
    """A lever's start as far before the likely one as it is before the plan's."""
    if lever.start_s <= 0 or not math.isfinite(point):
        return lever
    return msgspec.structs.replace(lever, start_s=max(0.0, likely - lever.sooner_s))


def _with(forecast: Forecast, **fields: Any) -> Forecast:
    return msgspec.structs.replace(forecast, **fields)


def _history_level(snapshot: Snapshot, past: Reading | None) -> Level:
    """OWN where the queue hides others and accounting shows none of theirs either."""
    if snapshot.history_level is Level.ABSENT or snapshot.queue_level is Level.FULL:
        return snapshot.history_level
    users = set() if past is None else set(past.workload.names["user"])
    return Level.FULL if users - {"", snapshot.user} else Level.OWN


def _blind(track: Track, seen: Forecast) -> Forecast:
    """Other people's jobs are hidden: no plan. What jobs waited before still bounds it."""
    upper = track.waits.upper_s()
    text = "unknown: the site hides other people's jobs, and accounting shows too few past waits"
    if not math.isnan(upper):
        text = "of past waits alone (QBETS): the site hides other people's jobs"
    return _with(seen, p90_s=_known(upper), bound=text)


def _known(seconds: float) -> float | None:
    return seconds if math.isfinite(seconds) else None


def _may_use(facts: PartitionFacts, job: QueuedJob) -> bool:
    """Whether a partition takes the job's account and QOS, as far as they are known."""
    return not any(
        name and (name in denied or (allowed is not None and name not in allowed))
        for name, allowed, denied in (
            (job.account, facts.allow_accounts, facts.deny_accounts),
            (job.qos, facts.allow_qos, facts.deny_qos),
        )
    )


def _levers(model: SiteModel, job: QueuedJob, point: float, *, new: bool) -> list[Lever]:
    """Free changes that start the job at least a minute sooner, the best first."""

    def start_of(changed: QueuedJob) -> float:
        times = model.times(changed=None if new else changed, added=changed if new else None)
        return times.start_s(job.job_id)

    found: list[Lever] = []

    def offer(change: str, value: str, why: str, changed: QueuedJob) -> None:
        start = start_of(changed)
        if point - start >= _WORTH_S or (math.isinf(point) and math.isfinite(start)):
            found.append(Lever(change, value, why, start, min(point - start, 1e9)))

    longest, like = model.likely_longest_s(job)
    if job.limit_s and like >= _ENOUGH_LIKE:
        limit = math.ceil(longest * _SPARE / _STEP_S) * _STEP_S
        if limit < job.limit_s:
            text = format_duration(limit)
            why = (
                f"19 of 20 of your jobs like this end within {format_duration(round(longest))};"
                " what runs longer is killed, so checkpoint"
            )
            offer("time", text, why, shorter(job, limit))
    for name, facts in model.snapshot.facts.partitions.items():
        if name in job.partitions or not facts.up or not _may_use(facts, job):
            continue
        if facts.max_time_s is not None and job.limit_s and job.limit_s > facts.max_time_s:
            continue
        why = "it may cost more, or be preempted: see the site's rules"
        offer("partition", name, why, msgspec.structs.replace(job, partitions=(name,)))
    if job.num_nodes > 1 and not job.array_pending:
        half = job.num_nodes // 2
        part = half / job.num_nodes
        smaller = msgspec.structs.replace(
            job, num_nodes=half, cpus=math.ceil(job.cpus * part), gpus=round(job.gpus * part)
        )
        offer("nodes", str(half), "with the same limit: if that many are enough", smaller)
    return sorted(found, key=lambda lever: lever.start_s)
