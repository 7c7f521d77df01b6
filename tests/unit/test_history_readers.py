"""Readers of traces and accounting: every row is a job, a step, or named with its line."""

import datetime as dt
import gzip
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hpcscale.errors import HpcscaleError, InvalidFileError, NotFoundError
from hpcscale.history.read import read_history
from hpcscale.history.swf import parse_swf
from hpcscale.history.tables import parse_table
from hpcscale.history.workload import Status

SWF = """\
; UnixStartTime: 1000
; MaxNodes: 8
1 0 10 600 4 -1 -1 4 900 -1 1 7 3 -1 2 -1 -1 -1
2 5 -1 -1 -1 -1 -1 2 -1 -1 5 -1 -1 -1 -1 -1 -1 -1
3 x 10 600 4 -1 -1 4 900 -1 1 7 3 -1 2 -1 -1 -1
4 9 10 600
5 9 10 600 -1 -1 -1 -1 900 -1 1 7 3 -1 2 -1 -1 -1

6 7 0 1.5 3 -1 -1 3 60 -1 0 8 3 -1 2 -1 -1 -1 {1,2,3} a b
"""
SACCT = """\
JobID|User|Account|Partition|QOS|State|Submit|Start|End|Elapsed|Timelimit|NNodes|NCPUS|AllocTRES|JobName
10|ann|a|gpu|normal|COMPLETED|2026-01-05T08:00:00|2026-01-05T08:10:00|2026-01-05T09:10:00|01:00:00|02:00:00|2|16|cpu=16,gres/gpu=8,gres/gpu:h100=8|train|me
10.batch||a||||2026-01-05T08:10:00|2026-01-05T08:10:00|||||||batch
10.extern||a||||2026-01-05T08:10:00|2026-01-05T08:10:00|||||||extern
11_3|bob|a|gpu|normal|CANCELLED by 1000|2026-01-05T08:01:00|Unknown|2026-01-05T08:02:00|00:00:00|UNLIMITED|1|0||x
12|bob|a|gpu|normal|RUNNING|2026-01-05T08:02:00|2026-01-05T08:03:00|Unknown|00:30:00|1-00:00:00|1|8||x
13|bob|a|gpu|normal|PENDING|2026-01-05T08:04:00|Unknown|Unknown|00:00:00|30:00|4|8|billing=4|x
14|bob|a|gpu|normal|TIMEOUT|2026-01-05T08:05:00|2026-01-05T08:04:00|Unknown|00:30:00|1-00:00:00|1|8||x
15|bob|a|gpu
16|bob|a|gpu|normal|OUT_OF_MEMORY|yesterday|2026-01-05T08:04:00|Unknown|00:30:00|1-00:00:00|1|8||x
"""
PHILLY = """\
timestamp,duration,num_gpus,gpu_time,cluster
2017-09-04 10:30:41,100.5,16,1608,vc1
2017-09-04 10:30:40,-3,1,1,vc1
2017-09-04 10:30:42,200,1,200,"vc,2"
"""


def parsed(text, source="made.csv"):
    return parse_table(text.splitlines(), source)


def test_swf_has_each_job_and_names_each_other_row():
    read = parse_swf(SWF.splitlines(), "made.swf")
    jobs = read.workload
    assert jobs.job_id.tolist() == ["1", "2", "6"]
    assert jobs.submit_s.tolist() == [1000, 1005, 1007]
    assert jobs.wait_s.tolist()[::2] == [10, 0]
    assert math.isnan(jobs.start_s[1])
    assert math.isnan(jobs.runtime_s[1])
    assert math.isnan(jobs.limit_s[1])
    assert jobs.nodes.tolist() == [4, 2, 3]
    assert jobs.status.tolist() == [Status.COMPLETED, Status.CANCELLED, Status.FAILED]
    assert [jobs.name("user", row) for row in range(3)] == ["7", "", "8"]
    assert read.rows == 6
    assert [(s.line, s.what) for s in read.skipped] == [
        (5, "field 2 is 'x', no number"),
        (6, "4 fields, and SWF has 18"),
        (7, "neither allocated nor requested processors (fields 5 and 8)"),
    ]
    assert read.summary() == (
        "made.swf: 3 jobs in 6 rows, 3 rows left out (line 5: field 2 is 'x', no number; line 6: "
        "4 fields, and SWF has 18; line 7: neither allocated nor requested processors (fields 5 "
        "and 8))"
    )


