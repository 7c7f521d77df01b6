"""Policies judged as they run: the live ``decide`` against the simulated site.

At each of a policy's intervals the simulated site is looked at as `hpcscale burst run` looks at the
real one: who waits, since when, and when each would start in a plan with learned runtimes. The same
``decide`` gets that, and what it moves leaves for the cloud of the model, which boots late at times
and has no nodes at others. Nothing that is not known at that moment is used.
"""

import datetime as dt
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import ROUND_UP, Decimal

import numpy as np
from msgspec.structs import replace as with_
from numpy.typing import NDArray

from hpcscale.burst.budget import Charge, Payer
from hpcscale.burst.decide import decide
from hpcscale.burst.plan import Candidate, Forecast, Level, Option, Start
from hpcscale.burst.policy import Policy, PolicyKind
from hpcscale.burst.seen import Budgets, Catalog, Shortage, Snapshot
from hpcscale.simulate.overflow import Instance, Outcome, Rules
from hpcscale.simulate.policies import COMPUTE_WAIT_FACTOR, VALUE_GPU_HOURS, WAIT_BUDGET
from hpcscale.simulate.site import Jobs, Lived, SiteModel, View, run_site
from hpcscale.simulate.site_kernel import NEVER
from hpcscale.slurm.types import JobState
from hpcscale.spec import BurstMode

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

HERE, AWAY = "here", "cloud"
CENT = Decimal("0.01")
EPOCH = dt.datetime(2000, 1, 1, tzinfo=dt.UTC)
SHRINK = 3.0  # a group's mean counts as much as all jobs' once it has so many of its own
YEAR_S = 366 * 86400
OVERDUE = 0.2  # a job that ran longer than expected goes on for so much of what it has run
RESTS_S = (600, 1200, 2400, 3600)  # a target without nodes is left alone so long, then so long …
# what users ask for who ask in round figures
ROUND_H = (0.25, 0.5, 1, 2, 4, 8, 12, 24, 48, 96, 168, 336, 720, 2160)


@dataclass(frozen=True, eq=False)
class Rehearsal:
    """What one policy did.

    Attributes:
        lived: what became of the jobs.
        decisions: how many jobs were decided on, over all intervals.
        feasible: jobs whose deadline the cloud could surely meet when they came.
        met: jobs that ended by their deadline; those without one too.
        most_over_usd: by how much a job ever cost more than was reserved for it: 0.
    """

    policy: Policy
    lived: Lived
    decisions: int
    feasible: Bools
    met: Bools
    most_over_usd: Decimal


def limits_of(limit_s: Floats, run_s: Floats, *, seed: int) -> Ints:
    """Limits as given; where there is none, one that a user may have asked for.

    That is 1, 1.5 or 3 runtimes (drawn with the seed), rounded up to a figure such as 2 or 4 hours.
    """
    rng = np.random.default_rng([seed, 3])
    wanted = run_s * rng.choice([1.0, 1.5, 3.0], len(run_s)) / 3600
    table = np.array([*ROUND_H, np.inf])
    asked = table[np.searchsorted(table, wanted)]
    asked = np.where(np.isfinite(asked), asked, np.ceil(wanted)) * 3600
    found = np.where(np.isfinite(limit_s) & (limit_s > 0), limit_s, asked)
    return np.maximum(1, np.ceil(found)).astype(np.int64)


def jobs_of(instance: Instance, limit_s: Ints, mask: Ints | None = None) -> Jobs:
    """The jobs as the site model takes them, in whole seconds after the first."""
    size = len(instance)
    arrival = np.rint((instance.arrival_h - instance.arrival_h[0]) * 3600).astype(np.int64)
    return Jobs(
        submit_s=arrival,
        run_s=np.maximum(1, np.rint(instance.run_h * 3600)).astype(np.int64),
        limit_s=limit_s,
        need=np.ascontiguousarray(instance.per_node),
        count=np.ascontiguousarray(instance.count),
        mask=np.ones(size, dtype=np.int64) if mask is None else mask,
        part=np.zeros(size, dtype=np.int64),
    )


