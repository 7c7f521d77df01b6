"""The heads of the audit log and a real syslog daemon: what it keeps tells of a log that was cut."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from hpcscale.burst.audit import audit_path
from hpcscale.lab.process import patience

HELPER = Path(__file__).parents[1] / "with_syslog.py"
ADD = """
from hpcscale.burst.audit import AuditLog
for n in range(5):
    AuditLog().add("update", job=str(n))
"""
SEND = f"{sys.executable} -c '{ADD}'"
CUT = 'head -n 3 "$0" > "$0.cut" && mv "$0.cut" "$0"'
AGAIN = f'rm "$0" && {SEND}'


def with_daemon(file, *argv):
    """Run a command that has /dev/log, as root of a namespace of its own."""
    return subprocess.run(
        ["unshare", "--user", "--map-root-user", "--mount", sys.executable, str(HELPER), str(file),
         *argv],
        capture_output=True, text=True, timeout=patience(200), check=False,
        env={**os.environ, "PYTHONPATH": str(HELPER.parents[1])},
    )  # fmt: skip


def audit(file, *words):
    return with_daemon(file, sys.executable, "-m", "hpcscale", "burst", "audit", *words)


@pytest.fixture
def received(tmp_path, monkeypatch):
    """Syslog's file, after five lines were written to the audit log."""
    monkeypatch.setenv("HPCSCALE_STATE_DIR", str(tmp_path / "state"))
    file = tmp_path / "auth.log"
    done = with_daemon(file, sys.executable, "-c", ADD)
    assert done.returncode == 0, done.stderr
    return file


def test_each_head_arrives_and_the_log_agrees_with_them(received, tmp_path):
    log = (tmp_path / "state" / "audit.log").read_text().splitlines()
    kept = [line for line in received.read_text().splitlines() if "hpcscale audit: " in line]
    assert [f"line {n} of uid 0 is" in line for n, line in enumerate(kept, 1)] == [True] * 5
    assert len(log) == 5
    done = audit(tmp_path / "other.log", "--syslog", str(received), "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["data"]["syslog"] == 5


@pytest.mark.parametrize(("harm", "alone", "line"), [(CUT, 0, 4), ('rm "$0"', 8, 1), (AGAIN, 0, 1)])
def test_a_log_that_was_cut_or_begun_anew_is_found_by_the_heads(
    received, tmp_path, harm, alone, line
):
    """Each chain is sound by itself: only what syslog was told says that it is not the old one."""
    subprocess.run(
        ["sh", "-c", harm, str(audit_path())], check=True, timeout=patience(60),
        env={**os.environ, "PYTHONPATH": str(HELPER.parents[1])},
    )  # fmt: skip
    done = audit(tmp_path / "other.log")
    assert done.returncode == alone, done.stderr
    done = audit(tmp_path / "other.log", "--syslog", str(received))
    assert done.returncode == 9, done.stderr
    assert f"line {line} is not what it was when syslog was told of it" in done.stderr
    assert f"the head is in {received}:{line}" in done.stderr


def test_a_file_without_heads_of_this_log_is_said(received, tmp_path):
    other = tmp_path / "messages"
    other.write_text("Nov 22 21:00:00 login1 kernel: nothing of ours\n")
    done = audit(tmp_path / "other.log", "--syslog", str(other))
    assert done.returncode == 0, done.stderr
    assert f"{other} holds no head of this log" in done.stderr
