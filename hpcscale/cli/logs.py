"""``hpcscale logs``: what a job printed, wherever it ran."""

import sys
import time
from collections import deque
from typing import TYPE_CHECKING

import click

from hpcscale.cli._output import emit_json, json_option, notice
from hpcscale.cli._terminal import TerminalFilter

if TYPE_CHECKING:
    from hpcscale.cli._jobs import SitePool
    from hpcscale.ledger import Attempt, Found, Ledger
    from hpcscale.slurm.transport import Transport

CHUNK = 1 << 20
FIRST_PAUSE_S = 0.3
LONGEST_PAUSE_S = 3.0
STATE_EVERY_S = 3.0


@click.command("logs")
@click.argument("job", metavar="JOB")
@click.option("--follow", "-f", is_flag=True, help="Go on until the job has ended.")
@click.option("--lines", "-n", type=click.IntRange(min=0), help="Only the last so many lines.")
@json_option
def command(job: str, follow: bool, lines: int | None, as_json: bool) -> None:
    """Print a job's log (standard output and error).

    With --follow new text is printed as it comes, across requeues and moves to another site, until
    the job has ended. JOB may name an array element: SITE:ID_TASK.
    """
    from hpcscale.cli._jobs import SitePool
    from hpcscale.errors import UsageError
    from hpcscale.ledger import Ledger

    if as_json and follow:
        raise UsageError("--json prints one document: it does not go with --follow")
    with Ledger.open(create=False) as ledger, SitePool() as pool:
        found = ledger.resolve(job)
        if found.attempt.array_size is not None and found.task is None:
            raise UsageError(
                f"{job} is an array of {found.attempt.array_size}: say which element",
                hint=f"hpcscale logs {found.attempt.ref}_{_first_index(found)}",
            )
        if as_json:
            _as_json(ledger, pool, found, lines)
        elif follow:
            _follow(ledger, pool, found, lines)
        else:
            _print_once(ledger, pool, found, lines)


def _first_index(found: "Found") -> int:
    from hpcscale.units import parse_array

    return parse_array(found.run.spec.array or "0")[0][0]


def log_path(attempt: "Attempt", task: int | None) -> str:
    """The log on the site. The attempt has a job id."""
    assert attempt.job_id is not None
    name = f"{attempt.job_id.base}" + (f"_{task}" if task is not None else "")
    return f"{attempt.run_dir}/logs/{name}.log"


class _Log:
    """One attempt's log, read on from where the last read ended."""

    def __init__(self, pool: "SitePool", attempt: "Attempt", task: int | None) -> None:
        from hpcscale.results import logs_dir

        self.path = log_path(attempt, task)
        self._here = logs_dir(attempt) / self.path.rpartition("/")[2]
        self._pool = pool
        self._attempt = attempt
        self._offset = 0
        self.shown = TerminalFilter()

    def read(self) -> bytes:
        """What is new, at most CHUNK bytes. Raises NotFoundError when there is no log (yet)."""
        from hpcscale.errors import NotFoundError, UnreachableError

        try:
            data = self._transport().read_bytes(self.path, offset=self._offset, limit=CHUNK)
        except (NotFoundError, UnreachableError):
            if not self._here.is_file():  # fetched when the job ended
                raise
            with self._here.open("rb") as file:
                file.seek(self._offset)
                data = file.read(CHUNK)
        self._offset += len(data)
        return data

    def _transport(self) -> "Transport":
        return self._pool(self._attempt.site).transport


def _write(log: _Log, data: bytes) -> None:
    """Byte for byte into a file or pipe; without what a terminal would obey onto one."""
    click.echo(log.shown.feed(data) if sys.stdout.isatty() else data, nl=False)


def _whole(log: _Log, lines: int | None) -> bytes:
    if lines is None:
        parts: list[bytes] = []
        while data := log.read():
            parts.append(data)
        return b"".join(parts)
    last: deque[bytes] = deque(maxlen=lines)
    rest = b""
    while data := log.read():
        *whole, rest = (rest + data).split(b"\n")
        last.extend(line + b"\n" for line in whole)
    if rest:
        last.append(rest)
    return b"".join(last)


def _newest(ledger: "Ledger", pool: "SitePool", found: "Found") -> "Attempt":
    """The attempt to read, its state asked of the site."""
    from hpcscale.observe import observe

    attempt = _current(ledger, found)
    if not attempt.ended:
        observe(ledger, pool, [attempt])
        attempt = _current(ledger, found)
    return attempt


