"""One sacct call, and its text read without being fooled."""

import datetime as dt
import secrets
from collections.abc import Callable, Sequence

from hpcscale.errors import UnreachableError
from hpcscale.slurm import _squeue
from hpcscale.slurm.states import job_state
from hpcscale.slurm.types import JobState, JobStatus
from hpcscale.units import JobId, parse_tres, tres_gpus

_CLOCKS_DIFFER_S = 3600
_LONG_LIST = 50  # sacct turns a list of ids into one SQL clause each
FIELDS = (
    "JobID",
    "State",
    "User",
    "Account",
    "Partition",
    "QOS",
    "Reason",
    "NodeList",
    "NNodes",
    "ReqTRES",
    "AllocTRES",
    "Priority",
    "Timelimit",
    "Submit",
    "Eligible",
    "Start",
    "End",
    "ExitCode",
    "Comment",
    "JobName",
)
_RERUN = (JobState.REQUEUED, JobState.PREEMPTED, JobState.NODE_FAIL, JobState.BOOT_FAIL)


def new_delimiter() -> str:
    """A random word that nobody can have put into a name."""
    return f"_D{secrets.token_hex(8)}_"


def options(
    ids: Sequence[JobId], since: dt.datetime, delimiter: str, *, user: Callable[[], str]
) -> list[str]:
    """Options: each run of a job (``-D``), allocations only (``-X``), whole columns.

    Times are given as seconds since 1970, which know no zone. The window is wider than asked for,
    since the controller's clock may be ahead of or behind the one that sacct reads.
    """
    bases = sorted({i.base for i in ids})
    if len(bases) <= _LONG_LIST:
        choice = [f"--jobs={','.join(map(str, bases))}"]
    else:
        choice = [f"--user={user()}"]
    start = max(0, int(since.timestamp()) - _CLOCKS_DIFFER_S)
    columns = ",".join(FIELDS)
    return ["--noheader", "--parsable", f"--delimiter={delimiter}", "--duplicates", "--allocations",
            f"--starttime=uts{start}", "--endtime=now+30days",
            f"--format={columns}", *choice]  # fmt: skip


def parse(
    text: str, delimiter: str, ids: Sequence[JobId], *, observed_at: dt.datetime
) -> dict[str, JobStatus]:
    """The newest run of each job asked for, by id text; ``restarts`` counts the earlier ones.

    Raises:
        UnreachableError: the text is not what was asked for.
    """
    fields = text.split(delimiter)
    if fields.pop().strip() or len(fields) % len(FIELDS):
        raise UnreachableError("sacct's answer is cut short", hint="try again")
    wanted = _squeue.Wanted(ids)
    jobs: dict[str, JobStatus] = {}
    for at in range(0, len(fields), len(FIELDS)):
        row = fields[at : at + len(FIELDS)]
        row[0] = row[0].removeprefix("\n")
        status = _status(row, observed_at)
        if status is None or status.job_id not in wanted:
            continue
        jobs[str(status.job_id)] = _newer(jobs.get(str(status.job_id)), status)
    return jobs


def _newer(old: JobStatus | None, new: JobStatus) -> JobStatus:
    """Of two rows of one id: the later run, with the count of the runs that were requeued."""
    from msgspec.structs import replace

    if old is None:
        return new
    zero = dt.datetime.fromtimestamp(0, dt.UTC)
    earlier, later = sorted((old, new), key=lambda s: (s.submit_time or zero, s.start_time or zero))
    # Ids are reused after a controller crash: a finished earlier row is another job, not a rerun.
    restarts = earlier.restarts + 1 if earlier.state in _RERUN else 0
    return replace(later, restarts=max(later.restarts, restarts))


def _status(row: list[str], observed_at: dt.datetime) -> JobStatus | None:
    base, task, offset, pending = _squeue._parse_id(row[0])  # noqa: SLF001  # same room
    code, _, signal = row[17].partition(":")
    state = job_state(row[1])
    tres = parse_tres(row[10] or row[9])
    known = state.terminal and code.isdigit() and signal.isdigit()
    return JobStatus(
        job_id=JobId(base, task, offset),
        state=state,
        raw_state=row[1],
        name=row[19],
        user=row[2],
        account=row[3],
        partition=row[4],
        qos=row[5],
        reason="" if row[6] == "None" else row[6],
        comment=row[18],
        nodes="" if row[7] == "None assigned" else row[7],
        num_nodes=int(row[8]) if row[8].isdigit() else 0,
        gpus=tres_gpus(tres),
        array_pending=pending,
        priority=int(row[11]) if row[11].isdigit() else None,
        time_limit_s=_squeue.parse_limit(row[12]),
        submit_time=_squeue.parse_time(row[13]),
        eligible_time=_squeue.parse_time(row[14]),
        start_time=_squeue.parse_time(row[15]),
        end_time=_squeue.parse_time(row[16]),
        exit_code=(int(code), int(signal)) if known else None,
        source="sacct",
        observed_at=observed_at,
    )
