"""Reader of tables with a header line: ``sacct -P``, sacct as CSV, Philly's CSV, Starburst's CSV.

What a column means is known by its name (in any case); columns of other names are passed over.
Sources of the names: sacct(1) ``--format``; Philly: timestamp, duration, num_gpus, cluster; the
generator of Starburst: arrival_h, runtime_h, gpus; NREL's sacct export: wallclock_req and others.
"""

import csv
import datetime as dt
import math
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from hpcscale.errors import InvalidFileError
from hpcscale.history.reading import Reading, Skipped, checked, lines_of
from hpcscale.history.workload import Status, make_workload
from hpcscale.units import parse_duration_s, parse_tres, tres_gpus

_NOT_KNOWN = {"", "unknown", "none", "n/a", "nan", "null", "(null)", "none assigned"}
_STEP = re.compile(r"\d+(?:_\d+|\+\d+)?\.\S+")
_STATES = {
    "COMPLETED": Status.COMPLETED, "TIMEOUT": Status.TIMEOUT, "CANCELLED": Status.CANCELLED,
    "RUNNING": Status.RUNNING, "COMPLETING": Status.RUNNING, "SUSPENDED": Status.RUNNING,
    "PENDING": Status.PENDING, "REQUEUED": Status.CANCELLED, "RESIZING": Status.RUNNING,
    "PASS": Status.COMPLETED, "KILLED": Status.CANCELLED,
}  # fmt: skip
_FAILED = {"FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "BOOT_FAIL", "DEADLINE", "PREEMPTED", "REVOKED"}

Parser = Callable[[str, dt.tzinfo], float]


def _number(text: str, _zone: dt.tzinfo) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text!r} is not finite")
    return value


def _hours(text: str, zone: dt.tzinfo) -> float:
    return 3600.0 * _number(text, zone)


def _minutes(text: str, zone: dt.tzinfo) -> float:
    if text.upper() in {"UNLIMITED", "PARTITION_LIMIT"}:
        return math.nan
    return 60.0 * _number(text, zone)


def _duration(text: str, _zone: dt.tzinfo) -> float:
    seconds = parse_duration_s(text.partition(".")[0])
    return math.nan if seconds is None else float(seconds)


def _time(text: str, zone: dt.tzinfo) -> float:
    if text.replace(".", "", 1).isdigit():
        return float(text)
    when = dt.datetime.fromisoformat(text)
    return (when if when.tzinfo else when.replace(tzinfo=zone)).timestamp()


def _gpus_of_tres(text: str, _zone: dt.tzinfo) -> float:
    return float(tres_gpus(parse_tres(text)))


# our column -> (the names it goes by, the better first; how to read the text)
_NUMBERS: dict[str, tuple[tuple[str, Parser], ...]] = {
    "submit_s": (("submit", _time), ("submit_time", _time), ("timestamp", _time),
                 ("arrival_h", _hours)),
    "start_s": (("start", _time), ("start_time", _time)),
    "end_s": (("end", _time), ("end_time", _time)),
    "runtime_s": (("elapsedraw", _number), ("run_time", _number), ("run", _number),
                  ("duration", _number), ("runtime_h", _hours), ("elapsed", _duration)),
    "limit_s": (("timelimitraw", _minutes), ("wallclock_req", _number),
                ("time_limit_sec", _number), ("timelimit", _duration)),
    "nodes": (("nnodes", _number), ("allocnodes", _number), ("alloc_nodes", _number),
              ("nodes_req", _number), ("reqnodes", _number)),
    "cpus": (("ncpus", _number), ("alloccpus", _number), ("processors_req", _number),
             ("reqcpus", _number), ("req_cpus", _number), ("cpu_count", _number)),
    "gpus": (("gpus", _number), ("num_gpus", _number), ("gpus_req", _number)),
    "gpus_alloc": (("alloctres", _gpus_of_tres), ("tresalloc", _gpus_of_tres)),
    "gpus_asked": (("reqtres", _gpus_of_tres), ("req_tres", _gpus_of_tres)),
}  # fmt: skip
_TEXTS = {
    "job_id": ("jobid", "job_id", "jobidraw", "id"),
    "user": ("user", "uid"),
    "account": ("account", "group"),
    "partition": ("partition", "cluster"),
    "qos": ("qos",),
    "status": ("state", "status"),
}
NEEDED = (
    "JobID,User,Account,Partition,QOS,State,Submit,Start,End,ElapsedRaw,TimelimitRaw,NNodes,NCPUS,"
    "AllocTRES"
)


