"""A queue laid out for plans: what no plan of it changes is worked out once.

A decision plans one queue several times: with learned runtimes and with limits, with and without
some of its jobs. Resources, what each job may take of them, and what the jobs in front of others
are stay the same; a plan picks rows of arrays.
"""

import math
import re
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from zlib import crc32

import numpy as np

from hpcscale.forecast.plan import easy_plan, plan
from hpcscale.forecast.problem import NEVER, Checked, Demand, Ints, ProblemBuilder
from hpcscale.forecast.runtimes import Floats
from hpcscale.outlook.kinds import NodeKind, job_number
from hpcscale.outlook.reserved import Reserved
from hpcscale.outlook.snapshot import Snapshot
from hpcscale.slurm.whole import QueuedJob, RunLimit
from hpcscale.units import parse_array

WITHOUT_LIMIT_S = 7 * 86400  # believed of a job that has no limit and no like
_MOST_TASKS = 100_000
_LONG_QUEUE = 50_000  # jobs from which the plan is in steps of five minutes
_AFTER = re.compile(r"after\w*:(\d+(?:_(?:\d+|\*))?)")

_DRAWS = 8  # of runtimes; what follows is averaged
_PLAIN_TASKS = 60  # tasks from which running on is compiled

Expected = Callable[[QueuedJob], float]
Drawn = Callable[[QueuedJob, Floats], Floats]


@dataclass(frozen=True)
class _Held:
    """What running jobs hold, and until when each does."""

    rows: Ints
    ends: dict[str, int]


@dataclass(frozen=True)
class _Runs:
    """What running jobs hold until the scheduler believes, and when each does end, by draw."""

    rows: Ints
    owner: Ints  # of each row: which running job; -1: none, it is reserved
    ends: Ints  # a row a draw, a column a running job


