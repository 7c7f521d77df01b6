"""The text of every Slurm, munge-related and OpenSSH configuration file of a lab. Pure.

Settings are those of slurm.conf(5), gres.conf(5), topology.conf(5), slurmdbd.conf(5) and
sshd_config(5). What is fast here (scheduler intervals, KillWait) is fast for tests.
"""

import os
from dataclasses import dataclass
from pathlib import Path

from hpcscale.lab.model import (
    BURST_PREFIX,
    NODE_PREFIX,
    ONPREM,
    LabOptions,
    SitePaths,
    burst_names,
    node_names,
)

SOCKETS, CORES = 2, 16
MEMORY_MB = 512_000
SCHEDULER = (
    "batch_sched_delay=0,sched_interval=2,sched_min_interval=0,"
    "bf_interval=1,bf_max_job_test=5000,default_queue_depth=1000"
)


@dataclass(frozen=True, slots=True)
class SiteConfig:
    """What the text of a site's files depends on.

    Args:
        controller: SlurmctldHost, must be what ``hostname -s`` says where slurmctld runs.
        host_names: each node has its own hostname (own UTS namespace).
        ports: see ``SiteState.ports``.
    """

    site: str
    paths: SitePaths
    options: LabOptions
    user: str
    controller: str
    host_names: bool
    ports: dict[str, int]

    @property
    def prefix(self) -> str:
        """Nodes are called prefix1 … prefixN."""
        return NODE_PREFIX[self.site]

    @property
    def all_nodes(self) -> str:
        """The hostlist of all nodes."""
        return f"{self.prefix}[1-{self.options.nodes}]"

    @property
    def cloud_nodes(self) -> str:
        """The hostlist of the nodes of its own cloud partition; empty where it has none."""
        own = self.site == ONPREM and self.options.cloud_partition
        return f"{BURST_PREFIX}[1-{self.options.nodes}]" if own else ""

    def real_s(self, controller_s: float, at_least_real_s: float) -> int:
        """A timeout in the controller's seconds that lasts at least some real seconds.

        With ``--fast N`` the controller's second is 1/N of a real one; what waits for daemons
        that live in real time must not shrink below what they need.
        """
        return int(max(controller_s, at_least_real_s * self.options.fast))


def slurm_conf(config: SiteConfig) -> str:
    """slurm.conf of one site."""
    paths, options = config.paths, config.options
    lines = [
        f"ClusterName={config.site}",
        f"SlurmctldHost={config.controller}(127.0.0.1)",
        f"SlurmctldPort={config.ports['slurmctld']}",
        f"SlurmUser={config.user}",
        f"SlurmdUser={config.user}",
        "AuthType=auth/munge",
        # 5 is the least slurmctld takes; a requeued job waits this long + 1 s
        f"AuthInfo=socket={paths.munge_socket},cred_expire=5",
        "CredType=cred/munge",
        f"StateSaveLocation={paths.state}/ctld",
        f"SlurmdSpoolDir={paths.state}/spool.%n",
        f"SlurmctldPidFile={paths.run}/slurmctld.pid",
        f"SlurmdPidFile={paths.run}/slurmd.%n.pid",
        f"SlurmctldLogFile={paths.log}/slurmctld.log",
        f"SlurmdLogFile={paths.log}/slurmd.%n.log",
        "SlurmctldDebug=info",
        "SlurmdDebug=info",
        "LogTimeFormat=iso8601_ms",
        # no cgroups, no systemd, no PAM: a lab runs where these are not
        "ProctrackType=proctrack/linuxproc",
        "TaskPlugin=task/none",
        "JobAcctGatherType=jobacct_gather/linux",
        "JobAcctGatherFrequency=task=5",
        "MpiDefault=none",
        "SwitchType=switch/none",
        # nodes claim more than this machine has
        "SlurmdParameters=config_overrides",
        "ReturnToService=2",
        "PropagateResourceLimits=NONE",
        "GresTypes=gpu",
        "SelectType=select/cons_tres",
        "SelectTypeParameters=CR_Core_Memory",
        "DefMemPerCPU=1000",
        "SchedulerType=sched/backfill",
        f"SchedulerParameters={options.scheduler or SCHEDULER}",
        f"KillWait={options.kill_wait_s}",
        f"MinJobAge={300 * options.fast}",
        "CompleteWait=0",
        "InactiveLimit=0",
        "OverTimeLimit=0",
        "JobRequeue=1",
        "MaxArraySize=10001",
        f"SlurmctldTimeout={config.real_s(30, 10)}",
        f"SlurmdTimeout={config.real_s(30, 10)}",
        f"MessageTimeout={config.real_s(10, 3)}",
        f"BatchStartTimeout={config.real_s(10, 5)}",
        "TCPTimeout=2",
    ]
    if os.geteuid() != 0:
        lines.append(f"TaskProlog={paths.etc}/task-prolog")
    lines += _accounting(config)
    lines += _onprem(config) if config.site == ONPREM else _cloud(config)
    lines += options.extra_conf.get(config.site, ())
    return "\n".join(lines) + "\n"


