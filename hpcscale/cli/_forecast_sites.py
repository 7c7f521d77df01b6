"""A job's start at the other sites that can be reached, with the boots that it would wait for."""

import datetime as dt
from typing import TYPE_CHECKING

from hpcscale.cli._output import notice
from hpcscale.errors import HpcscaleError

if TYPE_CHECKING:
    from hpcscale.outlook.answer import Forecast
    from hpcscale.site import Site
    from hpcscale.spec import JobSpec

_WORTH_S = 60.0


def elsewhere(spec: "JobSpec", own: str) -> "list[Forecast]":
    """Forecasts at every other site that is configured; why one is left out goes to stderr.

    Args:
        spec: the job.
        own: the site that is not asked again.
    """
    from hpcscale.connect import connect
    from hpcscale.outlook.answer import forecast_spec
    from hpcscale.site import load_site, require_host

    found = []
    for name in _configured():
        if name == own:
            continue
        try:
            site = load_site(name).site
        except HpcscaleError as exc:
            notice(f"{name} is left out: {exc}")
            continue
        try:
            require_host(site)
        except HpcscaleError:
            continue  # no login node yet, or a lab that is not up: nothing to ask
        try:
            there, boot, notes = _as_found(spec, site)
            with connect(site) as connection:
                seen = forecast_spec(connection, there)
            found.append(_booted(seen, site, boot, notes))
        except HpcscaleError as exc:
            notice(f"{name} is left out: {exc}")
    return found


def _configured() -> list[str]:
    """Sites that somebody here has described: those that only come along are templates."""
    from hpcscale.site.load import site_dirs

    _bundled, *own = site_dirs()
    return sorted(
        {file.stem for folder in own if folder.is_dir() for file in folder.glob("*.toml")}
    )


def sooner(own: "Forecast", others: "list[Forecast]") -> list[str]:
    """Lines on the other sites that would start it sooner than its own, the soonest first."""
    from hpcscale.cli._spans import span, when

    lines = []
    known = [other for other in others if other.p50_s is not None]
    for other in sorted(known, key=lambda other: other.p50_s or 0.0):
        assert other.p50_s is not None
        gain = None if own.p50_s is None else own.p50_s - other.p50_s
        if gain is not None and gain < _WORTH_S:
            continue
        words = "" if gain is None else f", {span(gain)} sooner"
        lines.append(f"sooner: at {other.site} it would start {when(other.p50_s)}{words}")
    return lines


def _as_found(
    spec: "JobSpec", site: "Site"
) -> "tuple[JobSpec, tuple[float, float] | None, list[str]]":
    """The job as that site would get it, boots (p50, p95) where nodes boot, and what hinders it."""
    from msgspec.structs import replace

    from hpcscale.burst.catalog_load import rows_for
    from hpcscale.burst.shapes import shapes
    from hpcscale.render import burst_blockers

    # partitions, accounts and reservations have other names there
    directives = {key: value for key, value in spec.directives.items() if key != "reservation"}
    there = replace(
        spec, site=site.name, partition=None, account=None, qos=None, directives=directives
    )
    notes = []
    if spec.command or spec.script is not None or spec.function is not None:
        notes = [f"it cannot go there as it is: {why}" for why in burst_blockers(there, site)]
    if not site.burst.target:
        return there, None, notes
    found, small = shapes(there, site, rows_for([site]), dt.datetime.now(dt.UTC).date())
    notes += small
    if not found:
        allowance = float(site.burst.boot_allowance_s)
        return there, (allowance, allowance), notes
    best = found[0]
    half = best.offer.boot_p50_s if best.offer is not None else None
    boot = (float(best.boot_s if half is None else half), float(best.boot_s))
    return replace(there, partition=best.partition), boot, notes


def _booted(
    seen: "Forecast", site: "Site", boot: tuple[float, float] | None, notes: list[str]
) -> "Forecast":
    """The forecast with the copying and the boots that come before the start."""
    from msgspec.structs import replace

    if boot is None:
        return replace(seen, notes=(*seen.notes, *notes))
    staging = float(site.burst.staging_s)
    middle, late = boot
    return replace(
        seen,
        p50_s=None if seen.p50_s is None else seen.p50_s + staging + middle,
        p90_s=None if seen.p90_s is None else seen.p90_s + staging + late,
        staging_s=staging, boot_p50_s=middle, boot_p95_s=late,
        notes=(*seen.notes, *notes),
    )  # fmt: skip
