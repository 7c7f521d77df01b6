"""Reader of the Standard Workload Format (Feitelson's Parallel Workloads Archive, version 2.2).

One job a line, 18 fields: 1 id, 2 submit, 3 wait, 4 run, 5 processors allocated, 8 processors
requested, 9 time requested, 11 status, 12 user, 13 group, 15 queue, 16 partition; -1 is "unknown";
``;`` opens a comment, and in the header ``; UnixStartTime: N`` gives the origin of field 2, and
``; MaxNodes: N`` with ``; MaxProcs: P`` how many processors a node has.
"""

import math
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from hpcscale.history.reading import Reading, Skipped, checked, lines_of
from hpcscale.history.workload import Status, make_workload

_STATUS = {0: Status.FAILED, 1: Status.COMPLETED, 5: Status.CANCELLED}
_HEADER = re.compile(r";\s*(UnixStartTime|MaxNodes|MaxProcs):\s*(\d+)")
_FIELDS = 9  # what cannot be done without; archives add fields of their own behind the 18th


def read_swf(path: Path, *, cpus_per_node: int | None = None, strict: bool = False) -> Reading:
    """Jobs of an SWF file, packed by gzip or not.

    Args:
        path: the file.
        cpus_per_node: SWF counts processors; nodes are processors over this, rounded up. None: as
            the header has it, MaxProcs over MaxNodes, and 1 where it does not say.
        strict: raise at the first row that is no job, rather than count it.

    Raises:
        NotFoundError: no such file.
        InvalidFileError: damaged, or no job in it.
    """
    return parse_swf(lines_of(path), str(path), cpus_per_node=cpus_per_node, strict=strict)


def parse_swf(
    lines: Iterable[str], source: str, *, cpus_per_node: int | None = None, strict: bool = False
) -> Reading:
    """As ``read_swf``, from lines."""
    header: dict[str, int] = {}
    rows: list[tuple[float, ...]] = []
    ids: list[str] = []
    skipped: list[Skipped] = []
    for number, line in enumerate(lines, start=1):
        text = line.strip()
        if text.startswith(";"):
            if match := _HEADER.match(text):
                header[match[1]] = int(match[2])
            continue
        if not text:
            continue
        try:
            rows.append(_row(text.split()))
            ids.append(text.split(maxsplit=1)[0])
        except ValueError as exc:
            skipped.append(Skipped(number, str(exc)))
    table = np.array(rows, dtype=np.float64).reshape(len(rows), 9)
    origin_s = float(header.get("UnixStartTime", 0))
    notes: tuple[str, ...] = ()
    per_node = cpus_per_node or 1
    if cpus_per_node is None:
        per_node, notes = _per_node(header, source)
    submit, wait, run, procs, limit, status, user, group, queue = table.T
    people: dict[str, Any] = {
        c: _names(v) for c, v in (("user", user), ("account", group), ("partition", queue))
    }
    jobs = make_workload(
        job_id=ids,
        submit_s=submit + origin_s,
        start_s=submit + origin_s + wait,
        runtime_s=run,
        limit_s=limit,
        nodes=-(-procs // per_node),
        cpus=procs,
        status=status,
        source=source,
        **people,
    )
    total = len(rows) + len(skipped)
    return checked(
        Reading(jobs, total, tuple(skipped), notes=notes), strict=strict,
        hint="SWF has a line of 18 numbers for each job",
    )  # fmt: skip


def _per_node(header: dict[str, int], source: str) -> tuple[int, tuple[str, ...]]:
    """Processors of a node by the header, and a note unless it says that they are one."""
    nodes, procs = header.get("MaxNodes", 0), header.get("MaxProcs", 0)
    if not nodes or not procs:
        why = "its header has not both MaxNodes and MaxProcs"
        return 1, (f"{source}: each processor is taken for a node: {why}",)
    per_node = max(1, procs // nodes)  # nodes that differ: rather too many of them than too few
    if per_node == 1:
        return 1, ()
    why = f"its header has MaxProcs {procs} and MaxNodes {nodes}"
    return per_node, (f"{source}: {per_node} processors are taken for a node: {why}",)


def _row(fields: list[str]) -> tuple[float, ...]:
    if len(fields) < _FIELDS:
        raise ValueError(f"{len(fields)} fields, and SWF has 18")
    try:
        values = [float(field) for field in fields[:16]]
    except ValueError:
        bad = next(n for n, field in enumerate(fields[:16], 1) if not _is_number(field))
        raise ValueError(f"field {bad} is {fields[bad - 1]!r}, no number") from None
    values += [-1.0] * (16 - len(values))
    if not all(map(math.isfinite, values)):
        raise ValueError("a field is not finite")
    if values[1] < 0:
        raise ValueError("no time of submission (field 2)")
    procs = values[4] if values[4] > 0 else values[7]
    if procs <= 0:
        raise ValueError("neither allocated nor requested processors (fields 5 and 8)")
    known = [math.nan if value < 0 else value for value in (values[2], values[3])]
    limit = values[8] if values[8] > 0 else math.nan
    status = _STATUS.get(int(values[10]), Status.UNKNOWN)
    return (values[1], *known, procs, limit, status, values[11], values[12], values[14])


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _names(column: np.ndarray) -> list[str]:
    """SWF's numbers of users, groups and queues as names; unknown is empty."""
    return ["" if value < 0 else str(int(value)) for value in column.tolist()]
