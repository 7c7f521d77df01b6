"""TOML with messages that name the file, the line and the key. Used by every file a user writes."""

import difflib
import enum
import re
import tomllib
import types
import typing
from collections.abc import Iterable, Mapping
from decimal import Decimal
from pathlib import Path
from typing import Any

import msgspec

from hpcscale.errors import InvalidFileError
from hpcscale.textfile import read_text


def read_toml(path: Path) -> dict[str, Any]:
    """Read a TOML file; its floats come as Decimal, exact.

    Raises:
        NotFoundError: no such file.
        InvalidFileError: unreadable, or no TOML (the place is in ``where``).
    """
    try:
        # TOML forbids a lone CR, and takes CRLF for a line end
        return tomllib.loads(read_text(path), parse_float=Decimal)
    except tomllib.TOMLDecodeError as exc:
        line = re.search(r"at line (\d+)", str(exc))
        raise InvalidFileError(
            f"not valid TOML: {exc}",
            where=f"{path}:{line[1]}" if line else str(path),
            hint='text values want quotes: key = "value"; tables are written [name]',
        ) from exc


def convert_toml(data: Mapping[str, Any], type_: Any, where: str) -> Any:
    """Typed struct from TOML data, with a message that names file, key and the likely spelling.

    Args:
        data: what ``read_toml`` gave.
        type_: a msgspec struct type.
        where: the file's path; the line of the key is found in it and added.

    Raises:
        InvalidFileError: a key is unknown, missing or of a wrong type.
    """
    try:
        return msgspec.convert(data, type_, strict=True)
    except msgspec.ValidationError as exc:
        key = bad_key(exc, data, type_)
        raise invalid_key(exc, type_, key, with_line(where, key)) from exc


def bad_key(exc: msgspec.ValidationError, data: Mapping[str, Any], type_: Any) -> str:
    """Dotted key that a msgspec message is about.

    That is the wrong value, the unknown key, or the table that lacks one.
    """
    text, _, path = str(exc).partition(" - at `")
    key = path.rstrip("`").removeprefix("$").replace("[...]", ".*").lstrip(".")
    if "*" in key:
        key = _spell_out(key.split("."), data, type_)
    named = re.search(r"unknown field `([^`]+)`", text)
    return ".".join(p for p in (key, named[1] if named else "") if p)


def _spell_out(parts: list[str], data: Any, type_: Any) -> str:
    """Replace each ``*`` (msgspec names no dict key) by the first key whose value is wrong."""
    spelled: list[str] = []
    for i, part in enumerate(parts):
        below = type_at(type_, part)
        key = part
        if part == "*" and isinstance(data, Mapping):
            key = next((k for k, v in data.items() if not _fits(v, below)), part)
        if not isinstance(data, Mapping) or key not in data:
            return ".".join([*spelled, *parts[i:]])
        spelled.append(key)
        data, type_ = data[key], below
    return ".".join(spelled)


def _fits(value: Any, type_: Any) -> bool:
    try:
        msgspec.convert(value, type_, strict=True)
    except msgspec.ValidationError:
        return False
    return True


