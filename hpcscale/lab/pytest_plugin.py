"""Pytest fixtures on real Slurm. Load with ``pytest_plugins = ["hpcscale.lab.pytest_plugin"]``.

- ``session_labs``: keeps one plain lab for the session (of each xdist worker).
- ``lab``: that lab, left without jobs and faults after each test, and made anew when a test ended a
  controller: Slurm 22.05 may take nodes for used by a job that was completing at its restart.
  Cloud nodes that it booted stay up: what needs them cold wants a lab of its own.
- ``lab_env``: ``lab``, with the environment of one of its users and an empty ledger.
- ``lab_factory``: ``lab_factory(nodes=2, fast=10)`` builds a lab for this test alone (0.5 s);
  ``use_lab(lab)`` then does what ``lab_env`` does.

Where no lab can be started the tests are skipped, but they fail when ``CI`` or
``HPCSCALE_STRICT_SLURM=1`` is set: a green run must not mean that nothing ran.
"""

import os
import shutil
import tempfile
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import pytest

from hpcscale.errors import HpcscaleError, LabError
from hpcscale.lab import faults
from hpcscale.lab.daemons import Site
from hpcscale.lab.lab import Lab
from hpcscale.lab.model import LabOptions
from hpcscale.lab.process import tail, wait_until

LAB_FIXTURES = frozenset({"session_labs", "lab", "lab_env", "lab_factory"})
IDLE_TIMEOUT_S = 90
# the session's cloud nodes stay up: none is on its way down when the next test wants it
WARM_S = 86400
MAY_SKIP = pytest.StashKey[bool]()
LABS = pytest.StashKey[list[Lab]]()

LabFactory = Callable[..., Lab]


def strict() -> bool:
    """Must a lab that does not start fail the test?"""
    return bool(os.environ.get("CI")) or os.environ.get("HPCSCALE_STRICT_SLURM") == "1"


def pytest_configure(config: pytest.Config) -> None:
    """Remember the environment before fixtures change it; make the marker known."""
    config.stash[MAY_SKIP] = not strict()
    config.addinivalue_line("markers", "lab: needs real Slurm on this machine (hpcscale lab)")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark every test that uses a lab."""
    for item in items:
        if LAB_FIXTURES & set(getattr(item, "fixturenames", ())):
            item.add_marker("lab")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Attach what Slurm says to the report of a failed test."""
    report = yield
    if report.failed:
        for lab in item.stash.get(LABS, []):
            for name in lab.sites:
                report.sections.append((f"{name} of {lab.state.directory}", diagnosis(lab, name)))
    return report


def diagnosis(lab: Lab, name: str) -> str:
    """Nodes, jobs, and the end of the logs of controller, boots and nodes that are down."""
    site = lab.site(name)
    parts = []
    for argv in (["sinfo", "-N"], ["squeue", "-o", "%i %T %r %S %N %k %j"]):
        try:
            done = site.exec(argv, timeout_s=5)
            parts.append(f"$ {' '.join(argv)}\n{done.stdout}{done.stderr}")
        except LabError as exc:
            parts.append(f"$ {' '.join(argv)}\n{exc}")
    logs = ["slurmctld", *(["power"] if site.booting_nodes else [])]
    try:
        states = site.node_states(timeout_s=5)
        logs += [f"slurmd.{node}" for node, state in states.items() if state.startswith("down")]
    except LabError:
        pass  # it has been told above
    parts += [
        f"{log}.log:\n{tail(file, 40)}"
        for log in logs
        if (file := site.paths.log / f"{log}.log").exists()
    ]
    return "\n".join(parts)


def start(config: pytest.Config, options: LabOptions) -> Lab:
    """Bring a lab up in a directory of its own, or skip, or fail."""
    # not below pytest's own directories: their names may be too long for Unix sockets
    directory = Path(tempfile.mkdtemp(prefix="hpcscale-lab-", dir="/tmp"))  # likewise
    try:
        # a killed test run must not leave daemons behind
        return Lab.up(directory, options, die_with_me=True)
    except HpcscaleError as exc:
        shutil.rmtree(directory, ignore_errors=True)
        text = f"no lab: {exc}" + (f" ({exc.hint})" if exc.hint else "")
        if config.stash[MAY_SKIP]:
            pytest.skip(text)
        pytest.fail(text, pytrace=False)


def _remember(item: pytest.Item, lab: Lab) -> None:
    item.stash.setdefault(LABS, []).append(lab)


class SessionLabs:
    """One lab after the other, for the tests of a session."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._lab: Lab | None = None
        self._controllers: list[int | None] = []

    def get(self) -> Lab:
        """The lab; it is started when there is none."""
        if self._lab is None:
            self._lab = start(self._config, LabOptions(suspend_time_s=WARM_S))
            self._controllers = _controllers(self._lab)
        return self._lab

    def clean(self) -> None:
        """Leave it as a new one is, or have a new one next time."""
        lab = self.get()
        faults.clear(lab)
        if _controllers(lab) == self._controllers:
            cancel_all(lab)
        else:
            self.down()

    def down(self) -> None:
        """Take it down, if there is one."""
        lab, self._lab = self._lab, None
        if lab is not None:
            lab.down()


def _controllers(lab: Lab) -> list[int | None]:
    return [site.pid_of("slurmctld") for site in lab.sites.values()]


@pytest.fixture(scope="session")
def session_labs(pytestconfig: pytest.Config) -> Iterator[SessionLabs]:
    """The session's plain lab, and its successors."""
    labs = SessionLabs(pytestconfig)
    yield labs
    labs.down()


@pytest.fixture
def lab(session_labs: SessionLabs, request: pytest.FixtureRequest) -> Iterator[Lab]:
    """The session's lab; jobs and faults of a test end with it."""
    current = session_labs.get()
    _remember(request.node, current)
    yield current
    session_labs.clean()


@pytest.fixture
def use_lab(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[Lab], Lab]:
    """``use_lab(lab)`` puts ``lab env`` into the environment; the ledger is this test's own."""

    def use(lab: Lab) -> Lab:
        for name, value in lab.env().items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("HPCSCALE_STATE_DIR", str(tmp_path / "state"))
        return lab

    return use


@pytest.fixture
def lab_env(lab: Lab, use_lab: Callable[[Lab], Lab]) -> Lab:
    """``lab``, and this test is one of its users."""
    return use_lab(lab)


@pytest.fixture
def lab_factory(request: pytest.FixtureRequest) -> Iterator[LabFactory]:
    """Build labs with their own options; they are taken down after the test."""
    labs: list[Lab] = []

    def build(**options: Any) -> Lab:
        lab = start(request.config, LabOptions(**options))
        labs.append(lab)
        _remember(request.node, lab)
        return lab

    yield build
    for lab in labs:
        lab.down()


def cancel_all(lab: Lab) -> None:
    """Cancel every job on both sites and wait until the queues are empty."""
    for site in lab.sites.values():
        listing = ["squeue", "-h", "-o", "%i"]
        if not site.exec(listing, check=True).stdout:
            continue
        site.exec(["scancel", "-u", lab.state.user], check=True)

        def empty(site: Site = site, listing: list[str] = listing) -> bool:
            return not site.exec(listing, check=True).stdout

        if not wait_until(empty, IDLE_TIMEOUT_S, poll_s=0.1):
            raise LabError("jobs do not end", where=site.name)
