"""Up, down and everything that goes wrong on the way: nothing is left behind."""

import json
import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from lab_helpers import job_state, sbatch, ssh, until

from hpcscale.errors import LabError, UsageError
from hpcscale.lab import Lab, LabOptions, daemons, faults, namespace
from hpcscale.lab.process import patience, start_time


@pytest.fixture
def directory():
    """A short path that does not exist yet; whatever is there at the end is taken down."""
    parent = Path(tempfile.mkdtemp(prefix="hpcscale-lab-", dir="/tmp"))
    yield parent / "lab"
    if (parent / "lab" / "lab.json").exists():
        Lab.remove(parent / "lab")
    shutil.rmtree(parent)


# how files and sockets of a lab's daemons are called outside its directory
LEAVINGS = ("slurm", "munge", "sshd", "mysql", "maria", "faketime", "sem.faketime")


def cli(*argv, timeout_s=60):
    return subprocess.run(
        [sys.executable, "-m", "hpcscale", "lab", *map(str, argv)],
        capture_output=True, text=True, timeout=patience(timeout_s), check=False,
    )  # fmt: skip


def processes_of(directory):
    """Every process with the lab's directory in its arguments, directory or environment."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        if path.name == str(os.getpid()):
            continue
        try:
            text = (path / "cmdline").read_bytes() + (path / "environ").read_bytes()
            text += os.fsencode((path / "cwd").readlink())
        except OSError:
            continue
        if os.fsencode(directory) in text and start_time(int(path.name)) is not None:
            found.append(text)
    return found


def snapshot():
    """What a lab could leave on the machine outside its directory."""
    home = pwd.getpwuid(os.getuid()).pw_dir
    places = [Path(p) for p in ("/tmp", "/var/tmp", "/run", "/dev/shm", "/run/sshd", home)]
    names = {p: sorted(f.name for f in p.iterdir()) if p.is_dir() else None for p in places}
    files = {p: Path(p).read_bytes() for p in ("/etc/hosts", "/etc/passwd")}
    mounts = Path("/proc/self/mounts").read_text()
    return names, files, mounts


def others(names):
    """What a daemon of a lab would be called by; other programs come and go there meanwhile."""
    return {
        place: [n for n in found or [] if n.startswith(LEAVINGS)] for place, found in names.items()
    }


def test_down_leaves_nothing_behind(directory):
    before = snapshot()
    with Lab.up(directory, LabOptions(nodes=2, fast=2)) as lab:
        site = lab.site("lab-onprem")
        # a process that hides from its job: own session, own directory, no environment
        hide = "env -i setsid sh -c 'cd /; exec sleep 4713' >/dev/null 2>&1 & sleep 300"
        job_id = sbatch(site, "-o", "/dev/null", script=hide)
        until(lambda: job_state(site, job_id) == "RUNNING", 20, "job runs")
        ssh(lab, "nohup sleep 4714 >/dev/null 2>&1 </dev/null &")
        inside = list(namespace.members(site.state, site.paths))
        faults.disk_full(lab, "lab-cloud")
    assert not directory.exists()
    assert [pid for pid in inside if start_time(pid) is not None] == []
    assert processes_of(directory) == []
    after = snapshot()
    assert others(after[0]) == others(before[0])
    assert after[1:] == before[1:]


def test_keep_leaves_the_logs(directory):
    Lab.up(directory, LabOptions(nodes=1)).down(keep=True)
    assert "started on cluster" in (directory / "lab-onprem/log/slurmctld.log").read_text()
    assert processes_of(directory) == []
    # and the next `up` knows that these are remains
    Lab.up(directory, LabOptions(nodes=1)).down()
    assert not directory.exists()


def test_several_labs_at_once(directory, lab):
    with Lab.up(directory, LabOptions(nodes=1)) as second:
        ports = [set(flat_ports(each)) for each in (lab, second)]
        assert not ports[0] & ports[1]
        for each in (lab, second):
            assert each.site("lab-onprem").exec(["srun", "hostname"]).stdout == "onprem1\n"


def flat_ports(lab):
    for site in lab.state.sites.values():
        yield from site.ports.values()


def test_a_second_up_in_the_same_directory_is_refused(directory):
    with Lab.up(directory, LabOptions(nodes=1)) as lab:
        done = cli("up", "--dir", directory)
        assert done.returncode == 10
        assert f"a lab is already in {directory}" in done.stderr
        assert f"hpcscale lab down --dir {directory}" in done.stderr
        assert lab.status()["up"]


def test_a_directory_with_other_files_is_left_alone(directory):
    directory.mkdir()
    (directory / "thesis.tex").write_text("years of work")
    done = cli("up", "--dir", directory)
    assert done.returncode == 10
    assert "is no lab's directory" in done.stderr
    assert "Traceback" not in done.stderr
    assert cli("down", "--dir", directory).returncode == 10
    assert (directory / "thesis.tex").read_text() == "years of work"


@pytest.mark.parametrize("name", ["a b", "x" * 90, "quo'te"])
def test_directories_that_slurm_cannot_use_are_refused(directory, name):
    with pytest.raises(LabError):
        Lab.up(directory / name)
    assert not (directory / name).exists()


def test_a_failing_daemon_is_shown_with_its_log_and_all_is_undone(directory):
    options = LabOptions(nodes=1, extra_conf={"lab-cloud": ("NoSuchKey=1",)})
    with pytest.raises(LabError, match="NoSuchKey") as caught:
        Lab.up(directory, options)
    assert caught.value.where == "lab-cloud"
    assert not directory.exists()
    assert processes_of(directory) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_up_is_undone(directory, number):
    # a drained node stays so when its daemon comes, and `up` waits for idle ones
    code = (
        "import sys; from pathlib import Path; from hpcscale.lab import Lab, LabOptions\n"
        "Lab.up(Path(sys.argv[1]), LabOptions(nodes=1, "
        "extra_conf={'lab-onprem': ('DownNodes=onprem1 State=DRAIN',)}))"
    )
    process = subprocess.Popen([sys.executable, "-c", code, directory], stderr=subprocess.PIPE)
    log = directory / "lab-onprem" / "log" / "slurmctld.log"
    until(lambda: log.exists() and "Running as primary" in log.read_text(), 20, "half up")
    process.send_signal(number)
    process.communicate(timeout=patience(30))
    assert process.returncode != 0
    assert not directory.exists()
    assert processes_of(directory) == []


def test_a_killed_up_can_be_taken_down(directory):
    code = (
        "import sys; from pathlib import Path; from hpcscale.lab import Lab, LabOptions\n"
        "Lab.up(Path(sys.argv[1]), LabOptions(nodes=1, "
        "extra_conf={'lab-onprem': ('DownNodes=onprem1 State=DRAIN',)}))"
    )
    process = subprocess.Popen([sys.executable, "-c", code, directory])
    log = directory / "lab-onprem" / "log" / "slurmctld.log"
    until(lambda: log.exists() and "Running as primary" in log.read_text(), 20, "half up")
    process.kill()
    process.wait(timeout=patience(10))
    done = cli("down", "--dir", directory)
    assert done.returncode == 0, done.stderr
    assert not directory.exists()
    assert processes_of(directory) == []


def test_a_lab_dies_with_its_owner_when_asked_to(directory):
    code = (
        "import sys, time; from pathlib import Path; from hpcscale.lab import Lab, LabOptions\n"
        "Lab.up(Path(sys.argv[1]), LabOptions(nodes=1), die_with_me=True)\n"
        "print('up', flush=True); time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", code, directory], stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"up\n"
    assert processes_of(directory)
    process.kill()
    process.communicate(timeout=patience(10))
    until(lambda: len(processes_of(directory)) == 0, 10, "all processes gone")


def test_a_plan_that_fails_is_no_weaker_isolation(directory, monkeypatch):
    real = namespace.mount_plan

    def broken(*args):
        return [*real(*args), {"source": "/nowhere", "target": "/mnt"}]

    monkeypatch.setattr(namespace, "mount_plan", broken)
    with pytest.raises(LabError, match="nowhere"):
        Lab.up(directory, LabOptions(nodes=1))
    assert not directory.exists()


def test_the_remains_of_a_dead_lab_give_way(directory):
    lab = Lab.up(directory, LabOptions(nodes=1))
    keepers = [site.keeper_pid for site in lab.state.sites.values()]
    for pid in keepers:
        os.kill(pid, signal.SIGKILL)
    until(lambda: not any(map(start_time, keepers)), 10, "the keepers are gone")
    assert processes_of(directory) == []
    with Lab.up(directory, LabOptions(nodes=1)) as again:
        assert again.status()["up"]


def test_a_reused_pid_is_not_the_keeper(directory):
    lab = Lab.up(directory, LabOptions(nodes=1))
    stranger = subprocess.Popen(["sleep", "60"])
    try:
        real = [site.keeper_pid for site in lab.state.sites.values()]
        for site in lab.state.sites.values():
            site.keeper_pid = stranger.pid
        lab.state.save()
        lab.down(keep=True)
        assert stranger.poll() is None
        # those that really are its keepers carry its mark
        assert not any(map(start_time, real))
        assert processes_of(directory) == []
    finally:
        stranger.kill()
        stranger.wait()


def test_a_damaged_state_file_does_not_keep_the_lab_alive(directory):
    Lab.up(directory, LabOptions(nodes=1))
    (directory / "lab.json").write_text('{"directory": "/tm')
    done = cli("status", "--dir", directory)
    assert done.returncode == 10
    assert str(directory / "lab.json") in done.stderr
    done = cli("down", "--dir", directory)
    assert done.returncode == 0, done.stderr
    assert not directory.exists()
    assert processes_of(directory) == []


def test_without_namespaces_the_lab_says_what_falls(directory):
    done = cli("up", "--dir", directory, "--nodes", "2", "--no-isolation")
    assert done.returncode == 0, done.stderr
    assert "no mount namespace (switched off (--no-isolation))" in done.stderr
    assert "missing staging goes unnoticed" in done.stderr
    lab = Lab.open(directory)
    assert lab.status()["isolation"] == {"mount": False, "uts": False, "pid": False}
    # it works all the same: jobs, ssh, a crash, and an end without remains
    site = lab.site("lab-onprem")
    assert site.exec(["srun", "-N2", "echo", "ok"]).stdout == "ok\nok\n"
    assert "PARTITION" in ssh(lab, "sinfo").stdout
    job_id = sbatch(site, "-w", "onprem2", "-o", "/dev/null", script="exec sleep 4715")
    until(lambda: job_state(site, job_id) == "RUNNING", 20, "job runs")
    cloud = sbatch(lab.site("lab-cloud"), "-o", "/dev/null")
    until(lambda: job_state(lab.site("lab-cloud"), cloud) == "RUNNING", 40, "cloud job runs")
    faults.node_crash(lab, "onprem2")
    assert site.pid_of("slurmd.onprem1") is not None
    lab.down()
    assert not directory.exists()
    assert processes_of(directory) == []


def test_namespaces_that_are_forbidden_are_no_error(directory, monkeypatch):
    monkeypatch.setattr(namespace, "modes", list)
    with Lab.up(directory, LabOptions(nodes=1)) as lab:
        assert lab.status()["isolation"]["mount"] is False
        assert lab.site("lab-onprem").exec(["srun", "echo", "ok"]).stdout == "ok\n"


@pytest.mark.parametrize("mode", namespace.modes(), ids=str)
def test_every_way_to_make_namespaces(directory, monkeypatch, mode):
    monkeypatch.setattr(namespace, "modes", lambda: [mode])
    pid_ns = mode.pid_ns
    with Lab.up(directory, LabOptions(nodes=1)) as lab:
        assert lab.status()["isolation"] == {"mount": True, "uts": True, "pid": pid_ns}
        site = lab.site("lab-onprem")
        sbatch(site, "-o", "/dev/null", script="sleep 4716 & exec setsid sleep 4716")
        assert site.exec(["srun", "hostname"]).stdout == "onprem1\n"
        assert site.exec(["ls", "../.."]).stdout == "lab-onprem\n"
        assert ssh(lab, "hostname").stdout == "lab-cloud\n"
        faults.node_crash(lab, "onprem1")
        faults.clear(lab)
    assert not directory.exists()
    assert processes_of(directory) == []
    listing = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True)
    assert "sleep 4716" not in listing.stdout.splitlines()


def test_missing_slurm_is_one_clear_line(directory, monkeypatch):
    monkeypatch.setattr(daemons, "find", lambda name: None)
    with pytest.raises(LabError, match="Slurm is not installed") as caught:
        Lab.up(directory)
    assert "\n" not in str(caught.value)
    for words in ("apt-get install slurmctld", "dnf install slurm ", "zypper install slurm "):
        assert words in caught.value.hint


def test_missing_parts_are_named(directory, monkeypatch):
    real = daemons.find

    def without(*names):
        monkeypatch.setattr(daemons, "find", lambda n: None if n in names else real(n))

    without("sshd")
    with pytest.raises(LabError, match=r"\(missing: sshd\)"):
        Lab.up(directory)
    without("mariadbd")
    with pytest.raises(LabError, match="MariaDB") as caught:
        Lab.up(directory, LabOptions(accounting=True))
    assert "apt-get install slurmdbd slurm-wlm-mysql-plugin mariadb-server" in caught.value.hint
    monkeypatch.setattr(daemons, "FAKETIME", "no-such-library.so")
    with pytest.raises(LabError, match="libfaketime"):
        Lab.up(directory, LabOptions(fast=2))
    assert not directory.exists()


@pytest.mark.parametrize(
    "options", [{"nodes": 0}, {"gpus": -1}, {"fast": 0}, {"boot_delay_s": -1.0}]
)
def test_impossible_numbers_are_refused(options):
    with pytest.raises(UsageError, match="out of range"):
        LabOptions(**options)


# ---- the command line


def test_the_verbs(directory):
    up = cli("up", "--dir", directory, "--nodes", "1", "--gpus", "0")
    assert up.returncode == 0, up.stderr
    assert "all daemons running" in up.stdout
    assert f'eval "$(hpcscale lab env --dir {directory})"' in up.stderr

    done = cli("exec", "--dir", directory, "lab-cloud", "--", "sh", "-c", "hostname; exit 7")
    assert (done.returncode, done.stdout) == (7, "lab-cloud\n")
    done = cli("exec", "--dir", directory, "--json", "lab-onprem", "--", "sh", "-c", "echo x >&2")
    data = json.loads(done.stdout)["data"]
    assert data == {"exit_code": 0, "stdout": "", "stderr": "x\n"}
    done = cli("exec", "--dir", directory, "lab-nowhere", "--", "true")
    assert done.returncode == 10
    assert "one of lab-onprem, lab-cloud" in done.stderr

    env = cli("env", "--dir", directory).stdout
    shown = subprocess.run(
        ["sh", "-c", f"{env}\nsinfo -h -o %D"], capture_output=True, text=True, check=True
    )
    assert shown.stdout.split() == ["1"]
    as_json = json.loads(cli("env", "--dir", directory, "--json").stdout)["data"]
    assert as_json["HPCSCALE_CONFIG_DIR"] == f"{directory}/config"

    logs = cli("logs", "--dir", directory, "lab-onprem", "--daemon", "slurmctld")
    assert "Running as primary controller" in logs.stdout
    done = cli("logs", "--dir", directory, "--daemon", "nothing")
    assert done.returncode == 10
    assert "slurmctld" in done.stderr

    done = cli("fault", "controller", "--dir", directory, "lab-onprem", "stop")
    assert done.returncode == 0, done.stderr
    status = json.loads(cli("status", "--dir", directory, "--json").stdout)["data"]
    assert status["up"] is False
    assert status["sites"]["lab-onprem"]["daemons"]["slurmctld"] == "stopped"
    listed = json.loads(cli("fault", "list", "--dir", directory, "--json").stdout)["data"]
    assert [f["fault"] for f in listed] == ["controller"]
    assert cli("fault", "clear", "--dir", directory).returncode == 0
    assert json.loads(cli("fault", "list", "--dir", directory, "--json").stdout)["data"] == []

    assert cli("down", "--dir", directory).returncode == 0
    done = cli("status", "--dir", directory)
    assert done.returncode == 10
    assert f"no lab in {directory}" in done.stderr


def test_logs_follow(directory):
    with Lab.up(directory, LabOptions(nodes=1)) as lab:
        process = subprocess.Popen(
            [sys.executable, "-u", "-m", "hpcscale", "lab", "logs", "--dir", directory, "-f",
             "lab-onprem"], stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        try:
            for line in process.stdout:
                if line.startswith("==>") and "slurmd." in line:
                    break
            lab.site("lab-onprem").exec(["srun", "true"], check=True)
            for line in process.stdout:
                if line.startswith("lab-onprem/slurmctld: ") and "done" in line:
                    break
            else:
                pytest.fail("no line was followed")
        finally:
            process.terminate()
            process.communicate(timeout=patience(10))
