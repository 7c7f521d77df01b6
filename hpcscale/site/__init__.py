"""Where to run: a ``Site`` is a TOML profile, merged from layers; every value knows its origin.

Layers, weakest first: bundled ``site-configs/NAME.toml`` < ``/etc/hpcscale/sites/NAME.toml`` <
``~/.config/hpcscale/sites/NAME.toml`` (or ``$HPCSCALE_CONFIG_DIR/sites``) <
``HPCSCALE_SITE__<NAME>__<KEY>__<SUBKEY>=value`` < flags (``key.subkey=value``).
Tables merge key by key; a list replaces a list. A project's ``hpcscale.toml`` is no layer here:
a cloned repository must not redirect anyone.
"""

from hpcscale.settings import config_dir, etc_dir
from hpcscale.site.load import (
    LAB_SITES,
    LoadedSite,
    load_site,
    load_target,
    require_host,
    site_dirs,
    site_names,
    split_target,
    user_file,
)
from hpcscale.site.profile import (
    BurstTarget,
    Container,
    ContainerRuntime,
    DataRules,
    Evidence,
    Fabric,
    FabricVariable,
    Launch,
    Partition,
    Price,
    Site,
    Software,
    TransportConfig,
    TransportKind,
)
from hpcscale.tomlfile import convert_toml, read_toml

__all__ = [
    "LAB_SITES",
    "BurstTarget",
    "Container",
    "ContainerRuntime",
    "DataRules",
    "Evidence",
    "Fabric",
    "FabricVariable",
    "Launch",
    "LoadedSite",
    "Partition",
    "Price",
    "Site",
    "Software",
    "TransportConfig",
    "TransportKind",
    "config_dir",
    "convert_toml",
    "etc_dir",
    "load_site",
    "load_target",
    "read_toml",
    "require_host",
    "site_dirs",
    "site_names",
    "split_target",
    "user_file",
]
