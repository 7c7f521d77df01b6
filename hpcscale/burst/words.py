"""Money and time for a sentence. Pure."""

import datetime as dt
from decimal import Decimal


def usd(amount: Decimal) -> str:
    """``$12.34``; four digits below a cent, so that a lab's prices do not all read $0.00."""
    return f"${amount:,.2f}" if amount >= Decimal("0.01") or not amount else f"${amount:.4f}"


def show_s(seconds: float) -> str:
    """Seconds for a sentence: ``45s``, ``12m``, ``2h05m``, ``3d04h``."""
    total = max(0, round(seconds))
    if total < 120:
        return f"{total}s"
    minutes, rest = divmod(total, 60)
    if minutes < 60:
        return f"{minutes}m{rest:02}s" if rest else f"{minutes}m"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours}h{minutes:02}m"
    days, hours = divmod(hours, 24)
    return f"{days}d{hours:02}h"


def show_time(when: dt.datetime) -> str:
    """A moment for a sentence, in UTC."""
    return when.astimezone(dt.UTC).strftime("%Y-%m-%d %H:%M:%SZ")
