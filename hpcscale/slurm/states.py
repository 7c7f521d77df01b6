"""From Slurm's words for a job's state to ours.

Words: JOB STATE CODES of squeue(1) and sacct(1), long and compact. What the table does not know is
UNKNOWN, and ``JobStatus.raw_state`` keeps the word.
"""

from hpcscale.slurm.types import JobState

_LONG = {
    "PENDING": JobState.PENDING,
    "CONFIGURING": JobState.CONFIGURING,
    "RUNNING": JobState.RUNNING,
    "SUSPENDED": JobState.SUSPENDED,
    "STOPPED": JobState.SUSPENDED,  # SIGSTOP while its CPUs are kept
    "SIGNALING": JobState.RUNNING,
    "STAGE_OUT": JobState.COMPLETING,  # burst buffer: still holds resources
    "RESIZING": JobState.RUNNING,
    "POWER_UP_NODE": JobState.CONFIGURING,
    "COMPLETING": JobState.COMPLETING,
    "REQUEUED": JobState.REQUEUED,
    "REQUEUE_FED": JobState.REQUEUED,
    "REQUEUE_HOLD": JobState.PENDING,
    "RESV_DEL_HOLD": JobState.PENDING,
    "SPECIAL_EXIT": JobState.PENDING,  # requeued and held, marked by its exit code
    "COMPLETED": JobState.COMPLETED,
    "FAILED": JobState.FAILED,
    "LAUNCH_FAILED": JobState.FAILED,
    "RECONFIG_FAIL": JobState.FAILED,
    "TIMEOUT": JobState.TIMEOUT,
    "OUT_OF_MEMORY": JobState.OUT_OF_MEMORY,
    "CANCELLED": JobState.CANCELLED,
    "PREEMPTED": JobState.PREEMPTED,
    "NODE_FAIL": JobState.NODE_FAIL,
    "BOOT_FAIL": JobState.BOOT_FAIL,
    "DEADLINE": JobState.DEADLINE,
    "REVOKED": JobState.REVOKED,
}

_COMPACT = {
    "PD": "PENDING",
    "CF": "CONFIGURING",
    "R": "RUNNING",
    "S": "SUSPENDED",
    "ST": "STOPPED",
    "SI": "SIGNALING",
    "SO": "STAGE_OUT",
    "RS": "RESIZING",
    "CG": "COMPLETING",
    "RQ": "REQUEUED",
    "RF": "REQUEUE_FED",
    "RH": "REQUEUE_HOLD",
    "RD": "RESV_DEL_HOLD",
    "SE": "SPECIAL_EXIT",
    "CD": "COMPLETED",
    "F": "FAILED",
    "LF": "LAUNCH_FAILED",
    "TO": "TIMEOUT",
    "OOM": "OUT_OF_MEMORY",
    "CA": "CANCELLED",
    "PR": "PREEMPTED",
    "NF": "NODE_FAIL",
    "BF": "BOOT_FAIL",
    "DL": "DEADLINE",
    "RV": "REVOKED",
}

# A flag beside a base state: these tell more than the base word they stand with.
_FLAGS_FIRST = (
    "COMPLETING",
    "CONFIGURING",
    "POWER_UP_NODE",
    "STAGE_OUT",
    "REQUEUE_HOLD",
    "SPECIAL_EXIT",
    "REQUEUE_FED",
    "REQUEUED",
    "REVOKED",
)


def job_state(raw: str) -> JobState:
    """Our state for Slurm's word.

    Args:
        raw: long or compact, any case, with what Slurm may add: ``CANCELLED by 1000``,
            ``CANCELLED+`` (cut by a column), ``RUNNING,COMPLETING`` or ``COMPLETED+COMPLETING``.
    """
    state = _SEEN.get(raw)
    if state is None:
        state = _parse(raw)
        if len(_SEEN) < 1000:
            _SEEN[raw] = state
    return state


def _parse(raw: str) -> JobState:
    words = [w for w in raw.upper().replace(",", " ").replace("+", " ").split() if w]
    if "BY" in words:  # CANCELLED by 1000
        words = words[: words.index("BY")]
    words = [_COMPACT.get(w, w) for w in words]
    for flag in _FLAGS_FIRST:
        if flag in words:
            return _LONG[flag]
    if len(words) == 1:
        return _LONG.get(words[0], JobState.UNKNOWN)
    known = [_LONG[w] for w in words if w in _LONG]
    return known[0] if len(set(known)) == 1 else JobState.UNKNOWN


_SEEN: dict[str, JobState] = dict(_LONG)
