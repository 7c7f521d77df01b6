"""Every test starts from the same empty environment; fixtures on real Slurm come from the lab."""

import os
import signal

import pytest
from hypothesis import HealthCheck, settings
from order import at_the_heads, minutes

# what is true is no matter of how quick a busy machine is: no example is timed
settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")

# behind nohup or in the background of a script Ctrl-C is ignored, and with us all that we start
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
# likewise a hang-up, which scripts are to hear; a handler keeps it from us, and is not inherited
if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    signal.signal(signal.SIGHUP, lambda *_: None)

pytest_plugins = ["hpcscale.lab.pytest_plugin"]

# what would change hpcscale's or Slurm's behaviour behind a test's back
PREFIXES = ("HPCSCALE_", "SLURM_", "SBATCH_", "SALLOC_", "SRUN_", "SQUEUE_", "SINFO_", "SACCT_",
            "SCANCEL_", "XDG_")  # fmt: skip
KEPT = {"HPCSCALE_STRICT_SLURM"}


@pytest.hookimpl(trylast=True)  # of those that are left after -m and -k
def pytest_collection_modifyitems(config, items):
    """What takes long is begun first: no worker is left alone with it when the others are done."""
    items.sort(key=lambda item: item.get_closest_marker("begins_first") is None)
    long = sorted(filter(minutes, items), key=minutes, reverse=True)
    rest = [item for item in items if not minutes(item)]
    items[:] = at_the_heads(long, rest, getattr(config, "workerinput", {}).get("workercount", 1))


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch, tmp_path):
    """No setting of the developer's reaches a test, and no test writes into the real home."""
    for name in list(os.environ):
        if name.startswith(PREFIXES) and name not in KEPT:
            monkeypatch.delenv(name)
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("HPCSCALE_ETC_DIR", str(tmp_path / "etc"))
    monkeypatch.setenv("HPCSCALE_CONFIG_DIR", str(tmp_path / "config"))
    monkeypatch.setenv("HPCSCALE_STATE_DIR", str(tmp_path / "state"))
