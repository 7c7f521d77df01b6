"""Submit: a row before sbatch, nothing left of what was refused, nothing submitted twice."""

import re
import stat
from pathlib import Path

import pytest
from fake_site import FakeSite

from hpcscale.after import resolve_dependency
from hpcscale.errors import (
    InvalidFileError,
    NotFoundError,
    NotSentError,
    RefusedError,
    SubmitUnknownError,
    UsageError,
)
from hpcscale.ledger import Role
from hpcscale.slurm.types import JobState, JobStatus
from hpcscale.spec import JobSpec, Resources, Script, SecretSource
from hpcscale.submit import log_notices, submit
from hpcscale.units import JobId
from hpcscale.verify import comment_with, submission_of

UGLY = "a'b\"\n$(touch /tmp/x)`id`;--\x1b[31m%s\\"


@pytest.fixture
def site(tmp_path):
    made = FakeSite(tmp_path)
    yield made
    made.ledger.close()


def sbatch_call(site):
    return next(c for c in reversed(site.slurm.calls) if c[0].endswith("sbatch"))


def test_what_submit_gives(site):
    got = site.submit(name=UGLY, array="0-3")
    assert str(got.ref) == "onprem:1"
    assert got.array_size == 4
    assert got.script.startswith("#!/bin/bash")
    assert re.fullmatch(r"hs-[0-9a-f]{16}", got.submission_id)
    attempt = site.ledger.find(got.run_id)
    assert attempt.state is JobState.PENDING
    assert attempt.script == got.script
    assert site.ledger.run(got.run_id).name == UGLY


def test_sbatch_gets_what_belongs_to_this_submission(site):
    got = site.submit()
    call = sbatch_call(site)
    assert f"--comment=hpcscale={got.submission_id}" in call
    assert f"--output={got.run_dir}/logs/%j.log" in call
    assert "--open-mode=append" in call
    assert f"--chdir={got.run_dir}" in call
    assert call[-2:] == (got.submission_id, got.run_dir)


def test_an_array_gets_a_log_for_each_element(site):
    got = site.submit(array="0-3")
    assert f"--output={got.run_dir}/logs/%A_%a.log" in sbatch_call(site)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"comment": "mine"}, "mine;hpcscale="),
        ({"directives": {"comment": "theirs"}}, "theirs;hpcscale="),
        (
            {"script": Script(path="x", text="", directives=((2, "comment", "in script"),))},
            "in script;hpcscale=",
        ),
        ({}, "hpcscale="),
    ],
)
def test_the_users_comment_is_kept(site, fields, expected):
    got = site.submit(**fields)
    assert f"--comment={expected}{got.submission_id}" in sbatch_call(site)
    assert submission_of(got.attempt.comment) == got.submission_id


def test_the_submission_id_is_found_in_a_comment_of_any_kind():
    own = "hs-0123456789abcdef"
    assert submission_of(comment_with("hpcscale=hs-aaaaaaaaaaaaaaaa", own)) == own
    assert submission_of("") is None
    assert submission_of("hpcscale=hs-short") is None


def test_the_run_directory_is_the_users_own(site):
    got = site.submit()
    assert stat.S_IMODE(Path(got.run_dir).stat().st_mode) == 0o700
    for name in ("logs", "events", "inputs", "outputs", "script.sh"):
        assert Path(f"{got.run_dir}/{name}").exists()
    assert Path(got.run_dir, "script.sh").read_text() == got.script


def test_the_row_stands_before_sbatch_is_called(site, monkeypatch):
    seen = []

    def killed(*args, **kwargs):
        seen.extend(site.ledger.open_attempts())
        raise KeyboardInterrupt

    monkeypatch.setattr(site.connection.client, "sbatch", killed)
    with pytest.raises(KeyboardInterrupt):
        site.submit()
    assert [a.state for a in seen] == [JobState.SUBMITTING]
    assert site.ledger.open_attempts()[0].state is JobState.SUBMIT_UNKNOWN


def test_an_interrupt_before_sbatch_leaves_nothing_and_says_so(site, monkeypatch):
    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr("hpcscale.staging.stage_in", interrupted)
    with pytest.raises(KeyboardInterrupt):
        site.submit()
    (attempt,) = site.ledger.all_attempts()
    assert (attempt.state, attempt.reason) == (JobState.REFUSED, "not submitted: interrupted")
    assert list((site.state_dir / "runs").iterdir()) == []


def test_a_refusal_leaves_nothing_but_a_row(site):
    with pytest.raises(RefusedError) as caught:
        site.submit(resources=Resources(nodes=1, gpus_per_node=99))
    assert caught.value.exit_code == 4
    (attempt,) = site.ledger.all_attempts()
    assert attempt.state is JobState.REFUSED
    assert attempt.ended
    assert attempt.reason
    assert list((site.state_dir / "runs").iterdir()) == []


def test_a_refused_second_attempt_keeps_the_results_of_the_first(site):
    first = site.submit()
    run = site.ledger.run(first.run_id)
    with pytest.raises(RefusedError):
        site.submit(run=run, resources=Resources(nodes=1, gpus_per_node=99))
    assert Path(f"{first.run_dir}/script.sh").exists()
    assert [a.state for a in site.ledger.attempts(run.run_id)] == [
        JobState.PENDING,
        JobState.REFUSED,
    ]


def test_a_controller_that_is_down_leaves_nothing_open(site):
    site.slurm.stop()
    with pytest.raises(NotSentError):
        site.submit()
    assert site.ledger.open_attempts() == []
    assert list((site.state_dir / "runs").iterdir()) == []


