"""``hpcscale wait``: until jobs have ended; then their results are here."""

import time
from typing import TYPE_CHECKING, Any

import click

from hpcscale.cli._output import emit_json, json_option, notice, printable

if TYPE_CHECKING:
    from hpcscale.cli._jobs import SitePool
    from hpcscale.ledger import Attempt, Found, Ledger

FIRST_PAUSE_S = 0.5
LONGEST_PAUSE_S = 15.0


@click.command("wait")
@click.argument("jobs", nargs=-1, required=True, metavar="JOB...")
@click.option("--timeout", "timeout", metavar="DURATION", help="Give up after so long, as 90m.")
@json_option
def command(jobs: tuple[str, ...], timeout: str | None, as_json: bool) -> None:
    """Wait until jobs have ended, and bring outputs and logs of remote ones here.

    Exit code 0 when all are COMPLETED, 6 when one is not, 1 when the time is over. A run that moves
    to another site is followed there. State changes are told on stderr.
    """
    from hpcscale.cli._jobs import SitePool, resolve_all
    from hpcscale.errors import HpcscaleError, JobFailedError, UsageError
    from hpcscale.ledger import Ledger
    from hpcscale.units import parse_duration_s

    limit_s: int | None = None
    if timeout is not None:
        try:
            limit_s = parse_duration_s(timeout)
        except ValueError as exc:
            raise UsageError(str(exc), where="--timeout") from None
    with Ledger.open(create=False) as ledger, SitePool() as pool:
        waiting = resolve_all(ledger, jobs)
        _add_elements(ledger, waiting)
        in_time = _until_over(ledger, pool, waiting, limit_s)
        for found in waiting:
            _fetch(ledger, pool, found)
        final = [_verdict(ledger, found) for found in waiting]
        if as_json:
            emit_json({"jobs": final})
        else:
            for job in final:
                click.echo(printable(f"{job['job']}: {job['state']}{job['why']}"))
        if not in_time:
            raise HpcscaleError(
                f"not all have ended within {timeout}", hint=f"hpcscale wait {' '.join(jobs)}"
            )
        bad = [job for job in final if job["state"] != "COMPLETED"]
        if bad:
            raise JobFailedError(
                f"{len(bad)} of {len(final)} did not complete: "
                + ", ".join(f"{job['job']} {job['state']}" for job in bad),
                hint=f"hpcscale logs {bad[0]['job']}",
            )


def _until_over(
    ledger: "Ledger", pool: "SitePool", waiting: "list[Found]", limit_s: float | None
) -> bool:
    """Ask with growing pauses until all have ended; False when the time was over first."""
    from hpcscale.observe import observe

    end = None if limit_s is None else time.monotonic() + limit_s
    pause_s = FIRST_PAUSE_S
    told: dict[str, str] = {}
    complained: dict[str, str] = {}
    while True:
        mine = {a.attempt_id: a for f in waiting for a in _attempts(ledger, f)}
        snapshot = observe(ledger, pool, mine.values())
        for name, error in snapshot.failed.items():
            if complained.get(name) != error:
                notice(f"{name} gave no answer, asking again: {error}")
        complained = dict(snapshot.failed)
        for found in waiting:
            for attempt in _attempts(ledger, found):
                _tell(attempt, told)
        over = all(_over(ledger, found) for found in waiting)
        if not _add_elements(ledger, waiting) and over:
            return True
        if end is not None and time.monotonic() >= end:
            return False
        pause_s = FIRST_PAUSE_S if snapshot.changed else min(pause_s * 1.5, LONGEST_PAUSE_S)
        rest = pause_s if end is None else min(pause_s, max(0.0, end - time.monotonic()))
        time.sleep(rest)


def _add_elements(ledger: "Ledger", waiting: "list[Found]") -> bool:
    """Wait for elements that move alone as for runs of their own; whether there are new ones."""
    from hpcscale.burst.elements import runs_of

    have = {found.run.run_id for found in waiting}
    new = [
        ledger.resolve(run_id)
        for found in waiting
        if found.whole_run
        for run_id in runs_of(ledger, found.run.run_id).values()
        if run_id not in have and ledger.attempts(run_id)
    ]
    waiting += new
    return bool(new)


