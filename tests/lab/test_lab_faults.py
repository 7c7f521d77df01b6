"""Each `lab fault` does what it says, and `clear` puts it right."""

import json
import shutil
import subprocess
import time

import pytest
from lab_helpers import job, job_state, output, sbatch, ssh, ssh_argv, until

from hpcscale.errors import LabError, UsageError
from hpcscale.lab import faults
from hpcscale.lab.daemons import registered
from hpcscale.lab.process import patience, state_letter

CLOUD = "lab-cloud"
ONPREM = "lab-onprem"


def kinds(lab):
    return {f["fault"] for f in faults.active(lab)}


def running_job(site, *args, script="sleep 300"):
    job_id = sbatch(site, "-o", "/dev/null", *args, script=script)
    until(lambda: job_state(site, job_id) == "RUNNING", 30, f"{job_id} runs")
    return job_id


def has_process(site, text):
    listing = site.exec(["ps", "-eo", "args"], check=True).stdout
    return any(text in line for line in listing.splitlines())


# ---- nodes


def test_a_crashed_node_takes_its_job_with_it_and_comes_back(lab):
    site = lab.site(ONPREM)
    job_id = running_job(site, "-w", "onprem3", script="exec sleep 4711")
    until(lambda: has_process(site, "sleep 4711"), 10, "the job's process is there")
    faults.node_crash(lab, "onprem3")
    assert not has_process(site, "sleep 4711")
    assert not has_process(site, f"slurmstepd: [{job_id}.batch]")
    assert site.pid_of("slurmd.onprem3") is None
    assert site.pid_of("slurmd.onprem2") is not None
    assert kinds(lab) == {"node-crash"}
    faults.node_restart(lab, "onprem3")
    assert not kinds(lab)
    until(lambda: job(site, job_id).get("Restarts") == "1", 30, "requeued")


def test_a_job_outlives_its_slurmd_with_keep_stepd(lab):
    site = lab.site(ONPREM)
    job_id = running_job(site, "-w", "onprem4", script="exec sleep 4712")
    until(lambda: has_process(site, "sleep 4712"), 10, "the job's process is there")
    faults.node_crash(lab, "onprem4", keep_stepd=True)
    assert has_process(site, "sleep 4712")
    faults.node_restart(lab, "onprem4")
    assert job_state(site, job_id) == "RUNNING"
    assert has_process(site, "sleep 4712")


def test_the_controller_notices_a_crashed_node(lab_factory):
    lab = lab_factory(nodes=2, fast=10)
    site = lab.site(ONPREM)
    running_job(site, "-w", "onprem1")
    faults.node_crash(lab, "onprem1")
    until(lambda: site.node_states()["onprem1"].startswith("down"), 40, "node down")
    faults.clear(lab)
    assert not kinds(lab)
    assert registered(site.node_states(), site.nodes)


def test_unknown_and_dead_nodes_are_named(lab_factory):
    lab = lab_factory(nodes=1)
    with pytest.raises(LabError, match="no node is called 'onprem9'"):
        faults.node_crash(lab, "onprem9")
    with pytest.raises(LabError, match="cloud1 is not up"):
        faults.node_crash(lab, "cloud1")


# ---- boots


@pytest.fixture
def quick_cloud(lab_factory):
    """A lab whose controller gives up on a boot after a few seconds."""
    return lab_factory(nodes=4, fast=10, boot_delay_s=0.1, suspend_time_s=6000)


def test_k_of_n_nodes_never_boot(quick_cloud):
    lab, cloud = quick_cloud, quick_cloud.site(CLOUD)
    faults.no_boot(lab, 1)
    assert kinds(lab) == {"no-boot"}
    job_id = sbatch(cloud, "-N3", "-o", "/dev/null")
    until(
        lambda: [s for s in cloud.node_states().values() if s.startswith("down")],
        60,
        "a node is given up",
    )
    log = (cloud.paths.log / "power.log").read_text()
    assert log.count("cloud3 does not boot") == 1
    assert log.count("booted") == 2
    assert job_state(cloud, job_id) != "RUNNING"
    cloud.exec(["scancel", job_id], check=True)
    faults.clear(lab)
    assert not kinds(lab)
    assert not [s for s in cloud.node_states().values() if s.startswith("down")]
    again = sbatch(cloud, "-N4", "-o", "/dev/null")
    until(lambda: job_state(cloud, again) == "RUNNING", 40, "all nodes boot again")


