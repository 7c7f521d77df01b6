"""Staging: what is copied arrives whole, and nothing else ever does."""

import os
import socket
from pathlib import Path

import pytest

from hpcscale import staging
from hpcscale.code.store import Packed, pack
from hpcscale.code.tree import read_tree
from hpcscale.errors import HpcscaleError, InvalidFileError, NotFoundError
from hpcscale.prepare import _stays_here
from hpcscale.reports import parse_report, read_reports
from hpcscale.slurm.local import LocalTransport
from hpcscale.units import JobId


class FarAway(LocalTransport):
    """The same files, treated as those of another machine."""

    is_local = False


@pytest.fixture(params=[LocalTransport, FarAway])
def transport(request):
    return request.param()


def send_code(transport, run_dir, code, *, named=True, never=frozenset()):
    """What submit does with a directory of code."""
    found = read_tree(Path(code), named=named, never=never)
    archive = pack(found, Path(run_dir).parents[2] / "cache")
    packed = Packed(found.id.tree_sha256, lambda: archive)
    staging.stage_in(transport, run_dir, {"code": str(code)}, code=packed)
    return found


@pytest.fixture
def run_dir(tmp_path, transport):
    path = str(tmp_path / "site" / "runs" / "rabc")
    staging.make_run_dir(transport, path)
    return path


def tree(root):
    return sorted(str(p.relative_to(root)) for p in Path(root).rglob("*"))


def test_code_goes_along_without_what_is_no_code(tmp_path, transport, run_dir):
    code = tmp_path / "code"
    for name in ("pkg/a.py", ".git/config", ".venv/bin/python", "pkg/__pycache__/a.pyc", "b c"):
        (code / name).parent.mkdir(parents=True, exist_ok=True)
        (code / name).write_text(name)
    (code / "run.sh").write_text("x")
    (code / "run.sh").chmod(0o755)
    send_code(transport, run_dir, code)
    assert tree(f"{run_dir}/code") == ["b c", "pkg", "pkg/a.py", "run.sh"]
    assert os.access(f"{run_dir}/code/run.sh", os.X_OK)


def test_inputs_keep_all_their_files(tmp_path, transport, run_dir):
    data = tmp_path / "data"
    (data / ".git").mkdir(parents=True)
    (data / ".git" / "x").write_text("1")
    (data / "inner").symlink_to(".git/x")
    (tmp_path / "one").write_text("2")
    staging.stage_in(transport, run_dir, {"inputs/d": str(data), "inputs/f": str(tmp_path / "one")})
    assert tree(f"{run_dir}/inputs") == ["d", "d/.git", "d/.git/x", "d/inner", "f"]
    assert Path(run_dir, "inputs/d/inner").read_text() == "1"


def test_a_link_out_of_the_tree_is_never_followed(tmp_path, transport, run_dir):
    (tmp_path / "key").write_text("private")
    tempting = tmp_path / "tree"
    tempting.mkdir()
    (tempting / "data").symlink_to(tmp_path / "key")
    send_code(transport, run_dir, tempting)
    assert Path(run_dir, "code/data").is_symlink()
    with pytest.raises(InvalidFileError, match="leads out"):
        staging.stage_in(transport, run_dir, {"inputs/d": str(tempting)})


def test_a_secrets_own_file_stays_here(tmp_path, transport, run_dir):
    code = tmp_path / "code"
    (code / "sub").mkdir(parents=True)
    (code / "a.py").write_text("1\n")
    (code / "sub" / "key").write_text("s3cret\n")
    (tmp_path / "linked").symlink_to(code)
    never = frozenset({(code / "sub" / "key").resolve()})
    send_code(transport, run_dir, tmp_path / "linked", never=never)
    staging.stage_in(transport, run_dir, {"inputs/d": str(code)}, never=never)
    assert "s3cret" not in "".join(p.read_text() for p in Path(run_dir).rglob("*") if p.is_file())
    assert (Path(run_dir) / "code" / "a.py").exists()


