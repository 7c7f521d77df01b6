"""What a site's nodes are rented by: its partitions with the catalog's prices, the cheapest first.

A partition of a profile may name a row of the catalog (``offer``): each of its nodes is an instance
of that shape, and costs what the row says. Prices, boot times and interruption rates are then the
catalog's, with their day; a price that is missing or 0 is unknown, whatever the profile says. A
partition that is ``preemptible`` rents at the row's spot price. Pure.
"""

import datetime as dt
from collections.abc import Mapping
from decimal import ROUND_UP, Decimal

import msgspec

from hpcscale.burst.catalog import REFUSE_DAYS, WARN_DAYS, Offer, require_fresh, staleness
from hpcscale.cost import CostEstimate, estimate
from hpcscale.errors import BurstRefusedError
from hpcscale.site import Partition, Site
from hpcscale.spec import JobSpec

Catalog = Mapping[str, Offer]

_UNKNOWN = Decimal(0)  # in a profile, a price of 0 is no price


class Shape(msgspec.Struct, frozen=True, kw_only=True):
    """One way to run a job at a site.

    Attributes:
        partition: of the site; None: its default one.
        offer: the row behind it; None: the profile's own price counts.
        cost: the most that one start costs there.
        boot_s: until a node takes jobs, the 95th percentile.
        note: what an old price means, half a sentence; empty while it is fresh.
        unpromised: why no budget and no maximum cost can be kept at this price; empty: they can.
    """

    partition: str | None = None
    offer: Offer | None = None
    cost: CostEstimate
    boot_s: int = 0
    note: str = ""
    unpromised: str = ""


def with_catalog(site: Site, catalog: Catalog) -> Site:
    """The site with the catalog's prices in the place of its own, where partitions name a row."""
    if not any(p.offer for p in site.partitions.values()):
        return site
    priced = {name: _priced(part, catalog) for name, part in site.partitions.items()}
    return msgspec.structs.replace(site, partitions=priced)


def _priced(partition: Partition, catalog: Catalog) -> Partition:
    if partition.offer is None:
        return partition
    offer = catalog.get(partition.offer)
    price = _UNKNOWN
    if offer is None:
        return msgspec.structs.replace(partition, gpu_hour_usd=price)
    hour = offer.spot_usd if partition.preemptible else offer.on_demand_usd
    if hour is not None and offer.gpus:
        price = (hour / offer.gpus).quantize(Decimal("0.000001"), ROUND_UP)
    return msgspec.structs.replace(partition, gpu_hour_usd=price, gpus_per_node=offer.gpus)


def shapes(
    spec: JobSpec,
    site: Site,
    catalog: Catalog,
    today: dt.date,
    *,
    spot: bool = False,
    gpu_type: str | None = None,
) -> tuple[list[Shape], list[str]]:
    """Shapes of the site that hold the job, the cheapest first, unknown prices last.

    Args:
        spec: as it would be asked of the site; a partition that it names is the only one.
        site: its own profile, or already ``with_catalog``.
        catalog: rows by name.
        today: of the prices' age.
        spot: those whose nodes may be taken back, and no others.
        gpu_type: that the job waits for; a GPU with less memory does not hold it.

    Returns:
        Shapes, and why the others do not hold it.
    """
    priced = with_catalog(site, catalog)
    rented = {n: p.offer for n, p in site.partitions.items() if p.offer is not None}
    if spec.partition is not None:
        rented = {name: row for name, row in rented.items() if name == spec.partition}
    only_spot = rented and all(site.partitions[name].preemptible for name in rented)
    rented = {n: row for n, row in rented.items() if site.partitions[n].preemptible is spot}
    if only_spot and not spot:
        return [], ["all that it rents may be taken back, and nothing catches the job then"]
    if not rented and spot:
        return [], []
    if not rented:
        note, unpromised = _profile_age(site, today)
        shape = Shape(
            partition=spec.partition, cost=estimate(spec, priced),
            boot_s=site.burst.boot_allowance_s, note=note, unpromised=unpromised,
        )  # fmt: skip
        return [shape], []
    found: list[Shape] = []
    why_not: list[str] = []
    for name, row in rented.items():
        offer = catalog.get(row)
        if offer is None:
            why_not.append(f"partition {name} rents {row}, which no catalog file has")
        elif problem := (
            _away(spec, offer) or _too_small(spec, offer) or _lesser(spec, offer, gpu_type, catalog)
        ):
            why_not.append(f"partition {name}: {problem}")
        else:
            shape = _shape(spec, priced, name, offer, today, spot=spot)
            if spec.resources.gpus_per_node and _other(offer, gpu_type):
                kind = f"on {offer.gpu_type} GPUs, where it waits for {gpu_type}"
                shape = msgspec.structs.replace(
                    shape, note="; ".join(part for part in (shape.note, kind) if part)
                )
            found.append(shape)
    found.sort(key=lambda s: (s.cost.usd is None, s.cost.usd or Decimal(0), s.partition or ""))
    return found, why_not


