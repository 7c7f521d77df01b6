r"""One squeue call, and its text read without being fooled.

Slurm accepts ``|``, tab, newline and ``\x1f`` in job names and comments, so fields end with a
random word that nobody can know beforehand, and records with another. ``--Format`` with a suffix
and no width cuts nothing (squeue(1)); the fields exist from 22.05 on.
"""

import contextlib
import datetime as dt
import gc
import os
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass

from hpcscale.errors import UnreachableError
from hpcscale.slurm.states import job_state
from hpcscale.slurm.types import JobState, JobStatus, in_array
from hpcscale.units import JobId, gres_gpus, parse_duration_s, parse_tres, tres_gpus

FIELDS = (
    "JobArrayID",
    "State",
    "UserName",
    "Account",
    "Partition",
    "QOS",
    "Reason",
    "NodeList",
    "NumNodes",
    "tres-alloc",
    "tres-per-node",
    "tres-per-job",
    "Dependency",
    "RestartCnt",
    "PriorityLong",
    "TimeLimit",
    "SubmitTime",
    "EligibleTime",
    "StartTime",
    "EndTime",
    "exit_code",
    "Comment",
    "Name",  # last, as what its owner writes most freely
)
QUERY_ENVIRONMENT = {
    "SLURM_TIME_FORMAT": "%s",  # seconds since 1970: no zone, no locale
    "SLURM_BITSTR_LEN": "0",  # array expressions uncut
}
_NOTHING = frozenset({"", "N/A", "Unknown", "NONE", "None", "(null)", "n/a"})


@dataclass(frozen=True, slots=True)
class Separators:
    """Random words: after each field, and after the last one."""

    field: str
    record: str

    @classmethod
    def new(cls) -> "Separators":
        """Fresh ones; the first letter is no digit, which squeue would read as a width."""
        nonce = os.urandom(5).hex()  # short: it stands in the text 22 times a row
        return cls(f"~{nonce}", f"^{nonce}")


def format_option(separators: Separators) -> str:
    """The value of ``--Format``."""
    *inner, last = FIELDS
    return ",".join([f"{f}:{separators.field}" for f in inner] + [f"{last}:{separators.record}"])


class Wanted:
    """Which records a caller asked for: by base id first, since that is one set look-up."""

    def __init__(self, ids: Iterable[JobId]) -> None:
        self.ids: Collection[JobId] = frozenset(ids)
        self._whole = {i.base for i in self.ids if i.array_task is None and i.het_offset is None}
        self.bases = {i.base for i in self.ids}

    def __contains__(self, job_id: JobId) -> bool:
        return job_id.base in self._whole or job_id in self.ids

    def elements_in(self, base: int, pending: str) -> list[JobId]:
        """Elements asked for by number that are still in the pending rest of their array."""
        return [
            i
            for i in self.ids
            if i.base == base and i.array_task is not None and in_array(pending, i.array_task)
        ]


def parse(
    text: str, separators: Separators, *, observed_at: dt.datetime, wanted: Wanted | None = None
) -> dict[str, JobStatus]:
    """Statuses by id text.

    Args:
        text: squeue's output without a header.
        separators: the words that the format asked for.
        observed_at: when it was asked, aware UTC.
        wanted: keep these only; None keeps all.

    Raises:
        UnreachableError: the text is not what was asked for (cut short, or another format).
    """
    with without_gc():
        return _parse(text, separators, _Reader(observed_at), wanted)


@contextlib.contextmanager
def without_gc() -> Iterator[None]:
    """No search for cycles among millions of new strings, which hold none: a third of the time."""
    if not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def _parse(
    text: str, separators: Separators, reader: "_Reader", wanted: Wanted | None
) -> dict[str, JobStatus]:
    jobs: dict[str, JobStatus] = {}
    records = text.split(separators.record + "\n")
    if records.pop().strip():
        raise UnreachableError("squeue's answer is cut short", hint="try again")
    width = len(FIELDS)
    for record in records:
        fields = record.split(separators.field)
        if len(fields) != width:
            raise UnreachableError(
                f"squeue's answer has {len(fields)} columns instead of {width}",
                hint="hpcscale needs Slurm 22.05 or later on the site",
            )
        base, task, offset, pending = _parse_id(fields[0])
        if wanted is not None and base not in wanted.bases:
            continue
        job_id = JobId(base, task, offset)
        if wanted is None or job_id in wanted:
            jobs[str(job_id)] = reader.status(job_id, pending, fields)
        elif pending:
            for element in wanted.elements_in(base, pending):
                jobs[str(element)] = reader.status(element, "", fields)
    return jobs


