"""The Hydra launcher as Hydra sees it."""

import io
import subprocess
import sys
import tarfile
from dataclasses import fields

import cloudpickle
import pytest
from hydra import compose, initialize
from hydra._internal.callbacks import Callbacks
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.plugins import Plugins
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext

import hpcscale.hydra
from hpcscale.errors import HpcscaleError
from hpcscale.executor.params import valid_parameters
from hpcscale.hydra import HpcscaleLauncher, HpcscaleLauncherConf, jobside


def test_hydra_finds_the_launcher_and_its_configuration():
    (found,) = [c for c in Plugins.instance().discover(Launcher) if issubclass(c, HpcscaleLauncher)]
    stored = ConfigStore.instance().load("hydra/launcher/hpcscale.yaml")
    # Hydra makes no other classes than those that it found, by the module they are defined in
    target = stored.node._target_
    assert Plugins.instance().class_name_to_class[target] is found
    assert Plugins.is_in_toplevel_plugins_module(target)


def test_every_field_is_a_parameter_of_the_executor():
    generic = {"name", "timeout_min", "mem_gb", "tasks_per_node"}
    own = {"_target_", "submitit_folder", "site", "python", "max_num_timeout"}
    names = {f.name for f in fields(HpcscaleLauncherConf)}
    assert names - generic - own <= valid_parameters()


def sent(name, kind=tarfile.REGTYPE):
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as tar:
        member = tarfile.TarInfo(name)
        member.type, member.linkname = kind, "/etc/passwd"
        tar.addfile(member, io.BytesIO())
    return packed.getvalue()


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("../out", tarfile.REGTYPE),
        ("0/../../out", tarfile.REGTYPE),
        ("/tmp/hpcscale-out-of-bounds", tarfile.REGTYPE),
        ("0/link", tarfile.SYMTYPE),
        ("0/hard", tarfile.LNKTYPE),
        ("0/device", tarfile.CHRTYPE),
    ],
)
def test_what_a_job_sends_back_is_files_below_the_sweeps_directory(tmp_path, name, kind):
    with pytest.raises(HpcscaleError, match="sent back"):
        hpcscale.hydra._unpack(sent(name, kind), tmp_path / "sweep")
    assert not (tmp_path / "sweep").exists()
    hpcscale.hydra._unpack(sent("0/result.txt"), tmp_path / "sweep")
    assert (tmp_path / "sweep" / "0" / "result.txt").is_file()


def test_what_a_job_sends_back_is_not_written_through_a_link_that_is_here(tmp_path):
    sweep, elsewhere = tmp_path / "sweep", tmp_path / "elsewhere"
    sweep.mkdir()
    elsewhere.mkdir()
    (sweep / "0").symlink_to(elsewhere)
    with pytest.raises(HpcscaleError, match="leads out"):
        hpcscale.hydra._unpack(sent("0/result.txt"), sweep)
    assert not list(elsewhere.iterdir())


WITHOUT_HPCSCALE = """
import pickle, sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"hpcscale", "hydra_plugins"}:
            raise ImportError(name)

sys.meta_path.insert(0, Refuse())
function, arguments = pickle.load(sys.stdin.buffer)
print(function.__name__, arguments[2].x)
"""


def test_what_a_job_gets_is_read_where_hpcscale_is_not(tmp_path):
    with initialize(version_base=None, config_path=None):
        config = compose(overrides=["hydra/launcher=hpcscale", "+x=1"], return_hydra_config=True)
        loader = GlobalHydra.instance().config_loader()
        launcher = HpcscaleLauncher(str(tmp_path))
        launcher.setup(
            hydra_context=HydraContext(config_loader=loader, callbacks=Callbacks()),
            task_function=len, config=config,
        )  # fmt: skip
        call = launcher._call(["+x=7"], 0, tmp_path, "lab-cloud", home=False)
    cloudpickle.register_pickle_by_value(jobside)
    try:
        sent = cloudpickle.dumps((jobside.run_one, call))
    finally:
        cloudpickle.unregister_pickle_by_value(jobside)
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_HPCSCALE], input=sent, capture_output=True, timeout=60,
        check=False,
    )  # fmt: skip
    assert done.stdout == b"run_one 7\n", done.stderr.decode()