def _accounting(config: SiteConfig) -> list[str]:
    if not config.options.accounting:
        return ["AccountingStorageType=accounting_storage/none"]
    port = config.ports.get("slurmdbd") or config.ports["slurmdbd_there"]
    return [
        "AccountingStorageType=accounting_storage/slurmdbd",
        "AccountingStorageHost=127.0.0.1",
        f"AccountingStoragePort={port}",
        # the munge socket for slurmdbd; AuthInfo is not looked at for it
        f"AccountingStoragePass={config.paths.munge_socket}",
        "AccountingStorageTRES=gres/gpu,gres/gpu:h100",
        "AccountingStorageEnforce=associations,limits,qos",
        "AccountingStoreFlags=job_comment",
        "PriorityType=priority/multifactor",
        "PriorityCalcPeriod=1",
        "PriorityWeightAge=1000",
        "PriorityWeightFairshare=10000",
        "PriorityWeightQOS=10000",
    ]


def _nodes(config: SiteConfig, prefix: str, port: int, extra: str) -> list[str]:
    gres = f" Gres=gpu:h100:{config.options.gpus}" if config.options.gpus else ""
    shape = (
        f"CPUs={SOCKETS * CORES} Boards=1 SocketsPerBoard={SOCKETS} CoresPerSocket={CORES} "
        f"ThreadsPerCore=1 RealMemory={MEMORY_MB}{gres} Feature={prefix},h100{extra}"
    )
    return [
        f"NodeName={prefix}{i} "
        f"NodeHostname={f'{prefix}{i}' if config.host_names else config.controller} "
        f"NodeAddr=127.0.0.1 Port={port + i - 1} {shape}"
        for i in range(1, config.options.nodes + 1)
    ]


def _onprem(config: SiteConfig) -> list[str]:
    nodes, grace_s = config.all_nodes, config.options.grace_time_s
    return [
        "SlurmctldParameters=preempt_send_user_signal"
        + (",power_save_interval=1" if config.cloud_nodes else ""),
        *_nodes(config, config.prefix, config.ports["slurmd"], ""),
        "PartitionName=DEFAULT MaxTime=7-0 DefaultTime=60 State=UP OverSubscribe=NO",
        f"PartitionName=gpu Nodes={nodes} Default=YES PriorityTier=10 PreemptMode=OFF",
        f"PartitionName=spot Nodes={nodes} PriorityTier=1 PreemptMode=REQUEUE GraceTime={grace_s}",
        f"PartitionName=urgent Nodes={nodes} PriorityTier=100 PreemptMode=OFF",
        "PreemptType=preempt/partition_prio",
        "PreemptMode=REQUEUE",
        "TopologyPlugin=topology/tree",
        *(_cloud_partition(config) if config.cloud_nodes else []),
    ]


def _cloud_partition(config: SiteConfig) -> list[str]:
    return [
        *_nodes(config, BURST_PREFIX, config.ports["slurmd_burst"], " State=CLOUD"),
        f"PartitionName=cloud Nodes={config.cloud_nodes} PriorityTier=10 PreemptMode=OFF",
        *_power(config),
        # the nodes on the floor stay on
        f"SuspendExcNodes={config.all_nodes}",
    ]


def _cloud(config: SiteConfig) -> list[str]:
    return [
        "SlurmctldParameters=preempt_send_user_signal,power_save_interval=1",
        *_nodes(config, config.prefix, config.ports["slurmd"], " State=CLOUD"),
        "PartitionName=DEFAULT MaxTime=7-0 DefaultTime=60 State=UP OverSubscribe=NO",
        f"PartitionName=gpu Nodes={config.all_nodes} Default=YES",
        *_power(config),
    ]


def _power(config: SiteConfig) -> list[str]:
    """How nodes are booted and switched off."""
    options = config.options
    resume_timeout_s = options.resume_timeout_s or config.real_s(20, options.boot_delay_s + 10)
    return [
        f"ResumeProgram={config.paths.etc}/resume",
        f"SuspendProgram={config.paths.etc}/suspend",
        f"ResumeFailProgram={config.paths.etc}/resume-fail",
        # see _prolog.sh: else a job on booting nodes starts at slurmctld's next 30 s tick only
        f"PrologSlurmctld={config.paths.etc}/prolog-slurmctld",
        f"ResumeTimeout={resume_timeout_s}",
        f"SuspendTimeout={config.real_s(5, 3)}",
        f"SuspendTime={options.suspend_time_s}",
        "ResumeRate=0",
        "SuspendRate=0",
        # powered-down CLOUD nodes would be invisible in sinfo
        "PrivateData=cloud",
        "CommunicationParameters=NoAddrCache",
    ]


