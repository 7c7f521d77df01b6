"""No shared file system, for real: what a login and a job of each site can see."""

import os
import pwd
import subprocess
import sys
from pathlib import Path

import pytest
from lab_helpers import ROOT, job_state, output, sbatch, ssh, until

from hpcscale.lab import namespace
from hpcscale.lab.process import patience

OTHER = {"lab-onprem": "lab-cloud", "lab-cloud": "lab-onprem"}
LOOK = "for p in {paths}; do if [ -e $p ]; then echo seen $p; fi; done; echo looked"


@pytest.fixture
def secrets(lab):
    """Files in places of this machine that no site may see, some with a name to look for."""
    home = Path(pwd.getpwuid(os.getuid()).pw_dir)
    marks = [home / ".hpcscale-lab-test", Path("/tmp/.hpcscale-lab-test"),
             Path("/var/tmp/.hpcscale-lab-test")]  # fmt: skip
    for mark in marks:
        mark.touch()
    yield [*marks, ROOT / "pyproject.toml", ROOT / "hpcscale"]
    for mark in marks:
        mark.unlink()


def hidden_from(lab, name, secrets):
    directory = lab.state.directory
    return [*secrets, directory / OTHER[name], directory / "ssh", directory / "config",
            directory / "lab.json"]  # fmt: skip


@pytest.mark.parametrize("name", ["lab-onprem", "lab-cloud"])
def test_a_login_sees_its_own_site_alone(lab, name, secrets):
    hidden = hidden_from(lab, name, secrets)
    assert all(path.exists() for path in hidden)
    command = LOOK.format(paths=" ".join(map(str, hidden)))
    if name == "lab-cloud":
        assert ssh(lab, command).stdout == "looked\n"
    done = lab.site(name).exec(["sh", "-c", command], check=True)
    assert done.stdout == "looked\n"


def test_a_job_on_onprem_sees_its_own_site_alone(lab, secrets):
    command = LOOK.format(paths=" ".join(map(str, hidden_from(lab, "lab-onprem", secrets))))
    # submitted from this machine, where all of it can be seen
    done = subprocess.run(
        ["srun", "-N1", "sh", "-c", command],
        env=os.environ | {"SLURM_CONF": lab.env()["SLURM_CONF"]},
        cwd=lab.site("lab-onprem").paths.scratch,
        capture_output=True, text=True, timeout=patience(60), check=False,
    )  # fmt: skip
    assert done.stdout == "looked\n", done.stderr


def test_a_job_in_the_cloud_sees_its_own_site_alone(lab, secrets):
    cloud = lab.site("lab-cloud")
    command = LOOK.format(paths=" ".join(map(str, hidden_from(lab, "lab-cloud", secrets))))
    job_id = sbatch(cloud, "-o", "look-%j.out", script=f"srun sh -c '{command}'")
    until(lambda: job_state(cloud, job_id) == "COMPLETED", 75, "cloud job done")
    assert output(cloud, f"look-{job_id}.out") == "looked\n"


@pytest.mark.parametrize("name", ["lab-onprem", "lab-cloud"])
def test_home_and_tmp_are_the_sites_own(lab, name):
    site = lab.site(name)
    site.exec(["sh", "-c", "echo home > ~/mark && echo tmp > /tmp/mark"], check=True)
    assert (site.paths.home / "mark").read_text() == "home\n"
    assert (site.paths.tmp / "mark").read_text() == "tmp\n"
    other = lab.site(OTHER[name])
    assert other.exec(["sh", "-c", "ls ~ /tmp"], check=True).stdout.count("mark") == 0
    site.exec(["sh", "-c", "rm ~/mark /tmp/mark"], check=True)


def test_the_working_directory_leads_nowhere_else(lab):
    for name, site in lab.sites.items():
        seen = site.exec(["ls", "../.."], check=True).stdout
        assert seen.split() == [name]


def test_a_site_knows_its_own_nodes_names_alone(lab):
    for name, prefix in (("lab-onprem", "onprem"), ("lab-cloud", "cloud")):
        resolve = "import socket; print(socket.gethostbyname('{}'))"
        site = lab.site(name)
        known = site.exec([sys.executable, "-c", resolve.format(f"{prefix}1")])
        assert known.stdout == "127.0.0.1\n", known.stderr
        other = "cloud" if prefix == "onprem" else "onprem"
        assert site.exec([sys.executable, "-c", resolve.format(f"{other}1")]).returncode != 0


