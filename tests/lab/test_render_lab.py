"""The golden scripts on real Slurm: what a command is told, and what becomes of a stopped job."""

import json
import os
import re
import uuid
from pathlib import Path

import msgspec
import pytest
from lab_helpers import job, until
from render_cases import CASES, FOREIGN, ONPREM, Case, says
from render_cases import job as spec_of

from hpcscale.render import render
from hpcscale.sbatch_script import read_script
from hpcscale.spec import Checkpoint, JobSpec, Launcher, Resources
from hpcscale.submit import sbatch_options

SID = "hs-0123456789abcdef"
ENDED = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY"}
# the second way takes the same time again: `make test-all`
BOTH = [Launcher.SRUN, pytest.param(Launcher.PLAIN, marks=pytest.mark.slow)]
RUNNABLE = [name for name, case in CASES.items() if case.lines is not None]


class Started:
    """A script that was given to sbatch as ``hpcscale.submit`` does it."""

    def __init__(self, lab, rendered, files, *options):
        self.site = lab.site("lab-onprem")
        self.rendered = rendered
        self.run_dir = self.site.paths.scratch / f"run-{uuid.uuid4().hex[:8]}"
        for directory in ("logs", "events", "inputs", "outputs", "code"):
            (self.run_dir / directory).mkdir(parents=True)
        for name, text in files.items():
            path = self.run_dir / name.replace("SUBMISSION", SID)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
            path.chmod(0o755)
        argv = sbatch_options(rendered, str(self.run_dir), f"hpcscale={SID}", None)
        done = self.site.exec(
            ["sbatch", "--parsable", *argv, *options, "/dev/stdin", SID, str(self.run_dir)],
            stdin=rendered.script,
        )
        assert done.returncode == 0, done.stderr
        self.id = done.stdout.strip()

    @property
    def log(self):
        return "".join(p.read_text() for p in sorted((self.run_dir / "logs").iterdir()))

    @property
    def state(self):
        return job(self.site, self.id).get("JobState")

    def events(self, kind):
        files = sorted((self.run_dir / "events").glob(f"{SID}*.{kind}"))
        return {f.name.removeprefix(f"{SID}.").removesuffix(f".{kind}"): json.loads(f.read_text())
                for f in files}  # fmt: skip

    def over(self, timeout_s=60):
        """Wait for the end; the exit code."""
        until(self._all_ended, timeout_s, f"job {self.id} ends: {self.log}")
        return int(job(self.site, self.id)["ExitCode"].split(":")[0])

    def _all_ended(self):
        text = self.site.exec(["scontrol", "-o", "show", "job", self.id]).stdout
        states = re.findall(r" JobState=(\w+)", text)
        return states and set(states) <= ENDED

    def running(self, text=""):
        until(
            lambda: self.state == "RUNNING" and text in self.log, 30, f"{self.id} runs {self.log}"
        )


@pytest.fixture
def start(lab):
    return lambda rendered, files=None, *options: Started(lab, rendered, files or {}, *options)


def python_on_the_nodes():
    """The lab shares this Python's environment with its nodes; PATH is a login's."""
    import sys

    return str(Path(sys.prefix) / "bin")


def with_path(case: Case) -> Case:
    """The case with the nodes' Python on PATH: the golden script has the plain one."""
    path = f"{python_on_the_nodes()}:/usr/bin:/bin"
    return msgspec.structs.replace(case.spec, env=case.spec.env | {"PATH": path})


