import multiprocessing
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import pytest

from hpcscale.burst import lock as lock_module
from hpcscale.burst.lock import Holder, LockHeldError, RunLock, holder_of
from hpcscale.errors import StateError


def left_behind(path: Path, **changes) -> Holder:
    held = msgspec.structs.replace(lock_module._myself(), **changes)
    path.write_bytes(msgspec.json.encode(held))
    return held


def test_a_second_run_is_told_who_holds_it_and_the_lock_goes_away(tmp_path):
    path = tmp_path / "burst.lock"
    with RunLock(path):
        with pytest.raises(LockHeldError) as caught, RunLock(path):
            pass
        assert caught.value.holder.pid == os.getpid()
        assert str(os.getpid()) in str(caught.value)
        assert holder_of(path)["pid"] == os.getpid()
    assert list(tmp_path.glob("burst*")) == []
    assert holder_of(path) is None


def test_the_lock_of_a_killed_process_is_taken_over(tmp_path):
    path = tmp_path / "burst.lock"
    code = (
        "import sys, time, pathlib\n"
        "from hpcscale.burst.lock import RunLock\n"
        "RunLock(pathlib.Path(sys.argv[1])).__enter__()\n"
        "print('held', flush=True)\n"
        "time.sleep(60)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout.readline() == "held\n"
        with pytest.raises(LockHeldError), RunLock(path):
            pass
        child.kill()
        child.wait()
    with RunLock(path):
        assert holder_of(path)["pid"] == os.getpid()
    assert list(tmp_path.glob("burst*")) == []


@pytest.mark.parametrize("changes", [{"boot_id": "another"}, {"started": "1"}, {"pid": 2**22 + 1}])
def test_another_boot_or_a_reused_process_id_is_stale(tmp_path, changes):
    path = tmp_path / "burst.lock"
    left_behind(path, **changes)
    with RunLock(path):
        pass


def test_another_hosts_lock_is_stale_only_by_age(tmp_path):
    path = tmp_path / "burst.lock"
    left_behind(path, host="login2", pid=1)
    with pytest.raises(LockHeldError, match="login2"), RunLock(path):
        pass
    old = time.time() - lock_module.STALE_AFTER_S - 1
    os.utime(path, (old, old))
    with RunLock(path) as held:
        assert holder_of(path)["host"] == socket.gethostname()
        os.utime(path, (old, old))
        held.touch()
        assert path.stat().st_mtime > old + 1


def test_a_takeover_that_died_half_way_does_not_block_the_next(tmp_path):
    path = tmp_path / "burst.lock"
    stale = left_behind(path, pid=2**22 + 1, token="old")
    left_behind(tmp_path / f"burst.lock.break-{stale.token}", pid=2**22 + 1, token="breaker")
    with RunLock(path):
        pass


def test_a_broken_lock_file_counts_as_held_until_it_is_old(tmp_path):
    path = tmp_path / "burst.lock"
    path.write_bytes(b"{half")
    with pytest.raises(LockHeldError), RunLock(path):
        pass
    old = time.time() - lock_module.STALE_AFTER_S - 1
    os.utime(path, (old, old))
    with RunLock(path):
        pass


def test_a_directory_that_cannot_be_made_is_a_clear_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StateError, match="cannot be written"), RunLock(tmp_path / "file" / "lock"):
        pass


def contend(path, log, rounds):
    for _ in range(rounds):
        try:
            with RunLock(path):
                with log.open("a") as out:
                    out.write(f"{os.getpid()} in\n")
                with log.open("a") as out:
                    out.write(f"{os.getpid()} out\n")
        except LockHeldError:
            pass


def test_many_processes_never_hold_it_together_even_over_a_stale_one(tmp_path):
    path, log = tmp_path / "burst.lock", tmp_path / "log"
    left_behind(path, pid=2**22 + 1, token="old")
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=contend, args=(path, log, 40)) for _ in range(6)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
        assert worker.exitcode == 0
    lines = log.read_text().splitlines()
    assert lines
    for entered, left in zip(lines[::2], lines[1::2], strict=True):
        assert entered.split()[1] == "in"
        assert left == entered.replace(" in", " out")