def as_rented(
    spec: JobSpec, site: Site, catalog: Catalog, today: dt.date
) -> tuple[Site, list[str]]:
    """The site as one job would find it: at its cheapest partition, with that one's price and boot.

    Returns:
        The site, and why none of its rented partitions holds the job; empty: one does, or it rents
        none.
    """
    if not any(part.offer for part in site.partitions.values()):
        return site, []
    found, why_not = shapes(spec, site, catalog, today)
    priced = with_catalog(site, catalog)
    if not found:
        return priced, why_not
    burst = msgspec.structs.replace(site.burst, boot_allowance_s=found[0].boot_s)
    return msgspec.structs.replace(priced, default_partition=found[0].partition, burst=burst), []


def _shape(
    spec: JobSpec, site: Site, name: str, offer: Offer, today: dt.date, *, spot: bool
) -> Shape:
    boot_s = site.burst.boot_allowance_s if offer.boot_p95_s is None else offer.boot_p95_s
    there = msgspec.structs.replace(
        site, burst=msgspec.structs.replace(site.burst, boot_allowance_s=boot_s)
    )
    cost = estimate(msgspec.structs.replace(spec, partition=name), there)
    unpromised = ""
    try:
        require_fresh(offer, today, spot=spot)
    except BurstRefusedError as exc:
        unpromised = f"{exc.message} ({exc.hint})"
    return Shape(
        partition=name, offer=offer, cost=cost, boot_s=boot_s,
        note=staleness(offer, today) or "", unpromised=unpromised,
    )  # fmt: skip


def _away(spec: JobSpec, offer: Offer) -> str | None:
    """A data rule that names an area holds for what is rented, too, whatever the site says."""
    for tag in spec.burst.data:
        area, only, rest = tag.rpartition("-only")
        inside = offer.region == area or offer.region.startswith(f"{area}-")
        if only and not rest and area and not inside:
            return f"data rule {tag}: {offer.name} stands in {offer.region}"
    return None


def _too_small(spec: JobSpec, offer: Offer) -> str | None:
    need = spec.resources
    if offer.gpus < need.gpus_per_node:
        return f"{offer.instance} has {offer.gpus} GPUs, the job wants {need.gpus_per_node}"
    cpus = (need.tasks_per_node or 1) * (need.cpus_per_task or 1)
    if offer.cpus is not None and offer.cpus < cpus:
        return f"{offer.instance} has {offer.cpus} CPUs, the job wants {cpus}"
    if need.mem_gb and offer.mem_gb is None:
        return f"the memory of {offer.instance} is not known, the job wants {need.mem_gb:g} GB"
    if need.mem_gb and (offer.mem_gb or 0) < need.mem_gb:
        return f"{offer.instance} has {offer.mem_gb:g} GB, the job wants {need.mem_gb:g}"
    return None


def _other(offer: Offer, gpu_type: str | None) -> bool:
    """Whether both kinds of GPU are known, and not the same."""
    if not gpu_type or not offer.gpu_type:
        return False
    return gpu_type.lower() != offer.gpu_type.lower()


def _lesser(spec: JobSpec, offer: Offer, gpu_type: str | None, catalog: Catalog) -> str | None:
    """Another kind of GPU with less memory than the smallest of the kind that it waits for."""
    if not spec.resources.gpus_per_node or not gpu_type or not _other(offer, gpu_type):
        return None
    known = [
        row.gpu_mem_gb
        for row in catalog.values()
        if (row.gpu_type or "").lower() == gpu_type.lower() and row.gpu_mem_gb
    ]
    if not known or not offer.gpu_mem_gb or offer.gpu_mem_gb >= min(known):
        return None
    return (
        f"{offer.instance} has {offer.gpu_type} GPUs of {offer.gpu_mem_gb:g} GB, the job waits for "
        f"{gpu_type} of {min(known):g} GB"
    )


def _profile_age(site: Site, today: dt.date) -> tuple[str, str]:
    """Note and refusal for the profile's own price."""
    if site.price is None:
        return "", ""
    age = (today - site.price.as_of).days
    note = f"its price is {age} days old" if age > WARN_DAYS else ""
    if age <= REFUSE_DAYS:
        return note, ""
    return note, (
        f"no budget can be kept with the price of {site.name}: it is {age} days old "
        "(price.as_of in its profile)"
    )