def test_processors_become_nodes_rounded_up():
    jobs = parse_swf(SWF.splitlines(), "made.swf", cpus_per_node=3).workload
    assert jobs.nodes.tolist() == [2, 1, 1]
    assert jobs.cpus.tolist() == [4, 2, 3]


def test_strict_stops_at_the_first_row_that_is_no_job():
    with pytest.raises(InvalidFileError, match=r"made\.swf:5: field 2 is 'x'"):
        parse_swf(SWF.splitlines(), "made.swf", strict=True)


def test_sacct_knows_steps_states_limits_and_gpus():
    read = parsed(SACCT)
    jobs = read.workload
    assert jobs.job_id.tolist() == ["10", "11_3", "12", "13"]
    assert read.steps == 2
    assert [s.line for s in read.skipped] == [8, 9, 10]
    assert [s.what for s in read.skipped] == [
        "starts before its submission",
        "4 fields, and the header names 15",
        "submit is 'yesterday'",
    ]
    assert jobs.gpus.tolist() == [8, 0, 0, 0]
    assert jobs.gpus_per_node[0] == 4
    assert jobs.limit_s[0] == 7200
    assert math.isnan(jobs.limit_s[1])
    assert jobs.limit_s[3] == 1800
    assert jobs.runtime_s[0] == 3600
    # what has not ended has no runtime, what was cancelled in the queue has no start
    assert [math.isnan(value) for value in jobs.runtime_s] == [False, True, True, True]
    assert [math.isnan(value) for value in jobs.start_s] == [False, True, False, True]
    assert jobs.submit_s[0] == dt.datetime(2026, 1, 5, 8, tzinfo=dt.UTC).timestamp()


def test_sacct_times_in_seconds_and_trailing_bars():
    read = parsed(
        "JobIDRaw|Submit|Start|ElapsedRaw|TimelimitRaw|State|\n"
        "7|1700000000|1700000060|30|5|COMPLETED|\n"
    )
    jobs = read.workload
    assert (jobs.wait_s[0], jobs.runtime_s[0], jobs.limit_s[0]) == (60, 30, 300)


def test_philly_counts_gpus_and_makes_nodes_of_them():
    read = parsed(PHILLY)
    jobs = read.workload
    assert jobs.gpus.tolist() == [16, 1]
    assert jobs.nodes.tolist() == [2, 1]
    assert [jobs.name("partition", row) for row in (0, 1)] == ["vc1", "vc,2"]
    assert [(s.line, s.what) for s in read.skipped] == [(3, "duration is '-3', negative")]


def test_starburst_is_in_hours():
    jobs = parsed("arrival_h,runtime_h,gpus\n0.5,2,4\n").workload
    assert (jobs.submit_s[0], jobs.runtime_s[0], jobs.gpus[0], jobs.nodes[0]) == (1800, 7200, 4, 1)


def test_the_kind_of_file_is_seen_by_its_first_line(tmp_path):
    for name, text in (("a.swf", SWF), ("b.txt", SACCT), ("c.csv", PHILLY)):
        plain, packed = tmp_path / name, tmp_path / (name + ".gz")
        plain.write_text(text)
        packed.write_bytes(gzip.compress(text.encode()))
        one, two = read_history(plain), read_history(packed)
        assert one.workload.job_id.tolist() == two.workload.job_id.tolist()
        assert one.skipped == two.skipped
        assert str(plain) in one.summary()


