"""What the ledger hands out, and how it stands in SQLite's rows: text, integers and ISO times."""

import datetime as dt
import enum
import functools
import json
import sqlite3
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

import msgspec

from hpcscale.slurm.types import JobState, JobStatus
from hpcscale.spec import BurstMode, JobSpec, from_json
from hpcscale.units import JobId, JobRef


class Role(enum.StrEnum):
    """Why an attempt exists."""

    ONPREM = "onprem"  # where the user sent it
    BURST = "burst"  # a move to another site


class Run(msgspec.Struct, frozen=True, kw_only=True):
    """One training, across its attempts.

    Attributes:
        site: where it was first sent.
        created_at: aware UTC, as are all times here.
    """

    run_id: str
    created_at: dt.datetime
    name: str
    user: str
    cwd: str
    spec: JobSpec
    site: str
    burst_mode: BurstMode = BurstMode.NEVER
    deadline: dt.datetime | None = None
    max_cost_usd: Decimal | None = None


MOVED_TO = "moved to "  # so begins the reason of what ended here since it goes on elsewhere


class Element(msgspec.Struct, frozen=True, kw_only=True):
    """One element of an array attempt, as last seen."""

    task: int
    state: JobState
    raw_state: str = ""
    reason: str = ""
    nodes: str = ""
    start_time: dt.datetime | None = None
    end_time: dt.datetime | None = None
    restarts: int = 0
    exit_code: int | None = None
    exit_signal: int | None = None

    @property
    def moved(self) -> bool:
        """Whether it went to another site alone; ``burst.elements`` is where that is told."""
        return self.reason.startswith(MOVED_TO)


class Attempt(msgspec.Struct, frozen=True, kw_only=True):
    """One submission to one site.

    Attributes:
        number: 1, 2, … within the run.
        job_id: None until sbatch has answered.
        state: as last observed; UNKNOWN when the site no longer says anything of it.
        last_state: the last state that was not UNKNOWN, and ``seen_at`` when it was last seen.
        submit_time: Slurm's own, by the site's clock; None until the job was first observed.
        job_user: the user that Slurm runs it as; empty until first observed.
        run_dir: directory of this run on the site.
        comment: what ``--comment`` was; it holds ``hpcscale=<submission_id>``.
        gpus: GPUs of the whole job (of one element of an array).
        cost_usd: settled cost once ended; None while it runs or when the price is unknown.
        staged: what was copied there and is to be fetched back (see ``hpcscale.staging``).
        ended: whether the state is final.
        fetched: whether outputs and logs were brought back.
        earlier_s: seconds that nodes were held by starts before the latest.
    """

    attempt_id: int
    run_id: str
    number: int
    site: str
    submission_id: str
    role: Role
    created_at: dt.datetime
    job_id: JobId | None
    state: JobState
    last_state: JobState
    raw_state: str
    reason: str
    seen_at: dt.datetime | None
    submit_time: dt.datetime | None
    start_time: dt.datetime | None
    end_time: dt.datetime | None
    ended: bool
    exit_code: int | None
    exit_signal: int | None
    nodes: str
    num_nodes: int
    gpus: int
    restarts: int
    time_limit_s: int | None
    job_user: str
    script: str
    script_sha256: str
    run_dir: str
    comment: str
    array_size: int | None
    gpu_hour_usd: Decimal | None
    cost_usd: Decimal | None
    staged: dict[str, Any]
    fetched: bool
    earlier_s: float = 0.0

    @property
    def ref(self) -> JobRef | None:
        """``site:id``; None while Slurm has given no id."""
        return JobRef(self.site, self.job_id) if self.job_id else None

    @property
    def task(self) -> int | None:
        """The index, where this is one element of an array seen as a job (``element``)."""
        return self.job_id.array_task if self.job_id else None

    def element(self, task: int) -> "Attempt":
        """One element of this array, as if it were a job of its own; the ledger has no such row."""
        assert self.job_id is not None
        job_id = JobId(self.job_id.base, task)
        return msgspec.structs.replace(self, job_id=job_id, array_size=None)


class Found(msgspec.Struct, frozen=True, kw_only=True):
    """What a JOB argument names.

    Attributes:
        attempt: the one named; for a run's id or name its current one.
        task: the array element named, as in ``site:123_7``.
        whole_run: whether the run was named rather than one of its attempts.
    """

    run: Run
    attempt: Attempt
    task: int | None = None
    whole_run: bool = True


class SiteAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """When a site was last asked, when it last answered, and the error since then."""

    site: str
    asked_at: dt.datetime
    answered_at: dt.datetime | None = None
    error: str | None = None


