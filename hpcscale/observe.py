"""What has become of our jobs: one squeue a site, whatever the number of jobs, into the ledger.

What counts as evidence: squeue lists the job with our submission id; the site's history has it;
the job's own report tells its end. Absence is none: a job that squeue does not list is UNKNOWN,
and a site that lists nothing at all and, asked for one of the jobs, does not say that there is no
such job, or that gives no answer, changes nothing.
"""

import contextlib
import datetime as dt
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from hpcscale.blame import blame, lost_on
from hpcscale.connect import Connection
from hpcscale.cost import held_s
from hpcscale.errors import HpcscaleError, UnreachableError
from hpcscale.judge import Heard, judge
from hpcscale.judge_arrays import judge_array, pending_tasks
from hpcscale.ledger import Attempt, Ledger, SiteAnswer, utc_now
from hpcscale.ledger_rows import money_text, read_time
from hpcscale.reports import Report, read_reports
from hpcscale.slurm.types import JobState, JobStatus
from hpcscale.units import JobId, parse_array
from hpcscale.verify import mismatch, submission_of

Connections = Callable[[str], Connection]


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What a round of questions gave.

    Attributes:
        at: this machine's clock, aware UTC.
        statuses: submission id -> what squeue says now (for an array: one of its records).
        answers: site -> when asked, when it last answered, its error.
        silent: sites that listed no job at all, nor said that there is none: their jobs stay as
            last seen.
        changed: how many attempts changed.
        offsets_s: site -> seconds by which its clock is ahead of this machine's.
    """

    at: dt.datetime
    statuses: dict[str, JobStatus] = field(default_factory=dict)
    answers: dict[str, SiteAnswer] = field(default_factory=dict)
    silent: tuple[str, ...] = ()
    changed: int = 0
    offsets_s: dict[str, float] = field(default_factory=dict)

    @property
    def failed(self) -> dict[str, str]:
        """Sites that gave no answer, and why."""
        return {name: a.error for name, a in self.answers.items() if a.error is not None}


def observe(
    ledger: Ledger, connections: Connections, attempts: Iterable[Attempt] | None = None
) -> Snapshot:
    """Ask every site concerned once, all at the same time, and record what changed.

    Args:
        ledger: read and written.
        connections: gives the connection to a site by its name; its errors become the site's.
        attempts: look after these alone; default every attempt that has not ended.

    Raises:
        StateError: the ledger cannot be used. A site that fails raises nothing: see ``failed``.
    """
    chosen = [a for a in (ledger.open_attempts() if attempts is None else attempts) if not a.ended]
    by_site: dict[str, list[Attempt]] = {}
    for attempt in chosen:
        by_site.setdefault(attempt.site, []).append(attempt)
    # before anybody is asked: what others write down meanwhile is younger than the answer
    known = {a.submission_id: ledger.elements(a) for a in chosen if a.array_size is not None}
    heard = _ask_all(by_site, connections)
    before = ledger.site_answers()
    arrays = {a.run_id for a in chosen if a.array_size is not None}
    indices = {
        run.run_id: parse_array(run.spec.array)[0]
        for run in ledger.runs(arrays)
        if run.spec.array is not None
    }
    changes: list[tuple[Attempt, Mapping[str, Any]]] = []
    statuses: dict[str, JobStatus] = {}
    for site, said in heard.items():
        if said.error is not None:
            continue
        last = before.get(site)
        seen_at = last.answered_at if last else None
        for attempt in by_site[site]:
            current = said.current.get(attempt.submission_id, [])
            if current:
                statuses[attempt.submission_id] = current[0]
            if attempt.array_size is None:
                fields = judge(ledger, attempt, said, seen_at)
            else:
                fields = judge_array(
                    ledger,
                    attempt,
                    indices[attempt.run_id],
                    said,
                    seen_at,
                    known=known[attempt.submission_id],
                )
            if fields:
                reports = said.reports.get(attempt.submission_id, ())
                changes.append((attempt, _with_cost(ledger, attempt, fields, reports)))
    _blame(ledger, connections, changes)
    ledger.update_attempts(changes)
    _forget_secrets(ledger, connections, [a for a, fields in changes if fields.get("ended")])
    answers = {
        name: SiteAnswer(
            site=name,
            asked_at=said.asked_at,
            answered_at=said.asked_at
            if said.error is None
            else (before[name].answered_at if name in before else None),
            error=said.error,
        )
        for name, said in heard.items()
    }
    ledger.record_answers(answers.values())
    return Snapshot(
        at=utc_now(),
        statuses=statuses,
        answers=answers,
        silent=tuple(name for name, said in heard.items() if said.silent),
        changed=len(changes),
        offsets_s={name: said.offset_s for name, said in heard.items()},
    )


# --- asking


def _ask_all(
    by_site: Mapping[str, Sequence[Attempt]], connections: Connections
) -> dict[str, Heard]:
    if len(by_site) <= 1:
        return {name: _ask(name, mine, connections) for name, mine in by_site.items()}
    import threading

    heard: dict[str, Heard] = {}

    def work(name: str, mine: Sequence[Attempt]) -> None:
        heard[name] = _ask(name, mine, connections)

    threads = [
        threading.Thread(target=work, args=item, name=f"observe-{item[0]}", daemon=True)
        for item in by_site.items()
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()  # every question in it has a time-out
    return {name: heard[name] for name in by_site}


def _ask(site: str, attempts: Sequence[Attempt], connections: Connections) -> Heard:
    said = Heard(site=site, asked_at=utc_now())
    try:
        connection = connections(site)
        answer = connection.client.jobs()
        for status in answer.jobs.values():
            if (submission_id := submission_of(status.comment)) is not None:
                said.current.setdefault(submission_id, []).append(status)
        said.silent = not answer.jobs and not _is_empty(connection, attempts)
        gone = [a for a in attempts if not _all_there(a, said.current.get(a.submission_id, []))]
        again = [a for a in attempts if _starts_again(a, said.current.get(a.submission_id, []))]
        if gone or again:
            said.reports = read_reports(connection.transport, [a.run_dir for a in (*gone, *again)])
        if gone:
            ids = [a.job_id for a in gone if a.job_id is not None]
            if ids:
                since = min(a.created_at for a in gone) - dt.timedelta(days=1)
                said.history = connection.client.history(ids, since=since)
        if any(s.state.active for records in said.current.values() for s in records):
            said.offset_s = _offset_s(connection)
    except HpcscaleError as exc:
        said.error = str(exc)
    except Exception as exc:  # noqa: BLE001 # one site's trouble must not hide the others
        said.error = f"{type(exc).__name__}: {exc}"
    return said


def _is_empty(connection: Connection, attempts: Sequence[Attempt]) -> bool:
    """Whether a queue that was listed as empty is: squeue says that there is no such job."""
    attempt = next((a for a in attempts if a.job_id is not None), None)
    if attempt is None or attempt.job_id is None:
        return False
    try:
        status = connection.client.show(JobId(attempt.job_id.base))
    except UnreachableError:  # it says nothing of that job either
        return False
    return status is None or mismatch(attempt, status) is not None


def _offset_s(connection: Connection) -> float:
    """Seconds by which the site's clock is ahead, for elapsed times; 0 when it does not say."""
    try:
        return (connection.clock.now() - utc_now()).total_seconds()
    except HpcscaleError:
        return 0.0


