"""``hpcscale site list`` and ``show``: what people and programs read."""

import json

import pytest
from click.testing import CliRunner

from hpcscale.cli import main
from hpcscale.cli.site import _say_next
from hpcscale.errors import InvalidFileError, UnreachableError
from hpcscale.settings import config_dir
from hpcscale.site import user_file


def run(*args):
    return CliRunner().invoke(main, ["site", *args], standalone_mode=False, catch_exceptions=False)


def test_list_shows_the_contrast():
    lines = {line.split()[0]: line for line in run("list").stdout.splitlines()}
    assert {"efa", "ssh", "$6.88", "yes"} <= set(lines["aws-p5"].split())
    assert {"infiniband", "unknown", "no"} <= set(lines["generic-ib"].split())


def test_list_as_json(monkeypatch):
    monkeypatch.setenv("HPCSCALE_DEFAULT_SITE", "lab-onprem")
    data = {s["name"]: s for s in json.loads(run("list", "--json").stdout)["data"]}
    assert data["aws-p5"]["gpu_hour_usd"] == "6.88"  # money is text: no float in between
    assert data["aws-p5"]["host"] is None
    assert data["generic-ib"]["gpu_hour_usd"] is None
    assert [name for name, s in data.items() if s["default"]] == ["lab-onprem"]


def test_one_broken_file_does_not_hide_the_other_sites():
    path = config_dir() / "sites" / "generic-ib.toml"
    path.parent.mkdir(parents=True)
    path.write_text("statedir = 1\n")
    result = run("list")
    assert "aws-p5" in result.stdout
    assert f"broken: {path}:1: unknown key 'statedir'" in result.stdout


def test_show_tells_origins():
    result = run("show", "aws-p5", "--origin", "--set", "transport.host=head")
    rows = {line.split()[0]: line for line in result.stdout.splitlines()}
    assert rows["transport.host"].split()[1:] == ["head", "--set", "transport.host"]
    assert rows["transport.port"].split()[1:] == ["22", "default"]
    assert "site-configs/aws-p5.toml:" in rows["fabric.env.NCCL_SOCKET_IFNAME.source"]


def test_show_as_json():
    data = json.loads(run("show", "aws-p5", "--origin", "--json").stdout)["data"]
    assert data["site"]["fabric"]["env"]["FI_EFA_USE_HUGE_PAGE"]["status"] == "documented, not run"
    assert data["origins"]["as_of"].endswith("aws-p5.toml:9")
    assert data["site"]["price"]["gpu_hour_usd"] == "6.88"


def test_check_of_a_template_says_what_to_write():
    with pytest.raises(InvalidFileError, match="has no login node yet"):
        run("check", "aws-p5")


def test_check_without_a_lab_says_how_to_start_one():
    with pytest.raises(UnreachableError, match="no lab is running"):
        run("check", "lab-onprem")


def test_a_profile_written_elsewhere_says_where_sites_are_read_from(tmp_path, capsys):
    home = user_file("mine")
    _say_next(tmp_path / "mine.toml", "mine")
    said = capsys.readouterr().err
    assert f"mv {tmp_path / 'mine.toml'} {home}" in said
    assert "next: hpcscale site check mine" in said
    _say_next(home, "mine")
    assert "mv" not in capsys.readouterr().err