def policy_named(name: str, instance: Instance) -> Policy:
    """A policy by its name, with the default knob that ``rules_of`` gives it too."""
    price = instance.cluster.cloud_gpu_hour_usd
    kind = PolicyKind(name)
    mean_s = float(instance.run_h.mean()) * 3600
    return Policy(
        source=name,
        from_site=HERE,
        to=(AWAY,),
        kind=kind,
        deadline=kind is PolicyKind.DEADLINE,
        max_moves_per_run=10_000,
        wait_s=3600 if kind is PolicyKind.THRESHOLD else round(WAIT_BUDGET * mean_s),
        depth=10,
        wait_per_gpu_hour_s=round(COMPUTE_WAIT_FACTOR * 3600),
        hour_usd=Decimal(VALUE_GPU_HOURS) * price,
        margin=1.0,
        cron_interval_s=60,
    )


class _Learned:
    """Runtime over limit of ended jobs, by group: the mean, drawn towards that of all."""

    def __init__(self, group: Ints, limit_s: Ints) -> None:
        self._group, self._limit = group, limit_s.astype(np.float64)
        self._sum = np.zeros(int(group.max(initial=0)) + 1)
        self._seen = np.zeros_like(self._sum)
        self.jobs = 0
        self._all = 0.0

    def ended(self, job: int, run_s: float) -> None:
        ratio = min(1.0, run_s / self._limit[job])
        self._sum[self._group[job]] += ratio
        self._seen[self._group[job]] += 1
        self._all += ratio
        self.jobs += 1

    def expected_s(self) -> Floats:
        """Of each job; its limit while nothing is known."""
        if not self.jobs:
            return self._limit.copy()
        mean = self._all / self.jobs
        ratio = (self._sum + SHRINK * mean) / (self._seen + SHRINK)
        return np.asarray(ratio[self._group] * self._limit, dtype=np.float64)


@dataclass(frozen=True, eq=False)
class _People:
    """Whose jobs they are: what they have in common, by when, and who pays."""

    group: Ints
    deadline_s: Floats
    payers: Sequence[Payer]


def at(seconds: float) -> dt.datetime:
    """The model's second as a date."""
    return EPOCH + dt.timedelta(seconds=float(seconds))


class _Expect:
    """Starts by the model's own plan, with what is believed of runtimes."""

    def __init__(
        self, view: View, expected_s: Floats, learned: int, *, window_s: int, blind: bool
    ) -> None:
        self._view, self._expected = view, expected_s
        # a window without an end leaves no start out but those that never come
        self._beyond = at(view.now_s + window_s) if window_s <= YEAR_S else None
        self.forecast = Forecast(
            level=Level.FULL,
            learned_jobs=learned,
            pending=len(view.waiting),
            starts={} if blind else dict(self.replan(frozenset())),
        )

    def replan(self, gone: frozenset[str]) -> Mapping[str, Start]:
        """Of those who stay once these have left.

        Backfill looks no further than its window: who has no start in it starts after it. `burst
        run` plans without a window, so that to take such a start for unknown would misjudge it.
        """
        starts = self._view.plan(self._expected, [int(name) for name in gone])
        return {
            str(job): Start(p50=at(start) if start < NEVER else self._beyond)
            for job, start in starts.items()
        }


