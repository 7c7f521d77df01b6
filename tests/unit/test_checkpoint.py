"""hpcscale.train.checkpoint: a checkpoint is whole or does not count."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from hpcscale.train.checkpoint import (
    SUPERSEDED,
    CheckpointStore,
    SupersededError,
    stop_requested,
    superseded,
    verify,
)

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def store(tmp_path):
    return CheckpointStore(tmp_path / "check point's", keep=3)


def save(store, step):
    return store.save(step, {"model": {"w": torch.full((64,), float(step))}, "extra": step})


def test_nothing_saved_is_nothing_found(store):
    assert store.newest() is None
    assert not store.root.exists()


def test_what_was_saved_comes_back(store):
    path = save(store, 120)
    found = store.newest()
    assert found is not None
    assert (found.step, found.path, found.world_size) == (120, path, 1)
    assert torch.equal(store.load(found, "model")["w"], torch.full((64,), 120.0))
    assert store.load(found, "extra") == 120
    assert (store.root / "latest").read_text() == "step-000000000120\n"


def test_world_size_is_recorded(store, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "4")
    save(store, 1)
    assert store.newest().world_size == 4


def tear_marker(path):
    (path / "COMPLETE").unlink()


def truncate(path):
    os.truncate(path / "model.pt", 10)


def empty(path):
    (path / "model.pt").write_bytes(b"")


def flip_a_bit(path):
    data = bytearray((path / "model.pt").read_bytes())
    data[len(data) // 2] ^= 1
    (path / "model.pt").write_bytes(data)


def lose_a_file(path):
    (path / "extra.pt").unlink()


def change_the_manifest(path):
    data = json.loads((path / "manifest.json").read_text())
    data["step"] = 999
    (path / "manifest.json").write_text(json.dumps(data))


def garbage_manifest(path):
    (path / "manifest.json").write_bytes(b"\x00\xff[]")


def lose_everything(path):
    for file in path.iterdir():
        file.unlink()


@pytest.mark.parametrize(
    "damage",
    [
        tear_marker,
        truncate,
        empty,
        flip_a_bit,
        lose_a_file,
        change_the_manifest,
        garbage_manifest,
        lose_everything,
    ],
)
def test_a_damaged_checkpoint_is_passed_over(store, damage):
    save(store, 100)
    damage(save(store, 200))
    # latest still names the damaged one; nobody may trust it
    assert "200" in (store.root / "latest").read_text()
    assert store.newest().step == 100
    # and the next save of that step replaces it
    save(store, 200)
    assert store.newest().step == 200


def test_order_is_by_step_not_by_name(store):
    save(store, 9)
    save(store, 10)
    (store.root / "step-11-backup").mkdir()
    (store.root / "step-").mkdir()
    (store.root / "12").mkdir()
    assert store.newest().step == 10


def test_old_ones_are_removed_and_leftovers_too(store):
    (store.root).mkdir()
    (store.root / ".saving-000000000001-1-dead").mkdir()
    for step in range(1, 7):
        save(store, step)
    assert sorted(p.name for p in store.root.iterdir()) == [
        "latest",
        "step-000000000004",
        "step-000000000005",
        "step-000000000006",
    ]


def test_a_torn_directory_does_not_count_among_those_kept(store):
    for step in (1, 2, 3):
        save(store, step)
    tear_marker(store.root / "step-000000000003")
    tear_marker(store.root / "step-000000000002")
    save(store, 4)
    assert verify(store.root / "step-000000000001") is not None


def test_saving_the_same_step_again_keeps_the_first(store):
    path = save(store, 5)
    before = (path / "COMPLETE").stat().st_mtime_ns
    assert save(store, 5) == path
    assert (path / "COMPLETE").stat().st_mtime_ns == before


def test_keep_must_be_positive(tmp_path):
    with pytest.raises(ValueError, match="at least 1"):
        CheckpointStore(tmp_path, keep=0)


def test_stop_flag(tmp_path, monkeypatch):
    monkeypatch.delenv("HPCSCALE_STOP_FILE", raising=False)
    assert not stop_requested()
    monkeypatch.setenv("HPCSCALE_STOP_FILE", str(tmp_path / "stop"))
    assert not stop_requested()
    (tmp_path / "stop").touch()
    assert stop_requested()


@pytest.fixture
def claim(tmp_path, monkeypatch):
    """The log of claims as the job's script leaves it; entry 0 is ours."""
    claims = tmp_path / "claims"
    claims.mkdir()
    (claims / "rabc.hs-1.task3.0").write_text("hs-1 0\n")
    monkeypatch.setenv("HPCSCALE_CLAIM", str(claims / "rabc.hs-1.task3.0"))
    monkeypatch.setenv("HPCSCALE_SUBMISSION_ID", "hs-1")
    return claims


