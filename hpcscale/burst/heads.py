"""Heads of the audit log as syslog has them: how one is written, and how they are read back.

A head names the log by its path: one user may have several state directories, and a log that was
rewritten as a whole must still be known as the same one.
"""

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from hpcscale.errors import StateError

_HEAD = re.compile(
    r'hpcscale audit: line (\d+) of uid (\d+) is ([0-9a-f]{64}), in ("(?:[^"\\]|\\.)*")'
)


def head_line(path: Path, uid: int, number: int, sha256: str) -> str:
    """What syslog is told of a new head; plain ASCII, whatever the path holds."""
    return f"hpcscale audit: line {number} of uid {uid} is {sha256}, in {json.dumps(str(path))}"


def compare(
    lines: Iterable[str], path: Path, uid: int, hashes: Mapping[int, str], where: str
) -> int:
    """Compare a log with the heads that syslog has of it.

    Args:
        lines: of syslog's file, or of ``journalctl``; others are passed over.
        path: of the audit log.
        uid: its owner.
        hashes: each line's hash by its number; empty when the log is gone.
        where: what the lines were read from, for the message.

    Returns:
        How many heads agreed.

    Raises:
        StateError: one of them is not in the log.
    """
    agreed = 0
    for number, line in enumerate(lines, 1):
        found = _HEAD.search(line)
        if found is None or int(found[2]) != uid or _path(found[4]) != str(path):
            continue
        if hashes.get(int(found[1])) != found[3]:
            raise StateError(
                f"line {found[1]} is not what it was when syslog was told of it: "
                "the log was rewritten or cut",
                where=str(path),
                hint=f"the head is in {where}:{number}",
            )
        agreed += 1
    return agreed


def _path(quoted: str) -> str:
    try:
        return str(json.loads(quoted))
    except ValueError:
        return ""
