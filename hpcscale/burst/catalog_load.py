"""The catalog's files: bundled, the machine's, the user's; a later row of the same name wins."""

from collections.abc import Iterable
from pathlib import Path

from hpcscale.assets import bundled_dir
from hpcscale.burst.catalog import Offer, offers_from
from hpcscale.settings import config_dir, etc_dir
from hpcscale.site import Site
from hpcscale.tomlfile import read_toml


def catalog_dirs() -> list[Path]:
    """Directories of catalog files, weakest first."""
    return [
        bundled_dir("site-configs") / "catalog",
        etc_dir() / "catalog",
        config_dir() / "catalog",
    ]


def load_catalog() -> dict[str, tuple[Offer, Path]]:
    """Every offer by its name, with the file that it came from.

    Raises:
        InvalidFileError: a file is wrong.
    """
    found: dict[str, tuple[Offer, Path]] = {}
    for directory in catalog_dirs():
        for path in sorted(directory.glob("*.toml")) if directory.is_dir() else []:
            for offer in offers_from(read_toml(path), str(path)):
                found[offer.name] = (offer, path)
    return dict(sorted(found.items()))


def rows_for(sites: Iterable[Site]) -> dict[str, Offer]:
    """Rows by name, where a partition of these sites names any; else no file is read.

    Raises:
        InvalidFileError: a file is wrong.
    """
    if not any(part.offer for site in sites for part in site.partitions.values()):
        return {}
    return {name: offer for name, (offer, _) in load_catalog().items()}