class Layout:
    """Pending jobs in the order in which they are looked at, beside what runs.

    Args:
        snapshot: of the site.
        kinds: of its nodes.
        pending: in order.
        expected_s: a job's predicted runtime.
        own: this one is placed by its limit, whatever is learned: so does Slurm's backfill.
    """

    def __init__(
        self, snapshot: Snapshot, kinds: Sequence[NodeKind], pending: Sequence[QueuedJob],
        expected_s: Expected, own: QueuedJob | None = None,
    ) -> None:  # fmt: skip
        self._snapshot = snapshot
        self._expected_s = expected_s
        self._made = ProblemBuilder(snapshot.now_s)
        for kind in kinds:
            kind.enter(self._made)
        self._reserved = Reserved(self._made, snapshot, kinds)
        self._allowances = _Allowances(self._made, snapshot)
        self._running = [job for job in snapshot.jobs if job.state.active]
        self._pending = pending
        self._runs: _Runs | None = None
        self._run_s: dict[int, Floats] = {}
        self._held: dict[tuple[int, bool], _Held] = {}
        self.names = [job.job_id for job in pending]
        self.place = {name: at for at, name in enumerate(self.names)}
        self._shapes: list[Checked] = []
        tasks, shape = self._shaped(pending)
        self._tasks, self._shape = _ints(tasks), _ints(shape)
        limits = [float(job.limit_s or WITHOUT_LIMIT_S) for job in pending]
        learned = [
            limit if own is not None and job.job_id == own.job_id else expected_s(job)
            for job, limit in zip(pending, limits, strict=True)
        ]
        self._seconds = {True: np.array(learned), False: np.array(limits)}
        now = snapshot.now_s
        self._release = _ints([max(job.eligible_s or now, now) for job in pending])
        # of those that wait for others: for whom, one of each group
        self._after = waited_for(pending, self._running)

    def _shaped(self, pending: Sequence[QueuedJob]) -> tuple[list[int], list[int]]:
        """Of each job how many tasks it stands for, and which shape it has."""
        known: dict[tuple[object, ...], int] = {}
        tasks, shapes = [], []
        for job in pending:
            count, throttle = tasks_of(job)
            extra = self._allowances.of(job)
            if throttle is not None:
                extra = [*extra, (self._made.resource(throttle), 1)]
            shape = (
                job.partitions, job.num_nodes, job.cpus, job.gpus, job.exclusive,
                job.reservation, tuple(extra),
            )  # fmt: skip
            at = known.get(shape)
            if at is None:
                at = known[shape] = len(self._shapes)
                able = self._reserved.choices(job)
                choices = [[*choice, *extra] for choice, _ in able]
                ends = [closes for _, closes in able]
                self._shapes.append(self._made.checked(choices, ends))
            tasks.append(count)
            shapes.append(at)
        return tasks, shapes

    def starts(self, rows: Ints, *, learned: bool) -> dict[str, float]:
        """Seconds from now until each of these starts, planned without the others.

        Args:
            rows: places in ``names``, ascending.
            learned: by predicted runtimes instead of limits.
        """
        now = self._snapshot.now_s
        counts = self._tasks[rows]
        grain = self._grain_s(int(counts.sum()))
        held = self._hold(grain, learned=learned)
        first = np.cumsum(counts) - counts
        release = self._release[rows]
        after = self._dependencies(rows, first, counts, release, held.ends)
        steps = np.maximum(1, np.ceil(self._seconds[learned][rows] / grain)).astype(np.int64)
        shape, seconds, begin = (
            np.repeat(column, counts) for column in (self._shape[rows], steps * grain, release)
        )
        planned = plan(self._made.many(self._shapes, shape, seconds, begin, after, held.rows))
        start = planned.start_s[first]
        waits = np.where(start >= NEVER, math.inf, start - now).tolist()
        return dict(zip([self.names[at] for at in rows.tolist()], waits, strict=True))

    def run_on(self, rows: Ints, drawn_s: Drawn) -> dict[str, float]:
        """Seconds until each of these starts when EASY backfill runs on, mean of some futures.

        The scheduler of each future knows the limits; jobs end when they are drawn to. A job's
        draws hang on nothing but its id, so two plans differ by what is different in them.

        Args:
            rows: places in ``names``, ascending.
            drawn_s: a job's runtimes in all, at uniform draws.
        """
        now = self._snapshot.now_s
        counts = self._tasks[rows]
        grain = self._grain_s(int(counts.sum()))
        if self._runs is None:
            self._runs = self._hold_drawn(grain, drawn_s)
        runs = self._runs
        first = np.cumsum(counts) - counts
        steps = np.maximum(1, np.ceil(self._seconds[False][rows] / grain)).astype(np.int64)
        shape, believed = (
            np.repeat(column, counts) for column in (self._shape[rows], steps * grain)
        )
        tasks = [self._drawn(at, drawn_s) for at in rows.tolist()]
        lasting = np.concatenate([np.zeros((_DRAWS, 0)), *tasks], axis=1)
        lasting = np.maximum(1, np.ceil(lasting / grain)).astype(np.int64) * grain
        fast = int(counts.sum()) > _PLAIN_TASKS
        total = np.zeros(len(rows))
        for draw, ends in enumerate(runs.ends):
            release = self._release[rows]
            ended = {job.job_id: int(e) for job, e in zip(self._running, ends, strict=True)}
            after = self._dependencies(rows, first, counts, release, ended)
            begin = np.repeat(release, counts)
            problem = self._made.many(self._shapes, shape, believed, begin, after, runs.rows)
            back = np.where(runs.owner < 0, runs.rows[:, 2], np.append(ends, 0)[runs.owner])
            start = easy_plan(problem, lasting[draw], back, fast=fast).start_s[first]
            total += np.where(start >= NEVER, math.inf, start - now)
        names = [self.names[at] for at in rows.tolist()]
        return dict(zip(names, (total / _DRAWS).tolist(), strict=True))

    def _drawn(self, at: int, drawn_s: Drawn) -> Floats:
        """Runtimes of a pending job's tasks: a row a draw."""
        if at not in self._run_s:
            job, tasks = self._pending[at], int(self._tasks[at])
            found = drawn_s(job, _uniform(job.job_id, _DRAWS * tasks))
            self._run_s[at] = _known(found, job).reshape(_DRAWS, tasks)
        return self._run_s[at]

    def _hold_drawn(self, grain: int, drawn_s: Drawn) -> _Runs:
        """What running jobs hold until their limits, and when they are drawn to end."""
        now, made = self._snapshot.now_s, self._made
        owner, ends = [-1] * len(made.held), np.zeros((_DRAWS, len(self._running)), dtype=np.int64)
        mark = len(made.held)
        for at, job in enumerate(self._running):
            begun = job.start_s or now
            rest = begun + _known(drawn_s(job, _uniform(job.job_id, _DRAWS)), job) - now
            ends[:, at] = now + np.maximum(1, np.ceil(rest / grain)).astype(np.int64) * grain
            until = now + _up(begun + float(job.limit_s or WITHOUT_LIMIT_S) - now, grain)
            until = max(until, int(ends[:, at].max()))  # Slurm lets some run over their limit
            self._reserved.hold_running(job, until)
            for demand in self._allowances.of(job):
                made.hold(demand[0], demand[1], until)
            owner += [at] * (len(made.held) - len(owner))
        found = _Runs(made.held_rows(), _ints(owner), ends)
        del made.held[mark:]
        return found

    def _grain_s(self, tasks: int) -> int:
        """The plan's step: Slurm's own (``bf_resolution``, a minute unless set), or five minutes.

        Ends that coincide make a plan of 100,000 jobs seven times faster.
        """
        text = self._snapshot.facts.config.get("SchedulerParameters", "")
        match = re.search(r"\bbf_resolution=(\d+)", text)
        return max(300 if tasks >= _LONG_QUEUE else 60, int(match[1]) if match else 0)

    def _hold(self, grain: int, *, learned: bool) -> _Held:
        """Units of running jobs until their predicted ends; the ends by job id."""
        key = (grain, learned)
        if key in self._held:
            return self._held[key]
        now = self._snapshot.now_s
        ends = {}
        mark = len(self._made.held)
        for job in self._running:
            begun = job.start_s or now
            seconds = self._expected_s(job) if learned else float(job.limit_s or WITHOUT_LIMIT_S)
            until = now + _up(begun + seconds - now, grain)
            ends[job.job_id] = until
            self._reserved.hold_running(job, until)
            for demand in self._allowances.of(job):
                self._made.hold(demand[0], demand[1], until)
        found = self._held[key] = _Held(self._made.held_rows(), ends)
        del self._made.held[mark:]
        return found

    def _dependencies(
        self, rows: Ints, first: Ints, counts: Ints, release: Ints, ends: dict[str, int]
    ) -> dict[int, list[int]]:
        """Which tasks each task waits for; and not before the running ones' ends: ``release``."""
        if not self._after:
            return {}
        where = {at: k for k, at in enumerate(rows.tolist())}
        found: dict[int, list[int]] = {}
        for at, groups in self._after.items():
            k = where.get(at)
            if k is None:
                continue
            after: list[int] = []
            for group in groups:
                known = []
                for name in group:
                    # what comes behind it in the queue does not hold it back
                    other = where.get(self.place.get(name, at), k)
                    end = max((end for job, end in ends.items() if _same(job, name)), default=0)
                    if other < k or end:
                        known.append((other if other < k else -1, end))
                # any one will do: of those that run the first to end, else the first in the queue
                other, end = min(known, default=(-1, 0))
                if other >= 0:
                    after += range(int(first[other]), int(first[other] + counts[other]))
                release[k] = max(int(release[k]), end)
            if after:
                found.update((int(first[k]) + n, after) for n in range(int(counts[k])))
        return found


