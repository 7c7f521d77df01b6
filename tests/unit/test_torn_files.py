"""Files that vanish, cannot be read or arrive in part: nothing torn, no traceback, no silence."""

import os
import subprocess
from pathlib import Path

import pytest
from fake_sites import Sites

from hpcscale import inputs, transfer
from hpcscale.burst.handover import Handover
from hpcscale.burst.moves import Step
from hpcscale.code.tree import read_tree
from hpcscale.errors import HpcscaleError, InvalidFileError, NotFoundError, UnreachableError
from hpcscale.slurm._remote_shell import RawResult, RemoteShell
from hpcscale.slurm.local import LocalTransport


class Shell(RemoteShell):
    """A login shell on this machine; ``cut`` lets only so many bytes of input arrive."""

    name = "there"

    def __init__(self):
        self.cut = None

    def _exec(self, line, stdin, timeout_s):
        done = subprocess.run(
            ["/bin/sh", "-c", line], input=(stdin or b"")[: self.cut], capture_output=True,
            timeout=timeout_s, check=False,
        )  # fmt: skip
        if self.cut is not None:
            raise UnreachableError("the connection broke", where=self.name)
        return RawResult(done.returncode, done.stdout, done.stderr)

    def close(self):
        pass


def test_a_file_of_which_a_part_arrived_takes_no_ones_place(tmp_path):
    place = tmp_path / "place"
    place.mkdir()
    shell, target = Shell(), place / "decision"
    shell.put_bytes(b"whole\n", str(target))
    shell.cut = 3
    with pytest.raises(UnreachableError):
        shell.put_bytes(b"opened\n", str(target))
    assert target.read_bytes() == b"whole\n"
    assert [p.name for p in place.iterdir()] == ["decision"], "nor is a part left behind"
    shell.cut = None
    shell.put_bytes(b"", str(target))
    assert target.read_bytes() == b""


@pytest.mark.parametrize("make", [LocalTransport, Shell])
def test_what_cannot_be_read_here_is_an_error_of_ours(make, tmp_path):
    with pytest.raises(NotFoundError, match="gone"):
        make().put_file(tmp_path / "gone", str(tmp_path / "there"))
    assert not (tmp_path / "there").exists()
    with pytest.raises(HpcscaleError, match="cannot read"):
        make().put_file(tmp_path, str(tmp_path / "there"))  # a directory


def test_nor_is_a_large_file_that_is_sent_in_parts(tmp_path, monkeypatch):
    large = tmp_path / "large"
    large.write_bytes(b"x" * (transfer.SMALL_BYTES + 1))
    real = Path.open

    def refused(self, *args, **kw):
        if self == large:
            raise PermissionError(13, "Permission denied", str(self))
        return real(self, *args, **kw)

    monkeypatch.setattr(Path, "open", refused)
    with pytest.raises(HpcscaleError, match="cannot read"):
        transfer.send(Shell(), large, str(tmp_path / "there"))
    monkeypatch.undo()
    large.unlink()
    with pytest.raises(NotFoundError):
        transfer.send(Shell(), large, str(tmp_path / "there"))


def test_what_vanishes_from_an_input_while_it_is_listed_is_left_out(tmp_path, monkeypatch):
    data = tmp_path / "data"
    data.mkdir()
    for name in ("kept", "swap.tmp"):
        (data / name).write_text("x")
    real = Path.lstat

    def vanished(self):
        if self.name == "swap.tmp":
            raise FileNotFoundError(2, "No such file or directory", str(self))
        return real(self)

    monkeypatch.setattr(Path, "lstat", vanished)
    assert [i.path for i in inputs.read_items(data, frozenset())] == ["kept"]


def test_a_directory_of_an_input_that_cannot_be_read_is_not_passed_over(tmp_path, monkeypatch):
    (tmp_path / "closed").mkdir()
    real = os.scandir

    def refused(path="."):
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", refused)
    with pytest.raises(InvalidFileError, match="cannot be read") as found:
        inputs.read_items(tmp_path, frozenset())
    assert found.value.where == str(tmp_path / "closed")


def test_an_error_of_files_in_one_move_stops_no_other(tmp_path, monkeypatch):
    sites = Sites(tmp_path)
    sites.fill()
    first, second = sites.submit(), sites.submit()
    real = Handover._submitting

    def broken(self, move):
        if move.run_id == first.run_id:
            raise OSError(5, "Input/output error")
        return real(self, move)

    monkeypatch.setattr(Handover, "_submitting", broken)
    done = sites.tick()
    assert any("Input/output error" in problem for problem in done.problems)
    assert sites.move(first).step is Step.SUBMITTING
    assert sites.move(second).step is Step.SUBMITTED
    sites.ledger.close()


def test_nor_is_one_of_the_code(tmp_path, monkeypatch):
    code = tmp_path / "code"
    (code / "closed").mkdir(parents=True)
    (code / "train.py").write_text("x")
    real = os.scandir

    def refused(path="."):
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    with monkeypatch.context() as patch:
        patch.setattr(os, "scandir", refused)
        with pytest.raises(InvalidFileError, match="cannot be read"):
            read_tree(code)
    (code / ".hpcscaleignore").write_text("closed/\n")
    with monkeypatch.context() as patch:
        patch.setattr(os, "scandir", refused)
        assert [e.path for e in read_tree(code).entries] == [".hpcscaleignore", "train.py"]


def test_code_that_vanishes_while_it_is_read_is_told(tmp_path, monkeypatch):
    code = tmp_path / "code"
    code.mkdir()
    (code / "train.py").write_text("x")
    real = Path.open

    def vanished(self, *args, **kw):
        if self.name == "train.py":
            self.unlink()
        return real(self, *args, **kw)

    monkeypatch.setattr(Path, "open", vanished)
    with pytest.raises(InvalidFileError, match="vanished while the code was read"):
        read_tree(code)
