"""`hpcscale burst …` with input that is wrong: one message, an exit code, no traceback."""

import json
import os
import subprocess
import sys

import pytest

from hpcscale.burst.lock import RunLock
from hpcscale.burst.moves import Move, Moves, Step
from hpcscale.burst.run import lock_path
from hpcscale.ledger import Ledger, Role
from hpcscale.spec import JobSpec


def burst(*argv):
    done = subprocess.run(
        [sys.executable, "-m", "hpcscale", "burst", *argv],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert "Traceback" not in done.stderr
    return done


@pytest.fixture
def policy(tmp_path):
    path = tmp_path / "P.toml"
    path.write_text('from = "lab-onprem"\nto = ["lab-cloud"]\n')
    return str(path)


@pytest.fixture
def moved():
    """A settled move in the ledger; its run id."""
    with Ledger.open() as ledger:
        run = ledger.new_run(JobSpec(name="tr\x1bain"), site="lab-onprem")
        ledger.new_attempt(
            run,
            site="lab-onprem",
            submission_id="hs-1",
            script="#!/bin/sh\n",
            script_sha256="0" * 64,
            run_dir="/x",
            comment="hpcscale=hs-1",
            role=Role.ONPREM,
        )
        Moves(ledger).begin(
            Move(
                run_id=run.run_id,
                name=run.name,
                from_site="lab-onprem",
                to_site="lab-cloud",
                origin="hs-1",
                step=Step.FAILED,
                reason="it has waited 1h",
                message="no nodes",
            )
        )
        return run.run_id


@pytest.mark.parametrize("verb", ["plan", "run"])
def test_a_policy_is_needed_and_must_be_right(verb, tmp_path):
    assert burst(verb).returncode == 2
    missing = burst(verb, "--policy", str(tmp_path / "none.toml"))
    assert missing.returncode == 8
    assert "none.toml" in missing.stderr
    (tmp_path / "bad.toml").write_text('from = "lab-onprem"\nto = ["lab-cloud"]\nmax_wiat = "1h"\n')
    bad = burst(verb, "--policy", str(tmp_path / "bad.toml"))
    assert bad.returncode == 3
    assert "bad.toml:3" in bad.stderr
    assert "max_wait" in bad.stderr
    (tmp_path / "who.toml").write_text('from = "lab-onprem"\nto = ["lab-clod"]\n')
    unknown = burst(verb, "--policy", str(tmp_path / "who.toml"))
    assert unknown.returncode == 8
    assert "who.toml:2: key 'to'" in unknown.stderr
    assert "lab-cloud" in unknown.stderr


def test_an_origin_that_cannot_be_reached_is_exit_5(policy):
    for verb in ("plan", "run"):
        done = burst(verb, "--policy", policy)
        assert done.returncode == 5, (verb, done)
        assert "no lab is running" in done.stderr


def test_once_and_wait_exclude_each_other(policy):
    assert burst("run", "--policy", policy, "--once", "--wait").returncode == 2


def test_a_second_run_says_so_and_is_no_failure(policy):
    with RunLock(lock_path()):
        done = burst("run", "--policy", policy, "--json")
        status = burst("status", "--json")
    assert done.returncode == 0
    assert json.loads(done.stdout)["data"]["locked"] is True
    assert str(os.getpid()) in done.stderr
    assert json.loads(status.stdout)["data"]["running"]["pid"] == os.getpid()


def test_status_shows_moves_and_makes_control_characters_visible(moved):
    assert burst("status").stdout == "no moves under way\n"
    shown = burst("status", "--all").stdout
    assert moved in shown
    assert "it has waited 1h; no nodes" in shown
    assert "\x1b" not in shown
    assert r"tr\x1bain" in shown
    (move,) = json.loads(burst("status", "--all", "--json").stdout)["data"]["moves"]
    assert (move["run_id"], move["step"], move["settled"]) == (moved, "failed", True)


def test_undo_of_what_never_moved(moved):
    assert burst("undo", "nonesuch").returncode == 8
    nothing = burst("undo", moved)
    assert nothing.returncode == 7
    assert "nothing to undo" in nothing.stderr


def test_a_broken_ledger_is_exit_9(policy):
    path = lock_path().parent / "ledger.sqlite3"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"half a ledger" * 1000)
    for argv in (("run", "--policy", policy), ("plan", "--policy", policy), ("status",)):
        assert burst(*argv).returncode == 9
    assert not lock_path().exists()


def test_reap_at_a_site_that_is_none_is_one_error():
    done = burst("reap", "--site", "nosuch")
    assert (done.returncode, done.stdout) == (8, "")
    assert done.stderr.count("nosuch") == 1
    assert "try:" in done.stderr
