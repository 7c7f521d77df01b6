"""Workload: columns that fit, in order of submission, or an error that names the job."""

import numpy as np
import pytest

from hpcscale import extras
from hpcscale.errors import InvalidFileError
from hpcscale.history.workload import Status, make_workload


def test_it_sorts_by_submission_and_fills_the_gaps():
    jobs = make_workload(
        submit_s=[30, 10, 20],
        job_id=["c", "a", "b"],
        runtime_s=[3, 1, 2],
        user=["eve", "", "adam"],
        gpus=[8, 0, 3],
        nodes=[2, 1, 2],
    )
    assert jobs.job_id.tolist() == ["a", "b", "c"]
    assert jobs.runtime_s.tolist() == [1, 2, 3]
    assert [jobs.name("user", row) for row in range(3)] == ["", "adam", "eve"]
    assert jobs.gpus_per_node.tolist() == [0, 2, 4]
    assert np.isnan(jobs.wait_s).all()
    assert np.isnan(jobs.limit_s).all()
    assert jobs.status.tolist() == [Status.UNKNOWN] * 3


def test_an_empty_workload_is_one():
    jobs = make_workload(submit_s=[])
    assert len(jobs) == 0
    assert len(jobs.split(0.4)[1]) == 0


def test_parts_keep_their_order_and_their_names():
    jobs = make_workload(submit_s=range(10), account=["x", "y"] * 5)
    tune, score = jobs.split(0.4)
    assert (len(tune), len(score)) == (4, 6)
    assert score.name("account", 0) == "x"
    assert jobs.between(3, 5).job_id.tolist() == ["4", "5"]
    assert jobs.select(np.array([9, 2]).clip(2)[::-1]).job_id.tolist() == ["3", "10"]


def test_columns_cannot_be_changed():
    jobs = make_workload(submit_s=[1, 2])
    with pytest.raises(ValueError, match="read-only"):
        jobs.submit_s[0] = 5


@pytest.mark.parametrize(
    ("columns", "what"),
    [
        ({"runtime_s": [1, -2]}, "job 2 is negative"),
        ({"start_s": [9, 1]}, "job 2 starts before its submission"),
        ({"nodes": [1, 2, 3]}, "column nodes has shape"),
        ({"user": [0, 5], "names": {"user": ["a"]}}, "column user names no entry"),
    ],
)
def test_what_does_not_fit_is_refused(columns, what):
    with pytest.raises(InvalidFileError, match=what):
        make_workload(submit_s=[1, 2], source="made.csv", **columns)


def test_a_missing_time_of_submission_is_refused():
    with pytest.raises(InvalidFileError, match="job 2 has no time of submission"):
        make_workload(submit_s=[1, float("nan")])


def test_a_missing_extra_says_what_to_type(monkeypatch):
    monkeypatch.setitem(extras.EXTRAS, "forecast", ("no_such_module_at_all",))
    with pytest.raises(extras.MissingExtraError, match="no_such_module_at_all") as caught:
        extras.require("forecast", "a test")
    assert caught.value.hint == "pip install 'hpcscale[forecast]'"
