"""Optional packages: present, or an error that says what to type."""

from importlib.util import find_spec

from hpcscale.errors import HpcscaleError

# extra of pyproject.toml -> the modules that it brings and that code here imports
EXTRAS: dict[str, tuple[str, ...]] = {
    "forecast": ("numpy",),
    "bound": ("numpy", "highspy"),
    "s3": ("fsspec", "s3fs"),
    "objects": ("fsspec",),
}


class MissingExtraError(HpcscaleError):
    """A package of an optional extra is not installed."""


def require(extra: str, purpose: str) -> None:
    """Say what is missing before an import fails half-way.

    Args:
        extra: a key of ``EXTRAS``.
        purpose: what needs it, for the message.

    Raises:
        MissingExtraError: with the pip line.
    """
    missing = [name for name in EXTRAS[extra] if find_spec(name) is None]
    if missing:
        raise MissingExtraError(
            f"{purpose} needs {', '.join(missing)}, which is not installed",
            hint=f"pip install 'hpcscale[{extra}]'",
        )
