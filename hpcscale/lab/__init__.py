"""Real Slurm on one machine: an on-prem and a cloud site without a shared file system.

``Lab.up(directory, LabOptions(...))`` builds one, ``Lab.open(directory)`` finds it again.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hpcscale.lab.lab import Lab
    from hpcscale.lab.model import LabOptions

__all__ = ["Lab", "LabOptions"]

_LAZY = {"Lab": "hpcscale.lab.lab", "LabOptions": "hpcscale.lab.model"}


def __getattr__(name: str) -> Any:
    """Load a public name on first use (PEP 562)."""
    if name not in _LAZY:
        raise AttributeError(f"module 'hpcscale.lab' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_LAZY[name]), name)
