"""``read_history``: whatever of the known formats a file holds."""

import datetime as dt
import re
from pathlib import Path

from hpcscale.history.reading import Reading, lines_of
from hpcscale.history.swf import read_swf
from hpcscale.history.tables import read_table

_SWF = re.compile(r";|\d+\s+-?\d+\s")


def read_history(
    path: Path,
    *,
    zone: dt.tzinfo = dt.UTC,
    cpus_per_node: int | None = None,
    gpus_per_node: int = 8,
    strict: bool = False,
) -> Reading:
    """Jobs of an SWF file or of a table with a header, told apart by the first line.

    Args:
        path: the file, packed by gzip or not.
        zone: of times in a table that carry none.
        cpus_per_node: SWF counts processors; nodes are processors over this. None: as its header
            has it, else 1.
        gpus_per_node: for tables that count GPUs alone.
        strict: raise at the first row that is no job, rather than count it.

    Raises:
        NotFoundError: no such file.
        InvalidFileError: neither format, damaged, or no job in it.
    """
    first = next((line.strip() for line in lines_of(path) if line.strip()), "")
    if _SWF.match(first):
        return read_swf(path, cpus_per_node=cpus_per_node, strict=strict)
    return read_table(path, zone=zone, gpus_per_node=gpus_per_node, strict=strict)
