"""``hpcscale fetch`` and its bar: what is said for wrong words, and where a bar is drawn."""

import os
import pty
import subprocess
import sys

import pytest
from job_helpers import hpcscale

BAR = """
from hpcscale.cli._transfer_bar import Bar
import time
with Bar() as bar:
    bar.begin("copied", 1000)
    for _ in range(4):
        bar.advance(250)
        time.sleep(0.15)  # a bar is drawn ten times a second
print("done")
"""


@pytest.mark.parametrize(
    ("words", "code", "text"),
    [
        (("r0000000000",), 8, "hpcscale"),
        (("r0000000000", "--max-bytes", "many"), 2, "--max-bytes 200G"),
        ((), 2, "JOB"),
    ],
)
def test_wrong_words_are_one_clear_message(tmp_path, words, code, text):
    env = {"HPCSCALE_STATE_DIR": str(tmp_path)}
    done = hpcscale("fetch", *words, code=code, env=env)
    assert text in done.stderr
    assert done.stdout == ""


def test_no_bar_in_a_pipe():
    done = subprocess.run(
        [sys.executable, "-c", BAR], capture_output=True, text=True, timeout=60, check=True
    )
    assert (done.stdout, done.stderr) == ("done\n", "")


def test_a_bar_on_a_terminal():
    ours, theirs = pty.openpty()
    try:
        child = subprocess.Popen(
            [sys.executable, "-c", BAR],
            stdout=subprocess.PIPE,
            stderr=theirs,
            env={**os.environ, "TERM": "xterm", "COLUMNS": "100"},
        )
        os.close(theirs)
        seen = b""
        while True:
            try:
                block = os.read(ours, 4096)
            except OSError:  # the other end was closed
                break
            if not block:
                break
            seen += block
        assert child.communicate(timeout=60)[0] == b"done\n"
    finally:
        os.close(ours)
    assert b"copied" in seen
    assert b"kB" in seen