def gres_conf(config: SiteConfig) -> str:
    """gres.conf: GPUs are symlinks to /dev/null, since slurmd insists on a device file."""
    if not config.options.gpus:
        return ""
    last = config.options.gpus - 1
    files = (
        f"{config.paths.etc}/dev/nvidia[0-{last}]" if last else f"{config.paths.etc}/dev/nvidia0"
    )
    groups = [nodes for nodes in (config.all_nodes, config.cloud_nodes) if nodes]
    return "".join(f"NodeName={nodes} Name=gpu Type=h100 File={files}\n" for nodes in groups)


def topology_conf(config: SiteConfig) -> str:
    """topology.conf: two leaf switches below one spine."""
    if config.site != ONPREM:
        return ""
    half = (config.options.nodes + 1) // 2
    prefix = config.prefix
    lines = [f"SwitchName=leaf1 Nodes={prefix}[1-{half}]"]
    if config.options.nodes > half:
        lines.append(f"SwitchName=leaf2 Nodes={prefix}[{half + 1}-{config.options.nodes}]")
    lines.append(f"SwitchName=spine Switches=leaf[1-{len(lines)}]")
    if config.cloud_nodes:  # no cable leads there
        lines.append(f"SwitchName=cloud Nodes={config.cloud_nodes}")
    return "\n".join(lines) + "\n"


def slurmdbd_conf(config: SiteConfig, mysql_port: int, password: str) -> str:
    """slurmdbd.conf of one site: its own database on the lab's one MariaDB."""
    paths = config.paths
    return "\n".join(
        [
            "AuthType=auth/munge",
            f"AuthInfo=socket={paths.munge_socket}",
            f"DbdHost={config.controller}",
            "DbdAddr=127.0.0.1",
            f"DbdPort={config.ports['slurmdbd']}",
            f"SlurmUser={config.user}",
            "DebugLevel=info",
            f"LogFile={paths.log}/slurmdbd.log",
            f"PidFile={paths.run}/slurmdbd.pid",
            "StorageType=accounting_storage/mysql",
            "StorageHost=127.0.0.1",
            f"StoragePort={mysql_port}",
            "StorageUser=slurm",
            f"StoragePass={password}",
            f"StorageLoc=slurm_{config.prefix}",
            "CommitDelay=1",
            "",
        ]
    )


def cgroup_conf(version: tuple[int, int]) -> str:
    """cgroup.conf: nothing of a lab uses cgroups, and slurmd must start where there are none.

    Slurm 24.05 has a key for that (cgroup.conf(5) of 23.11 and 24.05 differ in it). Before, slurmd
    gives up when it cannot find out which cgroups the machine has, and on version 2 wants systemd;
    told that it is version 1, it looks at none of them until a plugin asks.
    """
    if version >= (24, 5):
        return "CgroupPlugin=disabled\n"
    return "CgroupPlugin=cgroup/v1\n" if version >= (22, 5) else "CgroupAutomount=no\n"


def hosts(config: SiteConfig, host_name: str) -> str:
    """/etc/hosts of a site: it knows its own nodes and no others."""
    count = config.options.nodes
    names = " ".join(
        [*node_names(config.site, count), *(burst_names(count) if config.cloud_nodes else [])]
    )
    return (
        "127.0.0.1 localhost\n::1 localhost ip6-localhost\n"
        f"127.0.0.1 {config.controller} {names}\n127.0.0.1 {host_name}\n"
    )


def sshd_config(config: SiteConfig, path_env: str, sftp_server: Path | None) -> str:
    """sshd_config of the cloud's login: one key, one user, the site's SLURM_CONF.

    ``ForceCommand`` names a wrapper that runs what was asked; ``lab fault ssh-cut`` acts there.
    """
    paths = config.paths
    lines = [
        "ListenAddress 127.0.0.1",
        f"Port {config.ports['sshd']}",
        f"HostKey {paths.etc}/ssh_host_ed25519_key",
        f"PidFile {paths.run}/sshd.pid",
        f"AuthorizedKeysFile {paths.etc}/authorized_keys",
        f"AllowUsers {config.user}",
        "StrictModes no",
        "UsePAM no",
        "PasswordAuthentication no",
        "KbdInteractiveAuthentication no",
        "PermitRootLogin prohibit-password",
        f"SetEnv SLURM_CONF={paths.slurm_conf} PATH={path_env}",
        f"Subsystem sftp {sftp_server or 'internal-sftp'}",
        "MaxSessions 100",
        "MaxStartups 200",
        "PrintMotd no",
        "PrintLastLog no",
        "UseDNS no",
        "X11Forwarding no",
    ]
    if sftp_server is not None:
        lines.append(f"ForceCommand {paths.etc}/login")
    return "\n".join(lines) + "\n"
