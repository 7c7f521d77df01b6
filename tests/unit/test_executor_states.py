"""States, cancelling and logs of the executor's jobs, on a faked site."""

import pytest
from fake_executor import submitted
from submitit.core import utils

from hpcscale.errors import (
    NotThisJobError,
    UnreachableError,
)
from hpcscale.executor import (
    HpcscaleJob,
    watch,
)
from hpcscale.slurm.states import job_state
from hpcscale.slurm.types import Answer, JobState, JobStatus
from hpcscale.units import JobId

pytestmark = pytest.mark.usefixtures("fresh_registries")


def report_end(executor, job, code):
    path = f"{job.run_dir}/events/{job.submission_id}.0.ended"
    text = f'{{"event":"ended","job":"{job.job_id}","exit_code":{code},"requeued":false,"time":1}}'
    executor.connection.transport.put_bytes(text.encode(), path)


NOT_OVER = [
    "PENDING",
    "RUNNING",
    "CONFIGURING",
    "COMPLETING",
    "SUSPENDED",
    "STOPPED",
    "SIGNALING",
    "RESIZING",
    "STAGE_OUT",
    "PREEMPTED",
    "REQUEUED",
    "REQUEUE_FED",
    "REQUEUE_HOLD",
    "RESV_DEL_HOLD",
    "SPECIAL_EXIT",
    "UNKNOWN",
    "SOMETHING_NEW",
]


OVER = [
    "COMPLETED",
    "FAILED",
    "CANCELLED",
    "TIMEOUT",
    "OUT_OF_MEMORY",
    "NODE_FAIL",
    "BOOT_FAIL",
    "DEADLINE",
    "REVOKED",
]


@pytest.mark.parametrize("word", ["", *NOT_OVER, *OVER])
def test_a_job_is_over_in_the_states_of_a_list_and_in_no_other(executor, monkeypatch, word):
    """submitit's own watcher takes what it does not know for an end."""
    job = submitted(executor)
    said = JobStatus(job_id=JobId.parse(job.job_id), state=job_state(word), raw_state=word)
    monkeypatch.setattr(job.watcher, "_info_dict", {job.job_id: watch._info([said])})
    assert job.watcher.is_done(job.job_id, mode="cache") is (word in OVER)


@pytest.mark.parametrize("kept", [True, False], ids=["slurmdbd", "no slurmdbd"])
def test_a_preempted_job_is_over_once_squeue_lists_it_no_more(executor, slurm, monkeypatch, kept):
    """PreemptMode=CANCEL; one that is requeued is listed again."""
    slurm.advance(1)
    job = submitted(executor)
    number = JobId.parse(job.job_id)
    slurm.jobs[number.base].state = "PREEMPTED"
    assert not job.done(force_check=True)
    assert job.watcher.get_state(job.job_id, mode="cache") == "PREEMPTED"
    said = JobStatus(job_id=number, state=JobState.PREEMPTED, raw_state="PREEMPTED")
    older = Answer({str(number): said} if kept else {}, complete=True)
    monkeypatch.setattr(job.watcher.connection.client, "history", lambda *_, **__: older)
    del slurm.jobs[number.base]
    job.watcher._last_status_check = 0  # two questions within a millisecond are one
    assert job.done(force_check=True)
    assert job.state == "PREEMPTED"


def test_one_question_for_all_jobs_of_a_site(executor, slurm):
    slurm.advance(1)
    jobs = [submitted(executor) for _ in range(5)]
    slurm.calls.clear()
    jobs[0].watcher.update()
    states = {job.watcher.get_state(job.job_id, mode="cache") for job in jobs}
    assert states <= {"PENDING", "RUNNING"}
    assert sum("squeue" in call[0] for call in slurm.calls) == 1
    assert len({id(job.watcher) for job in jobs}) == 1


def test_no_answer_is_no_end(executor, slurm):
    job = submitted(executor)
    job.watcher.update()
    before = job.state
    assert before in {"PENDING", "RUNNING"}
    slurm.stop()
    assert not job.done(force_check=True)
    assert job.state == before


def test_a_failed_script_is_a_failed_job(executor, slurm):
    job = submitted(executor, command=("sh", "-c", "exit 3"))
    report_end(executor, job, 3)
    slurm.jobs.clear()  # forgotten, as by a Slurm without slurmdbd
    assert job.done(force_check=True)
    assert job.outcome() == {"ref": str(job.ref), "state": "FAILED", "exit_code": 3}
    assert isinstance(job.exception(), utils.FailedJobError)
    with pytest.raises(utils.FailedJobError, match="exit code 3"):
        job.result()


def test_a_forgotten_job_without_a_report_is_not_done(executor, slurm):
    job = submitted(executor)
    slurm.jobs.clear()
    assert not job.done(force_check=True)
    assert job.state == "UNKNOWN"


def test_cancel_ends_it_and_spares_a_stranger(executor, slurm):
    job = submitted(executor)
    job.cancel()
    job.watcher.update()
    assert job.state == "CANCELLED"
    again = submitted(executor)
    slurm.jobs[int(again.job_id)].comment = "somebody else's"
    with pytest.raises(NotThisJobError):
        again.cancel()
    again.cancel(check=False)
    assert slurm.jobs[int(again.job_id)].state in {"PENDING", "RUNNING"}


def test_a_job_that_an_earlier_program_cancelled_while_it_waited_is_cancelled(
    executor, slurm, monkeypatch
):
    for _ in slurm.node_names:
        submitted(executor)
    executor.update_parameters(time=60)
    alone, array = executor.submit(len, "abc"), executor.map_array(len, ["a", "b"])
    for job in (alone, array[1]):
        assert job.get_info()["State"] == "PENDING"
        job.cancel()
    connection = executor.connection
    monkeypatch.setattr(watch, "_WATCHERS", {})  # that program has exited
    watch.watcher_of(executor.site).use(connection)
    slurm.jobs = {n: j for n, j in slurm.jobs.items() if j.base != int(alone.job_id)}  # MinJobAge
    for job, state in ((alone, "CANCELLED"), (array[0], "PENDING"), (array[1], "CANCELLED")):
        again = HpcscaleJob(executor.folder, job.job_id)
        assert again.get_info()["State"] == state
        assert again.done(force_check=True) is (state == "CANCELLED")
    with pytest.raises(utils.UncompletedJobError, match="CANCELLED"):
        HpcscaleJob(executor.folder, alone.job_id).result()


def test_cancel_without_an_answer_says_so(executor, slurm):
    job = submitted(executor)
    slurm.stop()
    with pytest.raises(UnreachableError):
        job.cancel()


def test_the_log_is_read_from_the_site(executor):
    job = submitted(executor)
    assert job.stdout() is None
    log = f"{job.run_dir}/logs/{job.job_id}.log"
    executor.connection.transport.put_bytes(b"epoch 1\n", log)
    assert job.stdout() == "epoch 1\n"
    assert job.stderr() is None
