"""The catalog of offers: what a cloud rents out, where, at which price, and as of when. Pure.

Rows are in ``site-configs/catalog/*.toml`` and in ``~/.config/hpcscale/catalog/*.toml``; each names
its source. What no source says is left out: a missing figure is unknown, never zero.
"""

import datetime as dt
from collections.abc import Iterable
from decimal import Decimal
from typing import Any

import msgspec

from hpcscale.errors import BurstRefusedError, InvalidFileError
from hpcscale.tomlfile import convert_toml

WARN_DAYS = 30  # older prices are used, with a warning
REFUSE_DAYS = 180  # older prices are no ground for a promise about money


class Offer(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One instance shape in one region, a row of a catalog file; what is left out is unknown.

    Attributes:
        provider: such as ``aws``.
        region: the provider's own name of it.
        instance: the provider's name of the shape.
        gpus: of one instance.
        gpu_type: as in GRES, such as ``h100``.
        gpu_mem_gb: of one GPU.
        cpus: virtual, as the provider counts them.
        mem_gb: of one instance (GiB).
        fabric: ``efa``, ``infiniband`` or ``ethernet``.
        on_demand_usd: dollars of an instance for an hour.
        spot_usd: the same, interruptible.
        quota: instances that this account may have.
        boot_p50_s: from asking to a node that takes jobs, the median.
        boot_p95_s: the same, of 19 in 20.
        interruption_per_hour: chance that a spot instance is taken back within an hour.
        egress_usd_per_gb: dollars for a GB out of the region; left out it is unknown, not free.
        egress_free: the source says that what leaves the region costs nothing.
        source: where the figures stand.
        as_of: the day they were valid.
        note: for people.
    """

    provider: str
    region: str
    instance: str
    gpus: int
    gpu_type: str | None = None
    gpu_mem_gb: float | None = None
    cpus: int | None = None
    mem_gb: float | None = None
    fabric: str | None = None
    on_demand_usd: Decimal | None = None
    spot_usd: Decimal | None = None
    quota: int | None = None
    boot_p50_s: int | None = None
    boot_p95_s: int | None = None
    interruption_per_hour: float | None = None
    egress_usd_per_gb: Decimal | None = None
    egress_free: bool = False
    source: str
    as_of: dt.date
    note: str | None = None

    @property
    def name(self) -> str:
        """``aws/us-east-1/p5.48xlarge``."""
        return f"{self.provider}/{self.region}/{self.instance}"

    @property
    def gpu_hour_usd(self) -> Decimal | None:
        """Dollars of a GPU-hour on demand; None when unknown."""
        if self.on_demand_usd is None or not self.gpus:
            return None
        return (self.on_demand_usd / self.gpus).quantize(Decimal("0.0001"))

    @property
    def egress_usd(self) -> Decimal | None:
        """Dollars for a GB out of the region, 0 only where its source says so; None: unknown."""
        if self.egress_free:
            return Decimal(0)
        return self.egress_usd_per_gb or None

    def age_days(self, today: dt.date) -> int:
        """Days since its figures were valid; negative for a date ahead."""
        return (today - self.as_of).days


class _File(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    offer: tuple[Offer, ...] = ()


def offers_from(data: dict[str, Any], where: str) -> list[Offer]:
    """Check a catalog file's TOML data.

    Raises:
        InvalidFileError: an unknown key, a wrong type, a price that is not above 0, a row twice.
    """
    found: list[Offer] = []
    for number, offer in enumerate(convert_toml(_priced(data), _File, where).offer):
        for problem in problems(offer):
            raise InvalidFileError(f"offer {offer.name}: {problem}", where=f"{where}: [[offer]] "
                                   f"{number + 1}")  # fmt: skip
        if any(other.name == offer.name for other in found):
            raise InvalidFileError(f"offer {offer.name} stands twice", where=where)
        found.append(offer)
    return found


def problems(offer: Offer) -> list[str]:
    """What cannot be true of a row."""
    wrong = []
    for key in ("on_demand_usd", "spot_usd"):
        price = getattr(offer, key)
        if price is not None and not (price.is_finite() and price > 0):
            wrong.append(f"{key} = {price} is no price: leave an unknown one out")
    egress = offer.egress_usd_per_gb
    if egress is not None and not (egress.is_finite() and egress > 0):
        wrong.append(
            f"egress_usd_per_gb = {egress} is no price: leave an unknown one out, and write "
            "egress_free = true where what leaves costs nothing"
        )
    if offer.egress_free and egress is not None:
        wrong.append(f"egress_free = true and egress_usd_per_gb = {egress} cannot both be")
    if offer.gpus < 0:
        wrong.append("gpus is negative")
    if None not in {offer.boot_p50_s, offer.boot_p95_s} and (
        (offer.boot_p95_s or 0) < (offer.boot_p50_s or 0)
    ):
        wrong.append("boot_p95_s is less than boot_p50_s")
    rate = offer.interruption_per_hour
    if rate is not None and not 0 <= rate <= 1:
        wrong.append("interruption_per_hour is no chance between 0 and 1")
    if not offer.source:
        wrong.append("it names no source")
    return wrong


def egress_unknown(offer: Offer) -> str:
    """Why no budget is kept with what leaves a row without a price of it, and what to type."""
    return (
        f"no budget can be kept with {offer.name}: what a GB out of there costs is unknown "
        "(egress_usd_per_gb = 0.09 in its row, or egress_free = true, or hpcscale catalog import "
        "with --egress-usd-per-gb; egress_gb = 0 in [burst] of the job file where nothing comes "
        "back)"
    )


def staleness(offer: Offer, today: dt.date) -> str | None:
    """What an old price means, in half a sentence; None while it is fresh."""
    age = offer.age_days(today)
    if age < 0:
        return f"its date {offer.as_of} is ahead"
    if age > REFUSE_DAYS:
        return f"its price is {age} days old: too old for a budget or a maximum cost"
    if age > WARN_DAYS:
        return f"its price is {age} days old"
    return None


def require_fresh(offer: Offer, today: dt.date, *, spot: bool = False) -> None:
    """Refuse a promise about money on an old or unknown price (``spot``: that of spot nodes).

    Raises:
        BurstRefusedError: with what to type.
    """
    old = offer.age_days(today) > REFUSE_DAYS or offer.as_of > today
    if (offer.spot_usd if spot else offer.on_demand_usd) is None:
        why: str | None = "its price is unknown"
    else:
        why = staleness(offer, today) if old else None
    if why is not None:
        raise BurstRefusedError(
            f"no budget can be kept with {offer.name}: {why}",
            hint="hpcscale catalog import FILE --format libcloud, or gpuhunt, or skypilot",
        )


def cheapest(
    offers: Iterable[Offer],
    *,
    gpus_per_node: int,
    gpu_type: str | None = None,
    mem_gb: float | None = None,
    regions: Iterable[str] | None = None,
) -> list[Offer]:
    """Offers whose instance holds one node of a job, the cheapest on demand first.

    Args:
        offers: the catalog.
        gpus_per_node: that the job asks for on each node.
        gpu_type: it must be this one; None: any.
        mem_gb: that it needs on each node; an offer of unknown memory does not hold it.
        regions: allowed ones (data rules); None: any.

    Returns:
        Those with a known price, then those without.
    """
    allowed = None if regions is None else set(regions)
    fitting = [
        offer
        for offer in offers
        if offer.gpus >= gpus_per_node
        and (gpu_type is None or offer.gpu_type == gpu_type)
        and (mem_gb is None or (offer.mem_gb is not None and offer.mem_gb >= mem_gb))
        and (allowed is None or offer.region in allowed)
    ]
    return sorted(
        fitting, key=lambda o: (o.on_demand_usd is None, o.on_demand_usd or Decimal(0), o.name)
    )


def to_toml(offers: Iterable[Offer]) -> str:
    """A catalog file."""
    lines: list[str] = []
    for offer in offers:
        lines.append("[[offer]]")
        for key in Offer.__struct_fields__:
            value = getattr(offer, key)
            if value is None or value is False:  # False stands for what is not said
                continue
            if value is True:
                text = "true"
            elif isinstance(value, str):
                # a JSON string is a TOML basic string, but for DEL
                text = msgspec.json.encode(value).decode().replace("\x7f", "\\u007f")
            elif isinstance(value, dt.date):
                text = value.isoformat()
            else:
                text = str(value)
            lines.append(f"{key} = {text}")
        lines.append("")
    return "\n".join(lines)


def _priced(data: dict[str, Any]) -> dict[str, Any]:
    """TOML floats as exact decimals: 0.1 is meant as written."""
    rows = data.get("offer")
    if not isinstance(rows, list):
        return data
    return {**data, "offer": [_exact(row) if isinstance(row, dict) else row for row in rows]}


def _exact(row: dict[str, Any]) -> dict[str, Any]:
    return {
        key: str(value)
        if key in _MONEY and isinstance(value, (int, float)) and not isinstance(value, bool)
        else value
        for key, value in row.items()
    }


_MONEY = {"on_demand_usd", "spot_usd", "egress_usd_per_gb"}
