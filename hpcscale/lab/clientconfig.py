"""What a user of the lab needs: site overlays, the state directory, ``SLURM_CONF``.

``<lab dir>/config`` stands in for ``~/.config/hpcscale``: its ``config.toml`` makes ``lab-onprem``
the default site, its ``sites/*.toml`` fill in what the bundled ``lab-onprem`` and ``lab-cloud``
cannot know (ports, keys, directories of this one lab).
"""

import json
from pathlib import Path

from hpcscale.lab.model import CLOUD, ONPREM, SITES, STATE_DIR, LabState


def _toml(table: dict[str, str | int | list[str]]) -> str:
    # JSON strings, numbers and lists of strings (no control characters) are TOML as well
    return "".join(f"{k} = {json.dumps(v)}\n" for k, v in table.items())


def write_overlays(state: LabState) -> None:
    """Write ``config/config.toml``, ``config/sites/lab-onprem.toml`` and ``lab-cloud.toml``."""
    sites = state.directory / "config" / "sites"
    sites.mkdir(parents=True)
    (sites.parent / "config.toml").write_text(_toml({"default_site": ONPREM}))
    (state.directory / "user-state").mkdir(mode=0o700)
    ssh = state.directory / "ssh"
    options = state.lab_options()
    shape: dict[str, str | int | list[str]] = {
        "nodes": options.nodes,
        "gpus_per_node": options.gpus,
    }
    transports: dict[str, dict[str, str | int | list[str]]] = {
        ONPREM: {"kind": "local", "slurm_conf": str(state.paths(ONPREM).slurm_conf)},
        CLOUD: {
            "kind": "ssh",
            "host": "127.0.0.1",
            "port": state.sites[CLOUD].ports["sshd"],
            "user": state.user,
            "identity_file": str(ssh / "id_ed25519"),
            "known_hosts": str(ssh / "known_hosts"),
            "slurm_conf": str(state.paths(CLOUD).slurm_conf),
        },
    }
    for name in SITES:
        scratch = state.paths(name).scratch
        top: dict[str, str | int | list[str]] = {
            "state_dir": str(scratch / STATE_DIR),
            "gpus_per_node": options.gpus,
        }
        if name == ONPREM:
            # this machine is the on-prem site's login node: both see the scratch directory
            top["shared_dirs"] = [str(scratch)]
        text = _toml(top) + "\n[transport]\n" + _toml(transports[name])
        for partition in ("gpu", "spot", "urgent") if name == ONPREM else ("gpu",):
            text += f"\n[partitions.{partition}]\n" + _toml(shape)
        if name == ONPREM and options.cloud_partition:
            text += _cloud_partition(shape, str(scratch / "cloud"))
        text += "\n[software.lab-python]\n" + _toml({"venv": str(state.software)})
        (sites / f"{name}.toml").write_text(text)


def _cloud_partition(shape: dict[str, str | int | list[str]], scratch: str) -> str:
    """The profile of lab-onprem's partition ``cloud``: another network, scratch and price."""
    text = "\n[partitions.cloud]\n" + _toml(
        shape | {"gpu_type": "h100", "max_time": "7-00:00:00", "note": "Nodes boot on demand."}
    )
    text += "gpu_hour_usd = 6.88\n"
    text += "\n[partitions.cloud.burst]\ntarget = true\n" + _toml(
        {"boot_allowance_s": 30, "boot_timeout_s": 120}
    )
    text += "\n[partitions.cloud.fabric]\n" + _toml({"kind": "cloud-loopback"})
    text += "\n[partitions.cloud.fabric.env]\n" + _toml(
        {"GLOO_SOCKET_IFNAME": "lo", "TP_SOCKET_IFNAME": "lo"}
    )
    text += "\n[partitions.cloud.env]\n" + _toml({"LAB_SCRATCH": scratch})
    text += "\n[partitions.cloud.data]\n" + _toml({"regions": ["lab-cloud"], "tags": ["public"]})
    return text


def client_env(state: LabState) -> dict[str, str]:
    """The variables that point hpcscale and Slurm's own commands at this lab."""
    return {
        "HPCSCALE_LAB_DIR": str(state.directory),
        "HPCSCALE_CONFIG_DIR": str(state.directory / "config"),
        "HPCSCALE_STATE_DIR": str(state.directory / "user-state"),
        "SLURM_CONF": str(state.paths(ONPREM).slurm_conf),
    }


def is_lab_dir(directory: Path) -> bool:
    """Was this directory made by ``lab up``? Only then may ``lab down`` remove it."""
    return (directory / "lab.json").is_file()
