"""When pending jobs of a site would start: one look at it, for decisions on many jobs."""

import datetime as dt
import math
from collections.abc import Collection

import msgspec

from hpcscale.connect import Connection
from hpcscale.outlook.learned import Track, history
from hpcscale.outlook.model import SiteModel, Times
from hpcscale.outlook.snapshot import Level, asker_of, take
from hpcscale.slurm.types import JobState
from hpcscale.slurm.whole import QueuedJob


class Start(msgspec.Struct, frozen=True):
    """When one job is expected to start; None: not known, or never with what there is.

    Attributes:
        p50: the plan's start; once forecasts have come true, the median of what its like came to.
        p90: nine of ten start before it, as far as forecasts of this site have shown yet.
    """

    p50: dt.datetime | None
    p90: dt.datetime | None


class Outlook:
    """One look at a site; its queue is planned as often as wanted, the site is asked once.

    Args:
        connection: to the site.

    Attributes:
        queue_level: FULL, or OWN where other people's jobs are hidden: then no p50 is known.
        history_level: FULL, or ABSENT: then limits stand for runtimes.
        pending: jobs that wait.

    Raises:
        UnreachableError: no answer on the queue, the nodes or the time.
    """

    def __init__(self, connection: Connection) -> None:
        self._snapshot = snapshot = take(connection)
        self.queue_level = snapshot.queue_level
        self.history_level = snapshot.history_level
        self.pending = sum(job.state is JobState.PENDING for job in snapshot.jobs)
        past, _ = history(snapshot, asker_of(connection))
        self._track = Track(snapshot, past)
        self._model: SiteModel | None = None
        if self.queue_level is Level.FULL:
            self._model = SiteModel(snapshot, past)
            self._model.learn()

    @property
    def learned_jobs(self) -> int:
        """Ended jobs behind the runtimes."""
        return self._model.learned_jobs if self._model else 0

    @property
    def coverage(self) -> float | None:
        """Share of past bounds that held; None: too few yet."""
        held = self._track.coverage
        return held if math.isfinite(held) else None

    def starts(self, job_ids: Collection[str], without: Collection[str] = ()) -> dict[str, Start]:
        """Starts of these pending jobs, by id.

        Args:
            job_ids: as squeue's ``JobArrayID`` has them; the pending rest of an array by its base.
            without: as if these had left the queue. Without any, what is said is remembered, to be
                compared with what comes.
        """
        if self._model is None:
            # other people's jobs are hidden: no plan, only what jobs have waited before
            bound = self._moment(self._track.waits.upper_s())
            return {job_id: Start(None, bound) for job_id in job_ids}
        times = self._model.times(of=set(job_ids), without=without)
        if not without:
            planned = {name: times.start_s(name) for name in times.learned_s}
            self._track.remember({name: s for name, s in planned.items() if math.isfinite(s)})
        jobs = {job.job_id: job for job in self._snapshot.jobs}
        return {name: self._start(times, jobs[name]) for name in job_ids if name in times.learned_s}

    def _start(self, times: Times, job: QueuedJob) -> Start:
        point = times.start_s(job.job_id)
        middle = upper = math.nan
        if math.isfinite(point):
            middle, upper = self._track.say(job, point)
        if math.isnan(upper):
            upper = times.limits_s[job.job_id]  # not calibrated yet: all runs to its limit
        likely = point if point <= 0 or math.isnan(middle) else middle
        return Start(self._moment(likely), self._moment(max(upper, likely)))

    def _moment(self, seconds: float) -> dt.datetime | None:
        if not math.isfinite(seconds):
            return None
        return dt.datetime.fromtimestamp(self._snapshot.now_s + round(seconds), dt.UTC)
