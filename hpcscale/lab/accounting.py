"""``--accounting``: MariaDB, and slurmdbd for each site with its own database on it.

Two slurmdbd, not one: clusters that share a slurmdbd must share a munge key and can be reached
with ``-M``, and then the cloud site would not be reachable over SSH alone. ``--one-slurmdbd`` makes
just that: the centre with two clusters.
"""

import secrets
import subprocess
from collections.abc import Mapping

from hpcscale.errors import LabError
from hpcscale.lab import config, namespace
from hpcscale.lab.daemons import Site
from hpcscale.lab.model import NODE_PREFIX, ONPREM
from hpcscale.lab.process import find, start_time, tail, wait_until

ACCOUNTS = """\
add qos high set Priority=1000 MaxTRESPU=gres/gpu=8
add qos low set Priority=1
add account research Cluster={cluster} Fairshare=60 Description=research Organization=lab
add account teaching Cluster={cluster} Fairshare=40 Description=teaching Organization=lab
add user {user} Account=research Cluster={cluster}
add user {user} Account=teaching Cluster={cluster}
modify user where name={user} set DefaultAccount=research
modify user where name={user} set qos+=high,low
"""


def start_mariadb(site: Site, port: int) -> str:
    """MariaDB inside the on-prem site, on a loopback port, with its own data directory.

    Returns:
        The password of Slurm's user.
    """
    data = site.paths.state / "mysql"
    data.mkdir()
    socket = site.paths.run / "mysql.sock"
    common = ["--no-defaults", f"--datadir={data}", f"--user={site.lab.user}"]
    # small: a lab's database is a few megabytes, and several labs may run at once
    small = ["--innodb-buffer-pool-size=64M", "--innodb-log-file-size=16M"]
    site.exec(
        [
            _program("mariadb-install-db"),
            *common,
            *small,
            "--skip-test-db",
            "--auth-root-authentication-method=normal",
        ],
        timeout_s=120,
        check=True,
    )
    with (site.paths.log / "mariadb.start").open("wb") as log:
        process = subprocess.Popen(
            site.argv(
                [
                    *namespace.tend_argv(site.paths, site.state),
                    _program("mariadbd"),
                    *common,
                    *small,
                    f"--socket={socket}",
                    "--bind-address=127.0.0.1",
                    f"--port={port}",
                    "--innodb-flush-log-at-trx-commit=2",
                    "--innodb-lock-wait-timeout=900",
                    f"--log-error={site.paths.log}/mariadb.log",
                    f"--pid-file={site.paths.run}/mariadb.pid",
                ]
            ),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=site.env(),
            start_new_session=True,
        )
    client = [_program("mariadb"), "--no-defaults", "-u", "root", "-S", str(socket)]

    def answers() -> bool:
        return site.exec([*client, "-e", "select 1"], timeout_s=20).returncode == 0

    up = wait_until(lambda: start_time(process.pid) is None or answers(), 60, poll_s=0.1)
    if not up or start_time(process.pid) is None:
        raise LabError(f"MariaDB did not start:\n{tail(site.paths.log / 'mariadb.log')}")
    process.returncode = 0  # it lives on by design: no warning from Popen's destructor
    password = secrets.token_hex(16)
    statements = [f"create user slurm@'127.0.0.1' identified by '{password}'"]
    for prefix in NODE_PREFIX.values():
        statements.append(f"create database slurm_{prefix}")
        statements.append(f"grant all on slurm_{prefix}.* to slurm@'127.0.0.1'")
    # the root account of a lab's database must not stand open on a shared login node
    statements.append(f"set password for root@localhost = password('{secrets.token_hex(16)}')")
    site.exec(client, stdin=";\n".join(statements) + ";\n", timeout_s=60, check=True)
    return password


def write_slurmdbd_conf(site: Site, text: config.SiteConfig, port: int, password: str) -> None:
    """slurmdbd.conf: slurmdbd insists on mode 0600."""
    file = site.paths.etc / "slurmdbd.conf"
    file.touch(mode=0o600)
    file.write_text(config.slurmdbd_conf(text, port, password))


def add_cluster(site: Site) -> None:
    """Make the cluster known, before its slurmctld starts."""
    site.exec(["sacctmgr", "-i", "add", "cluster", site.name], timeout_s=60, check=True)


def add_accounts(site: Site, *, new_qos: bool) -> None:
    """QOS and accounts; only after slurmctld registered does slurmdbd know gres/gpu.

    Args:
        site: whose cluster.
        new_qos: False when another cluster's start has made them in this slurmdbd.
    """

    def knows_gpus() -> bool:
        done = site.exec(["sacctmgr", "-n", "-P", "show", "tres", "format=type,name"], timeout_s=60)
        return "gres|gpu" in done.stdout

    if not wait_until(knows_gpus, 30, poll_s=0.1):
        raise LabError("slurmdbd never heard of gres/gpu", where=site.name)
    lines = ACCOUNTS.format(cluster=site.name, user=site.lab.user).splitlines(keepends=True)
    commands = "".join(line for line in lines if new_qos or not line.startswith("add qos"))
    site.exec(["sacctmgr", "-i"], stdin=commands, timeout_s=60, check=True)


def mariadb_pid(sites: Mapping[str, Site]) -> int | None:
    """MariaDB's pid; None when it does not run."""
    return sites[ONPREM].pid_of("mariadb")


def _program(name: str) -> str:
    path = find(name)
    if path is None:
        raise LabError(f"{name} is not installed")
    return path
