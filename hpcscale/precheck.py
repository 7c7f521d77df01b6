"""Before sbatch: does the request fit the site? From facts that are at most ten minutes old.

``submit`` never waits for facts: when the cached ones are old or missing, sbatch judges, and its
refusal is explained from fresh facts, which are kept for the next call, as ``site check`` does.
"""

import datetime as dt
import difflib
import hashlib
import os
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec

from hpcscale.errors import HpcscaleError, RefusedError
from hpcscale.settings import state_dir
from hpcscale.site import Site
from hpcscale.slurm.client import SlurmClient
from hpcscale.slurm.types import PartitionFacts, SiteFacts
from hpcscale.spec import JobSpec
from hpcscale.units import format_duration, parse_array, parse_duration_s

FACTS_MAX_AGE_S = 600


@dataclass(frozen=True, slots=True)
class Problem:
    """One reason why the site would not run the job.

    Attributes:
        option: the sbatch option at fault, such as ``--partition``.
        message: what is asked for, and what there is.
        fits: what would fit, as one would type it; empty when nothing would.
    """

    option: str
    message: str
    fits: str = ""

    def __str__(self) -> str:
        return f"{self.option}: {self.message}"


# --- the cache


class _Stored(msgspec.Struct, frozen=True):
    place: str
    facts: SiteFacts


def _facts_path(site: Site) -> Path:
    return state_dir() / "facts" / f"{site.name}.json"


def _place(site: Site) -> str:
    """Digest of how the site is reached: facts of another cluster under the same name are void."""
    return hashlib.sha256(msgspec.json.encode(site.transport)).hexdigest()[:16]


def cached_facts(
    site: Site, *, now: dt.datetime | None = None, max_age_s: float = FACTS_MAX_AGE_S
) -> SiteFacts | None:
    """Facts kept from an earlier call; None when there are none, too old or unreadable ones.

    Args:
        site: whose facts.
        now: aware; default this machine's clock, which also stamped them.
        max_age_s: older facts are not used.
    """
    try:
        stored = msgspec.json.decode(_facts_path(site).read_bytes(), type=_Stored)
    except (OSError, ValueError):  # msgspec's errors are ValueErrors
        return None
    now = now or dt.datetime.now(dt.UTC)
    try:
        age_s = (now - stored.facts.fetched_at).total_seconds()
    except TypeError:  # a time without zone: not written by us
        return None
    if stored.place != _place(site) or not 0 <= age_s <= max_age_s:
        return None
    return stored.facts


def store_facts(site: Site, facts: SiteFacts) -> None:
    """Keep facts for later calls. A cache that cannot be written is no error: sbatch judges."""
    path = _facts_path(site)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{site.name}.")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(msgspec.json.encode(_Stored(place=_place(site), facts=facts)))
            Path(temporary).replace(path)
        except OSError:
            Path(temporary).unlink(missing_ok=True)
    except OSError:
        return


def fetch_facts(site: Site, client: SlurmClient) -> SiteFacts:
    """Ask the controller (a few calls) and keep the answer.

    Raises:
        UnreachableError: no answer.
    """
    facts = client.facts()
    store_facts(site, facts)
    return facts


# --- the checks, pure


def check(spec: JobSpec, site: Site, facts: SiteFacts) -> list[Problem]:
    """Reasons why the job could never run there; empty when it fits as far as facts tell.

    With several partitions (``--partition=a,b``) one that fits is enough, as for Slurm.
    What facts do not tell (no slurmdbd, unknown memory) is left to sbatch.
    """
    names = _partitions_asked(spec, site, facts)
    if not names:
        return _array(spec, facts)
    problems: list[Problem] = []
    for name in names:
        if name not in facts.partitions:
            close = difflib.get_close_matches(name, facts.partitions, n=1)
            problems.append(
                Problem(
                    "--partition",
                    f"{site.name} has no partition {name!r}; it has {_listed(facts.partitions)}",
                    f"--partition={(close or list(facts.partitions) or [''])[0]}"
                    if facts.partitions
                    else "",
                )
            )
    if problems:
        return problems
    verdicts = [_partition(spec, facts.partitions[name]) for name in names]
    if all(verdicts):
        problems += verdicts[0]
        # a partition that takes the whole request is better advice than a smaller request
        roomy = [p.name for p in facts.partitions.values() if not _partition(spec, p)]
        if roomy:
            problems = [replace(p, fits=f"--partition={roomy[0]}") for p in problems]
    return problems + _accounting(spec, site, facts) + _array(spec, facts)


