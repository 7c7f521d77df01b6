"""Text of squeue and sacct: read whole, or refused; never guessed."""

import datetime as dt

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpcscale.errors import UnreachableError
from hpcscale.slurm import _sacct, _squeue
from hpcscale.slurm.types import JobState
from hpcscale.units import JobId

NOW = dt.datetime(2026, 11, 22, tzinfo=dt.UTC)
SEP = _squeue.Separators("_F0_", "_R0_")
ROW = {
    "JobArrayID": "7",
    "State": "RUNNING",
    "UserName": "ann",
    "Account": "(null)",
    "Partition": "gpu",
    "QOS": "normal",
    "Reason": "None",
    "NodeList": "n[1-2]",
    "NumNodes": "2",
    "tres-alloc": "cpu=4,node=2,gres/gpu=8,gres/gpu:h100=8",
    "tres-per-node": "gres:gpu:h100:4",
    "tres-per-job": "N/A",
    "Dependency": "(null)",
    "RestartCnt": "1",
    "PriorityLong": "4294901759",
    "TimeLimit": "1-00:00:00",
    "SubmitTime": "1795328253",
    "EligibleTime": "1795328253",
    "StartTime": "1795328260",
    "EndTime": "1795414660",
    "exit_code": "0",
    "Comment": "x;hpcscale=hs-1",
    "Name": "train",
}


def row(**changes):
    cells = {**ROW, **{k.replace("tres_", "tres-").replace("_", "-") if k.startswith("tres_")
                       else k: v for k, v in changes.items()}}  # fmt: skip
    assert list(cells) == list(_squeue.FIELDS)
    return SEP.field.join(cells.values()) + SEP.record + "\n"


def parse(text, wanted=None):
    return _squeue.parse(
        text, SEP, observed_at=NOW, wanted=_squeue.Wanted(wanted) if wanted else None
    )


def test_a_row():
    status = parse(row())["7"]
    assert status.state is JobState.RUNNING
    assert (status.account, status.reason, status.dependency) == ("", "", "")
    assert (status.num_nodes, status.gpus, status.restarts) == (2, 8, 1)
    assert status.time_limit_s == 86400
    assert status.submit_time == dt.datetime.fromtimestamp(1795328253, dt.UTC)
    assert status.exit_code is None
    assert status.comment == "x;hpcscale=hs-1"


@given(name=st.text(max_size=30), comment=st.text(max_size=30))
def test_any_name_and_comment_come_back(name, comment):
    rows = row(Name=name, Comment=comment) + row(JobArrayID="8")
    jobs = parse(rows)
    assert set(jobs) == {"7", "8"}
    assert jobs["7"].name == name
    assert jobs["7"].comment == ("" if comment == "(null)" else comment)


@pytest.mark.parametrize("cut", [1, 40, 200])
def test_a_cut_answer_is_no_answer(cut):
    with pytest.raises(UnreachableError):
        parse((row() + row(JobArrayID="8"))[:-cut])


def test_another_format_is_no_answer():
    with pytest.raises(UnreachableError, match="columns"):
        parse(f"1{SEP.field}RUNNING{SEP.record}\n")


def test_an_empty_answer_holds_no_jobs():
    assert parse("") == {}


def test_ids():
    rows = "".join(
        row(JobArrayID=i) for i in ("88_[1-10%1]", "88_0", "9+0", "9+1", "90", "91_3", "92_5")
    )
    jobs = parse(rows)
    assert jobs["88"].array_pending == "1-10%1"
    assert jobs["88_0"].job_id == JobId(88, 0)
    assert jobs["9+1"].job_id == JobId(9, None, 1)
    assert set(parse(rows, [JobId(88, 4), JobId(9), JobId(91, 3)])) == {
        "88_4",
        "9+0",
        "9+1",
        "91_3",
    }
    assert parse(rows, [JobId(88, 11), JobId(1)]) == {}
    assert set(parse(rows, [JobId(88)])) == {"88", "88_0"}


@pytest.mark.parametrize(
    ("cells", "gpus"),
    [
        ({"tres_alloc": "cpu=1,node=2", "tres_per_node": "gres:gpu:h100:4"}, 8),
        ({"tres_alloc": "cpu=1,node=2", "tres_per_node": "gres/gpu:h100=2"}, 4),
        ({"tres_alloc": "cpu=1", "tres_per_node": "N/A", "tres_per_job": "gres:gpu:6"}, 6),
        ({"tres_alloc": "N/A", "tres_per_node": "N/A"}, 0),
    ],
)
def test_gpus_asked_for(cells, gpus):
    keys = {"tres_alloc": "tres-alloc", "tres_per_node": "tres-per-node",
            "tres_per_job": "tres-per-job"}  # fmt: skip
    named = {**ROW, **{keys[k]: v for k, v in cells.items()}}
    text = SEP.field.join(named.values()) + SEP.record + "\n"
    assert parse(text)["7"].gpus == gpus