def _current(ledger: "Ledger", found: "Found") -> "Attempt":
    if not found.whole_run:
        return ledger.attempt(found.attempt.submission_id)
    started = [a for a in ledger.attempts(found.run.run_id) if a.job_id is not None]
    ran = [a for a in started if a.last_state.active or (a.ended and a.nodes)]
    current = ledger.resolve(found.run.run_id).attempt
    # while a move is under way, or after it failed, what ran tells more than what waits
    return current if not ran or not current.ended else ran[-1]


def _print_once(ledger: "Ledger", pool: "SitePool", found: "Found", lines: int | None) -> None:
    from hpcscale.errors import NotFoundError

    attempt = _current(ledger, found)
    if attempt.job_id is None:
        attempt = _newest(ledger, pool, found)
    if attempt.job_id is None:
        notice(f"no log: {attempt.state.value} {attempt.reason}".rstrip())
        return
    log = _Log(pool, attempt, found.task)
    if lines is None:
        try:
            while data := log.read():
                _write(log, data)
        except NotFoundError:
            _no_log(ledger, pool, found, log)
        return
    try:
        _write(log, _whole(log, lines))
    except NotFoundError:
        _no_log(ledger, pool, found, log)


def _no_log(ledger: "Ledger", pool: "SitePool", found: "Found", log: _Log) -> None:
    from hpcscale.errors import NotFoundError
    from hpcscale.reasons import explain

    attempt = _newest(ledger, pool, found)
    why = explain(attempt.reason, attempt.state)
    told = attempt.state.value + (f" ({why})" if why else "")
    if attempt.ended and attempt.nodes:
        raise NotFoundError(
            f"the job ended {told} and there is no log",
            where=f"{attempt.site}:{log.path}",
            hint=f"hpcscale status {found.run.run_id}",
        )
    notice(f"{attempt.ref} has no log yet: {told}")


def _as_json(ledger: "Ledger", pool: "SitePool", found: "Found", lines: int | None) -> None:
    from hpcscale.errors import NotFoundError

    attempt = _newest(ledger, pool, found)
    text: str | None = None
    path: str | None = None
    if attempt.job_id is not None:
        path = log_path(attempt, found.task)
        try:
            data = _whole(_Log(pool, attempt, found.task), lines)
            text = data.decode("utf-8", "replace")
        except NotFoundError:
            text = None
    emit_json(
        {
            "run_id": found.run.run_id,
            "ref": str(attempt.ref) if attempt.ref else None,
            "site": attempt.site,
            "state": attempt.state.value,
            "path": path,
            "text": text,
        }
    )


def _follow(ledger: "Ledger", pool: "SitePool", found: "Found", lines: int | None) -> None:
    from hpcscale.errors import NotFoundError, UnreachableError

    attempt = _newest(ledger, pool, found)
    log: _Log | None = None
    asked = time.monotonic()
    pause_s = FIRST_PAUSE_S
    told = ""
    while True:
        data = b""
        if log is None and attempt.job_id is not None:
            log = _Log(pool, attempt, found.task)
        try:
            if log is not None:
                data = log.read() if lines is None else _whole(log, lines)
                lines = None  # from here on everything
        except NotFoundError:
            word = f"{attempt.ref} {attempt.state.value}"
            if told != word:
                told = word
                notice(f"{word}: no log yet")
        except UnreachableError as exc:
            notice(f"no answer, asking again: {exc}")
        if data and log is not None:
            _write(log, data)
            pause_s = FIRST_PAUSE_S
            continue
        over = _finished(ledger, found, attempt)
        if over:
            return
        if time.monotonic() - asked > STATE_EVERY_S:
            newer = _newest(ledger, pool, found)
            asked = time.monotonic()
            if newer.submission_id != attempt.submission_id:
                notice(f"the run goes on as {newer.ref or newer.site}")
                log = None
            attempt = newer
            if _finished(ledger, found, attempt):
                continue  # once more around: what it wrote last
        time.sleep(pause_s)
        pause_s = min(pause_s * 1.3, LONGEST_PAUSE_S)


def _finished(ledger: "Ledger", found: "Found", attempt: "Attempt") -> bool:
    if attempt.ended:
        return True
    if found.task is None:
        return False
    element = ledger.elements(attempt).get(found.task)
    return element is not None and element.state.terminal