def invalid_key(exc: msgspec.ValidationError, type_: Any, key: str, where: str) -> InvalidFileError:
    """Translate msgspec's message: name the key as TOML spells it, and guess what was meant.

    Args:
        exc: what msgspec raised.
        type_: the struct that was converted to.
        key: what ``bad_key`` found.
        where: the place, line included where it is known.
    """
    text = str(exc).partition(" - at `")[0]
    if re.search(r"unknown field `", text):
        table, _, bad = key.rpartition(".")
        known = list(getattr(type_at(type_, table), "__struct_encode_fields__", ()))
        close = difflib.get_close_matches(bad, known, n=1)
        elsewhere = _tables_with(bad, type_)
        if elsewhere:  # the right word in the wrong place is likelier than a wrong word
            hint = f"it belongs below {' or '.join(f'[{name}]' for name in elsewhere)}"
        elif close:
            hint = f"did you mean {close[0]!r}?"
        else:
            hint = f"known keys: {', '.join(known)}"
        return InvalidFileError(
            f"unknown key {bad!r}" + (f" in [{table}]" if table else ""), where=where, hint=hint
        )
    if missing := re.search(r"missing required field `([^`]+)`", text):
        return InvalidFileError(
            f"key {missing[1]!r} is missing" + (f" in [{key}]" if key else ""),
            where=where,
            hint=f"add {missing[1]} = …" + (f" below [{key}]" if key else " at the top"),
        )
    example = _example(text, type_, key)
    text = re.sub(r"`([^`]+)`", lambda found: _in_words(found[1]), text)
    text = text[:1].lower() + text[1:]
    return InvalidFileError(f"key {key!r}: {text}" if key else text, where=where, hint=example)


def _example(text: str, type_: Any, key: str) -> str | None:
    """How such a value is written; the words to choose from where there are few."""
    name = re.sub(r"\[.*?\]", "", key).rpartition(".")[2]
    if not name:
        return None
    if bad := re.match(r"Invalid enum value '?(.*?)'?$", text):
        kinds = type_at(type_, key)
        if not (isinstance(kinds, type) and issubclass(kinds, enum.Enum)):
            return None
        words = [str(kind.value) for kind in kinds]
        close = difflib.get_close_matches(bad[1], words, n=1)
        guess = f"did you mean {close[0]!r}? " if close else ""
        return f"{guess}one of: {', '.join(words)}"
    if wanted := re.match(r"Expected `(\w+)", text):
        value = _EXAMPLES.get(wanted[1])
        # an item of a list stands without a name
        return f"such as {value}" if value and key.endswith("]") else value and f"{name} = {value}"
    return None


_EXAMPLES = {"str": '"…", in quotes', "array": '["…"], in brackets', "int": "3", "float": "1.5",
             "bool": "true"}  # fmt: skip


_WORDS = {  # msgspec's words for types -> what a person writes in TOML
    "str": "text in quotes",
    "object": "a table",
    "array": "a list",
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "decimal": "a number",
    "date": "a date such as 2026-11-30",
}


def _tables_with(key: str, type_: Any, at: str = "") -> list[str]:
    """Dotted names of the tables below a struct type that have such a key."""
    found = []
    for name, below in typing.get_type_hints(type_).items():
        struct = _unwrap(below)
        dotted = f"{at}.{name}" if at else name
        if hasattr(struct, "__struct_fields__"):
            if key in struct.__struct_fields__:
                found.append(dotted)
            found += _tables_with(key, struct, dotted)
    return found


def _in_words(types_: str) -> str:
    """``int | null`` as a person would say it; TOML has no null."""
    names = [name for name in types_.split(" | ") if name != "null"]
    return " or ".join(_WORDS.get(name, name) for name in names)


def type_at(type_: Any, key: str) -> Any:
    """The type at a dotted key below a struct type; None when it cannot be followed."""
    current: Any = _unwrap(type_)
    for part in [p for p in key.replace("[", ".").split(".") if p]:
        if hasattr(current, "__struct_fields__"):
            current = typing.get_type_hints(current).get(part)
        elif typing.get_origin(current) is dict:
            current = typing.get_args(current)[1]
        elif typing.get_origin(current) in {tuple, list}:
            current = typing.get_args(current)[0]
        else:
            return None
        current = _unwrap(current)
    return current


def _unwrap(type_: Any) -> Any:
    """``T`` of ``T | None``."""
    if typing.get_origin(type_) in {typing.Union, types.UnionType}:
        return next((a for a in typing.get_args(type_) if a is not type(None)), None)
    return type_


