"""``hpcscale catalog``: what clouds rent out, at which price, and how old that price is."""

from typing import TYPE_CHECKING, Any

import click

from hpcscale.cli._output import emit_json, emit_table, json_option, notice

if TYPE_CHECKING:
    import datetime as dt

    from hpcscale.burst.catalog import Offer

FILES = {
    "gpuhunt": "a CSV of dstackai/gpuhunt (instance_name, location, price, gpu_count, …)",
    "skypilot": "CLOUD/vms.csv of skypilot-org/skypilot-catalog",
    "libcloud": "libcloud/data/pricing.json of apache/libcloud",
}
today_option = click.option("--today", "today_text", hidden=True, help="Another day, for tests.")


@click.group(name="catalog")
def command() -> None:
    """Offers of clouds: show them, check their age, import them from other projects' files."""


@command.command()
@click.option("--gpu-type", metavar="TYPE", help="Only these GPUs, such as h100.")
@click.option("--gpus", type=click.IntRange(1), help="Only shapes with so many GPUs or more.")
@click.option("--region", "regions", multiple=True, help="Only this region; may be repeated.")
@today_option
@json_option
def show(
    gpu_type: str | None,
    gpus: int | None,
    regions: tuple[str, ...],
    today_text: str | None,
    as_json: bool,
) -> None:
    """List offers, the cheapest instance first. Unknown figures are left empty."""
    from hpcscale.burst.catalog import cheapest, staleness
    from hpcscale.burst.catalog_load import load_catalog

    today = _today(today_text)
    offers = cheapest(
        (offer for offer, _ in load_catalog().values()),
        gpus_per_node=gpus or 0,
        gpu_type=gpu_type,
        regions=regions or None,
    )
    if as_json:
        emit_json({"offers": [_row(offer, today) for offer in offers]})
        return
    if not offers:
        click.echo("no such offer")
        types = {offer.gpu_type for offer, _ in load_catalog().values() if offer.gpu_type}
        if gpu_type is not None and gpu_type not in types:
            notice(f"there are offers with: {', '.join(sorted(types))}")
        return

    def cell(value: object) -> str:
        return "" if value is None else str(value)

    rows = [
        [
            offer.provider,
            offer.region,
            offer.instance,
            f"{offer.gpus}x {offer.gpu_type or '?'}",
            cell(offer.mem_gb),
            cell(offer.fabric),
            cell(offer.on_demand_usd),
            cell(offer.gpu_hour_usd),
            cell(offer.spot_usd),
            str(offer.as_of),
        ]
        for offer in offers
    ]
    emit_table(
        ("PROVIDER", "REGION", "INSTANCE", "GPUS", "MEM GB", "FABRIC", "$/H", "$/GPU-H", "SPOT $/H",
         "AS OF"),
        rows,
    )  # fmt: skip
    old = sum(staleness(offer, today) is not None for offer in offers)
    if old:
        notice(f"{old} of {len(offers)} offers have old prices: hpcscale catalog check")


@command.command()
@today_option
@json_option
def check(today_text: str | None, as_json: bool) -> None:
    """Say which prices are old or unknown. Exit 7 when no offer is fit for a budget."""
    from hpcscale.burst.catalog import REFUSE_DAYS, staleness
    from hpcscale.burst.catalog_load import load_catalog

    today = _today(today_text)
    rows = []
    usable = 0
    for offer, path in load_catalog().values():
        words = [] if offer.on_demand_usd is not None else ["its price is unknown"]
        old = staleness(offer, today)
        words += [old] if old else []
        if offer.egress_usd is None:
            words.append("what leaves it has no price: not for budgets of jobs with outputs")
        fit = offer.on_demand_usd is not None and 0 <= offer.age_days(today) <= REFUSE_DAYS
        usable += fit
        rows.append(
            {
                "offer": offer.name,
                "fit_for_budgets": fit,
                "age_days": offer.age_days(today),
                "problem": "; ".join(words) or None,
                "file": str(path),
                "source": offer.source,
            }
        )
    if as_json:
        emit_json({"offers": rows, "fit_for_budgets": usable})
    else:
        emit_table(
            ("OFFER", "FOR BUDGETS", "DAYS OLD", "PROBLEM"),
            [
                [
                    str(row["offer"]),
                    "yes" if row["fit_for_budgets"] else "no",
                    str(row["age_days"]),
                    str(row["problem"] or ""),
                ]
                for row in rows
            ],
        )
        click.echo(f"{usable} of {len(rows)} offers are fit for budgets")
    if not usable:
        raise click.exceptions.Exit(7)


