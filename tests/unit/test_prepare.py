"""A run keeps its program: hashes in its script, its archive here, the same bytes at the next site."""

import re
import subprocess
from pathlib import Path

import msgspec
import pytest
from fake_site import FakeSite

from hpcscale.code import tree as code_tree
from hpcscale.errors import InvalidFileError
from hpcscale.prepare import code_of, prepare
from hpcscale.spec import BurstMode, BurstTerms, JobSpec, Resources, SecretSource
from hpcscale.submit import submit


@pytest.fixture
def program(tmp_path):
    root = tmp_path / "program"
    root.mkdir()
    (root / "main").write_text("as submitted")
    return root


@pytest.fixture
def sites(tmp_path):
    made = [
        FakeSite(tmp_path / name, name)
        for name in ("onprem", "cloud")
        if not (tmp_path / name).mkdir()
    ]
    yield made
    for site in made:
        site.ledger.close()


def spec_of(program, **fields):
    fields.setdefault("resources", Resources(nodes=1, time_limit_s=600))
    return JobSpec(command=("true",), workdir=str(program), **fields)


def send(site, rendered, run=None, ledger=None):
    return submit(rendered, site.site, site.connection, ledger or site.ledger, run=run)


def test_a_run_that_moves_starts_what_was_submitted(sites, program):
    onprem, cloud = sites
    spec = spec_of(program)
    first = send(onprem, prepare(spec, onprem.site))
    (program / "main").write_text("edited since")
    run = onprem.ledger.run(first.run_id)
    rendered = prepare(spec, cloud.site, code=code_of(onprem.ledger, run.run_id))
    second = send(cloud, rendered, run, onprem.ledger)
    for got in (first, second):
        assert Path(got.run_dir, "code", "main").read_text() == "as submitted"
        assert re.search(r"^# Code: files, sha256 [0-9a-f]{64}$", got.script, re.MULTILINE)
    assert code_of(onprem.ledger, run.run_id) == rendered.code
    # a run of its own starts what is there now
    third = send(cloud, prepare(spec, cloud.site))
    assert Path(third.run_dir, "code", "main").read_text() == "edited since"


def test_without_the_archive_the_directory_is_read_again(sites, program, tmp_path, monkeypatch):
    onprem, cloud = sites
    spec = spec_of(program)
    first = send(onprem, prepare(spec, onprem.site))
    monkeypatch.setenv("HPCSCALE_STATE_DIR", str(tmp_path / "another"))
    (program / "main").write_text("edited since")
    rendered = prepare(spec, cloud.site, code=code_of(onprem.ledger, first.run_id))
    second = send(cloud, rendered)
    assert Path(second.run_dir, "code", "main").read_text() == "edited since"


def test_code_that_changes_between_script_and_packing_is_said(sites, program):
    onprem, _ = sites
    rendered = prepare(spec_of(program), onprem.site)
    (program / "main").write_text("edited since")
    with pytest.raises(InvalidFileError, match="changed while") as caught:
        send(onprem, rendered)
    assert "again" in caught.value.hint
    assert onprem.ledger.all_attempts() == []


def test_the_same_files_give_the_same_script(sites, program):
    onprem, _ = sites
    spec = spec_of(program)
    assert prepare(spec, onprem.site).script == prepare(spec, onprem.site).script
    before = prepare(spec, onprem.site).script
    (program / "main").write_text("other")
    assert prepare(spec, onprem.site).script != before


def test_a_file_that_a_secret_is_read_from_is_no_code(sites, program):
    onprem, _ = sites
    (program / "token").write_text("s3cret-value")
    source = SecretSource(kind="file", name=str(program / "token"))
    got = send(onprem, prepare(spec_of(program, secrets={"T": source}), onprem.site))
    assert [p.name for p in Path(got.run_dir, "code").iterdir()] == ["main"]


def test_code_in_place_is_named_by_its_commit(sites, program, monkeypatch):
    onprem, _ = sites
    git = ["git", "-C", str(program), "-c", "user.name=a", "-c", "user.email=a@b"]
    for words in (["init", "-q"], ["add", "-A"], ["commit", "-q", "-m", "one"]):
        subprocess.run([*git, *words], check=True, timeout=30)
    site = msgspec.structs.replace(onprem.site, shared_dirs=(str(program.parent),))
    rendered = prepare(spec_of(program), site)
    assert rendered.home
    assert re.search(r"^# Code: git commit [0-9a-f]{40}\.$", rendered.script, re.MULTILINE)
    (program / "main").write_text("changed")
    assert "and changes:" in prepare(spec_of(program), site).script
    got = submit(prepare(spec_of(program), site), site, onprem.connection, onprem.ledger)
    assert not Path(got.run_dir, "code").exists()
    code = code_of(onprem.ledger, got.run_id)
    assert code.tree_sha256 is None
    assert code.dirty_sha256


def test_what_nobody_named_is_told(sites, program):
    onprem, _ = sites
    told = prepare(spec_of(program), onprem.site).notices
    assert any("goes along as the code: 1 files" in text for text in told)
    assert prepare(spec_of(program, code=str(program)), onprem.site).notices == ()


def test_a_script_alone_is_printed_whatever_the_code_is(sites, program):
    onprem, _ = sites
    spec = spec_of(program / "gone")
    shown = prepare(spec, onprem.site, sending=False)
    assert any("submit would refuse" in text for text in shown.notices)
    with pytest.raises(Exception, match="does not exist"):
        prepare(spec, onprem.site)


def test_a_job_that_may_leave_is_told_at_once_when_its_code_could_not(sites, program, monkeypatch):
    onprem, _ = sites
    site = msgspec.structs.replace(onprem.site, shared_dirs=(str(program.parent),))
    monkeypatch.setattr(code_tree, "MAX_UNNAMED_BYTES", 5)
    may = spec_of(program, burst=BurstTerms(mode=BurstMode.AUTO))
    assert any("cannot leave its site" in text for text in prepare(may, site).notices)
    assert prepare(spec_of(program), site).notices == ()
    with pytest.raises(InvalidFileError, match="too much to go along"):
        prepare(spec_of(program, burst=BurstTerms(mode=BurstMode.ONLY)), site)