def _all_there(attempt: Attempt, current: Sequence[JobStatus]) -> bool:
    """Whether squeue told all there is to know of the attempt."""
    if not current or attempt.array_size is None:
        return bool(current)
    pending = sum(len(pending_tasks(s)) for s in current)
    return pending + sum(1 for s in current if not s.array_pending) >= attempt.array_size


def _starts_again(attempt: Attempt, current: Sequence[JobStatus]) -> bool:
    """Whether it is an array with elements that were requeued: reports tell of earlier starts."""
    return attempt.array_size is not None and any(s.restarts for s in current)


def _blame(
    ledger: Ledger,
    connections: Connections,
    changes: Sequence[tuple[Attempt, Mapping[str, Any]]],
) -> None:
    """Note the nodes under starts that were lost; of an array's elements nothing is noted."""
    for attempt, fields in changes:
        if attempt.array_size is not None:
            continue
        state = JobState(fields.get("state", attempt.state))
        restarts = int(fields.get("restarts", attempt.restarts))
        if on := lost_on(attempt, state, restarts, str(fields.get("nodes", ""))):
            with contextlib.suppress(UnreachableError):  # no connection: nothing to ask
                blame(ledger, connections(attempt.site), attempt, state, on)


def _forget_secrets(ledger: Ledger, connections: Connections, ended: Sequence[Attempt]) -> None:
    """Remove secrets of jobs that are over: one that never started could not do it itself."""
    with_secrets = {r.run_id for r in ledger.runs({a.run_id for a in ended}) if r.spec.secrets}
    if not with_secrets:
        return
    from hpcscale.staging import remove_secrets  # heavy, and seldom needed

    for attempt in ended:
        if attempt.run_id in with_secrets:
            with contextlib.suppress(HpcscaleError):
                transport = connections(attempt.site).transport
                remove_secrets(transport, attempt.run_dir, attempt.submission_id)


def _reported_s(reports: Sequence[Report]) -> float:
    """Seconds between begin and end of all starts but the last, as the job itself reported."""
    last = max((r.restart for r in reports), default=0)
    begun: dict[int, dt.datetime] = {}
    seconds = 0.0
    for report in reports:  # a start's first report comes first: at its gate, or as it begins
        if report.at is None or report.restart == last:
            continue
        if not report.ended:
            begun.setdefault(report.restart, report.at)
        elif report.restart in begun:
            seconds += max(0.0, (report.at - begun[report.restart]).total_seconds())
    return seconds


def _with_cost(
    ledger: Ledger, attempt: Attempt, fields: dict[str, Any], reports: Sequence[Report]
) -> Mapping[str, Any]:
    """The columns, and the settled cost when the attempt has ended: all its starts together."""
    if not fields.get("ended") or attempt.cost_usd is not None:
        return fields
    gpus = int(fields.get("gpus", attempt.gpus))
    now = utc_now()
    if attempt.array_size is None:
        start = read_time(fields["start_time"]) if "start_time" in fields else attempt.start_time
        earlier = float(fields.get("earlier_s", attempt.earlier_s))
        # a start that no round of questions saw is known by its reports
        fields["earlier_s"] = max(earlier, _reported_s(reports))
        seconds = fields["earlier_s"] + held_s(start, read_time(fields.get("end_time")), now)
    else:
        parts = ledger.elements(attempt).values()
        seconds = sum(held_s(e.start_time, e.end_time, now) for e in parts)
        for task in {r.task for r in reports}:
            seconds += _reported_s([r for r in reports if r.task == task])
    known = msgspec.structs.replace(attempt, gpus=gpus)
    cost = ledger.cost_of(known, seconds)
    return {**fields, "cost_usd": money_text(cost)} if cost is not None else fields
