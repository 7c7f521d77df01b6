"""Slurm's reason words, told to people."""

import pytest

from hpcscale.reasons import explain, explain_end
from hpcscale.slurm.types import JobState


def test_why_a_job_waited_is_not_why_it_ended():
    assert explain("Resources", JobState.PENDING).startswith("waits for free nodes")
    for reason in ("Resources", "BadConstraints", "ReqNodeNotAvail, May be reserved"):
        assert not explain(reason, JobState.CANCELLED)
    assert explain("moved to lab-cloud:7", JobState.CANCELLED) == "moved to lab-cloud:7"


@pytest.mark.parametrize(
    ("state", "reason", "exit_code", "told"),
    [
        (JobState.FAILED, "NonZeroExitCode", 3, "exit 3"),
        (JobState.FAILED, "NonZeroExitCode", 98, "exit 98: its command was not started here"),
        (JobState.TIMEOUT, "TimeLimit", 0, "ran into its time limit"),
        (JobState.CANCELLED, "Priority", 0, ""),
        (JobState.COMPLETED, "None", 0, ""),
    ],
)
def test_an_end_is_told_by_its_exit_where_it_failed(state, reason, exit_code, told):
    text = explain_end(state, reason, exit_code, 0)
    assert text.startswith(told)
    assert bool(text) == bool(told)
