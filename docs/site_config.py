"""Writes docs/reference/site-config.md from the types: run it after changing ``hpcscale.site``.

``python docs/site_config.py`` writes the page; ``tests/unit/test_site_reference.py`` fails while
the page and the types differ.
"""

import enum
import inspect
import re
import types
import typing
from pathlib import Path
from typing import Any

import msgspec

from hpcscale.burst.catalog import Offer
from hpcscale.site import Site

PAGE = Path(__file__).resolve().parent / "reference" / "site-config.md"

INTRODUCTION = """\
# Site profiles: the keys of `site-configs/NAME.toml`

This page is generated from `hpcscale/site/profile.py` by `docs/site_config.py`; its last table, the
keys of `[[offer]]` in catalog files, from `hpcscale/burst/catalog.py`.

A profile is merged from layers, weakest first; tables merge key by key, a list replaces a list:

1. the bundled `site-configs/NAME.toml`
2. `/etc/hpcscale/sites/NAME.toml`
3. `~/.config/hpcscale/sites/NAME.toml`
4. variables `HPCSCALE_SITE__NAME__KEY__SUBKEY=value` (capitals; dashes become `_`)
5. `--set key.subkey=value`

`hpcscale site show NAME --origin` tells for each key which layer set it, with file and line. A
project's `./hpcscale.toml` sets none of these keys.

A fabric variable may be written `NAME = "value"` below `[fabric.env]` in the user's own layers; its
source is that layer then.
"""


def render() -> str:
    """The whole page."""
    sections: list[str] = []
    _section(Site, "", sections)
    _section(Offer, "[offer]", sections)
    return INTRODUCTION + "\n" + "\n".join(sections)


def _section(struct: Any, at: str, sections: list[str]) -> None:
    """One table of the file, then the tables below it."""
    hints = typing.get_type_hints(struct)
    said = _attributes(struct)
    lines = [f"## `[{at}]`" if at else "## Top level", "", _summary(struct), ""]
    lines += ["| key | type | default | meaning |", "|---|---|---|---|"]
    below: list[tuple[Any, str]] = []
    for field in msgspec.structs.fields(struct):
        type_ = _bare(hints[field.name])
        here = f"{at}.{field.name}" if at else field.name
        if hasattr(type_, "__struct_fields__"):
            below.append((type_, here))
            continue
        arguments = typing.get_args(type_)
        if typing.get_origin(type_) is dict and hasattr(arguments[1], "__struct_fields__"):
            below.append((arguments[1], f"{here}.NAME"))
            continue
        meaning = said[field.name]
        lines.append(f"| `{field.name}` | {_type(type_)} | {_default(field)} | {meaning} |")
    sections.append("\n".join(lines) + "\n")
    for type_, here in below:
        _section(type_, here, sections)


def _summary(struct: Any) -> str:
    """The docstring before its ``Attributes:``, in Markdown."""
    text = inspect.cleandoc(struct.__doc__ or "").partition("Attributes:")[0]
    return " ".join(text.split()).replace("``", "`")


def _attributes(struct: Any) -> dict[str, str]:
    """What the docstring says of each key."""
    text = inspect.cleandoc(struct.__doc__ or "").partition("Attributes:")[2]
    found: dict[str, str] = {}
    name = ""
    for line in text.splitlines():
        if start := re.match(r" {4}(\w+): (.*)", line):
            name = start[1]
            found[name] = start[2]
        elif name and line.strip():
            found[name] += " " + line.strip()
    return {key: value.replace("``", "`").replace("|", "\\|") for key, value in found.items()}


def _bare(type_: Any) -> Any:
    if typing.get_origin(type_) in {typing.Union, types.UnionType}:
        return next(a for a in typing.get_args(type_) if a is not type(None))
    return type_


_NAMES = {
    "str": "text",
    "int": "whole number",
    "float": "number",
    "bool": "true or false",
    "Decimal": "number",
    "date": "date",
}


def _type(type_: Any) -> str:
    origin, arguments = typing.get_origin(type_), typing.get_args(type_)
    if origin is tuple:
        return f"list of {_type(arguments[0])}"
    if origin is dict:
        return f"table: name = {_type(arguments[1])}"
    if isinstance(type_, type) and issubclass(type_, enum.Enum):
        return ", ".join(f"`{member.value}`" for member in type_)
    return _NAMES[type_.__name__]


def _default(field: Any) -> str:
    if field.required:
        return "required"
    value = field.default
    if value is msgspec.NODEFAULT or value in (None, ()):
        return "-"
    if isinstance(value, enum.Enum):
        value = value.value
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, tuple):
        return ", ".join(f"`{item}`" for item in value)
    return f"`{value}`" if value != "" else "-"


if __name__ == "__main__":
    PAGE.write_text(render(), encoding="utf-8")
    print(f"wrote {PAGE}")
