"""Slurm's reason words in plain ones. Words: JOB REASON CODES of squeue(1)."""

from hpcscale.slurm.types import JobState

_WORDS = {
    "None": "",
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
    "JobLaunchFailure": "could not be launched",
    "launch failed requeued held": "launch failed; requeued and held (scontrol release)",
    "NodeDown": "a node it needs is down",
    "Licenses": "waits for a licence",
    "BurstBufferResources": "waits for burst buffer space",
    "Cleaning": "being cleaned up before it runs again",
    "TimeLimit": "ran into its time limit",
    "NonZeroExitCode": "the command failed",
    "OutOfMemory": "used more memory than it asked for",
    "RaisedSignal": "ended by a signal",
    "SystemFailure": "a failure of the system",
    "Nodes required for job are DOWN, DRAINED or reserved for jobs in higher priority partitions": (
        "its nodes are down, drained or kept for others"
    ),
}


def explain(reason: str, state: JobState) -> str:
    """A sentence part for Slurm's reason; Slurm's own text where there is none."""
    text = reason.strip().strip("()")
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
            98: "exit 98: nothing was started, another has the claim (docs/handover.md)",
            99: "exit 99: the bound of restarts is reached",
        }
        return known.get(exit_code, f"exit {exit_code}")
    return ""
