"""Small helpers of the lab's tests."""

import subprocess
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def ssh(lab, command, *, stdin="", timeout_s=30, check=True):
    """Run a command on lab-cloud the way a user reaches it: OpenSSH, pinned host key."""
    state = lab.state
    done = subprocess.run(
        [
            "ssh", "-F", "none", "-T",
            "-p", str(state.sites["lab-cloud"].ports["sshd"]),
            "-i", str(state.directory / "ssh" / "id_ed25519"),
            "-o", f"UserKnownHostsFile={state.directory}/ssh/known_hosts",
            "-o", "GlobalKnownHostsFile=/dev/null",
            "-o", "StrictHostKeyChecking=yes",
            "-o", "BatchMode=yes",
            "-o", "IdentitiesOnly=yes",
            f"{state.user}@127.0.0.1", command,
        ],
        input=stdin,
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )  # fmt: skip
    if check:
        assert done.returncode == 0, done.stderr
    return done


def until(condition, timeout_s, what):
    """Poll for a condition; the value that made it true."""
    deadline = time.monotonic() + timeout_s
    while not (value := condition()):
        if time.monotonic() > deadline:
            pytest.fail(f"not within {timeout_s} s: {what}")
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