def _parse_id(text: str) -> tuple[int, int | None, int | None, str]:
    """Base, array index, het offset, pending indices of ``9``, ``9_1``, ``9+1``, ``9_[1-3%1]``."""
    if text.isdigit():
        return int(text), None, None, ""
    base, underscore, rest = text.partition("_")
    if underscore:
        if rest.startswith("["):
            return int(base), None, None, rest.strip("[]")
        if rest.isdigit():
            return int(base), int(rest), None, ""
        return int(base), None, None, rest  # an index list without brackets
    base, _, offset = text.partition("+")
    return int(base), None, int(offset), ""


class _Reader:
    """Makes statuses; remembers what repeats from row to row, for time and memory."""

    def __init__(self, observed_at: dt.datetime) -> None:
        self._observed_at = observed_at
        self._shared: dict[str, str] = dict.fromkeys(_NOTHING, "")
        self._times: dict[str, dt.datetime | None] = {}
        self._limits: dict[str, int | None] = {}
        self._gpus: dict[tuple[str, str, str, str], int] = {}

    def status(self, job_id: JobId, pending: str, fields: list[str]) -> JobStatus:
        (
            _,
            raw,
            user,
            account,
            partition,
            qos,
            reason,
            nodes,
            num_nodes,
            tres_alloc,
            tres_node,
            tres_job,
            dependency,
            restarts,
            priority,
            limit,
            submit,
            eligible,
            start,
            end,
            exit_code,
            comment,
            name,
        ) = fields
        shared = self._shared
        state = job_state(raw)
        if priority == "0" and state is JobState.PENDING:
            start = end = "N/A"  # held or impossible: the time shown is when Slurm gave it up
        try:
            gpus = self._gpus[(tres_alloc, tres_node, tres_job, num_nodes)]
        except KeyError:
            gpus = self._count_gpus(tres_alloc, tres_node, tres_job, num_nodes)
        try:
            limit_s = self._limits[limit]
        except KeyError:
            limit_s = self._limits[limit] = parse_limit(limit)
        return JobStatus(
            job_id,
            state,
            shared.setdefault(raw, raw),
            name,
            shared.setdefault(user, user),
            shared.setdefault(account, account),
            shared.setdefault(partition, partition),
            shared.setdefault(qos, qos),
            shared.setdefault(reason, reason),
            "" if comment == "(null)" else comment,
            shared.setdefault(nodes, nodes),
            int(num_nodes) if num_nodes.isdigit() else 0,
            gpus,
            "",
            shared.setdefault(dependency, dependency),
            pending,
            int(restarts) if restarts.isdigit() else 0,
            int(priority) if priority.isdigit() else None,
            limit_s,
            self._time(submit),
            self._time(eligible),
            self._time(start),
            self._time(end),
            _exit_code(exit_code, state),
            "squeue",
            self._observed_at,
        )

    def _time(self, text: str) -> dt.datetime | None:
        try:
            return self._times[text]
        except KeyError:
            value = self._times[text] = parse_time(text)
            return value

    def _count_gpus(self, alloc: str, per_node: str, per_job: str, nodes: str) -> int:
        gpus = tres_gpus(parse_tres(alloc))
        if not gpus:
            count, _ = gres_gpus(_tres_request(per_node))
            gpus = count * (int(nodes) if nodes.isdigit() else 1)
        if not gpus:
            gpus, _ = gres_gpus(_tres_request(per_job))
        self._gpus[(alloc, per_node, per_job, nodes)] = gpus
        return gpus


def _tres_request(text: str) -> str:
    """``gres:gpu:h100:2`` (22.05) or ``gres/gpu:h100=2`` (later) as a GRES text."""
    return text.replace("gres:", "").replace("gres/", "").replace("=", ":")


def parse_limit(text: str) -> int | None:
    """Seconds of a time limit as Slurm prints it; None for UNLIMITED, NOT_SET and the like."""
    try:
        return parse_duration_s(text)
    except ValueError:
        return None


def parse_time(text: str) -> dt.datetime | None:
    """Aware UTC time from seconds since 1970; None for ``N/A``, ``Unknown`` and 0."""
    if not text.isdigit() or text == "0":
        return None
    return dt.datetime.fromtimestamp(int(text), dt.UTC)


def _exit_code(text: str, state: JobState) -> tuple[int, int] | None:
    """Code and signal of the wait status that squeue prints; an older run's before the end."""
    if not text.isdigit() or not state.terminal:
        return None
    status = int(text)
    return status >> 8, status & 0x7F
