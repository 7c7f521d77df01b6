"""Files, trees, inputs and code over every transport: whole, by few commands, and nothing wide open."""

import os

import pytest

from hpcscale import fetching, inputs, transfer
from hpcscale.code.store import Packed, pack
from hpcscale.code.store import place as place_code
from hpcscale.code.tree import read_tree

SIZE = 20_000_000  # two blocks


@pytest.fixture
def big(tmp_path):
    path = tmp_path / "big"
    path.write_bytes(os.urandom(SIZE))
    os.utime(path, ns=(1, 1_700_000_000_123_456_789))
    return path


def test_a_large_file_goes_and_comes(place, big, tmp_path):
    there = f"{place.dir}/a b"
    transfer.send(place.transport, big, there)
    (listed,) = fetching.list_tree(place.transport, there)
    assert (listed.kind, listed.size, listed.name) == ("f", SIZE, "")
    assert abs(float(listed.changed) - 1_700_000_000.123456789) < 1e-6
    here = tmp_path / "here"
    got = fetching.fetch_all(place.transport, [(there, here)])
    assert (got.files, got.skipped, got.refused) == ([here], [], [])
    assert here.read_bytes() == big.read_bytes()
    assert fetching.fetch_all(place.transport, [(there, here)]).unchanged == 1


def test_a_tree_of_odd_names_comes(place, tmp_path):
    names = ["-dash", "a b", "new\nline", "back\\slash!", "é", "*", "$(id)", "'q'", "deep/er/x"]
    script = 'for n; do mkdir -p "$(dirname "./$n")"; printf "content of %s" "$n" > "./$n"; done'
    done = place.transport.run(["/bin/sh", "-c", script, "sh", *names], cwd=place.dir)
    assert done.returncode == 0, done.stderr
    assert place.transport.run(["ln", "-s", "/etc/passwd", f"{place.dir}/link"]).returncode == 0
    here = tmp_path / "here"
    got = fetching.fetch_all(place.transport, [(place.dir, here)])
    assert len(got.files) == len(names)
    assert len(got.refused) == 1
    for name in names:
        assert (here / name).read_text() == f"content of {name}"


@pytest.mark.slow
def test_an_input_and_the_code_are_there_once(place, big, tmp_path):
    data = tmp_path / "data"
    (data / "sub").mkdir(parents=True)
    (data / "sub" / "run.sh").write_text("#!/bin/sh\n")
    (data / "sub" / "run.sh").chmod(0o755)
    (data / "link").symlink_to("sub/run.sh")
    big.rename(data / "big")
    items = inputs.read_items(data, frozenset())
    tree = read_tree(data)
    archive = pack(tree, tmp_path / "cache")
    packed = Packed(tree.id.tree_sha256, lambda: archive)
    sent = []
    for run in ("r1", "r2"):
        target = f"{place.dir}/runs/{run}"
        sent.append(
            (
                inputs.put_large(
                    place.transport, f"{place.dir}/inputs", data, items, f"{target}/in", link=True
                ),
                place_code(place.transport, f"{place.dir}/code", packed, f"{target}/code"),
            )
        )
        for copy in ("in", "code"):
            done = place.transport.run(["sha256sum", f"{target}/{copy}/big"])
            assert done.stdout[:64] == transfer.file_sha256(data / "big")
            assert place.transport.run([f"{target}/{copy}/link"]).returncode == 0
    assert sent == [(SIZE + 10, True), (0, False)]
    wide = place.transport.run(["find", place.dir, "!", "-type", "l", "-perm", "/077"])
    assert wide.stdout.split("\n")[1:] in ([], [""])  # the test's own directory alone
