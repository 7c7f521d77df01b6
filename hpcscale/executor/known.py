"""What the folder and the ledger know of a job: where it is, and where its files are there."""

from pathlib import Path

from submitit.core import utils

from hpcscale import batches
from hpcscale.errors import NotFoundError, UsageError
from hpcscale.executor.params import ParameterError
from hpcscale.executor.pickles import OWN
from hpcscale.executor.watch import own_ledger
from hpcscale.ledger import Attempt, Ledger, Role
from hpcscale.slurm.types import JobState
from hpcscale.spec import BurstMode
from hpcscale.units import JobId

_MAY_MOVE: dict[str, bool] = {}


def site_file(folder: Path) -> Path:
    """The file that names the site which owns submitit's folder."""
    return utils.JobPaths.get_first_id_independent_folder(folder) / OWN / "site"


def site_of(folder: Path) -> str:
    """The site whose jobs are in this folder; empty when nobody knows."""
    for path in (site_file(folder), site_file(folder.parent)):
        try:
            name = path.read_text(encoding="utf-8").strip()
        except OSError:
            continue
        return name if path == site_file(folder) else folder.name
    return ""


def attempt_of(site: str, job_id: str) -> Attempt | None:
    """The ledger's newest attempt of that id; None when it was not submitted by this user."""
    try:
        return own_ledger().find(f"{site}:{JobId.parse(job_id).base}")
    except (NotFoundError, UsageError, ValueError):
        return None


def require_id(job_id: str) -> tuple[str, int] | None:
    """Refuse what is no id: a watcher asks for all its jobs at once.

    Returns:
        Of a task that a limit kept back: its batch's run and its number there; else None.

    Raises:
        ParameterError: it is neither Slurm's id nor such a task's.
    """
    run_id, _, task = job_id.rpartition("_")
    if run_id.startswith("r") and task.isdigit() and own_ledger().events(run_id, batches.STORED):
        return run_id, int(task)
    try:
        JobId.parse(job_id)
    except ValueError as exc:
        raise ParameterError(str(exc), where="job_id", hint="HpcscaleJob(folder, '123')") from None
    return None


def there_of(attempt: Attempt) -> str:
    """Where submitit's files of an attempt are on its site; empty for a rendered script."""
    if "outputs/submitit" in attempt.staged:
        return f"{attempt.run_dir}/outputs/submitit"
    return own_ledger().run(attempt.run_id).spec.outputs.get("submitit", "").rstrip("/")


def may_move(submission_id: str) -> bool:
    """Whether its run may go to another site; asked of the ledger once for each submission."""
    if submission_id not in _MAY_MOVE:
        ledger = own_ledger()
        try:
            run = ledger.run(ledger.attempt(submission_id).run_id)
            _MAY_MOVE[submission_id] = run.burst_mode is not BurstMode.NEVER
        except NotFoundError:  # its executor keeps another ledger
            _MAY_MOVE[submission_id] = False
    return _MAY_MOVE[submission_id]


def _later(ledger: Ledger, attempt: Attempt, task: int | None) -> list[Attempt]:
    """Attempts at other sites: of the whole run, or of this element alone."""
    found = [a for a in ledger.attempts(attempt.run_id) if a.number > attempt.number]
    for event in ledger.events(attempt.run_id, "run.element"):
        if task is not None and event.data["task"] == task:
            found += ledger.attempts(str(event.data["run"]))
    return [a for a in found if a.role is Role.BURST and a.state is not JobState.REFUSED]


def successor(submission_id: str, task: int | None = None) -> Attempt | None:
    """The attempt at another site that took over: its command has begun there, or even ended.

    The ledger's word alone: who moves jobs writes ``attempt.handed_over``.
    """
    ledger = own_ledger()
    attempt = ledger.attempt(submission_id)
    later = [a for a in _later(ledger, attempt, task) if a.job_id is not None]
    if not later:
        return None
    heirs = {
        str(event.data["to"])
        for run_id in {a.run_id for a in later}
        for event in ledger.events(run_id, "attempt.handed_over")
        if event.submission_id == submission_id
    }
    for heir in reversed(later):
        if str(heir.ref) in heirs or heir.state is JobState.COMPLETED:
            return heir
    return None


def is_moving(submission_id: str, task: int | None = None) -> bool:
    """Whether another site has, or may have, an attempt of its run that is not over."""
    ledger = own_ledger()
    return any(not a.ended for a in _later(ledger, ledger.attempt(submission_id), task))
