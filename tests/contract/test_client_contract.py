"""What every SlurmClient does; the fake and real Slurm run the same tests."""

import contextlib
import datetime as dt

import pytest

from hpcscale.errors import NotFoundError, RefusedError
from hpcscale.slurm.types import JobState
from hpcscale.units import JobId

NASTY_NAMES = [
    "a|b\tc",
    "new\nline JobId=1 JobState=COMPLETED",
    "$(touch /tmp/pwned) `x` \"q\" 'q'",
    "\x1f\x1e unit % %i %%",
    "(null)",
    "ünïcödé 名前",
]


@pytest.mark.parametrize("name", NASTY_NAMES)
def test_names_and_comments_come_back_as_they_were(place, name):
    comment = f"{name};hpcscale=hs-0123456789abcdef" if name != "(null)" else "x"
    job = place.submit(f"--job-name={name}", f"--comment={comment}", "--hold")
    status = place.client.jobs([job]).jobs[str(job)]
    assert status.name == name
    assert status.comment == comment
    assert status.job_id == job
    assert status.state is JobState.PENDING
    shown = place.client.show(job)
    assert (shown.name, shown.comment) == (name, comment)


def test_a_job_is_told_with_all_its_fields(place):
    before = place.client.now()
    job = place.submit("--nodes=2", "--gpus-per-node=2", "--time=10")
    status = place.client.show(job)
    assert status.user
    assert status.partition == "gpu"
    assert status.num_nodes == 2
    assert status.gpus == 4
    assert status.time_limit_s == 600
    assert status.restarts == 0
    assert status.exit_code is None
    assert status.source == "squeue"
    assert before - dt.timedelta(seconds=2) <= status.submit_time
    assert status.submit_time <= place.client.now() + dt.timedelta(seconds=2)
    assert status.submit_time.tzinfo is dt.UTC
    assert status.observed_at.tzinfo is dt.UTC


@pytest.mark.mostly_waits
def test_a_job_runs_and_ends_with_its_exit_code(place):
    job = place.submit(script="sleep 1\nexit 3")
    status = place.until_state(job, JobState.FAILED)
    assert status.exit_code == (3, 0)
    assert status.raw_state == "FAILED"
    assert status.start_time <= status.end_time
    assert status.nodes
    good = place.submit(script="exit 0")
    assert place.until_state(good, JobState.COMPLETED).exit_code == (0, 0)


def test_an_unknown_job_is_absent_not_completed(place):
    ghost = JobId(999_999)
    assert place.client.show(ghost) is None
    answer = place.client.jobs([ghost])
    assert answer.jobs == {}
    assert answer.complete
    assert place.client.jobs([ghost, JobId(999_998)]).jobs == {}
    assert place.client.jobs([]).jobs == {}


def test_one_query_answers_for_many_ids_and_no_others(place):
    jobs = [place.submit("--hold", "--gpus-per-node=1") for _ in range(3)]
    asked = [jobs[0], jobs[2], JobId(999_999)]
    assert set(place.client.jobs(asked).jobs) == {str(jobs[0]), str(jobs[2])}
    assert {str(j) for j in jobs} <= set(place.client.jobs().jobs)


def test_the_pending_rest_of_an_array(place):
    array = place.submit("--array=0-7%2", "--hold")
    answer = place.client.jobs([array])
    assert answer.jobs[str(array)].array_pending == "0-7%2"
    assert answer.jobs[str(array)].state is JobState.PENDING
    element = JobId(array.base, 5)
    told = place.client.jobs([element, JobId(999_999)]).jobs
    assert list(told) == [str(element)]
    assert told[str(element)].array_pending == ""
    assert [s.job_id for s in answer.of(element)] == [element]
    assert answer.of(JobId(array.base, 8)) == []
    assert place.client.show(element).job_id == element


def test_every_element_counts_against_the_controllers_limit(place):
    assert int(place.client.facts().config["MaxJobCount"]) >= 1000
    before = place.client.job_count()
    place.submit("--hold")
    place.submit("--hold", "--array=0-9%2")
    assert place.client.job_count() == before + 11