def test_named_nodes_never_boot_and_others_do(quick_cloud):
    lab, cloud = quick_cloud, quick_cloud.site(CLOUD)
    faults.no_boot(lab, ["cloud1"])
    sbatch(cloud, "-w", "cloud[1-2]", "-o", "/dev/null")
    log = cloud.paths.log / "power.log"
    until(lambda: log.exists() and "cloud2 booted" in log.read_text(), 20, "cloud2 boots")
    assert "cloud1 does not boot" in log.read_text()
    assert cloud.pid_of("slurmd.cloud1") is None


def test_slow_boot(lab_factory):
    lab = lab_factory(nodes=3, boot_delay_s=0.1, resume_timeout_s=120)
    cloud = lab.site(CLOUD)
    faults.slow_boot(lab, 4, ["cloud2"])
    begin = time.monotonic()
    both = sbatch(cloud, "-w", "cloud[1-2]", "-o", "/dev/null")
    until(lambda: job_state(cloud, both) == "RUNNING", 30, "runs when both are up")
    assert time.monotonic() - begin >= 4
    log = (cloud.paths.log / "power.log").read_text()
    assert log.index("cloud1 booted") < log.index("cloud2 booted")
    # the others do not wait for the slow ones: these would come up when the test is long over
    cloud.exec(["scancel", both], check=True)
    faults.slow_boot(lab, 3600, ["cloud1", "cloud2"])
    other = sbatch(cloud, "-w", "cloud3", "-o", "/dev/null")
    until(lambda: job_state(cloud, other) == "RUNNING", 30, "cloud3 boots")


def test_a_boot_of_which_slurmctld_heard_nothing_is_made_again(lab_factory):
    lab = lab_factory(nodes=1, boot_delay_s=0.1, resume_timeout_s=300)
    cloud = lab.site(CLOUD)
    power, config = cloud.paths.etc / "power.py", cloud.paths.etc / "power.json"
    power.write_text(power.read_text().replace("AGAIN_S = 8.0", "AGAIN_S = 2.0"))
    assert "AGAIN_S = 2.0" in power.read_text()
    # the first slurmd reports the machine's boot, older than any request: it is passed over
    slurmd, mark = json.loads(config.read_text())["slurmd"], cloud.paths.run / "first"
    wrapper = cloud.paths.etc / "slurmd-once"
    wrapper.write_text(f'#!/bin/sh\nmkdir {mark} && shift\nexec {slurmd} "$@"\n')
    wrapper.chmod(0o755)
    config.write_text(config.read_text().replace(f'"{slurmd}"', f'"{wrapper}"'))
    job_id = sbatch(cloud, "-o", "/dev/null")
    until(lambda: job_state(cloud, job_id) == "RUNNING", 60, "runs")
    log = (cloud.paths.log / "power.log").read_text()
    assert "cloud1 has not registered: its slurmd is started again" in log
    assert log.count("cloud1 booted") == 2


def test_a_node_that_is_switched_off_while_it_boots_stays_off(lab_factory):
    lab = lab_factory(nodes=1, boot_delay_s=0.1, suspend_time_s=6000, resume_timeout_s=6000)
    cloud = lab.site(CLOUD)
    log = cloud.paths.log / "power.log"
    faults.slow_boot(lab, 3600)
    job_id = sbatch(cloud, "-o", "/dev/null")
    until(lambda: log.exists() and "resume cloud1" in log.read_text(), 20, "it begins to boot")
    cloud.exec(["scancel", job_id], check=True)
    off = ["scontrol", "update", "NodeName=cloud1", "State=POWER_DOWN_FORCE"]
    until(lambda: cloud.exec(off).returncode == 0, 20, "switched off")
    until(lambda: "cloud1 powered off" in log.read_text(), 30, "it is off")
    faults.slow_boot(lab, 0)
    until(lambda: "was powered off before it had booted" in log.read_text(), 30, "the boot ends")
    assert "cloud1 booted" not in log.read_text()
    assert cloud.pid_of("slurmd.cloud1") is None


