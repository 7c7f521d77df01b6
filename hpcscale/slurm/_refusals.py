"""sbatch's refusals in words that say what would fit."""

import difflib
import re
from collections.abc import Sequence

from hpcscale.slurm.types import PartitionFacts, SiteFacts
from hpcscale.units import format_duration

_DIRECTIVE = re.compile(r"^#SBATCH\s+(.*)$", re.MULTILINE)

# Slurm's phrase (slurm_errno.c) -> which hint helps.
_KINDS = (
    ("partition", ("partition name", "invalid partition", "partition not available")),
    ("account", ("Invalid account",)),
    ("qos", ("Invalid qos",)),
    ("time", ("time limit", "--time specification")),
    ("array", ("job array",)),
    ("policy", ("accounting/QOS policy", "QOS")),
    ("dependency", ("dependency",)),
    ("feature", ("feature specification",)),
    ("shape", ("node configuration", "Node count", "Memory specification", "More processors",
               "CPU count", "gres", "Requested partition configuration")),
    ("option", ("unrecognized", "invalid option", "specification", "sbatch --help")),
)  # fmt: skip


def kind(message: str) -> str:
    """What the refusal is about; empty when it says enough by itself."""
    lower = message.lower()
    for name, phrases in _KINDS:
        if any(phrase.lower() in lower for phrase in phrases):
            return name
    return ""


def wants_facts(message: str) -> bool:
    """Whether the site's facts would help to say what fits."""
    return kind(message) in {"partition", "account", "qos", "time", "array", "shape"}


def explain(
    message: str, script: str, options: Sequence[str], facts: SiteFacts | None
) -> tuple[str, str | None]:
    """The message for the user, and what would fit.

    Args:
        message: sbatch's own, without prefixes.
        script: its directives count where ``options`` do not name a value.
        options: sbatch's arguments.
        facts: the site's; None when they could not be had.
    """
    text = f"sbatch refused the job: {message}"
    about = kind(message)
    if about == "dependency":
        return text, "a job named in --after does not exist any more: hpcscale status"
    if about == "policy":
        return text, "a limit of your account or QOS: sacctmgr show assoc where user=$USER"
    if about == "feature":
        return text, "features of the nodes there: sinfo --format='%N %f'"
    if about == "option":
        return text, "see sbatch(1); on the site: sbatch --help"
    if facts is None:
        return text, None
    asked = option_value("partition", "p", script, options)
    chosen = _partition(asked, facts)
    if about == "partition":
        names = sorted(facts.partitions)
        unknown = [n for n in (asked or "").split(",") if n and n not in names]
        close = difflib.get_close_matches(unknown[0], names, n=1) if unknown else []
        said = f"sbatch refused the job: no partition {unknown[0]!r} there" if unknown else text
        return said, f"--partition {close[0]}" if close else f"partitions: {', '.join(names)}"
    if about == "account":
        known = facts.accounts
        return text, f"your accounts: {', '.join(known)}" if known else None
    if about == "qos":
        return text, f"your QOS: {', '.join(facts.qos)}" if facts.qos else None
    if about == "array":
        return text, f"the largest array index there is {facts.max_array_size - 1}"
    if about == "time" and chosen is not None and chosen.max_time_s is not None:
        return text, f"partition {chosen.name} allows --time {format_duration(chosen.max_time_s)}"
    if about == "shape" and chosen is not None:
        return text, _shape(chosen)
    return text, None


def _partition(asked: str | None, facts: SiteFacts) -> PartitionFacts | None:
    if asked is not None:
        return facts.partitions.get(asked.partition(",")[0])
    return next((p for p in facts.partitions.values() if p.default), None)


def _shape(partition: PartitionFacts) -> str:
    parts = [f"{partition.total_nodes} nodes"]
    if partition.max_nodes is not None and partition.max_nodes < partition.total_nodes:
        parts.append(f"at most {partition.max_nodes} a job")
    each = []
    if partition.gpus_per_node:
        each.append(f"{partition.gpus_per_node} {partition.gpu_type or ''} GPUs".replace("  ", " "))
    if partition.cpus_per_node:
        each.append(f"{partition.cpus_per_node} CPUs")
    if partition.mem_mb_per_node:
        each.append(f"{partition.mem_mb_per_node // 1024} GB")
    if each:
        parts.append("each with up to " + ", ".join(each))
    return f"partition {partition.name} has " + ", ".join(parts)


def option_value(long: str, short: str, script: str, options: Sequence[str]) -> str | None:
    """Value of an sbatch option, from the arguments, else from the script's directives."""
    found = _scan(options, long, short)
    if found is None:
        words = [w for line in _DIRECTIVE.findall(script) for w in line.split()]
        found = _scan(words, long, short)
    return found


def _scan(words: Sequence[str], long: str, short: str) -> str | None:
    value = None
    for index, word in enumerate(words):
        if word.startswith(f"--{long}="):
            value = word.partition("=")[2]
        elif word in {f"--{long}", f"-{short}"} and index + 1 < len(words):
            value = words[index + 1]
        elif re.match(rf"-{short}[^-\s]", word):
            value = word[2:].removeprefix("=")
    return value
