"""``hpcscale cancel``: end jobs, after making sure that they are still ours."""

import sys
from typing import TYPE_CHECKING, Any

import click

from hpcscale.cli._output import emit_json, json_option, notice, printable

if TYPE_CHECKING:
    from collections.abc import Callable

    from hpcscale.cli._jobs import SitePool
    from hpcscale.connect import Connection
    from hpcscale.ledger import Attempt, Ledger
    from hpcscale.slurm.types import JobState


CONFIRM_S = 5.0  # Slurm ends a job within a second or two of the request


@click.command("cancel")
@click.argument("jobs", nargs=-1, required=True, metavar="JOB...")
@click.option("--yes", "-y", is_flag=True, help="Do not ask. Without a terminal nothing is asked.")
@click.option(
    "--forget",
    is_flag=True,
    help="Close the record of a job that its site answers for but no longer lists.",
)
@json_option
def command(jobs: tuple[str, ...], yes: bool, forget: bool, as_json: bool) -> None:
    """Cancel jobs, pending or running.

    JOB is a run id (or its beginning), SITE:ID, SITE:ID_TASK, a Slurm id or a job's name. A run is
    cancelled at every site where it has an attempt; a move of it ends with it.

    Slurm reuses ids. A job is cancelled only when its comment holds our submission id and its user
    and submit time agree (else exit 4). Cancelling a job that has ended is no error.

    A job whose end nobody saw stays UNKNOWN, as after a crash of the controller. When you know that
    it is gone, --forget ends its record; a job that Slurm lists is cancelled all the same.
    """
    from hpcscale.cli._jobs import SitePool, attempts_of, resolve_all
    from hpcscale.errors import HpcscaleError
    from hpcscale.ledger import Ledger

    with Ledger.open(create=False) as ledger, SitePool() as pool:
        targets: dict[tuple[int, int | None], tuple[Attempt, int | None]] = {}
        for found in resolve_all(ledger, jobs):
            for attempt in attempts_of(ledger, found):
                targets[attempt.attempt_id, found.task] = (attempt, found.task)
        still = [t for t in targets.values() if not t[0].ended]
        if still and not yes and not as_json and sys.stdin.isatty():
            for attempt, task in still:
                name = printable(ledger.run(attempt.run_id).name)
                click.echo(f"  {_label(attempt, task)}  {name}  {attempt.state.value}", err=True)
            click.confirm(f"Cancel {len(still)} job(s)?", abort=True, err=True)
        results: list[dict[str, Any]] = []
        first_error: HpcscaleError | None = None
        moves_ended: set[tuple[str, int | None]] = set()
        for attempt, task in targets.values():
            if attempt.ended and len(targets) > 1 and still:
                continue  # earlier attempts of a run are no news
            if (attempt.run_id, task) not in moves_ended:
                moves_ended.add((attempt.run_id, task))
                try:
                    _cancel_move(ledger, pool, attempt.run_id, task)
                except HpcscaleError as exc:  # the next `burst run` goes on with it
                    first_error = first_error or exc
            try:
                now = ledger.attempt(attempt.submission_id)
                if now.ended and not attempt.ended and now.state.value == "CANCELLED":
                    result = "cancelled"  # with its move
                else:
                    result = _cancel(ledger, pool, now, task, forget=forget)
            except HpcscaleError as exc:
                # one that fails keeps nobody else alive
                first_error = first_error or exc
                result = "not cancelled"
                if len(targets) > 1:
                    notice(f"{_label(attempt, task)}: {exc}")
            results.append(
                {"job": _label(attempt, task), "run_id": attempt.run_id, "result": result}
            )
            if not as_json and result != "not cancelled":
                click.echo(f"{_label(attempt, task)}: {result}")
        if as_json:
            emit_json({"jobs": results})
        if first_error is not None:
            raise first_error


def _label(attempt: "Attempt", task: int | None) -> str:
    if attempt.job_id is None:
        return f"{attempt.site}:? ({attempt.run_id})"
    return f"{attempt.site}:{attempt.job_id}" + (f"_{task}" if task is not None else "")


def _cancel_move(ledger: "Ledger", pool: "SitePool", run_id: str, task: int | None) -> None:
    """End the run's moves, or those of one element, wherever they stand: both jobs go."""
    from hpcscale.burst.elements import moves_with_elements
    from hpcscale.burst.handover import Handover
    from hpcscale.burst.run import jobs_folder

    for move in moves_with_elements(ledger, run_id):
        if not move.step.settled and task in {None, move.task}:
            connect = _audited(ledger, pool, move.run_id)
            Handover(ledger, connect, jobs_folder(), notice).cancel(move)


def _audited(ledger: "Ledger", pool: "SitePool", run_id: str) -> "Callable[[str], Connection]":
    """The pool; what is done to a job that may move goes to the audit log, as burst's own acts."""
    from hpcscale.burst.audit import AuditLog, audited
    from hpcscale.spec import BurstMode

    if ledger.run(run_id).burst_mode is BurstMode.NEVER:
        return pool
    return lambda name: audited(pool(name), AuditLog())


