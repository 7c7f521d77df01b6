"""May a job leave its site? What in it means something at one site alone."""

from hpcscale.errors import HpcscaleError
from hpcscale.lint.finding import Finding
from hpcscale.lint.portable import FABRIC_VARIABLE, absolute_paths, site_bound, system_path
from hpcscale.lint.source import Source
from hpcscale.render.launch import find_software
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
