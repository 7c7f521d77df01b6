"""CliClient's judgement of what Slurm's commands say, on answers that are hard to provoke."""

import datetime as dt
import subprocess
import sys

import pytest

from hpcscale.clock import ManualClock, SiteClock, SystemClock
from hpcscale.errors import NotSentError, RefusedError, SubmitUnknownError, UnreachableError
from hpcscale.slurm._refusals import explain, option_value
from hpcscale.slurm.cli import CliClient
from hpcscale.slurm.transport import Completed, slurm_environment
from hpcscale.slurm.types import JobState, PartitionFacts, SiteFacts
from hpcscale.testing import FakeSlurm, unreachable_transport
from hpcscale.units import JobId

SCRIPT = "#!/bin/sh\nsleep 60\n"


class Says:
    """A transport on which every command gives this answer."""

    name, is_local = "there", False

    def __init__(self, returncode, stdout="", stderr=""):
        self.answer = returncode, stdout, stderr
        self.argv = []

    def run(self, argv, **_):
        self.argv.append(list(argv))
        return Completed(tuple(argv), *self.answer)


@pytest.mark.parametrize(
    "text",
    [
        "sbatch: error: Batch job submission failed: Unable to contact slurm controller (connect failure)",
        "sbatch: error: Batch job submission failed: Slurm backup controller in standby mode",
        "sbatch: fatal: Could not establish a configuration source",
        "sbatch: error: Batch job submission failed: Resource temporarily unavailable",
    ],
)
def test_known_not_to_be_submitted(text):
    with pytest.raises(NotSentError):
        CliClient(Says(1, stderr=text)).sbatch(SCRIPT, [])


@pytest.mark.parametrize(
    ("code", "text"),
    [
        (1, "sbatch: error: Batch job submission failed: Socket timed out on send/recv operation"),
        (1, "sbatch: error: Batch job submission failed: Unexpected message received"),
        (1, "sbatch: error: Batch job submission failed: Zero Bytes were transmitted or received"),
        (143, ""),
        (0, "no number"),
    ],
)
def test_not_known_whether_submitted(code, text):
    with pytest.raises(SubmitUnknownError):
        CliClient(Says(code, stderr=text)).sbatch(SCRIPT, [])


@pytest.mark.parametrize(
    "text",
    [
        "sbatch: error: Batch job submission failed: Invalid account or account/partition combination specified",
        "sbatch: error: QOSMaxSubmitJobPerUserLimit\nsbatch: error: Batch job submission failed: Job violates accounting/QOS policy (job submit limit, user's size and/or time limits)",
        "sbatch: unrecognized option '--foo'\nTry \"sbatch --help\" for more information",
        "sbatch: error: Site plugin says no",
    ],
)
def test_refused(text):
    with pytest.raises(RefusedError) as caught:
        CliClient(Says(1, stderr=text)).sbatch(SCRIPT, [])
    assert "sbatch: error" not in caught.value.message


def test_an_option_that_does_not_exist_is_named():
    text = "sbatch: unrecognized option '--foo'\nTry \"sbatch --help\" for more information\n"
    with pytest.raises(RefusedError, match="unrecognized option '--foo'"):
        CliClient(Says(1, stderr=text)).sbatch(SCRIPT, ["--foo"])


def test_the_id_is_read_with_and_without_a_cluster():
    assert CliClient(Says(0, "123\n")).sbatch(SCRIPT, []) == JobId(123)
    assert CliClient(Says(0, "banner\n123;cloud\n")).sbatch(SCRIPT, []) == JobId(123)


@pytest.mark.parametrize(
    "text",
    ["slurm_load_jobs error: Unable to contact slurm controller (connect failure)",
     "slurm_load_jobs error: Socket timed out on send/recv operation",
     "squeue: error: something new"],
)  # fmt: skip
def test_any_failure_of_squeue_is_no_answer(text):
    client = CliClient(Says(1, stderr=text))
    for ask in (
        client.jobs,
        lambda: client.jobs([JobId(1), JobId(2)]),
        lambda: client.show(JobId(1)),
    ):
        with pytest.raises(UnreachableError) as caught:
            ask()
        assert "slurm_load_jobs error" not in caught.value.message


def test_an_invalid_id_is_absence():
    client = CliClient(Says(1, stderr="slurm_load_jobs error: Invalid job id specified"))
    assert client.show(JobId(1)) is None
    assert client.jobs([JobId(1)]).jobs == {}


