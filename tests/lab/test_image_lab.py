"""Functions of several nodes in an image, on real Slurm, through a stand-in for Apptainer.

The stand-in (tests/apptainer_stand_in.py) isolates as `apptainer exec` does: an own root with the
image's files alone. It shows that our scripts and submitit's job side need nothing else; it does
not show that Apptainer itself does what its guide says.
"""

import sys

import apptainer_stand_in
import cloudpickle
import pytest
import submitit
from job_helpers import data
from lab_helpers import until
from submitit.core import plugins, utils

from hpcscale.connect import connect
from hpcscale.errors import UsageError
from hpcscale.executor import HpcscaleExecutor, probe, watch
from hpcscale.site import load_site

pytestmark = pytest.mark.slow
PYTHON = f"{sys.version_info[0]}.{sys.version_info[1]}"


@pytest.fixture(autouse=True)
def _fresh(monkeypatch):
    plugins._get_plugins.cache_clear()
    plugins.get_executors.cache_clear()
    monkeypatch.setattr(watch, "_WATCHERS", {})
    monkeypatch.setattr(watch, "_LEDGERS", {})
    monkeypatch.setattr(probe, "_SEEN", set())
    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    yield
    cloudpickle.unregister_pickle_by_value(sys.modules[__name__])
    for watcher in watch._WATCHERS.values():
        watcher.connection.close()
    for ledger in watch._LEDGERS.values():
        ledger.close()


@pytest.fixture(scope="module")
def image(tmp_path_factory):
    made = tmp_path_factory.mktemp("made") / "image"
    apptainer_stand_in.make_image(made)
    return made


@pytest.fixture
def boxed(lab_env, image, tmp_path, monkeypatch):
    """Makes an executor whose functions run in the image at a site."""

    def make(name, *settings):
        here = lab_env.site(name).paths.scratch
        if not (here / "bin" / "apptainer").exists():
            apptainer_stand_in.install(here / "bin")
            image_there = here / "image"
            image_there.parent.mkdir(exist_ok=True)
            apptainer_stand_in.copy(image, image_there)
        path = f"{here}/bin:/usr/local/bin:/usr/bin:/bin"
        monkeypatch.setenv("PATH", path, prepend=":")
        words = [
            "container.runtime=apptainer", f"software.boxed.image={here}/image", f"env.PATH={path}",
            *settings,
        ]  # fmt: skip
        connection = connect(load_site(name, words).site)
        made = HpcscaleExecutor(tmp_path / "jobs", connection=connection, software="boxed")
        made.update_parameters(timeout_min=5)
        return made

    return make


class Boxed(submitit.helpers.Checkpointable):
    """Tells where it is, the second time it starts."""

    def __init__(self):
        self.seen = []

    def __call__(self, marks):
        import os
        import shutil
        import time
        from pathlib import Path

        restart = int(os.environ.get("SLURM_RESTART_COUNT", "0"))
        self.seen.append(restart)
        print("restart", restart, flush=True)
        end = time.monotonic() + (300 if restart == 0 else 0)
        while time.monotonic() < end:
            time.sleep(0.1)
        try:
            Path("/opt/written").touch()
            written = "written"
        except OSError as exc:
            written = exc.strerror
        torch = submitit.helpers.TorchDistributedEnvironment()
        torch.export(set_cuda_visible_devices=False)
        return {
            "seen": self.seen,
            "marks": marks,
            "rank": (torch.rank, torch.world_size, torch.local_rank),
            "master": (torch.master_addr, torch.master_port),
            "image": Path("/etc/image-release").read_text(),
            "host": [path for path in ("/usr", "/home", "/work") if Path(path).exists()],
            "scontrol": shutil.which("scontrol"),
            "python": os.environ["APPTAINER_CONTAINER"] != "" and os.__file__,
            "written": written,
        }


@pytest.mark.parametrize("name", ["lab-onprem", "lab-cloud"])
def test_a_function_of_two_nodes_in_an_image_is_started_and_requeued(boxed, name):
    # the image of a local site is asked for its Python; over SSH the profile's word is taken
    says = [] if name == "lab-onprem" else [f"software.boxed.python={PYTHON}"]
    made = boxed(name, *says)
    made.update_parameters(nodes=2, tasks_per_node=2)
    job = made.submit(Boxed(), "kept")
    # all of them: a signal ends a task that has not got as far as its handlers
    until(lambda: all("restart 0" in (job.task(n).stdout() or "") for n in range(4)), 60, "it runs")
    job._interrupt(timeout=False)
    told = job.results()
    assert [t["rank"] for t in told] == [(0, 4, 0), (1, 4, 1), (2, 4, 0), (3, 4, 1)]
    assert len({t["master"] for t in told}) == 1
    for one in told:
        assert one["seen"] == [0, 1]
        assert one["marks"] == "kept"
        assert one["image"] == "an image of tests\n"
        assert one["python"] == f"/opt/python/lib/python{PYTHON}/os.py"
        assert (one["host"], one["scontrol"]) == ([], None)
        assert one["written"] == "Read-only file system"
    ended = data("status", str(job.ref))["runs"][0]["attempts"][0]
    assert (ended["state"], ended["restarts"]) == ("COMPLETED", 1)


def test_an_array_and_an_error_come_back_from_an_image(boxed):
    made = boxed("lab-onprem")
    jobs = made.map_array(divide, [6, 1], [3, 0])
    assert jobs[0].result() == (2, "an image of tests\n")
    with pytest.raises(utils.FailedJobError, match="ZeroDivisionError"):
        jobs[1].result()
    assert jobs[1].outcome()["function"]["error"] == "ZeroDivisionError"


def divide(a, b):
    from pathlib import Path

    return a // b, Path("/etc/image-release").read_text()


def test_an_image_of_another_python_is_refused_before_anything_is_sent(boxed):
    with pytest.raises(UsageError, match=r"the profile says that boxed's image has Python 3\.8"):
        boxed("lab-onprem", "software.boxed.python=3.8").submit(divide, 1, 1)
