"""A pytest plugin that runs submitit's installed tests with our executor in place of its own.

``python -m pytest -p submitit_substitute --pyargs submitit…`` with these variables:

    HPCSCALE_SUBSTITUTE   a site's name (its Slurm runs the jobs), or ``fake`` for ``FakeSlurm``
    HPCSCALE_ONLY         a JSON file with the ids of the tests to run
    HPCSCALE_OUTCOMES     where the outcome of each test is appended to, one JSON list a line

Nothing of submitit is changed on disk: its classes are exchanged in this process.
"""

import asyncio
import contextlib
import inspect
import json
import os
import sys
import tempfile
from pathlib import Path

import pytest
from submitit.core import plugins, test_core, utils
from submitit.local import debug, local
from submitit.slurm import slurm, test_slurm

from hpcscale.connect import Connection
from hpcscale.executor import HpcscaleExecutor, HpcscaleJob, watch
from hpcscale.ledger import Ledger
from hpcscale.site import load_site
from hpcscale.slurm.cli import CliClient
from hpcscale.testing import FakeSlurm
from hpcscale.units import JobId

SUBSTITUTE = os.environ["HPCSCALE_SUBSTITUTE"]
FIRST_ID = 12  # of the jobs of submitit's own mock


class OnSite(HpcscaleExecutor):
    """Takes submitit's general parameter names directly, as its local executor does."""

    def __init__(self, folder, max_num_timeout=3, max_pickle_size_gb=1.0, python=None):
        python = python or sys.executable
        super().__init__(folder, max_num_timeout, max_pickle_size_gb, python, site=SUBSTITUTE)
        # a job inherits no environment; submitit's tests start a `python`
        self.parameters["env"] = {"PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin"}

    def _internal_update_parameters(self, **kwargs):
        # two seconds are to end a hanging job; Slurm makes a minute of them, and sends its warning
        # at once, perhaps before Python has a handler for it
        if "test_command_function_deadlock" in os.environ["PYTEST_CURRENT_TEST"]:
            kwargs["timeout_min"] = 10
        super()._internal_update_parameters(**self._convert_parameters(kwargs))


class LocalExecutor(OnSite):
    pass


class DebugExecutor(OnSite):
    pass


class Obedient(FakeSlurm):
    """As submitit's mock: jobs run at once, and until they are told to end."""

    def _end(self, job):
        pass

    def _sbatch(self, argv, script):
        done = super()._sbatch(argv, script)
        for job in self.jobs.values():
            job.throttle = None
        return done


class World:
    """What a ``FakeSlurm`` of one test holds."""

    def __init__(self, slurm=Obedient):
        self.slurm = slurm(nodes=8)
        self.slurm._next = FIRST_ID
        self.directory = Path(tempfile.mkdtemp(prefix="submitit-own-"))
        site = load_site("lab-onprem", [f"state_dir={self.directory}", 'shared_dirs=["/tmp"]']).site
        self.connection = Connection(
            site=site, transport=self.slurm, client=CliClient(self.slurm), clock=self.slurm.clock
        )
        watch._WATCHERS.clear()
        watch._LEDGERS.clear()
        watch.watcher_of(site.name).use(self.connection)

    def set_job_state(self, job_id, state):
        """Of a job that is there; submitit's mock needs no submission for one."""
        if found := self.slurm.jobs.get(int(job_id)):
            found.state = state

    @contextlib.contextmanager
    def job_context(self, job_id):
        """Inside of the job; it ends with the context, as a job does with its process."""
        job = JobId.parse(job_id)
        with utils.environment_variables(
            _USELESS_TEST_ENV_VAR_="1", SUBMITIT_EXECUTOR="hpcscale", SLURM_JOB_ID=job_id
        ):
            yield
        for found in self.slurm.jobs.values():
            if found.base == job.base and found.task == job.array_task:
                found.state = "COMPLETED"


WORLDS = []


class SlurmExecutor(HpcscaleExecutor):
    slurm = Obedient

    def __init__(self, folder, max_num_timeout=3, max_pickle_size_gb=1.0, python=None):
        world = WORLDS[-1] if WORLDS else World(self.slurm)
        super().__init__(
            folder, max_num_timeout, max_pickle_size_gb, python, connection=world.connection,
            ledger=Ledger.open(),
        )  # fmt: skip

    @classmethod
    def affinity(cls):
        return 2


class FakeExecutor(SlurmExecutor):
    """Its tests do not say when a job ends: at once."""

    slurm = FakeSlurm


@contextlib.contextmanager
def mocked_slurm():
    WORLDS.append(World())
    try:
        yield WORLDS[-1]
    finally:
        WORLDS.clear()


if SUBSTITUTE == "fake":
    slurm.SlurmExecutor = SlurmExecutor
    slurm.SlurmJob = HpcscaleJob
    test_slurm.mocked_slurm = mocked_slurm
    test_core.FakeExecutor = FakeExecutor
    test_core.FakeJob = HpcscaleJob
else:
    local.LocalExecutor = LocalExecutor
    local.LocalJob = HpcscaleJob
    debug.DebugExecutor = DebugExecutor
    debug.DebugJob = HpcscaleJob
for cached in (plugins._get_plugins, plugins.get_executors, plugins.get_job_environments):
    cached.cache_clear()


def short(nodeid):
    """``core/test_core.py::test_x[1]`` of whatever pytest calls it."""
    path, _, name = nodeid.partition("::")
    return f"{path.rpartition('submitit/')[2]}::{name.partition('[')[0]}"


def pytest_configure(config):
    config.addinivalue_line("markers", "asyncio: a coroutine")


def pytest_collection_modifyitems(config, items):
    only = set(json.loads(Path(os.environ["HPCSCALE_ONLY"]).read_text()))
    items[:] = [item for item in items if short(item.nodeid) in only]


def pytest_pyfunc_call(pyfuncitem):
    if not inspect.iscoroutinefunction(pyfuncitem.obj):
        return None
    wanted = pyfuncitem._fixtureinfo.argnames
    asyncio.run(pyfuncitem.obj(**{name: pyfuncitem.funcargs[name] for name in wanted}))
    return True


@pytest.fixture(autouse=True)
def _fresh(tmp_path, monkeypatch):
    """A ledger and a watcher of its own for each test."""
    monkeypatch.setenv("HPCSCALE_STATE_DIR", str(tmp_path.parent / f"{tmp_path.name}-state"))
    watch._WATCHERS.clear()
    watch._LEDGERS.clear()
    if SUBSTITUTE == "fake":  # a job that is made by hand is of the folder's site
        World()
        (tmp_path / ".hpcscale").mkdir()
        (tmp_path / ".hpcscale" / "site").write_text("lab-onprem")
    yield
    for watcher in watch._WATCHERS.values():
        if watcher._connection is not None:
            watcher._connection.close()


def pytest_runtest_logreport(report):
    if report.when == "call" or report.outcome != "passed":
        with Path(os.environ["HPCSCALE_OUTCOMES"]).open("a", encoding="utf-8") as file:
            file.write(json.dumps([short(report.nodeid), report.outcome]) + "\n")
