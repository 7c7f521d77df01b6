"""Where workload traces are: outside the checkout, named by HPCSCALE_TRACES or beside it."""

import os
from pathlib import Path


def trace(name: str) -> Path:
    """The file; a test marked ``traces`` fails without it."""
    beside = Path(__file__).resolve().parents[2] / "shared" / "traces"
    return Path(os.environ.get("HPCSCALE_TRACES") or beside) / name
