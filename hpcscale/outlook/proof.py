"""How good forecasts of a site would have been, over the history that was learned of it.

Each job is forecast again from what was known when it was submitted (``simulate.backtest``). The
history tells sizes, limits and times, not partitions' nodes or allowances of then, and not the
priorities: the site counts as one class of nodes (of GPUs where it has any), as many as are in
service now, and who was submitted first is first. So the figures are a little worse than live ones
where those matter, and better where nodes were broken up.
"""

import datetime as dt
import math
from collections.abc import Callable
from dataclasses import replace

import msgspec
import numpy as np

from hpcscale.connect import Connection
from hpcscale.errors import HpcscaleError
from hpcscale.history.workload import Ints, Workload
from hpcscale.outlook.learned import Track, history
from hpcscale.outlook.model import most_run_on
from hpcscale.outlook.snapshot import Level, asker_of, take
from hpcscale.simulate.backtest import backtest
from hpcscale.simulate.easy import runnable

LEAST_WAIT_S = 60  # Slurm may take so long over a job that waits for nobody
LEAST_SCORED = 50
_MOST_ASKED = 1_000


class Proof(msgspec.Struct, frozen=True):
    """What forecasts of past jobs come to; errors and waits in hours.

    Attributes:
        unit: ``GPU`` or ``node``; ``capacity`` of them are in service.
        since, until: submissions of the jobs in the history.
        jobs: of the history that were run again; ``left_out``: those that were not, by reason.
        forecasts: jobs that waited and were scored: the last 60 %, those before are learned from.
        most_waiting: jobs that waited at one time.
        runs_on: starts are those of queues that run on; else of one plan, as in long queues.
        mean_wait_h: of the jobs scored.
        error_h, error_ratio: mean absolute error of p50, and over that of a plan by limits.
        coverage: share of jobs that started by their p90.
        width_h, width_ratio: mean p90, and over the mean of QBETS's bounds.
        qbets_coverage: share of jobs that started by those.
        said: forecasts that were made here and have come true since.
        said_coverage: share of their p90 that held; None: too few yet.
    """

    site: str
    unit: str
    capacity: int
    since: dt.datetime
    until: dt.datetime
    jobs: int
    left_out: dict[str, int]
    forecasts: int
    most_waiting: int
    runs_on: bool
    mean_wait_h: float
    error_h: float
    error_ratio: float | None
    coverage: float
    width_h: float
    width_ratio: float
    qbets_coverage: float
    said: int
    said_coverage: float | None


def proof(connection: Connection, progress: Callable[[float], None] | None = None) -> Proof:
    """Forecast a site's past jobs again, and compare with what came.

    Args:
        connection: to the site.
        progress: called with the share done.

    Raises:
        HpcscaleError: the site hides other people's jobs, or too little is known of its past.
        UnreachableError: no answer.
    """
    snapshot = take(connection)
    where = snapshot.site
    if snapshot.queue_level is Level.OWN:
        raise HpcscaleError(
            "its past forecasts cannot be made: it hides other people's jobs (PrivateData)",
            where=where, hint="ask as root, SlurmUser or an operator",
        )  # fmt: skip
    past, notes = history(snapshot, asker_of(connection))
    if past is None:
        raise HpcscaleError(
            f"its past forecasts cannot be made: {'; '.join(notes)}", where=where,
            hint="burst simulate --history FILE looks at a trace",
        )  # fmt: skip
    usable = [node for node in snapshot.nodes if node.usable]
    by_gpu = any(node.gpus for node in usable)
    capacity = sum(node.gpus for node in usable) if by_gpu else len(usable)
    jobs, left_out = _asked(past.workload, capacity, by_gpu=by_gpu)
    start = np.rint(jobs.start_s).astype(np.int64)
    late = int((start - np.rint(jobs.submit_s) > LEAST_WAIT_S).sum())
    if late < LEAST_SCORED:
        raise _too_little(late, where)
    tested = backtest(
        jobs, start, capacity, every=max(1, late // _MOST_ASKED), least_wait_s=LEAST_WAIT_S,
        progress=progress,
    )  # fmt: skip
    if (scored := tested.scored_jobs) < LEAST_SCORED:
        raise _too_little(scored, where)
    track = Track(snapshot, past)
    deepest = _deepest(jobs)
    runs_on = deepest <= most_run_on()
    found, kind = tested.figures(), "live_" if runs_on else "live_long_queue_"
    ratio = found[f"{kind}mae_ratio"]
    return Proof(
        site=where, unit="GPU" if by_gpu else "node", capacity=capacity,
        since=_moment(float(jobs.submit_s[0])), until=_moment(float(jobs.submit_s[-1])),
        jobs=len(jobs), left_out=left_out, forecasts=scored, most_waiting=deepest,
        runs_on=runs_on, mean_wait_h=found["mean_wait_h"], error_h=found[f"{kind}mae_h"],
        error_ratio=ratio if math.isfinite(ratio) else None, coverage=found[f"{kind}coverage"],
        width_h=found[f"{kind}upper_mean_h"], width_ratio=found[f"{kind}width_ratio"],
        qbets_coverage=found["qbets_coverage"], said=track.residuals,
        said_coverage=track.coverage if math.isfinite(track.coverage) else None,
    )  # fmt: skip


def _too_little(known: int, where: str) -> HpcscaleError:
    return HpcscaleError(
        f"its history says too little: of jobs that waited for more than a minute {known} can be "
        f"scored, {LEAST_SCORED} at least are needed", where=where,
        hint="later: history is added to at each forecast",
    )  # fmt: skip


def _asked(jobs: Workload, capacity: int, *, by_gpu: bool) -> tuple[Workload, dict[str, int]]:
    """The jobs that can be run again, counted in the site's unit."""
    started = np.isfinite(jobs.start_s)
    left_out = {"never started": int((~started).sum())}
    if by_gpu:
        left_out["without GPUs"] = int((started & (jobs.gpus <= 0)).sum())
        started &= jobs.gpus > 0
        jobs = replace(jobs, nodes=np.maximum(1, jobs.gpus))
    kept, why = runnable(jobs.select(started), capacity)
    return kept, {name: count for name, count in (left_out | why).items() if count}


def _deepest(jobs: Workload) -> int:
    """The most jobs that waited at one time."""
    waiting: Ints = np.arange(1, len(jobs) + 1) - np.searchsorted(
        np.sort(jobs.start_s), jobs.submit_s, side="right"
    )
    return int(waiting.max(initial=0))


def _moment(seconds: float) -> dt.datetime:
    return dt.datetime.fromtimestamp(round(seconds), dt.UTC)
