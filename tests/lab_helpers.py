"""Small helpers of the lab's tests."""

import contextlib
import os
import resource
import subprocess
import time
from pathlib import Path

import pytest

from hpcscale.lab import namespace
from hpcscale.lab.process import patience

TICKS_A_SECOND = os.sysconf("SC_CLK_TCK")
ROOT = Path(__file__).resolve().parents[1]
LEAST_S = 60


def ssh_argv(lab, command):
    """A command on lab-cloud the way a user reaches it: OpenSSH, pinned host key."""
    state = lab.state
    return [
        "ssh", "-F", "none", "-T",
        "-p", str(state.sites["lab-cloud"].ports["sshd"]),
        "-i", str(state.directory / "ssh" / "id_ed25519"),
        "-o", f"UserKnownHostsFile={state.directory}/ssh/known_hosts",
        "-o", "GlobalKnownHostsFile=/dev/null",
        "-o", "StrictHostKeyChecking=yes",
        "-o", "BatchMode=yes",
        "-o", "IdentitiesOnly=yes",
        f"{state.user}@127.0.0.1", command,
    ]  # fmt: skip


def ssh(lab, command, *, stdin="", timeout_s=None, check=True):
    """Run ``ssh_argv``."""
    timeout_s = patience(30) if timeout_s is None else timeout_s
    done = subprocess.run(
        ssh_argv(lab, command), input=stdin, capture_output=True, text=True, timeout=timeout_s,
        check=False,
    )  # fmt: skip
    if check:
        assert done.returncode == 0, done.stderr
    return done


class Stopwatch:
    """How long something takes where nothing else runs: a claim that holds on a busy machine.

    From the time that passed is taken what other programs used of this machine's processors
    meanwhile: they delayed us by that at most.
    """

    def __init__(self):
        self.began = time.monotonic()
        self.busy = self._machine_s()
        self.own = self._own_s()

    def idle_machine_s(self, lab):
        """Seconds since the start; what the lab's processes used counts as ours."""
        passed = time.monotonic() - self.began
        own = self._own_s() - self.own
        for site in lab.sites.values():
            own += sum(map(self._used_s, namespace.members(site.state, site.paths)))
        others = self._machine_s() - self.busy - own
        return passed - max(0.0, others)

    @staticmethod
    def _machine_s():
        # user nice system idle iowait irq softirq steal: proc(5)
        ticks = [int(word) for word in Path("/proc/stat").read_text().split("\n")[0].split()[1:9]]
        return (sum(ticks) - ticks[3] - ticks[4]) / TICKS_A_SECOND

    @staticmethod
    def _own_s():
        used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
        return sum(each.ru_utime + each.ru_stime for each in used)

    @staticmethod
    def _used_s(pid):
        with contextlib.suppress(OSError):
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            return sum(map(int, fields[11:15])) / TICKS_A_SECOND
        return 0.0


def saved(site):
    """Wait until slurmctld has on its disk what it knows now.

    It saves at most 5 s after something has happened, and else every 300 s: so something happens.
    """
    file = site.paths.state / "ctld" / "job_state"
    since = time.time()
    held = sbatch(site, "--hold", "-o", "/dev/null", script="true")
    site.exec(["scancel", held], check=True)
    until(lambda: file.exists() and file.stat().st_mtime > since, 30, "slurmctld saves its state")


def until(condition, timeout_s, what):
    """Poll for a condition; the value that made it true."""
    # a limit only ends what is hopeless: even short ones hold on a machine that is much slower
    limit_s = patience(max(timeout_s, LEAST_S))
    deadline = time.monotonic() + limit_s
    while not (value := condition()):
        if time.monotonic() > deadline:
            pytest.fail(f"not within {limit_s:.0f} s: {what}")
        time.sleep(0.1)
    return value


def sbatch(site, *args, script="sleep 300"):
    """Submit inside a site; the job id."""
    done = site.exec(
        ["sbatch", "--parsable", "--open-mode=append", *args],
        stdin=f"#!/bin/sh\n{script}\n",
        check=True,
    )
    return done.stdout.strip()


def job(site, job_id):
    """``scontrol show job`` as a dictionary; empty when the job is not known."""
    done = site.exec(["scontrol", "-o", "show", "job", job_id])
    return dict(word.split("=", 1) for word in done.stdout.split() if "=" in word)


def job_state(site, job_id):
    return job(site, job_id).get("JobState", "")


def output(site, name):
    """A file in the site's scratch directory, as the site sees it."""
    return site.exec(["cat", str(site.paths.scratch / name)]).stdout


@contextlib.contextmanager
def impatient(lab, name="lab-onprem"):
    """Slurm's commands give up on a dead controller after 2 s (MessageTimeout), not after 10."""
    conf = lab.site(name).paths.slurm_conf
    text = conf.read_text()
    assert "MessageTimeout=10\n" in text
    conf.write_text(text.replace("MessageTimeout=10\n", "MessageTimeout=2\n"))
    try:
        yield
    finally:
        conf.write_text(text)
