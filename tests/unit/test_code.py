"""Code that goes along: which files, one hash, once a site, and never anybody else's."""

import os
import subprocess
import tarfile
import threading
from pathlib import Path

import pytest

from hpcscale.code import tree as code_tree
from hpcscale.code.store import Packed, pack, place
from hpcscale.code.tree import read_identity, read_tree
from hpcscale.errors import HpcscaleError, InvalidFileError, NotFoundError, NotOursError
from hpcscale.slurm.local import LocalTransport

IDENTITY = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]


def git(root, *words):
    done = subprocess.run(
        ["git", "-C", str(root), *IDENTITY, "-c", "protocol.file.allow=always", *words],
        capture_output=True, text=True, check=True, timeout=30,
    )  # fmt: skip
    return done.stdout.strip()


def write(root, **files):
    for name, text in files.items():
        path = root / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


@pytest.fixture
def checkout(tmp_path):
    root = tmp_path / "repo"
    root.mkdir()
    git(root, "init", "-q")
    write(root, a="1\n", pkg__b="2\n", gone="3\n")
    (root / ".gitignore").write_text("*.log\ndata/\n")
    git(root, "add", "-A")
    git(root, "commit", "-q", "-m", "one")
    return root


def paths(tree):
    return [e.path for e in tree.entries]


# --- which files


def test_a_clean_checkout_is_its_commit(checkout):
    write(checkout, x__data__big="no", note=".")
    (checkout / "note").unlink()
    (checkout / "train.log").write_text("ignored")
    (checkout / "x" / "data").rename(checkout / "data")
    (checkout / "x").rmdir()
    tree = read_tree(checkout)
    assert paths(tree) == [".gitignore", "a", "gone", "pkg/b"]
    assert (tree.id.kind, tree.id.commit) == ("git", git(checkout, "rev-parse", "HEAD"))
    assert tree.id.dirty_sha256 is None
    assert tree.changed == ()


def test_what_is_not_committed_goes_along(checkout):
    clean = read_tree(checkout)
    write(checkout, a="changed\n", staged="s\n", new__file="n\n")
    git(checkout, "add", "staged")
    (checkout / "gone").unlink()
    tree = read_tree(checkout)
    assert paths(tree) == [".gitignore", "a", "new/file", "pkg/b", "staged"]
    assert tree.changed == ("a", "gone", "new/file", "staged")
    assert tree.id.commit == clean.id.commit
    assert tree.id.dirty_sha256
    assert tree.id.tree_sha256 != clean.id.tree_sha256
    assert read_identity(checkout) == code_tree.CodeId(
        kind="git", commit=tree.id.commit, dirty_sha256=tree.id.dirty_sha256
    )


def test_reading_changes_nothing_in_the_repository(checkout):
    write(checkout, a="changed\n", new="n\n")
    before = {p: p.stat().st_mtime_ns for p in (checkout / ".git").rglob("*")}
    read_tree(checkout)
    read_identity(checkout)
    assert {p: p.stat().st_mtime_ns for p in (checkout / ".git").rglob("*")} == before


def test_the_same_files_have_the_same_hashes_everywhere(checkout, tmp_path):
    write(checkout, a="changed\n", new="n\n")
    copy = tmp_path / "elsewhere"
    subprocess.run(["cp", "-a", str(checkout), str(copy)], check=True, timeout=30)
    os.utime(copy / "a", (1, 1))
    first, second = read_tree(checkout), read_tree(copy)
    assert first.id == second.id
    one = pack(first, tmp_path / "one").read_bytes()
    assert one == pack(second, tmp_path / "two").read_bytes()
    (copy / "a").chmod(0o755)
    assert read_tree(copy).id.tree_sha256 != first.id.tree_sha256


def test_a_directory_within_a_checkout(checkout):
    write(checkout, a="changed\n", pkg__new="n\n")
    tree = read_tree(checkout / "pkg")
    assert paths(tree) == ["b", "new"]
    assert tree.changed == ("new",)


def test_submodules_go_along_when_they_are_there(checkout, tmp_path):
    library = tmp_path / "lib"
    library.mkdir()
    git(library, "init", "-q")
    write(library, lib="l\n")
    git(library, "add", "-A")
    git(library, "commit", "-q", "-m", "lib")
    git(checkout, "submodule", "-q", "add", str(library), "vendored")
    git(checkout, "commit", "-q", "-m", "two")
    tree = read_tree(checkout)
    assert "vendored/lib" in paths(tree)
    assert tree.id.dirty_sha256 is None
    write(checkout, vendored__lib="changed\n")
    changed = read_tree(checkout)
    assert changed.changed == ("vendored",)
    assert changed.id.dirty_sha256
    git(checkout, "submodule", "-q", "deinit", "-f", "vendored")
    with pytest.raises(NotFoundError, match="submodule vendored") as caught:
        read_tree(checkout)
    assert "submodule update --init" in caught.value.hint