def waited_for(
    pending: Sequence[QueuedJob], running: Sequence[QueuedJob]
) -> dict[int, list[list[str]]]:
    """For which jobs pending ones wait, by place: for one of each group (sbatch(1)).

    Terms of ``--dependency`` with commas are a group each, with ``?`` one: any of them will do. A
    ``singleton`` waits for all jobs of its user and name that run or were submitted before it.
    """
    found: dict[int, list[list[str]]] = {}
    alike: dict[tuple[str, str], list[QueuedJob]] = defaultdict(list)
    if any("singleton" in job.dependency for job in pending):
        for job in (*running, *pending):
            alike[job.user, job.name].append(job)
    for at, job in enumerate(pending):
        if not job.dependency:
            continue
        names = [text.removesuffix("_*") for text in _AFTER.findall(job.dependency)]
        groups = [names] if "?" in job.dependency else [[name] for name in names]
        if "singleton" in job.dependency and "?" not in job.dependency:
            own = job_number(job.job_id)
            groups += [
                [other.job_id]
                for other in alike[job.user, job.name]
                if (number := job_number(other.job_id)) != own
                and (other.state.active or number < own)
            ]
        if groups:
            found[at] = groups
    return found


class _Allowances:
    """Limits on what runs at one time, as resources: one for each that a job of the plan meets."""

    def __init__(self, made: ProblemBuilder, snapshot: Snapshot) -> None:
        self._made = made
        self._of_partition = {name: p.qos for name, p in snapshot.facts.partitions.items() if p.qos}
        self._limits: dict[tuple[str, str], list[RunLimit]] = {}
        for limit in snapshot.limits:
            kind = limit.whose.partition("/")[0]
            self._limits.setdefault(("account" if kind == "user" else kind, limit.name), []).append(
                limit
            )
        self._known: dict[tuple[str, ...], int] = {}

    def of(self, job: QueuedJob) -> list[Demand]:
        """What this job takes of its user's, its accounts' and its two QOS's allowances."""
        if not self._limits:
            return []
        takes = {"jobs": 1, "cpu": job.cpus, "gpu": job.gpus, "node": job.num_nodes}
        found: dict[int, Demand] = {}
        for limit in (*self._of_qos(job), *self._limits.get(("account", job.account), ())):
            if limit.user not in {"", job.user} or not takes[limit.what]:
                continue
            each = limit.user
            if limit.whose.endswith(("/user", "/account")):
                each = job.user if limit.whose.endswith("/user") else job.account
            key = (limit.of or limit.name, limit.whose, limit.what, each, str(limit.units))
            if key not in self._known:
                self._known[key] = self._made.resource(limit.units)
            found[self._known[key]] = (self._known[key], takes[limit.what])
        return list(found.values())

    def _of_qos(self, job: QueuedJob) -> list[RunLimit]:
        """Limits of its partition's QOS and of its own; of two of a kind the first one counts.

        The partition's comes first unless the job's QOS says otherwise (Slurm's "Resource Limits").
        A job that may start in several partitions is under a QOS that all of them have.
        """
        there = {self._of_partition.get(name, "") for name in job.partitions}
        own = self._limits.get(("qos", job.qos), [])
        if len(there) != 1 or (name := there.pop()) in {"", job.qos}:
            return own
        of_partition = self._limits.get(("qos", name), [])
        pair = (of_partition, own)
        ahead, behind = reversed(pair) if any(limit.first for limit in own) else pair
        kinds = {(limit.whose, limit.what) for limit in ahead}
        return [*ahead, *(one for one in behind if (one.whose, one.what) not in kinds)]