_HEADER = re.compile(r"\s*\[\[?\s*(?P<key>[^\]]+?)\s*\]\]?\s*(?:#.*)?$")
_ASSIGN = re.compile(
    r"""\s*(?P<key>(?:[\w-]+|"[^"]*"|'[^']*')(?:\s*\.\s*(?:[\w-]+|"[^"]*"))*)\s*="""
)


def key_lines(text: str) -> dict[str, int]:
    """Line number of every dotted key and table header of a TOML text that parses.

    Inline tables have the line of the key that holds them.
    """
    lines: dict[str, int] = {}
    table = ""
    fence = ""  # the closing quotes of a multi-line string that we are in
    for number, line in enumerate(text.splitlines(), 1):
        if fence:
            if fence in line:
                fence = ""
            continue
        if header := _HEADER.match(line):
            table = _plain_key(header["key"])
            lines.setdefault(table, number)
        elif assign := _ASSIGN.match(line):
            key = _plain_key(assign["key"])
            lines.setdefault(f"{table}.{key}" if table else key, number)
            value = line[assign.end() :]
            for quotes in ('"""', "'''"):
                if value.count(quotes) == 1:
                    fence = quotes
    return lines


def _plain_key(key: str) -> str:
    return ".".join(part.strip().strip("\"'") for part in key.split("."))


def with_line(path: str, key: str) -> str:
    """``path:line`` of a dotted key in a file, or of the nearest table around it.

    A ``path`` that is no readable file (a variable, a flag) is returned as it is.
    """
    try:
        lines = key_lines(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return path
    parts = re.sub(r"\[\d+\]", "", key).split(".")
    while parts and parts != [""]:
        dotted = ".".join(parts)
        hits = [n for k, n in lines.items() if k == dotted or k.startswith(dotted + ".")]
        if hits:
            return f"{path}:{min(hits)}"
        parts.pop()
    return path


# --- layers: files, variables, flags


def merge_layer(
    into: dict[str, Any], new: Mapping[str, Any], origin: str, origins: dict[str, str], at: str = ""
) -> None:
    """Merge a stronger layer: tables key by key, a list replaces a list.

    Args:
        into: the weaker layers, changed in place.
        new: the stronger layer.
        origin: who it is, kept for each dotted key it sets.
        origins: dotted key -> who set it last.
        at: dotted key of the table ``into``.
    """
    for key, value in new.items():
        dotted = f"{at}.{key}" if at else key
        if isinstance(value, Mapping):
            below = into.setdefault(key, {})
            if not isinstance(below, dict):
                into[key] = below = {}
            merge_layer(below, value, origin, origins, dotted)
        else:
            into[key] = value
            for stale in [k for k in origins if k.startswith(dotted + ".")]:
                del origins[stale]
            origins[dotted] = origin


def origin_of(origins: Mapping[str, str], key: str) -> str:
    """The layer that set a key, or else the strongest one below or around it."""
    parts = re.sub(r"\[\d+\]", "", key).split(".")
    while parts:
        dotted = ".".join(parts)
        hits = [o for k, o in origins.items() if k == dotted or k.startswith(dotted + ".")]
        if hits:
            return hits[-1]
        parts.pop()
    return ""


def spelled_as(merged: Mapping[str, Any], parts: Iterable[str]) -> list[str]:
    """Keys of a variable's name: as a weaker layer spells them (case, dashes), else lower case."""
    keys: list[str] = []
    level: Any = merged
    for part in parts:
        wanted = part.lower()
        known = level if isinstance(level, Mapping) else {}
        key = next((k for k in known if re.sub(r"[^a-z0-9]", "_", k.lower()) == wanted), wanted)
        keys.append(key)
        level = known.get(key)
    return keys


def scalar(type_: Any, keys: Iterable[str], text: str) -> Any:
    """A value from a variable or a flag: text where the key wants text, else TOML's reading."""
    if type_at(type_, ".".join(keys)) is str:
        return text
    try:
        return tomllib.loads(f"v = {text}", parse_float=Decimal)["v"]
    except tomllib.TOMLDecodeError:
        return text
