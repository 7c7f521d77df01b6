"""What may become of a job that is about to be submitted: where it may burst to, and at what cost.

The figures are those of the decision later: the time limit with the gate's and staging's in it, and
as the worst case slow boots, allowed requeues and what comes back. A job that is told that it may
burst is not refused for its ``--max-cost`` afterwards.
"""

import datetime as dt
from collections.abc import Callable, Iterable

import msgspec

from hpcscale.burst.budget import Payer, Purse
from hpcscale.burst.candidates import candidates, place
from hpcscale.burst.catalog_load import rows_for
from hpcscale.burst.charges import charges
from hpcscale.burst.choice import choose
from hpcscale.burst.feasible import deadline_note
from hpcscale.burst.moves import Moves
from hpcscale.burst.offer import offers, priced
from hpcscale.burst.plan import Candidate, Option, Place
from hpcscale.burst.policies import find_policy
from hpcscale.burst.policy import Policy
from hpcscale.burst.promise import keep_promises
from hpcscale.burst.seen import Catalog
from hpcscale.burst.shapes import with_catalog
from hpcscale.burst.waiting import waiting_runs
from hpcscale.burst.within import as_it_waits
from hpcscale.burst.words import usd
from hpcscale.connect import Connection
from hpcscale.cost import time_limit_s
from hpcscale.errors import BurstRefusedError, HpcscaleError
from hpcscale.ledger import Ledger, whoami
from hpcscale.render import partition_blockers
from hpcscale.settings import burst_policy
from hpcscale.site import Site, load_site, load_target, require_host, site_names
from hpcscale.slurm.types import JobState
from hpcscale.spec import BurstMode, JobSpec

LAST = (1 << 62,)  # its turn: after all who are there

Money = Callable[[Policy, dt.datetime], Purse]


class Prospect(msgspec.Struct, frozen=True, kw_only=True):
    """One target, as the policy would find it for this job.

    Attributes:
        option: what a move would take there; None: it cannot go there.
        why_not: half sentences.
        would: dollars of ``--max-cost`` that would do; None: money alone does not do.
    """

    site: Site
    option: Option | None = None
    why_not: tuple[str, ...] = ()
    would: str | None = None


def burst_notes(
    spec: JobSpec, site: Site, now: Callable[[], dt.datetime], money: Money | None = None
) -> list[str]:
    """Where a job may go besides, at what cost, and where not and why; one sentence each.

    Args:
        spec: about to be submitted.
        site: where.
        now: its clock; asked for a deadline alone.
        money: gives what is left of the budgets; None: they are not looked at.

    Raises:
        BurstRefusedError: burst=only, and no target takes the job as it is; or a deadline that
            cannot be met.
    """
    if spec.burst.mode is BurstMode.NEVER:
        return []
    policy, notes = _policy_of(site)
    moment = now() if spec.burst.deadline is not None else dt.datetime.now(dt.UTC)
    limit_s = time_limit_s(spec, site)
    found, unread = _prospects(spec, site, limit_s, policy, moment)
    notes += unread
    for one in found:
        if one.option is None:
            more = f"; --max-cost {one.would} would do" if one.would else ""
            notes.append(f"cannot burst to {one.site.name}: {'; '.join(one.why_not)}{more}")
        else:
            notes.append(f"may burst to {one.site.name}, {_price(one.option)}{_not_yet(one.site)}")
    free = [(one.site.name, one.option) for one in found if one.option is not None]
    if not found and not unread:
        notes.append("no other site is a burst target (burst.target in a profile)")
    if not free and spec.burst.mode is BurstMode.ONLY:
        would = min((one.would for one in found if one.would), key=float, default=None)
        raise BurstRefusedError(
            f"--burst only, and no site takes the job: {'; '.join(notes)}",
            hint=f"--max-cost {would}"
            if would
            else "mend what stands in the way (--input and --output declare paths, --max-cost"
            " allows more), or say --burst never",
        )
    short, reach = "", ""
    if policy.to and spec.burst.deadline is not None:  # a move that nobody makes promises nothing
        free = [(name, option) for name, option in free if name in policy.to]
        reach = "" if free else f"the policy moves to {', '.join(policy.to)}"
    if policy.budgets and money is not None and free:
        purse = money(policy, moment)
        first = _first(free, spec, limit_s, policy, moment)
        free, short = _funded(free, spec, purse)
        if first is not None and all(option is not first for _, option in free):
            # the decision would go there and find no money: what others have promises nothing
            free, short = _funded([(first.site, first)], spec, purse)
        notes += [f"cannot burst now: {short}"] if short and not free else []
    if spec.burst.deadline is None:
        return notes
    note = deadline_note(
        spec.burst.deadline,
        moment,
        limit_s,
        [(name, option.boot_s + option.staging_s) for name, option in free],
        here=spec.burst.mode is BurstMode.AUTO,
        margin_s=policy.deadline_margin_s,
        why_not=f"no money is left to promise a move ({short})" if short and not free else reach,
    )
    return [*notes, note] if note else notes


def money_left(ledger: Ledger, connection: Connection) -> Money:
    """What is left of budgets for one more job at this site; asks it once where that matters."""

    def left(policy: Policy, now: dt.datetime) -> Purse:
        purse = Purse(policy.budgets, charges(ledger), now)
        waiting = [
            one
            for one in waiting_runs(ledger, connection.site.name)
            if one.run.deadline is not None or one.run.burst_mode is BurstMode.ONLY
        ]
        if not waiting:
            return purse
        targets = {name: load_target(name) for name in policy.to}
        rows = rows_for(targets.values())
        jobs = candidates(
            waiting,
            answer=connection.client.jobs(),
            policy=policy,
            targets={name: with_catalog(target, rows) for name, target in targets.items()},
            moves=Moves(ledger).latest(),
            origin=connection.site,
        )
        catalog = Catalog(sites=targets, rows=rows)
        keep_promises(purse, [_offered(job, catalog, policy, now) for job in jobs], policy, now)
        return purse

    return left


