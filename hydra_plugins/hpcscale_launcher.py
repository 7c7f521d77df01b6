"""Where Hydra looks for plugins; it is all in ``hpcscale.hydra``."""

from hpcscale.hydra import HpcscaleLauncher

__all__ = ["HpcscaleLauncher"]
