"""What a controller says of itself, from four commands' text."""

import datetime as dt
import re
from collections.abc import Callable, Sequence

from hpcscale.errors import UnreachableError
from hpcscale.slurm import _squeue
from hpcscale.slurm.transport import Completed
from hpcscale.slurm.types import PartitionFacts, SiteFacts, Switch
from hpcscale.units import gres_gpus, parse_tres, tres_gpus

Ask = Callable[[Sequence[str]], Completed]

_PAIR = re.compile(r"(?:^|\s)([A-Za-z]\w*)=(\S*)")
_SETTING = re.compile(r"^(\w+)\s*=\s?(.*?)\s*$", re.MULTILINE)
_KEPT_SETTINGS = frozenset(
    {
        "AccountingStorageEnforce",
        "AccountingStorageType",
        "AuthInfo",
        "BOOT_TIME",
        "ClusterName",
        "EnforcePartLimits",
        "KillWait",
        "MaxArraySize",
        "MaxJobCount",
        "JobRequeue",
        "MinJobAge",
        "PreemptMode",
        "PreemptParameters",
        "PreemptType",
        "PrivateData",
        "ResumeTimeout",
        "SLURM_VERSION",
        "SchedulerParameters",
        "SelectType",
        "SlurmUser",
        "SlurmctldParameters",
        "SlurmdTimeout",
        "SuspendTime",
        "TopologyPlugin",
    }
)


def gather(ask: Ask, user_name: Callable[[], str]) -> SiteFacts:
    """Facts of one site.

    Raises:
        UnreachableError: the controller did not even tell its partitions.
    """
    notes: list[str] = []
    partitions = _partitions(ask(["scontrol", "--oneliner", "show", "partition"]).stdout)
    try:
        config = _config(ask(["scontrol", "show", "config"]).stdout)
    except UnreachableError as exc:
        config = {}
        notes.append(f"version and limits are unknown: {exc.message}")
    try:
        _add_nodes(partitions, ask)
    except UnreachableError as exc:
        notes.append(f"nodes' GPUs, CPUs and memory are unknown: {exc.message}")
    has_accounting = "slurmdbd" in config.get("AccountingStorageType", "")
    accounts: tuple[str, ...] | None = None
    qos: tuple[str, ...] | None = None
    if has_accounting:
        try:
            accounts, qos = _associations(ask, user_name(), config.get("ClusterName", ""))
        except UnreachableError as exc:
            notes.append(f"accounts and QOS are unknown: {exc.message}")
    else:
        notes.append("no slurmdbd: accounts and QOS are not checked by Slurm")
    array_size = config.get("MaxArraySize", "")
    return SiteFacts(
        version=config.get("SLURM_VERSION", ""),
        cluster=config.get("ClusterName", ""),
        partitions={name: _facts_of(p) for name, p in partitions.items()},
        fetched_at=dt.datetime.now(dt.UTC),
        accounts=accounts,
        qos=qos,
        max_array_size=int(array_size) if array_size.isdigit() else 1001,
        has_accounting=has_accounting,
        config=config,
        notes=tuple(notes),
    )


def _partitions(text: str) -> dict[str, dict[str, str]]:
    """Their ``key=value`` words; no value of a partition holds a space."""
    found = {}
    for line in text.splitlines():
        pairs = {m[1]: m[2] for m in _PAIR.finditer(line)}
        if name := pairs.get("PartitionName"):
            found[name] = pairs
    return found


def _config(text: str) -> dict[str, str]:
    return {m[1]: m[2] for m in _SETTING.finditer(text) if m[1] in _KEPT_SETTINGS}


def _add_nodes(partitions: dict[str, dict[str, str]], ask: Ask) -> None:
    """Put the largest node of each partition beside the partition's own words."""
    sep = _squeue.Separators.new()
    names = ("PartitionName", "Gres", "CPUs", "Memory", "Features", "StateComplete")
    columns = ",".join(f"{name}:{sep.field}" for name in names)
    argv = ["sinfo", "--noheader", "--all", f"--Format={columns},NodeList:{sep.record}"]
    for record in ask(argv).stdout.split(sep.record + "\n"):
        fields = record.split(sep.field)
        if len(fields) != len(names) + 1:
            continue
        known = partitions.get(fields[0].rstrip("*"))
        if known is None:
            continue
        gpus, kind = gres_gpus(fields[1])
        if gpus > int(known.get("_gpus", "0")):
            known["_gpus"], known["_gpu_type"] = str(gpus), kind or ""
        known["_gres"] = _added(known.get("_gres"), [re.sub(r"\(S:[^)]*\)", "", fields[1])], " ")
        known["_features"] = _added(known.get("_features"), fields[4].split(","), ",")
        if "cloud" in fields[5].lower().split("+"):
            known["_boots"] = "yes"
        for key, value in (("_cpus", fields[2]), ("_memory", fields[3])):
            number = value.rstrip("+")
            if number.isdigit() and int(number) > int(known.get(key, "0")):
                known[key] = number


