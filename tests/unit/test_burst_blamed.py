"""Nodes that failed under a run stay excluded: from the lost start to the fence and its undo."""

import pytest
from fake_sites import FENCE_FIRST, NODES, POLICY, Sites

from hpcscale.burst.handover import Handover
from hpcscale.burst.sight import look
from hpcscale.observe import observe
from hpcscale.render import render
from hpcscale.slurm.types import JobState
from hpcscale.submit import submit


@pytest.fixture(params=[POLICY, FENCE_FIRST], ids=["gate-first", "fence-first"])
def sites(request, tmp_path):
    sites = Sites(tmp_path)
    sites.policy = request.param
    yield sites
    sites.ledger.close()


def see(sites):
    observe(sites.ledger, sites)


def see_as_the_handover_does(sites):
    for attempt in sites.ledger.open_attempts():
        look(sites(attempt.site), attempt, sites.ledger)


def begun(sites):
    """A job of two nodes that runs on node1 and node2, as the ledger knows."""
    job = sites.submit()
    see(sites)
    assert sites.ledger.attempt(job.submission_id).nodes == "node[1-2]"
    return job


def blamed(sites, job):
    events = sites.ledger.events(job.run_id, "nodes.blamed")
    return [(e.data["site"], e.data["nodes"]) for e in events]


def fence(sites, job):
    """What Slurm excludes once the job is fenced; its move."""
    for _ in range(3):
        sites.tick()
        if "fenced" in sites.comment(job):
            return sites.excluded(job)
        sites.both(40)
        sites.report(sites.target(job).submission_id, "gated", time=100.0)
    pytest.fail("never fenced")


@pytest.mark.parametrize("looks", [see, see_as_the_handover_does])
def test_a_node_that_failed_stays_excluded_when_the_fence_goes(sites, looks):
    job = begun(sites)
    sites.onprem.fail_node("node1")  # Slurm requeues the job
    sites.batch("-N3", "--exclusive", "--time=9999")
    sites.user_excludes(job, "node3")
    sites.both(10)
    looks(sites)
    assert sites.ledger.attempt(job.submission_id).state is JobState.PENDING
    assert blamed(sites, job) == [("lab-onprem", "node1")]
    looks(sites)
    assert len(blamed(sites, job)) == 1
    sites.onprem.down_nodes.clear()  # it is up again before the fence goes
    assert fence(sites, job) == NODES
    move = Handover(sites.ledger, sites, sites.ledger.path.parent).undo(sites.move(job))
    assert (move.old_exc, move.blamed, move.fence) == ("node3", "node1", NODES)
    assert sites.excluded(job) == "node[1,3]"


def test_where_too_few_others_are_left_nothing_is_blamed(sites):
    job = begun(sites)
    sites.onprem.fail_node("node1")
    sites.batch("-N3", "--exclusive", "--time=9999")
    sites.user_excludes(job, "node[2-3]")
    sites.both(10)
    see(sites)
    assert blamed(sites, job) == [("lab-onprem", "node1")]
    fence(sites, job)
    move = Handover(sites.ledger, sites, sites.ledger.path.parent).undo(sites.move(job))
    assert (move.blamed, sites.excluded(job)) == ("", "node[2-3]")


@pytest.mark.parametrize("up_again", [False, True])
def test_a_job_that_ended_node_fail_blames_what_is_down(sites, up_again):
    """Its run goes on as another job, which is fenced with it."""
    job = begun(sites)
    sites.onprem.fail_node("node2", requeue=False)
    if up_again:
        sites.onprem.down_nodes.clear()
    see(sites)
    old = sites.ledger.attempt(job.submission_id)
    assert old.state is JobState.NODE_FAIL
    # which of two it was Slurm does not tell
    assert blamed(sites, job) == ([] if up_again else [("lab-onprem", "node2")])
    sites.batch("-N3", "--exclusive", "--time=9999")
    connection, run = sites("lab-onprem"), sites.ledger.run(job.run_id)
    rendered = render(run.spec, connection.site)
    again = submit(rendered, connection.site, connection, sites.ledger, run=run)
    assert fence(sites, again) == NODES
    Handover(sites.ledger, sites, sites.ledger.path.parent).undo(sites.move(again))
    assert sites.excluded(again) == ("" if up_again else "node2")


def test_the_only_node_of_a_job_that_ended_node_fail_is_blamed_also_when_it_is_up(sites):
    job = sites.submit()
    fake = sites.onprem.jobs[job.ref.job_id.base]
    fake.nodes = ["node4"]
    see(sites)
    sites.onprem.fail_node("node4", requeue=False)
    sites.onprem.down_nodes.clear()
    see(sites)
    assert blamed(sites, job) == [("lab-onprem", "node4")]


@pytest.mark.parametrize("down", [set(), {"node3"}])
def test_a_requeue_alone_blames_nobody(sites, down):
    """Preemption, its user's or its script's own; a node that was not its own may be down."""
    job = begun(sites)
    sites.onprem.down_nodes |= down
    assert sites("lab-onprem").client.requeue(job.ref.job_id)
    see(sites)
    assert sites.ledger.attempt(job.submission_id).restarts == 1
    assert blamed(sites, job) == []


def test_a_site_that_does_not_say_how_its_nodes_are_blames_nobody(sites, monkeypatch):
    job = begun(sites)
    sites.onprem.fail_node("node1")
    monkeypatch.setattr(sites.onprem, "_sinfo", lambda *_: (1, "", "sinfo: error"))
    see(sites)
    assert sites.ledger.attempt(job.submission_id).restarts == 1
    assert blamed(sites, job) == []
