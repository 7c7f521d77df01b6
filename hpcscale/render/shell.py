"""Shell words: what a script may hold, quoted so that nothing in it is ever run by surprise."""

import re
import shlex
from collections.abc import Iterable

# printable ASCII that neither sbatch nor a shell comment gives a meaning
_DIRECTIVE_SAFE = re.compile(r"[!-~]+")
_DIRECTIVE_SPECIAL = re.compile(r"[\"'\\#]")
_SITE_VARIABLE = re.compile(r"\$(?:HOME|USER)(?=/|$)|\$\{(?:HOME|USER)\}")


def words(argv: Iterable[str]) -> str:
    """An argv as shell words."""
    return " ".join(shlex.quote(word) for word in argv)


def directive_safe(value: str) -> bool:
    """Whether a value can stand unquoted in a ``#SBATCH`` line and mean itself."""
    return bool(_DIRECTIVE_SAFE.fullmatch(value)) and not _DIRECTIVE_SPECIAL.search(value)


def directive_tame(value: str) -> str:
    """A value with all that is not safe replaced: for names, which need not be exact."""
    return re.sub(r"[^A-Za-z0-9_.@%+,:=/-]+", "_", value)[:64]


def site_path(path: str) -> str:
    """A path of a profile as a shell word; a leading ``~/``, ``$HOME`` and ``$USER`` are expanded.

    ``~/envs/my env`` becomes ``"$HOME"'/envs/my env'``.
    """
    if path == "~" or path.startswith("~/"):
        path = "$HOME" + path[1:]
    parts: list[str] = []
    start = 0
    for found in _SITE_VARIABLE.finditer(path):
        if found.start() > start:
            parts.append(shlex.quote(path[start : found.start()]))
        parts.append(f'"{found[0]}"')
        start = found.end()
    if start < len(path):
        parts.append(shlex.quote(path[start:]))
    return "".join(parts) or "''"
