"""May a job leave its site? What in it means something at one site alone."""

from hpcscale.errors import HpcscaleError
from hpcscale.lint.finding import Finding
from hpcscale.lint.portable import FABRIC_VARIABLE, absolute_paths, site_bound, system_path
from hpcscale.lint.source import Source
from hpcscale.render.launch import find_software
from hpcscale.render.partitions import own_site
from hpcscale.render.places import container_code, declared, is_below, places
from hpcscale.sbatch_script import SITE_BOUND
from hpcscale.site import Site
from hpcscale.spec import JobSpec, Script

_SHELLS = frozenset({"sh", "bash", "dash", "zsh", "ksh"})


def blockers(spec: JobSpec, site: Site) -> list[str]:
    """Reasons why the job cannot run at ``site``, another than it was written for; none: it can.

    Args:
        spec: the job.
        site: the target.
    """
    found: list[str] = []
    try:
        find_software(spec, site)
    except HpcscaleError as exc:
        found.append(str(exc))
    found += [
        f"--env {name}: a fabric variable of another site; {site.name} is {site.fabric.kind}"
        for name in sorted(spec.env)
        if FABRIC_VARIABLE.fullmatch(name) and name not in site.fabric.env
    ]
    found += [
        f"--env {name}: the absolute path {path} is not declared: --input NAME={path}"
        for name, value in sorted(spec.env.items())
        for path in absolute_paths(value)
    ]
    found += [
        f"the sbatch option --{option} is bound to one site"
        for option in sorted(spec.directives)
        if option in SITE_BOUND
    ]
    found += data_blockers(spec.burst.data, site)
    if spec.script is not None:
        found += [str(f) for f in script_blockers(spec.script, site)]
    else:
        found += [
            f"the command names the absolute path {path}, which is not declared: "
            f"--input NAME={path}"
            for path in undeclared_paths(spec, site)
        ]
    return found


def partition_blockers(spec: JobSpec, site: Site, other: Site) -> list[str]:
    """Reasons why one script cannot serve both; none: it can.

    Args:
        spec: the job.
        site: where it was sent.
        other: the profile of another partition there.
    """
    here = own_site(spec, site)
    if spec.script is not None:
        return ["a script of one's own has no profile in it"]
    found: list[str] = []
    try:
        mine, theirs = find_software(spec, here), find_software(spec, other)
    except HpcscaleError as exc:
        return [str(exc)]
    images = [s is not None and bool(s.image) for s in (mine, theirs)]
    if images[0] is not images[1]:
        found.append(f"software {spec.software!r} is an image in one partition alone")
    elif images[0] and here.container.runtime is not other.container.runtime:
        found.append(
            f"containers are started by {here.container.runtime} here and by "
            f"{other.container.runtime} there"
        )
    found += [
        f"--env {name}: a fabric variable of another network; {other.name} is {other.fabric.kind}"
        for name in sorted(spec.env)
        if FABRIC_VARIABLE.fullmatch(name) and name not in other.fabric.env
    ]
    found += [
        f"the sbatch option --{option} names nodes of other partitions"
        for option in ("nodelist", "nodefile", "exclude", "reservation", "switches")
        if option in spec.directives
    ]
    found += data_blockers(spec.burst.data, other)
    found += _unseen(spec, here, other)
    return found


def _unseen(spec: JobSpec, here: Site, other: Site) -> list[str]:
    """Paths that are used in place, and that the other partition's nodes do not see."""
    if other.shared_dirs == here.shared_dirs:
        return []
    known = places(spec, here)
    found = [
        f"{place.local} is used in place, and lies below none of the shared_dirs of {other.name}"
        for place in known
        if place.in_place and not is_below(place.local, other.shared_dirs)
    ]
    in_image = container_code(spec)
    texts = [*spec.command, *spec.env.values()]
    for path in dict.fromkeys(p for text in texts for p in absolute_paths(text)):
        if system_path(path) or declared(path, known) or is_below(path, other.shared_dirs):
            continue
        if in_image and is_below(path, (in_image,)):
            continue
        found.append(f"{path} lies below none of the shared_dirs of {other.name}")
    return found


def data_blockers(tags: tuple[str, ...], site: Site) -> list[str]:
    """Rules of the job's data that the site does not meet, each by its name.

    A tag ``eu-only`` asks that every region of the site begins with ``eu``; any other must stand
    among the kinds of data that the site may hold.
    """
    found: list[str] = []
    for tag in tags:
        area, only, rest = tag.rpartition("-only")
        if only and not rest and area:
            regions = site.data.regions
            away = [r for r in regions if r != area and not r.startswith(f"{area}-")]
            if not regions:
                found.append(f"data rule {tag}: {site.name} names no regions (data.regions)")
            elif away:
                found.append(f"data rule {tag}: {site.name} stands in {', '.join(away)}")
        elif tag not in site.data.tags:
            held = ", ".join(site.data.tags) or "nothing"
            found.append(f"data rule {tag}: {site.name} may hold {held} (data.tags)")
    return found


def script_blockers(script: Script, site: Site) -> list[Finding]:
    """Lines of a foreign script that tie it to its own site."""
    return site_bound(Source(script.path, script.text), site)


def undeclared_paths(spec: JobSpec, site: Site) -> list[str]:
    """Absolute paths in the command that no input, output, checkpoint or code directory covers."""
    known = places(spec, site)
    in_image = container_code(spec)
    found: list[str] = []
    shell = spec.command[0].rpartition("/")[2] in _SHELLS if spec.command else False
    for position, word in enumerate(spec.command):
        if shell and position >= 2 and spec.command[position - 1].startswith("-"):
            # the text of `bash -c`: it is not rewritten, so a declared path does not help there
            found += absolute_paths(word)
            continue
        option, equals, value = word.partition("=")
        if not (equals and option.startswith("-")):
            value = word
        for path in [value] if value.startswith("/") else absolute_paths(value):
            if path.startswith("/") and (system_path(path) or declared(path, known)):
                continue
            if in_image and is_below(path, (in_image,)):
                continue
            found.append(path)
    return list(dict.fromkeys(found))
