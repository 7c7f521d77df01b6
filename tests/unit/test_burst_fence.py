import datetime as dt

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpcscale.burst.fence import fence_nodes, restored, same_nodes, stands
from hpcscale.slurm.types import JobState, JobStatus, PartitionFacts, SiteFacts
from hpcscale.units import JobId, fold_hostlist

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


def test_the_fence_is_the_users_list_and_all_nodes_of_all_its_partitions():
    assert fence_nodes(status(partition="gpu", exc_nodes="x7"), FACTS) == "n[1-4],x7"
    assert fence_nodes(status(partition="gpu,big"), FACTS) == "b[1-2],n[1-4]"
    assert fence_nodes(status(partition="other"), FACTS) == ""


def test_a_fence_stands_when_slurm_names_all_its_nodes_in_any_spelling():
    assert stands(status(exc_nodes="n1,n2,n[3-4],x"), "n[1-4]")
    assert not stands(status(exc_nodes="n[1-3]"), "n[1-4]")
    assert not stands(status(exc_nodes="(null)"), "n[1-4]")


@pytest.mark.parametrize(
    ("current", "old", "expected"),
    [
        ("n[1-4]", "", ""),  # undo
        ("", "", ""),  # the controller had forgotten the fence
        ("n[1-4],x7", "n2,x7", "n2,x7"),
        ("n[1-4],x9", "n2", "n2,x9"),  # the user excluded another node meanwhile
    ],
)
def test_undo_sets_the_old_value_and_keeps_what_the_user_changed(current, old, expected):
    fence = fold_hostlist(sorted({"n1", "n2", "n3", "n4", *(["x7"] if "x7" in old else [])}))
    assert same_nodes(restored(current, old, fence), expected)


names = st.lists(st.sampled_from([f"n{i}" for i in range(8)]), unique=True).map(
    lambda found: fold_hostlist(sorted(found))
)


@given(old=names, partition=names.filter(bool))
def test_fence_and_undo_give_back_exactly_the_old_list(old, partition):
    facts = SiteFacts(
        version="",
        cluster="",
        partitions={"p": PartitionFacts(name="p", node_list=partition)},
        fetched_at=FACTS.fetched_at,
    )
    fence = fence_nodes(status(partition="p", exc_nodes=old), facts)
    assert stands(status(exc_nodes=fence), partition)
    assert restored(fence, old, fence) == old
