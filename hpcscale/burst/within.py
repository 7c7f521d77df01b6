"""A burst into a cloud partition of the same controller: may this job be moved there? Pure.

Slurm takes an ``scontrol update Partition`` of a waiting job also where the job could never start:
22.05 answers 0 to a wrong account, QOS, time or feature, and the job waits there for ever. So what
the partition has and allows is compared first: nodes, GPUs, CPUs, memory, time, account, QOS and
features; and a job that waits there for such a reason all the same is put back (``never_starts``).
"""

import re

import msgspec

from hpcscale.burst.fence import noted
from hpcscale.ledger import Attempt
from hpcscale.precheck import check
from hpcscale.render import partition_blockers, serves
from hpcscale.site import Site
from hpcscale.slurm.types import JobStatus, PartitionFacts, SiteFacts
from hpcscale.spec import JobSpec

FEDERATED = 1 << 26  # ids of a federation hold their origin's number above (slurm.conf, MaxJobId)
# Slurm's words for a job that will never start where it is (squeue(1), JOB REASON CODES)
NEVER = frozenset(
    {
        "AccountNotAllowed",
        "BadConstraints",
        "InvalidAccount",
        "InvalidQOS",
        "PartitionConfig",
        "PartitionDown",
        "PartitionInactive",
        "PartitionNodeLimit",
        "PartitionTimeLimit",
        "QOSNotAllowed",
    }
)
# and those with more words: "Job's QOS not permitted to use this partition (cloud allows …)"
_NEVER_BEGINS = ("Job's account ", "Job's QOS ", "Job's_account_", "Job's_QOS_")
_GRES_OPTIONS = ("gres", "gpus", "gpus-per-node", "gpus-per-task", "gpus-per-socket")


def never_starts(reason: str) -> bool:
    """Whether a job that waits for this reason will never start in its partition."""
    return reason in NEVER or reason.startswith(_NEVER_BEGINS)


def as_it_waits(spec: JobSpec, status: JobStatus | None, partition: str) -> JobSpec:
    """The request as Slurm holds it now, asked of another partition."""
    if status is None:
        return msgspec.structs.replace(spec, partition=partition)
    resources = spec.resources
    if status.time_limit_s is not None:
        resources = msgspec.structs.replace(resources, time_limit_s=status.time_limit_s)

    def word(now: str, asked: str | None) -> str | None:
        return now if now not in {"", "(null)", "N/A"} else asked

    return msgspec.structs.replace(
        spec,
        partition=partition,
        account=word(status.account, spec.account),
        qos=word(status.qos, spec.qos),
        resources=resources,
    )


def stays(
    spec: JobSpec,
    attempt: Attempt,
    status: JobStatus | None,
    facts: SiteFacts | None,
    *,
    origin: Site,
    target: Site,
) -> list[str]:
    """Why a waiting job cannot be moved into the partition; none: it can.

    Args:
        spec: as it was submitted.
        attempt: with the script that Slurm has.
        status: Slurm's word of the job.
        facts: of the controller, fresh; None: it gave no word of its partitions.
        origin: the site.
        target: ``origin.in_partition(...)``.
    """
    partition = target.default_partition or ""
    found = [] if target.burst.target else ["it is no burst target (burst.target = false)"]
    found += partition_blockers(spec, origin, target)
    if not found and not serves(attempt.script, target.name):
        found.append(
            f"its script has no profile for {target.name} (submitted before there was one?): "
            "submit it again"
        )
    if status is not None:
        found += _job_stays(status, partition)
    if facts is None:
        return [*found, f"{origin.name} gave no word of its partitions"]
    there = facts.partitions.get(partition)
    if there is None:
        listed = ", ".join(facts.partitions)
        return [*found, f"{origin.name} has no partition {partition!r}; it has {listed}"]
    if not there.up:
        found.append(f"partition {partition} is not up")
    now = as_it_waits(spec, status, partition)
    # what the profile's account and QOS were told when it was submitted is in the job
    found += [str(p) for p in check(now, origin, facts)]
    found += denied(now, there)
    found += lacking(now, origin, there)
    return found


def _job_stays(status: JobStatus, partition: str) -> list[str]:
    found = []
    if partition in status.partition.split(","):
        found.append("it waits in that partition already")
    if status.job_id.het_offset is not None:
        found.append("it is a heterogeneous job, and these do not move")
    if status.job_id.base >= FEDERATED:
        found.append("it is a job of a federation, and its siblings may start elsewhere")
    if status.restarts:
        found.append("it has run here before, and its hours would be counted at the cloud's price")
    if (fenced := noted(status.comment)) is not None:
        found.append(f"it is fenced, as it moves to {fenced[0]}")
    return found


def denied(spec: JobSpec, there: PartitionFacts) -> list[str]:
    """Account and QOS that the partition names as not allowed (DenyAccounts, DenyQos)."""
    return [
        f"{option}: partition {there.name} denies {asked!r}"
        for option, asked, names in (
            ("--account", spec.account, there.deny_accounts),
            ("--qos", spec.qos, there.deny_qos),
        )
        if asked and asked in names
    ]


def lacking(spec: JobSpec, origin: Site, there: PartitionFacts) -> list[str]:
    """Features and kinds of GRES that no node of the partition has."""
    found = []
    wanted = spec.constraint or spec.directives.get("constraint")
    wanted = wanted or origin.directives.get("constraint")
    if wanted and there.features:
        words = [w for w in re.split(r"[^\w.:-]+", re.sub(r"\*\d+", "", wanted)) if w]
        gone = [w for w in words if w not in there.features]
        if len(gone) == len(words) if "|" in wanted else gone:
            found.append(f"--constraint={wanted}: nodes of {there.name} have no {', '.join(gone)}")
    if there.gres:
        have = {tuple(kind.split(":")[:2]) for text in there.gres for kind in text.split(",")}
        for option in _GRES_OPTIONS:
            for word in (spec.directives.get(option) or "").split(","):
                parts = word.removeprefix("gres:").removeprefix("gres/").split(":")
                if option != "gres":
                    parts = ["gpu", *parts]
                if not word or word == "none":
                    continue
                kind = parts[1] if len(parts) > 1 and not parts[1].isdigit() else None
                fits = any(
                    name[0] == parts[0] and (kind is None or kind in name[1:]) for name in have
                )
                if not fits:
                    found.append(f"--{option}={word}: nodes of {there.name} have none")
    return found
