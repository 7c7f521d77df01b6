"""``hpcscale site check`` on real Slurm: what works is said, what does not is named."""

import json
import time

import pytest
from click.testing import CliRunner
from lab_helpers import impatient, until

from hpcscale.cli import main
from hpcscale.connect import connect
from hpcscale.errors import RefusedError, UnreachableError
from hpcscale.lab import faults
from hpcscale.precheck import cached_facts, check, fetch_facts
from hpcscale.site import load_site
from hpcscale.spec import JobSpec, Resources


def site_check(*args):
    """Exit code and {check name: check} of one `site check --json`."""
    result = CliRunner().invoke(main, ["site", "check", *args, "--json"], standalone_mode=False)
    if result.exception:
        raise result.exception
    document = json.loads(result.stdout)["data"]
    code = result.return_value or 0
    assert document["ok"] == (code == 0)
    return code, {c["name"]: c for c in document["checks"]}


def verdicts(checks):
    return {name: c["verdict"] for name, c in checks.items()}


def test_the_on_prem_site_passes_every_check(lab_env):
    code, checks = site_check("lab-onprem")
    assert code == 0
    assert set(verdicts(checks).values()) == {"ok"}, checks
    assert checks["controller"]["message"].startswith("Slurm ")
    assert {"test submit gpu", "test submit spot", "test submit urgent"} <= set(checks)
    assert "read, wrote, and lost a taken name" in checks["seen from the nodes"]["message"]


def test_the_cloud_site_boots_a_node_only_when_told_to(lab_factory, use_lab):
    lab_env = use_lab(lab_factory(nodes=1))
    code, checks = site_check("lab-cloud")
    assert code == 0
    assert checks["seen from the nodes"]["verdict"] == "skipped"
    assert "--probe-job" in checks["seen from the nodes"]["hint"]
    assert set(lab_env.status()["sites"]["lab-cloud"]["nodes"].values()) <= {"idle~", "idle%"}

    code, checks = site_check("lab-cloud", "--probe-job")
    assert code == 0
    assert checks["seen from the nodes"]["message"].startswith("node cloud")


def test_nothing_is_left_behind(lab_env):
    connection = connect(load_site("lab-onprem").site)
    site_check("lab-onprem")
    listed = connection.transport.run(["ls", "-A", connection.state_dir]).stdout.split()
    assert [name for name in listed if name.startswith("check-")] == []


def test_a_state_directory_that_the_nodes_do_not_see_is_found(lab_env):
    # this machine sees the cloud site's tree, the on-prem nodes do not
    hidden = lab_env.state.paths("lab-cloud").scratch / "elsewhere"
    code, checks = site_check("lab-onprem", "--set", f"state_dir={hidden}")
    assert code == 1
    assert checks["state directory"]["verdict"] == "ok"
    assert checks["seen from the nodes"]["verdict"] == "fail"
    assert "does not see" in checks["seen from the nodes"]["message"]
    assert "state_dir" in checks["seen from the nodes"]["hint"]


def test_a_state_directory_that_cannot_be_made_is_named(lab_env):
    code, checks = site_check("lab-onprem", "--set", "state_dir=/proc/hpcscale")
    assert code == 1
    assert "/proc/hpcscale" in checks["state directory"]["message"]
    assert "seen from the nodes" not in checks


def test_a_wrong_profile_is_told_apart_from_a_broken_site(lab_env):
    code, checks = site_check(
        "lab-onprem",
        "--no-probe-job",
        "--set=partitions.nix.nodes=3",
        "--set=partitions.gpu.nodes=7",
        "--set=gpu_type=a100",
    )
    assert code == 1
    assert checks["partition nix"]["verdict"] == "fail"
    assert "the controller has gpu, spot, urgent" in checks["partition nix"]["message"]
    assert checks["partition gpu"]["verdict"] == "warn"
    assert "nodes is 7 in the profile and 4 there" in checks["partition gpu"]["message"]
    assert checks["GPUs"]["verdict"] == "warn"


