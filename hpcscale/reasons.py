"""Slurm's reason words in plain ones. Words: JOB REASON CODES of squeue(1)."""

from hpcscale.slurm.types import JobState

_WAITS = {
    "Resources": "waits for free nodes: next in line",
    "Priority": "others are before it in the queue",
    "Dependency": "waits for another job",
    "DependencyNeverSatisfied": "the job it waits for failed: it will never start",
    "BeginTime": "not before its begin time",
    "JobHeldUser": "held by its owner (scontrol release)",
    "JobHeldAdmin": "held by an administrator",
    "BadConstraints": "no node fits what it asks for",
    "ReqNodeNotAvail": "its nodes are down or reserved",
    "Reservation": "waits for its reservation",
    "PartitionDown": "the partition is down",
    "PartitionInactive": "the partition takes no starts",
    "PartitionNodeLimit": "asks for more nodes than the partition allows",
    "PartitionTimeLimit": "asks for more time than the partition allows",
    "PartitionConfig": "the partition does not allow it",
    "AccountNotAllowed": "its account may not use the partition",
    "QOSNotAllowed": "its QOS may not use the partition",
    "InvalidAccount": "its account is not valid",
    "InvalidQOS": "its QOS is not valid",
    "JobArrayTaskLimit": "as many elements run as --array allows at once",
    "launch failed requeued held": "launch failed; requeued and held (scontrol release)",
    "Licenses": "waits for a licence",
    "BurstBufferResources": "waits for burst buffer space",
    "Cleaning": "being cleaned up before it runs again",
    "Nodes required for job are DOWN, DRAINED or reserved for jobs in higher priority partitions": (
        "its nodes are down, drained or kept for others"
    ),
}
_WORDS = _WAITS | {
    "None": "",
    "JobLaunchFailure": "could not be launched",
    "NodeDown": "a node it needs is down",
    "TimeLimit": "ran into its time limit",
    "NonZeroExitCode": "the command failed",
    "OutOfMemory": "used more memory than it asked for",
    "RaisedSignal": "ended by a signal",
    "SystemFailure": "a failure of the system",
}


def explain(reason: str, state: JobState) -> str:
    """A sentence part for Slurm's reason; Slurm's own text where there is none.

    Why a job waited says nothing of how it ended, but Slurm keeps it: empty then.
    """
    text = reason.strip().strip("()")
    if state.terminal and (text in _WAITS or text.startswith("ReqNodeNotAvail")):
        return ""
    if text in _WORDS:
        return _WORDS[text]
    if text.startswith("ReqNodeNotAvail"):
        return _WORDS["ReqNodeNotAvail"]
    if state is JobState.PENDING and text.startswith(("QOS", "Assoc", "MaxCpu", "MaxJobs")):
        whose = "QOS" if text.startswith("QOS") else "account"
        return f"a limit of its {whose} is reached ({text})"
    return text


def explain_exit(exit_code: int | None, exit_signal: int | None) -> str:
    """How a process ended: ``exit 1``, ``signal 9``; empty for success or when unknown."""
    if exit_signal:
        return f"signal {exit_signal}"
    if exit_code:
        known = {
            97: "exit 97: the script's set-up failed, see the log",
            98: "exit 98: its command was not started here (docs/handover.md)",
            99: "exit 99: the bound of restarts is reached",
        }
        return known.get(exit_code, f"exit {exit_code}")
    return ""


def explain_end(
    state: JobState, reason: str, exit_code: int | None, exit_signal: int | None
) -> str:
    """How and why a job ended: its exit where it failed, else what Slurm gives as the reason."""
    ending = explain_exit(exit_code, exit_signal)
    return ending if ending and state is JobState.FAILED else explain(reason, state) or ending