def _partitions_asked(spec: JobSpec, site: Site, facts: SiteFacts) -> list[str]:
    asked = spec.partition or site.default_partition
    if asked:
        return [name.strip() for name in asked.split(",") if name.strip()]
    return [name for name, known in facts.partitions.items() if known.default][:1]


def _partition(spec: JobSpec, there: PartitionFacts) -> list[Problem]:
    """What does not fit one partition, each with the nearest smaller request."""
    want = spec.resources
    problems: list[Problem] = []

    def add(option: str, asked: str, have: str, fits: str) -> None:
        problems.append(Problem(option, f"{asked} asked for; {have}", fits))

    limits = [n for n in (there.total_nodes or None, there.max_nodes) if n is not None]
    most_nodes = min(limits, default=None)
    if most_nodes is not None and want.nodes > most_nodes:
        have = f"partition {there.name} gives at most {most_nodes}"
        add("--nodes", f"{want.nodes} nodes", have, f"--nodes={most_nodes}")
    gpus = there.gpus_per_node
    # no CPUs means that nothing is known of its nodes
    if there.cpus_per_node and want.gpus_per_node > gpus:
        # the same number of GPUs on more nodes, where that comes out even
        nodes, rest = divmod(want.nodes * want.gpus_per_node, gpus or 1)
        fits = f"--gpus-per-node={gpus}" if gpus else ""
        if gpus and not rest and (most_nodes is None or nodes <= most_nodes):
            fits = f"--nodes={nodes} {fits}"
        have = f"nodes of {there.name} have {gpus or 'none'}"
        add("--gpus-per-node", f"{want.gpus_per_node} GPUs per node", have, fits)
    tasks = want.tasks_per_node or 1
    cpus = tasks * (want.cpus_per_task or 1)
    if there.cpus_per_node and cpus > there.cpus_per_node:
        have = f"nodes of {there.name} have {there.cpus_per_node}"
        fits = f"--cpus-per-task={max(1, there.cpus_per_node // tasks)}"
        add("--cpus-per-task", f"{cpus} CPUs per node", have, fits)
    mem_mb = (want.mem_gb or 0) * 1024
    if there.mem_mb_per_node and mem_mb > there.mem_mb_per_node:
        have = f"nodes of {there.name} have {there.mem_mb_per_node / 1024:.4g} GB"
        add("--mem", f"{want.mem_gb:g} GB per node", have, f"--mem={there.mem_mb_per_node}M")
    limit_s, most_s = want.time_limit_s, there.max_time_s
    if limit_s is not None and most_s is not None and limit_s > most_s:
        have = f"partition {there.name} allows {format_duration(most_s)}"
        add("--time", format_duration(limit_s), have, f"--time={format_duration(most_s)}")
    for option, asked, allowed in (
        ("--account", spec.account, there.allow_accounts),
        ("--qos", spec.qos, there.allow_qos),
    ):
        if asked and allowed is not None and asked not in allowed:
            have = f"partition {there.name} takes {_listed(allowed)}"
            add(option, repr(asked), have, f"{option}={allowed[0]}" if allowed else "")
    return problems