class _Asked:
    """A policy as the simulated site asks it."""

    def __init__(self, policy: Policy, jobs: Jobs, model: SiteModel, people: "_People") -> None:
        self.jobs, self.model = jobs, model
        # a file names sites of its own; here there are two
        self.policy = with_(policy, from_site=HERE, to=(AWAY,), target={})
        self.learned = _Learned(people.group, jobs.limit_s)
        self.deadline_s, self.payers = people.deadline_s, people.payers
        self.rests: dict[int, tuple[int, str]] = {}
        self.cloud_rests = (0, 0)  # until when, after how many refusals
        self.charges: dict[int, Charge] = {}
        self.paid: list[Charge] = []
        self.decisions = 0
        self.started: dict[int, int] = {}
        self.most_over = Decimal(0)
        self.options = [self._option(j) for j in range(len(jobs))]

    def _option(self, job: int) -> Option:
        cloud = self.model.cloud
        price = Decimal(str(cloud.unit_hour_usd))
        units = int(self.jobs.need[job] * self.jobs.count[job])
        hours = Decimal(int(self.jobs.limit_s[job]) + round(cloud.boot_p95_s)) / 3600
        usd = (units * hours * price).quantize(CENT, ROUND_UP)
        slow = Decimal(max(0, round(cloud.boot_timeout_s - cloud.boot_p95_s))) / 3600
        worst = usd + (units * slow * price).quantize(CENT, ROUND_UP)
        if cloud.interrupted_per_h > 0:
            worst *= 1 + cloud.tries
        return Option(
            site=AWAY,
            boot_s=round(cloud.boot_p95_s),
            staging_s=round(cloud.staging_s),
            boot_timeout_s=round(cloud.boot_timeout_s),
            cost_usd=usd,
            cost_why="limit and boot at the price",
            worst_usd=worst,
        )

    def __call__(self, view: View) -> Iterable[int]:
        now = at(view.now_s)
        self._note(view)
        if not view.waiting:
            return []
        expected = self.learned.expected_s()
        for job, since in view.running:
            gone_s = view.now_s - since
            if gone_s > expected[job]:
                expected[job] = gone_s * (1 + OVERDUE)
        expected = np.minimum(expected, self.jobs.limit_s)

        blind = self.policy.kind in {PolicyKind.NEVER, PolicyKind.ALWAYS}
        expect = _Expect(
            view, expected, self.learned.jobs, window_s=self.model.bf_window_s, blind=blind
        )
        jobs = tuple(self._candidate(j, expect.forecast) for j in view.waiting)
        self.decisions += len(jobs)
        until = at(self.cloud_rests[0])
        shortages = (Shortage(target=AWAY, until=until, why="no capacity"),) if until > now else ()
        plan = decide(
            Snapshot(jobs=jobs, shortages=shortages),
            expect,
            Catalog(),
            Budgets(limits=self.policy.budgets, charges=(*self.paid, *self.charges.values())),
            self.policy,
            now,
        )
        leaving = []
        for move in plan.moves:
            job = int(move.run_id)
            self.charges[job] = Charge(payer=self.payers[job], at=now, usd=move.worst_usd)
            leaving.append(job)
        return leaving

    def _note(self, view: View) -> None:
        """What has happened since it was asked last."""
        for job in view.ended:
            run = float(min(self.jobs.run_s[job], self.jobs.limit_s[job]))
            self.learned.ended(job, run)
        for job, usd in view.spent:
            self._settle(job, usd)
        for job, why in view.back:
            self._settle(job, None)
            until = view.now_s + self.policy.retry_after_s
            if why == "no capacity":
                times = min(self.cloud_rests[1], len(RESTS_S) - 1)
                self.cloud_rests = (view.now_s + RESTS_S[times], self.cloud_rests[1] + 1)
            else:
                self.rests[job] = (until, why)
        if view.spent:
            self.cloud_rests = (self.cloud_rests[0], 0)

    def _settle(self, job: int, usd: float | None) -> None:
        """What it cost takes the place of what was reserved."""
        held = self.charges.pop(job, None)
        if held is None:
            return
        cost = Decimal(repr(usd or 0.0)).quantize(CENT, ROUND_UP)
        if held.usd is not None:
            self.most_over = max(self.most_over, cost - held.usd)
        self.paid.append(Charge(payer=held.payer, at=held.at, usd=cost, settled=True))

    def _candidate(self, job: int, forecast: Forecast) -> Candidate:
        start = forecast.starts.get(str(job), Start())
        rests = self.rests.get(job)
        deadline = self.deadline_s[job]
        return Candidate(
            run_id=str(job),
            ref=f"{HERE}:{job}",
            name=f"job {job}",
            mode=BurstMode.AUTO,
            state=JobState.PENDING,
            reason="Resources",
            nodes=int(self.jobs.count[job]),
            gpus=int(self.jobs.need[job] * self.jobs.count[job]),
            waiting_since=at(self.jobs.submit_s[job]),
            time_limit_s=int(self.jobs.limit_s[job]),
            deadline=at(deadline) if math.isfinite(deadline) else None,
            options=(self.options[job],),
            resting_until=at(rests[0]) if rests else None,
            resting_why=rests[1] if rests else "",
            start_p50=start.p50,
            user=self.payers[job].user,
            account=self.payers[job].account,
        )


