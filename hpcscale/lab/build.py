"""Choosing ports and writing the files of a lab's sites, before anything is started."""

import json
import os
import random
import secrets
import shlex
import socket
from pathlib import Path

from hpcscale.errors import LabError
from hpcscale.lab import _power, config, daemons, namespace
from hpcscale.lab.model import (
    CLOUD,
    ONPREM,
    SITES,
    STATE_DIR,
    LabOptions,
    LabState,
    SiteState,
    burst_names,
    node_names,
)
from hpcscale.lab.process import SYSTEM_PATH, find, run

# below the range that the kernel hands out for outgoing connections
PORT_LOW, PORT_HIGH, PORT_BLOCK = 10_000, 32_000, 64


def choose_ports(options: LabOptions) -> tuple[dict[str, dict[str, int]], int, socket.socket]:
    """A block of free loopback ports.

    Labs take whole blocks, and a block belongs to whoever listens on its first port (the on-prem
    slurmctld): so cloud nodes still find their ports free when they boot much later.

    Returns:
        site -> daemon -> port, MariaDB's port, and the open socket that holds the first port:
        close it just before slurmctld starts.

    Raises:
        LabError: no block is free.
    """
    needed = (3 if options.cloud_partition else 2) * options.nodes + 8
    size = -(-needed // PORT_BLOCK) * PORT_BLOCK
    blocks = list(range(PORT_LOW, PORT_HIGH - size, PORT_BLOCK))
    random.SystemRandom().shuffle(blocks)
    for first in blocks:
        holder = _bind(first)
        if holder is None:
            continue
        others = [_bind(port) for port in range(first + 1, first + needed)]
        for other in others:
            if other is not None:
                other.close()
        if None in others:
            holder.close()
            continue
        n = options.nodes
        ports = {
            ONPREM: {"slurmctld": first, "slurmd": first + 8},
            CLOUD: {"slurmctld": first + 1, "slurmd": first + 8 + n, "sshd": first + 2},
        }
        if options.cloud_partition:
            ports[ONPREM]["slurmd_burst"] = first + 8 + 2 * n
        if options.accounting:
            ports[ONPREM]["slurmdbd"] = first + 3
            if options.one_slurmdbd:
                ports[CLOUD]["slurmdbd_there"] = first + 3
            else:
                ports[CLOUD]["slurmdbd"] = first + 4
        return ports, first + 5, holder
    raise LabError(f"no {needed} free ports in a row on 127.0.0.1")


def _bind(port: int) -> socket.socket | None:
    sock = socket.socket()
    try:
        # as the daemons do: ports of closed connections (TIME_WAIT) count as free
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(("127.0.0.1", port))
        sock.listen(1)
    except OSError:
        sock.close()
        return None
    return sock


def make_trees(state: LabState, options: LabOptions) -> None:
    """Everything that does not depend on how the namespaces turn out."""
    ssh = state.directory / "ssh"
    ssh.mkdir(mode=0o700)
    munge_key = secrets.token_bytes(1024)
    for name in SITES:
        paths = state.paths(name)
        paths.make()
        namespace.install_helpers(paths)
        key = paths.etc / "munge.key"
        key.touch(mode=0o600)
        key.write_bytes(munge_key if options.one_slurmdbd else secrets.token_bytes(1024))
        (paths.scratch / STATE_DIR).mkdir()
        (paths.etc / "dev").mkdir()
        for i in range(options.gpus):
            (paths.etc / "dev" / f"nvidia{i}").symlink_to("/dev/null")
        # bound over /etc/hosts while the namespaces are made; its text comes with the ports
        (paths.etc / "hosts").touch()
        if name == CLOUD and os.geteuid() == 0:
            # without PAM, sshd refuses an account whose password is locked, as root's often is
            shadow = paths.etc / "shadow"
            shadow.touch(mode=0o600)
            shadow.write_text("root:*:19000:0:99999:7:::\n")
    _make_keys(state)


def _make_keys(state: LabState) -> None:
    cloud, ssh = state.paths(CLOUD), state.directory / "ssh"
    keygen = find("ssh-keygen") or "ssh-keygen"
    for path, comment in (
        (cloud.etc / "ssh_host_ed25519_key", CLOUD),
        (ssh / "id_ed25519", "hpcscale-lab"),
    ):
        done = run(
            [keygen, "-q", "-t", "ed25519", "-N", "", "-C", comment, "-f", str(path)], timeout_s=20
        )
        if done.returncode != 0:
            raise LabError(f"ssh-keygen failed: {done.stderr.strip()}")
    (cloud.etc / "authorized_keys").write_text((ssh / "id_ed25519.pub").read_text())


def write_configs(state: LabState, options: LabOptions, host_name: str) -> None:
    """Every file that holds a port or a hostname."""
    version = daemons.slurm_version()
    for name, site in state.sites.items():
        paths = state.paths(name)
        text = config.SiteConfig(
            site=name,
            paths=paths,
            options=options,
            user=state.user,
            controller=name if site.keeper_pid is not None else host_name,
            host_names=site.keeper_pid is not None,
            ports=site.ports,
        )
        files = {
            "slurm.conf": config.slurm_conf(text),
            "gres.conf": config.gres_conf(text),
            "topology.conf": config.topology_conf(text),
            "cgroup.conf": config.cgroup_conf(version),
            "hosts": config.hosts(text, host_name),
        }
        for file, content in files.items():
            if content:
                (paths.etc / file).write_text(content)
        _write_program("_taskprolog.sh", paths.etc / "task-prolog")
        if name == CLOUD:
            _write_cloud(state, site, text)
            _write_power(state, site, options, node_names(CLOUD, options.nodes))
        elif options.cloud_partition:
            _write_power(state, site, options, burst_names(options.nodes))


def _write_program(source: str, program: Path) -> None:
    program.write_text((Path(__file__).parent / source).read_text())
    program.chmod(0o755)


def _write_cloud(state: LabState, site: SiteState, text: config.SiteConfig) -> None:
    paths = state.paths(CLOUD)
    scontrol = find("scontrol") or "scontrol"
    path_env = f"{Path(scontrol).parent}:{SYSTEM_PATH}"
    sftp = find("sftp-server")
    (paths.etc / "sshd_config").write_text(
        config.sshd_config(text, path_env, Path(sftp) if sftp else None)
    )
    _write_program("_login.sh", paths.etc / "login")
    (paths.run / "ssh-cut").mkdir()
    public = (paths.etc / "ssh_host_ed25519_key.pub").read_text().split()
    known = state.directory / "ssh" / "known_hosts"
    known.write_text(f"[127.0.0.1]:{site.ports['sshd']} {public[0]} {public[1]}\n")


def _write_power(state: LabState, site: SiteState, options: LabOptions, nodes: list[str]) -> None:
    """What boots these nodes and switches them off."""
    paths = state.paths(site.name)
    _write_program("_prolog.sh", paths.etc / "prolog-slurmctld")
    (paths.etc / "power.py").write_text(Path(_power.__file__).read_text())
    (paths.etc / "power.json").write_text(
        json.dumps(
            {
                "boot_delay_s": options.boot_delay_s,
                "scontrol": find("scontrol") or "scontrol",
                "slurmd": find("slurmd"),
                "slurm_conf": str(paths.slurm_conf),
                "run": str(paths.run),
                "env": daemons.Site(state, site).env(),
                "node": {
                    node: [
                        *namespace.tend_argv(paths, site),
                        *namespace.node_argv(paths, site, node),
                    ]
                    for node in nodes
                },
            },
            indent=1,
        )
    )
    for verb in ("resume", "suspend", "resume-fail"):
        command = [namespace.helper_python(), "-I", "-S", str(paths.etc / "power.py"), verb]
        script = paths.etc / verb
        script.write_text(f'#!/bin/sh\nexec {shlex.join(command)} "$1" </dev/null\n')
        script.chmod(0o755)
