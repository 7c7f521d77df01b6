"""The order of tests, and that nothing of a test run outlives it."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from order import at_the_heads

from hpcscale.lab.process import patience, wait_until

TESTS = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize("workers", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("count", [0, 3, 8, 100])
def test_each_worker_begins_with_its_share_of_the_long_ones(workers, count):
    long, rest = ["25", "4", "3", "2"], [f"r{i}" for i in range(count)]
    found = at_the_heads(long, rest, workers)
    assert sorted(found) == sorted(long + rest)
    assert [item for item in found if item in rest] == rest
    heads, at = [], 0
    for worker in range(workers):  # as worksteal hands them out
        size = (len(found) - at) // (workers - worker)
        heads.append(found[at : at + size])
        at += size
    assert found[0] == "25"
    if count >= 8:
        for mine in heads:
            begins = [item in long for item in mine]
            assert begins == sorted(begins, reverse=True), "long ones come first"
            assert 4 // workers <= sum(begins) <= -(-4 // workers)


PARENT = """
import contextlib, os, sys, time
sys.path[:0] = [{tests!r}, {tests!r} + "/benchmarks"]
import handover
from injection_set import Injection

class NoLab:
    @staticmethod
    @contextlib.contextmanager
    def up(*args, **kw):
        yield NoLab()
    def env(self):
        return {{}}

class Slow:
    def __init__(self, lab, folder):
        self.folder = folder
    def onprem(self, *argv, check):
        return "slurm"
    def inject(self, injection):
        child = os.fork()
        if not child:
            handover.injections.die_with_parent(os.getppid(), 9)
            time.sleep(600)
        # in one write: the other worker has the same pipe
        os.write(1, f"{{os.getpid()}} {{child}} {{self.folder}}\\n".encode())
        time.sleep(600)

handover.Lab, handover.injections.Site = NoLab, Slow
handover.run([Injection()] * 2, 2, 30, print)
"""


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_an_interrupted_run_of_injections_leaves_no_process(end):
    script = PARENT.format(tests=str(TESTS))
    # in a group of its own: not even a terminal's Ctrl-C comes to its workers
    parent = subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    with parent:
        try:
            lines = [parent.stdout.readline().split() for _ in range(2)]
            pids = [int(pid) for line in lines for pid in line[:2]]
            assert all(Path(f"/proc/{pid}").exists() for pid in pids)
            os.kill(parent.pid, end)
            parent.wait(patience(60))
        finally:
            parent.kill()
    gone = lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids)  # noqa: E731 # asked again
    assert wait_until(gone, patience(60))
    assert not any(Path(line[2]).exists() for line in lines), "each takes its folder along"
