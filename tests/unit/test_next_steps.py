"""Errors of the commands around burst say what to type next."""

from types import SimpleNamespace

import pytest
from click.testing import CliRunner

from hpcscale.cli import main
from hpcscale.errors import HpcscaleError, NotFoundError
from hpcscale.outlook.past import past


def error(*words):
    caught = CliRunner().invoke(main, [str(word) for word in words]).exception
    assert isinstance(caught, HpcscaleError)
    return caught


@pytest.mark.parametrize("kind", ["gpuhunt", "skypilot", "libcloud"])
@pytest.mark.parametrize("data", [None, b"\xff\x00\x80", b"a,b\n1,2\n"])
def test_a_catalog_that_is_none(tmp_path, kind, data):
    path = tmp_path / "offers"
    if data is not None:
        path.write_bytes(data)
    found = error("catalog", "import", path, "--format", kind, "--as-of", "2026-11-01")
    assert f"--format {kind} reads" in found.hint


def test_types_of_gpus_are_named_where_one_is_not_there():
    done = CliRunner().invoke(main, ["catalog", "show", "--gpu-type", "foo"])
    assert done.exit_code == 0
    assert "h100" in done.stderr


def test_an_audit_log_that_is_not_there():
    assert "hpcscale burst run" in error("burst", "audit").hint


def test_a_live_history_needs_slurmdbd_and_no_second_try():
    site = SimpleNamespace(
        site=SimpleNamespace(name="here"),
        client=SimpleNamespace(facts=lambda: SimpleNamespace(has_accounting=False)),
    )
    with pytest.raises(NotFoundError, match="no accounting") as caught:
        past(site, 86400)
    assert not caught.value.transient
    assert "--history FILE" in caught.value.hint
