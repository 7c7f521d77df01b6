"""Where to run: a ``Site`` is a TOML profile, merged from layers; every value knows its origin.

Layers, weakest first: bundled ``site-configs/NAME.toml`` < ``/etc/hpcscale/sites/NAME.toml`` <
``~/.config/hpcscale/sites/NAME.toml`` (or ``$HPCSCALE_CONFIG_DIR/sites``) <
``HPCSCALE_SITE__<NAME>__<KEY>__<SUBKEY>=value`` < flags (``key.subkey=value``).
Tables merge key by key; a list replaces a list. A project's ``hpcscale.toml`` is no layer here:
a cloned repository must not redirect anyone.
"""

import datetime as dt
import difflib
import enum
import os
import re
import tomllib
from collections.abc import Iterable, Mapping
from decimal import Decimal
from pathlib import Path
from typing import Any

import msgspec

from hpcscale.assets import bundled_dir
from hpcscale.errors import InvalidFileError, NotFoundError


class _Frozen(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    pass


class TransportKind(enum.StrEnum):
    """How commands reach the site."""

    LOCAL = "local"
    SSH = "ssh"  # paramiko
    OPENSSH = "openssh"  # the user's ssh(1), its config and ControlMaster


class TransportConfig(_Frozen, frozen=True, kw_only=True):
    """How to reach the site's login node.

    Attributes:
        known_hosts: file that pins the host key; default ``~/.ssh/known_hosts``.
        slurm_conf: value of ``SLURM_CONF`` for every Slurm command there.
        slurm_bin: directory of the Slurm commands when they are not on PATH.
    """

    kind: TransportKind = TransportKind.LOCAL
    host: str | None = None
    port: int = 22
    user: str | None = None
    identity_file: str | None = None
    known_hosts: str | None = None
    slurm_conf: str | None = None
    slurm_bin: str | None = None
    connect_timeout_s: float = 10.0


class Partition(_Frozen, frozen=True, kw_only=True):
    """What the profile knows of a partition; the live controller's word wins in ``site check``.

    Attributes:
        max_time: Slurm duration; None is unlimited or unknown.
        gpu_hour_usd: price of a GPU-hour here when it differs from the site's.
    """

    nodes: int | None = None
    gpus_per_node: int | None = None
    gpu_type: str | None = None
    cpus_per_node: int | None = None
    mem_gb_per_node: float | None = None
    max_time: str | None = None
    default: bool = False
    preemptible: bool = False
    gpu_hour_usd: Decimal | None = None
    note: str | None = None


class Evidence(enum.StrEnum):
    """How a fabric variable is known."""

    RUN = "run"
    DOCUMENTED = "documented, not run"


class FabricVariable(_Frozen, frozen=True, kw_only=True):
    """One environment variable of the fabric, with where it comes from.

    Attributes:
        source: URL, document or file that asks for it.
        as_of: the day the source was read.
        status: ``run`` or ``documented, not run``.
    """

    value: str
    source: str
    as_of: dt.date
    status: Evidence
    note: str | None = None


class Fabric(_Frozen, frozen=True, kw_only=True):
    """The network between nodes.

    Attributes:
        kind: ``infiniband``, ``efa``, ``ethernet`` or ``loopback``.
        env: what the renderer exports; nothing else is.
        forbidden: variable -> why it must not be set here (lint reports it).
    """

    kind: str
    env: dict[str, FabricVariable] = msgspec.field(default_factory=dict)
    forbidden: dict[str, str] = msgspec.field(default_factory=dict)
    note: str | None = None


class ContainerRuntime(enum.StrEnum):
    """What starts a container in a job step."""

    NONE = "none"
    PYXIS = "pyxis"
    APPTAINER = "apptainer"


class Container(_Frozen, frozen=True, kw_only=True):
    """The site's container runtime and what a container needs of the host."""

    runtime: ContainerRuntime = ContainerRuntime.NONE
    mounts: tuple[str, ...] = ()


class Price(_Frozen, frozen=True, kw_only=True):
    """What a GPU-hour costs, on-prem too. A price of 0 means unknown.

    Attributes:
        gpu_hour_usd: dollars for one GPU for one hour.
    """

    gpu_hour_usd: Decimal
    source: str
    as_of: dt.date


class DataRules(_Frozen, frozen=True, kw_only=True):
    """Where data would be, and what the site may hold."""

    regions: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()


class BurstTarget(_Frozen, frozen=True, kw_only=True):
    """What to expect of nodes that must first boot.

    Attributes:
        target: whether jobs may be moved here.
        boot_allowance_s: billed and waited for in estimates (p95 of a boot).
        boot_timeout_s: without a start by then the move is undone.
        staging_s: allowance for copying code and inputs.
    """

    target: bool = False
    boot_allowance_s: int = 0
    boot_timeout_s: int = 1800
    staging_s: int = 60


class Software(_Frozen, frozen=True, kw_only=True):
    """A named environment, as this site provides it; the parts are applied in this order."""

    modules: tuple[str, ...] = ()
    venv: str | None = None
    conda: str | None = None
    image: str | None = None
    note: str | None = None


class Launch(_Frozen, frozen=True, kw_only=True):
    """Options that the site's nodes want on every srun line."""

    srun_args: tuple[str, ...] = ("--kill-on-bad-exit=1", "--wait=60")
    cpus_per_gpu: int | None = None


class Site(_Frozen, frozen=True, kw_only=True):
    """One place where jobs run.

    Attributes:
        as_of: the day the profile was last checked.
        state_dir: directory on the site, seen by its login node and all its nodes, where scripts,
            logs, staged files and claims live; ``~`` and ``$USER`` are expanded there.
        shared_dirs: directories that this machine and the site's nodes see at the same path (a
            local site's shared file system): code, inputs and outputs below them are used in
            place, all others are copied to and from the site.
        keep_env: variables that ``--export`` lets through in spite of NONE.
        env: exported in every job.
        directives: extra ``#SBATCH`` options for every job, such as ``constraint = "gpu"``.
    """

    name: str
    title: str = ""
    as_of: dt.date
    state_dir: str = "~/.local/state/hpcscale/site"
    transport: TransportConfig = TransportConfig()
    shared_dirs: tuple[str, ...] = ()
    default_partition: str | None = None
    account: str | None = None
    qos: str | None = None
    partitions: dict[str, Partition] = msgspec.field(default_factory=dict)
    gpus_per_node: int | None = None
    gpu_type: str | None = None
    fabric: Fabric
    container: Container = Container()
    launch: Launch = Launch()
    price: Price | None = None
    data: DataRules = DataRules()
    burst: BurstTarget = BurstTarget()
    software: dict[str, Software] = msgspec.field(default_factory=dict)
    env: dict[str, str] = msgspec.field(default_factory=dict)
    keep_env: tuple[str, ...] = ()
    directives: dict[str, str] = msgspec.field(default_factory=dict)
    note: str | None = None

    def gpu_hour_usd(self, partition: str | None = None) -> Decimal | None:
        """Dollars for a GPU-hour; None when unknown (a price of 0 is unknown)."""
        known = self.partitions.get(partition or "")
        price = known.gpu_hour_usd if known else None
        if price is None and self.price is not None:
            price = self.price.gpu_hour_usd
        return price or None

    def partition_gpus_per_node(self, partition: str | None) -> int | None:
        """GPUs on a node of this partition, by the profile; None when unknown."""
        known = self.partitions.get(partition or self.default_partition or "")
        if known is not None and known.gpus_per_node is not None:
            return known.gpus_per_node
        return self.gpus_per_node


class LoadedSite(_Frozen, frozen=True, kw_only=True):
    """A site and, for each dotted key, the layer that set it."""

    site: Site
    origins: dict[str, str]


def config_dir() -> Path:
    """The user's configuration: ``$HPCSCALE_CONFIG_DIR``, else ``$XDG_CONFIG_HOME/hpcscale``."""
    if own := os.environ.get("HPCSCALE_CONFIG_DIR"):
        return Path(own)
    base = os.environ.get("XDG_CONFIG_HOME") or "~/.config"
    return Path(base).expanduser() / "hpcscale"


def etc_dir() -> Path:
    """The machine's configuration."""
    return Path(os.environ.get("HPCSCALE_ETC_DIR") or "/etc/hpcscale")


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
        raise NotFoundError(
            f"no site is named {name!r}; known: {', '.join(names) or 'none'}",
            hint=f"--site {close[0]}" if close else "hpcscale site list",
        )
    merged: dict[str, Any] = {}
    origins: dict[str, str] = {}
    for directory in site_dirs():
        path = directory / f"{name}.toml"
        if path.is_file():
            _merge(merged, read_toml(path), str(path), origins)
    prefix = "HPCSCALE_SITE__" + re.sub(r"[^A-Z0-9]", "_", name.upper()) + "__"
    for variable, value in sorted(os.environ.items()):
        if variable.startswith(prefix):
            keys = variable[len(prefix) :].lower().split("__")
            _merge(merged, _nest(keys, _scalar(value)), f"${variable}", origins)
    for override in overrides:
        key, equals, value = override.partition("=")
        if not equals:
            raise InvalidFileError(
                f"{override!r} sets nothing", hint="write it as key.subkey=value"
            )
        _merge(merged, _nest(key.split("."), _scalar(value)), "flag", origins)
    merged.setdefault("name", name)
    return LoadedSite(site=_convert(merged, origins, name), origins=origins)


def read_toml(path: Path) -> dict[str, Any]:
    """Read a TOML file; its floats come as Decimal, exact.

    Raises:
        InvalidFileError: unreadable, or no TOML (the place is in ``where``).
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"), parse_float=Decimal)
    except tomllib.TOMLDecodeError as exc:
        line = re.search(r"at line (\d+)", str(exc))
        raise InvalidFileError(
            f"not valid TOML: {exc}", where=f"{path}:{line[1]}" if line else str(path)
        ) from exc
    except UnicodeDecodeError as exc:
        raise InvalidFileError("not UTF-8 text", where=str(path)) from exc
    except OSError as exc:
        raise InvalidFileError(f"cannot be read: {exc.strerror}", where=str(path)) from exc


def convert_toml(data: Mapping[str, Any], type_: Any, where: str) -> Any:
    """Typed struct from TOML data, with a message that names file, key and the likely spelling.

    Raises:
        InvalidFileError: a key is unknown, missing or of a wrong type.
    """
    try:
        return msgspec.convert(data, type_, strict=True)
    except msgspec.ValidationError as exc:
        raise invalid_key(exc, type_, where) from exc


def invalid_key(exc: msgspec.ValidationError, type_: Any, where: str) -> InvalidFileError:
    """Translate msgspec's message: name the key as TOML spells it, and guess what was meant."""
    text, _, path = str(exc).partition(" - at `")
    key = path.rstrip("`").removeprefix("$").lstrip(".")
    hint = None
    if unknown := re.search(r"unknown field `([^`]+)`", text):
        bad = unknown[1]
        struct = _struct_at(type_, key)
        known = list(struct.__struct_fields__) if struct else []
        close = difflib.get_close_matches(bad, known, n=1)
        text = f"unknown key {bad!r}" + (f" in [{key}]" if key else "")
        hint = f"did you mean {close[0]!r}?" if close else f"known keys: {', '.join(known)}"
        return InvalidFileError(text, where=f"{where}: {bad}", hint=hint)
    if missing := re.search(r"missing required field `([^`]+)`", text):
        text = f"key {missing[1]!r} is missing" + (f" in [{key}]" if key else "")
        return InvalidFileError(text, where=where)
    return InvalidFileError(text, where=f"{where}: {key}" if key else where, hint=hint)


def _struct_at(type_: Any, key: str) -> Any:
    """The struct type at a dotted path below ``type_``; None when it cannot be followed."""
    import typing

    current: Any = type_
    for part in [p for p in re.split(r"[.\[]", key) if p]:
        current = _unwrap(current)
        if hasattr(current, "__struct_fields__"):
            current = typing.get_type_hints(current).get(part.rstrip("]"))
        elif typing.get_origin(current) is dict:
            current = typing.get_args(current)[1]
        else:
            return None
    current = _unwrap(current)
    return current if hasattr(current, "__struct_fields__") else None


def _unwrap(type_: Any) -> Any:
    import types
    import typing

    if typing.get_origin(type_) in {typing.Union, types.UnionType}:
        return next((a for a in typing.get_args(type_) if a is not type(None)), None)
    return type_


def _convert(merged: dict[str, Any], origins: dict[str, str], name: str) -> Site:
    try:
        site = msgspec.convert(merged, Site, strict=True)
    except msgspec.ValidationError as exc:
        text, _, path = str(exc).partition(" - at `")
        key = path.rstrip("`").removeprefix("$").lstrip(".")
        unknown = re.search(r"unknown field `([^`]+)`", text)
        dotted = ".".join(p for p in (key, unknown[1] if unknown else "") if p)
        place = next(
            (o for k, o in origins.items() if k == dotted or k.startswith(dotted + ".")), ""
        )
        raise invalid_key(exc, Site, place or f"site {name}") from exc
    if site.name != name:
        raise InvalidFileError(
            f"the file is {name}.toml but says name = {site.name!r}", where=origins["name"]
        )
    if site.transport.kind is not TransportKind.LOCAL and not site.transport.host:
        raise InvalidFileError(
            "key 'host' is missing in [transport]", where=origins.get("transport.kind", name)
        )
    return site


def _merge(
    into: dict[str, Any], new: Mapping[str, Any], origin: str, origins: dict[str, str], at: str = ""
) -> None:
    for key, value in new.items():
        dotted = f"{at}.{key}" if at else key
        if isinstance(value, Mapping):
            below = into.setdefault(key, {})
            if not isinstance(below, dict):
                into[key] = below = {}
            _merge(below, value, origin, origins, dotted)
        else:
            into[key] = value
            for stale in [k for k in origins if k.startswith(dotted + ".")]:
                del origins[stale]
            origins[dotted] = origin


def _nest(keys: list[str], value: Any) -> dict[str, Any]:
    for key in reversed(keys):
        value = {key: value}
    return value  # type: ignore[no-any-return]  # the loop ran at least once: it is a dict


def _scalar(text: str) -> Any:
    """A value from a variable or a flag: TOML's own reading where it has one, else the text."""
    try:
        return tomllib.loads(f"v = {text}", parse_float=Decimal)["v"]
    except tomllib.TOMLDecodeError:
        return text
