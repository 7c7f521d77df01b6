"""Copying: whole or not at all, on from where it was cut, and only what changed."""

import hashlib
import os
from pathlib import Path

import pytest

from hpcscale import fetching, inputs, transfer
from hpcscale.errors import (
    HpcscaleError,
    InvalidFileError,
    NotOursError,
    RefusedError,
    UnreachableError,
)
from hpcscale.slurm.local import LocalTransport
from hpcscale.slurm.transport import Completed

BIG = 5_000_000


class FarAway(LocalTransport):
    """The same files, treated as those of another machine; some answers get lost."""

    is_local = False

    def __init__(self):
        self.cuts = 0  # how many of the next blocks are cut, half of them having arrived
        self.calls = []
        self.received = 0
        self.corrupt = 0

    def run(self, argv, *, stdin=None, **options):
        self.calls.append(list(argv))
        if stdin is not None and len(stdin) > 1000 and self.cuts:
            self.cuts -= 1
            super().run(argv, stdin=stdin[: len(stdin) // 2], **options)
            raise UnreachableError("cut")
        return super().run(argv, stdin=stdin, **options)

    def read_bytes(self, remote, *, offset=0, limit=None):
        if limit and limit > 1000 and self.cuts:
            self.cuts -= 1
            raise UnreachableError("cut")
        data = super().read_bytes(remote, offset=offset, limit=limit)
        self.received += len(data)
        if self.corrupt and len(data) > 1000:
            self.corrupt -= 1
            data = bytes(len(data))
        return data

    def get_file(self, remote, local):
        raise AssertionError("unbounded")

    def put_file(self, local, remote, *, mode=None):
        assert local.stat().st_size < BIG, "in one piece"
        super().put_file(local, remote, mode=mode)


class Meter:
    def __init__(self):
        self.total = self.done = 0

    def begin(self, what, total_bytes):
        self.total += total_bytes

    def advance(self, size):
        self.done += size


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(transfer, "_BACKOFF_S", 0.0)
    monkeypatch.setattr(transfer, "BLOCK_BYTES", 1_000_000)


@pytest.fixture
def far():
    return FarAway()


@pytest.fixture
def big(tmp_path):
    path = tmp_path / "big"
    path.write_bytes(os.urandom(BIG))
    os.utime(path, ns=(1, 1_700_000_000_123_456_789))
    return path


# --- one file there


@pytest.mark.parametrize("cuts", [0, 1, 3])
def test_a_file_arrives_whole_through_cuts(far, big, tmp_path, cuts):
    far.cuts = cuts
    meter = Meter()
    there = tmp_path / "there"
    transfer.send(far, big, str(there), meter=meter)
    assert there.read_bytes() == big.read_bytes()
    assert oct(there.stat().st_mode & 0o777) == "0o600"
    assert there.stat().st_mtime_ns == big.stat().st_mtime_ns
    assert meter.done == BIG
    assert not list(tmp_path.glob(".there*"))


def test_a_later_try_goes_on_where_the_first_was_cut(far, big, tmp_path):
    there = str(tmp_path / "there")
    far.cuts = 100
    with pytest.raises(UnreachableError):
        transfer.send(far, big, there)
    (part,) = tmp_path.glob(".there.*.part")
    arrived = part.stat().st_size
    assert arrived >= 900_000
    assert not Path(there).exists()
    far.cuts, far.calls = 0, []
    transfer.send(far, big, there)
    first = next(c for c in far.calls if transfer._APPEND in c)
    assert first[-1] == str(arrived)
    assert Path(there).read_bytes() == big.read_bytes()
    assert not part.exists()


def test_what_arrived_damaged_is_sent_again_from_the_start(far, big, tmp_path):
    there = str(tmp_path / "there")
    far.cuts = 100
    with pytest.raises(UnreachableError):
        transfer.send(far, big, there)
    (part,) = tmp_path.glob(".there.*.part")
    part.write_bytes(bytes(part.stat().st_size))
    far.cuts = 0
    meter = Meter()
    transfer.send(far, big, there, meter=meter)
    assert Path(there).read_bytes() == big.read_bytes()
    assert meter.done == BIG


def test_another_version_has_another_partial_file(far, big, tmp_path):
    there = str(tmp_path / "there")
    far.cuts = 100
    with pytest.raises(UnreachableError):
        transfer.send(far, big, there)
    big.write_bytes(os.urandom(BIG))
    far.cuts, far.calls = 0, []
    transfer.send(far, big, there)
    assert next(c for c in far.calls if transfer._APPEND in c)[-1] == "0"
    assert Path(there).read_bytes() == big.read_bytes()


def test_a_full_disk_there_is_said_and_leaves_nothing(far, big, tmp_path, monkeypatch):
    monkeypatch.setattr(
        transfer, "_APPEND", 'echo x > "$1"; echo "No space left on device" >&2; exit 1'
    )
    with pytest.raises(HpcscaleError, match="No space"):
        transfer.send(far, big, str(tmp_path / "there"))
    assert not list(tmp_path.glob(".there*"))


# --- one file here


def receive(far, remote, local):
    found = remote.stat()
    changed = f"{found.st_mtime_ns // 10**9}.{found.st_mtime_ns % 10**9:09d}0"
    transfer.receive(far, str(remote), local, size=found.st_size, changed=changed)


def test_a_file_comes_whole_through_cuts(far, big, tmp_path):
    far.cuts = 2
    receive(far, big, tmp_path / "here")
    assert (tmp_path / "here").read_bytes() == big.read_bytes()
    assert abs((tmp_path / "here").stat().st_mtime - big.stat().st_mtime) < 1e-3


def test_fetching_again_goes_on_where_it_was_cut(far, big, tmp_path, monkeypatch):
    monkeypatch.setattr(transfer, "_TRIES", 1)
    here = tmp_path / "here"
    original = far.read_bytes
    monkeypatch.setattr(
        far, "read_bytes",
        lambda remote, *, offset=0, limit=None: (
            original(remote, offset=offset, limit=limit) if offset < 2_000_000 else lost()
        ),
    )  # fmt: skip

    def lost():
        raise UnreachableError("cut")

    with pytest.raises(UnreachableError):
        receive(far, big, here)
    assert not here.exists()
    monkeypatch.setattr(far, "read_bytes", original)
    far.received = 0
    receive(far, big, here)
    assert far.received == BIG - 2_000_000
    assert here.read_bytes() == big.read_bytes()
    assert not list(tmp_path.glob(".here*"))


def test_what_came_damaged_takes_no_place(far, big, tmp_path):
    far.corrupt = 1
    with pytest.raises(HpcscaleError, match="changed while"):
        receive(far, big, tmp_path / "here")
    assert not (tmp_path / "here").exists()
    assert not list(tmp_path.glob(".here*"))


def test_a_log_that_grows_meanwhile_comes_as_far_as_it_was_listed(far, big, tmp_path):
    whole = big.read_bytes()
    with big.open("ab") as file:
        file.write(b"more")
    here = tmp_path / "here"
    transfer.receive(far, str(big), here, size=BIG, changed="1700000000.5")
    assert here.read_bytes() == whole
    assert here.stat().st_mtime == 1700000000.5


def test_two_fetches_of_one_file_do_not_mix(far, big, tmp_path):
    found = big.stat()
    name = transfer._part_name(str(tmp_path / "here"), far.name, str(big), found.st_size, "1.0")
    with (
        transfer._only_one(Path(name)),
        pytest.raises(HpcscaleError, match="another process"),
    ):
        transfer.receive(far, str(big), tmp_path / "here", size=found.st_size, changed="1.0")


# --- trees here


def fetch(transport, there, here, **options):
    return fetching.fetch_all(transport, [(str(there), here)], **options)


@pytest.fixture
def there(tmp_path):
    root = tmp_path / "there"
    (root / "a b").mkdir(parents=True)
    (root / "empty").mkdir()
    for name in ("a b/x\ny", "-dash", "é", "--null"):
        (root / name).write_text(f"content of {name}")
    (root / "big").write_bytes(os.urandom(BIG))
    return root


def test_a_tree_comes_by_few_commands_and_then_only_what_changed(far, there, tmp_path):
    here = tmp_path / "here"
    for number in range(300):
        (there / f"s{number}").write_text(str(number))
    far.calls = []
    meter = Meter()
    got = fetch(far, there, here, meter=meter)
    assert len(got.files) == 305
    assert meter.done == meter.total == got.size
    assert len(far.calls) < 8
    for path in there.rglob("*"):
        if path.is_file():
            assert (here / path.relative_to(there)).read_bytes() == path.read_bytes()
    assert (here / "empty").is_dir()
    again = fetch(far, there, here)
    assert (again.files, again.unchanged) == ([], 305)
    (there / "-dash").write_text("now other")
    assert fetch(far, there, here).files == [here / "-dash"]


def test_links_devices_and_pipes_are_refused(far, there, tmp_path):
    (there / "link").symlink_to("-dash")
    (there / "out").symlink_to("/etc/passwd")
    (there / "dir").symlink_to("a b")
    os.mkfifo(there / "pipe")
    got = fetch(far, there, tmp_path / "here")
    assert len(got.refused) == 4
    assert got.skipped == []
    assert not {"link", "out", "dir", "pipe"} & {p.name for p in (tmp_path / "here").iterdir()}


class Hostile(FarAway):
    """A site that answers as it likes."""

    listing = ""
    archive = ""

    def run(self, argv, *, stdin=None, **options):
        if argv[0] == "find":
            return Completed(tuple(argv), 0, self.listing, "")
        if fetching._PACK in argv:
            return Completed(tuple(argv), 0, self.archive, "")
        return super().run(argv, stdin=stdin, **options)


def listed(*entries):
    return "".join(f"{kind}\0{size}\0{changed}\0{name}\0" for kind, size, changed, name in entries)


@pytest.mark.parametrize(
    "name", ["/etc/x", "../x", "a/../../x", "a//b", "./x", "..", "a/.", "x" * 300, "\ufffd"]
)
def test_names_that_lead_out_are_refused(tmp_path, name):
    site = Hostile()
    site.listing = listed(("d", 0, "1.0", ""), ("f", 3, "1.0", name))
    here = tmp_path / "deep" / "here"
    got = fetch(site, "/x", here)
    assert len(got.refused) == 1
    assert got.files == []
    assert list(here.iterdir()) == []


def tar_of(*members):
    import base64
    import io
    import tarfile

    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, kind, link, data in members:
            member = tarfile.TarInfo(name)
            member.type, member.linkname, member.size = kind, link, len(data)
            archive.addfile(member, io.BytesIO(data))
    return base64.b64encode(buffer.getvalue()).decode()


@pytest.mark.parametrize(
    ("name", "kind", "link"),
    [
        ("../out", b"0", ""),
        ("/tmp/hpcscale-out", b"0", ""),
        ("./a", b"2", "/etc/passwd"),
        ("./a", b"1", "/etc/passwd"),
        ("./a", b"3", ""),
        ("./a", b"6", ""),
        ("./b", b"0", ""),
    ],
)
def test_an_archive_gives_nothing_but_what_was_asked_for(tmp_path, name, kind, link):
    site = Hostile()
    site.listing = listed(("d", 0, "1.0", ""), ("f", 3, "1.0", "a"))
    site.archive = tar_of((name, kind, link, b"abc" if kind == b"0" else b""))
    here = tmp_path / "deep" / "here"
    got = fetch(site, "/x", here)
    assert got.files == []
    assert len(got.skipped) + len(got.refused) >= 1
    assert list(here.iterdir()) == []
    assert not (tmp_path / "deep" / "out").exists()
    assert not Path("/tmp/hpcscale-out").exists()


@pytest.mark.parametrize(
    "listing", ["f", "f\0", "f\0x\x001.0\0a\0", "f\x003\0soon\0a\0", "f\x003\x001.0\0a\0rest"]
)
def test_a_list_that_cannot_be_read_is_said(tmp_path, listing):
    site = Hostile()
    site.listing = listing
    with pytest.raises(HpcscaleError, match="damaged"):
        fetch(site, "/x", tmp_path / "here")


@pytest.mark.parametrize("archive", ["%%%", "QUJD", tar_of(("./a", b"0", "", b"x" * 4000))[:3000]])
def test_an_archive_that_cannot_be_read_is_said(tmp_path, archive):
    site = Hostile()
    site.listing = listed(("d", 0, "1.0", ""), ("f", 3, "1.0", "a"))
    site.archive = archive
    with pytest.raises(HpcscaleError, match="damaged"):
        fetch(site, "/x", tmp_path / "here")


def test_nothing_is_written_through_a_link_that_is_here(far, there, tmp_path):
    here, elsewhere = tmp_path / "here", tmp_path / "elsewhere"
    here.mkdir()
    elsewhere.mkdir()
    (elsewhere / "mine").write_text("mine")
    (here / "a b").symlink_to(elsewhere)
    (here / "é").symlink_to(elsewhere / "mine")
    got = fetch(far, there, here)
    assert [p.name for p in elsewhere.iterdir()] == ["mine"]
    assert (elsewhere / "mine").read_text() == "mine"
    assert not (here / "é").is_symlink()
    assert any("a link here leads out" in text for text in got.skipped)


def test_more_than_the_limit_is_refused_before_anything_is_copied(far, there, tmp_path):
    with pytest.raises(RefusedError, match=r"the biggest: .*/big") as caught:
        fetch(far, there, tmp_path / "here", max_bytes=1_000_000)
    assert "--max-bytes" in caught.value.hint
    assert not (tmp_path / "here").exists()


def test_more_than_there_is_room_for_is_refused(tmp_path):
    site = Hostile()
    site.listing = listed(("f", 10**17, "1.0", ""))
    with pytest.raises(RefusedError, match="room left") as caught:
        fetch(site, "/x", tmp_path / "here", max_bytes=10**18)
    assert "--to" in caught.value.hint


# --- large inputs


@pytest.fixture
def site(tmp_path, monkeypatch):
    monkeypatch.setattr(inputs, "SMALL_BYTES", 100_000)
    monkeypatch.setattr(transfer, "SMALL_BYTES", 100_000)

    class Site:
        transport = FarAway()
        store = tmp_path / "state" / "inputs"

        def put(self, local, run, *, link=True, never=frozenset()):
            target = tmp_path / "state" / "runs" / run / "inputs" / "d"
            items = inputs.read_items(local, never)
            sent = inputs.put_large(
                self.transport, str(self.store), local, items, str(target), link=link
            )
            return target, sent

    return Site()


@pytest.fixture
def data(tmp_path):
    root = tmp_path / "data"
    (root / "sub" / "empty").mkdir(parents=True)
    (root / "sub" / "small").write_text("1")
    (root / "link").symlink_to("sub/small")
    (root / "big").write_bytes(os.urandom(BIG))
    return root


def same(one, other):
    def tree(root):
        return {
            str(p.relative_to(root)): p.readlink()
            if p.is_symlink()
            else p.is_file() and p.read_bytes()
            for p in root.rglob("*")
        }

    return tree(one) == tree(other)


def test_an_input_is_sent_once_and_then_what_changed(site, data):
    first, sent = site.put(data, "r1")
    assert sent == BIG + 1
    assert same(first, data)
    second, sent = site.put(data, "r2")
    assert sent == 0
    assert same(second, data)
    assert (first / "big").samefile(second / "big")
    (data / "sub" / "small").write_text("other")
    (data / "link").unlink()
    third, sent = site.put(data, "r3")
    assert sent == 5
    assert same(third, data)
    assert (first / "sub" / "small").read_text() == "1"  # a run keeps what it was given
    assert (first / "link").is_symlink()


def test_runs_cannot_change_each_others_input_by_accident(site, data):
    first, _ = site.put(data, "r1")
    modes = {oct(p.stat().st_mode & 0o777) for p in first.rglob("*") if p.is_file()}
    assert modes == {"0o400"}
    (first / "sub" / "new").write_text("its directories are its own")
    (first / "big").chmod(0o600)
    (first / "big").write_bytes(b"on purpose")
    second, sent = site.put(data, "r2")
    assert sent == BIG
    assert same(second, data)


def test_a_checkpoint_is_copied_since_the_job_writes_there(site, data):
    first, _ = site.put(data, "r1", link=False)
    (first / "big").write_bytes(b"newer")
    second, sent = site.put(data, "r2", link=False)
    assert sent == 0
    assert same(second, data)


def test_an_input_that_was_cut_goes_on(site, data):
    site.transport.cuts = 100
    with pytest.raises(UnreachableError):
        site.put(data, "r1")
    (part,) = site.store.rglob("*.part")
    arrived = part.stat().st_size
    site.transport.cuts, site.transport.calls = 0, []
    target, _ = site.put(data, "r1")
    assert next(c for c in site.transport.calls if transfer._APPEND in c)[-1] == str(arrived)
    assert same(target, data)
    assert not list(site.store.rglob("*.part"))


def test_a_large_file_is_an_input_too(site, data):
    target, sent = site.put(data / "big", "r1")
    assert sent == BIG
    assert target.read_bytes() == (data / "big").read_bytes()
    assert site.put(data / "big", "r2")[1] == 0


def test_a_store_of_inputs_that_others_may_write_is_refused(site, data):
    site.put(data, "r1")
    site.store.chmod(0o777)
    with pytest.raises(NotOursError, match="not yours alone"):
        site.put(data, "r2")


def test_a_link_out_of_an_input_is_refused(data, tmp_path):
    (data / "out").symlink_to(tmp_path)
    with pytest.raises(InvalidFileError, match="leads out"):
        inputs.read_items(data, frozenset())


def test_hashes_of_files(big):
    assert transfer.file_sha256(big) == hashlib.sha256(big.read_bytes()).hexdigest()