def test_times_that_are_none():
    status = parse(row(State="PENDING", StartTime="N/A", EndTime="N/A", TimeLimit="UNLIMITED",
                       Reason="Priority"))["7"]  # fmt: skip
    assert status.start_time is None
    assert status.end_time is None
    assert status.time_limit_s is None
    held = parse(row(State="PENDING", PriorityLong="0", Reason="BadConstraints"))["7"]
    assert held.start_time is None
    assert held.priority == 0


@pytest.mark.parametrize(
    ("status", "code"), [("0", (0, 0)), ("768", (3, 0)), ("15", (0, 15)), ("9", (0, 9))]
)
def test_exit_codes(status, code):
    assert parse(row(State="FAILED", exit_code=status))["7"].exit_code == code
    assert parse(row(State="PENDING", exit_code=status))["7"].exit_code is None


def test_separators_differ_each_time_and_fit_the_format():
    one, two = _squeue.Separators.new(), _squeue.Separators.new()
    assert {one.field, one.record} & {two.field, two.record} == set()
    option = _squeue.format_option(one)
    assert option.startswith(f"JobArrayID:{one.field},State:")
    assert option.endswith(f"Name:{one.record}")
    assert not one.field[0].isdigit()
    assert "," not in one.field


# ---- sacct


def sacct_row(**changes):
    cells = dict.fromkeys(_sacct.FIELDS, "")
    cells.update(
        JobID="7", State="COMPLETED", User="ann", NNodes="1", ExitCode="0:0", JobName="train",
        Submit="1795328253", Start="1795328260", End="1795328270", Timelimit="01:00:00",
        AllocTRES="cpu=1,gres/gpu=2", NodeList="n1",
    )  # fmt: skip
    cells.update(changes)
    return "".join(v + "_D_" for v in cells.values()) + "\n"


def sacct(text, *ids):
    return _sacct.parse(text, "_D_", [JobId.parse(i) for i in ids or ("7",)], observed_at=NOW)


@given(name=st.text(max_size=20))
def test_sacct_names_come_back(name):
    text = sacct_row(JobName=name, Comment=name + "x") + sacct_row(JobID="8")
    jobs = sacct(text, "7", "8")
    assert (jobs["7"].name, jobs["7"].comment) == (name, name + "x")
    assert jobs["8"].name == "train"


def test_sacct_gives_the_newest_run_and_counts_the_others():
    text = (
        sacct_row(State="COMPLETED", Submit="1795328400", Start="1795328410")
        + sacct_row(State="REQUEUED", Submit="1795328253")
        + sacct_row(State="PREEMPTED", Submit="1795328300")
    )
    status = sacct(text)["7"]
    assert status.state is JobState.COMPLETED
    assert status.restarts >= 1
    assert status.submit_time == dt.datetime.fromtimestamp(1795328400, dt.UTC)


def test_sacct_of_a_reused_id_is_the_newer_job():
    text = sacct_row(State="FAILED", User="bob", Submit="1795000000") + sacct_row()
    status = sacct(text)["7"]
    assert status.user == "ann"
    assert status.restarts == 0


def test_sacct_states_and_codes():
    text = sacct_row(State="CANCELLED by 1000", ExitCode="0:15", NodeList="None assigned")
    status = sacct(text)["7"]
    assert status.state is JobState.CANCELLED
    assert status.raw_state == "CANCELLED by 1000"
    assert status.exit_code == (0, 15)
    assert status.nodes == ""
    assert status.gpus == 2
    running = sacct(sacct_row(State="RUNNING", End="Unknown"))["7"]
    assert running.exit_code is None
    assert running.end_time is None


def test_sacct_filters_and_refuses_what_is_cut():
    text = sacct_row() + sacct_row(JobID="8") + sacct_row(JobID="9_[1-3%1]")
    assert set(sacct(text, "8")) == {"8"}
    assert sacct(text, "9")["9"].array_pending == "1-3%1"
    with pytest.raises(UnreachableError):
        sacct(text[:-30])
    assert sacct("") == {}


def test_sacct_asks_by_ids_or_by_user():
    few = _sacct.options([JobId(5, 1), JobId(5, 2), JobId(3)], NOW, "_D_", user=lambda: "ann")
    assert "--jobs=3,5" in few
    many = _sacct.options([JobId(n) for n in range(1, 200)], NOW, "_D_", user=lambda: "ann")
    assert "--user=ann" in many
    assert not [o for o in many if o.startswith("--jobs")]
