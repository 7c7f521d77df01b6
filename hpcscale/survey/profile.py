"""What a profile says against what the controller says; pure."""

import datetime as dt
from collections.abc import Iterator

from hpcscale.site import Site, user_file
from hpcscale.slurm.types import PartitionFacts, SiteFacts
from hpcscale.survey.checks import Check, Verdict
from hpcscale.units import format_duration, parse_duration_s

STALE_PRICE_DAYS = 30


def partitions(site: Site, facts: SiteFacts) -> Iterator[Check]:
    """The profile's partitions against the controller's."""
    there = ", ".join(facts.partitions) or "none"
    mine = str(user_file(site.name))
    wanted = site.default_partition
    if wanted and wanted not in facts.partitions:
        yield Check(
            "default partition",
            Verdict.FAIL,
            f"the profile says {wanted}; the controller has {there}",
            f'write default_partition = "…" in {mine}',
        )
    if not site.partitions:
        yield Check("partitions", Verdict.OK, f"the profile names none; the controller has {there}")
        return
    for name, known in site.partitions.items():
        live = facts.partitions.get(name)
        if live is None:
            yield Check(
                f"partition {name}",
                Verdict.FAIL,
                f"not there; the controller has {there}",
                f"write the site's own [partitions.NAME] in {mine}",
            )
            continue
        differences = [
            f"{key} is {said} in the profile and {seen} there"
            for key, said, seen in (
                ("nodes", known.nodes, live.total_nodes),
                ("gpus_per_node", known.gpus_per_node, live.gpus_per_node),
                ("gpu_type", known.gpu_type, live.gpu_type),
                ("cpus_per_node", known.cpus_per_node, live.cpus_per_node),
                ("max_nodes", known.max_nodes, live.max_nodes),
                ("max_time", _limit(known.max_time), format_duration(live.max_time_s)),
            )
            if said is not None and said != seen
        ]
        gone = [name for name in known.features if name not in live.features]
        if gone:
            differences.append(f"features {', '.join(gone)} are not there")
        if not live.up:
            differences.append("it is not up")
        yield Check(
            f"partition {name}",
            Verdict.WARN if differences else Verdict.OK,
            "; ".join(differences) or _describe(live),
            f"the controller's word wins; correct [partitions.{name}] in {mine}"
            if differences
            else "",
        )


def _limit(text: str | None) -> str | None:
    return None if text is None else format_duration(parse_duration_s(text))


def _describe(live: PartitionFacts) -> str:
    gpus = f"{live.gpus_per_node} {live.gpu_type or 'gpu'}" if live.gpus_per_node else "no GPU"
    return f"{live.total_nodes} nodes, {gpus} each, up to {format_duration(live.max_time_s)}"


def gpus(site: Site, facts: SiteFacts) -> Check:
    """The profile's GPUs per node against the controller's GRES."""
    seen = {p.gpus_per_node: p for p in facts.partitions.values() if p.gpus_per_node}
    if not seen:
        if not site.gpus_per_node:
            return Check("GPUs", Verdict.OK, "none, as the profile says")
        return Check(
            "GPUs",
            Verdict.FAIL,
            f"the profile says {site.gpus_per_node} a node; the controller knows of no GRES gpu",
            f"ask for GresTypes=gpu and Gres=gpu:… (slurm.conf(5)), or write gpus_per_node = 0 in "
            f"{user_file(site.name)}",
        )
    listed = ", ".join(f"{count} x {p.gpu_type or 'gpu'}" for count, p in sorted(seen.items()))
    if site.gpus_per_node is not None and site.gpus_per_node not in seen:
        return Check(
            "GPUs",
            Verdict.WARN,
            f"the profile says {site.gpus_per_node} a node; the controller has {listed}",
            f"write gpus_per_node = {max(seen)} in {user_file(site.name)}",
        )
    types = {p.gpu_type for p in seen.values() if p.gpu_type}
    if site.gpu_type and types and site.gpu_type not in types:
        return Check(
            "GPUs",
            Verdict.WARN,
            f"the profile says type {site.gpu_type}; the controller has {listed}",
            f'write gpu_type = "{min(types)}" in {user_file(site.name)}',
        )
    return Check("GPUs", Verdict.OK, f"{listed} a node")


def profile(site: Site, today: dt.date) -> Iterator[Check]:
    """What the profile itself leaves to be set, or has let grow old."""
    if examples := [name for name, known in site.fabric.env.items() if known.example]:
        yield Check(
            "fabric",
            Verdict.WARN,
            f"still the source's example, not this site's value: {', '.join(examples)}",
            f'write [fabric.env] {examples[0]} = "…" in {user_file(site.name)}',
        )
    else:
        how = ", ".join(f"{name} ({known.status})" for name, known in site.fabric.env.items())
        yield Check("fabric", Verdict.OK, f"{site.fabric.kind}: {how or 'sets no variable'}")
    for name in site.burst_partitions:
        if site.gpu_hour_usd(name) is None and site.partitions[name].offer is None:
            yield Check(
                f"price of partition {name}",
                Verdict.WARN,
                "jobs may be moved there, and a GPU-hour's price is unknown",
                f"write gpu_hour_usd below [partitions.{name}] in {user_file(site.name)}",
            )
    if site.gpu_hour_usd() is None:
        yield Check(
            "price",
            Verdict.WARN,
            "a GPU-hour's price is unknown: costs are shown as unknown",
            f"write [price] gpu_hour_usd, source and as_of in {user_file(site.name)}",
        )
    elif site.price is not None:
        age = (today - site.price.as_of).days
        stale = age > STALE_PRICE_DAYS and site.burst.target
        yield Check(
            "price",
            Verdict.WARN if stale else Verdict.OK,
            f"${site.price.gpu_hour_usd} a GPU-hour as of {site.price.as_of}"
            + (f", {age} days ago" if stale else ""),
            f"check it and write [price] in {user_file(site.name)}" if stale else "",
        )
