"""The text of a site's profile from what a live cluster said. Pure.

Only what was seen is written. Prices, fabric variables, data rules, containers and software are
nobody's to guess: they stay blank, and the file says so.
"""

import datetime as dt
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from hpcscale.slurm.types import PartitionFacts, SiteFacts, Switch
from hpcscale.units import expand_hostlist, format_duration

UNKNOWN = ("price", "fabric variables", "data rules", "container runtime", "software")
_BARE = re.compile(r"[A-Za-z0-9_-]+")
_MIB = 1024


class Seen(msgspec.Struct, frozen=True, kw_only=True):
    """What was found out about a cluster.

    Attributes:
        name: of the profile.
        transport: keys of ``[transport]`` that differ from their defaults.
        state_dir: where runs will lie.
        state_dir_note: how it is known that the nodes see it, or that it is not.
        facts: the controller's own.
        switches: of its topology.
        today: the date that the file gets.
    """

    name: str
    transport: Mapping[str, str | int]
    state_dir: str
    state_dir_note: str
    facts: SiteFacts
    switches: tuple[Switch, ...]
    today: dt.date


def draft(seen: Seen) -> str:
    """The TOML file; ``hpcscale site check`` takes it as it is."""
    facts = seen.facts
    top: dict[str, Any] = {
        "name": seen.name,
        "title": f"{facts.cluster or seen.name} (Slurm {facts.version or 'of unknown version'})",
        "as_of": seen.today,
        "state_dir": seen.state_dir,
        "default_partition": next((p.name for p in facts.partitions.values() if p.default), None),
        **_common_gpus(facts),
        "topology": topology(facts, seen.switches),
        # 0 when it could not be asked: gather's own default is not the site's word
        "max_array_size": facts.max_array_size if "MaxArraySize" in facts.config else None,
    }
    lines = [
        f"# What `hpcscale site detect` saw of cluster {_comment(facts.cluster)} on {seen.today}.",
        f"# Unknown, and left out: {', '.join(UNKNOWN)}. Jobs run without them.",
    ]
    lines += [f"# {_comment(text)}" for text in remarks(seen)]
    lines += _table(None, top)
    lines += _table("transport", seen.transport)
    for name, live in facts.partitions.items():
        table = _partition(live, preemptible=preemptible(live, facts))
        lines += _table(f"partitions.{_key(name)}", table)
    lines += _table("fabric", {"kind": "unknown", "note": "Not asked of anybody yet."})
    return "\n".join(lines) + "\n"


def remarks(seen: Seen) -> list[str]:
    """What a person should know beside the keys."""
    facts = seen.facts
    found = [f"state_dir: {seen.state_dir_note}"]
    if facts.accounts:
        found.append(f'your accounts: {", ".join(facts.accounts)} (account = "…" picks one)')
    if facts.qos:
        found.append(f'your QOS: {", ".join(facts.qos)} (qos = "…" picks one)')
    for live in facts.partitions.values():
        if len(live.gres) > 1:
            found.append(f"partition {live.name} has nodes with {' and with '.join(live.gres)}")
        if not live.up:
            found.append(f"partition {live.name} is not up")
    if any(live.boots for live in facts.partitions.values()):
        found.append("nodes boot when a job wants them: [burst] target = true lets jobs move here")
    if facts.config.get("PreemptType") == "preempt/qos":
        found.append("jobs are preempted by QOS: preemptible is left out of the partitions")
    return [*found, *facts.notes]


def _common_gpus(facts: SiteFacts) -> dict[str, Any]:
    """The GPUs of a node, where all partitions that have any agree."""
    counts = {p.gpus_per_node for p in facts.partitions.values() if p.gpus_per_node}
    types = {p.gpu_type for p in facts.partitions.values() if p.gpus_per_node}
    if not counts and facts.partitions:
        return {"gpus_per_node": 0}
    return {
        "gpus_per_node": counts.pop() if len(counts) == 1 else None,
        "gpu_type": types.pop() if len(types) == 1 else None,
    }


def topology(facts: SiteFacts, switches: Sequence[Switch]) -> str | None:
    """``tree: 2 leaf switches (n[1-2]; n[3-4]), levels above: 1``; None when there is none."""
    plugin = facts.config.get("TopologyPlugin", "").removeprefix("topology/")
    if plugin in {"", "none", "default", "flat"}:
        return None
    leaves = [s.nodes for s in switches if s.level == 0]
    if not leaves:
        return plugin
    shown = "; ".join(leaves[:8]) + ("; …" if len(leaves) > 8 else "")
    levels = max(s.level for s in switches)
    return f"{plugin}: {len(leaves)} leaf switches ({shown}), levels above: {levels}"


def preemptible(live: PartitionFacts, facts: SiteFacts) -> bool:
    """Whether jobs here may be stopped for those of another partition (slurm.conf(5))."""
    if facts.config.get("PreemptType") != "preempt/partition_prio":
        return False
    if live.preempt_mode.upper() in {"OFF", "N/A", ""}:
        return False
    mine = set(expand_hostlist(live.node_list))
    return any(
        other.priority_tier > live.priority_tier
        and bool(mine & set(expand_hostlist(other.node_list)))
        for other in facts.partitions.values()
    )


def _partition(live: PartitionFacts, *, preemptible: bool) -> dict[str, Any]:
    return {
        "nodes": live.total_nodes,
        "gpus_per_node": live.gpus_per_node,
        "gpu_type": live.gpu_type if live.gpus_per_node else None,
        "cpus_per_node": live.cpus_per_node or None,
        "mem_gb_per_node": round(live.mem_mb_per_node / _MIB, 1) or None,
        "max_time": None if live.max_time_s is None else format_duration(live.max_time_s),
        "max_nodes": live.max_nodes,
        "features": list(live.features) or None,
        "default": True if live.default else None,
        "preemptible": True if preemptible else None,
    }


def _table(header: str | None, values: Mapping[str, Any]) -> list[str]:
    lines = [] if header is None else ["", f"[{header}]"]
    return lines + [f"{_key(k)} = {_value(v)}" for k, v in values.items() if v is not None]


def _key(name: str) -> str:
    return name if _BARE.fullmatch(name) else _value(name)


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        # JSON's escapes are TOML's too; DEL and lone surrogates only JSON lets through
        text = value.encode("utf-8", "replace").decode()
        return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007F")
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(_value(each) for each in value) + "]"
    return str(value)  # a number or a date


def _comment(text: str) -> str:
    """On one line and printable: nothing that a site says can end the comment."""
    return "".join(c if c.isprintable() else "?" for c in text)