@pytest.mark.parametrize("later", ["rabc.hs-1.task3.1", "hs-1.revoked"])
def test_a_superseded_start_commits_nothing_and_ends(store, claim, later, capsys):
    save(store, 1)
    (claim / "rabc.hs-1.task33.1").write_text("of another element")
    save(store, 2)
    (claim / later).write_text("hs-2 -\n")
    with pytest.raises(SupersededError) as caught:
        save(store, 3)
    assert caught.value.code == SUPERSEDED
    assert "superseded, nothing is saved" in capsys.readouterr().err
    assert store.newest().step == 2
    assert (store.root / "latest").read_text() == "step-000000000002\n"
    assert sorted(p.name for p in store.root.iterdir()) == [
        "latest", "step-000000000001", "step-000000000002",
    ]  # fmt: skip


def test_superseded_while_it_writes(store, claim, monkeypatch):
    save(store, 1)
    original = torch.save

    def slow(value, file):
        original(value, file)
        (claim / "rabc.hs-1.task3.1").write_text("hs-1 1\n")

    monkeypatch.setattr(torch, "save", slow)
    with pytest.raises(SupersededError):
        save(store, 2)
    assert [p.name for p in store.root.glob("*step*")] == ["step-000000000001"]


@pytest.mark.parametrize("value", ["", "nonsense", "/nowhere/r.hs-1.0", "/proc/self/r.hs-1.0"])
def test_where_no_claim_is_seen_nobody_asks(store, monkeypatch, value):
    monkeypatch.setenv("HPCSCALE_CLAIM", value)
    save(store, 1)
    assert superseded() == ""


def test_a_saver_killed_at_any_moment_leaves_its_last_word(tmp_path):
    """SIGKILL while it saves without pause: every step that it announced is still there, whole."""
    program = (
        "import sys, itertools\n"
        "from checkpoint import CheckpointStore\n"
        "store = CheckpointStore(sys.argv[1], keep=2)\n"
        "found = store.newest()\n"
        "for step in itertools.count(found.step + 1 if found else 1):\n"
        "    store.save(step, {'model': list(range(200000))})\n"
        "    print(step, flush=True)\n"
    )
    rng = random.Random(4)
    announced = 0
    for _ in range(4):
        process = subprocess.Popen(
            [sys.executable, "-c", program, str(tmp_path / "ck")],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT / "hpcscale" / "train")},
        )
        try:
            first = process.stdout.readline()
            assert int(first) == announced + 1
            time.sleep(rng.uniform(0.0, 0.1))  # the moment of death is the test's own choice
        finally:
            process.send_signal(signal.SIGKILL)
            rest, _ = process.communicate(timeout=20)
        announced = int((first + rest).split()[-1])
        newest = CheckpointStore(tmp_path / "ck").newest()
        # the very last save may be whole without having been announced
        assert newest is not None
        assert newest.step in (announced, announced + 1)
        announced = newest.step


def test_finding_needs_neither_hpcscale_nor_torch(tmp_path, store):
    save(store, 7)
    done = subprocess.run(
        [
            sys.executable,
            "-I",  # no PYTHONPATH, no user site
            "-S",  # no site-packages: neither torch nor hpcscale
            "-c",
            (
                "import sys; sys.path.insert(0, sys.argv[1]); import checkpoint;"
                "print(checkpoint.CheckpointStore(sys.argv[2]).newest().step)"
            ),
            str(ROOT / "hpcscale" / "train"),
            str(store.root),
        ],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.stdout == "7\n", done.stderr


def digits(path):
    """A stand-in with the shape of scikit-learn's digits: this test is about resuming."""
    import numpy as np

    rng = np.random.default_rng(1)
    labels = rng.integers(0, 10, 400)
    images = rng.integers(0, 17, (400, 64))
    images[np.arange(400), labels] = 60
    np.savez_compressed(path, images=images, labels=labels)


def train(directory, checkpoints, steps, *, stop=False):
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT / "hpcscale" / "train"),
        "HPCSCALE_INPUT_DIGITS": str(directory / "digits.npz"),
        "HPCSCALE_CHECKPOINT_DIR": str(checkpoints),
        "HPCSCALE_STOP_FILE": str(directory / "stop"),
        "GLOO_SOCKET_IFNAME": "lo",
        "OMP_NUM_THREADS": "1",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": "0",
    }
    (directory / "stop").unlink(missing_ok=True)
    if stop:
        (directory / "stop").touch()
    done = subprocess.run(
        [sys.executable, str(ROOT / "docs/demo/train_digits.py"), f"--steps={steps}"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_example_resumes_to_the_same_weights(tmp_path):
    digits(tmp_path / "digits.npz")
    train(tmp_path, tmp_path / "straight", 12)
    first = train(tmp_path, tmp_path / "broken", 12, stop=True)
    assert "stop: asked to, after step 1" in first
    second = train(tmp_path, tmp_path / "broken", 12)
    assert "step 1, restart 0" in second
    weights = []
    for name in ("straight", "broken"):
        store = CheckpointStore(tmp_path / name)
        found = store.newest()
        assert found is not None
        assert found.step == 12
        weights.append(store.load(found, "model"))
    for key, value in weights[0].items():
        assert torch.equal(value, weights[1][key])
