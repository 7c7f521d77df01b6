"""Slurm's grammars: what is written can be read back, and nothing but ValueError comes out."""

import datetime as dt
import random
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpcscale.units import (
    JobId,
    JobRef,
    expand_hostlist,
    fold_hostlist,
    format_duration,
    gres_gpus,
    parse_array,
    parse_deadline,
    parse_duration_s,
    parse_memory_mb,
    parse_money_usd,
    parse_tres,
    tres_gpus,
)

NOW = dt.datetime(2026, 11, 22, 6, 0, tzinfo=dt.UTC)
numbers = st.integers(0, 10**6)
job_ids = st.one_of(
    st.builds(JobId, st.integers(1, 2**31)),
    st.builds(JobId, st.integers(1, 2**31), numbers),
    st.builds(JobId, st.integers(1, 2**31), st.none(), st.integers(0, 128)),
)


@given(st.one_of(st.none(), st.integers(0, 10**9)))
def test_durations_come_back(seconds):
    assert parse_duration_s(format_duration(seconds)) == seconds


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("30", 1800),
        ("30:15", 1815),
        ("2:00:00", 7200),
        ("1-12", 129600),
        ("1-12:30", 131400),
        ("1-12:30:15", 131415),
        ("7-00:00:00", 604800),
        ("1h30m", 5400),
        ("1d 12h 30m 10s", 131410),
        ("90s", 90),
        ("5min", 300),
        ("UNLIMITED", None),
        ("infinite", None),
        ("Partition_Limit", None),
        ("0", 0),
        (" 10 ", 600),
    ],
)
def test_durations_of_the_manual(text, seconds):
    assert parse_duration_s(text) == seconds


@pytest.mark.parametrize("text", ["x", "1:2:3:4", "1-", "-1", "1.5h", "²", "٣", "1h-2", "10 20"])
def test_no_durations(text):
    with pytest.raises(ValueError, match="no duration"):
        parse_duration_s(text)


@given(st.integers(0, 10**7), st.sampled_from("KMGT"))
def test_memory_is_never_rounded_down(size, unit):
    factor = {"K": Decimal(1) / 1024, "M": 1, "G": 1024, "T": 1024**2}[unit]
    exact = size * factor
    assert exact <= parse_memory_mb(f"{size}{unit}") < exact + 1


@pytest.mark.parametrize(
    ("text", "mb"),
    [("512", 512), ("64G", 65536), ("1.5g", 1536), ("1T", 1048576), ("1K", 1), ("4Gc", 4096),
     ("4000Mn", 4000), ("8GiB", 8192), ("0", 0)],
)  # fmt: skip
def test_memory(text, mb):
    assert parse_memory_mb(text) == mb


@pytest.mark.parametrize("text", ["", "G", "-1G", "1P", "1 G 2", "٣G", "1e3"])
def test_no_memory(text):
    with pytest.raises(ValueError, match="no memory size"):
        parse_memory_mb(text)


@given(job_ids)
def test_job_ids_come_back(job_id):
    assert JobId.parse(str(job_id)) == job_id
    ref = JobRef("lab-onprem", job_id)
    assert JobRef.parse(str(ref)) == ref


@given(st.lists(job_ids, max_size=20))
def test_job_ids_have_an_order(ids):
    ordered = sorted(ids)
    random.Random(0).shuffle(ids)
    assert sorted(ids) == ordered
    assert [i.base for i in ordered] == sorted(i.base for i in ids)


def test_elements_are_sorted_by_number():
    texts = ["5_10", "5+1", "5", "5_9", "4_99", "5+0"]
    assert list(map(str, sorted(map(JobId.parse, texts)))) == [
        "4_99", "5", "5+0", "5+1", "5_9", "5_10",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "text", ["", "0", "x", "1_", "_1", "1+", "1_2+3", "1_[2-3]", "-1", "1.0", "٣", "1 2"]
)
def test_no_job_ids(text):
    with pytest.raises(ValueError, match="no job id"):
        JobId.parse(text)


@pytest.mark.parametrize("text", ["5", ":5", "site:", "site:x"])
def test_no_job_refs(text):
    with pytest.raises(ValueError, match="is no job"):
        JobRef.parse(text)


@given(st.sets(st.integers(0, 5000), min_size=1, max_size=50), st.one_of(st.none(), numbers))
def test_arrays_come_back(indices, throttle):
    if throttle == 0:
        throttle = 1
    text = ",".join(map(str, sorted(indices))) + (f"%{throttle}" if throttle else "")
    assert parse_array(text) == (sorted(indices), throttle)


@given(numbers, st.integers(0, 500), st.integers(1, 20))
def test_array_spans(first, length, step):
    assert parse_array(f"{first}-{first + length}:{step}")[0] == list(
        range(first, first + length + 1, step)
    )


@pytest.mark.parametrize(
    "text",
    ["", "x", "1-", "3-1", "1:2", "1-5:0", "1%0", "1%", "1%x", "-1", "1,,2", "1_0",
     "1-2-3", "1%+2"],
)  # fmt: skip
def test_no_arrays(text):
    with pytest.raises(ValueError, match="no array"):
        parse_array(text)


