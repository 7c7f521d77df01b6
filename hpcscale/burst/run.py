"""One tick of overflow: look once at each site, take moves further, decide, begin new ones.

``tick`` may be called at any time and from cron; all it knows between two calls is in the ledger.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from hpcscale.burst.as_if import AsIf, as_if
from hpcscale.burst.audit import AuditLog, audited, data_hash
from hpcscale.burst.candidates import candidates
from hpcscale.burst.capacity import short
from hpcscale.burst.catalog import Offer
from hpcscale.burst.catalog_load import rows_for
from hpcscale.burst.charges import charges
from hpcscale.burst.early import Sizes, send_early
from hpcscale.burst.elements import make_run
from hpcscale.burst.expect import Foresee, begin_to_load, expect
from hpcscale.burst.handover import Handover
from hpcscale.burst.kept import Kept, keep, planned
from hpcscale.burst.meter import check
from hpcscale.burst.moves import Move, Moves, Step
from hpcscale.burst.orphans import orphans
from hpcscale.burst.plan import Action, BurstPlan, Decision
from hpcscale.burst.policy import Dependents, Order, Policy
from hpcscale.burst.resubmit import resubmit
from hpcscale.burst.seen import Budgets, Catalog, Snapshot
from hpcscale.burst.shapes import with_catalog
from hpcscale.burst.waiting import to_foresee, waiting_runs
from hpcscale.burst.within import as_it_waits
from hpcscale.connect import Connection, connect
from hpcscale.cost import estimate
from hpcscale.errors import HpcscaleError, StateError
from hpcscale.ledger import Ledger
from hpcscale.observe import observe
from hpcscale.precheck import cached_facts, fetch_facts
from hpcscale.settings import state_dir
from hpcscale.site import Site, load_target, split_target
from hpcscale.slurm.types import SiteFacts

FACTS_AGE_S = 30.0


class Connections:
    """One connection for each site, made at the first need and kept; its acts are audited."""

    def __init__(self) -> None:
        self._open: dict[str, Connection] = {}
        self._sites: dict[str, Site] = {}

    def site(self, name: str) -> Site:
        """The profile of a site, or of a partition ``SITE/PARTITION``.

        With the catalog's prices where it names rows.
        """
        if name not in self._sites:
            site = load_target(name)
            self._sites[name] = with_catalog(site, rows_for([site]))
        return self._sites[name]

    def __call__(self, name: str) -> Connection:
        """The connection, a partition's is its site's; raises UnreachableError."""
        name = split_target(name)[0]
        if name not in self._open:
            self._open[name] = audited(connect(self.site(name)), AuditLog())
        return self._open[name]

    def close(self) -> None:
        """Drop all."""
        for connection in self._open.values():
            connection.close()
        self._open.clear()


@dataclass(slots=True)
class Tick:
    """What one tick did.

    Attributes:
        plan: what was decided; None when the origin gave no answer.
        begun: moves that it began.
        advanced: moves that it worked on, begun ones included, as they stand now.
        problems: what kept it from something, one sentence each.
        unwritten: whether a move stood still as the ledger or a state directory cannot be used.
    """

    plan: BurstPlan | None = None
    begun: list[Move] = field(default_factory=list)
    advanced: list[Move] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    unwritten: bool = False


def lock_path() -> Path:
    """The lock of `hpcscale burst run`, beside the ledger it protects."""
    return state_dir() / "burst.lock"


def jobs_folder() -> Path:
    """Submitit's folder for what the handover submits."""
    return state_dir() / "burst" / "jobs"


def make_plan(
    ledger: Ledger, policy: Policy, connections: Connections, foresee: Foresee = expect
) -> BurstPlan:
    """Decide on fresh facts; acts on nothing.

    Raises:
        NotFoundError: the policy names an unknown site.
        UnreachableError: the origin gave no answer.
    """
    plan = look(ledger, policy, connections, foresee).plan
    assert plan is not None
    return plan


