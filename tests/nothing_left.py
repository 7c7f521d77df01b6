"""What lives on when a lab is down? ``nothing_left.py DIRECTORY MODE WHAT``, prints it as JSON.

Run as a program of its own, which inherits all orphans (prctl(2), PR_SET_CHILD_SUBREAPER): a
process that the lab loses, in whatever way, ends up below this one and is seen.

MODE is ``all`` for whatever namespaces the system allows, ``mount`` without a pid namespace,
``none``. WHAT is one of SCENARIOS.
"""

import contextlib
import faulthandler
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from lab_helpers import job_state, patience, sbatch, ssh, ssh_argv, until

from hpcscale.errors import LabError
from hpcscale.lab import Lab, LabOptions, _nsinit, daemons, faults, namespace
from hpcscale.lab.process import start_time

# own session, own directory, no environment, and a parent that is gone
HIDE = "env -i setsid sh -c '(cd /; exec env -i sleep 4713) &'"
NEVER_READY = {"lab-onprem": ("DownNodes=onprem1 State=DOWN",)}


def options(mode, **more):
    return LabOptions(nodes=2, isolate=mode != "none", **more)


def alive():
    """Arguments of all living processes below this one."""
    found = {}
    for pid in namespace.descendants([os.getpid()]):
        with contextlib.suppress(OSError):
            text = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace")
            if start_time(pid) is not None:
                found[pid] = text.replace("\0", " ")
    return found


def busy(lab):
    """Jobs and sessions on both sites that hide from those who started them."""
    onprem, cloud = lab.site("lab-onprem"), lab.site("lab-cloud")
    jobs = [(site, sbatch(site, "-o", "/dev/null", script=f"{HIDE}; sleep 4714"))
            for site in (onprem, cloud)]  # fmt: skip
    # what its owner may not write either
    onprem.exec(
        ["sh", "-c", "mkdir -p a/b && touch a/b/c && chmod 0 a/b && chmod 500 a"], check=True
    )
    ssh(lab, "nohup sleep 4715 >/dev/null 2>&1 </dev/null & " + HIDE + " >/dev/null 2>&1")
    for site, job_id in jobs:
        until(lambda s=site, j=job_id: job_state(s, j) == "RUNNING", 60, "job runs")
    until(lambda: [t.strip() for t in alive().values()].count("sleep 4713") == 3, 20, "all hide")


# ---- what may happen before the end


def work(directory, mode):
    """Nothing but work."""
    with Lab.up(directory, options(mode)) as lab:
        busy(lab)


def work_with_accounting(directory, mode):
    with Lab.up(directory, options(mode, accounting=True)) as lab:
        busy(lab)
        faults.slurmdbd(lab, "stop", "lab-onprem")
        faults.slurmdbd(lab, "start", "lab-onprem")


def every_fault(directory, mode):
    """Work, and then everything is broken at once."""
    with Lab.up(directory, options(mode)) as lab:
        busy(lab)
        faults.slow_boot(lab, 60)
        faults.no_boot(lab, ["cloud1"])
        waiting = sbatch(lab.site("lab-cloud"), "-N1", "-w", "cloud2", "-o", "/dev/null")
        until(lambda: job_state(lab.site("lab-cloud"), waiting) == "CONFIGURING", 20, "it boots")
        faults.node_crash(lab, "onprem1", keep_stepd=True)
        faults.node_restart(lab, "onprem1")
        faults.node_crash(lab, "cloud1")
        faults.node_crash(lab, "onprem2")
        if mode != "none":
            faults.disk_full(lab, "lab-onprem")
        faults.ssh_cut(lab, "hang", match="true")
        with subprocess.Popen(ssh_argv(lab, "true"), stdin=subprocess.DEVNULL) as cut:
            until(lambda: "ssh-cut" not in {f["fault"] for f in faults.active(lab)}, 10, "it hangs")
            cut.kill()
        listener = lab.site("lab-cloud").pid_of("sshd")
        os.kill(listener, signal.SIGKILL)
        faults.clock_skew(lab, "lab-onprem", 100)
        faults.controller(lab, "lab-onprem", "stop")
        faults.controller(lab, "lab-cloud", "kill")
        for site in lab.sites.values():
            os.kill(site.pid_of("munged"), signal.SIGSTOP)


def killed_keeper(directory, mode):
    """The first process of each site's namespaces is killed, and then the lab is taken down."""
    lab = Lab.up(directory, options(mode))
    busy(lab)
    for site in lab.state.sites.values():
        if site.keeper_pid is not None:
            os.kill(site.keeper_pid, signal.SIGKILL)
            until(lambda pid=site.keeper_pid: start_time(pid) is None, 20, "the keeper is gone")
    Lab.remove(directory)


def damaged_state(directory, mode):
    """``lab.json`` cannot be read."""
    busy(Lab.up(directory, options(mode)))
    (directory / "lab.json").write_text('{"directory": "/tm')
    Lab.remove(directory)


def half_up(directory, mode):
    """Each kind of daemon starts and then counts as failed: `up` cleans up after itself."""
    real = daemons.Site.start
    for kind in ("munged", "slurmctld", "slurmd.onprem1", "sshd"):

        def start(self, what, *args, kind=kind):
            real(self, what, *args)
            if what == kind:
                raise LabError(f"{kind} fails")

        daemons.Site.start = start
        with pytest.raises(LabError, match=f"{kind} fails"):
            Lab.up(directory, options(mode))
        assert not directory.exists()
        assert not alive(), (kind, alive())


def killed_up(directory, mode):
    """`up` itself is killed."""
    child = os.fork()
    if child == 0:
        Lab.up(directory, options(mode, extra_conf=NEVER_READY))
        os._exit(1)
    log = directory / "lab-onprem" / "log" / "slurmctld.log"
    until(lambda: log.exists() and "Running as primary" in log.read_text(), 20, "half up")
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    Lab.remove(directory)


def killed_up_before_it_wrote(directory, mode):
    """`up` is killed when a keeper lives of which the state file does not tell."""
    child = os.fork()
    if child == 0:
        real = namespace.start_keeper

        def start_keeper(*args):
            real(*args)
            os.kill(os.getpid(), signal.SIGKILL)

        namespace.start_keeper = start_keeper
        Lab.up(directory, options(mode))
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert len(alive()) == 1
    Lab.remove(directory)


SCENARIOS = {
    each.__name__: each
    for each in (work, work_with_accounting, every_fault, killed_keeper, damaged_state, half_up,
                 killed_up, killed_up_before_it_wrote)
}  # fmt: skip


if __name__ == "__main__":
    # whoever hangs says where, before the caller loses patience and kills without a word
    faulthandler.dump_traceback_later(patience(60), exit=True)
    _nsinit._check(_nsinit._libc.prctl(_nsinit.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0), "prctl")
    where = Path(sys.argv[1])
    if sys.argv[2] == "mount":
        first = namespace.modes()
        namespace.modes = lambda: first[1:]
    SCENARIOS[sys.argv[3]](where, sys.argv[2])
    print(json.dumps({"alive": alive(), "directory": where.exists()}))