def test_no_hook_of_the_repository_is_run(checkout, tmp_path):
    mark = tmp_path / "ran"
    evil = tmp_path / "evil"
    evil.write_text(f"#!/bin/sh\ntouch {mark}\ncat\n")
    evil.chmod(0o755)
    for key in ("core.fsmonitor", "core.pager", "diff.external"):
        git(checkout, "config", key, str(evil))
    write(checkout, a="changed\n")
    hook = checkout / ".git" / "hooks" / "post-index-change"
    hook.write_text(evil.read_text())
    hook.chmod(0o755)
    mark.unlink(missing_ok=True)
    read_tree(checkout)
    assert not mark.exists()


def test_a_folder_goes_along_less_what_its_rules_name(tmp_path):
    root = tmp_path / "code"
    write(root, a="1", out__x="2", keep__b="3", keep__c="4", _venv__d="5")
    (root / "empty").mkdir()
    (root / "link").symlink_to("keep")
    (root / ".venv").mkdir()
    (root / ".venv" / "python").touch()
    (root / ".hpcscaleignore").write_text("# comment\nout/\n/_venv\nkeep/*\n!keep/b\n")
    tree = read_tree(root)
    assert paths(tree) == [".hpcscaleignore", "a", "empty", "keep/b", "link"]
    assert tree.id.kind == "folder"
    assert tree.id.commit is None


def test_keys_stay_here_unless_they_are_asked_for(checkout):
    write(checkout, **{".env": "TOKEN=1\n", "deep__id_ed25519": "key"})
    tree = read_tree(checkout)
    assert tree.private == (".env", "deep/id_ed25519")
    assert not {".env", "deep/id_ed25519"} & set(paths(tree))
    assert tree.id.dirty_sha256 is None
    (checkout / ".hpcscaleignore").write_text("!.env\n")
    assert ".env" in paths(read_tree(checkout))


def test_a_directory_that_nobody_named_may_hold_less(tmp_path, monkeypatch):
    tmp_path = tmp_path / "code"
    tmp_path.mkdir()
    monkeypatch.setattr(code_tree, "MAX_UNNAMED_BYTES", 10_000)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "big.bin").write_bytes(bytes(9_000))
    (tmp_path / "small").write_bytes(bytes(2_000))
    with pytest.raises(InvalidFileError, match=r"the biggest: data/ 9\.0 kB, small 2\.0 kB") as it:
        read_tree(tmp_path, named=False)
    assert "--code DIR" in it.value.hint
    assert "--no-code" in it.value.hint
    assert read_tree(tmp_path).size == 11_000
    monkeypatch.setattr(code_tree, "MAX_BYTES", 10_000)
    with pytest.raises(InvalidFileError) as caught:
        read_tree(tmp_path)
    assert "--input" in caught.value.hint


def test_many_files_are_said_as_such(tmp_path, monkeypatch):
    monkeypatch.setattr(code_tree, "MAX_UNNAMED_FILES", 3)
    tmp_path = tmp_path / "code"
    for number in range(5):
        write(tmp_path, **{f"many__{number}": ""})
    with pytest.raises(InvalidFileError, match="5 files, more than 3; the biggest: many/ 5 files"):
        read_tree(tmp_path, named=False)


def test_a_home_directory_is_no_program(tmp_path, monkeypatch):
    tmp_path = tmp_path / "ada"
    tmp_path.mkdir()
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(InvalidFileError, match="no program's directory") as caught:
        read_tree(tmp_path, named=False)
    assert "--no-code" in caught.value.hint
    assert read_tree(tmp_path).entries == ()


@pytest.mark.parametrize("make", ["none", "file"])
def test_a_code_directory_that_is_none(tmp_path, make):
    (tmp_path / "file").touch()
    with pytest.raises(NotFoundError) as caught:
        read_tree(tmp_path / make)
    assert "--code" in caught.value.hint


# --- at the site


NASTY = ["-dash", "a b", "new\nline", "back\\slash", "é", "*", "$(id)", "'q'", "deep/er/x"]


@pytest.fixture
def site(tmp_path):
    class Site:
        transport = LocalTransport()
        store = str(tmp_path / "site" / "code")
        sent = 0

        def packed(self, root):
            tree = read_tree(root)
            archive = pack(tree, tmp_path / "cache")

            def give():
                self.sent += 1
                return archive

            return Packed(tree.id.tree_sha256, give)

        def place(self, packed, name):
            target = tmp_path / "site" / "runs" / name / "code"
            target.parent.mkdir(parents=True, exist_ok=True)
            place(self.transport, self.store, packed, str(target))
            return target

    return Site()