def _accounting(spec: JobSpec, site: Site, facts: SiteFacts) -> list[Problem]:
    """Account and QOS, where slurmdbd tells this user's and the controller insists on them.

    Without AccountingStorageEnforce (slurm.conf(5)) Slurm takes any account and QOS.
    """
    words = facts.config.get("AccountingStorageEnforce", "").lower().split(",")
    enforced = {w.strip() for w in words} - {"", "none", "(null)", "nojobs", "nosteps"}
    problems: list[Problem] = []
    for option, asked, known, insisted in (
        ("--account", spec.account or site.account, facts.accounts, bool(enforced)),
        ("--qos", spec.qos or site.qos, facts.qos, bool(enforced & {"qos", "all"})),
    ):
        if insisted and asked and known is not None and asked not in known:
            close = difflib.get_close_matches(asked, known, n=1) or list(known[:1])
            what = option.removeprefix("--").upper() if option == "--qos" else "account"
            problems.append(
                Problem(
                    option,
                    f"{asked!r} is no {what} of yours at {site.name}; yours: {_listed(known)}",
                    f"{option}={close[0]}" if close else "",
                )
            )
    return problems


def _array(spec: JobSpec, facts: SiteFacts) -> list[Problem]:
    if spec.array is None:
        return []
    try:
        last = parse_array(spec.array)[0][-1]
    except ValueError as exc:
        return [Problem("--array", str(exc))]
    if last < facts.max_array_size:
        return []
    return [
        Problem(
            "--array",
            f"index {last} asked for; the largest here is {facts.max_array_size - 1} "
            f"(MaxArraySize={facts.max_array_size})",
            f"several jobs with --array=0-{facts.max_array_size - 1} or less",
        )
    ]


def _listed(names: Iterable[str]) -> str:
    return ", ".join(names) or "none"


# --- for submit


def require_fit(spec: JobSpec, site: Site) -> None:
    """Refuse before sbatch what cached facts rule out; without fresh facts do nothing.

    Raises:
        RefusedError: with every problem, and what would fit.
    """
    facts = cached_facts(site)
    if facts is not None and (problems := check(spec, site, facts)):
        raise refusal(problems, site)


def doubts(spec: JobSpec, site: Site) -> list[str]:
    """What would keep an accepted job waiting for ever, where no fresh facts refused it.

    Slurm itself takes a job that asks for more nodes or time than a partition has
    (``EnforcePartLimits=NO``, slurm.conf(5)). Old facts and the profile may be wrong by now, so
    this is no refusal.
    """
    if cached_facts(site) is not None:
        return []  # ``require_fit`` has judged
    old = cached_facts(site, max_age_s=float("inf"))
    known = old.partitions if old is not None else _of_profile(site)
    asked = spec.partition or site.default_partition or ""
    names = asked.split(",") if asked else [n for n, p in known.items() if p.default]
    verdicts = [_partition(spec, known[name]) for name in names if name in known]
    if not verdicts or len(verdicts) < len(names) or not all(verdicts):
        return []
    source = "facts of " + f"{old.fetched_at:%Y-%m-%d %H:%M}Z" if old is not None else "its profile"
    return [
        f"it may never start: {problem} (by {source}); see `hpcscale status`"
        for problem in verdicts[0]
    ]


def _of_profile(site: Site) -> dict[str, PartitionFacts]:
    return {
        name: PartitionFacts(
            name=name,
            default=there.default,
            total_nodes=there.nodes or 0,
            max_time_s=parse_duration_s(there.max_time) if there.max_time else None,
        )
        for name, there in site.partitions.items()
    }


def refusal(problems: list[Problem], site: Site) -> RefusedError:
    """One error of all problems."""
    fits = dict.fromkeys(p.fits for p in problems if p.fits)
    return RefusedError(
        "; ".join(map(str, problems)), where=f"site {site.name}", hint="  ".join(fits) or None
    )


def explain_refusal(
    error: RefusedError, spec: JobSpec, site: Site, client: SlurmClient
) -> RefusedError:
    """Slurm's refusal with the reasons that fresh facts show; the error itself when none do."""
    try:
        problems = check(spec, site, fetch_facts(site, client))
    except HpcscaleError:  # no answer to the second question spoils nothing
        return error
    if not problems:
        return error
    ours = refusal(problems, site)
    return RefusedError(f"{error.message} ({ours.message})", where=error.where, hint=ours.hint)
