"""The lab as an ordinary user: the same guarantees, without root."""

import json
import subprocess
import sys

from lab_helpers import ROOT, until


def test_an_ordinary_user_has_a_whole_lab(ordinary):
    up = ordinary("lab", "up", "--nodes", "2", "--json")
    assert up.returncode == 0, up.stderr
    status = json.loads(up.stdout)["data"]
    assert status["isolation"] == {"mount": True, "uts": True, "pid": True}
    assert set(status["sites"]["lab-onprem"]["nodes"].values()) == {"idle"}
    lab = ordinary.home / "lab"

    # jobs: own hostname, no privileges, nothing of home, checkout and the other site
    look = f"hostname; cat /proc/self/status | grep CapEff; ls -d {ROOT}/hpcscale {lab}/lab-cloud"
    done = ordinary("lab", "exec", "lab-onprem", "--", "srun", "-N1", "-l", "sh", "-c", look)
    lines = done.stdout.splitlines()
    assert lines == ["0: onprem1", "0: CapEff:\t0000000000000000"], done.stderr
    assert done.stderr.count("No such file") == 2

    # the cloud: over ssh, and its nodes boot
    port = status["sites"]["lab-cloud"]["ports"]["sshd"]
    scratch = lab / "lab-cloud" / "scratch"
    # --export=NONE: the job has its user's login environment, or srun would not find hostname
    wrap = "unset SLURM_EXPORT_ENV; srun hostname"
    submit = f"sbatch --parsable --export=NONE -N2 -o out --wrap '{wrap}'"
    done = ordinary(
        "ssh", "-F", "none", "-p", str(port), "-i", f"{lab}/ssh/id_ed25519",
        "-o", f"UserKnownHostsFile={lab}/ssh/known_hosts", "-o", "BatchMode=yes",
        "127.0.0.1", f"cd {scratch} && hostname && {submit} && ls ~",
    )  # fmt: skip
    # a checkout below the home leaves its directory there, with the shared software alone
    seen = [name for name in done.stdout.split() if name != ROOT.name]
    assert seen == ["lab-cloud", "1", "lab"], done.stderr
    out = scratch / "out"
    until(lambda: out.exists() and out.read_text().count("cloud") == 2, 60, "the cloud job ran")

    # a fault that needs privileges inside the site
    done = ordinary("lab", "fault", "disk-full", "lab-cloud")
    assert done.returncode == 0, done.stderr
    write = ["dd", "if=/dev/zero", "of=big", "bs=1k", "count=999"]
    done = ordinary("lab", "exec", "lab-cloud", "--", *write)
    assert "No space left on device" in done.stderr

    down = ordinary("lab", "down")
    assert down.returncode == 0, down.stderr
    assert not lab.exists()
    left = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
    assert str(lab) not in left


WITHOUT_PID_NS = """
import sys
from pathlib import Path
from hpcscale.lab import Lab, LabOptions, namespace
first = namespace.modes()
namespace.modes = lambda: first[1:]
with Lab.up(Path(sys.argv[1]), LabOptions(nodes=1)) as lab:
    assert lab.status()["isolation"] == {"mount": True, "uts": True, "pid": False}
    print(lab.site("lab-onprem").exec(["srun", "sh", "-c", "hostname; ls ../.."]).stdout)
print(Path(sys.argv[1]).exists())
"""


def test_an_ordinary_user_without_a_pid_namespace(ordinary):
    lab = ordinary.home / "lab"
    done = ordinary(sys.executable, "-c", WITHOUT_PID_NS, str(lab))
    assert done.stdout.split() == ["onprem1", "lab-onprem", "False"], done.stderr
    left = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
    assert str(lab) not in left
