"""Functions that may move to another site, on two faked ones."""

import msgspec
import pytest
from fake_executor import SOFTWARE, spec_of

from hpcscale.connect import Connection
from hpcscale.executor import (
    HpcscaleJob,
    watch,
)
from hpcscale.ledger import Ledger, Role
from hpcscale.render import burst_blockers, render
from hpcscale.site import load_site
from hpcscale.slurm.cli import CliClient
from hpcscale.submit import submit
from hpcscale.testing import FakeSlurm

pytestmark = pytest.mark.usefixtures("fresh_registries")


def moved(executor, slurm, tmp_path, *, says=True, state=None):
    """A function whose run has a second attempt, at lab-cloud; what the handover writes."""
    executor.update_parameters(burst="auto")
    job = executor.submit(len, "abc")
    cloud = load_site(
        "lab-cloud", [f"state_dir={tmp_path / 'cloud'}", 'transport.kind="local"']
    ).site
    there = FakeSlurm()
    there._next = 40
    connection = Connection(site=cloud, transport=there, client=CliClient(there), clock=there.clock)
    watch.watcher_of("lab-cloud").use(connection)
    with Ledger.open() as ledger:
        origin = ledger.attempt(job.submission_id)
        run = ledger.run(origin.run_id)
        spec = msgspec.structs.replace(
            run.spec, outputs={"submitit": f"{executor.folder}/lab-cloud/"}
        )
        submission = submit(
            render(spec, cloud), cloud, connection, ledger, run=run, role=Role.BURST
        )
        if says:
            ledger.event(
                run.run_id, "attempt.handed_over", {"to": str(submission.ref)},
                submission_id=origin.submission_id,
            )  # fmt: skip
        if state is not None:
            there.jobs[40].state = state
            for status in connection.client.jobs([submission.ref.job_id]).jobs.values():
                ledger.record_status(submission.attempt, status)
    return job, there, submission


def test_a_job_becomes_the_one_that_took_over(executor, slurm, tmp_path):
    job, there, heir = moved(executor, slurm, tmp_path)
    there.jobs[40].state = "RUNNING"
    assert (job.state, job.site, job.job_id) in {
        ("RUNNING", "lab-cloud", "40"), ("COMPLETED", "lab-cloud", "40")
    }  # fmt: skip
    assert job.submission_id == heir.submission_id
    assert job.paths.folder == executor.folder / "lab-cloud"
    assert job.submission().args == ("abc",)
    again = HpcscaleJob(executor.folder / "lab-cloud", "40")
    assert (again.site, again.submission_id) == ("lab-cloud", heir.submission_id)


def test_a_job_that_gave_way_is_not_done_before_it_is_known_to_what(executor, slurm, tmp_path):
    job, _there, _ = moved(executor, slurm, tmp_path, says=False)
    slurm.jobs[int(job.job_id)].state = "CANCELLED"
    assert not job.done(force_check=True)
    assert job.site == "lab-onprem"


def test_an_attempt_that_ended_well_is_the_one_even_if_nobody_says_so(executor, slurm, tmp_path):
    job, _, heir = moved(executor, slurm, tmp_path, says=False, state="COMPLETED")
    assert job.state == "COMPLETED"
    assert job.ref == heir.ref


def test_an_attempt_that_failed_to_start_is_not_followed(executor, slurm, tmp_path):
    job, _, _ = moved(executor, slurm, tmp_path, says=False, state="CANCELLED")
    slurm.jobs[int(job.job_id)].state = "FAILED"
    assert job.done(force_check=True)
    assert (job.state, job.site) == ("FAILED", "lab-onprem")


def test_what_may_not_move_asks_nothing(executor, monkeypatch):
    job = executor.submit(len, "abc")
    job.done()
    monkeypatch.setattr(Ledger, "attempts", lambda *_: pytest.fail("asked"))
    job.done(force_check=True)
    assert job.state in {"PENDING", "RUNNING", "COMPLETED"}


def test_a_function_that_may_burst_names_nothing_of_this_machine(executor, monkeypatch):
    """Else the handover refuses it: an absolute path that is not declared."""
    monkeypatch.setattr("hpcscale.executor.require_same_python", lambda *_: None)
    executor.update_parameters(software="lab-python", gpus_per_node=1)
    staying, _ = spec_of(executor)
    assert "PYTHONPATH" in staying.env
    moving, _ = spec_of(executor, burst="auto")
    assert "PYTHONPATH" not in moving.env
    cloud = load_site("lab-cloud", [SOFTWARE]).site
    assert burst_blockers(moving, cloud) == []


def test_a_function_that_cannot_move_for_its_python_says_so(executor, caplog):
    executor.update_parameters(burst="auto")
    executor.submit(len, "abc")
    assert "hpcscale_software=NAME" in caplog.text
