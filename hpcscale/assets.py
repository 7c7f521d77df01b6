"""The only room that knows where ``templates/`` and ``site-configs/`` live.

In a wheel they are below ``hpcscale/_data``; in a checkout (editable install) they stand beside
the package.
"""

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent


def bundled_dir(kind: str) -> Path:
    """Directory of the bundled ``templates`` or ``site-configs``.

    Args:
        kind: ``templates`` or ``site-configs``.
    """
    packaged = _PACKAGE / "_data" / kind
    return packaged if packaged.is_dir() else _PACKAGE.parent / kind
