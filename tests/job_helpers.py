"""Submitting to a lab's sites, and hpcscale as a user types it."""

import json
import os
import subprocess
import sys

from hpcscale.connect import connect
from hpcscale.lab.process import patience
from hpcscale.ledger import Ledger
from hpcscale.render import render
from hpcscale.site import load_site
from hpcscale.spec import JobSpec, Resources
from hpcscale.submit import submit


def hpcscale(*args, code=0, timeout_s=120, stdin=None, env=None):
    """Run the command line; its result, after its exit code was checked."""
    done = subprocess.run(
        [sys.executable, "-m", "hpcscale", *args],
        capture_output=True,
        text=True,
        timeout=patience(timeout_s),
        check=False,
        stdin=subprocess.DEVNULL if stdin is None else None,
        input=stdin,
        env={**os.environ, **(env or {})},
    )
    assert "Traceback" not in done.stderr, done.stderr
    if code is not None:
        assert done.returncode == code, f"{done.args}\n{done.stdout}\n{done.stderr}"
    return done


def data(*args, code=0, timeout_s=120):
    """What ``--json`` prints."""
    document = json.loads(hpcscale(*args, "--json", code=code, timeout_s=timeout_s).stdout)
    assert document["schema"] == 1
    return document["data"]


def attempts(*jobs):
    """Attempts that status shows for these jobs, by site."""
    (run,) = data("status", *jobs, code=None)["runs"]
    return {a["site"]: a for a in run["attempts"]}


def job_spec(shell, **fields):
    """A job that runs a line of shell, without code of its own."""
    fields.setdefault("resources", Resources(nodes=1, gpus_per_node=1, time_limit_s=600))
    return JobSpec(command=("bash", "-c", shell), code="", **fields)


def start(site_name, shell, *, timeout_s=60.0, **fields):
    """Submit a line of shell through the Python interface."""
    site = load_site(site_name).site
    with Ledger.open() as ledger, connect(site) as connection:
        rendered = render(job_spec(shell, **fields), site)
        return submit(rendered, site, connection, ledger, timeout_s=timeout_s)