@pytest.mark.mostly_waits
def test_elements_of_an_array_run_and_end_on_their_own(place):
    array = place.submit("--array=1-3%1", "--gpus-per-node=1")
    first = JobId(array.base, 1)
    place.until_state(first, JobState.RUNNING)
    answer = place.client.jobs([array])
    assert answer.jobs[str(first)].state is JobState.RUNNING
    assert answer.jobs[str(array)].array_pending == "2-3%1"
    assert {s.job_id for s in answer.of(array)} == {first, array}
    assert place.client.show(array).state is JobState.PENDING
    third = JobId(array.base, 3)
    assert place.client.cancel(third)
    place.until(lambda: str(third) not in place.client.jobs([third]).jobs, "gone")
    # without accounting nobody remembers an element that was cancelled before it had a record
    assert place.client.show(third) is None
    assert place.client.cancel(first)
    assert place.until_state(first, JobState.CANCELLED)
    place.until_state(JobId(array.base, 2), JobState.RUNNING)


@pytest.mark.mostly_waits
def test_cancel_a_pending_and_a_running_job(place):
    held = place.submit("--hold")
    assert place.client.cancel(held, pending_only=True)
    assert place.until_state(held, JobState.CANCELLED).start_time
    running = place.submit(script="echo up; exec sleep 300" if place.real else "sleep 300")
    place.until_state(running, JobState.RUNNING)
    if place.real:  # RUNNING comes before the script: cancelled between them, it ends otherwise
        out = ["cat", f"{place.dir}/out-{running}"]
        place.until(lambda: "up" in place.transport.run(out).stdout, "the script runs")
    place.client.cancel(running, pending_only=True)
    assert place.state(running) is JobState.RUNNING
    assert place.client.cancel(running)
    assert place.until_state(running, JobState.CANCELLED).exit_code == (0, 15)
    place.client.cancel(running)  # again: no harm
    place.client.cancel(JobId(999_999))


@pytest.mark.mostly_waits
def test_the_fence_holds_a_pending_job_and_is_refused_by_a_running_one(place):
    nodes = ",".join(place.client.facts().partitions["gpu"].node_list.split())
    job = place.submit("--hold")
    assert place.client.update(job, {"ExcNodeList": nodes})
    assert place.client.show(job).exc_nodes == nodes
    assert place.client.update(job, {"ExcNodeList": ""})
    assert place.client.show(job).exc_nodes == ""
    running = place.submit()
    place.until_state(running, JobState.RUNNING)
    assert not place.client.update(running, {"ExcNodeList": nodes})
    assert place.client.show(running).exc_nodes == ""
    assert not place.client.update(JobId(999_999), {"ExcNodeList": nodes})


def test_the_fence_of_an_array_that_has_begun_is_of_those_that_wait(place):
    nodes = place.client.facts().partitions["gpu"].node_list
    array = place.submit("--array=1-3%1", "--gpus-per-node=1")
    first = JobId(array.base, 1)
    place.until_state(first, JobState.RUNNING)
    place.client.update(array, {"ExcNodeList": nodes})  # refused for the first alone
    assert place.client.show(array).exc_nodes == nodes
    assert place.client.show(first).exc_nodes == ""
    place.client.update(array, {"ExcNodeList": ""})
    assert place.client.show(array).exc_nodes == ""


@pytest.mark.parametrize(
    ("kind", "code", "runs"),
    [("afterok", 0, True), ("afterok", 3, False), ("afternotok", 3, True), ("afterany", 3, True)],
)
def test_a_job_waits_for_the_end_of_another(place, kind, code, runs):
    first = place.submit("--hold", script=f"exit {code}")
    after = place.submit(f"--dependency={kind}:{first}", script="exit 0")
    status = place.until(
        lambda: (s := place.client.show(after)).reason == "Dependency" and s, "it waits"
    )
    assert status.state is JobState.PENDING
    assert status.dependency == f"{kind}:{first}(unfulfilled)"
    assert place.client.release(first)
    place.until_state(first, JobState.COMPLETED, JobState.FAILED)
    if runs:
        status = place.until_state(after, JobState.COMPLETED)
        assert status.dependency in {"", "(null)"}
        return
    status = place.until(
        lambda: (s := place.client.show(after)).reason == "DependencyNeverSatisfied" and s, "never"
    )
    assert status.state is JobState.PENDING
    assert status.dependency == f"{kind}:{first}(failed)"