@pytest.mark.parametrize("name", RUNNABLE)
def test_golden_script_does_what_it_says(start, name):
    case = CASES[name]
    rendered = case.render()
    if case.spec.launcher is Launcher.TORCHRUN:
        rendered = render(with_path(case), case.site)
    options = []
    if name == "everything":
        # the lab has no such QOS; where the words stand is what the golden file shows
        options = ["--qos=", "--account="]
    job_ = start(rendered, case.files, *options)
    assert job_.over(90) == case.exit_code, job_.log
    said = [line for line in job_.log.splitlines() if not line.startswith("srun: ")]
    if case.spec.launcher is Launcher.TORCHRUN:
        assert "Traceback" not in job_.log  # of an agent that found the store gone
        said = [line for line in said if line.startswith("rank ")]
    lines = [line.replace("RUN_DIR", str(job_.run_dir)) for line in case.lines]
    assert sorted(said) == sorted(lines)
    ended = job_.events("ended")
    assert len(ended) == len(job_.events("started")) == (case.spec.array_size or 1)
    for event in ended.values():
        assert event["exit_code"] == case.exit_code
        assert event["requeued"] is False
    if name == "everything":
        assert not (job_.run_dir / "secrets" / SID).exists()
        assert (job_.run_dir / "outputs/table").read_text() == "result\n"
        assert (job_.run_dir / "outputs/plots/one").read_text() == "more\n"
        assert not Path("/tmp/injected").exists()
        shown = job_.site.exec(["scontrol", "-o", "show", "job", job_.id]).stdout
        assert 'JobName=job "x" $(id) ' in shown


def test_plain_sbatch_runs_it_with_the_paths_of_this_machine(lab):
    site = lab.site("lab-onprem")
    here = site.paths.scratch / f"plain-{uuid.uuid4().hex[:8]}"
    (here / "code").mkdir(parents=True)
    (here / "data.txt").write_text("data\n")
    spec = spec_of(
        *says('cat "$HPCSCALE_INPUT_D"; pwd; echo "$HPCSCALE_RUN_DIR"'),
        workdir=str(here / "code"), inputs={"d": str(here / "data.txt")},
    )  # fmt: skip
    (here / "job.sh").write_text(render(spec, ONPREM).script)
    done = site.exec(["env", "-C", str(here), "sbatch", "--parsable", "job.sh"])
    number = done.stdout.strip()
    assert number.isdigit(), done.stderr
    until(lambda: job(site, number).get("JobState") in ENDED, 30, "it ends")
    log = (here / f"hpcscale-{number}.log").read_text().split()
    assert log == ["data", str(here / "code"), f"{here}/hpcscale-{number}"]


def test_a_missing_input_is_told_and_exits_97(start):
    spec = spec_of("true", inputs={"d": "/data/d"})
    job_ = start(render(spec, ONPREM))
    assert job_.over() == 97
    assert "input d is not at" in job_.log
    assert job_.events("ended")["0"]["exit_code"] == 97


def test_a_foreign_script_with_plain_sbatch_keeps_its_arguments(lab):
    site = lab.site("lab-onprem")
    case = CASES["foreign"]
    script = site.paths.scratch / f"f-{uuid.uuid4().hex[:8]}.sh"
    script.write_text(case.render().script)
    log = script.with_suffix(".log")
    done = site.exec(["sbatch", "--parsable", f"--output={log}", str(script), "a b", "c", "d"])
    number = done.stdout.strip()
    until(lambda: job(site, number).get("JobState") in ENDED, 30, "it ends")
    assert "foreign a b of 3" in log.read_text()


# --- checkpoint and requeue

STEPS = """
n=$(cat "$HPCSCALE_CHECKPOINT_DIR/n" 2>/dev/null || echo 0)
echo "begin at $n, restart $HPCSCALE_RESTART_COUNT"
while [ $n -lt 100000 ]; do
  [ -e "$HPCSCALE_CHECKPOINT_DIR/finish" ] && { echo "finished"; exit 4; }
  n=$((n+1)); echo $n > "$HPCSCALE_CHECKPOINT_DIR/tmp" && mv "$HPCSCALE_CHECKPOINT_DIR/tmp" "$HPCSCALE_CHECKPOINT_DIR/n"
  [ -e "$HPCSCALE_STOP_FILE" ] && { echo "saved $n"; exit 0; }
  sleep 0.1
done
"""