def _policy_of(site: Site) -> tuple[Policy, list[str]]:
    """The policy that is configured for this site's queue, else the defaults; what is off."""
    try:
        policy = find_policy()
        if policy.from_site == site.name:
            return policy, []
        notes = []
    except HpcscaleError as exc:
        notes = [f"the burst policy cannot be read: {exc}"] if burst_policy() else []
    return Policy(from_site=site.name, to=()), notes


def _prospects(
    spec: JobSpec, site: Site, limit_s: int | None, policy: Policy, now: dt.datetime
) -> tuple[list[Prospect], list[str]]:
    """All burst targets of a site's jobs, and why profiles could not be read."""
    found: list[Prospect] = []
    notes: list[str] = []
    for name in site.burst_partitions:
        if name not in (spec.partition or site.default_partition or "").split(","):
            other = site.in_partition(name)
            asked = as_it_waits(spec, None, name)
            blockers = tuple(partition_blockers(spec, site, other))
            there = Place(target=other.name, spec=priced(asked), blockers=blockers, same_job=True)
            found.append(_weigh(spec, limit_s, there, other, policy, now))
    for name in site_names():
        if name == site.name:
            continue
        try:
            target = load_site(name).site
        except HpcscaleError as exc:
            notes.append(f"{name} is left out: {exc}")
            continue
        if target.burst.target:
            kind = site.partition_gpu_type(spec.partition)
            there = place(spec, limit_s, name, policy, target, gpu_type=kind)
            found.append(_weigh(spec, limit_s, there, target, policy, now))
    return found, notes


def _weigh(  # noqa: PLR0917 -- a job, a target, and what the decision is made of
    spec: JobSpec, limit_s: int | None, there: Place, target: Site, policy: Policy, now: dt.datetime
) -> Prospect:
    """As ``decide`` will look at it, by the same functions."""
    catalog = Catalog(sites={there.target: target}, rows=rows_for([target]))
    job = _candidate(spec, limit_s, offers(there, catalog, policy, now))
    option, why_not = choose(job, policy, now)
    if option is not None or not job.options:
        return Prospect(site=target, option=option, why_not=why_not)
    anyhow, still = choose(msgspec.structs.replace(job, max_cost_usd=None), policy, now)
    would = None if anyhow is None or anyhow.worst_usd is None else f"{anyhow.worst_usd:.2f}"
    if would is None and still:
        why_not = still
    prefix = f"{there.target}: "
    return Prospect(
        site=target, why_not=tuple(dict.fromkeys(w.removeprefix(prefix) for w in why_not)),
        would=would,
    )  # fmt: skip


def _candidate(spec: JobSpec, limit_s: int | None, options: Iterable[Option]) -> Candidate:
    return Candidate(
        run_id="", ref="", name=spec.name or "", mode=spec.burst.mode, state=JobState.PENDING,
        time_limit_s=limit_s, deadline=spec.burst.deadline, max_cost_usd=spec.burst.max_cost_usd,
        options=tuple(options), account=spec.account or "",
        project=spec.directives.get("wckey") or "",
    )  # fmt: skip


def _offered(job: Candidate, catalog: Catalog, policy: Policy, now: dt.datetime) -> Candidate:
    options = tuple(o for there in job.places for o in offers(there, catalog, policy, now))
    return msgspec.structs.replace(job, options=options)


def _first(
    free: list[tuple[str, Option]],
    spec: JobSpec,
    limit_s: int | None,
    policy: Policy,
    now: dt.datetime,
) -> Option | None:
    """Where a decision now would send a job with a deadline; None: it has none."""
    if spec.burst.deadline is None:
        return None
    order = {name: place for place, name in enumerate(policy.to)}
    named = sorted(free, key=lambda each: order.get(each[0], len(order)))
    return choose(_candidate(spec, limit_s, [option for _, option in named]), policy, now)[0]


def _funded(
    free: list[tuple[str, Option]], spec: JobSpec, purse: Purse
) -> tuple[list[tuple[str, Option]], str]:
    """Targets for which the budgets have the money now, and why the last of the others has none."""
    payer = Payer(
        user=whoami(), account=spec.account or "", project=spec.directives.get("wckey") or ""
    )
    kept, short = [], ""
    for name, option in free:
        why = purse.refusal(payer, option.worst_usd, LAST)
        if why is None:
            kept.append((name, option))
        else:
            short = why
    return kept, short


def _price(option: Option) -> str:
    """Both figures: what is expected, and what is held against ``--max-cost`` and budgets."""
    if option.cost_usd is None:
        return f"expected cost unknown: {option.cost_why or 'no price'}"
    text = f"expected cost {usd(option.cost_usd)} ({option.cost_why})"
    worst = option.worst_usd
    if worst is None or worst == option.cost_usd:
        return f"{text}, which is the most"
    return f"{text}, at most {usd(worst)} with slow boots and all restarts that it may have"


def _not_yet(target: Site) -> str:
    """What its profile still lacks, in words that follow the cost."""
    try:
        require_host(target)
    except HpcscaleError as exc:
        return f"; not yet: {exc.message}"
    return ""
