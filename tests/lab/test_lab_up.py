"""A plain lab: both sites work as documented."""

import json
import os
import subprocess
import sys
import time

from lab_helpers import Stopwatch, job_state, output, sbatch, ssh, until

from hpcscale.lab import Lab
from hpcscale.lab.process import patience


def test_every_daemon_runs_and_every_node_is_usable(lab):
    status = lab.status()
    assert status["up"]
    for site in status["sites"].values():
        assert set(site["daemons"].values()) == {"running"}
    assert status["sites"]["lab-onprem"]["nodes"] == {f"onprem{i}": "idle" for i in range(1, 5)}
    assert set(status["sites"]["lab-cloud"]["nodes"]) == {f"cloud{i}" for i in range(1, 5)}


def test_up_takes_less_than_five_seconds(lab_factory):
    watch = Stopwatch()
    lab = lab_factory()
    assert watch.idle_machine_s(lab) < 5


def test_gpus_are_given_out_by_index(lab):
    done = lab.site("lab-onprem").exec(
        ["srun", "-N2", "--gpus-per-node=2", "sh", "-c", "echo $(hostname):$CUDA_VISIBLE_DEVICES"]
    )
    assert sorted(done.stdout.split()) == ["onprem1:0,1", "onprem2:0,1"], done.stderr


def test_partitions_topology_and_gpu_shape(lab):
    site = lab.site("lab-onprem")
    sinfo = site.exec(["sinfo", "-h", "-o", "%P %D %G"], check=True).stdout.split("\n")
    assert set(filter(None, sinfo)) == {f"{p} 4 gpu:h100:4" for p in ("gpu*", "spot", "urgent")}
    topology = site.exec(["scontrol", "show", "topology"], check=True).stdout
    assert "SwitchName=leaf1 Level=0" in topology
    assert "SwitchName=leaf2 Level=0" in topology
    assert "SwitchName=spine Level=1" in topology


def test_this_machine_is_the_login_node_of_onprem(lab_env, monkeypatch):
    done = subprocess.run(
        ["srun", "-N4", "hostname"],
        capture_output=True,
        text=True,
        timeout=patience(30),
        check=False,
    )
    assert sorted(done.stdout.split()) == [f"onprem{i}" for i in range(1, 5)], done.stderr


def test_spot_is_preempted_by_urgent_and_requeued(lab):
    site = lab.site("lab-onprem")
    spot = sbatch(site, "-p", "spot", "-N4", "--exclusive")
    until(lambda: job_state(site, spot) == "RUNNING", 20, "spot job runs")
    urgent = sbatch(site, "-p", "urgent", "-N4", "--exclusive", script="sleep 1")
    until(lambda: job_state(site, urgent) in {"RUNNING", "COMPLETED"}, 20, "urgent job runs")
    restarts = until(
        lambda: site.exec(["scontrol", "-o", "show", "job", spot]).stdout.count("Restarts=1"),
        20,
        "spot job requeued",
    )
    assert restarts == 1


def test_cloud_nodes_boot_for_a_job_that_came_over_ssh(lab_factory):
    lab = lab_factory(nodes=2)
    cloud = lab.site("lab-cloud")
    script = "#!/bin/sh\n#SBATCH -N2 --gpus-per-node=4 -o boot-%j.out\nsrun hostname\n"
    job_id = ssh(lab, f"cd {cloud.paths.scratch} && sbatch --parsable", stdin=script).stdout.strip()
    # the controller looks at configuring jobs every 30 s
    until(lambda: job_state(cloud, job_id) == "COMPLETED", 75, "cloud job done")
    assert sorted(output(cloud, f"boot-{job_id}.out").split()) == ["cloud1", "cloud2"]


def test_cloud_nodes_power_down_when_idle(lab_factory):
    lab = lab_factory(nodes=2, fast=10, suspend_time_s=20, boot_delay_s=0.2)
    cloud = lab.site("lab-cloud")
    job_id = sbatch(cloud, "-N2", "-o", "/dev/null", script="srun hostname")
    until(lambda: job_state(cloud, job_id) == "COMPLETED", 40, "cloud job done")
    until(lambda: set(cloud.node_states().values()) == {"idle~"}, 40, "nodes powered down")
    # the program that Slurm started for it may be slower than Slurm believes
    log = cloud.paths.log / "power.log"
    until(lambda: log.read_text().count("powered off") == 2, 40, "and switched off")
    assert log.read_text().count("booted") == 2


def test_the_accelerated_controller_ends_a_one_minute_job_soon(lab_factory):
    lab = lab_factory(nodes=1, fast=20)
    site = lab.site("lab-onprem")
    job_id = sbatch(site, "-t1", "-o", "/dev/null")
    until(lambda: job_state(site, job_id) == "RUNNING", 20, "job runs")
    begin = time.monotonic()
    until(lambda: job_state(site, job_id) == "TIMEOUT", 30, "time limit reached")
    # no job ends at its limit of one real minute before that has passed
    assert time.monotonic() - begin < 60


def test_overlays_describe_this_lab(lab_env):
    from hpcscale.site import load_site

    onprem, cloud = load_site("lab-onprem").site, load_site("lab-cloud").site
    assert onprem.transport.slurm_conf == os.environ["SLURM_CONF"]
    assert onprem.state_dir.startswith(str(lab_env.state.directory / "lab-onprem"))
    assert cloud.transport.port == lab_env.state.sites["lab-cloud"].ports["sshd"]
    assert cloud.software["lab-python"].venv == sys.prefix
    # the directory exists, and an atomic link works there
    for name, site in (("lab-onprem", onprem), ("lab-cloud", cloud)):
        done = lab_env.site(name).exec(
            ["sh", "-c", f"cd {site.state_dir} && touch a && ln a b && rm a b"]
        )
        assert done.returncode == 0, done.stderr


def test_open_finds_the_lab_again(lab):
    found = Lab.open(lab.state.directory)
    assert found.site("lab-cloud").exec(["hostname"], check=True).stdout == "lab-cloud\n"
    assert json.loads((lab.state.directory / "lab.json").read_text())["ready"] is True