def test_a_singleton_waits_for_older_jobs_of_its_name(place):
    name = f"--job-name=chain-{place.client.now().timestamp():.0f}"
    first = place.submit("--hold", name)
    second, third = (place.submit("--dependency=singleton", name, script="exit 0") for _ in "23")
    for job in (second, third):
        status = place.until(
            lambda job=job: (s := place.client.show(job)).reason == "Dependency" and s, "it waits"
        )
        assert status.dependency == "singleton(unfulfilled)"
    assert place.client.cancel(first)
    done = [place.until_state(job, JobState.COMPLETED) for job in (second, third)]
    assert done[0].end_time <= done[1].start_time


@pytest.mark.mostly_waits
def test_a_fenced_job_shows_why_it_waits(place):
    nodes = place.client.facts().partitions["gpu"].node_list
    place.until_state(place.submit("--nodes=4", "--exclusive"), JobState.RUNNING)
    job = place.submit()
    assert place.client.update(job, {"ExcNodeList": nodes})
    status = place.until(
        lambda: (s := place.client.show(job)).reason == "BadConstraints" and s, "BadConstraints"
    )
    with pytest.raises(RefusedError):
        place.submit(f"--exclude={nodes}")
    assert status.state is JobState.PENDING
    assert status.start_time is None


def test_the_comment_can_be_changed_until_the_end(place):
    job = place.submit("--hold", "--comment=old")
    text = "new; with spaces = and $(x);hpcscale=hs-1"
    assert place.client.update(job, {"Comment": text})
    assert place.client.show(job).comment == text


@pytest.mark.mostly_waits
def test_a_requeue_counts_and_gives_a_new_submit_time(place):
    job = place.submit("--requeue")
    first = place.until_state(job, JobState.RUNNING)
    # submit times are whole seconds
    place.until(lambda: place.client.now() > first.submit_time + dt.timedelta(seconds=1), "1 s")
    assert place.client.requeue(job)
    place.until(lambda: place.client.show(job).restarts == 1, "requeued")
    # it waits for some seconds; on a slow machine it may run again before we look
    status = place.until_state(job, JobState.PENDING, JobState.RUNNING)
    assert status.submit_time > first.submit_time
    assert status.exit_code is None
    place.until_state(job, JobState.RUNNING)
    assert not place.client.requeue(JobId(999_999))


@pytest.mark.parametrize(
    ("options", "says", "hint"),
    [
        (["--partition=gup"], "'gup'", "--partition gpu"),
        (["--gpus-per-node=99"], "node configuration", "4 h100 GPUs"),
        (["--array=0-99999"], "array", "1000"),
    ],
)
def test_a_refusal_says_what_would_fit(place, options, says, hint):
    with pytest.raises(RefusedError) as caught:
        place.submit(*options)
    assert says in caught.value.message
    assert hint in caught.value.hint


def test_an_empty_or_foreign_script_is_refused(place):
    for script in ("", "echo hello\n"):
        with pytest.raises(RefusedError):
            place.client.sbatch(script, [])


def test_test_only_gives_a_start_and_submits_nothing(place):
    before = set(place.client.jobs().jobs)

    def offer():
        # Slurm offers no cloud node that is on its way up or down: an earlier test's may be
        with contextlib.suppress(RefusedError):
            return place.client.test_only("#!/bin/sh\ntrue\n", ["--partition=gpu", "--nodes=1"])
        return None

    start = place.until(offer, "a start is offered")
    assert abs(start - place.client.now()) < dt.timedelta(minutes=10)
    with pytest.raises(RefusedError):
        place.client.test_only("#!/bin/sh\ntrue\n", ["--partition=gpu", "--gpus-per-node=99"])
    assert set(place.client.jobs().jobs) == before


