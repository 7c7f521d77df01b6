"""An ordinary user with hpcscale on the lab's machine, for tests that run as root.

The lab runs as root, so its slurmd starts anybody's jobs. Both sites are reached as from a login
node (no ssh): each user has a home, a profile, a ledger and a state directory of their own.
"""

import json
import os
import pwd
import subprocess
import sys
from pathlib import Path

from lab_helpers import ROOT, until

from hpcscale.lab.process import patience

ONPREM, CLOUD = "lab-onprem", "lab-cloud"
HELPER = Path(__file__).parent / "lab" / "as_ordinary_user.py"


def let_in(lab):
    """Anybody finds munge, slurm.conf and their own home."""
    for site in (lab.site(ONPREM), lab.site(CLOUD)):
        for path in (
            lab.state.directory, site.paths.root, site.paths.etc, site.paths.run, site.paths.scratch,
        ):  # fmt: skip
            path.chmod(0o755)


class Person:
    """Somebody with a home and a profile of both sites."""

    def __init__(self, lab, name):
        self.lab, self.name = lab, name
        entry = pwd.getpwnam(name)
        self.uid, self.gid = entry.pw_uid, entry.pw_gid
        self.home = lab.site(ONPREM).paths.scratch / name
        self.project = self.home / "project"
        self.there = {
            ONPREM: self.home / "hpcscale",
            CLOUD: lab.site(CLOUD).paths.scratch / name / "hpcscale",
        }
        sites = self.home / "config" / "sites"
        for directory in (sites, self.project, self.there[CLOUD].parent):
            directory.mkdir(parents=True)
        for site, state_dir in self.there.items():
            text = (lab.state.directory / "config" / "sites" / f"{site}.toml").read_text()
            top, _, rest = text.partition("\n[transport]\n")
            partitions = rest[rest.index("\n[partitions") :]
            top = "\n".join(x for x in top.splitlines() if not x.startswith("state_dir"))
            conf = lab.site(site).paths.slurm_conf
            (sites / f"{site}.toml").write_text(
                f'state_dir = "{state_dir}"\n{top}\n[transport]\nkind = "local"\n'
                f'slurm_conf = "{conf}"\n{partitions}'
            )
        (self.home / "policy.toml").write_text(
            f'from = "{ONPREM}"\nto = ["{CLOUD}"]\nmax_wait = "1h"\n'
        )
        for top in (self.home, self.there[CLOUD].parent):
            for path in (top, *top.rglob("*")):
                os.chown(path, self.uid, self.gid)

    def run(self, *argv, check=True, **more):
        """Run a command as this person."""
        values = {
            "HPCSCALE_CONFIG_DIR": self.home / "config",
            "HPCSCALE_STATE_DIR": self.home / "ledger",
            "SLURM_CONF": self.lab.site(ONPREM).paths.slurm_conf,
            **more,
        }
        done = subprocess.run(
            [sys.executable, str(HELPER), f"--user={self.name}", str(self.project),
             "/usr/bin/env", *(f"{k}={v}" for k, v in values.items()), *map(str, argv)],
            capture_output=True, text=True, timeout=patience(120), check=False,
            env=os.environ | {"PYTHONPATH": f"{ROOT}"},
        )  # fmt: skip
        assert "Traceback" not in done.stderr, done.stderr
        assert done.returncode == 0 or not check, f"{done.args}\n{done.stdout}\n{done.stderr}"
        return done

    def hpcscale(self, *argv, **kw):
        return self.run(sys.executable, "-m", "hpcscale", *argv, **kw)

    def data(self, *argv, **kw):
        return json.loads(self.hpcscale(*argv, "--json", **kw).stdout)["data"]

    def submit(self, shell, *options, **env):
        """Submit a line of shell; what ``submit --json`` says."""
        done = self.hpcscale(
            "submit", "--json", "--site", ONPREM, "--name", "urgent", "--nodes", "2", "--time",
            "10", "--gpus-per-node", "1", "--no-code", *options, "--", "sh", "-c", shell, **env,
        )  # fmt: skip
        said = json.loads(done.stdout)["data"]
        return said | {"job_id": said["ref"].rpartition(":")[2]}

    def witness(self):
        """What this person's commands wrote, at both sites."""
        return [
            line
            for site in self.there
            for path in [self.lab.site(site).paths.scratch / self.name / "witness"]
            if path.exists()
            for line in path.read_text().splitlines()
        ]


def job(person, job_id):
    """``scontrol show job`` as this person sees it."""
    done = person.run("scontrol", "-o", "show", "job", job_id, check=False)
    return dict(word.split("=", 1) for word in done.stdout.split() if "=" in word)


def fill(person):
    """Somebody's job on every on-prem node; its id."""
    done = person.lab.site(ONPREM).exec(
        ["sbatch", "--parsable", "-N4", "--exclusive", "--time=60"],
        stdin="#!/bin/sh\nsleep 600\n",
        check=True,
    )
    full = done.stdout.strip()
    until(lambda: job(person, full).get("JobState") == "RUNNING", 30, "the queue is full")
    return full
