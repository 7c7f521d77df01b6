"""The places that keep the contract: the fake, that of the simulation, and real Slurm here, over paramiko, ssh and -M."""

import contextlib
import time
from dataclasses import dataclass

import pytest
from sim_site import MemorySlurm

from hpcscale.lab import LabOptions, faults
from hpcscale.lab.process import patience
from hpcscale.lab.pytest_plugin import WARM_S, cancel_all, start
from hpcscale.site import load_site
from hpcscale.slurm.cli import CliClient
from hpcscale.slurm.local import LocalTransport
from hpcscale.slurm.openssh import OpensshTransport
from hpcscale.slurm.ssh import SshTransport
from hpcscale.slurm.transport import Transport
from hpcscale.testing import FakeSlurm

REAL = [
    pytest.param("lab-local", marks=pytest.mark.lab),
    pytest.param("lab-ssh", marks=pytest.mark.lab),
    pytest.param("lab-openssh", marks=pytest.mark.lab),
    # a login node of lab-onprem asks lab-cloud's controller, both in one slurmdbd
    pytest.param("lab-M", marks=[pytest.mark.lab, pytest.mark.slow]),
]


def pytest_collection_modifyitems(items):
    """What mostly waits for Slurm waits here and over paramiko; over ssh too in `make test-all`."""
    for item in items:
        place = getattr(item, "callspec", None) and item.callspec.params.get("place")
        if place == "lab-openssh" and item.get_closest_marker("mostly_waits"):
            item.add_marker("slow")


@dataclass
class Place:
    kind: str
    transport: Transport
    client: CliClient
    partition: str
    dir: str  # scratch directory there

    @property
    def real(self):
        return self.kind not in {"fake", "simulated"}

    def until(self, condition, what, timeout_s=90):
        """Poll, letting time pass; the value that made the condition true."""
        deadline = time.monotonic() + patience(timeout_s)
        for _ in range(100_000):
            if value := condition():
                return value
            if isinstance(self.transport, FakeSlurm):
                self.transport.advance(1)
                if self.transport.clock.now().year > 2026:
                    break
            elif time.monotonic() > deadline:
                break
            else:
                time.sleep(0.1)
        pytest.fail(f"not within {timeout_s} s: {what}")

    def submit(self, *options, script="sleep 300", args=()):
        return self.client.sbatch(
            f"#!/bin/sh\n{script}\n",
            [f"--output={self.dir}/out-%j", "--open-mode=append", "--partition=gpu", *options],
            args,
        )

    def state(self, job_id):
        status = self.client.show(job_id)
        return status.state if status else None

    def until_state(self, job_id, *states):
        self.until(lambda: self.state(job_id) in states, f"{job_id} is {states}")
        return self.client.show(job_id)


@pytest.fixture(scope="session")
def clusters_session(pytestconfig):
    lab = start(pytestconfig, LabOptions(accounting=True, one_slurmdbd=True, suspend_time_s=WARM_S))
    yield lab
    lab.down()


@pytest.fixture
def clusters(clusters_session):
    """Two clusters in one slurmdbd; jobs and faults of a test end with it."""
    yield clusters_session
    faults.clear(clusters_session)
    cancel_all(clusters_session)


def simulated():
    """A site of ``tests/sim_world.py``: files in memory, and answers that are remembered."""
    site = MemorySlurm()
    site.remembers = True
    return site


def make_place(kind, request, tmp_path, monkeypatch):
    if kind in {"fake", "simulated"}:
        fake = FakeSlurm() if kind == "fake" else simulated()
        fake.run(["mkdir", "-p", str(tmp_path / "site")])
        return Place(kind, fake, CliClient(fake), "gpu", str(tmp_path / "site"))
    lab = request.getfixturevalue("clusters" if kind == "lab-M" else "lab")
    monkeypatch.setenv("HPCSCALE_CONFIG_DIR", lab.env()["HPCSCALE_CONFIG_DIR"])
    name = "lab-onprem" if kind == "lab-local" else "lab-cloud"
    site = load_site(name).site
    config = site.transport
    conf, cluster = config.slurm_conf, None
    if kind == "lab-local":
        transport = LocalTransport()
    elif kind == "lab-M":
        # this machine sees both sites' scratch directories, as a centre's login node does
        transport, cluster = LocalTransport(), "lab-cloud"
        conf = lab.env()["SLURM_CONF"]
    else:
        transport = {"lab-ssh": SshTransport, "lab-openssh": OpensshTransport}[kind](
            config.host,
            port=config.port,
            user=config.user,
            identity_file=config.identity_file,
            known_hosts=config.known_hosts,
        )
    client = CliClient(transport, slurm_conf=conf, cluster=cluster)
    scratch = str(lab.site(name).paths.scratch / f"contract-{time.time_ns()}")
    transport.run(["mkdir", "-p", scratch])
    return Place(kind, transport, client, "gpu", scratch)


def pytest_generate_tests(metafunc):
    """The simulation's site has Slurm's commands, and no others to speak of."""
    if "place" in metafunc.fixturenames:
        of_slurm = metafunc.module.__name__.rpartition(".")[2] in {
            "test_client_contract", "test_no_answer",
        }  # fmt: skip
        kinds = ["fake", *["simulated"] * of_slurm, *REAL]
        metafunc.parametrize("place", kinds, indirect=True)


@pytest.fixture
def place(request, tmp_path, monkeypatch):
    place = make_place(request.param, request, tmp_path, monkeypatch)
    yield place
    with contextlib.suppress(Exception):
        place.transport.close()


@pytest.fixture(params=REAL)
def real_place(request, tmp_path, monkeypatch):
    place = make_place(request.param, request, tmp_path, monkeypatch)
    yield place
    with contextlib.suppress(Exception):
        place.transport.close()


@pytest.fixture
def onprem(request, tmp_path, monkeypatch):
    return make_place("lab-local", request, tmp_path, monkeypatch)