def look(
    ledger: Ledger,
    policy: Policy,
    connections: Connections,
    foresee: Foresee = expect,
    *,
    shadow: bool = False,
) -> Kept:
    """Fresh facts with the plan that follows from them; raises as ``make_plan``.

    With ``shadow`` what earlier shadows would have moved counts as moved.
    """
    everyone = policy.dependents is Dependents.REFUSE  # anybody's job may keep one here then
    targets = {name: connections.site(name) for name in policy.to}
    origin = connections(policy.from_site)
    waiting = waiting_runs(ledger, policy.from_site)
    if waiting:
        begin_to_load(policy)
    now = origin.clock.now()
    if not waiting:
        nothing = BurstPlan(now=now, from_site=policy.from_site, policy=policy.source)
        return Kept(now=now, policy=policy, snapshot=Snapshot(), plan=nothing)
    within = any(split_target(name)[1] for name in policy.to)
    answer, moves = origin.client.jobs(), Moves(ledger).latest()
    gone = as_if(ledger, now, moves) if shadow else AsIf(moves)
    foresight = foresee(origin, policy, to_foresee(waiting, answer, gone.moves))
    found = candidates(
        waiting,
        answer=answer,
        policy=policy,
        targets=targets,
        moves=gone.moves,
        origin=origin.site,
        others=origin.client.jobs(everyone=True) if everyone else None,
        facts=_facts(origin) if within else None,
        send_gb=Sizes(ledger),
    )
    seen = Kept(
        now=now,
        policy=policy,
        snapshot=Snapshot(jobs=tuple(found), shortages=short(moves.values())),
        catalog=Catalog(sites=targets, rows=_rented(targets)),
        budgets=Budgets(
            limits=policy.budgets,
            charges=(*charges(ledger), *gone.charges) if policy.budgets else (),
        ),
    )
    return planned(seen, foresight)


def _rented(targets: Mapping[str, Site]) -> dict[str, Offer]:
    named = {p.offer for site in targets.values() for p in site.partitions.values()}
    return {name: row for name, row in rows_for(targets.values()).items() if name in named}


def _facts(origin: Connection) -> SiteFacts:
    """What the controller says of its partitions: `burst run --for` does not ask at each tick."""
    known = cached_facts(origin.site, max_age_s=FACTS_AGE_S)
    return known or fetch_facts(origin.site, origin.client)


def tick(
    ledger: Ledger,
    policy: Policy,
    connections: Connections,
    say: Callable[[str], None] = lambda _: None,
    foresee: Foresee = expect,
) -> Tick:
    """Take every move under way further, then begin what the policy asks for.

    Raises:
        NotFoundError: the policy names an unknown site.
    """
    done = Tick()
    handover = Handover(ledger, connections, jobs_folder(), say)
    under_way = handover.moves.unsettled()
    moved = [ledger.attempt(m.target) for m in under_way if m.step is Step.MOVED and m.target]
    for site, why in observe(ledger, connections, moved).failed.items():
        done.problems.append(f"{site} gave no answer: {why}")
    for move in under_way:
        _check_cost(ledger, move, policy, connections, done)
        _advance(handover, move, done)
    try:
        handover.watch()
    except HpcscaleError as exc:
        done.problems.append(f"jobs of settled moves: {exc}")
    try:
        orphans(ledger, connections, policy.from_site, say)
    except HpcscaleError as exc:
        done.problems.append(f"fences left behind: {exc}")
    done.problems += resubmit(ledger, connections, [policy.from_site], say)
    last = handover.moves.last_id()  # two runs at once must not both spend what is left of a budget
    try:
        seen = look(ledger, policy, connections, foresee)
        done.plan = seen.plan
    except HpcscaleError as exc:
        if not exc.transient:
            raise
        done.problems.append(f"nothing new is decided: {exc}")
        return done
    assert done.plan is not None
    kept = keep(seen)  # before anything is done
    _note_refusals(ledger, done.plan)
    for decision in done.plan.moves:
        target = connections.site(decision.to or "")
        begun = begin(
            handover.moves, policy, decision, done.plan, target, kept=kept or "", after=last
        )
        if begun is not None:
            last = begun.move_id
            say(f"{begun.run_id} ({begun.name}) moves to {begun.to_site}: {decision.reason}")
            done.begun.append(begun)
            _advance(handover, begun, done)
    for decision in done.plan.decisions:
        _send_early(ledger, decision, connections, done, say)
    return done


def _send_early(
    ledger: Ledger,
    decision: Decision,
    connections: Connections,
    done: Tick,
    say: Callable[[str], None],
) -> None:
    if decision.stage is None:
        return
    found = ledger.resolve(decision.ref)
    if found.task is not None:  # an element has a run once it moves
        return
    try:
        site, connection = connections.site(decision.stage), connections(decision.stage)
        if send_early(ledger, found.run, decision, site, connection):
            say(f"{decision.run_id} ({decision.name}): {decision.stage_why}")
    except HpcscaleError as exc:
        done.problems.append(f"{decision.run_id}: nothing was sent ahead: {exc}")