def _cancel(
    ledger: "Ledger",
    pool: "SitePool",
    attempt: "Attempt",
    task: int | None,
    *,
    forget: bool = False,
) -> str:
    from hpcscale import cancelled
    from hpcscale.errors import NotFoundError, RefusedError, UnreachableError
    from hpcscale.observe import observe
    from hpcscale.units import JobId
    from hpcscale.verify import require_same

    if attempt.ended:
        return f"had already ended: {attempt.state.value}"
    if attempt.job_id is None:
        # sbatch gave no answer: perhaps the site knows by now
        snapshot = observe(ledger, pool, [attempt])
        if error := snapshot.failed.get(attempt.site):
            raise UnreachableError(error, where=f"site {attempt.site}")
        attempt = ledger.attempt(attempt.submission_id)
        if attempt.ended:
            return f"had already ended: {attempt.state.value} ({attempt.reason})"
        if attempt.job_id is None:
            raise RefusedError(
                "sbatch gave no answer and Slurm does not list the job yet: it may still appear",
                where=f"site {attempt.site}",
                hint=f"hpcscale status {attempt.run_id}, then cancel again",
            )
    connection = _audited(ledger, pool, attempt.run_id)(attempt.site)
    job_id = attempt.job_id
    assert job_id is not None
    named = JobId(job_id.base, task) if task is not None else job_id
    status = require_same(attempt, connection.client, named)
    if status is None or status.state.terminal:
        observe(ledger, pool, [attempt])
        attempt = ledger.attempt(attempt.submission_id)
        lost = _lost(ledger, attempt, task)
        if forget and lost:
            for element in lost:
                cancelled.note_closed(ledger, attempt, element)
            observe(ledger, pool, [attempt])
            attempt = ledger.attempt(attempt.submission_id)
            lost = _lost(ledger, attempt, task)
            if not lost and (task is not None or attempt.ended):
                return "forgotten: Slurm does not list it, and its end was not seen"
        seen = status is not None and not lost
        ended = status.state if status and seen else _ending(ledger, attempt, task)
        if ended is None and forget and task is None:
            ledger.set_forgotten(attempt)
            return "forgotten: Slurm does not list it, and its end was not seen"
        if ended is None:  # not listed is not ended: it may run where nobody looks
            name = attempt.run_id if task is None else f"{attempt.site}:{named}"
            some = "" if status is None or not lost else f" of {_numbers(lost)}"
            raise NotFoundError(
                f"Slurm lists no such job{some}, and its end was not seen: nothing was cancelled",
                where=f"{attempt.site}:{named}",
                hint=f"hpcscale status {attempt.run_id}; when it is listed again, cancel again; "
                f"when it is surely gone: hpcscale cancel --forget {name}",
            )
        return f"had already ended: {ended.value}"
    cancelled.note_asked(ledger, attempt, named, status.state)
    if not connection.client.cancel(named):
        raise RefusedError(
            "scancel was refused",
            where=f"{attempt.site}:{named}",
            hint=f"hpcscale status {attempt.run_id}",
        )
    cancelled.note_taken(ledger, attempt, named, status.state)
    return _outcome(ledger, pool, attempt, task)


def _outcome(ledger: "Ledger", pool: "SitePool", attempt: "Attempt", task: int | None) -> str:
    """What became of it: scancel's exit code alone says that the request was taken."""
    import time

    from hpcscale.observe import observe
    from hpcscale.slurm.types import JobState

    until = time.monotonic() + CONFIRM_S
    while True:
        snapshot = observe(ledger, pool, [attempt])
        attempt = ledger.attempt(attempt.submission_id)
        state = attempt.state
        if task is not None and (element := ledger.elements(attempt).get(task)) is not None:
            state = element.state
        if attempt.site in snapshot.failed or state is JobState.UNKNOWN:
            return "cancelled, but its end was not seen yet"
        if state.terminal or state is JobState.COMPLETING:
            return "cancelled"
        if time.monotonic() > until:
            return f"asked to end, and still {state.value}: hpcscale status {attempt.run_id}"
        time.sleep(0.5)


def _lost(ledger: "Ledger", attempt: "Attempt", task: int | None) -> list[int]:
    """Elements, of those meant, that Slurm lists no more and whose end nobody saw."""
    from hpcscale.slurm.types import JobState
    from hpcscale.units import parse_array

    array = ledger.run(attempt.run_id).spec.array
    if array is None or attempt.ended:
        return []
    known = ledger.elements(attempt)
    return [
        number
        for number in parse_array(array)[0]
        if task in {None, number}
        and ((e := known.get(number)) is None or (e.state is JobState.UNKNOWN and not e.moved))
    ]


def _numbers(tasks: list[int]) -> str:
    few = ", ".join(map(str, tasks[:5])) + (", …" if len(tasks) > 5 else "")
    return f"element{'s' if len(tasks) > 1 else ''} {few}"


def _ending(ledger: "Ledger", attempt: "Attempt", task: int | None) -> "JobState | None":
    """How a job, or an element of it, ended; None when nobody saw that."""
    if attempt.ended:
        return attempt.state
    element = ledger.elements(attempt).get(task) if task is not None else None
    return element.state if element is not None and element.state.terminal else None