def stepping(launcher=Launcher.SRUN, *, lead_s=30, time_limit_s=3600, max_restarts=20, text=STEPS):
    return JobSpec(
        name="steps", workdir="/home/ada", command=says(text), launcher=launcher,
        resources=Resources(nodes=1, tasks_per_node=1, time_limit_s=time_limit_s),
        checkpoint=Checkpoint(
            dir="/home/ada/ck", lead_s=lead_s, stop_wait_s=20, max_restarts=max_restarts
        ),
    )  # fmt: skip


def goes_on(job_, *, saved=True):
    """Wait for the second run; no step is lost; let it finish with its own exit code."""
    until(lambda: job_.log.count("begin at") >= 2, 90, f"a second run: {job_.log}")
    if saved:
        assert int(re.search(r"saved (\d+)", job_.log)[1]) <= begin(job_, 2)
    assert begin(job_, 2) >= 1
    assert re.findall(r"restart (\d+)", job_.log)[:2] == ["0", "1"]
    (job_.run_dir / "checkpoint/finish").touch()
    assert job_.over() == 4, job_.log
    events = job_.events("ended")
    assert [events[k]["requeued"] for k in sorted(events)] == [True, False], events


def begin(job_, nth):
    return int(re.findall(r"begin at (\d+)", job_.log)[nth - 1])


@pytest.mark.begins_first
@pytest.mark.parametrize("launcher", BOTH)
def test_before_the_time_limit_it_saves_and_goes_on(start, launcher):
    # the signal comes up to 30 s early, at slurmctld's next tick: 5 s after the start, or later
    job_ = start(render(stepping(launcher, lead_s=85, time_limit_s=120), ONPREM))
    job_.running("begin at")
    until(lambda: "saved" in job_.log, 60, f"it saves: {job_.log}")
    goes_on(job_)


@pytest.mark.parametrize("launcher", BOTH)
def test_scontrol_requeue_goes_on(start, launcher):
    job_ = start(render(stepping(launcher), ONPREM))
    job_.running("begin at")
    until((job_.run_dir / "checkpoint/n").exists, 10, "a step")
    job_.site.exec(["scontrol", "requeue", job_.id], check=True)
    goes_on(job_, saved=False)


def preempt(lab, job_):
    site = lab.site("lab-onprem")
    site.exec(
        ["sbatch", "-p", "urgent", "-N4", "--exclusive", "--output=/dev/null", "--wrap", "sleep 2"],
        check=True,
    )


@pytest.mark.parametrize("launcher", BOTH)
def test_preemption_without_grace_goes_on(lab, start, launcher):
    job_ = start(render(stepping(launcher), ONPREM), None, "--partition=spot")
    job_.running("begin at")
    until((job_.run_dir / "checkpoint/n").exists, 10, "a step")
    preempt(lab, job_)
    goes_on(job_, saved=False)


@pytest.mark.parametrize("user_signal", [True, False])
def test_preemption_with_grace_goes_on(lab_factory, user_signal):
    """Without preempt_send_user_signal only the step gets TERM, and ends well: COMPLETED, once."""
    lab = lab_factory(nodes=4, grace_time_s=8)
    site = lab.site("lab-onprem")
    if not user_signal:
        conf = site.paths.slurm_conf
        conf.write_text(
            conf.read_text().replace("preempt_send_user_signal", "idle_on_node_suspend")
        )
        site.exec(["scontrol", "reconfigure"], check=True)
        config = ["scontrol", "show", "config"]
        until(lambda: "idle_on_node" in site.exec(config).stdout, 10, "reconfigured")
    text = "trap 'echo term; exit 0' TERM\n" + STEPS
    job_ = Started(lab, render(stepping(text=text), ONPREM), {}, "--partition=spot")
    job_.running("begin at")
    until((job_.run_dir / "checkpoint/n").exists, 10, "a step")
    preempt(lab, job_)
    goes_on(job_, saved=False)


@pytest.mark.parametrize("launcher", BOTH)
def test_a_cancelled_job_does_not_come_back(start, launcher):
    job_ = start(render(stepping(launcher), ONPREM))
    job_.running("begin at")
    job_.site.exec(["scancel", job_.id], check=True)
    until(lambda: job_.state == "CANCELLED", 20, "cancelled")
    assert job_.events("ended")["0"]["requeued"] is False
    assert job_.log.count("begin at") == 1