def test_a_dead_controller_is_unreachable_and_told_soon(lab_env):
    faults.controller(lab_env, "lab-onprem", "kill")
    began = time.monotonic()
    with impatient(lab_env):
        code, checks = site_check("lab-onprem")
    assert code == UnreachableError.exit_code
    assert verdicts(checks) == {"connect": "ok", "controller": "fail"}
    assert time.monotonic() - began < 90


def test_a_login_node_that_does_not_answer_is_unreachable(lab_env):
    code, checks = site_check("lab-cloud", "--set=transport.port=1")
    assert code == UnreachableError.exit_code
    assert verdicts(checks) == {"connect": "fail"}


def test_facts_of_the_check_serve_the_checks_before_sbatch(lab_env):
    site = load_site("lab-onprem").site
    assert cached_facts(site) is None
    site_check("lab-onprem", "--no-probe-job")
    facts = cached_facts(site)
    assert facts is not None
    assert set(facts.partitions) == {"gpu", "spot", "urgent"}
    fits = JobSpec(command=("true",), resources=Resources(nodes=2, gpus_per_node=4))
    assert check(fits, site, facts) == []
    too_big = JobSpec(command=("true",), resources=Resources(nodes=2, gpus_per_node=8))
    (problem,) = check(too_big, site, facts)
    assert problem.fits == "--nodes=4 --gpus-per-node=4"


@pytest.mark.parametrize(
    ("options", "resources"),
    [
        (["--nodes=5"], Resources(nodes=5)),
        (["--nodes=1", "--gpus-per-node=5"], Resources(gpus_per_node=5)),
        (["--nodes=1", "--mem=501G"], Resources(mem_gb=501)),
        (["--nodes=1", "--cpus-per-task=33"], Resources(cpus_per_task=33)),
    ],
)
def test_what_the_checks_refuse_slurm_refuses_too(lab_env, options, resources):
    """No check cries wolf: each refusal is compared with ``sbatch --test-only``."""
    site = load_site("lab-onprem").site
    connection = connect(site)
    facts = fetch_facts(site, connection.client)
    assert check(JobSpec(command=("true",), resources=resources), site, facts)
    with pytest.raises(RefusedError):
        connection.client.test_only(
            "#!/bin/sh\n", ["--partition=gpu", "--time=1", "--chdir=/", *options]
        )


def test_a_controllers_clock_that_is_off_is_told(lab_factory, monkeypatch):
    lab = lab_factory(nodes=1)
    for name, value in lab.env().items():
        monkeypatch.setenv(name, value)
    faults.clock_skew(lab, "lab-onprem", 600)

    def node_is_back():
        return lab.status()["sites"]["lab-onprem"]["nodes"] == {"onprem1": "idle"}

    until(node_is_back, 30, "the node registers with the restarted controller")
    code, checks = site_check("lab-onprem", "--no-probe-job")
    assert code == 0, checks  # our own "now" is the controller's: a warning is enough
    assert checks["clock"]["verdict"] == "warn"
    assert "clock is +" in checks["clock"]["message"]


def test_accounts_and_qos_are_checked_where_slurmdbd_enforces_them(lab_factory, monkeypatch):
    lab = lab_factory(nodes=1, accounting=True)
    for name, value in lab.env().items():
        monkeypatch.setenv(name, value)
    site = load_site("lab-onprem").site
    connection = connect(site)
    facts = fetch_facts(site, connection.client)
    assert facts.accounts, "the lab's user has an account"
    options = ["--partition=gpu", "--nodes=1", "--time=1", "--chdir=/"]
    for spec, option in (
        (JobSpec(command=("true",), account="nobodys"), "--account"),
        (JobSpec(command=("true",), qos="nobodys"), "--qos"),
    ):
        (problem,) = check(spec, site, facts)
        assert problem.option == option
        assert problem.fits
        with pytest.raises(RefusedError):
            connection.client.test_only("#!/bin/sh\n", [*options, f"{option}=nobodys"])
        # what is said to fit does fit
        connection.client.test_only("#!/bin/sh\n", [*options, problem.fits])
