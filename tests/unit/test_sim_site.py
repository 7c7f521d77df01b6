"""The simulation's site and scripts do what real commands and rendered scripts do."""

import random

import pytest
from claim_script import OTHER, SID, TARGET
from claim_script import Job as RealJob
from sim_script import Job as SimulatedJob
from sim_site import MemoryFiles, MemorySlurm

from hpcscale.burst.claims import (
    Word,
    claims_dir,
    decide,
    decision,
    put_outcome,
    revoke,
    take,
)
from hpcscale.errors import HpcscaleError
from hpcscale.render import Gate
from hpcscale.slurm.local import LocalTransport
from hpcscale.slurm.remote import exists, link_once, mkdir
from hpcscale.staging import read_text_files


def both(tmp_path, act):
    """What an act says here, on this machine's files and in memory."""
    answers = []
    for transport in (LocalTransport(), MemorySlurm()):
        top = f"{tmp_path}/{len(answers)}"
        mkdir(transport, top)
        try:
            said = act(transport, top)
        except HpcscaleError as exc:
            said = type(exc).__name__
        answers.append(repr(said).replace(top, "TOP"))
    return answers


@pytest.mark.parametrize("seed", range(20))
def test_files_in_memory_answer_as_the_real_ones(tmp_path, seed):
    def act(transport, top):
        choose, said = random.Random(seed), []
        names = [f"{top}/{n}" for n in ("a", "b", "d/c", "d/e")]
        for _ in range(12):
            path = choose.choice(names)
            match choose.randrange(5):
                case 0:
                    mkdir(transport, f"{top}/d")
                case 1 if path in names[:2]:
                    said.append(link_once(transport, path, f"{choose.random()}\n".encode()))
                case 2:
                    said.append(exists(transport, path))
                case 3:
                    said.append(transport.run(["rm", "-f", "--", path]).returncode)
                case _:
                    found = read_text_files(transport, [top], choose.choice(["*", "a*", "c"]))
                    said.append(sorted(found.items()))
        return said

    real, simulated = both(tmp_path, act)
    assert real == simulated


def entries(job, transport, situation):
    """Claims as others have left them."""
    for kind in situation:
        if kind == "taken":
            take(transport, job.attempt, TARGET)
        elif kind == "revoked":
            revoke(transport, job.attempt, TARGET)
        elif kind.startswith("outcome"):
            put_outcome(transport, job.attempt, kind.removeprefix("outcome"), 7)
        elif kind == "other":
            take(transport, job.attempt, OTHER)
        elif kind == "began":
            log = f"{claims_dir(job.attempt)}/rabc.{SID}"
            mkdir(transport, claims_dir(job.attempt))
            assert link_once(transport, f"{log}.0", f"{SID} 0\n".encode())
        else:
            decide(transport, job.attempt, Word(kind))


class Simulated(RealJob):
    """The same job, of the simulation: its files are in memory."""

    def __init__(self, tmp_path, *, gate=None):
        self.run_dir = tmp_path / "state" / "runs" / "rabc"
        self.site = MemorySlurm()
        mkdir(self.site, str(self.run_dir))
        self.gate = gate
        self.began = 0

    def run(self, restart=0, task=None):
        job = SimulatedJob(
            self.site.files, submission=SID, run_dir=str(self.run_dir), number=7, restart=restart, task=task,
            lease_s=self.gate.lease_s if self.gate else None, work_s=0, requeue=lambda _: False,
        )  # fmt: skip
        next(job.steps)
        for now in range(10_000):
            try:
                job.steps.send(now)
            except StopIteration:
                break
            self.began += job.running
        return job.exit_code

    @property
    def ran(self):
        return self.began


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("restart", [0, 1])
@pytest.mark.parametrize(
    "situation",
    [
        (),
        ("taken",),
        ("taken", "revoked"),
        ("taken", "revoked", "other"),
        ("taken", "outcome"),
        ("revoked",),
        ("began",),
        ("opened",),
        ("opened", "taken"),
        ("opened", "began"),
        ("closed",),
    ],
)
def test_a_simulated_script_ends_as_the_real_one(tmp_path, situation, restart, gated):
    gate = Gate(lease_s=1) if gated else None
    real = RealJob(tmp_path, gate=gate)
    simulated = Simulated(tmp_path, gate=gate)
    entries(real, LocalTransport(), situation)
    entries(simulated, simulated.site, situation)
    assert simulated.run(restart=restart) == real.run(restart=restart), real.said
    assert simulated.ran == real.ran
    places = ((LocalTransport(), real), (simulated.site, simulated))
    decided = [decision(transport, job.attempt) for transport, job in places]
    assert decided[0] == decided[1]
    after = [take(transport, job.attempt, OTHER, restart) for transport, job in places]
    assert after[0] == after[1]


@pytest.mark.parametrize(
    "situation",
    [
        (),
        ("taken",),
        ("taken", "outcome.task0"),
        ("taken", "outcome.task1"),
        ("taken", "revoked"),
        ("began",),
        ("began of 1",),
    ],
)
def test_simulated_elements_end_as_the_real_ones(tmp_path, situation):
    real = RealJob(tmp_path, array="0-1")
    simulated = Simulated(tmp_path)
    for job, transport in ((real, LocalTransport()), (simulated, simulated.site)):
        if situation in {("began",), ("began of 1",)}:
            log = f"{claims_dir(job.attempt)}/rabc.{SID}"
            mkdir(transport, claims_dir(job.attempt))
            assert link_once(transport, f"{log}.0", f"{SID} -\n".encode())
            if situation == ("began of 1",):
                assert link_once(transport, f"{log}.task1.0", f"{SID} 0\n".encode())
        else:
            entries(job, transport, situation)
    for restart in (0, 1):
        for task in (0, 1):
            said = simulated.run(restart=restart, task=task)
            assert said == real.run(restart=restart, task=task), real.said
    assert simulated.ran == real.ran
    after = [
        take(transport, job.attempt, OTHER, 0)
        for job, transport in ((real, LocalTransport()), (simulated, simulated.site))
    ]
    assert after[0] == after[1]


def test_a_full_disk_in_memory_takes_neither_file_nor_name():
    files = MemoryFiles()
    assert files.mkdir("/d")
    assert files.write("/d/a", b"x")
    files.full = True
    assert not files.write("/d/b", b"x")
    assert files.read("/d/b") == b""
    assert not files.link("/d/a", "/d/c")
