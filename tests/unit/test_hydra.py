"""The Hydra launcher as Hydra sees it."""

import io
import tarfile
from dataclasses import fields

import pytest
from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins
from hydra.plugins.launcher import Launcher

import hpcscale.hydra
from hpcscale.errors import HpcscaleError
from hpcscale.executor.params import valid_parameters
from hpcscale.hydra import HpcscaleLauncher, HpcscaleLauncherConf


def test_hydra_finds_the_launcher_and_its_configuration():
    assert HpcscaleLauncher in Plugins.instance().discover(Launcher)
    stored = ConfigStore.instance().load("hydra/launcher/hpcscale.yaml")
    # Hydra makes no other classes than those that it found, by the module they are defined in
    assert stored.node._target_ in Plugins.instance().class_name_to_class


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