class Event(msgspec.Struct, frozen=True, kw_only=True):
    """Something that happened; never changed afterwards."""

    event_id: int
    at: dt.datetime
    run_id: str | None
    submission_id: str | None
    kind: str
    data: dict[str, Any]


class Decision(msgspec.Struct, frozen=True, kw_only=True):
    """What was decided on which data, and why; never changed afterwards."""

    decision_id: int
    at: dt.datetime
    run_id: str | None
    kind: str
    reason: str
    data: dict[str, Any]


def utc_now() -> dt.datetime:
    """This machine's clock. For what happens at a site ask the site's."""
    return dt.datetime.now(dt.UTC)


@functools.lru_cache(maxsize=4096)  # jobs of one campaign share most of their times
def stamp(when: dt.datetime | None) -> str | None:
    """A time as stored: ISO 8601, UTC, microseconds, so that text sorts as time."""
    return when.astimezone(dt.UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ") if when else None


@functools.lru_cache(maxsize=4096)
def read_time(text: str | None) -> dt.datetime | None:
    """Inverse of ``stamp``."""
    return dt.datetime.fromisoformat(text) if text else None


def money_text(amount: Decimal | None) -> str | None:
    """An amount as stored: text, exact."""
    return None if amount is None else str(amount)


def read_money(text: str | None) -> Decimal | None:
    """Inverse of ``money_text``."""
    return None if text is None else Decimal(text)


def run_from_row(row: sqlite3.Row) -> Run:
    """A run."""
    return Run(
        run_id=row["run_id"],
        created_at=read_time(row["created_at"]) or utc_now(),
        name=row["name"],
        user=row["user"],
        cwd=row["cwd"],
        spec=from_json(row["spec"].encode()),
        site=row["site"],
        burst_mode=BurstMode(row["burst_mode"]),
        deadline=read_time(row["deadline"]),
        max_cost_usd=read_money(row["max_cost_usd"]),
    )


_ROLES = {role.value: role for role in Role}
_STATES = {state.value: state for state in JobState}
_ATTEMPT_FIELDS = frozenset(Attempt.__struct_fields__)


def attempt_from_row(row: sqlite3.Row, script: str) -> Attempt:
    """An attempt, with the text of its script."""
    # thousands of rows a call: no needless work here
    values = dict(zip(row.keys(), row, strict=True))
    for name in values.keys() - _ATTEMPT_FIELDS:
        del values[name]
    values["script"] = script
    for name in ("created_at", "seen_at", "submit_time", "start_time", "end_time"):
        values[name] = read_time(values[name])
    for name in ("gpu_hour_usd", "cost_usd"):
        values[name] = read_money(values[name])
    values["job_id"] = JobId.parse(values["job_id"]) if values["job_id"] else None
    values["role"] = _ROLES.get(values["role"]) or Role(values["role"])
    for name in ("state", "last_state"):
        values[name] = _STATES.get(values[name]) or JobState(values[name])
    values["ended"] = bool(values["ended"])
    values["fetched"] = bool(values["fetched"])
    values["staged"] = json.loads(values["staged"]) if values["staged"] != "{}" else {}
    return Attempt(**values)


def element_from_row(row: sqlite3.Row) -> Element:
    """An array element."""
    return Element(
        task=row["task"],
        state=JobState(row["state"]),
        raw_state=row["raw_state"],
        reason=row["reason"],
        nodes=row["nodes"],
        start_time=read_time(row["start_time"]),
        end_time=read_time(row["end_time"]),
        restarts=row["restarts"],
        exit_code=row["exit_code"],
        exit_signal=row["exit_signal"],
    )


def status_fields(status: JobStatus) -> dict[str, Any]:
    """The attempt's columns that a status sets, as stored; what Slurm did not say stays out."""
    fields: dict[str, Any] = {
        "state": status.state.value,
        "last_state": status.state.value,
        "raw_state": status.raw_state,
        "reason": status.reason,
        "restarts": status.restarts,
        "ended": int(status.state.terminal),
    }
    if status.nodes:
        fields["nodes"] = status.nodes
    if status.num_nodes:
        fields["num_nodes"] = status.num_nodes
    if status.user:
        fields["job_user"] = status.user
    if status.time_limit_s is not None:
        fields["time_limit_s"] = status.time_limit_s
    if status.submit_time:
        fields["submit_time"] = stamp(status.submit_time)
    # while a job waits this is Slurm's guess, which may go away again
    fields["start_time"] = stamp(status.start_time)
    if status.state.terminal:
        fields["end_time"] = stamp(status.end_time or status.observed_at or utc_now())
        if status.exit_code is not None:
            fields["exit_code"], fields["exit_signal"] = status.exit_code
    return fields


def _stored(value: Any) -> Any:
    if isinstance(value, dt.datetime):
        return stamp(value)
    if isinstance(value, bool):
        return int(value)
    if isinstance(value, enum.Enum):
        return value.value
    return value


def _is_recorded(attempt: Attempt, status: JobStatus) -> bool:
    """Whether a job that goes on stands in its row as it is: the usual case, told at once."""
    return (
        status.state is attempt.state is attempt.last_state
        and not status.state.terminal
        and not attempt.ended
        and status.raw_state == attempt.raw_state
        and status.reason == attempt.reason
        and status.restarts == attempt.restarts
        and status.start_time == attempt.start_time
        and (not status.nodes or status.nodes == attempt.nodes)
        and (not status.num_nodes or status.num_nodes == attempt.num_nodes)
        and (not status.user or status.user == attempt.job_user)
        and (status.time_limit_s is None or status.time_limit_s == attempt.time_limit_s)
        and (not status.submit_time or status.submit_time == attempt.submit_time)
        and (not status.gpus or bool(attempt.gpus))
    )


# A controller forgets its last seconds alone (it saves every 5), and what ran is ended as its nodes
# register with it again. How long it was away nobody can tell, so that is not counted.
FORGOTTEN_S = 60.0


def _start_forgotten(attempt: Attempt, status: JobStatus) -> bool:
    """Whether it ran, and its controller knows nothing of that start: it died right after it.

    The same count of restarts, and yet another start (or one that is to come): the nodes were held
    all the same. A start time that is set anew as nodes have booted is of a job that configured.
    """
    return (
        attempt.array_size is None
        and attempt.last_state is JobState.RUNNING
        and attempt.start_time is not None
        and status.restarts == attempt.restarts
        and (
            status.state is JobState.PENDING
            or (status.start_time is not None and status.start_time > attempt.start_time)
        )
    )


def _ended_once_more(attempt: Attempt, status: JobStatus) -> bool:
    """Whether it had ended, and has ended once more: requeued, or its end was forgotten.

    The start before is lost to Slurm then, and its nodes were held all the same. (What it does
    between the two ends is not recorded: an end is not taken back.)
    """
    return (
        attempt.array_size is None
        and attempt.ended
        and status.state.terminal
        and attempt.start_time is not None
        and attempt.end_time is not None
        and status.start_time is not None
        and status.start_time > attempt.end_time
    )


def changed_fields(attempt: Attempt, status: JobStatus) -> dict[str, Any]:
    """Only the columns that differ; nothing when nothing does."""
    if _is_recorded(attempt, status):
        return {}
    fields = status_fields(status)
    if status.gpus and not attempt.gpus:  # else the row has those that are paid for
        fields["gpus"] = status.gpus
    restarted = status.restarts > attempt.restarts and attempt.last_state.active
    if restarted and attempt.start_time and status.submit_time:
        # a requeue sets the submit time anew (seen on 22.05): there the start before ended
        held = max(0.0, (status.submit_time - attempt.start_time).total_seconds())
        fields["earlier_s"] = attempt.earlier_s + held
    elif _start_forgotten(attempt, status):
        assert attempt.start_time is not None
        until = status.observed_at or utc_now()  # this machine's clock, which may jump
        if status.start_time is not None and status.state is not JobState.PENDING:
            until = status.start_time
        held = (until - attempt.start_time).total_seconds()
        held = min(max(0.0, held), FORGOTTEN_S)
        fields["earlier_s"] = attempt.earlier_s + held
    elif _ended_once_more(attempt, status):
        assert attempt.start_time is not None
        assert attempt.end_time is not None
        held = max(0.0, (attempt.end_time - attempt.start_time).total_seconds())
        # the first end stands
        fields = {k: fields[k] for k in ("start_time", "end_time", "restarts")}
        fields["earlier_s"] = attempt.earlier_s + held
    if status.state is attempt.state and attempt.reason.startswith(MOVED_TO):
        fields.pop("reason", None)  # Slurm has why it waited
    changed = {k: v for k, v in fields.items() if _stored(getattr(attempt, k)) != v}
    if "state" in changed:
        changed["seen_at"] = stamp(status.observed_at or utc_now())
    return changed


def event_fields(fields: Mapping[str, Any]) -> dict[str, Any]:
    """What an ``attempt.state`` event keeps of changed columns."""
    keys = ("state", "raw_state", "reason", "nodes", "restarts", "exit_code", "exit_signal")
    named = {k: fields[k] for k in keys if k in fields}
    named["to"] = named.pop("state")
    return named