def read_table(
    path: Path,
    *,
    zone: dt.tzinfo = dt.UTC,
    gpus_per_node: int = 8,
    strict: bool = False,
) -> Reading:
    """Jobs of a table, packed by gzip or not.

    Args:
        path: the file; its first line names the columns, parted by ``|`` or commas.
        zone: of times that carry none; ``SLURM_TIME_FORMAT=%s`` gives times without this doubt.
        gpus_per_node: nodes are GPUs over this, rounded up, where the table has no nodes.
        strict: raise at the first row that is no job, rather than count it.

    Raises:
        NotFoundError: no such file.
        InvalidFileError: damaged, no column of times of submission, or no job in it.
    """
    return parse_table(
        lines_of(path), str(path), zone=zone, gpus_per_node=gpus_per_node, strict=strict
    )


def parse_table(
    lines: Iterable[str],
    source: str,
    *,
    zone: dt.tzinfo = dt.UTC,
    gpus_per_node: int = 8,
    strict: bool = False,
) -> Reading:
    """As ``read_table``, from lines."""
    rows = iter(lines)
    header = next(rows, "")
    bar = "|" in header
    names = [name.strip().lower() for name in header.rstrip("|").split("|" if bar else ",")]
    columns = _Columns(names, source, zone, gpus_per_node)
    table: dict[str, Any] = {name: [] for name in _Columns.MADE}
    skipped: list[Skipped] = []
    steps = 0
    for number, fields in _split(rows, bar=bar):
        try:
            job = columns.job(fields, number)
        except (ValueError, OverflowError) as exc:
            skipped.append(Skipped(number, str(exc)))
            continue
        if job is None:
            steps += 1
            continue
        for name, value in job.items():
            table[name].append(value)
    jobs = make_workload(source=source, **table)
    total = len(jobs) + len(skipped) + steps
    return checked(
        Reading(jobs, total, tuple(skipped), steps), strict=strict,
        hint=columns.hint(len(skipped) == total > 0, bar=bar),
    )  # fmt: skip


def _split(lines: Iterator[str], *, bar: bool) -> Iterator[tuple[int, list[str]]]:
    """Fields of each row with the line that it ends on; sacct's ``|`` knows no quoting."""
    if bar:
        for number, line in enumerate(lines, start=2):
            if line.strip():
                yield number, line.split("|")
        return
    reader = csv.reader(line + "\n" for line in lines)
    while True:
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as exc:
            yield reader.line_num + 1, [f"\0{exc}"]
            continue
        if fields:
            yield reader.line_num + 1, fields


