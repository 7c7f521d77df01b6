"""A free lever pulled with consent: a waiting job's request is changed, and the change is seen.

A shorter limit ends what outlives it, so it is only set where a checkpoint verifies already: what
is cut off then goes on from there. ``time-min`` (scontrol(1)) lets Slurm shorten the limit by
itself where that starts the job sooner, down to the same bound and on the same condition.
"""

from pathlib import Path

import msgspec

from hpcscale.connect import Connection
from hpcscale.errors import BurstRefusedError, NotFoundError, RefusedError
from hpcscale.ledger import Attempt, Ledger, Run
from hpcscale.outlook.answer import Forecast, Lever
from hpcscale.slurm.types import JobState, JobStatus
from hpcscale.units import parse_duration_s
from hpcscale.verify import require_same

LEVERS = ("time", "time-min", "partition", "nodes")


class Squeezed(msgspec.Struct, frozen=True):
    """What was changed.

    Attributes:
        field: as in ``scontrol update``.
        before: as Slurm showed it; empty where it does not show it.
        after: as asked for; seen to stand where Slurm shows it.
    """

    job: str
    lever: str
    field: str
    before: str
    after: str


def choose(forecast: Forecast, name: str) -> Lever:
    """The best lever of that name.

    Raises:
        NotFoundError: the forecast offers none.
    """
    change = "time" if name == "time-min" else name
    for lever in forecast.levers:
        if lever.change == change:
            return lever
    offered = ", ".join(sorted({lever.change for lever in forecast.levers})) or "none"
    raise NotFoundError(
        f"no other {change} would start {forecast.site}:{forecast.job} a minute sooner",
        hint=f"hpcscale forecast {forecast.site}:{forecast.job}  (levers offered: {offered})",
    )


def apply(
    ledger: Ledger, connection: Connection, attempt: Attempt, lever: Lever, name: str
) -> Squeezed:
    """Pull a lever at a job that still waits.

    Args:
        ledger: notes it.
        connection: to the job's site.
        attempt: the job.
        lever: from its forecast.
        name: of ``LEVERS``.

    Raises:
        BurstRefusedError: no checkpoint verifies, so a shorter limit could lose work.
        NotThisJobError: the id names another job now.
        RefusedError: it does not wait any more, or Slurm refused.
        UnreachableError: no answer.
    """
    assert attempt.job_id is not None
    run = ledger.run(attempt.run_id)
    if name in {"time", "time-min"}:
        _require_checkpoint(run, parse_duration_s(lever.value) or 0)
    status = require_same(attempt, connection.client, attempt.job_id)
    if status is None or status.state is not JobState.PENDING:
        word = "not known to Slurm" if status is None else status.state.value
        raise RefusedError(f"{attempt.ref} does not wait any more: it is {word}")
    fields = _fields(run, lever, name)
    field, after = next(iter(fields.items()))
    before = _shown(status, field)
    accepted = connection.client.update(attempt.job_id, fields)
    now = require_same(attempt, connection.client, attempt.job_id)
    if now is None or not accepted or _shown(now, field) not in {"", _same_words(field, after)}:
        raise RefusedError(
            f"Slurm did not set {field}={after} of {attempt.ref}",
            hint=f"scontrol update JobId={attempt.job_id} {field}={after}  (says why)",
        )
    done = Squeezed(str(attempt.ref), name, field, before, after)
    ledger.event(
        run.run_id, "request.squeezed", msgspec.to_builtins(done),
        submission_id=attempt.submission_id,
    )  # fmt: skip
    return done


def _require_checkpoint(run: Run, limit_s: int) -> None:
    from hpcscale.train.checkpoint import CheckpointStore

    kept = run.spec.checkpoint
    if kept is None:
        raise BurstRefusedError(
            "a shorter limit ends what outlives it, and this job writes no checkpoint",
            hint="another lever; or --checkpoint-dir at submission, for the next one",
        )
    path = Path(run.spec.workdir or run.cwd) / kept.dir
    if CheckpointStore(path).newest() is None:
        raise BurstRefusedError(
            f"a shorter limit could end it before its first checkpoint: none verifies in {path}",
            hint="another lever; or again once it has saved one",
        )
    least_s = 2 * (kept.lead_s + kept.stop_wait_s)
    if limit_s < least_s:
        raise BurstRefusedError(
            f"a limit of {limit_s} s leaves no time to work between its checkpoints "
            f"(they take {kept.lead_s} + {kept.stop_wait_s} s)",
        )


def _fields(run: Run, lever: Lever, name: str) -> dict[str, str]:
    match name:
        case "time":
            return {"TimeLimit": lever.value}
        case "time-min":
            return {"TimeMin": lever.value}
        case "partition":
            return {"Partition": lever.value}
    tasks = run.spec.resources.tasks_per_node or 1
    return {"NumNodes": lever.value, "NumTasks": str(int(lever.value) * tasks)}


def _shown(status: JobStatus, field: str) -> str:
    """What Slurm shows of a field; empty where squeue does not show it."""
    match field:
        case "TimeLimit":
            return "" if status.time_limit_s is None else str(status.time_limit_s)
        case "Partition":
            return status.partition
        case "NumNodes":
            return str(status.num_nodes) if status.num_nodes else ""
    return ""


def _same_words(field: str, value: str) -> str:
    return str(parse_duration_s(value)) if field == "TimeLimit" else value