def test_our_own_state_is_no_code(tmp_path, monkeypatch):
    code, state = tmp_path / "code", tmp_path / "code" / "state"
    state.mkdir(parents=True)
    monkeypatch.setenv("HPCSCALE_STATE_DIR", str(state))
    (code / "state.py").write_text("1\n")
    before = read_tree(code, never=_stays_here({}))
    (state / "ledger.sqlite3").write_text("a row more")
    after = read_tree(code, never=_stays_here({}))
    assert [entry.path for entry in after.entries] == ["state.py"]
    assert after.id == before.id


def test_sockets_are_no_data(tmp_path, transport, run_dir):
    data = tmp_path / "d"
    data.mkdir()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(data / "s"))
        staging.stage_in(transport, run_dir, {"inputs/d": str(data)})
    assert tree(f"{run_dir}/inputs/d") == []


def test_what_is_not_here_is_said_first(tmp_path):
    with pytest.raises(NotFoundError) as caught:
        staging.check_local({"inputs/d": str(tmp_path / "none")})
    assert caught.value.hint


def test_outputs_and_their_absence_are_no_error_before(tmp_path):
    staging.check_local({"outputs/x": str(tmp_path / "not" / "yet")})


def test_a_site_without_room_is_said(tmp_path, transport):
    (tmp_path / "file").touch()
    with pytest.raises(HpcscaleError, match="cannot be made"):
        staging.make_run_dir(transport, str(tmp_path / "file" / "runs" / "r1"))


# --- back


def fetch(transport, run_dir, tmp_path, **outputs):
    staged = {f"outputs/{k}": str(tmp_path / v) for k, v in outputs.items()}
    return staging.fetch_results(transport, run_dir, staged, tmp_path / "logs")


def test_files_and_directories_come_back(tmp_path, transport, run_dir):
    out = Path(run_dir, "outputs")
    (out / "tree" / "a b").mkdir(parents=True)
    (out / "tree" / "a b" / "x\ny").write_text("odd name")
    (out / "tree" / "latest").symlink_to("a b")
    (out / "file").write_text("one")
    Path(run_dir, "logs", "1.log").write_text("log")
    got = fetch(transport, run_dir, tmp_path, tree="t", file="deep/f.txt", never="n")
    assert got.skipped == []
    assert len(got.refused) == 1  # the link
    assert (tmp_path / "t" / "a b" / "x\ny").read_text() == "odd name"
    assert not (tmp_path / "t" / "latest").exists()
    assert (tmp_path / "deep" / "f.txt").read_text() == "one"
    assert (tmp_path / "logs" / "1.log").read_text() == "log"
    assert not (tmp_path / "n").exists()


def test_of_an_array_one_elements_own_files_come_back(tmp_path, transport, run_dir):
    for name in ("logs/7_1.log", "logs/7_11.log", "checkpoint/task-1/step", "checkpoint/task-11/s",
                 "outputs/submitit/7_1_0_result.pkl", "outputs/submitit/7_11_0_result.pkl",
                 "outputs/model/of-all"):  # fmt: skip
        there = Path(run_dir) / name
        there.parent.mkdir(parents=True, exist_ok=True)
        there.write_text(name)
    here = tmp_path / "here"
    places = {
        "outputs/submitit": here / "jobs",
        "outputs/model": here / "model",
        "checkpoint": here / "ckpt",
        "logs": here / "logs",
    }
    got = staging.fetch_element(transport, run_dir, places, JobId(7, 1))
    own = ["ckpt/task-1/step", "jobs/7_1_0_result.pkl", "logs/7_1.log"]
    assert sorted(str(p.relative_to(here)) for p in got.files) == own
    assert [p for p in tree(here) if (here / p).is_file()] == own
    assert got.shared == ["outputs/model"]
    model = {"outputs/model": here / "model"}
    got = staging.fetch_element(transport, run_dir, model, JobId(7, 1), whole=["outputs/model"])
    assert got.files == [here / "model" / "of-all"]
    assert got.shared == []