@pytest.fixture
def program(tmp_path):
    root = tmp_path / "program"
    for name in NASTY:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"content of {name}")
    (root / "run.sh").write_text("x")
    (root / "run.sh").chmod(0o755)
    (root / "link").symlink_to("run.sh")
    (root / "empty").mkdir()
    return root


def test_a_tree_is_sent_once_and_every_run_has_its_own_copy(site, program):
    packed = site.packed(program)
    first, second = site.place(packed, "r1"), site.place(packed, "r2")
    assert site.sent == 1
    for copy in (first, second):
        assert sorted(str(p.relative_to(copy)) for p in copy.rglob("*") if p.is_file()) == sorted(
            [*NASTY, "run.sh", "link"]
        )
        for name in NASTY:
            assert (copy / name).read_text() == f"content of {name}"
        assert os.access(copy / "run.sh", os.X_OK)
        assert (copy / "link").readlink() == Path("run.sh")
        assert (copy / "empty").is_dir()
    (first / "run.sh").write_text("a job changes its own")
    (first / "a b").unlink()
    assert (site.place(packed, "r3") / "run.sh").read_text() == "x"
    assert site.sent == 1


def modes(root):
    return {oct(p.stat().st_mode & 0o777) for p in [root, *root.rglob("*")] if not p.is_symlink()}


def test_files_there_are_this_users_alone(site, program):
    target = site.place(site.packed(program), "r1")
    assert modes(target) == {"0o700", "0o600"}
    stored = next(Path(site.store).iterdir())
    assert modes(stored / "tree") == {"0o500", "0o400"}
    assert oct(stored.stat().st_mode & 0o777) == "0o700"
    assert list(Path(site.store).iterdir()) == [stored]


def test_what_was_damaged_there_is_sent_again(site, program):
    packed = site.packed(program)
    site.place(packed, "r1")
    victim = next(Path(site.store).iterdir()) / "tree" / "a b"
    victim.chmod(0o600)
    victim.write_text("content of a x")
    target = site.place(packed, "r2")
    assert (target / "a b").read_text() == "content of a b"
    assert site.sent == 2
    assert len(list(Path(site.store).iterdir())) == 1


def test_a_store_that_others_may_write_is_refused(site, program):
    packed = site.packed(program)
    site.place(packed, "r1")
    Path(site.store).chmod(0o777)
    with pytest.raises(NotOursError, match="not yours alone") as caught:
        site.place(packed, "r2")
    assert "chmod" in caught.value.hint


def test_what_is_damaged_on_its_way_is_never_used(site, program, tmp_path):
    good = site.packed(program)
    archive = tmp_path / "other.tar.gz"
    other = tmp_path / "other"
    write(other, a="something else")
    archive.write_bytes(pack(read_tree(other), tmp_path / "c2").read_bytes())
    with pytest.raises(HpcscaleError, match="damaged"):
        site.place(Packed(good.sha256, lambda: archive), "r1")
    assert list(Path(site.store).iterdir()) == []


def test_two_submits_at_once_are_harmless(site, program):
    packed = site.packed(program)
    errors = []

    def submit(number):
        try:
            site.place(packed, f"r{number}")
        except HpcscaleError as exc:
            errors.append(exc)

    threads = [threading.Thread(target=submit, args=(n,)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert errors == []
    assert [p.name for p in Path(site.store).iterdir()] == [packed.sha256]
    for number in range(6):
        root = Path(site.store).parent / "runs" / f"r{number}" / "code"
        assert (root / "a b").read_text() == "content of a b"


def test_a_file_that_changes_while_it_is_packed_is_said(program, tmp_path):
    tree = read_tree(program)
    (program / "run.sh").write_text("y")
    with pytest.raises(InvalidFileError, match="changed while"):
        pack(tree, tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def test_old_code_that_no_job_used_goes_when_new_code_comes(site, program, tmp_path):
    site.place(site.packed(program), "r1")
    old = next(Path(site.store).iterdir())
    os.utime(old, (1, 1))
    other = tmp_path / "other"
    write(other, a="1")
    packed = site.packed(other)
    site.place(packed, "r2")
    assert [p.name for p in Path(site.store).iterdir()] == [packed.sha256]


def test_an_archive_holds_nothing_of_its_maker(program, tmp_path):
    with tarfile.open(pack(read_tree(program), tmp_path / "cache")) as archive:
        members = archive.getmembers()
    assert {(m.uid, m.gid, m.uname, m.gname) for m in members} == {(0, 0, "", "")}
    assert len({m.mtime for m in members}) == 1