def test_a_missing_command_names_the_setting():
    with pytest.raises(NotSentError) as caught:
        CliClient(Says(127, stderr="squeue: command not found")).jobs()
    assert "slurm_bin" in caught.value.hint


def test_slurm_bin_and_conf_reach_every_command():
    says = Says(0, "sdiag output at Sun Nov 22 06:17:11 2026 (1795328231)\n")
    assert CliClient(says, slurm_bin="/opt/slurm/bin/").now() == dt.datetime.fromtimestamp(
        1795328231, dt.UTC
    )
    assert says.argv == [["/opt/slurm/bin/sdiag"]]
    submits = Says(0, "5\n")
    CliClient(submits, slurm_bin="/opt/slurm/bin").sbatch(SCRIPT, ["--time=1"], ["a", "b c"])
    assert submits.argv == [
        ["/opt/slurm/bin/sbatch", "--parsable", "--time=1", "/dev/stdin", "a", "b c"]
    ]


def test_one_squeue_whatever_the_number_of_ids():
    fake = FakeSlurm()
    client = CliClient(fake)
    ids = [client.sbatch(SCRIPT, ["--hold"]) for _ in range(30)]
    fake.calls.clear()
    assert len(client.jobs(ids).jobs) == 30
    assert [c[0] for c in fake.calls] == ["squeue"]
    assert not [w for w in fake.calls[0] if w.startswith("--jobs")]


def test_nothing_was_sent_where_nothing_is_reached():
    client = CliClient(unreachable_transport())
    with pytest.raises(NotSentError) as caught:
        client.sbatch(SCRIPT, [])
    assert not isinstance(caught.value, SubmitUnknownError)


def test_a_lost_answer_leaves_one_job():
    fake = FakeSlurm()
    client = CliClient(fake)
    fake.lose_next_submit_answer()
    with pytest.raises(SubmitUnknownError):
        client.sbatch(SCRIPT, ["--comment=hpcscale=hs-1"])
    assert [s.comment for s in client.jobs().jobs.values()] == ["hpcscale=hs-1"]


def test_a_crash_forgets_and_reuses_ids():
    fake = FakeSlurm()
    client = CliClient(fake)
    old = client.sbatch(SCRIPT, ["--comment=old"])
    fake.advance(10)
    lost = client.sbatch(SCRIPT, ["--comment=lost"])
    fake.crash()
    assert client.show(lost) is None
    assert client.show(old).comment == "old"
    assert client.sbatch(SCRIPT, ["--comment=stranger"]) == lost


def test_boots_are_configuring():
    fake = FakeSlurm(boot_s=5)
    client = CliClient(fake)
    job = client.sbatch(SCRIPT, [])
    assert client.show(job).state is JobState.CONFIGURING
    fake.advance(6)
    assert client.show(job).state is JobState.RUNNING


FACTS = SiteFacts(
    version="22.05.8",
    cluster="c",
    fetched_at=dt.datetime(2026, 1, 1, tzinfo=dt.UTC),
    accounts=("phys",),
    qos=("normal",),
    partitions={
        "gpu": PartitionFacts("gpu", default=True, max_time_s=86400, total_nodes=4, gpus_per_node=8,
                              gpu_type="h100", cpus_per_node=64, mem_mb_per_node=512000),
        "long": PartitionFacts("long", max_nodes=2, total_nodes=4),
    },
)  # fmt: skip


@pytest.mark.parametrize(
    ("message", "options", "hint"),
    [
        ("Invalid partition name specified", ["--partition=gpo"], "--partition gpu"),
        ("Invalid partition name specified", ["-pgpu,zzz"], "partitions: gpu, long"),
        ("Invalid account or account/partition combination specified", [], "your accounts: phys"),
        ("Invalid qos specification", [], "your QOS: normal"),
        ("Requested time limit is invalid (missing or exceeds some limit)", [], "1-00:00:00"),
        ("Requested node configuration is not available", [], "8 h100 GPUs, 64 CPUs, 500 GB"),
        ("Node count specification invalid", ["-p", "long"], "at most 2 a job"),
        ("Invalid job array specification", [], "1000"),
        ("Job dependency problem", [], "--after"),
    ],
)
def test_hints(message, options, hint):
    text, found = explain(message, SCRIPT, options, FACTS)
    assert text.startswith("sbatch refused the job")
    assert hint in found


def test_options_are_found_in_arguments_before_directives():
    script = "#!/bin/sh\n#SBATCH -p long --time=5\n#SBATCH --nodes 2\n"
    assert option_value("partition", "p", script, []) == "long"
    assert option_value("partition", "p", script, ["-pgpu"]) == "gpu"
    assert option_value("nodes", "N", script, []) == "2"
    assert option_value("account", "A", script, []) is None