def test_boot_faults_refuse_nonsense(lab):
    with pytest.raises(UsageError):
        faults.no_boot(lab, 5)
    with pytest.raises(LabError, match="no cloud node"):
        faults.no_boot(lab, ["onprem1"])
    with pytest.raises(UsageError):
        faults.slow_boot(lab, -1)
    assert not kinds(lab)


# ---- controllers


def test_a_stopped_controller_gives_no_answer_until_it_continues(lab):
    site = lab.site(ONPREM)
    faults.controller(lab, ONPREM, "stop")
    assert state_letter(site.pid_of("slurmctld")) == "T"
    assert kinds(lab) == {"controller"}
    with pytest.raises(LabError, match="no answer within 1"):
        site.exec(["squeue"], timeout_s=1)
    assert lab.site(CLOUD).exec(["squeue"]).returncode == 0
    faults.controller(lab, ONPREM, "continue")
    assert site.exec(["squeue"]).returncode == 0
    assert not kinds(lab)


def test_a_killed_controller_forgets_what_it_just_said(lab_factory):
    lab = lab_factory(nodes=1)
    site = lab.site(ONPREM)
    # once its state is written, the next write is seconds away
    sbatch(site, "-o", "/dev/null", script="true")
    until((site.paths.state / "ctld" / "job_state").exists, 20, "state is saved")
    lost = False
    for _ in range(3):  # a save may just fall between the submit and the kill
        job_id = sbatch(site, "--hold", "-o", "/dev/null")
        faults.controller(lab, ONPREM, "kill")
        assert site.pid_of("slurmctld") is None
        with pytest.raises(LabError, match="not running"):
            faults.controller(lab, ONPREM, "stop")
        faults.controller(lab, ONPREM, "restart")
        lost = lost or job_state(site, job_id) == ""
    assert lost
    assert not kinds(lab)


def test_an_orderly_restart_forgets_nothing(lab):
    site = lab.site(ONPREM)
    job_id = sbatch(site, "--hold", "-o", "/dev/null")
    before = site.pid_of("slurmctld")
    faults.controller(lab, ONPREM, "restart")
    assert site.pid_of("slurmctld") != before
    assert job_state(site, job_id) == "PENDING"


def test_clock_skew(lab):
    site = lab.site(ONPREM)
    faults.clock_skew(lab, ONPREM, 3600)
    assert kinds(lab) == {"clock-skew"}
    job_id = sbatch(site, "--hold", "-o", "/dev/null")
    ahead = controller_time(site, job_id) - time.time()
    assert 3500 < ahead < 3700
    faults.clear(lab)
    job_id = sbatch(site, "--hold", "-o", "/dev/null")
    assert abs(controller_time(site, job_id) - time.time()) < 60


def controller_time(site, job_id):
    done = site.exec(
        ["env", "SLURM_TIME_FORMAT=%s", "squeue", "-h", "-j", job_id, "-o", "%V"], check=True
    )
    return int(done.stdout)


# ---- ssh


def jobs_named(lab, name):
    done = lab.site(CLOUD).exec(["squeue", "-h", "-n", name, "-o", "%i"], check=True)
    return done.stdout.split()


SUBMIT = "sbatch --hold --job-name={} -o /dev/null"
SCRIPT = "#!/bin/sh\ntrue\n"


def test_ssh_is_cut_after_the_request_and_before_the_reply(lab):
    faults.ssh_cut(lab, "after", match="sbatch")
    assert kinds(lab) == {"ssh-cut"}
    assert ssh(lab, "echo ok").stdout == "ok\n"
    done = ssh(lab, SUBMIT.format("cut-after"), stdin=SCRIPT, check=False)
    assert done.returncode == 255
    assert done.stdout == ""
    # carried out, and only once
    assert len(jobs_named(lab, "cut-after")) == 1
    assert not kinds(lab)
    assert ssh(lab, SUBMIT.format("cut-after"), stdin=SCRIPT).stdout.startswith("Submitted")