class _Columns:
    """Where each of our columns stands in the table, and how a row becomes a job."""

    MADE = ("job_id", "submit_s", "start_s", "runtime_s", "limit_s", "nodes", "cpus", "gpus",
            "user", "account", "partition", "qos", "status")  # fmt: skip

    def __init__(self, names: list[str], source: str, zone: dt.tzinfo, gpus_per_node: int) -> None:
        self._width = len(names)
        self._name_last = names[-1] in {"jobname", "name"}
        self._zone = zone
        self._gpus_per_node = gpus_per_node
        self._numbers = {
            column: [(names.index(name), parse, name) for name, parse in known if name in names]
            for column, known in _NUMBERS.items()
        }
        self._texts = {
            column: next((names.index(name) for name in known if name in names), None)
            for column, known in _TEXTS.items()
        }
        if not self._numbers["submit_s"]:
            shown = ", ".join(names)[:200]
            if not shown:
                said = "is empty"
            elif not shown.isprintable() or "\\x" in shown:
                said = "is no text: neither SWF nor a table"
            else:
                said = f"no column of times of submission; it has: {shown}"
            raise InvalidFileError(
                said,
                where=f"{source}:1",
                hint=f"sacct -aPX --format={NEEDED}",
            )

    def hint(self, none_is_good: bool, *, bar: bool) -> str:
        """What to type where no row is a job."""
        if none_is_good and not bar:
            return "texts with commas (AllocTRES has) want quotes; sacct -P parts columns by |"
        return f"sacct -aPX --starttime now-90days --format={NEEDED}"

    def _number(self, fields: list[str], column: str) -> float:
        for at, parse, name in self._numbers[column]:
            text = fields[at].strip()
            if text.lower() in _NOT_KNOWN:
                continue
            try:
                value = parse(text, self._zone)
            except (ValueError, OverflowError):
                raise ValueError(f"{name} is {text[:60]!r}") from None
            if value < 0:
                raise ValueError(f"{name} is {text[:60]!r}, negative")
            return value
        return math.nan

    def _text(self, fields: list[str], column: str) -> str:
        at = self._texts[column]
        text = "" if at is None else fields[at].strip()
        return "" if text.lower() in _NOT_KNOWN else text

    def job(self, fields: list[str], number: int) -> dict[str, Any] | None:
        """One row's values; None for a step of a job."""
        if len(fields) == 1 and fields[0].startswith("\0"):
            raise ValueError(fields[0][1:])
        if len(fields) == self._width + 1 and not fields[-1]:
            fields = fields[:-1]  # sacct -p ends each line by a bar
        if len(fields) != self._width and not (self._name_last and len(fields) > self._width):
            raise ValueError(f"{len(fields)} fields, and the header names {self._width}")
        job_id = self._text(fields, "job_id") or str(number - 1)
        if _STEP.fullmatch(job_id):
            return None
        submit = self._number(fields, "submit_s")
        if math.isnan(submit):
            raise ValueError("no time of submission")
        status = _status(self._text(fields, "status"))
        start, runtime = self._span(fields, status)
        if start < submit:
            raise ValueError("starts before its submission")
        gpus = self._first(fields, ("gpus", "gpus_alloc", "gpus_asked"))
        nodes = self._number(fields, "nodes")
        if not nodes >= 1:  # NaN as well
            nodes = max(1.0, math.ceil(gpus / self._gpus_per_node))
        cpus = self._number(fields, "cpus")
        return {
            "job_id": job_id,
            "submit_s": submit,
            "start_s": start,
            "runtime_s": runtime,
            "limit_s": self._number(fields, "limit_s"),
            "nodes": int(nodes),
            "cpus": 0 if math.isnan(cpus) else int(cpus),
            "gpus": int(gpus),
            "status": int(status),
            **{c: self._text(fields, c) for c in ("user", "account", "partition", "qos")},
        }

    def _first(self, fields: list[str], columns: tuple[str, ...]) -> float:
        """The first of these columns that is known and not 0; 0 if none is."""
        for column in columns:
            value = self._number(fields, column)
            if value > 0:
                return value
        return 0.0

    def _span(self, fields: list[str], status: Status) -> tuple[float, float]:
        """Start and runtime as far as they are facts: what has not ended has no runtime."""
        start = self._number(fields, "start_s")
        runtime = self._number(fields, "runtime_s")
        if math.isnan(runtime) and self._numbers["end_s"]:
            runtime = self._number(fields, "end_s") - start
            if runtime < 0:
                raise ValueError("ends before its start")
        if status is Status.PENDING:
            return math.nan, math.nan
        if status is Status.RUNNING:
            return start, math.nan
        if status is Status.CANCELLED and not runtime > 0:
            return math.nan, math.nan  # cancelled in the queue: sacct gives start = end
        return start, runtime


def _status(text: str) -> Status:
    word = text.split(" ", 1)[0].rstrip("+").upper()
    if word in _FAILED:
        return Status.FAILED
    return _STATES.get(word, Status.UNKNOWN)
