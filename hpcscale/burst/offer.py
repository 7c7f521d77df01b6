"""What a job would cost at a target: an option for each shape that holds it. Pure."""

import datetime as dt
from decimal import ROUND_UP, Decimal

import msgspec

from hpcscale.burst.catalog import Offer, egress_unknown
from hpcscale.burst.line import REQUEUE_S, expected_usd
from hpcscale.burst.plan import Option, Place
from hpcscale.burst.policy import Policy, TargetTerms
from hpcscale.burst.seen import Catalog
from hpcscale.burst.shapes import Shape, shapes
from hpcscale.cost import CENT
from hpcscale.site import Site
from hpcscale.spec import BurstTerms, JobSpec


def priced(spec: JobSpec) -> JobSpec:
    """What a job's cost depends on, and nothing else of it: commands and variables are not kept."""
    terms = BurstTerms(egress_gb=spec.burst.egress_gb, data=spec.burst.data)
    return JobSpec(
        resources=spec.resources,
        partition=spec.partition,
        array=spec.array,
        checkpoint=spec.checkpoint,
        outputs=dict.fromkeys(spec.outputs, ""),
        burst=terms,
    )


def offers(place: Place, catalog: Catalog, policy: Policy, now: dt.datetime) -> tuple[Option, ...]:
    """A target's options for a job, the cheapest first; those on spot nodes after the others.

    Args:
        place: the job as it would be asked of the target.
        catalog: with the target's profile.
        policy: its figures stand before the site's.
        now: of the prices' age.
    """
    site = catalog.sites[place.target]
    today = now.date()
    wait_for = place.gpu_type
    found, too_small = shapes(place.spec, site, catalog.rows, today, gpu_type=wait_for)
    if not found:
        return (Option(site=place.target, blockers=(*place.blockers, *too_small)),)
    made = [_option(place, shape, site, policy) for shape in found]
    made.sort(key=lambda o: (o.cost_usd is None, o.cost_usd or Decimal(0)))  # with what comes back
    net = next((o for o in made if o.cost_usd is not None and o.partition is not None), None)
    if not policy.spot or net is None or place.same_job:
        return tuple(made)
    taken, _ = shapes(place.spec, site, catalog.rows, today, spot=True, gpu_type=wait_for)
    if taken and place.spec.array is not None:
        return tuple(_not_on_spot(option) for option in made)
    return (*made, *_on_spot(place, taken, site, policy, net))


def _option(place: Place, shape: Shape, site: Site, policy: Policy) -> Option:
    terms = policy.target.get(place.target, TargetTerms())
    cost, row = shape.cost, shape.offer
    why = "; ".join(part for part in (cost.why, shape.note) if part)
    if row is not None:
        why = f"{row.name}: {why}"
    boot_timeout_s = _own(terms.boot_timeout_s, site.burst.boot_timeout_s)
    out, unsaid = egress(place.spec, row)
    usd, worst, unpromised = cost.usd, cost.usd, shape.unpromised or unsaid
    if out is None:  # as nodes without a price: a part of a sum is no sum
        usd, worst, out = None, None, Decimal(0)
        why += "; what a GB out of there costs is unknown"
    elif usd is not None and cost.gpu_hour_usd is not None:
        slow_h = Decimal(max(0, boot_timeout_s - shape.boot_s)) / 3600
        once = usd + (cost.gpus * slow_h * cost.gpu_hour_usd).quantize(CENT, ROUND_UP)
        usd, worst = usd + out, once * (1 + _requeues(place.spec)) + out
        if out:
            why += f", and ${out} for {place.spec.burst.egress_gb:g} GB that come back"
    return Option(
        site=place.target,
        boot_s=_own(terms.boot_s, shape.boot_s),
        staging_s=staging_s(place, site, policy),
        boot_timeout_s=boot_timeout_s,
        cost_usd=usd,
        cost_why=why,
        blockers=place.blockers,
        worst_usd=worst,
        egress_usd=out,
        same_job=place.same_job,
        partition=None if place.same_job else shape.partition,
        offer="" if row is None else row.name,
        unpromised=unpromised,
        interruption_per_hour=None if row is None else row.interruption_per_hour,
        send_gb=place.send_gb,
    )