def test_ssh_is_cut_before_the_request(lab):
    faults.ssh_cut(lab, "before", count=2)
    for _ in range(2):
        done = ssh(lab, SUBMIT.format("cut-before"), stdin=SCRIPT, check=False)
        assert done.returncode == 255
    assert jobs_named(lab, "cut-before") == []
    assert ssh(lab, "echo ok").stdout == "ok\n"


def test_ssh_hangs_after_the_request(lab):
    faults.ssh_cut(lab, "hang", match="sbatch")
    argv = ssh_argv(lab, SUBMIT.format("cut-hang"))
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as hangs:
        hangs.stdin.write(SCRIPT)
        hangs.stdin.close()
        until(lambda: jobs_named(lab, "cut-hang"), 20, "it is carried out all the same")
        # other connections are not touched; by their end this one would have had its answer
        assert ssh(lab, "echo ok").stdout == "ok\n"
        assert hangs.poll() is None
        hangs.kill()
        assert hangs.stdout.read() == ""
    assert len(jobs_named(lab, "cut-hang")) == 1
    faults.ssh_cut(lab, "normal")
    assert not has_process(lab.site(CLOUD), "sshd: @notty")


def test_ssh_is_cut_within_an_open_connection(lab):
    import paramiko

    state = lab.state
    with paramiko.SSHClient() as client:
        client.load_host_keys(str(state.directory / "ssh" / "known_hosts"))
        client.connect(
            "127.0.0.1", port=state.sites[CLOUD].ports["sshd"], username=state.user,
            key_filename=str(state.directory / "ssh" / "id_ed25519"),
            allow_agent=False, look_for_keys=False,
        )  # fmt: skip
        assert client.exec_command("echo ok")[1].read() == b"ok\n"
        faults.ssh_cut(lab, "after")
        _, out, _ = client.exec_command("echo ok; touch " + str(state.directory / CLOUD / "mark"))
        assert out.read() == b""
        assert out.channel.recv_exit_status() == -1
        until(lambda: not client.get_transport().is_active(), 10, "the connection is gone")
    assert (state.directory / CLOUD / "mark").exists()


def test_sftp_works_and_is_cut(lab, tmp_path):
    state = lab.state
    source, scratch = tmp_path / "file", lab.site(CLOUD).paths.scratch
    source.write_text("content\n")
    command = [
        "sftp", "-q", "-b", "-", "-F", "none", "-P", str(state.sites[CLOUD].ports["sshd"]),
        "-i", str(state.directory / "ssh" / "id_ed25519"),
        "-o", f"UserKnownHostsFile={state.directory}/ssh/known_hosts",
        "-o", "BatchMode=yes", f"{state.user}@127.0.0.1",
    ]  # fmt: skip

    def put(name):
        return subprocess.run(
            command, input=f"put {source} {scratch}/{name}\n", text=True,
            capture_output=True, timeout=patience(60), check=False,
        ).returncode  # fmt: skip

    assert put("one") == 0
    assert (scratch / "one").read_text() == "content\n"
    faults.ssh_cut(lab, "after", match="sftp")
    assert put("two") != 0
    assert not (scratch / "two").exists()


def test_ssh_is_refused_until_normal(lab):
    faults.ssh_cut(lab, "refuse")
    done = ssh(lab, "true", check=False)
    assert done.returncode == 255
    assert "Connection refused" in done.stderr
    assert kinds(lab) == {"ssh-cut"}
    faults.ssh_cut(lab, "normal")
    assert ssh(lab, "echo ok").stdout == "ok\n"
    assert not kinds(lab)


def test_cuts_refuse_nonsense(lab):
    with pytest.raises(UsageError):
        faults.ssh_cut(lab, "after", count=0)
    with pytest.raises(UsageError):
        faults.ssh_cut(lab, "after", match="a*")
    assert not kinds(lab)


# ---- disk