def test_shared_software_is_usable_and_read_only(lab):
    for site in lab.sites.values():
        python = site.exec(["sh", "-c", f"{sys.executable} -c 'import click; print(click)'"])
        assert python.returncode == 0, python.stderr
        assert site.exec(["touch", f"{sys.prefix}/mark"]).returncode != 0
    assert not Path(sys.prefix, "mark").exists()


def test_nodes_have_torch_but_no_hpcscale(lab):
    code = (
        "import importlib.util as u, torch\n"
        "try:\n    import hpcscale\nexcept ModuleNotFoundError:\n    print('none', torch.__name__)"
    )
    done = lab.site("lab-onprem").exec(["srun", "-N1", sys.executable, "-c", code], timeout_s=240)
    assert done.stdout == "none torch\n", done.stderr
    done = lab.site("lab-cloud").exec([sys.executable, "-c", code], timeout_s=240)
    assert done.stdout == "none torch\n", done.stderr


def test_the_cloud_has_its_own_munge_key(lab):
    # a credential of one site is refused by the other
    cloud, onprem = lab.site("lab-cloud"), lab.site("lab-onprem")
    made = cloud.exec(["munge", "-n", "-S", str(cloud.paths.munge_socket)], check=True).stdout
    refused = onprem.exec(["unmunge", "-S", str(onprem.paths.munge_socket)], stdin=made)
    assert refused.returncode != 0
    assert "Invalid credential" in refused.stdout + refused.stderr
    assert (lab.state.directory / "lab-cloud").stat().st_mode & 0o077 == 0


def test_a_wrong_host_key_is_noticed(lab):
    known = lab.state.directory / "ssh" / "known_hosts"
    right = known.read_text()
    wrong = (
        right.split()[0]
        + " "
        + " ".join((lab.state.directory / "ssh" / "id_ed25519.pub").read_text().split()[:2])
    )
    try:
        known.write_text(wrong + "\n")
        done = ssh(lab, "true", check=False)
    finally:
        known.write_text(right)
    assert done.returncode == 255
    assert "Host key verification failed" in done.stderr


def test_sites_have_no_process_of_the_host_in_view(lab):
    for site in lab.sites.values():
        seen = site.exec(["sh", "-c", "ls -d /proc/[0-9]* | wc -l"], check=True)
        assert int(seen.stdout) < 30
        # the number may be taken in there too, by another process
        seen = site.exec(["cat", f"/proc/{os.getpid()}/cmdline"])
        assert seen.stdout != Path("/proc/self/cmdline").read_text()


def test_no_lab_process_or_mount_stands_outside_the_namespaces(lab):
    mounts = Path("/proc/self/mounts").read_text()
    assert str(lab.state.directory) not in mounts
    own = {namespace.namespace_of(s.state.keeper_pid, "pid") for s in lab.sites.values()}
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            text = path.read_bytes().decode(errors="replace")
        except OSError:
            continue
        if str(lab.state.directory) in text:
            assert namespace.namespace_of(int(path.parent.name), "pid") in own, text


def test_covers_what_it_is_told_to(lab_factory, tmp_path_factory):
    directory = ROOT.parent / "hpcscale-lab-cover-test"
    directory.mkdir()
    try:
        (directory / "file").touch()
        lab = lab_factory(nodes=1, cover=(directory,))
        for site in lab.sites.values():
            # a checkout below /tmp: each site has its own /tmp, and there is nothing to cover
            assert "file" not in site.exec(["ls", str(directory)]).stdout
    finally:
        (directory / "file").unlink()
        directory.rmdir()


def test_hpcscale_inside_the_shared_software_is_hidden(lab_factory):
    # as when hpcscale is installed in the environment that the nodes share
    lab = lab_factory(nodes=1, software=ROOT)
    code = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r})\n"
        "try:\n    import hpcscale\nexcept ModuleNotFoundError as exc:\n    print(exc)"
    )
    done = lab.site("lab-onprem").exec(["srun", sys.executable, "-c", code])
    assert done.stdout == "hpcscale is not installed on the nodes\n", done.stderr