def test_an_index_above_what_any_slurm_takes_is_named():
    with pytest.raises(ValueError, match="index 99999999: no Slurm takes one above 4000000"):
        parse_array("0-99999999")


@pytest.mark.parametrize(
    ("gres", "count", "kind"),
    [
        ("gpu:h100:4", 4, "h100"),
        ("gpu:4", 4, None),
        ("gpu", 1, None),
        ("gpu:a100", 1, "a100"),
        ("gpu:h100:4(S:0-1)", 4, "h100"),
        ("gpu:h100:2(IDX:0,3),nic:1", 2, "h100"),
        ("gpu:a:1,gpu:b:2", 3, "b"),
        ("(null)", 0, None),
        ("", 0, None),
        ("nic:2", 0, None),
        ("gpu:a100_1g.5gb:7", 7, "a100_1g.5gb"),
    ],
)
def test_gres(gres, count, kind):
    assert gres_gpus(gres) == (count, kind)


def test_tres():
    tres = parse_tres("cpu=4,mem=8G,node=2,billing=4,gres/gpu=8,gres/gpu:h100=8")
    assert tres["mem"] == "8G"
    assert tres_gpus(tres) == 8
    assert tres_gpus({"gres/gpu:h100": "2", "gres/gpu:a100": "1"}) == 3
    assert parse_tres("(null)") == parse_tres("N/A") == parse_tres("") == {}
    assert tres_gpus({}) == 0


@given(st.sets(st.integers(1, 300), min_size=1, max_size=40))
def test_hostlists_come_back(numbers):
    names = [f"node{n}" for n in sorted(numbers)]
    assert expand_hostlist(fold_hostlist(names)) == names


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("n[1-3,7]", ["n1", "n2", "n3", "n7"]),
        ("n[01-03]", ["n01", "n02", "n03"]),
        ("a,b", ["a", "b"]),
        ("r[1-2]n[1-2]", ["r1n1", "r1n2", "r2n1", "r2n2"]),
        ("single.example.org", ["single.example.org"]),
        ("", []),
        ("(null)", []),
        ("None assigned", []),
    ],
)
def test_hostlists(text, names):
    assert expand_hostlist(text) == names


@pytest.mark.parametrize(
    "text", ["n[1-", "n[1-2]]", "@all", "a!b", "a&b", "n[1-x]", "a b", "n[3-1]"]
)
def test_no_hostlists(text):
    with pytest.raises(ValueError, match="no hostlist"):
        expand_hostlist(text)


@given(st.integers(1, 10**7))
def test_a_deadline_from_now(seconds):
    assert parse_deadline(f"+{format_duration(seconds)}", NOW) == NOW + dt.timedelta(
        seconds=seconds
    )


@given(st.datetimes(*(dt.datetime(y, 1, 1) for y in (1980, 2200))))  # noqa: DTZ001  # bounds
def test_a_deadline_with_a_zone_is_that_instant(when):
    aware = when.replace(tzinfo=dt.timezone(dt.timedelta(hours=5, minutes=30)))
    found = parse_deadline(aware.isoformat(), NOW)
    assert found == aware
    assert found.tzinfo is dt.UTC


def test_deadlines_in_local_time():
    local = NOW.astimezone()
    later = local + dt.timedelta(minutes=5)
    assert parse_deadline(f"{later:%H:%M}", NOW) == later.replace(second=0, microsecond=0)
    earlier = local - dt.timedelta(minutes=5)
    tomorrow = earlier.replace(second=0, microsecond=0) + dt.timedelta(days=1)
    assert parse_deadline(f"{earlier:%H:%M}", NOW) == tomorrow
    end = parse_deadline("2026-11-30", NOW).astimezone()
    assert (end.day, end.hour, end.minute, end.second) == (30, 23, 59, 59)


@pytest.mark.parametrize(
    "text",
    ["", "tomorrow", "25:00", "12:60", "+x", "+UNLIMITED", "2026-13-01", "9999999", "+9999999999d",
     "0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-14:00"],
)  # fmt: skip
def test_no_deadlines(text):
    with pytest.raises(ValueError):
        parse_deadline(text, NOW)


@given(st.decimals(0, 10**9, places=2, allow_nan=False))
def test_money_comes_back(amount):
    assert parse_money_usd(f"{amount:f}") == amount
    assert parse_money_usd(f"${amount:,}") == amount


@pytest.mark.parametrize("text", ["", "-1", "nan", "inf", "1,5", "1e3", "1 000", "€5", "1_0", "$"])
def test_no_money(text):
    with pytest.raises(ValueError, match="no amount"):
        parse_money_usd(text)


@pytest.mark.parametrize(
    "parse",
    [parse_duration_s, parse_memory_mb, JobId.parse, JobRef.parse, parse_array, parse_money_usd,
     expand_hostlist, lambda text: parse_deadline(text, NOW)],
)  # fmt: skip
@given(text=st.text(max_size=12) | st.text("0123456789-:,%[]_+.dhmsGMT ", max_size=12))
def test_any_text_gives_a_value_or_a_value_error(parse, text):
    try:
        parse(text)
    except ValueError as exc:
        assert str(exc)  # noqa: PT017  # either outcome is fine
