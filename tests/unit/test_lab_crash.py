"""The lab's crash of a node: nothing that dies with it tells of its end."""

import contextlib
import os
import signal
import subprocess
import sys

import pytest

from hpcscale.lab.faults import _those_below_first
from hpcscale.lab.process import patience, start_time, state_letter, wait_until

SCRIPT = """
trap 'echo "$?" > {told}' EXIT
sleep 600 &
echo "$$ $!" > {pids}
wait
"""
# as slurmstepd: a session of its own, and the batch script in a process group below it
TOP = """
import os, subprocess, time
os.setsid()
subprocess.Popen(["bash", {script!r}], process_group=0)
time.sleep(600)
"""


@pytest.mark.parametrize("below_first", [True, False])
def test_a_script_whose_node_crashes_tells_no_end(tmp_path, below_first):
    script, told, pids = (tmp_path / name for name in ("script", "told", "pids"))
    script.write_text(SCRIPT.format(told=told, pids=pids))
    with subprocess.Popen([sys.executable, "-c", TOP.format(script=str(script))]) as top:
        assert wait_until(lambda: pids.exists() and pids.read_text().endswith("\n"), patience(60))
        bash, child = map(int, pids.read_text().split())
        doomed = [top.pid, bash, child]
        for pid in doomed:
            os.kill(pid, signal.SIGSTOP)
        assert wait_until(lambda: all(state_letter(p) in {"T", "t"} for p in doomed), patience(60))
        order = _those_below_first(doomed)
        assert order == [child, bash, top.pid]
        for pid in order if below_first else reversed(order):
            with contextlib.suppress(ProcessLookupError):  # it has gone by itself
                os.kill(pid, signal.SIGKILL)
            if pid == top.pid:
                top.wait()
                if not below_first:  # what would go wrong does
                    assert wait_until(told.exists, patience(60))
        assert wait_until(lambda: all(start_time(p) is None for p in doomed), patience(60))
    assert told.exists() is not below_first