def test_a_lost_answer_is_unknown_found_later_and_never_repeated(site):
    site.slurm.lose_next_submit_answer()
    with pytest.raises(SubmitUnknownError, match="may or may not exist") as caught:
        site.submit()
    assert "do not submit again" in (caught.value.hint or "")
    (attempt,) = site.ledger.open_attempts()
    assert (attempt.state, attempt.job_id) == (JobState.SUBMIT_UNKNOWN, None)
    site.observe()
    attempt = site.ledger.attempt(attempt.submission_id)
    assert attempt.job_id == JobId(1)
    assert attempt.state is JobState.RUNNING
    assert site.count("sbatch") == 1


def test_a_further_attempt_belongs_to_its_run(site):
    first = site.submit()
    run = site.ledger.run(first.run_id)
    second = submit(
        site.rendered(), site.site, site.connection, site.ledger, run=run, role=Role.BURST
    )
    assert second.run_id == first.run_id
    assert second.submission_id != first.submission_id
    assert second.attempt.number == 2
    assert second.attempt.role is Role.BURST


# --- secrets


def secret(kind, name):
    return {"TOKEN": SecretSource(kind=kind, name=str(name))}


@pytest.mark.parametrize("kind", ["env", "file"])
def test_a_secret_travels_as_a_file_and_stands_nowhere_else(site, tmp_path, monkeypatch, kind):
    value = "s3cr3t-value-of-mine"
    monkeypatch.setenv("MY_TOKEN", value)
    (tmp_path / "token").write_text(value)
    got = site.submit(secrets=secret(kind, "MY_TOKEN" if kind == "env" else tmp_path / "token"))
    path = f"{got.run_dir}/secrets/{got.submission_id}/TOKEN"
    assert stat.S_IMODE(Path(path).stat().st_mode) == 0o600
    assert Path(path).read_text() == value
    assert value not in " ".join(" ".join(c) for c in site.slurm.calls)
    assert value.encode() not in site.ledger.path.read_bytes()


@pytest.mark.parametrize("kind", ["env", "file"])
def test_a_missing_secret_stops_everything(site, tmp_path, kind):
    with pytest.raises(NotFoundError, match="TOKEN") as caught:
        site.submit(secrets=secret(kind, "NOT_SET" if kind == "env" else tmp_path / "none"))
    assert caught.value.hint
    assert site.ledger.runs() == []
    assert site.slurm.calls == []


def test_an_empty_secret_is_refused(site, tmp_path):
    (tmp_path / "token").write_text("\n")
    with pytest.raises(InvalidFileError, match="TOKEN"):
        site.submit(secrets=secret("file", tmp_path / "token"))


def test_secrets_of_a_job_that_never_started_are_removed(site, monkeypatch):
    monkeypatch.setenv("MY_TOKEN", "abc")
    blocker = [site.submit(resources=Resources(nodes=4, gpus_per_node=4))]
    got = site.submit(secrets=secret("env", "MY_TOKEN"))
    path = f"{got.run_dir}/secrets/{got.submission_id}"
    assert Path(path).exists()
    site.connection.client.cancel(got.ref.job_id)
    assert site.see(got).state is JobState.CANCELLED
    assert not Path(path).exists()
    assert Path(blocker[0].run_dir).exists()


def test_logs_that_an_option_names_are_told_to_be_elsewhere():
    spec = JobSpec(command=("true",), directives={"output": "/tmp/x", "nice": "3"})
    (text,) = log_notices(spec, "/run")
    assert text.startswith("the option --output=/tmp/x is not used: ")
    assert log_notices(JobSpec(command=("true",)), "/run") == ()


# --- dependencies


def dependency(site, *after, **fields):
    spec = JobSpec(command=("true",), after=after, **fields)
    return resolve_dependency(spec, "onprem", site.ledger)


def test_dependencies_name_slurms_ids(site):
    first, second = site.submit(name="first"), site.submit(name="second")
    for text in (first.run_id, "onprem:1", "1", "first"):
        assert dependency(site, text) == ("afterok:1", ())
    assert dependency(site, f"afterany:{second.run_id}", "singleton")[0] == "afterany:2,singleton"
    assert dependency(site, "afterok:onprem:1:onprem:2")[0] == "afterok:1,afterok:2"
    assert dependency(site, "aftercorr:onprem:1_3")[0] == "aftercorr:1_3"
    assert dependency(site, "afterany:777")[0] == "afterany:777"  # not of ours


def test_a_dependency_joins_the_users_own(site):
    site.submit()
    assert dependency(site, "1", directives={"dependency": "singleton"})[0] == "singleton,afterok:1"
    assert dependency(site, directives={"dependency": "afterok:1"})[0] == "afterok:1"


def test_a_dependency_on_another_site_is_refused(site):
    with pytest.raises(UsageError, match="cloud"):
        dependency(site, "afterok:cloud:5")
    with pytest.raises(UsageError, match="no job"):
        dependency(site, "afterok:nothing")


def test_an_ended_job_satisfies_or_forbids(site):
    good, bad = site.submit().attempt, site.submit().attempt
    for attempt, state in ((good, JobState.COMPLETED), (bad, JobState.FAILED)):
        assert attempt.job_id is not None
        status = JobStatus(job_id=attempt.job_id, state=state, raw_state=state.value)
        site.ledger.record_status(attempt, status)
    text, notices = dependency(site, f"afterok:{good.run_id}")
    assert text is None
    assert "COMPLETED" in notices[0]
    assert dependency(site, f"afterany:{bad.run_id}")[0] is None
    with pytest.raises(RefusedError, match="never be satisfied"):
        dependency(site, f"afterok:{bad.run_id}")
