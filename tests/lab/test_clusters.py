"""Two clusters in one slurmdbd: the other one is asked with -M, from this one's login node."""

import json

import pytest
from burst_world import World
from job_helpers import data, hpcscale
from lab_helpers import impatient

from hpcscale.burst.moves import Step
from hpcscale.connect import connect
from hpcscale.errors import NotSentError, UnreachableError
from hpcscale.lab import faults
from hpcscale.lab.process import wait_until
from hpcscale.site import load_site
from hpcscale.slurm.types import JobState


def by_m(lab, monkeypatch):
    """lab-cloud by -M: no ssh at all, the on-prem site's commands and configuration."""
    for key, value in {
        "KIND": "local",
        "CLUSTER": "lab-cloud",
        "SLURM_CONF": lab.env()["SLURM_CONF"],
    }.items():
        monkeypatch.setenv(f"HPCSCALE_SITE__LAB_CLOUD__TRANSPORT__{key}", value)
    faults.ssh_cut(lab, "refuse")  # nothing goes over ssh
    return lab


@pytest.fixture
def m_lab(lab_factory, use_lab, monkeypatch):
    return by_m(use_lab(lab_factory(nodes=1, accounting=True, one_slurmdbd=True)), monkeypatch)


@pytest.mark.begins_first
def test_a_site_by_m_from_submit_to_outage(m_lab, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in.txt").write_text("input\n")
    options = ("--site", "lab-cloud", "--gpus-per-node", "1", "--time", "5", "--no-code",
               "--input", "i=in.txt", "--output", "o=out.txt")  # fmt: skip
    body = 'cat "$HPCSCALE_INPUT_I" > "$HPCSCALE_OUTPUT_O"; echo on $SLURM_CLUSTER_NAME'
    ref = hpcscale("submit", *options, "--", "sh", "-c", body).stdout.partition("  ")[0]
    assert ref.startswith("lab-cloud:")
    hpcscale("wait", ref)
    assert hpcscale("logs", ref).stdout == "on lab-cloud\n"
    assert (tmp_path / "out.txt").read_text() == "input\n"
    assert data("status", ref)["runs"][0]["attempts"][0]["state"] == "COMPLETED"
    # the on-prem cluster never saw it
    assert m_lab.site("lab-onprem").exec(["squeue", "-h", "-t", "all"]).stdout == ""

    # checked and drafted the same way, but for a step on one of its nodes
    checked = json.loads(hpcscale("site", "check", "lab-cloud", "--probe-job", "--json").stdout)
    found = {c["name"]: c["verdict"] for c in checked["data"]["checks"]}
    assert found.pop("seen from the nodes") == "skipped"
    assert set(found.values()) == {"ok"}
    drafted = hpcscale("site", "detect", "--cluster", "lab-cloud", "-o", "-")
    assert 'cluster = "lab-cloud"' in drafted.stdout
    assert 'features = ["cloud", "h100"]' in drafted.stdout
    assert "research" in drafted.stdout

    connection = connect(load_site("lab-cloud").site)
    client = connection.client
    assert client.facts().cluster == "lab-cloud"
    assert {"research", "teaching"} <= set(client.facts().accounts)
    held = client.sbatch("#!/bin/sh\ntrue\n", ["--hold", "--chdir=/", "--output=/dev/null"])
    assert client.show(held).state is JobState.PENDING

    # slurmdbd away: a question or a submit that did not get out is told from one without answer
    faults.slurmdbd(m_lab, "stop")
    with pytest.raises(UnreachableError):
        client.jobs([held])
    with pytest.raises(NotSentError):
        client.sbatch("#!/bin/sh\ntrue\n", ["--comment=never", "--output=/dev/null"])
    with pytest.raises(UnreachableError):
        client.cancel(held)
    faults.slurmdbd(m_lab, "start")

    def answers():
        try:
            return client.now()
        except UnreachableError:
            return None

    assert wait_until(lambda: answers() is not None, 30)
    assert client.cancel(held)
    # the other controller dead: the same, and nothing was submitted
    faults.controller(m_lab, "lab-cloud", "kill")
    with impatient(m_lab):  # the commands of the on-prem site's login node
        with pytest.raises(UnreachableError):
            client.now()
        with pytest.raises(NotSentError):
            client.sbatch("#!/bin/sh\ntrue\n", ["--comment=never", "--output=/dev/null"])
    faults.clear(m_lab)
    assert wait_until(lambda: answers() is not None, 60)
    assert not [s for s in client.jobs().jobs.values() if s.comment == "never"]


@pytest.mark.slow  # a whole move, in a lab with accounting
@pytest.mark.timeout(300)
def test_a_job_overflows_to_a_cluster_by_m(lab_factory, use_lab, tmp_path, monkeypatch):
    options = {"accounting": True, "one_slurmdbd": True, "boot_delay_s": 0.3}
    lab = by_m(use_lab(lab_factory(**options)), monkeypatch)
    (tmp_path / "project").mkdir()
    world = World(lab, tmp_path / "project")
    try:
        world.fill()
        job = world.submit("echo ran on $SLURM_CLUSTER_NAME")
        assert world.settled(job, 120).step is Step.DONE
        target = world.target(job)
        assert (target.site, target.exit_code, world.starts(job)) == ("lab-cloud", 0, 1)
        assert "ran on lab-cloud" in hpcscale("logs", job.run_id).stdout
        assert world.state("lab-onprem", job.ref.job_id) == "CANCELLED"
        # a cancel while it runs there reaches the other cluster
        job = world.submit("sleep 300")
        world.ticks_until(lambda: world.moves.of_run(job.run_id), 60, "it moves")
        world.ticks_until(lambda: world.step(job) is Step.MOVED, 120, "it runs there")
        hpcscale("cancel", "--yes", job.run_id)
        assert world.settled(job, 60).step is Step.DONE
        assert world.state("lab-cloud", world.target(job).ref.job_id) == "CANCELLED"
    finally:
        world.close()