def test_an_unknown_user_is_named(place):
    with pytest.raises(NotFoundError, match="nosuchuser"):
        place.client.jobs(user="nosuchuser")


def test_without_accounting_history_is_incomplete(place):
    accounting = place.kind == "lab-M"  # it is what makes -M work
    since = place.client.now()
    job = place.submit(script="exit 0")
    place.until_state(job, JobState.COMPLETED)
    wanted = [job, JobId(999_999)]
    if accounting:  # slurmdbd hears of it a moment later
        place.until(lambda: place.client.history(wanted, since=since).jobs, "it is in slurmdbd")
    answer = place.client.history(wanted, since=since)
    assert answer.complete is accounting
    assert set(answer.jobs) == {str(job)}


def test_facts(place):
    facts = place.client.facts()
    assert facts.version
    assert facts.cluster
    gpu = facts.partitions["gpu"]
    assert gpu.default
    assert gpu.up
    assert gpu.total_nodes == 4
    assert gpu.gpus_per_node == 4
    assert gpu.gpu_type == "h100"
    assert gpu.cpus_per_node == 32
    assert gpu.mem_mb_per_node == 512000
    assert gpu.max_time_s == 7 * 86400
    assert "h100" in gpu.features
    assert gpu.gres == ("gpu:h100:4",)
    assert gpu.boots == (facts.cluster == "lab-cloud")
    tree = [s for s in place.client.switches() if s.level == 0]
    assert bool(tree) == (facts.cluster == "lab-onprem")
    assert facts.max_array_size >= 1001
    if place.kind == "lab-M":
        assert facts.has_accounting
        assert {"research", "teaching"} <= set(facts.accounts)
        assert facts.notes == ()
        return
    assert facts.accounts is None
    assert not facts.has_accounting
    assert any("slurmdbd" in note for note in facts.notes)


def test_node_states(place):
    nodes = place.client.facts().partitions["gpu"].node_list
    states = place.client.node_states(nodes)
    assert len(states) == 4
    assert all(state.split("+")[0] == "IDLE" for state in states.values())


def test_now_is_the_controllers_whole_second(place):
    now = place.client.now()
    assert now.tzinfo is dt.UTC
    assert place.client.now() >= now


def test_script_arguments_arrive_as_given(real_place):
    args = ("hs-1", "with space", "$(x)", "", "new\nline", "'\"\\")
    job = real_place.submit(
        f"--chdir={real_place.dir}", script="printf '<%s>' \"$@\" > args", args=args
    )
    assert real_place.until_state(job, JobState.COMPLETED, JobState.FAILED).exit_code == (0, 0)
    written = real_place.transport.read_bytes(f"{real_place.dir}/args").decode()
    assert written == "".join(f"<{a}>" for a in args)


def test_het_components(real_place):
    job = real_place.client.sbatch(
        "#!/bin/sh\n#SBATCH --nodes=1\n#SBATCH hetjob\n#SBATCH --nodes=2\nsleep 60\n",
        ["--output=/dev/null", "--hold"],
    )
    answer = real_place.client.jobs([job])
    assert set(answer.jobs) == {f"{job}+0", f"{job}+1"}
    assert len(answer.of(job)) == 2
    assert real_place.client.show(JobId(job.base, None, 1)).num_nodes == 2
    assert real_place.client.show(job).num_nodes == 1
    assert real_place.client.cancel(job)


def test_a_job_in_two_partitions_is_one_job(onprem):
    job = onprem.client.sbatch(
        "#!/bin/sh\nsleep 60\n", ["--partition=gpu,urgent", "--hold", "--output=/dev/null"]
    )
    answer = onprem.client.jobs([job])
    assert list(answer.jobs) == [str(job)]
    assert answer.jobs[str(job)].partition == "gpu,urgent"
    assert onprem.client.test_only("#!/bin/sh\ntrue\n", ["-p", "gpu,urgent"])
