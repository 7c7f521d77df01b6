"""A site's profile from its layers, checked; every value knows its origin."""

import difflib
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from hpcscale.assets import bundled_dir
from hpcscale.errors import InvalidFileError, NotFoundError, UnreachableError
from hpcscale.settings import config_dir, default_site, etc_dir
from hpcscale.site.profile import Evidence, Site, TransportKind
from hpcscale.tomlfile import (
    bad_key,
    invalid_key,
    merge_layer,
    origin_of,
    read_toml,
    scalar,
    spelled_as,
    with_line,
)
from hpcscale.units import parse_duration_s


class LoadedSite(msgspec.Struct, frozen=True, kw_only=True):
    """A site and, for each dotted key, the layer that set it (a file, ``$VARIABLE`` or flag)."""

    site: Site
    origins: dict[str, str]

    def origin(self, key: str) -> str:
        """Who set a key: ``file:line``, ``$VARIABLE``, ``--set KEY``, or ``default``."""
        layer = self.origins.get(key)
        return with_line(layer, key) if layer else "default"


def site_dirs() -> list[Path]:
    """Directories of site profiles, weakest first."""
    return [bundled_dir("site-configs"), etc_dir() / "sites", config_dir() / "sites"]


def site_names() -> list[str]:
    """Names of all sites that some layer describes."""
    return sorted({f.stem for d in site_dirs() if d.is_dir() for f in d.glob("*.toml")})


def load_site(name: str, overrides: Iterable[str] = ()) -> LoadedSite:
    """Merge a site's layers and check the result.

    Args:
        name: the site's name, ``[a-z0-9-]+``.
        overrides: flag layer, ``key.subkey=value``.

    Raises:
        NotFoundError: no layer describes it.
        InvalidFileError: a layer is no TOML, or a key is unknown, missing or of a wrong type.
    """
    if name not in (names := site_names()):
        close = difflib.get_close_matches(name, names, n=1)
        chosen = default_site()
        raise NotFoundError(
            f"no site is named {name!r}; known: {', '.join(names) or 'none'}",
            where=_default_where(chosen[1]) if chosen and chosen[0] == name else None,
            hint=f"--site {close[0]}" if close else "hpcscale site list",
        )
    merged: dict[str, Any] = {}
    origins: dict[str, str] = {}
    for directory in site_dirs():
        path = directory / f"{name}.toml"
        if path.exists():  # a directory of that name is an error, not a missing layer
            merge_layer(
                merged, _expand_variables(read_toml(path), str(path), origins), str(path), origins
            )
    prefix = _VARIABLE + _in_variable(name) + "__"
    for variable, value in sorted(os.environ.items()):
        if variable.startswith(_VARIABLE):
            _require_known(variable, names)
        if variable.startswith(prefix):
            keys = spelled_as(merged, variable[len(prefix) :].split("__"))
            _merge_one(merged, keys, value, f"${variable}", origins)
    for override in overrides:
        key, equals, value = override.partition("=")
        if not equals or not all(key.split(".")):
            raise InvalidFileError(
                f"{override!r} sets nothing",
                where="--set",
                hint="write it as --set key.subkey=value",
            )
        _merge_one(merged, key.split("."), value, f"--set {key}", origins)
    merged.setdefault("name", name)
    return LoadedSite(site=_convert(merged, origins, name), origins=origins)


_VARIABLE = "HPCSCALE_SITE__"


def _in_variable(name: str) -> str:
    return re.sub(r"[^A-Z0-9]", "_", name.upper())


def _require_known(variable: str, names: Iterable[str]) -> None:
    """A variable for a site that does not exist would be silently without effect."""
    named, _, key = variable.removeprefix(_VARIABLE).partition("__")
    known = {_in_variable(name): name for name in names}
    if named in known and key:
        return
    close = difflib.get_close_matches(named, known, n=1)
    raise InvalidFileError(
        f"it names no site: {named!r}" if key else "it names no key of a site",
        where=f"${variable}",
        hint=f"{_VARIABLE}{close[0] if close else 'NAME'}__KEY=value, or unset {variable}",
    )


def _default_where(origin: str) -> str:
    return origin if origin.startswith("$") else with_line(origin, "default_site")


def user_file(name: str) -> Path:
    """The file in which this user sets a site's keys; it need not exist."""
    return config_dir() / "sites" / f"{name}.toml"


LAB_SITES = ("lab-onprem", "lab-cloud")


def split_target(name: str) -> tuple[str, str | None]:
    """``SITE/PARTITION`` or ``SITE``: the site, and the partition or None."""
    site, slash, partition = name.partition("/")
    return site, partition if slash else None


def load_target(name: str) -> Site:
    """What jobs may be moved to: a site, or a partition of one as ``SITE/PARTITION``.

    Raises:
        NotFoundError: no such site, or no such partition in its profile.
        InvalidFileError: as ``load_site``.
    """
    site_name, partition = split_target(name)
    site = load_site(site_name).site
    if partition is None:
        return site
    if partition not in site.partitions:
        targets = [f"{site_name}/{name}" for name in site.burst_partitions]
        raise NotFoundError(
            f"the profile of {site_name} has no partition {partition!r}",
            hint=f"one of {', '.join(targets)}"
            if targets
            else f"[partitions.{partition}] with burst.target = true in {user_file(site_name)}",
        )
    return site.in_partition(partition)


