"""Is it still that job? Slurm reuses ids: every act on a job asks here first.

After a crash the controller forgets its last seconds and gives the ids of those jobs out again, to
anybody. A job is ours when its comment holds our submission id; user and submit time agree then.
"""

import functools

from hpcscale.errors import NotThisJobError
from hpcscale.ledger import Attempt
from hpcscale.slurm.client import SlurmClient
from hpcscale.slurm.types import JobStatus
from hpcscale.units import JobId

COMMENT_KEY = "hpcscale="


def comment_with(old: str | None, submission_id: str) -> str:
    """``--comment`` with our submission id appended to what the user has there."""
    ours = f"{COMMENT_KEY}{submission_id}"
    return f"{old};{ours}" if old else ours


@functools.lru_cache(maxsize=50_000)  # a queue is read again and again
def submission_of(comment: str) -> str | None:
    """The submission id in a comment; None when there is none."""
    _, key, rest = comment.rpartition(COMMENT_KEY)
    candidate = rest[:19]
    return candidate if key and candidate.startswith("hs-") and len(candidate) == 19 else None


def mismatch(attempt: Attempt, status: JobStatus) -> str | None:
    """Why this status is not of that attempt; None when it is."""
    if submission_of(status.comment) != attempt.submission_id:
        return f"its comment is {status.comment!r}, not ours"
    if attempt.job_user and status.user and status.user != attempt.job_user:
        return f"its user is {status.user}, not {attempt.job_user}"
    if attempt.submit_time and status.submit_time and attempt.array_size is None:
        # a requeue sets it anew and counts; a controller that dies may forget both again
        requeued = status.restarts or attempt.restarts
        older = status.submit_time < attempt.submit_time and not attempt.restarts
        if older or (status.submit_time != attempt.submit_time and not requeued):
            return f"it was submitted at {status.submit_time}, ours at {attempt.submit_time}"
    return None


def require_same(attempt: Attempt, client: SlurmClient, job_id: JobId) -> JobStatus | None:
    """The job's status when it is still that job; None when Slurm has no such job any more.

    Raises:
        NotThisJobError: the id names another job now.
        UnreachableError: no answer.
    """
    status = client.show(job_id)
    if status is None:
        return None
    if why := mismatch(attempt, status):
        raise NotThisJobError(
            f"{attempt.site}:{job_id} is another job now ({why}); nothing was done to it",
            hint=f"Slurm gave the id away again: the run {attempt.run_id} is not there any more; "
            f"hpcscale status {attempt.run_id}",
        )
    return status
