"""The state table."""

import pytest

from hpcscale.slurm.states import job_state
from hpcscale.slurm.types import JobState as S
from hpcscale.slurm.types import in_array


@pytest.mark.parametrize(
    ("raw", "state"),
    [
        ("PENDING", S.PENDING),
        ("PD", S.PENDING),
        ("R", S.RUNNING),
        ("running", S.RUNNING),
        ("CANCELLED by 1000", S.CANCELLED),
        ("CANCELLED+", S.CANCELLED),
        ("CA", S.CANCELLED),
        ("COMPLETED", S.COMPLETED),
        ("CD", S.COMPLETED),
        ("COMPLETING", S.COMPLETING),
        ("CG", S.COMPLETING),
        ("RUNNING,COMPLETING", S.COMPLETING),
        ("COMPLETED+COMPLETING", S.COMPLETING),
        ("FAILED COMPLETING", S.COMPLETING),
        ("PENDING,REQUEUED", S.REQUEUED),
        ("RQ", S.REQUEUED),
        ("REQUEUE_HOLD", S.PENDING),
        ("SPECIAL_EXIT", S.PENDING),
        ("RV", S.REVOKED),
        ("CF", S.CONFIGURING),
        ("RUNNING,CONFIGURING", S.CONFIGURING),
        ("TO", S.TIMEOUT),
        ("OOM", S.OUT_OF_MEMORY),
        ("NF", S.NODE_FAIL),
        ("BF", S.BOOT_FAIL),
        ("DL", S.DEADLINE),
        ("PR", S.PREEMPTED),
        ("S", S.SUSPENDED),
        ("ST", S.SUSPENDED),
        ("STOPPED", S.SUSPENDED),
        ("", S.UNKNOWN),
        ("WHATEVER", S.UNKNOWN),
        ("RUNNING,WHATEVER", S.RUNNING),
        ("RUNNING,FAILED", S.UNKNOWN),
        ("by", S.UNKNOWN),
    ],
)
def test_the_table(raw, state):
    assert job_state(raw) is state
    assert job_state(raw) is state  # remembered


def test_every_word_of_ours_is_slurms_or_declared_ours():
    ours = {S.SUBMITTING, S.SUBMIT_UNKNOWN, S.REFUSED, S.UNKNOWN}
    for state in S:
        assert job_state(state.value) is (S.UNKNOWN if state in ours else state)


def test_terminal_and_active_exclude_each_other():
    assert not [s for s in S if s.terminal and s.active]
    assert not S.PREEMPTED.terminal
    assert not S.UNKNOWN.terminal
    assert not S.UNKNOWN.active


@pytest.mark.parametrize(
    ("pending", "task", "held"),
    [
        ("1-10%1", 10, True),
        ("1-10%1", 11, False),
        ("0,2,5-9:2", 7, True),
        ("0,2,5-9:2", 6, False),
        ("", 0, False),
        ("1-3,...", 2, True),
        ("1-3,...", 9, False),
    ],
)
def test_in_array(pending, task, held):
    assert in_array(pending, task) is held