def rehearse(
    instance: Instance,
    policy: Policy,
    model: SiteModel,
    limit_s: Ints,
    *,
    mask: Ints | None = None,
    payers: Sequence[Payer] | None = None,
    seed: int = 0,
    progress: Callable[[float], None] | None = None,
) -> Rehearsal:
    """Let a policy decide on the jobs of a history.

    Args:
        instance: the jobs.
        policy: as from a file; its sites are taken to be the model's.
        model: the site and its cloud.
        limit_s: of each job: ``limits_of``.
        mask: bits of the model's classes that each job may take; default: the first.
        payers: under whose budgets each falls.
        seed: of what happens by chance; the same for every policy.
        progress: called with the share of jobs that have ended.
    """
    jobs = jobs_of(instance, limit_s, mask)
    deadline_s = (instance.deadline_h - instance.arrival_h[0]) * 3600
    whose = _People(instance.group, deadline_s, payers or [Payer()] * len(jobs))
    asked = _Asked(policy, jobs, model, whose)
    lived = run_site(
        jobs,
        model,
        asked if policy.kind is not PolicyKind.NEVER else None,
        every_s=policy.cron_interval_s,
        seed=seed,
        progress=progress,
    )
    cloud = model.cloud
    surely = (
        jobs.submit_s + policy.cron_interval_s + cloud.boot_p95_s + cloud.staging_s
        + jobs.limit_s + policy.deadline_margin_s
    )  # fmt: skip
    feasible = np.isfinite(deadline_s) & (surely <= deadline_s)
    met = lived.end_s <= deadline_s
    return Rehearsal(
        policy, lived, asked.decisions, feasible, met, max(Decimal(0), asked.most_over)
    )


def outcome_of(instance: Instance, made: Rehearsal) -> Outcome:
    """The same as the plain simulator's outcome, for tables and reports.

    A job's wait ends when it first runs, in the cloud after its boot.
    """
    lived = made.lived
    first = float(instance.arrival_h[0])
    # submissions are whole seconds there
    start = np.maximum(instance.arrival_h, lived.start_s / 3600 + first)
    knob = _KNOBS.get(made.policy.kind)
    value = float(getattr(made.policy, knob)) if knob else 0.0
    return Outcome(
        instance=instance,
        rules=Rules(0, value if knob == "hour_usd" else value / 3600),
        start_h=start,
        left=lived.left,
        expected_h=instance.run_h,
        ended_h=lived.end_s / 3600 + first,
        paid_usd=lived.usd,
    )


_KNOBS = {
    PolicyKind.CONSTANT_WAIT: "wait_s",
    PolicyKind.THRESHOLD: "wait_s",
    PolicyKind.COMPUTE_WAIT: "wait_per_gpu_hour_s",
    PolicyKind.VALUE: "hour_usd",
}
TRIES = 10


def at_mean_wait(
    instance: Instance, policy: Policy, target_h: float, run: Callable[[Policy], Rehearsal]
) -> tuple[Rehearsal, tuple[tuple[float, float], ...]]:
    """The policy with its knob set so that jobs wait ``target_h`` on average, or less.

    The knob is bisected on a logarithmic scale; of the tries that keep to the target the cheapest
    counts, and the least wait where none does.

    Returns:
        What it did, and (mean wait in hours, dollars) of all tries.
    """
    name = _KNOBS.get(policy.kind)
    if name is None:
        return run(policy), ()
    now = float(getattr(policy, name)) or 60.0
    low, high = now / 256, now * 256
    more_waits = policy.kind is not PolicyKind.VALUE  # a larger knob, a longer wait
    tried: list[tuple[float, float, Rehearsal]] = []
    for _ in range(TRIES):
        middle = math.sqrt(low * high)
        knob = Decimal(f"{middle:.6g}") if policy.kind is PolicyKind.VALUE else round(middle)
        made = run(with_(policy, **{name: knob}))
        outcome = outcome_of(instance, made)
        tried.append((outcome.mean_wait_h, float(outcome.cloud_cost_usd), made))
        if (outcome.mean_wait_h <= target_h) == more_waits:
            low = middle
        else:
            high = middle
    good = [one for one in tried if one[0] <= target_h]
    best = min(good, key=lambda one: one[1]) if good else min(tried, key=lambda one: one[0])
    return best[2], tuple((wait, usd) for wait, usd, _ in tried)