@pytest.mark.parametrize("name", [ONPREM, CLOUD])
def test_a_full_disk(lab, name):
    site = lab.site(name)
    scratch = site.paths.scratch
    (scratch / "kept").write_text("kept\n")
    (scratch / "link").unlink(missing_ok=True)
    (scratch / "link").symlink_to("/etc")
    faults.disk_full(lab, name, free_bytes=faults.size_bytes("64k"))
    assert kinds(lab) == {"disk-full"}
    # what was there is there, 64 kB fit, more does not
    assert output(site, "kept") == "kept\n"
    fits = ["dd", "if=/dev/zero", f"of={scratch}/fits", "bs=1k", "count=32"]
    assert site.exec(fits).returncode == 0
    big = site.exec(["dd", "if=/dev/zero", "of=big", "bs=1k", "count=4096"])
    assert big.returncode != 0
    assert "No space left on device" in big.stderr
    with pytest.raises(LabError, match="full already"):
        faults.disk_full(lab, name)
    faults.clear(lab)
    assert not kinds(lab)
    assert str((scratch / "link").readlink()) == "/etc"
    # what fitted meanwhile stays
    assert (scratch / "fits").stat().st_size == 32 * 1024
    big = site.exec(["dd", "if=/dev/zero", f"of={scratch}/big", "bs=1k", "count=4096"])
    assert big.returncode == 0, big.stderr
    (scratch / "big").unlink()


def test_what_is_there_is_there_while_the_disk_becomes_full(lab):
    """As on a real disk: a job that opens its log in that moment finds its directory."""
    site = lab.site(CLOUD)
    there = site.paths.scratch / "there"
    there.mkdir()
    for i in range(300):
        (there / str(i)).write_text("x")
    (there / "claim").symlink_to("mine")
    ready, last = site.paths.run / "watched", there / "299"
    watch = f"touch {ready}; while test -e {last} && test -L {there}/claim; do :; done"
    with subprocess.Popen(site.argv(["sh", "-c", watch]), env=site.env()) as watcher:
        try:
            until(ready.exists, 20, "it looks")
            for _ in range(3):
                faults.disk_full(lab, CLOUD)
                faults.clear(lab)
            assert watcher.poll() is None
        finally:
            watcher.kill()
    assert len(list(there.iterdir())) == 301
    assert not [path for path in site.paths.root.iterdir() if path.name.startswith(".scratch")]
    shutil.rmtree(there)


def test_a_job_on_a_full_disk_fails_to_write(lab):
    site = lab.site(ONPREM)
    faults.disk_full(lab, ONPREM, free_bytes=4096)
    done = site.exec(
        ["srun", "-N1", "sh", "-c", f"dd if=/dev/zero of={site.paths.scratch}/x bs=1k count=999"]
    )
    assert done.returncode != 0
    assert "No space left on device" in done.stderr


def test_what_is_written_as_soon_as_there_is_room_stays(lab):
    """A program that tries until it can write has written, whenever the disk is freed."""
    site = lab.site(ONPREM)
    scratch = site.paths.scratch
    faults.disk_full(lab, ONPREM, free_bytes=4096)
    site.exec(["dd", "if=/dev/zero", f"of={scratch}/rest", "bs=1k", "count=999"])
    tries = f"until echo end >> {scratch}/ended; do :; done 2>/dev/null"
    with subprocess.Popen(site.argv(["sh", "-c", tries]), env=site.env()) as writer:
        tried = ["test", "-e", f"{scratch}/ended"]
        until(lambda: site.exec(tried).returncode == 0, 20, "it tries")
        faults.clear(lab)
        assert writer.wait(60) == 0
    assert (scratch / "ended").read_text() == "end\n"
    (scratch / "ended").unlink()


def test_sizes():
    assert [faults.size_bytes(t) for t in ("0", "64k", "2M", "1g")] == [0, 65536, 2 << 20, 1 << 30]
    with pytest.raises(UsageError):
        faults.size_bytes("lots")


def test_missing_directory_and_site(lab):
    with pytest.raises(LabError, match="sees no directory"):
        faults.disk_full(lab, CLOUD, path=lab.site(ONPREM).paths.scratch)
    with pytest.raises(LabError, match="no site 'nowhere'"):
        faults.controller(lab, "nowhere", "stop")
    with pytest.raises(LabError, match="no slurmdbd"):
        faults.slurmdbd(lab, "stop")
