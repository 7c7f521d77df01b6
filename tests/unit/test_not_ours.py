"""Directories that others own or may write in are refused before anything in them is used."""

import os
import re
from pathlib import Path

import pytest
from job_helpers import hpcscale

from hpcscale import staging
from hpcscale.errors import NotOursError, StateError
from hpcscale.slurm.local import LocalTransport
from hpcscale.slurm.remote import private_dir

STRANGER = 65533  # nobody's id


class FarAway(LocalTransport):
    """The same files, treated as those of another machine."""

    is_local = False


@pytest.fixture(params=[LocalTransport, FarAway], ids=["local", "remote"])
def transport(request):
    return request.param()


@pytest.fixture(params=["group", "everyone", "stranger"])
def spoil(request, monkeypatch):
    """Make a directory one that cannot be trusted."""

    def act(path):
        if request.param != "stranger":
            path.chmod(0o770 if request.param == "group" else 0o707)
        elif os.geteuid() == 0:
            os.chown(path, STRANGER, STRANGER)
        else:  # an ordinary user gives nothing away: it is we who are somebody else
            tool = path.parent / "bin" / "id"
            tool.parent.mkdir()
            tool.write_text(f"#!/bin/sh\necho {STRANGER}\n")
            tool.chmod(0o755)
            monkeypatch.setenv("PATH", f"{tool.parent}:{os.environ['PATH']}")
            monkeypatch.setattr(os, "geteuid", lambda: STRANGER)

    return act


@pytest.mark.parametrize("which", ["state", "state/runs", "state/runs/r1"])
def test_a_runs_directory_in_what_is_not_ours(tmp_path, transport, spoil, which):
    there = tmp_path / which
    there.mkdir(parents=True, mode=0o700)
    spoil(there)
    with pytest.raises(NotOursError, match="not yours alone") as caught:
        staging.make_run_dir(transport, str(tmp_path / "state" / "runs" / "r1"))
    assert caught.value.where.endswith(which if which != "state" else "/state")
    assert (caught.value.exit_code, caught.value.transient) == (9, False)


def test_a_directory_of_claims_or_decisions_that_is_not_ours(tmp_path, transport, spoil):
    there = tmp_path / "claims"
    private_dir(transport, str(there))
    assert there.stat().st_mode & 0o777 == 0o700
    spoil(there)
    with pytest.raises(NotOursError, match="not yours alone"):
        private_dir(transport, str(there))


def test_a_directory_that_cannot_be_made(tmp_path, transport):
    (tmp_path / "file").touch()
    with pytest.raises(StateError, match="cannot be made") as caught:
        private_dir(transport, str(tmp_path / "file" / "claims"))
    assert caught.value.hint


SITE = """
as_of = 2026-01-01
state_dir = "{state}"
[transport]
kind = "local"
[fabric]
kind = "ethernet"
"""


def test_submit_ends_with_the_documented_code_and_asks_no_slurm(tmp_path, monkeypatch):
    sites = tmp_path / "config" / "sites"
    sites.mkdir(parents=True)
    state = tmp_path / "theirs"
    state.mkdir()
    state.chmod(0o777)
    (sites / "mine.toml").write_text(SITE.format(state=state))
    (tmp_path / "bin").mkdir()
    asked = tmp_path / "asked"
    sbatch = tmp_path / "bin" / "sbatch"
    sbatch.write_text(f"#!/bin/sh\ntouch {asked}\necho 1\n")
    sbatch.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")
    words = ("submit", "--site", "mine", "--no-code", "--time", "1", "--", "true")
    done = hpcscale(*words, code=9)
    assert f"{state}: it is not yours alone to write" in done.stderr
    assert f"chmod go-w {state}" in done.stderr
    assert not asked.exists()
    assert not [path for path in state.rglob("*") if path.is_file()]
    table = Path(__file__).parents[2].joinpath("docs", "exit-codes.md").read_text()
    assert re.search(r"^\| 9 \|.*`NotOursError`", table, re.MULTILINE)
    state.chmod(0o700)  # what the hint says
    hpcscale(*words, code=0)
    assert asked.exists()
