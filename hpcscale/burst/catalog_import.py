"""Offers from the files of other projects: gpuhunt, SkyPilot and Apache Libcloud. Pure.

Their columns: gpuhunt's CSV (dstackai/gpuhunt, ``RawCatalogItem``), SkyPilot's ``vms.csv``
(skypilot-org/skypilot-catalog, README, schema v5), libcloud's ``data/pricing.json``. A price of 0
means unknown in all three.
"""

import csv
import datetime as dt
import io
import json
import re
from collections.abc import Iterable
from decimal import Decimal, InvalidOperation
from typing import Any

from hpcscale.burst.catalog import Offer
from hpcscale.errors import InvalidFileError

FORMATS = ("gpuhunt", "skypilot", "libcloud")

# libcloud knows prices alone; what the names mean: AWS, "Specifications for Amazon EC2 accelerated
# computing instances", and pytorch/torchx torchx/specs/named_resources_aws.py
_LIBCLOUD_GPUS = {
    "p3.2xlarge": (1, "v100"), "p3.8xlarge": (4, "v100"), "p3.16xlarge": (8, "v100"),
    "p3dn.24xlarge": (8, "v100"), "p4d.24xlarge": (8, "a100"), "p4de.24xlarge": (8, "a100"),
    "p5.48xlarge": (8, "h100"), "p5e.48xlarge": (8, "h200"), "p5en.48xlarge": (8, "h200"),
    "g5.12xlarge": (4, "a10g"), "g5.48xlarge": (8, "a10g"), "g6.48xlarge": (8, "l4"),
    "g6e.48xlarge": (8, "l40s"),
}  # fmt: skip


def offers_of(
    text: str, kind: str, *, source: str, as_of: dt.date | None, provider: str = "aws"
) -> list[Offer]:
    """Offers with GPUs in a file of another project.

    Args:
        text: the file.
        kind: one of ``FORMATS``.
        source: what to name as their source.
        as_of: the day of the prices; libcloud's file has its own.
        provider: for files that do not name it.

    Raises:
        InvalidFileError: not of this format, no date, or no offer with GPUs in it.
    """
    if kind == "libcloud":
        found = _libcloud(text, source, as_of)
    else:
        if as_of is None:
            raise InvalidFileError(
                "the file does not say when its prices were valid",
                where=source,
                hint="--as-of 2026-11-01, the day it was downloaded",
            )
        found = list((_gpuhunt if kind == "gpuhunt" else _skypilot)(text, source, as_of, provider))
    if not found:
        raise InvalidFileError(f"no offer with GPUs in it, read as {kind}", where=source)
    return _merged(found)


def _libcloud(text: str, source: str, as_of: dt.date | None) -> list[Offer]:
    try:
        data: dict[str, Any] = json.loads(text)
        sizes: dict[str, dict[str, Any]] = data["compute"]["ec2_linux"]
        updated = dt.datetime.fromtimestamp(int(data["updated"]), dt.UTC).date()
    except (ValueError, KeyError, TypeError) as exc:
        raise InvalidFileError(
            "this is no pricing.json of Apache Libcloud (compute.ec2_linux, updated)", where=source
        ) from exc
    return [
        Offer(
            provider="aws",
            region=region,
            instance=instance,
            gpus=gpus,
            gpu_type=gpu_type,
            on_demand_usd=_price(price),
            source=source,
            as_of=as_of or updated,
        )
        for instance, (gpus, gpu_type) in _LIBCLOUD_GPUS.items()
        for region, price in sizes.get(instance, {}).items()
    ]


def _gpuhunt(text: str, source: str, as_of: dt.date, provider: str) -> Iterable[Offer]:
    for line, row in _rows(text, source, {"instance_name", "location", "price", "gpu_count"}):
        gpus = _count(row["gpu_count"], source, line)
        if not gpus:
            continue
        spot = row.get("spot", "").strip().lower() in {"true", "1"}
        price = _price(row["price"])
        yield Offer(
            provider=row.get("provider") or provider,
            region=row["location"],
            instance=row["instance_name"],
            gpus=gpus,
            gpu_type=_gpu_type(row.get("gpu_name")),
            gpu_mem_gb=_float(row.get("gpu_memory")),
            cpus=_count(row.get("cpu"), source, line) or None,
            mem_gb=_float(row.get("memory")),
            on_demand_usd=None if spot else price,
            spot_usd=price if spot else None,
            source=source,
            as_of=as_of,
        )


def _skypilot(text: str, source: str, as_of: dt.date, provider: str) -> Iterable[Offer]:
    for line, row in _rows(text, source, {"InstanceType", "AcceleratorCount", "Price", "Region"}):
        gpus = _count(row["AcceleratorCount"], source, line)
        if not gpus or not row["InstanceType"]:
            continue
        yield Offer(
            provider=provider,
            region=row["Region"],
            instance=row["InstanceType"],
            gpus=gpus,
            gpu_type=_gpu_type(row.get("AcceleratorName")),
            cpus=_count(row.get("vCPUs"), source, line) or None,
            mem_gb=_float(row.get("MemoryGiB")),
            on_demand_usd=_price(row["Price"]),
            spot_usd=_price(row.get("SpotPrice")),
            source=source,
            as_of=as_of,
        )


def _rows(text: str, source: str, needed: set[str]) -> Iterable[tuple[int, dict[str, str]]]:
    reader = csv.DictReader(io.StringIO(text))
    missing = needed - set(reader.fieldnames or ())
    if missing:
        raise InvalidFileError(
            f"columns are missing: {', '.join(sorted(missing))}", where=f"{source}:1"
        )
    for row in reader:
        yield reader.line_num, {k: v or "" for k, v in row.items() if k is not None}


def _merged(offers: list[Offer]) -> list[Offer]:
    """One row a region and shape: the cheapest zone, on-demand and spot side by side."""
    import msgspec

    found: dict[str, Offer] = {}
    for offer in offers:
        known = found.get(offer.name)
        if known is None:
            found[offer.name] = offer
            continue
        found[offer.name] = msgspec.structs.replace(
            known,
            on_demand_usd=_least(known.on_demand_usd, offer.on_demand_usd),
            spot_usd=_least(known.spot_usd, offer.spot_usd),
        )
    return sorted(found.values(), key=lambda offer: offer.name)


def _least(one: Decimal | None, other: Decimal | None) -> Decimal | None:
    return min((p for p in (one, other) if p is not None), default=None)


def _price(value: object) -> Decimal | None:
    """A price above 0; else unknown."""
    try:
        price = Decimal(str(value).strip())
    except InvalidOperation:
        return None
    return price if price.is_finite() and price > 0 else None


def _float(value: str | None) -> float | None:
    try:
        number = float(value or "")
    except ValueError:
        return None
    return number if 0 < number < float("inf") else None


def _count(value: str | None, source: str, line: int) -> int:
    if value is None or not value.strip():
        return 0
    try:
        return int(float(value))
    except (ValueError, OverflowError) as exc:
        raise InvalidFileError(f"{value!r} is no number", where=f"{source}:{line}") from exc


def _gpu_type(name: str | None) -> str | None:
    """``A100-80GB`` and ``H100 SXM`` as GRES would name them: ``a100``, ``h100``."""
    match = re.match(r"[A-Za-z]*\d+[A-Za-z]*", (name or "").strip())
    return match[0].lower() if match else (name or "").strip().lower() or None
