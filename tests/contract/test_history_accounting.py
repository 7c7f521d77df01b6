"""History and facts where slurmdbd keeps accounts: a lab of its own."""

import time

import pytest

from hpcscale.errors import RefusedError
from hpcscale.lab.process import patience
from hpcscale.slurm.cli import CliClient
from hpcscale.slurm.local import LocalTransport
from hpcscale.slurm.types import JobState
from hpcscale.units import JobId

pytestmark = pytest.mark.lab

NAME = 'a|b\tc\nJobID=1 $(x) "q"'


def until(condition, what, timeout_s=60):
    deadline = time.monotonic() + patience(timeout_s)
    while not (value := condition()):
        if time.monotonic() > deadline:
            pytest.fail(f"not within {timeout_s} s: {what}")
        time.sleep(0.2)
    return value


def test_history_facts_and_refusals_with_accounting(lab_factory):
    lab = lab_factory(nodes=2, accounting=True)
    client = CliClient(LocalTransport(), slurm_conf=lab.env()["SLURM_CONF"])
    facts = client.facts()
    assert facts.has_accounting
    assert facts.accounts
    assert "normal" in facts.qos
    assert facts.notes == ()

    since = client.now()
    options = ["--output=/dev/null", "--time=5"]
    failed = client.sbatch(
        "#!/bin/sh\nexit 3\n", [*options, f"--job-name={NAME}", "--gpus-per-node=1"]
    )
    array = client.sbatch("#!/bin/sh\nexit $SLURM_ARRAY_TASK_ID\n", [*options, "--array=0-1"])
    twice = client.sbatch(
        "#!/bin/sh\n[ ${SLURM_RESTART_COUNT:-0} = 0 ] && exec sleep 300\ntrue\n",
        [*options, "--requeue"],
    )
    until(lambda: client.show(twice).state is JobState.RUNNING, "running")
    assert client.requeue(twice)
    until(lambda: client.show(twice).state is JobState.COMPLETED, "ran again")

    ids = [failed, array, twice, JobId(999_999)]

    def ended():
        answer = client.history(ids, since=since)
        ready = len(answer.jobs) == 4 and all(s.state.terminal for s in answer.jobs.values())
        return answer if ready else None

    answer = until(ended, "slurmdbd has them")
    assert answer.complete
    told = answer.jobs[str(failed)]
    # slurmdbd keeps a double quote as a backquote
    assert (told.name, told.state, told.exit_code, told.gpus) == (
        NAME.replace('"', "`"),
        JobState.FAILED,
        (3, 0),
        1,
    )
    assert told.source == "sacct"
    assert told.submit_time >= since.replace(microsecond=0)
    assert answer.jobs[f"{array}_1"].exit_code == (1, 0)
    assert answer.jobs[f"{array}_0"].state is JobState.COMPLETED
    assert answer.jobs[str(twice)].state is JobState.COMPLETED
    assert answer.jobs[str(twice)].restarts == 1

    with pytest.raises(RefusedError) as caught:
        client.sbatch("#!/bin/sh\ntrue\n", ["--account=nobody"])
    assert facts.accounts[0] in caught.value.hint
    with pytest.raises(RefusedError) as caught:
        client.sbatch("#!/bin/sh\ntrue\n", ["--qos=nosuch"])
    assert "normal" in caught.value.hint