def _added(known: str | None, words: Sequence[str], separator: str) -> str:
    """A list kept as text, with those words that are new; Slurm's words for none left out."""
    have = known.split(separator) if known else []
    new = [w for w in words if w and w not in have and w != "(null)"]
    return separator.join([*have, *dict.fromkeys(new)])


def switches(text: str) -> tuple[Switch, ...]:
    """The switches of ``scontrol --oneliner show topology``; none where there is no tree."""
    found = []
    for line in text.splitlines():
        pairs = {m[1]: m[2] for m in _PAIR.finditer(line)}
        if (name := pairs.get("SwitchName")) and pairs.get("Level", "").isdigit():
            found.append(Switch(name, int(pairs["Level"]), pairs.get("Nodes", "")))
    return tuple(found)


def _facts_of(pairs: dict[str, str]) -> PartitionFacts:
    nodes = pairs.get("TotalNodes", "0")
    gpus = int(pairs.get("_gpus", "0"))
    if not gpus and nodes.isdigit() and int(nodes):  # nodes that sinfo hides while powered down
        gpus = tres_gpus(parse_tres(pairs.get("TRES", ""))) // int(nodes)
    limit = pairs.get("MaxNodes", "")
    return PartitionFacts(
        name=pairs["PartitionName"],
        up=pairs.get("State", "UP") == "UP",
        default=pairs.get("Default") == "YES",
        max_time_s=_squeue.parse_limit(pairs.get("MaxTime", "UNLIMITED")),
        default_time_s=_squeue.parse_limit(pairs.get("DefaultTime", "NONE")),
        max_nodes=int(limit) if limit.isdigit() else None,
        total_nodes=int(nodes) if nodes.isdigit() else 0,
        gpus_per_node=gpus,
        gpu_type=pairs.get("_gpu_type") or None,
        cpus_per_node=int(pairs.get("_cpus", "0")),
        mem_mb_per_node=int(pairs.get("_memory", "0")),
        allow_accounts=_names(pairs.get("AllowAccounts", "ALL")),
        allow_qos=_names(pairs.get("AllowQos", "ALL")),
        deny_accounts=_names(pairs.get("DenyAccounts", "")) or (),
        deny_qos=_names(pairs.get("DenyQos", "")) or (),
        node_list=pairs.get("Nodes", "").replace("(null)", ""),
        features=tuple(w for w in pairs.get("_features", "").split(",") if w),
        gres=tuple(w for w in pairs.get("_gres", "").split(" ") if w),
        preempt_mode=pairs.get("PreemptMode", "OFF"),
        priority_tier=int(tier) if (tier := pairs.get("PriorityTier", "")).isdigit() else 1,
        qos=pairs.get("QoS", "").replace("N/A", ""),
        boots="_boots" in pairs,
    )


def _names(text: str) -> tuple[str, ...] | None:
    return None if text in {"", "ALL", "(null)"} else tuple(text.split(","))


def _associations(ask: Ask, user: str, cluster: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """This user's accounts and QOS names (sacctmgr(1)); no name there holds ``|`` or a comma.

    One slurmdbd may keep several clusters: only this one's count.
    """
    argv = ["sacctmgr", "--noheader", "--parsable2", "--readonly", "show", "associations",
            "where", f"users={user}", f"clusters={cluster}", "format=Account,QOS"]  # fmt: skip
    accounts: dict[str, None] = {}
    qos: dict[str, None] = {}
    for line in ask(argv).stdout.splitlines():
        account, _, names = line.partition("|")
        if account:
            accounts[account] = None
        qos.update(dict.fromkeys(q for q in names.split(",") if q))
    return tuple(accounts), tuple(qos)
