"""Foreign sbatch scripts: what their ``#SBATCH`` lines ask for. The body is never changed.

sbatch(1) reads options from lines that begin with ``#SBATCH`` up to the first line that is neither
comment nor blank; later options win over earlier ones. Words are split at blanks and may be quoted
with ``'`` or ``"``; a backslash takes the next character as it is, but for a blank outside quotes;
an unquoted ``#`` begins a comment (tried on 22.05).
"""

import re
from collections.abc import Iterator
from typing import Any

from hpcscale.errors import InvalidFileError
from hpcscale.spec import Script
from hpcscale.units import parse_array, parse_duration_s, parse_memory_mb

_PREFIX = "#SBATCH"
_SHELLS = re.compile(r"(?:\S*/)?(?:env\s+(?:-S\s+)?)?(?:\S*/)?(?:ba|da|k|z)?sh(?:\s|$)")

# sbatch(1): options with a one-letter form
SHORT_OPTIONS = {
    "A": "account", "B": "extra-node-info", "C": "constraint", "D": "chdir", "G": "gpus",
    "H": "hold", "I": "immediate", "J": "job-name", "L": "licenses", "M": "clusters", "N": "nodes",
    "O": "overcommit", "Q": "quiet", "S": "core-spec", "W": "wait", "a": "array", "b": "begin",
    "c": "cpus-per-task", "d": "dependency", "e": "error", "F": "nodefile", "i": "input",
    "k": "no-kill", "m": "distribution", "n": "ntasks", "o": "output", "p": "partition",
    "q": "qos", "s": "oversubscribe", "t": "time", "v": "verbose", "w": "nodelist", "x": "exclude",
}  # fmt: skip
# those that take no value, or only one written with "="
FLAGS = frozenset(
    {"hold", "immediate", "overcommit", "quiet", "wait", "no-kill", "oversubscribe", "verbose",
     "contiguous", "exclusive", "get-user-env", "ignore-pbs", "kill-on-invalid-dep", "nice",
     "no-requeue", "parsable", "propagate", "reboot", "requeue", "spread-job", "test-only",
     "use-min-nodes", "hetjob", "packjob"}
)  # fmt: skip
# what only the site that a script was written for understands
SITE_BOUND = frozenset(
    {"partition", "account", "qos", "constraint", "prefer", "reservation", "nodelist", "exclude",
     "nodefile", "licenses", "wckey", "clusters", "cluster-constraint", "bb", "bbf", "switches",
     "mcs-label", "batch", "gid", "uid", "delay-boot"}
)  # fmt: skip


def read_script(text: str, path: str, site: str | None = None) -> Script:
    """A foreign script with its directives.

    Args:
        text: the whole script.
        path: where it was read, for messages.
        site: the site it was written for.

    Raises:
        InvalidFileError: no script of a Bourne shell, or a directive that cannot be read.
    """
    first, _, _ = text.partition("\n")
    if not first.startswith("#!"):
        raise InvalidFileError(
            "the first line is no interpreter: sbatch would refuse it",
            where=f"{path}:1",
            hint="begin the file with #!/bin/bash",
        )
    if "\0" in text:
        raise InvalidFileError("it holds NUL bytes: no script", where=path)
    if "\r\n" in text:
        raise InvalidFileError(
            "its lines end as on Windows: sbatch would refuse it",
            where=path,
            hint=f"sed -i 's/\\r$//' {path}",
        )
    if not _SHELLS.match(first[2:].strip()):
        raise InvalidFileError(
            f"{first[2:].strip()!r} is no Bourne shell: only such scripts are taken as they are",
            where=f"{path}:1",
            hint=f"write what it asks for as flags: hpcscale submit … -- {path}",
        )
    return Script(path=path, text=text, directives=tuple(_directives(text, path)), site=site)


def body_start(text: str) -> int:
    """Index of the first line that is neither comment nor blank: directives end before it."""
    lines = text.splitlines(keepends=True)
    for index, line in enumerate(lines):
        stripped = line.strip()
        if stripped and not stripped.startswith("#"):
            return index
    return len(lines)


def _directives(text: str, path: str) -> Iterator[tuple[int, str, str | None]]:
    lines = text.splitlines()
    for number, line in enumerate(lines[: body_start(text)], 1):
        if not re.match(rf"{_PREFIX}\s", line):
            continue
        try:
            words = split_words(line[len(_PREFIX) :])
        except ValueError as exc:
            raise InvalidFileError(f"{line.strip()!r}: {exc}", where=f"{path}:{number}") from exc
        for option, value in _options(words, f"{path}:{number}"):
            yield number, option, value


