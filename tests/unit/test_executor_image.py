"""The Python of an image: asked on the login node, or said by the profile."""

import json
import os
import sys

import pytest

from hpcscale.connect import Connection
from hpcscale.errors import (
    InvalidFileError,
    NotFoundError,
    UsageError,
)
from hpcscale.executor import (
    HpcscaleExecutor,
    probe,
)
from hpcscale.site import load_site
from hpcscale.slurm.cli import CliClient

pytestmark = pytest.mark.usefixtures("fresh_registries")


OURS = f"{sys.version_info[0]}.{sys.version_info[1]}"


@pytest.fixture
def image(tmp_path, slurm, monkeypatch):
    """Makes an executor for an image, and the program that starts it on the login node."""
    monkeypatch.setattr(probe, "_SEEN", set())
    (tmp_path / "bin").mkdir()
    (tmp_path / "project").mkdir(exist_ok=True)
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")

    def make(says, runtime="apptainer", name="image.sif", python=None):
        tool = tmp_path / "bin" / {"apptainer": "apptainer", "pyxis": "enroot"}[runtime]
        if says is not None:
            verb = {"apptainer": "exec", "pyxis": "start"}[runtime]
            tool.write_text(
                f'#!/bin/sh\necho "$1 $2 $3 $4" >> {tmp_path}/asked\n'
                f'[ "$1" = {verb} ] && [ "$2" = {tmp_path}/image.sif ] || exit 9\n{says}\n'
            )
            tool.chmod(0o755)
        (tmp_path / "image.sif").touch()
        path = name if "#" in name else f"{tmp_path}/{name}"
        settings = [
            f"state_dir={tmp_path / 'site'}", f"container.runtime={runtime}",
            f"software.torch.image={path}",
        ] + ([] if python is None else [f"software.torch.python={python}"])  # fmt: skip
        connection = Connection(
            site=load_site("lab-onprem", settings).site,
            transport=slurm, client=CliClient(slurm), clock=slurm.clock,
        )  # fmt: skip
        return HpcscaleExecutor(tmp_path / "jobs", connection=connection, software="torch")

    return make


def answer(python, submitit="1.5"):
    found = {"python": [int(p) for p in python.split(".")], "submitit": submitit,
             "cloudpickle": "3", "why": "No module named submitit"}  # fmt: skip
    return f"echo a banner\necho '{json.dumps(found)}'"


@pytest.mark.parametrize("runtime", ["apptainer", "pyxis"])
def test_an_image_on_the_login_node_is_asked_before_anything_is_sent(
    image, slurm, runtime, tmp_path
):
    with pytest.raises(UsageError, match=r"torch's image is Python 3\.8, and .* by 3\.") as caught:
        image(answer("3.8"), runtime).submit(len, "abc")
    assert "hpcscale_software" in caught.value.hint
    with pytest.raises(NotFoundError, match=r"torch's image has no submitit"):
        image(answer(OURS).replace('"1.5"', "null"), runtime).submit(len, "abc")
    assert slurm.jobs == {}
    verb = {"apptainer": "exec", "pyxis": "start"}[runtime]
    asked = (tmp_path / "asked").read_text().splitlines()
    assert set(asked) == {f"{verb} {tmp_path}/image.sif python -c"}
    image(answer(OURS), runtime).submit(len, "abc")
    assert len(slurm.jobs) == 1


def test_what_the_profile_says_of_an_image_is_believed(image, slurm, tmp_path, caplog):
    with pytest.raises(UsageError, match=r"the profile says .* image has Python 3\.8, and"):
        image(answer(OURS), python="3.8.10").submit(len, "abc")
    assert slurm.jobs == {}
    image(answer("3.8"), python=OURS).submit(len, "abc")
    assert len(slurm.jobs) == 1
    assert not (tmp_path / "asked").exists()
    with pytest.raises(InvalidFileError, match="python"):
        image(None, python="three")


@pytest.mark.parametrize(
    ("says", "name", "why"),
    [
        (None, "image.sif", "apptainer"),
        ("echo no user namespaces >&2; exit 255", "image.sif", "no user namespaces"),
        (answer("3.8"), "registry#torch:1", "no file registry#torch:1"),
    ],
)
def test_an_image_that_cannot_be_asked_is_left_to_the_job_with_a_warning(
    image, says, name, why, caplog
):
    executor = image(says, name=name)
    executor.submit(len, "abc")
    assert len(executor.connection.transport.jobs) == 1
    assert "must be " + OURS in caplog.text
    assert why in caplog.text
    assert "[software.torch]" in caplog.text