def test_the_environment_of_slurms_commands(monkeypatch):
    for name in (
        "SBATCH_PARTITION",
        "SQUEUE_FORMAT",
        "SLURM_JOB_ID",
        "SCANCEL_STATE",
        "SLURM_CONF",
    ):
        monkeypatch.setenv(name, "x")
    env = slurm_environment({"A": "b"})
    assert env["SLURM_CONF"] == "x"
    assert env["A"] == "b"
    assert not [n for n in env if n.startswith(("SBATCH", "SQUEUE", "SCANCEL", "SLURM_J"))]
    assert "PATH" in env


def test_a_clock_counts_on_from_the_controllers_time(monkeypatch):
    import hpcscale.clock

    ticks = iter([0.0, 100.0, 100.0, 110.0, 140.0, 140.0, 141.0])
    asked = []

    def ask():
        asked.append(1)
        return dt.datetime(2030, 1, 1, tzinfo=dt.UTC) + dt.timedelta(hours=len(asked))

    clock = SiteClock(ask, trust_s=30)
    last = [0.0]

    def monotonic():
        last[0] = next(ticks, last[0])
        return last[0]

    monkeypatch.setattr(hpcscale.clock.time, "monotonic", monotonic)
    first = clock.now()
    assert first == dt.datetime(2030, 1, 1, 1, tzinfo=dt.UTC)
    assert len(asked) == 1
    assert clock.now() - first <= dt.timedelta(seconds=30)
    while len(asked) == 1:
        clock.now()
    assert clock.now() >= dt.datetime(2030, 1, 1, 2, tzinfo=dt.UTC)


def test_the_other_clocks():
    manual = ManualClock()
    start = manual.now()
    assert manual.advance(5) - start == dt.timedelta(seconds=5)
    with pytest.raises(ValueError, match="backwards"):
        manual.advance(-1)
    assert SystemClock().now().tzinfo is dt.UTC


def test_asking_slurm_loads_nothing_heavy():
    program = (
        "import sys; import hpcscale.slurm.cli, hpcscale.slurm.local, hpcscale.connect; "
        "print(sorted({'paramiko','ClusterShell','rich','submitit','asyncio','jinja2'}"
        " & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout == "[]\n"


def test_another_cluster_is_named_to_every_command():
    says = Says(0, "CLUSTER: other\nsdiag output at Sun Nov 22 06:17:11 2026 (1795328231)\n")
    client = CliClient(says, slurm_bin="/opt/slurm/bin", cluster="other")
    client.now()
    client.requeue(JobId(1))
    client.cancel(JobId(1), pending_only=True)
    client.update(JobId(1), {"Comment": "x"})
    assert says.argv == [
        ["/opt/slurm/bin/sdiag", "-M", "other"],
        ["/opt/slurm/bin/scontrol", "-M", "other", "requeue", "1"],
        ["/opt/slurm/bin/scancel", "-M", "other", "--state=PENDING", "1"],
        ["/opt/slurm/bin/scontrol", "-M", "other", "update", "JobId=1", "Comment=x"],
    ]
    submits = Says(0, "5;other\n")
    assert CliClient(submits, cluster="other").sbatch(SCRIPT, ["--time=1"]) == JobId(5)
    assert submits.argv == [["sbatch", "-M", "other", "--parsable", "--time=1"]]


def test_a_header_line_of_m_is_no_record():
    said = Says(0, "CLUSTER: other\n")
    assert CliClient(said, cluster="other").jobs().jobs == {}


@pytest.mark.parametrize(
    "text",
    [
        # its controller is not registered
        (
            "sbatch: error: 'other' can't be reached now, or it is an invalid entry for --cluster.  Use"
            " 'sacctmgr list clusters' to see available clusters."
        ),
        # slurmdbd is away
        (
            "sbatch: error: slurm_persist_conn_open_without_init: failed to open persistent connection"
            " to host:127.0.0.1:6819: Connection refused\nsbatch: error: There is a problem talking to"
            " the database: Connection refused.  Only local cluster communication is available, remove"
            " --cluster from your command line or contact your admin to resolve the problem."
        ),
    ],
)
def test_a_cluster_that_is_not_reached_was_sent_nothing(text):
    with pytest.raises(NotSentError):
        CliClient(Says(1, stderr=text), cluster="other").sbatch(SCRIPT, [])
