"""No answer is never taken for an answer: a stopped and a dead controller, faked and real."""

import contextlib

import pytest
from lab_helpers import impatient

from hpcscale.errors import NotSentError, SubmitUnknownError, UnreachableError
from hpcscale.lab import faults
from hpcscale.slurm.cli import CliClient
from hpcscale.testing import FakeSlurm

SCRIPT = "#!/bin/sh\nsleep 60\n"
OPTIONS = ["--output=/dev/null", "--partition=gpu", "--hold"]


class Controller:
    """Stops, kills and revives the controller of a place."""

    def __init__(self, kind, request, monkeypatch):
        if kind == "fake":
            self.fake = FakeSlurm()
            transport, conf = self.fake, None
        else:
            from hpcscale.slurm.local import LocalTransport

            self.fake, self.lab = None, request.getfixturevalue("lab")
            transport, conf = LocalTransport(), self.lab.env()["SLURM_CONF"]
        self.client = CliClient(transport, slurm_conf=conf, timeout_s=1)
        self.after = contextlib.ExitStack()
        self.slow = CliClient(transport, slurm_conf=conf, timeout_s=30)

    def hang(self):
        if self.fake:
            self.fake.hang()
        else:
            faults.controller(self.lab, "lab-onprem", "stop")

    def die(self):
        if self.fake:
            self.fake.stop()
        else:
            faults.controller(self.lab, "lab-onprem", "kill")
            self.after.enter_context(impatient(self.lab))

    def revive(self):
        if self.fake:
            self.fake.resume()
        else:
            self.after.close()
            faults.clear(self.lab)


@pytest.fixture(params=["fake", pytest.param("lab-local", marks=pytest.mark.lab)])
def controller(request, monkeypatch):
    controller = Controller(request.param, request, monkeypatch)
    yield controller
    controller.revive()


def test_a_controller_that_hangs(controller):
    job = controller.slow.sbatch(SCRIPT, OPTIONS)
    controller.hang()
    for ask in (
        lambda c: c.jobs([job]),
        lambda c: c.show(job),
        lambda c: c.now(),
        lambda c: c.update(job, {"Comment": "x"}),
    ):
        with pytest.raises(UnreachableError) as caught:
            ask(controller.client)
        assert caught.value.transient
    with pytest.raises(SubmitUnknownError):
        controller.client.sbatch(SCRIPT, OPTIONS, timeout_s=2)
    controller.revive()
    assert controller.slow.show(job).job_id == job


def test_a_dead_controller_is_no_answer_and_nothing_was_submitted(controller):
    job = controller.slow.sbatch(SCRIPT, OPTIONS)
    controller.die()
    with pytest.raises(NotSentError, match="does not answer"):
        controller.slow.jobs([job])
    with pytest.raises(NotSentError) as caught:
        controller.slow.sbatch(SCRIPT, OPTIONS)
    assert not isinstance(caught.value, SubmitUnknownError)
