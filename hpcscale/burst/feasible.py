"""Whether a deadline can be met at all, at the moment when a job is submitted. Pure."""

import datetime as dt
from collections.abc import Sequence

from hpcscale.burst.words import show_s, show_time
from hpcscale.errors import BurstRefusedError


def deadline_note(
    deadline: dt.datetime,
    now: dt.datetime,
    limit_s: int | None,
    cloud_s: Sequence[tuple[str, int]],
    *,
    here: bool,
    margin_s: int = 0,
    why_not: str = "",
) -> str | None:
    """What there is to know of a deadline that can be met; None: nothing.

    Args:
        deadline: when results are wanted.
        now: aware.
        limit_s: the job's time limit, the bound of its runtime; None: no bound, no promise.
        cloud_s: sites that it may burst to, with seconds of boot (its 95th percentile) and staging.
        here: whether it may also run where it is submitted.
        margin_s: that the policy is early by: what decisions lose between two runs of it.
        why_not: why it cannot move now, where not the time is what is short.

    Raises:
        BurstRefusedError: not even by starting at once; with the earliest possible time.
    """
    if limit_s is None:
        return "its deadline cannot be promised: it has no time limit (--time)"
    starts = [(now, "starting here at once")] if here else []
    starts += [
        (now + dt.timedelta(seconds=delay), f"{name}, {show_s(delay)} of boot and staging first")
        for name, delay in cloud_s
    ]
    if not starts:
        return None
    limit = dt.timedelta(seconds=limit_s)
    first, how = min(starts)
    if first + limit > deadline:
        raise BurstRefusedError(
            f"its deadline {show_time(deadline)} cannot be met: with its time limit of "
            f"{show_s(limit_s)} the earliest possible is {show_time(first + limit)} ({how})",
            hint=f"--deadline {(first + limit + dt.timedelta(minutes=1)):%Y-%m-%dT%H:%MZ}, "
            "or a shorter --time",
        )
    soon = [start for start, _ in starts[1 if here else 0 :] if start + limit <= deadline]
    if not soon:
        why_not = why_not or "no cloud site is fast enough"
        return (
            f"its deadline {show_time(deadline)} is met only if it starts here at once or runs "
            f"shorter than its limit: {why_not}"
        )
    last = deadline - limit - (min(soon) - now)
    safe = last - dt.timedelta(seconds=margin_s)
    if safe < now:
        return (
            f"its deadline {show_time(deadline)} needs a move that begins by {show_time(last)}: "
            f"less than {show_s(margin_s)} from now, the time between decisions, so it is not sure"
        )
    return f"its deadline can be kept by a move until {show_time(safe)}"
