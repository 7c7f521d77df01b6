"""Where Hydra looks for plugins; it is all in ``hpcscale.hydra``."""

import hpcscale.hydra


class HpcscaleLauncher(hpcscale.hydra.HpcscaleLauncher):
    """Hydra makes instances only of classes that are defined in its own namespace."""