def test_what_is_here_already_is_not_copied_again(tmp_path, transport, run_dir):
    Path(run_dir, "outputs", "f").write_text("one")
    assert len(fetch(transport, run_dir, tmp_path, f="f").files) == 1
    assert fetch(transport, run_dir, tmp_path, f="f").files == []
    Path(run_dir, "outputs", "f").write_text("other")
    assert len(fetch(transport, run_dir, tmp_path, f="f").files) == 1
    assert (tmp_path / "f").read_text() == "other"


@pytest.mark.parametrize("link", ["/etc/passwd", "../../../etc/passwd", "good"])
def test_a_link_stays_there(tmp_path, transport, run_dir, link):
    out = Path(run_dir, "outputs", "t")
    out.mkdir()
    (out / "bad").symlink_to(link)
    (out / "good").write_text("1")
    got = fetch(transport, run_dir, tmp_path, t="t")
    assert (tmp_path / "t" / "good").exists()
    assert not (tmp_path / "t" / "bad").is_symlink()
    assert (len(got.refused), got.skipped) == (1, [])


# --- removal


def test_only_a_runs_own_directory_is_ever_removed(transport, run_dir):
    for name in ("", "r", "runs", ".."):
        staging.remove_run_dir(transport, run_dir, name)
    staging.remove_run_dir(transport, str(Path(run_dir).parent), "runs")
    assert Path(run_dir).exists()
    staging.remove_run_dir(transport, run_dir, "rabc")
    assert not Path(run_dir).exists()
    assert Path(run_dir).parent.exists()


# --- reports


def test_reports_are_read_by_one_command(tmp_path, transport):
    calls = []
    original = transport.run
    transport.run = lambda argv, **kw: calls.append(argv) or original(argv, **kw)
    ids = [f"hs-{i:016x}" for i in range(3)]
    for i, submission in enumerate(ids):
        events = tmp_path / f"r{i}" / "events"
        events.mkdir(parents=True)
        (events / f"{submission}.0.started").write_text('{"job": "1", "time": 100}\n')
        (events / f"{submission}.0.ended").write_text('{"exit_code": 3, "requeued": false}\n')
        (events / f"{submission}.1.ended.tmp").write_text("half")
    dirs = [str(tmp_path / f"r{i}") for i in range(3)] + [str(tmp_path / "gone")]
    found = read_reports(transport, dirs)
    assert len(calls) == 1
    assert sorted(found) == ids
    started, ended = found[ids[0]]
    assert (started.ended, started.job, started.final) == (False, "1", False)
    assert (ended.exit_code, ended.final) == (3, True)


@pytest.mark.parametrize("text", ["", "{", "[]", "1", '{"exit_code": "x"}', '{"time": []}'])
def test_a_report_that_cannot_be_read_is_none(text):
    assert parse_report("hs-0123456789abcdef.0.ended", text) is None


def test_an_elements_report_names_its_task():
    report = parse_report("hs-0123456789abcdef.task7.2.ended", '{"exit_code": 0}')
    assert report is not None
    assert (report.task, report.restart, report.exit_code) == (7, 2, 0)


def test_an_output_without_a_place_is_refused_before_anything_is_sent(tmp_path, monkeypatch):
    file = tmp_path / "file"
    file.touch()
    staging.check_local({"outputs/o": f"{tmp_path}/new/dirs/out", "outputs/f": str(file)})
    with pytest.raises(InvalidFileError, match="is no directory"):
        staging.check_local({"outputs/o": f"{file}/out"})
    monkeypatch.setattr("os.access", lambda *_: False)  # root may write anywhere
    with pytest.raises(InvalidFileError, match="is not writable") as caught:
        staging.check_local({"outputs/o": f"{tmp_path}/out"})
    assert "--output o=PATH" in str(caught.value.hint)
