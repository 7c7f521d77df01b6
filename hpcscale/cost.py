"""What a job may cost, and what it has cost: pure, in Decimal dollars. An unknown price is unknown.

    cost = nodes x GPUs per node x hours x price of a GPU-hour

A site that jobs burst to bills whole nodes, from the moment they boot: there all GPUs of a node
count, and the profile's boot allowance is added. On-prem hours have a price too.
"""

import datetime as dt
from dataclasses import dataclass
from decimal import ROUND_UP, Decimal
from typing import Any

from hpcscale.site import Site
from hpcscale.spec import JobSpec
from hpcscale.units import parse_duration_s

CENT = Decimal("0.01")


@dataclass(frozen=True, slots=True)
class CostEstimate:
    """The most that one start of a job can cost.

    Attributes:
        usd: dollars, rounded up to the cent; None when unknown.
        why: the sum spelled out, or what is unknown.
        gpus: GPUs that are billed, over all nodes (and array elements).
        hours: the time limit; None without one.
        gpu_hour_usd: the price used.
        boot_hours: allowance for the nodes' boot, billed as well.
    """

    usd: Decimal | None
    why: str
    gpus: int = 0
    hours: Decimal | None = None
    gpu_hour_usd: Decimal | None = None
    boot_hours: Decimal = Decimal(0)

    def __str__(self) -> str:
        return f"unknown: {self.why}" if self.usd is None else f"at most ${self.usd} ({self.why})"


def billed_gpus_per_node(spec: JobSpec, site: Site) -> int:
    """GPUs of each node that are paid for: the whole node where nodes are rented or exclusive."""
    asked = spec.resources.gpus_per_node
    site = site.profile_of(spec.partition)
    if site.burst.target or spec.resources.exclusive:
        return max(asked, site.partition_gpus_per_node(spec.partition) or 0)
    return asked


def time_limit_s(spec: JobSpec, site: Site) -> int | None:
    """The limit Slurm would hold it to, as far as spec and profile tell; None when unknown."""
    if spec.resources.time_limit_s is not None:
        return spec.resources.time_limit_s
    known = site.partitions.get(spec.partition or site.default_partition or "")
    return parse_duration_s(known.max_time) if known and known.max_time else None


def estimate(spec: JobSpec, site: Site) -> CostEstimate:
    """The most that one start of this job would cost at this site."""
    site = site.profile_of(spec.partition)  # rented nodes beside owned ones
    price = site.gpu_hour_usd(spec.partition or site.default_partition)
    limit_s = time_limit_s(spec, site)
    per_node = billed_gpus_per_node(spec, site)
    elements = spec.array_size or 1
    nodes = spec.resources.nodes * elements
    gpus = nodes * per_node
    hours = None if limit_s is None else Decimal(limit_s) / 3600
    boot = Decimal(site.burst.boot_allowance_s) / 3600
    known: dict[str, Any] = {
        "gpus": gpus,
        "hours": hours,
        "gpu_hour_usd": price,
        "boot_hours": boot,
    }
    if price is None:
        return CostEstimate(None, f"{site.name} has no price of a GPU-hour", **known)
    if hours is None:
        return CostEstimate(None, "the job has no time limit; give --time", **known)
    if gpus == 0:
        return CostEstimate(None, f"no GPUs asked for, and {site.name} prices GPU-hours", **known)
    usd = (gpus * (hours + boot) * price).quantize(CENT, ROUND_UP)
    array = f"{elements} elements x " if spec.array_size else ""
    why = (
        f"{array}{spec.resources.nodes} nodes x {per_node} GPUs x {_short(hours)} h"
        f" x ${price}/GPU-hour"
    )
    if boot:
        why += f", and {_short(boot)} h for boot"
    return CostEstimate(usd, why, **known)


def spent_usd(gpus: int, seconds: float, gpu_hour_usd: Decimal | None) -> Decimal | None:
    """Dollars for that many GPUs over that time, rounded up; None when unknown.

    Args:
        gpus: of the whole job.
        seconds: that the nodes were held; negative (two clocks) counts as none.
        gpu_hour_usd: None when unknown.
    """
    if gpu_hour_usd is None or gpus == 0:
        return None
    held = Decimal(max(0, round(seconds)))
    return (gpus * held / 3600 * gpu_hour_usd).quantize(CENT, ROUND_UP)


def held_s(start: dt.datetime | None, end: dt.datetime | None, now: dt.datetime) -> float:
    """Seconds that nodes were held, so far; 0 when not started.

    Begin and end are told by one clock, the site's; ``now`` may be another's, and counts only for a
    job that has not ended.
    """
    if start is None or (end is None and start > now):
        return 0.0
    return max(0.0, ((end or now) - start).total_seconds())


def _short(hours: Decimal) -> str:
    return f"{hours:.2f}".rstrip("0").rstrip(".")
