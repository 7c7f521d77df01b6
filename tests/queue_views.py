"""Snapshots of a queue, made by hand, for tests of forecasts."""

import datetime as dt

from hpcscale.outlook.snapshot import Level, Snapshot
from hpcscale.slurm.types import JobState, PartitionFacts, SiteFacts
from hpcscale.slurm.whole import NodeFacts, QueuedJob

NOW = 1_800_000_000
HOUR = 3600
PARTITIONS = {
    "gpu": PartitionFacts(
        name="gpu",
        default=True,
        default_time_s=HOUR,
        total_nodes=4,
        cpus_per_node=8,
        gpus_per_node=4,
    ),
    "cpu": PartitionFacts(name="cpu", max_time_s=8 * HOUR, total_nodes=2, cpus_per_node=8),
}


def nodes(count, partition, gpus=0, usable=True, first=1):
    names = [f"{partition}{at}" for at in range(first, first + count)]
    return tuple(NodeFacts(name, (partition,), 8, gpus, usable) for name in names)


def snapshot(*jobs, **fields):
    values = {
        "site": "onprem",
        "user": "ann",
        "now_s": NOW,
        "jobs": jobs,
        "nodes": (*nodes(4, "gpu", 4), *nodes(2, "cpu")),
        "reservations": (),
        "facts": SiteFacts(
            version="22.05.8", cluster="c", partitions=PARTITIONS,
            fetched_at=dt.datetime(2026, 11, 22, tzinfo=dt.UTC), has_accounting=True,
        ),
        "queue_level": Level.FULL,
        "history_level": Level.FULL,
    }  # fmt: skip
    return Snapshot(**(values | fields))


def pending(job_id, *, priority=100, **fields):
    values = {
        "job_id": str(job_id), "state": JobState.PENDING, "user": "ann", "account": "a",
        "partitions": ("gpu",), "qos": "normal", "reason": "Priority", "nodes": "", "num_nodes": 1,
        "cpus": 8, "gpus": 0, "exclusive": False, "dependency": "", "array_pending": "",
        "priority": priority, "limit_s": HOUR, "submit_s": NOW - 60, "eligible_s": NOW - 60,
        "start_s": None,
    }  # fmt: skip
    return QueuedJob(**(values | fields))


def running(job_id, nodes, since=0, **fields):
    return pending(
        job_id, **fields | {"state": JobState.RUNNING, "nodes": nodes, "start_s": NOW - since}
    )
