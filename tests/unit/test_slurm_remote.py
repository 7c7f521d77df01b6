"""What comes from a site is written below its destination, or not at all."""

import io
import tarfile
from pathlib import Path

import pytest

from hpcscale.errors import HpcscaleError, NotFoundError
from hpcscale.slurm import remote
from hpcscale.slurm._remote_shell import command_line
from hpcscale.slurm.local import LocalTransport


def archive(tmp_path, *members):
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as tar:
        for name, kind, target in members:
            info = tarfile.TarInfo(name)
            info.type = kind
            info.linkname = target
            data = b"data" if kind == tarfile.REGTYPE else b""
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


FILE, LINK, HARD, DIR = tarfile.REGTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE


@pytest.mark.parametrize(
    "members",
    [
        [("/etc/evil", FILE, "")],
        [("../evil", FILE, "")],
        [("a/../../evil", FILE, "")],
        [("..", DIR, "")],
        [("link", LINK, "/etc/passwd")],
        [("link", LINK, "../x")],
        [("a/link", LINK, "../../x")],
        [("hard", HARD, "/etc/passwd")],
        [("device", tarfile.CHRTYPE, "")],
        [("pipe", tarfile.FIFOTYPE, "")],
        [("d", LINK, "."), ("d/evil", FILE, "")],
        [("e", DIR, ""), ("d", LINK, "e"), ("d/x", LINK, ".."), ("d/x/evil", FILE, "")],
    ],
)
def test_unsafe_members_stop_everything(tmp_path, members):
    path = archive(tmp_path, ("good", FILE, ""), *members)
    target = tmp_path / "deep" / "target"
    with pytest.raises(HpcscaleError, match="refused to unpack"):
        remote.extract_below(path, target, "there")
    assert list(target.iterdir()) == []
    assert not (tmp_path / "deep" / "evil").exists()


def test_a_link_that_was_here_before_is_not_followed(tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    target = tmp_path / "target"
    target.mkdir()
    (target / "sub").symlink_to(outside)
    with pytest.raises(HpcscaleError, match="refused to write"):
        remote.extract_below(archive(tmp_path, ("sub/x", FILE, "")), target, "there")
    assert list(outside.iterdir()) == []
    (target / "file").symlink_to(outside / "victim")
    remote.extract_below(archive(tmp_path, ("file", FILE, "")), target, "there")
    assert not (target / "file").is_symlink()
    assert (target / "file").read_bytes() == b"data"
    assert not (outside / "victim").exists()


def test_good_members_are_written(tmp_path):
    members = [("d", DIR, ""), ("d/f", FILE, ""), ("l", LINK, "d/f"), ("new/deep/f", FILE, "")]
    names = remote.extract_below(archive(tmp_path, *members), tmp_path / "t", "there")
    assert names == ["d/f", "l", "new/deep/f"]
    assert (tmp_path / "t" / "l").read_bytes() == b"data"


def test_a_damaged_stream_is_said_so(tmp_path):
    (tmp_path / "a.tar").write_bytes(b"\x00garbage" * 100)
    with pytest.raises(HpcscaleError, match="damaged"):
        remote.extract_below(tmp_path / "a.tar", tmp_path / "t", "there")


def test_sockets_and_pipes_stay_behind(tmp_path):
    import os

    source = tmp_path / "s"
    source.mkdir()
    os.mkfifo(source / "pipe")
    (source / "file").write_text("x")
    remote.put_tree(LocalTransport(), source, str(tmp_path / "t"))
    assert [p.name for p in (tmp_path / "t").iterdir()] == ["file"]


def test_a_missing_file_to_send_is_named(tmp_path):
    with pytest.raises(NotFoundError, match="nowhere"):
        remote.put_tree(LocalTransport(), tmp_path, str(tmp_path / "t"), ["nowhere"])
    assert not [p for p in (tmp_path / "t").iterdir() if p.name.endswith(".tar")]


def test_the_root_is_never_removed():
    for path in ("/", "//", "", ".", "/x/.."):
        with pytest.raises(HpcscaleError, match="will not remove"):
            remote.remove(LocalTransport(), path, recursive=True)


def test_the_remote_line_has_nothing_a_login_shell_could_misread():
    line = command_line(["squeue", "--me"], {"SLURM_CONF": "/x y"}, None, 30)
    assert "\n" not in line
    assert "\\" not in line
    assert "!" not in line
    assert line.startswith("exec /bin/sh -c ")


def test_a_lost_reply_to_ln_is_recognised_by_the_link_count(tmp_path):
    """An NFS client that resends LINK may see EEXIST for its own link."""

    class Resends(LocalTransport):
        def run(self, argv, **options):
            if argv[0] == "ln":
                super().run(argv, **options)
            return super().run(argv, **options)

    assert remote.link_once(Resends(), str(tmp_path / "claim"), b"mine")
    assert not remote.link_once(Resends(), str(tmp_path / "claim"), b"other")
    assert Path(tmp_path / "claim").read_bytes() == b"mine"
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith("claim")] == ["claim"]