def _tell(attempt: "Attempt", told: dict[str, str]) -> None:
    from hpcscale.reasons import explain_end

    label = str(attempt.ref) if attempt.ref else f"{attempt.site}:? ({attempt.run_id})"
    text = attempt.state.value
    if attempt.nodes and not attempt.ended:
        text += f" on {attempt.nodes}"
    if attempt.restarts:
        text += f", restart {attempt.restarts}"
    if attempt.submission_id not in told or told[attempt.submission_id] != text:
        told[attempt.submission_id] = text
        why = explain_end(attempt.state, attempt.reason, attempt.exit_code, attempt.exit_signal)
        notice(f"{label} {text}" + (f" ({why})" if why else ""))


def _attempts(ledger: "Ledger", found: "Found") -> "list[Attempt]":
    from hpcscale.ledger import Found

    if found.whole_run:
        return ledger.attempts(found.run.run_id)
    again = Found(
        run=found.run,
        attempt=ledger.attempt(found.attempt.submission_id),
        task=found.task,
        whole_run=False,
    )
    return [again.attempt]


def _over(ledger: "Ledger", found: "Found") -> bool:
    if found.task is not None:
        element = ledger.elements(found.attempt).get(found.task)
        attempt = ledger.attempt(found.attempt.submission_id)
        return attempt.ended or (element is not None and element.state.terminal)
    if not all(a.ended for a in _attempts(ledger, found)):
        return False
    if not found.whole_run:
        return True
    from hpcscale.burst.elements import moves_with_elements

    # between the end of one attempt and the row of the next there is a move under way
    moves = [m for m in moves_with_elements(ledger, found.run.run_id) if not m.step.settled]
    return all(m.task is None for m in moves) and (
        not moves or any(a.state.value == "COMPLETED" for a in ledger.attempts(found.run.run_id))
    )


def _verdict(ledger: "Ledger", found: "Found") -> dict[str, Any]:
    from hpcscale.reasons import explain_exit

    attempts = _attempts(ledger, found)
    good = [a for a in attempts if a.state.value == "COMPLETED"]
    last = good[-1] if good else attempts[-1]
    state, code, signal = last.state, last.exit_code, last.exit_signal
    label = found.run.run_id if found.whole_run else str(last.ref)
    if found.task is not None:
        label += f"_{found.task}"
        if (element := ledger.elements(last).get(found.task)) is not None:
            state, code, signal = element.state, element.exit_code, element.exit_signal
    ending = explain_exit(code, signal)
    return {
        "job": label,
        "run_id": found.run.run_id,
        "ref": str(last.ref) if last.ref else None,
        "state": state.value,
        "exit_code": code,
        "exit_signal": signal,
        "why": f" ({ending})" if ending else "",
    }


def _fetch(ledger: "Ledger", pool: "SitePool", found: "Found") -> None:
    from hpcscale.cli._transfer_bar import Bar
    from hpcscale.errors import HpcscaleError
    from hpcscale.results import fetch, logs_dir, must_fetch

    for attempt in _attempts(ledger, found):
        if not attempt.ended or attempt.start_time is None:
            continue
        try:
            connection = pool(attempt.site)
            if not must_fetch(attempt, connection):
                continue
            with Bar() as bar:
                fetched = fetch(ledger, connection, attempt, meter=bar)
        except HpcscaleError as exc:
            notice(f"{attempt.ref}: results were not fetched: {exc}")
            notice(f"  try: {exc.hint or 'hpcscale fetch ' + found.run.run_id}")
            continue
        for refused in fetched.refused:
            notice(f"{attempt.ref}: refused: {refused}")
        for skipped in fetched.skipped:
            notice(f"{attempt.ref}: not fetched: {skipped}")
        if fetched.files or fetched.objects:
            number = len(fetched.files) + len(fetched.objects)
            notice(f"{attempt.ref}: {number} files fetched; logs in {logs_dir(attempt)}")
