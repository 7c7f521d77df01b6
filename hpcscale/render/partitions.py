"""One script for several partitions of a controller: which profiles stand in it, and which cannot.

A job that may be moved into a cloud partition has that partition's profile in its script as well,
under ``case $SLURM_JOB_PARTITION``; where it starts decides. Only what the profiles set differs:
the directives, the command and the paths are the job's, and the same wherever it starts.
"""

import re
from collections.abc import Callable, Sequence

from hpcscale.site import Site
from hpcscale.spec import BurstMode, JobSpec


def own_site(spec: JobSpec, site: Site) -> Site:
    """The profile of the partition that the job asks for; the site's where it names several."""
    return site if "," in (spec.partition or "") else site.profile_of(spec.partition)


Blockers = Callable[[JobSpec, Site, Site], list[str]]


def further(spec: JobSpec, site: Site, notices: list[str], blockers: Blockers) -> list[Site]:
    """Profiles of the other partitions that the job may start in.

    Args:
        spec: the job.
        site: the site itself.
        notices: gets why a partition that jobs may be moved into is left out.
        blockers: why one script cannot serve both, of (job, site, other profile).
    """
    asked = (spec.partition or site.default_partition or "").split(",")
    several = [
        name for name in asked if name in site.partitions and site.partitions[name].own_profile
    ]
    names = several if len(asked) > 1 else []
    if spec.burst.mode is not BurstMode.NEVER:
        names += [name for name in site.burst_partitions if name not in asked]
    found = []
    for name in names:
        other = site.in_partition(name)
        why = blockers(spec, site, other)
        if why:
            notices.append(f"its script has no profile for {other.name}: {why[0]}")
        else:
            found.append(other)
    return found


def serves(script: str, name: str) -> bool:
    """Whether a rendered script has the profile of ``SITE/PARTITION`` in it."""
    return re.search(rf"^  \S.*\)  # profile {re.escape(name)}$", script, re.MULTILINE) is not None


def by_partition(
    bases: Sequence[dict[str, object]],
) -> tuple[dict[str, object], list[dict[str, object]]]:
    """What the profiles have in common, and for each what is its own.

    Args:
        bases: ``env``, ``fabric`` and ``software`` of each, the job's own first.

    Returns:
        The common ones (None where they differ), and per profile the differing ones.
    """
    first = bases[0]
    common: dict[str, object] = {}
    own: list[dict[str, object]] = [{} for _ in bases]
    shared_env = [pair for pair in _pairs(first) if all(pair in _pairs(b) for b in bases)]
    common["env"] = shared_env
    for mine, base in zip(own, bases, strict=True):
        mine["env"] = [pair for pair in _pairs(base) if pair not in shared_env]
    for key in ("fabric", "software"):
        same = all(base[key] == first[key] for base in bases)
        common[key] = first[key] if same else None
        for mine, base in zip(own, bases, strict=True):
            mine[key] = None if same else base[key]
    return common, own


def _pairs(base: dict[str, object]) -> list[tuple[str, str]]:
    found = base["env"]
    assert isinstance(found, list)
    return found
