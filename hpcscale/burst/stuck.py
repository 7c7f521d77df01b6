"""Why a waiting job cannot leave its site, whatever the target."""

from hpcscale.burst.arrays import wholly_pending
from hpcscale.burst.elements import limited
from hpcscale.burst.policy import Dependents, Policy
from hpcscale.burst.within import FEDERATED
from hpcscale.ledger import Attempt, Run
from hpcscale.site import Site
from hpcscale.slurm.types import Answer, JobStatus
from hpcscale.spec import JobSpec
from hpcscale.units import parse_array
from hpcscale.verify import mismatch

STANDS_IN = ".outcome"  # in a script: a job that lost its claim looks how the owner ended


def stuck(
    run: Run, attempt: Attempt, status: JobStatus | None, answer: Answer, origin: Site
) -> list[str]:
    """Why the job cannot leave its site, whatever the target."""
    spec = run.spec
    found: list[str] = []
    if (script := spec.script) is not None:
        found += [
            f"{script.path}:{line}: --{option} names jobs of {origin.name}"
            for line, option, _ in script.directives
            if option in {"dependency", "d"}
        ]
    claims = "hpcscale_claim" in attempt.script
    if spec.array is not None:
        claims = STANDS_IN in attempt.script  # as old as the claim on an array as a whole
    if not claims:
        found.append("its script makes no claim (an older hpcscale submitted it): submit it again")
    if status is None or attempt.job_id is None:
        return found
    if status.job_id.het_offset is not None:
        found.append("it is a heterogeneous job, and these do not move")
    if attempt.job_id.base >= FEDERATED:
        found.append("it is a job of a federation, and its siblings may start elsewhere")
    if spec.array is not None and attempt.task is None:
        records = [s for s in answer.of(attempt.job_id) if mismatch(attempt, s) is None]
        if why := wholly_pending(records, parse_array(spec.array)[0]):
            found.append(limited(spec.array) or why)
    if status.restarts and not _local_checkpoint(spec, origin):
        found.append(f"it has run here before, and what it left stays on {origin.name}")
    if status.dependency not in {"", "(null)"}:
        found.append(f"it waits for other jobs ({status.dependency}), which are known here alone")
    return found


def behind(attempt: Attempt, waits: list[str], origin: Site, policy: Policy) -> list[str]:
    """Why a job that others wait for cannot leave."""
    if not waits or (policy.dependents is not Dependents.REFUSE and STANDS_IN in attempt.script):
        return []
    text = f"{_list(waits)} on {origin.name} depends on it"
    return [f"{text}, and cancelling it here would start or strand that"]


def notes(waits: list[str]) -> tuple[str, ...]:
    """What the jobs that wait for it mean for its move."""
    if not waits:
        return ()
    return (f"{_list(waits)} waits for it, so it stays in the queue until its cloud job has ended",)


def dependents(answer: Answer, job: JobStatus) -> list[str]:
    """Ids of the jobs that wait for a job: anybody's by its id, its user's own as singletons."""
    return [
        str(other.job_id)
        for other in answer.waiting_for_others
        if other.job_id.base != job.job_id.base and _depends(other, job)
    ]


def _local_checkpoint(spec: JobSpec, origin: Site) -> bool:
    """Whether an earlier start's checkpoint is seen from this machine, and so goes along."""
    if spec.checkpoint is None:
        return True  # it begins anew at each start, here as there
    path = spec.checkpoint.dir
    return any(path.startswith(root.rstrip("/") + "/") for root in origin.shared_dirs)


def _depends(other: JobStatus, job: JobStatus) -> bool:
    for term in other.dependency.replace("?", ",").split(","):
        kind, _, ids = term.partition(":")
        same = (other.name, other.user) == (job.name, job.user)
        if kind.partition("(")[0] == "singleton" and same:
            return True
        numbers = [part.partition("(")[0].partition("+")[0].partition("_")[0]
                   for part in ids.split(":")]  # fmt: skip
        if str(job.job_id.base) in numbers:
            return True
    return False


def _list(ids: list[str]) -> str:
    return ids[0] if len(ids) == 1 else f"{ids[0]} and {len(ids) - 1} more"
