"""Code and inputs go ahead of a likely move on real Slurm: copied, and nothing submitted."""

import json

import pytest
from burst_world import World, hpcscale

from hpcscale.burst.moves import Step
from hpcscale.connect import connect
from hpcscale.render import render
from hpcscale.site import load_site
from hpcscale.spec import BurstMode, BurstTerms, JobSpec, Resources
from hpcscale.submit import submit

pytestmark = [pytest.mark.lab, pytest.mark.slow]
STAYS = 'from = "lab-onprem"\nto = ["lab-cloud"]\npolicy = "constant-wait"\nwait = "10m"\n'
LEAVES = 'from = "lab-onprem"\nto = ["lab-cloud"]\npolicy = "always"\n'


@pytest.fixture
def world(lab_env, tmp_path):
    project = tmp_path / "project"
    project.mkdir()
    world = World(lab_env, project)
    yield world
    world.close()


def send(world):
    """A job that reads 20 MB and a file of its code; its submission."""
    data = world.project.parent / "data.bin"
    data.write_bytes(b"x" * 20_000_000)
    (world.project / "hello.txt").write_text("hello")
    spec = JobSpec(
        name="reads",
        command=("sh", "-c", 'cat hello.txt; wc -c < "$HPCSCALE_INPUT_DATA"'),
        workdir=str(world.project),
        inputs={"data": str(data)},
        resources=Resources(nodes=1, gpus_per_node=1, time_limit_s=600),
        burst=BurstTerms(mode=BurstMode.AUTO),
    )
    site = load_site("lab-onprem").site
    with connect(site) as connection:
        return submit(render(spec, site), site, connection, world.ledger)


def burst(verb, tmp_path, text):
    path = tmp_path / "P.toml"
    path.write_text(text)
    done = hpcscale("burst", *verb, "--policy", str(path), "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)["data"], done.stderr


def test_data_goes_ahead_and_the_move_finds_it_there(world, tmp_path):
    world.fill()
    job = send(world)
    planned, _ = burst(["plan"], tmp_path, STAYS)
    (decision,) = planned["decisions"]
    assert (decision["action"], decision["stage"]) == ("stay", "lab-cloud")
    assert "its code and inputs (0.02 GB) go to lab-cloud now" in decision["stage_why"]
    run_dir = f"{connect(load_site('lab-cloud').site).state_dir}/runs/{job.run_id}"
    cloud = world.lab.site("lab-cloud")
    assert cloud.exec(["test", "-e", run_dir]).returncode != 0, "a plan acts on nothing"

    _, said = burst(["run"], tmp_path, STAYS)
    assert "it is likely to leave" in said
    assert cloud.exec(["test", "-s", f"{run_dir}/inputs/data"]).returncode == 0
    assert cloud.exec(["test", "-s", f"{run_dir}/code/hello.txt"]).returncode == 0
    assert cloud.exec(["test", "-e", f"{run_dir}/script.sh"]).returncode != 0
    assert cloud.exec(["squeue", "-h", "-t", "all", "-n", "reads"]).stdout == ""
    assert len(world.ledger.attempts(job.run_id)) == 1
    _, said = burst(["run"], tmp_path, STAYS)
    assert "it is likely to leave" not in said, "it is sent once"

    done, _ = burst(["run", "--wait"], tmp_path, LEAVES)
    assert done["moves"][0]["target_state"] == "COMPLETED"
    assert world.step(job) is Step.DONE
    target = world.target(job)
    log = cloud.exec(["cat", f"{run_dir}/logs/{target.job_id}.log"]).stdout
    assert "hello" in log
    assert "20000000" in log
