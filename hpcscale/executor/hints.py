"""What to write next, for a Python program: errors' hints are those of the command line."""

import contextlib
import re
from collections.abc import Iterator

from hpcscale.errors import HpcscaleError

_FLAG = re.compile(r"--([a-z][a-z-]*)(?:[= ]([^\s,;()`]+))?")
# submitit's own common names; the others are ours with a prefix
_COMMON = {
    "nodes": "nodes", "gpus-per-node": "gpus_per_node", "cpus-per-task": "cpus_per_task",
    "ntasks-per-node": "tasks_per_node", "tasks-per-node": "tasks_per_node",
}  # fmt: skip
_OURS = frozenset(
    {"site", "software", "code", "partition", "account", "qos", "constraint", "mem", "time",
     "burst", "deadline", "gres", "exclude", "nodelist", "dependency"}
)  # fmt: skip


def in_python(hint: str) -> str:
    """A hint with the executor's parameters in the place of the command line's flags.

    >>> in_python("--partition=gpu, or --nodes 2")
    "hpcscale_partition='gpu', or nodes=2"
    """

    def word(found: re.Match[str]) -> str:
        name, value = found[1], found[2]
        if name in _COMMON:
            return f"{_COMMON[name]}={value or '…'}"
        if name in _OURS:
            return f"hpcscale_{name}={value or '…'!r}"
        return found[0]

    # a command's own flags are for the shell
    return (
        hint if hint.startswith(("hpcscale ", "export ", "rm ", "mv ")) else _FLAG.sub(word, hint)
    )


@contextlib.contextmanager
def hints_in_python() -> Iterator[None]:
    """Add each error's hint to what its traceback shows, as a note, in the executor's words."""
    try:
        yield
    except HpcscaleError as exc:
        note = f"try: {in_python(exc.hint)}" if exc.hint else ""
        known: list[str] = getattr(exc, "__notes__", [])
        if note and note not in known and f"({note})" not in str(exc):
            exc.add_note(note)
        raise
