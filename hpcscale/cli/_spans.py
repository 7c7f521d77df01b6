"""Lengths of time for people: ``12 min``, ``3.4 h``."""


def span(seconds: float | None) -> str:
    """``now``, ``12 min``, ``3.4 h``, ``2.1 d``; ``unknown``."""
    if seconds is None:
        return "unknown"
    if seconds < 60:
        return "now"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    if seconds < 172800:
        return f"{seconds / 3600:.1f} h"
    return f"{seconds / 86400:.1f} d"


def when(seconds: float) -> str:
    """``now``, ``in 12 min``."""
    text = span(seconds)
    return text if text == "now" else f"in {text}"


def short(seconds: float) -> str:
    """As ``span``, with seconds below two minutes."""
    return f"{seconds:.0f} s" if seconds < 120 else span(seconds)
