"""How the lab's nodes boot: never in the second of their request, and again where it is needed."""

import json
import math
import time

import pytest

from hpcscale.lab import _power

SLURMD = """#!/bin/sh
date +%s.%N >> {starts}
[ "$(wc -l < {starts})" -gt {bad} ]
"""


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A site whose slurmd and sinfo are small scripts; returns its parts."""
    here, tools = tmp_path / "etc", tmp_path / "bin"
    for each in (here, tools, tmp_path / "log", tmp_path / "run"):
        each.mkdir()
    monkeypatch.setattr(_power, "HERE", here)
    monkeypatch.setattr(_power, "AGAIN_S", 0.5)
    starts, state = tmp_path / "starts", tmp_path / "state"
    starts.touch()
    state.write_text("cloud1 mix\n")

    def put(name, text):
        (tools / name).write_text(text)
        (tools / name).chmod(0o755)

    put("scontrol", "#!/bin/sh\necho cloud1\n")
    put("sinfo", f"#!/bin/sh\ncat {state}\n")
    put("slurmd", SLURMD.format(starts=starts, bad=0))
    config = {
        "boot_delay_s": 0.0,
        "scontrol": str(tools / "scontrol"),
        "slurmd": str(tools / "slurmd"),
        "slurm_conf": "slurm.conf",
        "run": str(tmp_path / "run"),
        "env": {"PATH": "/usr/bin:/bin"},
        "node": {"cloud1": []},
    }
    (here / "power.json").write_text(json.dumps(config))
    return put, starts, state, tmp_path / "log" / "power.log"


def begun(starts):
    return [float(line) for line in starts.read_text().splitlines()]


def test_a_boot_ends_in_a_later_second_than_its_request(machine):
    _, starts, _, log = machine
    for part in (0.05, 0.5, 0.9):
        time.sleep((part - time.time()) % 1)
        asked = math.floor(time.time())
        _power.main("resume", "cloud1")
        assert math.floor(begun(starts)[-1]) > asked
    assert log.read_text().count("cloud1 booted") == 3


def test_a_slurmd_that_does_not_start_is_started_again(machine):
    put, starts, _, log = machine
    put("slurmd", SLURMD.format(starts=starts, bad=2))
    _power.main("resume", "cloud1")
    assert len(begun(starts)) == 3
    assert log.read_text().count("slurmd of cloud1 exited 1") == 2
    assert log.read_text().count("cloud1 booted") == 1


def test_a_node_that_does_not_register_gets_a_new_slurmd(machine):
    _, starts, state, log = machine
    state.write_text("cloud1 mix#\n")
    _power.main("resume", "cloud1")
    assert 2 <= len(begun(starts)) <= 1 + _power.STARTS, "not for ever"
    assert "cloud1 has not registered" in log.read_text()


def test_a_node_that_was_switched_off_is_left_alone(machine):
    _, starts, state, _ = machine
    state.write_text("cloud1 idle#\n")
    config, asked = _power.read("power.json"), time.monotonic()
    _power.boot(config, "cloud1", asked)
    _power.suspend(config, ["cloud1"])
    started = {"cloud1": asked - 60}
    _power.look_after(config, started, asked)
    assert not started
    assert len(begun(starts)) == 1
