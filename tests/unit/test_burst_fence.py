import datetime as dt

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpcscale.burst.fence import (
    Lists,
    fence_nodes,
    noted,
    stands,
    union,
    with_note,
    without_note,
)
from hpcscale.slurm.types import JobState, JobStatus, PartitionFacts, SiteFacts
from hpcscale.units import JobId, fold_hostlist
from hpcscale.verify import submission_of

FACTS = SiteFacts(
    version="22.05.8",
    cluster="lab",
    partitions={
        "gpu": PartitionFacts(name="gpu", node_list="n[1-4]"),
        "big": PartitionFacts(name="big", node_list="b[1-2]"),
    },
    fetched_at=dt.datetime(2026, 1, 1, tzinfo=dt.UTC),
)


def status(**kw):
    return JobStatus(job_id=JobId(1), state=JobState.PENDING, raw_state="PENDING", **kw)


def test_the_fence_is_all_nodes_of_all_its_partitions():
    assert fence_nodes(status(partition="gpu", exc_nodes="x7"), FACTS) == "n[1-4]"
    assert fence_nodes(status(partition="gpu,big"), FACTS) == "b[1-2],n[1-4]"
    assert fence_nodes(status(partition="other"), FACTS) == ""


def test_a_fence_stands_when_slurm_names_all_its_nodes_in_any_spelling():
    assert stands(status(exc_nodes="n1,n2,n[3-4],x"), "n[1-4]")
    assert not stands(status(exc_nodes="n[1-3]"), "n[1-4]")
    assert not stands(status(exc_nodes="(null)"), "n[1-4]")


@pytest.mark.parametrize(
    ("current", "user", "own"),
    [
        ("n[1-4]", "", ""),
        ("", "", ""),  # the controller had forgotten the fence
        ("n[1-4],x7", "n2,x7", "n2,x7"),
        ("n2,x7", "n2,x7", "n2,x7"),
        ("n[1-4],x9", "n2", "n2,x9"),  # the user excluded another node besides
        ("n1", "", "n1"),  # or wrote a list of their own over the fence
        ("", "n2", ""),
        ("n[1-3]", "n2", "n[1-3]"),
    ],
)
def test_what_its_user_wrote_over_a_fence_is_known(current, user, own):
    assert Lists(user=user, fence="n[1-4]").users_own(current) == own


def test_blamed_nodes_are_neither_the_users_nor_the_fences():
    lists = Lists(user="n2", blamed="n3", fence="n[1-4]")
    assert (lists.fenced, lists.lifted) == ("n[1-4]", "n[2-3]")
    assert lists.users_own("n[1-4]") == "n2"
    assert lists.users_own("n[2-3]") == "n2"
    assert Lists(user="n2", blamed="x1", fence="n[1-4]").fenced == "n[1-4],x1"


names = st.lists(st.sampled_from([f"n{i}" for i in range(8)]), unique=True).map(
    lambda found: fold_hostlist(sorted(found))
)


@given(user=names, blamed=names, fence=names.filter(bool))
def test_fence_and_undo_give_back_exactly_the_users_list(user, blamed, fence):
    lists = Lists(user=user, blamed=blamed, fence=fence)
    assert stands(status(exc_nodes=lists.fenced), fence)
    assert lists.users_own(lists.fenced) == user
    assert union(lists.lifted) == union(user, blamed)


def test_the_note_stands_behind_our_submission_id_and_goes_without_a_trace():
    sid = "hs-0123456789abcdef"
    comment = f"mine, hpcscale burst undo me;hpcscale={sid}"
    fenced = with_note(comment, "lab-cloud", "rabc")
    assert fenced == (
        f"{comment}; fenced, as it moves to lab-cloud: to undo, hpcscale burst undo rabc"
    )
    assert submission_of(fenced) == sid
    assert noted(fenced) == ("lab-cloud", "rabc")
    assert with_note(fenced, "lab-cloud", "rabc") == fenced
    assert without_note(fenced) == comment
    assert without_note(f"{fenced} and this") == f"{comment} and this", "its user's own words stay"
    assert (noted(comment), with_note("no job of ours", "x", "y")) == (None, "no job of ours")