def test_bad_files_are_named(tmp_path):
    with pytest.raises(NotFoundError, match="no file"):
        read_history(tmp_path / "none")
    damaged = tmp_path / "damaged.gz"
    damaged.write_bytes(gzip.compress(SWF.encode() * 50)[:-20])
    with pytest.raises(InvalidFileError, match=r"damaged.gz:\d+: the gzip data is damaged"):
        read_history(damaged)
    empty = tmp_path / "empty"
    empty.write_text("")
    with pytest.raises(InvalidFileError, match="is empty"):
        read_history(empty)
    with pytest.raises(InvalidFileError, match=r"is a directory|cannot be read"):
        read_history(tmp_path)
    heads = tmp_path / "heads"
    heads.write_text("JobID|Submit\n")
    with pytest.raises(InvalidFileError, match="holds no job"):
        read_history(heads)


def test_a_name_in_another_encoding_loses_no_job(tmp_path):
    path = tmp_path / "latin"
    path.write_bytes(b"JobID|User|Submit|Elapsed\n1|andr\xe9|5|00:01\n")
    jobs = read_history(path).workload
    assert jobs.name("user", 0) == "andr\\xe9"


@settings(max_examples=60, deadline=None)
@given(st.lists(st.text(st.characters(exclude_characters="\r\n"), max_size=60), max_size=20))
def test_no_row_of_any_table_is_lost(lines):
    good = "1|1700000000|1700000060|30"
    text = ["JobID|Submit|Start|ElapsedRaw", good, *lines]
    read = parse_table(text, "made")
    assert read.rows == 1 + sum(bool(line.strip()) for line in lines)
    assert len(read.workload) + len(read.skipped) + read.steps == read.rows


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.lists(st.sampled_from(["-1", "0", "7", "1e3", "nan", "x", "1e999"]), max_size=20),
        max_size=10,
    )
)
def test_no_row_of_any_swf_file_is_lost(rows):
    good = "1 0 10 600 4 -1 -1 4 900 -1 1 7 3 -1 2 -1 -1 -1"
    read = parse_swf([good, *(" ".join(row) for row in rows)], "made")
    assert len(read.workload) + len(read.skipped) == read.rows == 1 + sum(map(bool, rows))


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=300))
def test_any_text_is_read_or_refused(text):
    try:
        read = parse_table(text.splitlines(), "made")
    except HpcscaleError:
        return
    assert len(read.workload)


@pytest.mark.parametrize(
    ("header", "nodes", "said"),
    [
        ("; MaxNodes: 4\n; MaxProcs: 32\n", [1, 2], "8 processors are taken for a node"),
        ("; MaxNodes: 32\n; MaxProcs: 32\n", [8, 9], ""),
        ("; MaxNodes: 4\n", [8, 9], "each processor is taken for a node"),
    ],
)
def test_what_a_processor_of_swf_is_stands_in_its_header_or_is_told(header, nodes, said):
    rows = "1 0 0 60 8 -1 -1 8 -1 -1 1\n2 1 0 60 9 -1 -1 9 -1 -1 1\n"
    reading = parse_swf((header + rows).splitlines(), "made.swf")
    assert reading.workload.nodes.tolist() == nodes
    assert reading.workload.cpus.tolist() == [8, 9]
    assert (said in reading.notes[0]) if said else reading.notes == ()


def test_a_reading_of_no_use_says_what_to_type(tmp_path):
    files = {
        "heads.csv": "JobID|Submit|ElapsedRaw\n",
        "comma.csv": "JobID,Submit,AllocTRES\n1,2026-01-05T08:00:00,cpu=1,node=1\n",
        "none.swf": "; MaxNodes: 4\n",
        "empty": "",
        "noise": "\x00\x01\x02\n",
    }
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    hints = {}
    for name in [*files, ".", "nosuch"]:
        with pytest.raises(HpcscaleError) as caught:
            read_history(tmp_path / name)
        hints[name] = caught.value.hint
        assert caught.value.hint, name
        assert "\\x" not in str(caught.value)
    assert "quotes" in hints["comma.csv"]
    assert "18 numbers" in hints["none.swf"]
    assert "ls" in hints["nosuch"]