def test_restarts_are_bounded(start):
    job_ = start(render(stepping(lead_s=85, time_limit_s=120, max_restarts=0), ONPREM))
    assert job_.over(90) == 99
    assert "0 restarts are allowed" in job_.log
    assert job_.events("ended")["0"]["requeued"] is False


@pytest.mark.slow
def test_a_command_that_does_not_stop_is_ended(start):
    text = "trap '' TERM; echo begin at 0; while :; do sleep 0.1; done"
    spec = stepping(Launcher.PLAIN, lead_s=85, time_limit_s=120, max_restarts=0, text=text)
    spec = msgspec.structs.replace(
        spec, checkpoint=msgspec.structs.replace(spec.checkpoint, stop_wait_s=1)
    )
    job_ = start(render(spec, ONPREM))
    assert job_.over(90) == 99
    assert "it is ended" in job_.log


def test_an_array_element_requeues_itself_alone(start):
    """The last element's own id is the array's base id: asked by it, all elements would answer."""
    spec = msgspec.structs.replace(stepping(), array="0-1")
    job_ = start(render(spec, ONPREM))
    until(lambda: job_.log.count("begin at") == 2, 30, f"both run: {job_.log}")
    until(lambda: len(list((job_.run_dir / "checkpoint").glob("task-*/n"))) == 2, 10, "steps")
    pid = job_.site.exec(["scancel", "--batch", "--signal=USR1", f"{job_.id}_0"])
    assert pid.returncode == 0, pid.stderr
    until(lambda: job_.log.count("begin at") == 3, 60, f"one of them again: {job_.log}")
    logs = {p.name.split("_")[1]: p.read_text() for p in (job_.run_dir / "logs").iterdir()}
    assert logs["0.log"].count("begin at") == 2
    assert logs["1.log"].count("begin at") == 1
    for task in (0, 1):
        (job_.run_dir / f"checkpoint/task-{task}/finish").touch()
    job_.over()


def test_secrets_stay_for_the_next_run_and_go_with_the_last(start):
    from hpcscale.spec import SecretSource

    spec = msgspec.structs.replace(
        stepping(text='echo "token $TOKEN_X"\n' + STEPS),
        secrets={"TOKEN_X": SecretSource(kind="env", name="X")},
    )
    job_ = start(render(spec, ONPREM), {"secrets/SUBMISSION/TOKEN_X": "s3cret"})
    job_.running("begin at")
    until((job_.run_dir / "checkpoint/n").exists, 10, "a step")
    job_.site.exec(["scontrol", "requeue", job_.id], check=True)
    goes_on(job_, saved=False)
    assert job_.log.count("token s3cret") == 2
    assert not (job_.run_dir / "secrets" / SID).exists()


def test_odd_names_pass_sbatch_in_both_ways(lab):
    """A directive's quoting is sbatch's own; ours avoids it. Both end at the same name."""
    site = lab.site("lab-onprem")
    for written, name in (
        ("'a b'", "a b"),
        ('"a \\"b"', 'a "b'),
        ("a#b", "a"),
        ("'a#b'", "a#b"),
        ("a'b c'd", "ab cd"),
        ("'a\\b'", "ab"),
        ('a\\"b', 'a"b'),
    ):
        text = f"#!/bin/sh\n#SBATCH --job-name={written} -o /dev/null\ntrue\n"
        done = site.exec(["sbatch", "--parsable", "--hold"], stdin=text, check=True)
        shown = site.exec(["scontrol", "-o", "show", "job", done.stdout.strip()]).stdout
        assert f"JobName={name} UserId" in shown
        directives = read_script(text, "x").directives
        assert ("job-name", name) in [(o, v) for _, o, v in directives]


def test_the_foreign_script_is_what_the_golden_files_hold():
    assert FOREIGN.splitlines()[-1] == "exit 3"
    assert os.environ.get("SLURM_CONF") is None
