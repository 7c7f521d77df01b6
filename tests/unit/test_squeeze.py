"""Levers of a waiting job: another partition is offered where it helps, and set with consent."""

import msgspec
import pytest
from fake_sites import Sites
from queue_views import HOUR, PARTITIONS, nodes, pending, running, snapshot

from hpcscale.errors import NotFoundError, RefusedError
from hpcscale.outlook.answer import Forecast, Lever, _levers
from hpcscale.outlook.model import SiteModel
from hpcscale.outlook.snapshot import Level
from hpcscale.render import render
from hpcscale.spec import JobSpec, Resources
from hpcscale.squeeze import apply, choose
from hpcscale.submit import submit

FULL = running(1, "gpu[1-4]", since=600, num_nodes=4, cpus=32)


def partitions(job, **changes):
    """What is offered to a job of a full partition beside an empty one, ``cpu``."""
    facts = PARTITIONS | {"cpu": msgspec.structs.replace(PARTITIONS["cpu"], **changes)}
    seen = snapshot(FULL, job, facts=msgspec.structs.replace(snapshot().facts, partitions=facts))
    model = SiteModel(seen, None)
    model.learn()
    point = model.times(changed=job).start_s(job.job_id)
    return [lever for lever in _levers(model, job, point, new=False) if lever.change == "partition"]


def test_another_partition_is_offered_with_what_it_gains():
    (lever,) = partitions(pending(2))
    assert (lever.value, lever.start_s, lever.sooner_s) == ("cpu", 0.0, HOUR - 600)


@pytest.mark.parametrize(
    ("job", "changes"),
    [
        ({}, {"up": False}),
        ({}, {"allow_accounts": ("b",)}),
        ({}, {"deny_accounts": ("a",)}),
        ({}, {"allow_qos": ("high",)}),
        ({}, {"deny_qos": ("normal",)}),
        ({"limit_s": 9 * HOUR}, {}),  # over its MaxTime
        ({"gpus": 1}, {}),  # it has none
        ({"num_nodes": 3, "cpus": 24}, {}),  # it has two nodes
        ({"partitions": ("gpu", "cpu")}, {}),  # it is asked for already
    ],
)
def test_no_partition_is_offered_that_does_not_take_it(job, changes):
    assert partitions(pending(2, **job), **changes) == []


def test_a_partition_that_is_as_full_is_not_offered():
    busy = running(9, "cpu[1-2]", since=0, num_nodes=2, cpus=16, partitions=("cpu",))
    seen = snapshot(FULL, busy, pending(2), nodes=(*nodes(4, "gpu", 4), *nodes(2, "cpu")))
    model = SiteModel(seen, None)
    model.learn()
    assert _levers(model, seen.jobs[2], HOUR - 600, new=False) == []


def test_a_lever_that_is_not_offered_is_refused_with_those_that_are():
    other = Lever("partition", "cpu", "", 0.0, 60.0)
    offered = Forecast(
        site="onprem", job="2", state="PENDING", p50_s=1.0, p90_s=1.0, bound="", coverage=None,
        queue_level=Level.FULL, history_level=Level.FULL, learned_jobs=0, pending_jobs=1,
        slurm_s=None, levers=(other,), notes=(),
    )  # fmt: skip
    assert choose(offered, "partition") is other
    with pytest.raises(NotFoundError) as caught:
        choose(offered, "nodes")
    assert "levers offered: partition" in caught.value.hint


@pytest.fixture
def waiting(tmp_path):
    sites = Sites(tmp_path)
    sites.onprem.partitions["other"] = sites.onprem.node_names
    sites.fill()
    connection = sites.connections["lab-onprem"]
    spec = JobSpec(
        command=("true",), code="", partition="gpu",
        resources=Resources(nodes=1, time_limit_s=600),
    )  # fmt: skip
    done = submit(render(spec, connection.site), connection.site, connection, sites.ledger)
    sites.onprem.advance(1)
    return sites, connection, sites.ledger.attempt(done.submission_id)


def lever(value):
    return Lever("partition", value, "", 0.0, 60.0)


def test_a_waiting_job_goes_to_the_partition_and_that_is_noted(waiting):
    sites, connection, attempt = waiting
    done = apply(sites.ledger, connection, attempt, lever("other"), "partition")
    assert (done.field, done.before, done.after) == ("Partition", "gpu", "other")
    assert connection.client.show(attempt.job_id).partition == "other"
    (event,) = [e for e in sites.ledger.events() if e.kind == "request.squeezed"]
    assert (event.data["before"], event.data["after"]) == ("gpu", "other")


def test_what_slurm_does_not_set_is_no_success(waiting):
    sites, connection, attempt = waiting
    with pytest.raises(RefusedError, match="did not set Partition=nowhere"):
        apply(sites.ledger, connection, attempt, lever("nowhere"), "partition")
    assert connection.client.show(attempt.job_id).partition == "gpu"
    assert not [e for e in sites.ledger.events() if e.kind == "request.squeezed"]


def test_a_job_that_has_begun_is_left_alone(waiting):
    sites, connection, attempt = waiting
    sites.onprem.run(["scancel", "1"])
    sites.onprem.advance(30)
    with pytest.raises(RefusedError, match="does not wait any more"):
        apply(sites.ledger, connection, attempt, lever("other"), "partition")