def _uniform(job_id: str, count: int) -> Floats:
    """Draws from [0, 1) that are the same for a job whoever else is in the queue."""
    seed = np.uint64(crc32(job_id.encode())) << np.uint64(32)
    with np.errstate(over="ignore"):  # splitmix64: Steele, Lea and Flood, OOPSLA 2014
        z = (seed + np.arange(1, count + 1, dtype=np.uint64)) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray((z ^ (z >> np.uint64(31))) >> np.uint64(11), dtype=np.float64) * 2.0**-53


def _known(seconds: Floats, job: QueuedJob) -> Floats:
    """Runtimes, the limit where nothing better is known."""
    return np.where(np.isnan(seconds), float(job.limit_s or WITHOUT_LIMIT_S), seconds)


def _ints(values: Sequence[int]) -> Ints:
    return np.array(values, dtype=np.int64)


def _up(seconds: float, grain: int) -> int:
    """Rounded up to whole steps, one at least."""
    return max(1, math.ceil(seconds / grain)) * grain


def _same(job_id: str, name: str) -> bool:
    return job_id == name or job_id.partition("_")[0] == name


def tasks_of(job: QueuedJob) -> tuple[int, int | None]:
    """How many jobs a pending record stands for, and its ``%`` limit."""
    if not job.array_pending:
        return 1, None
    try:
        indices, throttle = parse_array(job.array_pending)
    except ValueError:
        return 1, None
    return min(len(indices), _MOST_TASKS), throttle