def require_host(site: Site) -> None:
    """Refuse to connect to a profile that says not where yet. Rendering needs no such thing.

    Raises:
        UnreachableError: a lab's site, and no lab is running.
        InvalidFileError: no host, with the file and the lines to write.
    """
    if split_target(site.name)[0] in LAB_SITES and not site.transport.slurm_conf:
        raise UnreachableError(
            "no lab is running",
            where=f"site {site.name}",
            hint='hpcscale lab up, then eval "$(hpcscale lab env)"',
        )
    if site.transport.kind is TransportKind.LOCAL or site.transport.host:
        return
    raise InvalidFileError(
        f"site {site.name} has no login node yet: key 'host' is missing in [transport]",
        where=str(user_file(site.name)),
        hint='write into that file (create it):\n    [transport]\n    host = "LOGIN.NODE"\n'
        '    user = "YOU"\n  and then: hpcscale site check ' + site.name,
    )


def _convert(merged: dict[str, Any], origins: dict[str, str], name: str) -> Site:
    try:
        site = msgspec.convert(merged, Site, strict=True)
    except msgspec.ValidationError as exc:
        key = bad_key(exc, merged, Site)
        origin = origin_of(origins, key) or str(user_file(name))
        raise invalid_key(exc, Site, key, with_line(origin, key)) from exc
    if site.name != name:
        origin = origins["name"]
        raise InvalidFileError(
            f"the file is {name}.toml but says name = {site.name!r}",
            where=with_line(origin, "name"),
            hint=f"name = {name!r}, or rename the file",
        )
    _check_transport(site, origins)
    if site.default_partition and site.partitions and site.default_partition not in site.partitions:
        raise InvalidFileError(
            f"default_partition is {site.default_partition!r}, which is none of [partitions]: "
            + ", ".join(site.partitions),
            where=with_line(origins["default_partition"], "default_partition"),
            hint=f"add [partitions.{site.default_partition}], or name one of these",
        )
    for partition, known in site.partitions.items():
        if known.burst.target and known.fabric is None:
            key = f"partitions.{partition}.burst.target"
            raise InvalidFileError(
                f"jobs may be moved into partition {partition}, and its fabric is not told",
                where=with_line(origins[key], key),
                hint=f'[partitions.{partition}.fabric] with its kind, such as kind = "efa"',
            )
        try:
            parse_duration_s(known.max_time or "")
        except ValueError as exc:
            key = f"partitions.{partition}.max_time"
            raise InvalidFileError(str(exc), where=with_line(origins[key], key)) from exc
    return site


# These become words of ssh's and Slurm's command lines: none may pass for an option or hold what a
# ProxyCommand's shell would act on.
_SAFE_WORDS = {
    "host": r"[A-Za-z0-9_.\[:][A-Za-z0-9_.:%\[\]-]*",
    "user": r"[A-Za-z0-9_.][A-Za-z0-9_.@+-]*",
    "proxy_jump": r"[A-Za-z0-9_.\[][A-Za-z0-9_.,:/@+%\[\]-]*",
    "cluster": r"[A-Za-z0-9_][A-Za-z0-9_.-]*",
}


def _check_transport(site: Site, origins: dict[str, str]) -> None:
    for key, pattern in _SAFE_WORDS.items():
        value = getattr(site.transport, key)
        if value is not None and re.fullmatch(pattern, value) is None:
            origin = origins.get(f"transport.{key}", "")
            raise InvalidFileError(
                f"transport.{key} cannot be {value!r}",
                where=with_line(origin, f"transport.{key}") if origin else f"site {site.name}",
                hint="plain letters, digits and . _ - only, not starting with -",
            )


def _expand_variables(
    layer: dict[str, Any], origin: str, origins: Mapping[str, str]
) -> dict[str, Any]:
    """Fill in what a layer that changes a fabric variable's value leaves open.

    Its source, date and mark would otherwise still be those of the value that it replaced.
    """
    partitions = layer.get("partitions")
    if isinstance(partitions, dict):
        filled_in = {
            name: _expand_fabric(table, f"partitions.{name}.", origin, origins)
            if isinstance(table, dict)
            else table
            for name, table in partitions.items()
        }
        layer = layer | {"partitions": filled_in}
    return _expand_fabric(layer, "", origin, origins)


def _expand_fabric(
    layer: dict[str, Any], at: str, origin: str, origins: Mapping[str, str]
) -> dict[str, Any]:
    fabric = layer.get("fabric")
    variables = fabric.get("env") if isinstance(fabric, dict) else None
    if not isinstance(fabric, dict) or not isinstance(variables, dict):
        return layer
    filled: dict[str, Any] = {}
    for name, given in variables.items():
        short = {"value": given} if isinstance(given, str) else given
        replaces = f"{at}fabric.env.{name}.value" in origins or isinstance(given, str)
        if replaces and isinstance(short, dict) and "value" in short:
            own = {
                "source": origin,
                "as_of": None,
                "status": Evidence.DOCUMENTED.value,
                "example": False,
                "note": None,
            }
            filled[name] = own | short
        else:
            filled[name] = short
    return layer | {"fabric": fabric | {"env": filled}}


def _merge_one(
    into: dict[str, Any], keys: list[str], text: str, origin: str, origins: dict[str, str]
) -> None:
    """Merge one value from a variable or a flag."""
    layer: Any = scalar(Site, keys, text)
    for key in reversed(keys):
        layer = {key: layer}
    merge_layer(into, _expand_variables(layer, origin, origins), origin, origins)
