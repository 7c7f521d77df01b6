"""Reading 100,000 rows of squeue: a ratio to a plain split of the same text, and its memory."""

import datetime as dt
import statistics
import time
import tracemalloc

import pytest

from hpcscale.slurm import _squeue
from hpcscale.slurm.types import JobState
from hpcscale.units import JobId

ROWS = 100_000
SEPARATORS = _squeue.Separators("~0123456789", "^0123456789")
NOW = dt.datetime(2026, 11, 22, tzinfo=dt.UTC)
AT_MOST = 5.0  # seen on two busy cores: 2 to 3
MEMORY_MB = 200


@pytest.fixture(scope="module")
def text():
    rows = []
    for n in range(1, ROWS + 1):
        submitted = 1795328253 + n // 7
        running = n % 3 == 0
        cells = [
            str(n) if n % 5 else f"{n}_{n % 100}",
            "RUNNING" if running else "PENDING",
            f"user{n % 300}", f"account{n % 40}", "gpu" if n % 2 else "gpu,urgent", "normal",
            "None" if running else "Priority",
            f"node[{n % 500}-{n % 500 + 1}]" if running else "", "2",
            "cpu=64,mem=1000G,node=2,billing=64,gres/gpu=16,gres/gpu:h100=16",
            "gres:gpu:h100:8", "N/A", "(null)", "0", str(4294901759 - n), "1-00:00:00",
            str(submitted), str(submitted), str(submitted + 60) if running else "N/A",
            str(submitted + 86460) if running else "N/A", "0",
            f"hpcscale=hs-{n:016x}", f"train-{n}",
        ]  # fmt: skip
        rows.append(SEPARATORS.field.join(cells) + SEPARATORS.record + "\n")
    return "".join(rows)


def split(text):
    return [r.split(SEPARATORS.field) for r in text.split(SEPARATORS.record + "\n")]


def cpu_s(function):
    begin = time.process_time()
    function()
    return time.process_time() - begin


def test_parsing_costs_a_small_multiple_of_splitting(text):
    def parse():
        return _squeue.parse(text, SEPARATORS, observed_at=NOW)

    parsing, splitting = [], []
    for _ in range(3):  # in turn, so that both see the same machine
        parsing.append(cpu_s(parse))
        splitting.append(cpu_s(lambda: split(text)))
    ratio = statistics.median(parsing) / statistics.median(splitting)
    print(
        f"\n{ROWS} rows, {len(text) / 1e6:.0f} MB: parse {statistics.median(parsing):.2f} s, "
        f"split {statistics.median(splitting):.2f} s, ratio {ratio:.1f}"
    )
    assert ratio <= AT_MOST


def test_picking_a_thousand_of_them_costs_little_more_than_splitting(text):
    wanted = [JobId(n) for n in range(1, ROWS, ROWS // 1000) if n % 5]

    def pick():
        return _squeue.parse(text, SEPARATORS, observed_at=NOW, wanted=_squeue.Wanted(wanted))

    assert len(pick()) == len(wanted)
    picking, splitting = [], []
    for _ in range(3):
        picking.append(cpu_s(pick))
        splitting.append(cpu_s(lambda: split(text)))
    ratio = statistics.median(picking) / statistics.median(splitting)
    print(f"\npick {statistics.median(picking):.2f} s, ratio {ratio:.1f}")
    assert ratio <= 3.0


def test_memory_of_all_statuses(text):
    share = 10  # tracing is slow; what repeats is shared, so a part of the rows costs no less each
    part = "".join(text.splitlines(keepends=True)[: ROWS // share])
    tracemalloc.start()
    try:
        jobs = _squeue.parse(part, SEPARATORS, observed_at=NOW)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    print(f"\npeak {share * peak / 1e6:.0f} MB beside the text of {len(text) / 1e6:.0f} MB")
    assert len(jobs) == ROWS // share
    assert jobs["3"].state is JobState.RUNNING
    assert share * peak <= MEMORY_MB * 1e6
