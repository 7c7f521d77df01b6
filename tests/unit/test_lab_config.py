"""The text of the lab's configuration files, without starting anything."""

import json
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from hpcscale.lab import clientconfig, config, namespace
from hpcscale.lab.model import LabOptions, LabState, SitePaths, SiteState


def site(name="lab-onprem", **options):
    return config.SiteConfig(
        site=name,
        paths=SitePaths(Path("/lab") / name),
        options=LabOptions(**options),
        user="ada",
        controller=name,
        host_names=True,
        ports={"slurmctld": 10000, "slurmd": 10008, "sshd": 10002, "slurmd_burst": 10016},
    )


def keys(text):
    return dict(line.split("=", 1) for line in text.splitlines())


def test_onprem_preempts_by_partition():
    text = config.slurm_conf(site(grace_time_s=7))
    lines = text.splitlines()
    nodes = "Nodes=onprem[1-4]"
    assert f"PartitionName=gpu {nodes} Default=YES PriorityTier=10 PreemptMode=OFF" in lines
    assert f"PartitionName=spot {nodes} PriorityTier=1 PreemptMode=REQUEUE GraceTime=7" in lines
    assert f"PartitionName=urgent {nodes} PriorityTier=100 PreemptMode=OFF" in lines
    assert keys(text)["PreemptType"] == "preempt/partition_prio"
    assert "cred_expire=5" in text


def test_every_node_has_its_own_port():
    lines = config.slurm_conf(site(nodes=3)).splitlines()
    ports = [w for line in lines if line.startswith("NodeName=") for w in line.split()]
    assert [p for p in ports if p.startswith("Port=")] == [f"Port={10008 + i}" for i in range(3)]


def test_cloud_nodes_are_powered_on_demand():
    values = keys(config.slurm_conf(site("lab-cloud", boot_delay_s=3, suspend_time_s=9)))
    assert values["SuspendTime"] == "9"
    assert values["ResumeProgram"] == "/lab/lab-cloud/etc/resume"
    assert values["ResumeTimeout"] == "20"
    assert values["PrivateData"] == "cloud"


def test_a_cloud_partition_stands_beside_the_others_and_leaves_their_nodes_on():
    options = {"nodes": 2, "cloud_partition": True, "suspend_time_s": 9}
    text = config.slurm_conf(site(**options))
    lines, values = text.splitlines(), keys(text)
    assert "PartitionName=cloud Nodes=burst[1-2] PriorityTier=10 PreemptMode=OFF" in lines
    assert values["ResumeProgram"] == "/lab/lab-onprem/etc/resume"
    assert values["SuspendExcNodes"] == "onprem[1-2]"
    burst = [line for line in lines if line.startswith("NodeName=burst")]
    assert [line.split()[3] for line in burst] == ["Port=10016", "Port=10017"]
    assert all(line.endswith("Feature=burst,h100 State=CLOUD") for line in burst)
    assert "NodeName=burst[1-2] Name=gpu" in config.gres_conf(site(**options))
    assert "SwitchName=cloud Nodes=burst[1-2]" in config.topology_conf(site(**options))
    assert "burst2" in config.hosts(site(**options), "me")
    assert "burst" not in config.slurm_conf(site())


def test_timeouts_last_in_real_time_when_the_controller_runs_fast():
    slow, fast = (keys(config.slurm_conf(site("lab-cloud", fast=n))) for n in (1, 20))
    for key, real_s in (("SlurmdTimeout", 10), ("MessageTimeout", 3), ("ResumeTimeout", 11)):
        assert int(fast[key]) >= 20 * real_s
        assert int(slow[key]) < int(fast[key])
    # what a user waits for stays short
    assert slow["SuspendTime"] == fast["SuspendTime"]


def test_a_resume_timeout_that_was_asked_for_is_kept():
    values = keys(config.slurm_conf(site("lab-cloud", fast=20, resume_timeout_s=33)))
    assert values["ResumeTimeout"] == "33"


@pytest.mark.parametrize(
    ("nodes", "lines"),
    [
        (1, ["SwitchName=leaf1 Nodes=onprem[1-1]", "SwitchName=spine Switches=leaf[1-1]"]),
        (5, ["SwitchName=leaf1 Nodes=onprem[1-3]", "SwitchName=leaf2 Nodes=onprem[4-5]",
             "SwitchName=spine Switches=leaf[1-2]"]),
    ],
)  # fmt: skip
def test_the_topology_has_two_levels(nodes, lines):
    assert config.topology_conf(site(nodes=nodes)).splitlines() == lines


def test_gpus_are_optional():
    assert "Gres=" not in config.slurm_conf(site(gpus=0))
    assert config.gres_conf(site(gpus=0)) == ""
    assert config.gres_conf(site(gpus=1)).endswith("dev/nvidia0\n")
    assert config.gres_conf(site(gpus=8)).endswith("dev/nvidia[0-7]\n")


def test_accounting_goes_to_the_sites_own_slurmdbd():
    with_it = site(accounting=True)
    with_it.ports["slurmdbd"] = 10003
    values = keys(config.slurm_conf(with_it))
    assert values["AccountingStoragePort"] == "10003"
    assert values["AccountingStoragePass"] == "/lab/lab-onprem/run/munge.sock"
    text = config.slurmdbd_conf(with_it, 10005, "secret")
    assert keys(text)["StorageLoc"] == "slurm_onprem"
    assert "accounting_storage/none" in config.slurm_conf(site())


def test_extra_lines_come_last():
    text = config.slurm_conf(
        site(extra_conf={"lab-onprem": ("KillWait=9",), "lab-cloud": ("X=1",)})
    )
    assert text.endswith("\nKillWait=9\n")