def split_words(text: str) -> list[str]:
    """Words of a directive line, as sbatch reads them.

    Raises:
        ValueError: a quote is not closed.
    """
    words: list[str] = []
    word: str | None = None
    quote = ""
    escaped = False
    for char in text:
        if escaped and (quote or not char.isspace()):
            word, escaped = (word or "") + char, False
        elif char == "\\":
            escaped = True  # in single quotes as well, unlike in a shell
        elif quote:
            if char == quote:
                quote = ""
            else:
                word = (word or "") + char
        elif char in "'\"":
            quote, word = char, word or ""
        elif char.isspace():
            if word is not None:
                words.append(word)
            word, escaped = None, False
        elif char == "#":
            break  # within a word as well
        else:
            word = (word or "") + char
    if quote:
        raise ValueError("a quote is not closed")
    if word is not None:
        words.append(word)
    return words


def _options(words: list[str], where: str) -> Iterator[tuple[str, str | None]]:
    rest = iter(words)
    for word in rest:
        value: str | None = None
        if word.startswith("--") and len(word) > 2:
            option, equals, text = word[2:].partition("=")
            if equals:
                value = text
        elif word.startswith("-") and len(word) > 1 and word[1] in SHORT_OPTIONS:
            option = SHORT_OPTIONS[word[1]]
            value = word[2:] or None
        else:
            raise InvalidFileError(
                f"sbatch reads {word!r} as no option",
                where=where,
                hint="#SBATCH --option=value",
            )
        if value is None and option not in FLAGS:
            value = next(rest, None)
            if value is None:
                raise InvalidFileError(f"--{option} has no value", where=where)
        yield option, value


def fields(script: Script) -> dict[str, Any]:
    """What the directives say in a job file's words: ``{"partition": …, "resources": {…}}``.

    Options without a word there are left out; they stay in the script.

    Raises:
        InvalidFileError: a value that sbatch would refuse, with its line.
    """
    found: dict[str, Any] = {}
    resources: dict[str, Any] = {}
    for number, option, value in script.directives:
        try:
            _field(option, value or "", found, resources)
        except ValueError as exc:
            raise InvalidFileError(
                f"--{option}: {exc}", where=f"{script.path}:{number}", hint="see sbatch(1)"
            ) from exc
    total = resources.pop("gpus", None)
    if total is not None and "gpus_per_node" not in resources:
        resources["gpus_per_node"] = -(-total // resources.get("nodes", 1))
    if resources:
        found["resources"] = resources
    return found


_TEXT = {"partition": "partition", "account": "account", "qos": "qos", "constraint": "constraint",
         "job-name": "name"}  # fmt: skip


def _field(option: str, value: str, found: dict[str, Any], resources: dict[str, Any]) -> None:
    if option in _TEXT:
        found[_TEXT[option]] = value
    elif option == "array":
        parse_array(value)
        found["array"] = value
    elif option == "time":
        parse_duration_s(value)
        resources["time"] = value
    elif option == "nodes":
        resources["nodes"] = _count(value.partition("-")[0])
    elif option == "ntasks-per-node":
        resources["tasks_per_node"] = _count(value)
    elif option == "cpus-per-task":
        resources["cpus_per_task"] = _count(value)
    elif option == "mem":
        parse_memory_mb(value)
        resources["mem"] = value
    elif option == "exclusive":
        resources["exclusive"] = True
    elif option == "gpus-per-node":
        resources["gpus_per_node"] = _gpus(value)
    elif option == "gpus":
        resources["gpus"] = _gpus(value)
    elif option == "gres":
        per_node = sum(_gpus(g[3:].lstrip(":=") or "1") for g in value.split(",") if _is_gpu(g))
        if per_node:
            resources["gpus_per_node"] = per_node


def _is_gpu(gres: str) -> bool:
    return re.match(r"gpu(?:[:=]|$)", gres) is not None


def _count(text: str) -> int:
    match = re.fullmatch(r"(\d+)([kKmM]?)", text.strip())
    if not match:
        raise ValueError(f"{text!r} is no number")
    return int(match[1]) * {"": 1, "k": 1024, "m": 1024**2}[match[2].lower()]


def _gpus(text: str) -> int:
    """GPUs of ``4``, ``h100:4``, ``h100`` or ``h100:2,a100:1``."""
    total = 0
    for part in text.split(","):
        last = re.split(r"[:=]", part)[-1]
        total += int(last) if last.isdigit() else 1
    return total