def _not_on_spot(option: Option) -> Option:
    """An array, or one of its elements, with the reason why spot nodes are not offered."""
    why = (
        f"{option.cost_why}; not on spot nodes: those of an array are taken back element by "
        "element, and the net catches whole jobs"
    )
    return msgspec.structs.replace(option, cost_why=why)


def _on_spot(
    place: Place, taken: list[Shape], site: Site, policy: Policy, net: Option
) -> list[Option]:
    """The same job on nodes that may be taken back, with the net below each."""
    assert net.cost_usd is not None
    assert net.worst_usd is not None
    spec, found = place.spec, []
    for shape in taken:
        made = _option(place, shape, site, policy)
        cost, row = shape.cost, shape.offer
        rate = made.interruption_per_hour
        out, _ = egress(spec, row)
        if cost.usd is None or cost.hours is None or cost.gpu_hour_usd is None or rate is None:
            continue  # unknown is no ground for a gain
        if out is None or made.worst_usd is None:
            continue
        limit_s = round(cost.hours * 3600)
        lost_s = policy.spot_lost_s if spec.checkpoint else limit_s
        usd = expected_usd(
            gpus=cost.gpus,
            hours=float(cost.hours),
            boot_h=made.boot_s / 3600,
            lost_h=lost_s / 3600 if spec.checkpoint else None,
            gpu_hour_usd=cost.gpu_hour_usd,
            taken_per_h=rate * spec.resources.nodes,
            net_usd=net.cost_usd,
            tries=policy.spot_tries,
        )
        start = made.worst_usd - out
        # between two looks Slurm may start it once more than the tries
        unseen_h = Decimal(policy.cron_interval_s + REQUEUE_S) / 3600
        unseen = (cost.gpus * unseen_h * cost.gpu_hour_usd).quantize(CENT, ROUND_UP)
        found.append(
            msgspec.structs.replace(
                made,
                spot=True,
                cost_usd=usd + out,
                # each start may hold its nodes for the whole limit before they are taken
                worst_usd=policy.spot_tries * (start / (1 + _requeues(spec)))
                + max(start, net.worst_usd - out) + unseen + out,
                cost_why=f"{made.cost_why}; spot, taken back {rate:g} times an hour and node: "
                f"expected, with ${net.cost_usd} in {net.partition} as the net",
                net=net.partition,
                net_boot_s=net.boot_s,
                net_cost_usd=net.cost_usd,
                lost_s=lost_s,
                unpromised=made.unpromised or net.unpromised,
            )
        )  # fmt: skip
    return sorted(found, key=lambda o: o.cost_usd or Decimal(0))


def staging_s(place: Place, site: Site, policy: Policy) -> int:
    """Seconds for copying code and inputs there: the allowance, and large inputs at its rate."""
    if place.same_job:
        return 0
    terms = policy.target.get(place.target, TargetTerms())
    seconds = _own(terms.staging_s, site.burst.staging_s)
    if place.send_gb and site.burst.transfer_mb_s:
        seconds += round(place.send_gb * 1000 / site.burst.transfer_mb_s)
    return seconds


def _own(value: int | None, default: int) -> int:
    return default if value is None else value


def egress(spec: JobSpec, row: Offer | None) -> tuple[Decimal | None, str]:
    """Dollars for what comes back (None: unknown), and why they have no bound (empty: they have).

    A site without a row has one price for all, its profile's.
    """
    size = spec.burst.egress_gb
    comes_back = bool(spec.outputs) if size is None else size > 0  # logs alone count as nothing
    if row is None or not comes_back or row.egress_free:
        return Decimal(0), ""
    rate = row.egress_usd
    if rate is None:
        return None, egress_unknown(row)
    if size is None:
        return Decimal(0), (
            f"its outputs cost ${rate} a GB to bring back and their size is not said: "
            "egress_gb in [burst] of the job file"
        )
    return (Decimal(str(size)) * rate).quantize(CENT, ROUND_UP), ""


def _requeues(spec: JobSpec) -> int:
    """How often it may start again by itself; each start may take the whole limit."""
    return spec.checkpoint.max_restarts if spec.checkpoint else 0
