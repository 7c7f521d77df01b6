"""What a site's users will ask for in the hours to come, against what its nodes can do.

For scaling ahead: nodes that boot in minutes are worth booting, and quotas worth raising, before
the hour in which the queue outgrows the site. Demand is by hour of the week (``forecast.demand``).
"""

import datetime as dt
import math

import msgspec

from hpcscale.connect import Connection
from hpcscale.errors import HpcscaleError
from hpcscale.forecast.demand import demand
from hpcscale.outlook.learned import history
from hpcscale.outlook.model import SiteModel
from hpcscale.outlook.snapshot import Level, Snapshot, asker_of, take


class Hour(msgspec.Struct, frozen=True):
    """One hour to come. Unit-hours are of GPUs where the site has any, else of nodes.

    Attributes:
        begins: aware UTC.
        arriving: unit-hours of work expected to be submitted in it.
        left_over: unit-hours that wait at its end, if nothing leaves.
        nodes_more: nodes of this site's kind that would have done it within the hour.
    """

    begins: dt.datetime
    arriving: float
    left_over: float
    nodes_more: int


class Ahead(msgspec.Struct, frozen=True):
    """The hours to come.

    Attributes:
        unit: ``GPU`` or ``node``.
        capacity: units of all nodes in service.
        backlog: unit-hours of what runs and waits now.
        weeks: whole weeks of history; 0: the mean of all hours stands for each.
        trend: last week over those before it, as far as it is followed.
    """

    site: str
    unit: str
    capacity: int
    backlog: float
    weeks: int
    trend: float
    learned_jobs: int
    hours: tuple[Hour, ...]


def ahead(connection: Connection, hours: int = 24) -> Ahead:
    """Demand of the next hours at a site.

    Raises:
        HpcscaleError: the site hides other people's jobs, or has no history.
        UnreachableError: no answer.
    """
    snapshot = take(connection)
    where = snapshot.site
    if snapshot.queue_level is Level.OWN:
        raise HpcscaleError(
            "its demand is not known: it hides other people's jobs (PrivateData)", where=where,
            hint="ask as root, SlurmUser or an operator",
        )  # fmt: skip
    past, notes = history(snapshot, asker_of(connection))
    if past is None:
        hint = "later: demand is learned from jobs that ended"
        if snapshot.history_level is Level.ABSENT:
            hint = "demand is learned from slurmdbd alone; hpcscale forecast JOB needs none"
        raise HpcscaleError(f"its demand is not known: {'; '.join(notes)}", where=where, hint=hint)
    model = SiteModel(snapshot, past)
    model.learn()
    usable = [node for node in snapshot.nodes if node.usable]
    by_gpu = any(node.gpus for node in usable)
    capacity = sum(node.gpus for node in usable) if by_gpu else len(usable)
    expected = demand(past.workload, float(snapshot.now_s), gpus=by_gpu)
    backlog = _backlog(snapshot, model, by_gpu=by_gpu)
    per_node = max(1, max((node.gpus for node in usable), default=0)) if by_gpu else 1
    return Ahead(
        site=where, unit="GPU" if by_gpu else "node", capacity=capacity, backlog=backlog,
        weeks=expected.weeks, trend=expected.trend, learned_jobs=len(past.workload),
        hours=_hours(snapshot.now_s, backlog, expected.ahead(hours).tolist(), capacity, per_node),
    )  # fmt: skip


def _backlog(snapshot: Snapshot, model: SiteModel, *, by_gpu: bool) -> float:
    """Unit-hours that are in the queue and on the nodes, by learned runtimes."""
    total = 0.0
    for job in snapshot.jobs:
        units = job.gpus if by_gpu else job.num_nodes
        seconds = model.expected_s(job)
        if job.state.active and job.start_s:
            seconds = max(0.0, seconds - (snapshot.now_s - job.start_s))
        total += units * seconds / 3600 * model.tasks(job)
    return total


def _hours(
    now_s: int, backlog: float, arriving: list[float], capacity: int, per_node: int
) -> tuple[Hour, ...]:
    """Hour by hour: what comes is done as far as the nodes go, the rest is carried on."""
    found = []
    for number, units in enumerate(arriving):
        backlog = max(0.0, backlog + units - capacity)
        begins = dt.datetime.fromtimestamp(now_s + 3600 * number, dt.UTC)
        found.append(Hour(begins, units, backlog, math.ceil(backlog / per_node)))
    return tuple(found)
