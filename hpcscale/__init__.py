"""hpcscale: batch orchestration on Slurm, on-prem with bursting to the cloud.

Public names are loaded on first use, so that ``import hpcscale`` costs next to nothing.
"""

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from hpcscale.executor import HpcscaleExecutor as Executor
    from hpcscale.site import Site
    from hpcscale.spec import JobSpec

__all__ = ["Executor", "JobSpec", "Site", "__version__"]

_LAZY = {
    "Executor": ("hpcscale.executor", "HpcscaleExecutor"),
    "JobSpec": ("hpcscale.spec", "JobSpec"),
    "Site": ("hpcscale.site", "Site"),
}


def __getattr__(name: str) -> Any:
    """Load a public name on first use (PEP 562)."""
    if name not in _LAZY:
        raise AttributeError(f"module 'hpcscale' has no attribute {name!r}")
    from importlib import import_module

    module, attribute = _LAZY[name]
    return getattr(import_module(module), attribute)