def begin(
    moves: Moves,
    policy: Policy,
    decision: Decision,
    plan: BurstPlan,
    target: Site,
    *,
    kept: str = "",
    after: int | None = None,
) -> Move | None:
    """Record the decision and its move; None when the run is on its way already.

    Also None where money bounds it and another run has begun a move since it was decided.

    Args:
        moves: of the ledger where the decision is recorded.
        policy: that was followed.
        decision: to move.
        plan: that it is of.
        target: profile of where it goes.
        kept: hash of the snapshot that it was made of.
        after: the last move that the decision knew of.
    """
    assert decision.to is not None
    ledger = moves.ledger
    found = ledger.resolve(decision.ref)
    if found.task is not None:
        make_run(ledger, found.run, found.task)
    same_job = split_target(decision.to)[1] is not None
    step = Step.FENCING if policy.order is Order.FENCE_FIRST else Step.SUBMITTING
    spec = as_it_waits(ledger.run(decision.run_id).spec, None, target.default_partition or "")
    terms = estimate(spec, target) if same_job else None
    net = None
    if decision.net is not None:
        asked = msgspec.structs.replace(ledger.run(decision.run_id).spec, partition=decision.net)
        net = estimate(asked, target)
    data = {
        "policy": msgspec.to_builtins(policy),
        "decision": msgspec.to_builtins(decision),
        "now": plan.now.isoformat(),
        "snapshot": kept,
    }
    _audit("decide to move", decision, data)
    return moves.begin(
        Move(
            run_id=decision.run_id,
            name=decision.name,
            from_site=policy.from_site,
            to_site=decision.to,
            origin=found.attempt.submission_id,
            task=found.task,
            partition=decision.partition,
            rule=decision.rule.value if decision.rule else "",
            reason=decision.reason,
            order=policy.order,
            step=Step.SHIFTING if same_job else step,
            same_job=same_job,
            gpus=terms.gpus if terms else 0,
            gpu_hour_usd=terms.gpu_hour_usd if terms else None,
            estimate_usd=decision.cost_usd,
            reserved_usd=decision.worst_usd,
            egress_usd=decision.egress_usd,
            boot_timeout_s=decision.boot_timeout_s or 1800,
            net=decision.net,
            net_gpus=net.gpus if net else 0,
            net_gpu_hour_usd=net.gpu_hour_usd if net else None,
            line=decision.line,
            retry_after_s=policy.retry_after_s,
            lease_s=policy.lease_s,
            staging_s=decision.staging_s,
        ),
        data,
        # elements share the maximum cost of their array
        after=after if policy.budgets or found.task is not None else None,
    )


def _check_cost(
    ledger: Ledger, move: Move, policy: Policy, connections: Connections, done: Tick
) -> None:
    if move.step is not Step.MOVED:
        return
    try:
        said = check(ledger, move, connections(move.to_site), policy)
    except HpcscaleError as exc:
        said = f"{move.run_id}: its cost is not known: {exc}"
    if said:
        done.problems.append(said)


def _note_refusals(ledger: Ledger, plan: BurstPlan) -> None:
    """Write down which jobs may not move, once for each reason."""
    for decision in plan.decisions:
        if decision.action is not Action.REFUSE:
            continue
        run_id = ledger.find(decision.ref).run_id  # an element's own run is made when it moves
        said = ledger.events(run_id, "move.refused")
        if said and said[-1].data.get("reason") == decision.reason:
            continue
        data = {"decision": msgspec.to_builtins(decision), "now": plan.now.isoformat()}
        _audit("refuse", decision, data)
        ledger.event(run_id, "move.refused", {"reason": decision.reason})


def _audit(act: str, decision: Decision, data: dict[str, object]) -> None:
    AuditLog().add(
        act,
        run=decision.run_id,
        job=decision.ref,
        to=decision.to or "",
        reason=decision.reason,
        decision=data_hash(data),
        snapshot=str(data.get("snapshot", "")),
    )


def _advance(handover: Handover, move: Move, done: Tick) -> None:
    try:
        done.advanced.append(handover.advance(move))
    except (HpcscaleError, OSError) as exc:  # of files that are to go along, too
        # one move's trouble must not stop the others; it is tried again by the next tick
        done.unwritten |= isinstance(exc, StateError)
        done.problems.append(f"{move.run_id}: {move.step.value}: {exc}")
        done.advanced.append(handover.moves.get(move.move_id))
