"""What jobs themselves reported: small files that our scripts write into ``RUN_DIR/events``.

They tell exit codes where there is no slurmdbd, and that user code is about to start. One file an
event, written under a temporary name and renamed::

    <submission id>[.task<index>].<restart>.gated     {"event":"gated", …}: waits for its handover
    <submission id>[.task<index>].<restart>.started   {"event":"started","job":"123", …}
    <submission id>[.task<index>].<restart>.ended     {"event":"ended","exit_code":0, …}
"""

import datetime as dt
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from hpcscale.slurm.transport import Transport

# exit codes of a script that decided itself not to begin (templates/_lib/header.sh.j2)
OWN_CODES = frozenset({97, 98})
_NAME = re.compile(r"(hs-[0-9a-f]{16})(?:\.task(\d+))?\.(\d+)\.(gated|started|ended)")


@dataclass(frozen=True, slots=True)
class Report:
    """One event file.

    Attributes:
        task: array element; None when the job is no array.
        restart: 0 for the first start.
        ended: whether it tells the end; otherwise the start, or the arrival at the gate.
        gated: whether all nodes are up and the script waits at its gate.
        job: Slurm's id as the job saw it.
        exit_code: of an end.
        requeued: whether the script asked Slurm to run the job again.
        at: aware UTC, by the node's clock.
    """

    submission_id: str
    task: int | None
    restart: int
    ended: bool
    job: str = ""
    exit_code: int | None = None
    requeued: bool = False
    nodes: str = ""
    at: dt.datetime | None = None
    gated: bool = False

    @property
    def begun(self) -> bool:
        """Whether it tells that user code was about to start."""
        return not self.ended and not self.gated

    @property
    def final(self) -> bool:
        """Whether the job is over by its own word."""
        return self.ended and not self.requeued


def cut_short(end: Report, reports: Iterable[Report]) -> bool:
    """Whether an end is that of a script which was ended from outside before its command began.

    Its controller may have forgotten that start, and begin it again: it is no end of the job.

    Args:
        end: which end.
        reports: all of the same job or element.
    """
    same = [r for r in reports if (r.task, r.restart) == (end.task, end.restart)]
    if not any(r.gated for r in same) or end.exit_code in OWN_CODES:
        return False
    # a later start with the same count may have begun since
    return not any(r.begun and (not r.at or not end.at or r.at <= end.at) for r in same)


def parse_report(file_name: str, text: str) -> Report | None:
    """One event; None for a file of another name or content."""
    match = _NAME.fullmatch(file_name)
    if not match:
        return None
    try:
        data: Any = json.loads(text)
        at = data.get("time")
        code = data.get("exit_code")
        return Report(
            submission_id=match[1],
            task=int(match[2]) if match[2] else None,
            restart=int(match[3]),
            ended=match[4] == "ended",
            gated=match[4] == "gated",
            job=str(data.get("job", "")),
            exit_code=None if code is None else int(code),
            requeued=bool(data.get("requeued")),
            nodes=str(data.get("nodes", "")),
            at=None if at is None else dt.datetime.fromtimestamp(float(at), dt.UTC),
        )
    except (ValueError, TypeError, AttributeError):
        return None  # users can write there too


def read_reports(transport: Transport, run_dirs: Iterable[str]) -> dict[str, list[Report]]:
    """All reports of these runs by submission id, by one command; oldest first.

    Raises:
        UnreachableError: no answer.
    """
    found: dict[str, list[Report]] = {}
    directories = sorted({f"{run_dir}/events" for run_dir in run_dirs})
    if not directories:
        return found
    from hpcscale.staging import read_text_files  # heavy, and `status` asks for no reports

    for path, text in read_text_files(transport, directories, "hs-*ed").items():
        report = parse_report(path.rpartition("/")[2], text)
        if report is not None:
            found.setdefault(report.submission_id, []).append(report)
    for reports in found.values():
        reports.sort(key=lambda r: (r.restart, r.ended, not r.gated))
    return found
