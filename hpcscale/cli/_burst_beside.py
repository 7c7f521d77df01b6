"""What `burst explain` says beside the decision: changes that cost nothing, and what stays here."""

from typing import TYPE_CHECKING

from hpcscale.cli._spans import when

if TYPE_CHECKING:
    from decimal import Decimal

    from hpcscale.connect import Connection
    from hpcscale.ledger import Attempt
    from hpcscale.outlook.answer import Lever
    from hpcscale.site import Site
    from hpcscale.spec import JobSpec


def free_levers(connection: "Connection", attempt: "Attempt") -> "tuple[Lever, ...]":
    """Changes that start a waiting job sooner where it is; none where nothing is forecast."""
    import math

    from hpcscale.errors import HpcscaleError
    from hpcscale.outlook.answer import forecast_job

    if attempt.job_id is None:
        return ()
    try:
        found = forecast_job(connection, str(attempt.job_id.base)).levers
    except HpcscaleError:
        return ()  # the decision stands without them
    return tuple(lever for lever in found if math.isfinite(lever.start_s))


def lever_line(levers: "tuple[Lever, ...]", ref: str) -> str:
    """The best of them in one line; empty: there is none."""
    if not levers:
        return ""
    best = levers[0]
    return (
        f"free: --{best.change} {best.value} would start it here {when(best.start_s)} "
        f"({best.why}); hpcscale forecast {ref} --apply {best.change}"
    )


def cost_here(spec: "JobSpec", limit_s: int | None, site: "Site") -> "tuple[Decimal | None, str]":
    """Dollars that its whole limit costs where it waits, by the profile's price, and the sum."""
    import msgspec

    from hpcscale.cost import estimate

    resources = msgspec.structs.replace(spec.resources, time_limit_s=limit_s)
    found = estimate(msgspec.structs.replace(spec, resources=resources), site)
    return found.usd, found.why