def test_no_cgroups_on_old_and_new_slurm():
    assert config.cgroup_conf((21, 8)) == "CgroupAutomount=no\n"
    # "autodetect" would end slurmd where there are no cgroups (tests/lab/test_lab_bare.py)
    assert config.cgroup_conf((22, 5)) == "CgroupPlugin=cgroup/v1\n"
    assert config.cgroup_conf((23, 11)) == "CgroupPlugin=cgroup/v1\n"
    assert config.cgroup_conf((24, 5)) == "CgroupPlugin=disabled\n"


def test_sshd_lets_in_one_user_with_a_key():
    text = config.sshd_config(site("lab-cloud"), "/usr/bin", Path("/usr/lib/sftp-server"))
    lines = text.splitlines()
    for line in ("ListenAddress 127.0.0.1", "AllowUsers ada", "PasswordAuthentication no"):
        assert line in lines
    assert "ForceCommand /lab/lab-cloud/etc/login" in lines
    # without an sftp-server the internal one must not go through the wrapper
    text = config.sshd_config(site("lab-cloud"), "/usr/bin", None)
    assert "ForceCommand" not in text
    assert "Subsystem sftp internal-sftp" in text


def state(tmp_path, **options):
    sites = {
        name: SiteState(name, ports={"slurmctld": 1, "sshd": 4711})
        for name in ("lab-onprem", "lab-cloud")
    }
    return LabState(
        directory=tmp_path / "lab",
        user="ada",
        started_at=0.0,
        options={"nodes": 2, "gpus": 8, **options},
        software=Path("/opt/py"),
        sites=sites,
    )


def test_overlays_are_toml_and_follow_the_options(tmp_path):
    lab = state(tmp_path)
    clientconfig.write_overlays(lab)
    read = {
        name: tomllib.loads((tmp_path / "lab/config/sites" / f"{name}.toml").read_text())
        for name in lab.sites
    }
    assert read["lab-cloud"]["transport"]["port"] == 4711
    assert read["lab-cloud"]["partitions"]["gpu"] == {"nodes": 2, "gpus_per_node": 8}
    assert read["lab-onprem"]["transport"]["kind"] == "local"
    assert set(read["lab-onprem"]["partitions"]) == {"gpu", "spot", "urgent"}
    assert read["lab-cloud"]["software"]["lab-python"]["venv"] == "/opt/py"
    assert "shared_dirs" not in read["lab-cloud"]


def test_the_state_survives_writing_and_reading(tmp_path):
    lab = state(tmp_path, cover=(Path("/data"),), extra_conf={"lab-cloud": ("A=1",)})
    lab.directory.mkdir()
    lab.save()
    again = LabState.load(lab.directory)
    assert again.sites == lab.sites
    assert again.lab_options().cover == (Path("/data"),)
    assert again.lab_options().extra_conf == {"lab-cloud": ("A=1",)}
    assert json.loads((lab.directory / "lab.json").read_text())["user"] == "ada"


def plan(tmp_path, monkeypatch, *, lab_dir, software, package, home="/home/ada", cover=()):
    monkeypatch.setattr(namespace, "package_dir", lambda: Path(package))
    monkeypatch.setattr(namespace, "homes", lambda: [Path(home)])
    paths = SitePaths(Path(lab_dir) / "lab-cloud")
    options = LabOptions(cover=tuple(map(Path, cover)))
    return namespace.mount_plan(Path(lab_dir), paths, options, Path(software))


def test_the_plan_re_exposes_after_it_covers(tmp_path, monkeypatch):
    checkout = tmp_path / "checkout"
    checkout.mkdir()
    (checkout / "pyproject.toml").touch()
    steps = plan(
        tmp_path, monkeypatch, lab_dir="/home/ada/lab", software=checkout / ".venv",
        package=checkout / "hpcscale", cover=["/data"],
    )  # fmt: skip
    targets = [step["target"] for step in steps if not step.get("seal")]
    order = [targets.index(str(p)) for p in ("/home/ada", checkout, "/home/ada/lab/lab-cloud",
                                             checkout / ".venv")]  # fmt: skip
    assert order == sorted(order)
    assert "/data" in targets
    software = next(s for s in steps if s["target"] == str(checkout / ".venv"))
    assert software["read_only"] is True
    # an editable install: nothing of hpcscale lies in the software
    assert str(checkout / "hpcscale") not in targets


def test_an_installed_hpcscale_is_hidden_within_the_software(tmp_path, monkeypatch):
    steps = plan(
        tmp_path, monkeypatch, lab_dir="/tmp/lab", software="/opt/py",
        package="/opt/py/lib/hpcscale",
    )  # fmt: skip
    hidden = next(s for s in steps if s["target"] == "/opt/py/lib/hpcscale")
    assert hidden["source"] == "/tmp/lab/lab-cloud/etc/absent"


def test_vital_directories_are_never_covered(monkeypatch):
    monkeypatch.setenv("HOME", "/usr")
    assert Path("/usr") not in namespace.homes()
    monkeypatch.setattr(namespace, "homes", list)
    paths = SitePaths(Path("/tmp/lab/lab-cloud"))
    steps = namespace.mount_plan(
        Path("/tmp/lab"), paths, LabOptions(cover=(Path("/"), Path("/etc"))), Path("/usr")
    )
    assert not {"/", "/etc", "/usr"} & {step["target"] for step in steps}


def test_the_labs_shell_programs_are_shellcheck_clean():
    programs = sorted(Path(clientconfig.__file__).parent.glob("*.sh"))
    assert len(programs) == 3
    shellcheck = Path(sys.executable).parent / "shellcheck"
    done = subprocess.run(
        [shellcheck, *programs], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stdout
