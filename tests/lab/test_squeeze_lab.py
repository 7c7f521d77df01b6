"""``hpcscale forecast JOB --apply``: a free lever, pulled at a job that waits, on real Slurm."""

import json
import os
import subprocess
import sys

import pytest
from burst_world import hpcscale
from lab_helpers import job, job_state, sbatch, until

from hpcscale.connect import connect
from hpcscale.ledger import Ledger
from hpcscale.render import render
from hpcscale.site import load_site
from hpcscale.spec import Checkpoint, JobSpec, Resources
from hpcscale.submit import submit

SAVE = """
import sys
from hpcscale.train.checkpoint import CheckpointStore
CheckpointStore(sys.argv[1]).save(1, {"x": 1})
"""


def waiting(ledger, project, nodes, **kw):
    spec = JobSpec(
        name="squeezed", command=("sleep", "30"), workdir=str(project),
        resources=Resources(nodes=nodes, time_limit_s=kw.pop("time_limit_s", 36000)), **kw,
    )  # fmt: skip
    site = load_site("lab-onprem").site
    with connect(site) as connection:
        return submit(render(spec, site), site, connection, ledger)


def apply(ref, lever, *more):
    return hpcscale("forecast", str(ref), "--apply", lever, "--json", *more)


@pytest.fixture
def project(tmp_path):
    made = tmp_path / "project"
    made.mkdir()
    return made


def test_fewer_nodes_or_another_partition_start_a_waiting_job(lab_env, project):
    site = lab_env.site("lab-onprem")
    busy = sbatch(site, "-N3", "--exclusive", "-t60", "-o/dev/null")
    until(lambda: job_state(site, busy) == "RUNNING", 30, "three nodes are taken")
    with Ledger.open() as ledger:
        wide = waiting(ledger, project, 2).ref
        done = apply(wide, "nodes")
        assert done.returncode == 2, done.stderr
        assert "not agreed to" in done.stderr
        assert job(site, str(wide.job_id))["NumNodes"].startswith("2")
        done = apply(wide, "nodes", "--yes")
        assert done.returncode == 0, done.stderr
        said = json.loads(done.stdout)["data"]
        assert (said["field"], said["before"], said["after"]) == ("NumNodes", "2", "1")
        until(lambda: job_state(site, str(wide.job_id)) == "RUNNING", 60, "one node is free")
        (event,) = [e for e in ledger.events() if e.kind == "request.squeezed"]
        assert event.data["after"] == "1"
        node = site.exec(["squeue", "-h", "-j", str(wide.job_id), "-o", "%N"]).stdout.strip()
        site.exec(["scancel", str(wide.job_id)], check=True)
        # a node that is free belongs to the other partitions alone
        others = ",".join(sorted({f"onprem{n}" for n in range(1, 5)} - {node}))
        site.exec(["scontrol", "update", "PartitionName=gpu", f"Nodes={others}"], check=True)
        try:
            here = waiting(ledger, project, 1).ref
            done = apply(here, "partition", "--yes")
            assert done.returncode == 0, done.stderr
            partition = json.loads(done.stdout)["data"]["after"]
            until(lambda: job_state(site, str(here.job_id)) == "RUNNING", 60, "it runs there")
            assert job(site, str(here.job_id))["Partition"] == partition != "gpu"
            site.exec(["scancel", str(here.job_id)], check=True)
            until(lambda: job_state(site, str(here.job_id)) == "CANCELLED", 60, "it has ended")
        finally:
            site.exec(["scontrol", "update", "PartitionName=gpu", "Nodes=onprem[1-4]"], check=True)


@pytest.mark.slow  # a lab with accounting, and a dozen jobs to learn from
def test_a_shorter_limit_only_where_a_checkpoint_verifies(lab_factory, use_lab, project):
    lab = use_lab(lab_factory(nodes=2, accounting=True))
    site = lab.site("lab-onprem")
    sbatch(site, "--array=1-12", "-t600", "-o/dev/null", script="true")
    listing = ["squeue", "-h", "-t", "PD,R,CG"]
    until(lambda: not site.exec(listing, check=True).stdout, 60, "short jobs have ended")
    busy = sbatch(site, "-N1", "--exclusive", "-t120", "-o/dev/null")
    until(lambda: job_state(site, busy) == "RUNNING", 30, "a node is taken")
    sbatch(site, "-N2", "--exclusive", "-t1200", "-o/dev/null", "--priority=1000")
    with Ledger.open() as ledger:
        bare = waiting(ledger, project, 1).ref
        kept = Checkpoint(dir="ck", lead_s=30, stop_wait_s=20)
        safe = waiting(ledger, project, 1, checkpoint=kept).ref

        def offered():
            done = hpcscale("forecast", str(safe), "--json")
            said, *_ = json.loads(done.stdout)["data"]
            return [lever for lever in said["levers"] if lever["change"] == "time"]

        def applied(ref, lever):
            # which levers there are changes while slurmdbd still tells of the jobs that have ended
            def accepted():
                done = apply(ref, lever, "--yes")
                assert done.returncode in {0, 8}, done.stderr
                return None if done.returncode else done

            return until(accepted, 90, f"{lever} is offered and applied")

        until(offered, 90, "a shorter limit is offered")
        done = apply(bare, "time", "--yes")
        assert done.returncode == 7, done.stderr
        assert "writes no checkpoint" in done.stderr
        done = apply(safe, "time", "--yes")
        assert done.returncode == 7, done.stderr
        assert "none verifies" in done.stderr
        assert job(site, str(safe.job_id))["TimeLimit"] == "10:00:00"
        saved = subprocess.run(
            [sys.executable, "-c", SAVE, str(project / "ck")], check=False, env=os.environ,
            capture_output=True, text=True, timeout=300,
        )  # fmt: skip
        assert saved.returncode == 0, saved.stderr
        done = applied(safe, "time-min")
        assert json.loads(done.stdout)["data"]["field"] == "TimeMin"
        until(lambda: job_state(site, str(safe.job_id)) == "RUNNING", 90, "backfill shortens it")
        assert job(site, str(safe.job_id))["TimeLimit"] != "10:00:00"
        site.exec(["scancel", str(safe.job_id)], check=True)
        until(lambda: job_state(site, str(safe.job_id)) == "CANCELLED", 60, "it has ended")
        safe = waiting(ledger, project, 1, checkpoint=kept).ref
        applied(safe, "time")
        until(lambda: job_state(site, str(safe.job_id)) == "RUNNING", 60, "backfill starts it")
        assert job_state(site, str(bare.job_id)) == "PENDING"