@command.command(name="import")
@click.argument("file", type=click.Path())
@click.option(
    "--format",
    "kind",
    required=True,
    type=click.Choice(["gpuhunt", "skypilot", "libcloud"]),
    help="Whose file it is: gpuhunt's CSV, SkyPilot's vms.csv, libcloud's pricing.json.",
)
@click.option("--as-of", metavar="DATE", help="When its prices were valid, unless it says so.")
@click.option("--provider", default="aws", show_default=True, help="Where the file names none.")
@click.option("--region", "regions", multiple=True, help="Only this region; may be repeated.")
@click.option(
    "--egress-usd-per-gb",
    "egress",
    metavar="USD|free",
    help="What a GB out of there costs; these files do not say it. Default: unknown.",
)
@click.option("--output", metavar="FILE", type=click.Path(), help="Write here, not to ~/.config.")
@json_option
def import_(  # noqa: PLR0917 -- click passes them by keyword
    file: str,
    kind: str,
    as_of: str | None,
    provider: str,
    regions: tuple[str, ...],
    egress: str | None,
    output: str | None,
    as_json: bool,
) -> None:
    """Take offers over from FILE into your own catalog. A price of 0 is taken for unknown."""
    import datetime as dt
    from pathlib import Path

    from hpcscale.burst.catalog import to_toml
    from hpcscale.burst.catalog_import import offers_of
    from hpcscale.errors import InvalidFileError, NotFoundError, UsageError
    from hpcscale.settings import config_dir
    from hpcscale.textfile import read_text

    try:
        day = dt.date.fromisoformat(as_of) if as_of else None
    except ValueError as exc:
        raise UsageError(str(exc), where="--as-of", hint="--as-of 2026-11-01") from exc
    source = f"{kind}: {Path(file).name}"
    try:
        offers = offers_of(read_text(Path(file)), kind, source=source, as_of=day, provider=provider)
    except (NotFoundError, InvalidFileError) as exc:
        exc.hint = exc.hint or f"--format {kind} reads {FILES[kind]}"
        raise
    there = sorted({offer.region for offer in offers})
    if regions:
        offers = [offer for offer in offers if offer.region in regions]
    if not offers:
        raise NotFoundError(
            f"no offer in {', '.join(regions)}", where=file, hint=f"its regions: {', '.join(there)}"
        )
    offers = [_leaving(offer, egress) for offer in offers]
    target = Path(output) if output else config_dir() / "catalog" / f"{kind}-{provider}.toml"
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(to_toml(offers), encoding="utf-8")
    unknown = sum(offer.on_demand_usd is None for offer in offers)
    if as_json:
        emit_json({"file": str(target), "offers": len(offers), "unknown_prices": unknown})
        return
    click.echo(f"{len(offers)} offers, {unknown} of them without a price, to {target}")


def _leaving(offer: "Offer", egress: str | None) -> "Offer":
    """The row with what a GB out of its region costs."""
    from decimal import Decimal, InvalidOperation

    import msgspec

    from hpcscale.errors import UsageError

    if egress is None:
        return offer
    if egress == "free":
        return msgspec.structs.replace(offer, egress_free=True)
    try:
        price = Decimal(egress)
    except InvalidOperation:
        price = Decimal(0)
    if not price.is_finite() or price <= 0:
        raise UsageError(
            f"{egress!r} is no price", where="--egress-usd-per-gb", hint="dollars, such as 0.09, "
            "or free"
        )  # fmt: skip
    return msgspec.structs.replace(offer, egress_usd_per_gb=price)


def _today(text: str | None) -> "dt.date":
    import datetime as dt

    from hpcscale.errors import UsageError

    if text is None:
        return dt.datetime.now(dt.UTC).date()
    try:
        return dt.date.fromisoformat(text)
    except ValueError as exc:
        raise UsageError(str(exc), where="--today") from exc


def _row(offer: "Offer", today: "dt.date") -> dict[str, Any]:
    from hpcscale.burst.catalog import Offer, staleness

    data: dict[str, Any] = {key: getattr(offer, key) for key in Offer.__struct_fields__}
    data["gpu_hour_usd"] = offer.gpu_hour_usd
    data["stale"] = staleness(offer, today)
    return data
