"""All that a script of ours depends on, as plain words for the templates."""

import re
from typing import Any

from hpcscale import __version__
from hpcscale.errors import InvalidFileError
from hpcscale.render.directives import directive_lines, job_directives
from hpcscale.render.launch import find_software, launch, mounts_word, port_offset
from hpcscale.render.partitions import by_partition, further, own_site
from hpcscale.render.places import Place, code_root, places, start_dir
from hpcscale.render.shell import site_path
from hpcscale.site import ContainerRuntime, Site, Software
from hpcscale.spec import CodeId, JobSpec

NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def job_context(
    spec: JobSpec,
    site: Site,
    options: list[str],
    notices: list[str],
    code: CodeId | None = None,
) -> dict[str, Any]:
    """The templates' ``job``.

    Args:
        spec: what to run.
        site: where.
        options: gets what no ``#SBATCH`` line can hold.
        notices: gets what the user should know.
        code: which program it starts.
    """
    others = further(spec, site, notices, _blockers)
    site = own_site(spec, site)
    context = common_context(spec, site, notices, code)
    software = find_software(spec, site)
    image = software is not None and software.image is not None
    words = software_words(spec, site, software, context["places"])
    names = {n for key in ("site_env", "user_env") for n, _ in context[key]}
    names |= {v["name"] for v in context["fabric_env"]} | set(spec.secrets)
    names |= {n for other in others for n in (*other.env, *other.fabric.env)}
    if spec.function is not None:  # by these the image's Python finds submitit's job side
        names |= {"PYTHONPATH", "SUBMITIT_EXECUTOR", "HPCSCALE_REQUEUE_FILE"}
    how = launch(
        spec,
        site,
        context["places"],
        image=image,
        container_env=sorted(names - {"PATH", "LD_LIBRARY_PATH"}),
    )
    directives = job_directives(spec, site)
    if others:
        # else it would begin in the cloud partition as soon as its first node is up (sbatch(1))
        directives.setdefault("wait-all-nodes", "1")
    context |= {
        "foreign": False,
        "directives": directive_lines(directives, options),
        "software": words,
        "rendezvous": how.rendezvous,
        "port_offset": port_offset(site),
        "srun": how.srun,
        "inner": how.inner,
        "argv": how.argv,
        "function": spec.function,
        "code_on_path": code_root(spec) is not None,
    }
    if others:
        _profiles(spec, site, others, context, words)
    if options:
        given = " ".join(option.partition("=")[0] for option in options)
        context["header_notes"] += [f"hpcscale gives sbatch besides, exact: {given}"]
    return context


def _blockers(spec: JobSpec, site: Site, other: Site) -> list[str]:
    from hpcscale.render.burstable import partition_blockers  # most jobs need it not

    return partition_blockers(spec, site, other)


def _profiles(
    spec: JobSpec,
    site: Site,
    others: list[Site],
    context: dict[str, Any],
    software: dict[str, Any] | None,
) -> None:
    """Leave in the context what all profiles set, and put the rest below ``profiles``."""
    bases: list[dict[str, Any]] = [
        {
            "env": context["site_env"],
            "fabric": {"kind": context["fabric_kind"], "env": context["fabric_env"]},
            "software": software,
        }
    ]
    for other in others:
        _check_names(other)
        found = find_software(spec, other)
        bases.append(
            {
                "env": sorted(other.env.items()),
                "fabric": {"kind": other.fabric.kind, "env": _fabric_env(other)},
                "software": software_words(spec, other, found, context["places"]),
            }
        )
    common, own = by_partition(bases)
    fabric = common["fabric"]
    context |= {
        "site_env": common["env"],
        "fabric_env": fabric["env"] if isinstance(fabric, dict) else [],
        "software": common["software"],
        "profiles": [
            mine | {"site": other.name, "partition": other.default_partition}
            for mine, other in zip(own[1:], others, strict=True)
        ]
        + [own[0] | {"site": site.name, "partition": None}],
    }


def common_context(
    spec: JobSpec, site: Site, notices: list[str], code: CodeId | None = None
) -> dict[str, Any]:
    """What our own scripts and the prologue of foreign ones have in common."""
    found = places(spec, site)
    examples = [name for name, v in sorted(site.fabric.env.items()) if v.example]
    if examples:
        notices.append(
            f"{', '.join(examples)}: site {site.name} has only an example value; set your own "
            "below [fabric.env] in its profile"
        )
    notices += [
        f"{name} should not be set at {site.name}: {site.fabric.forbidden[name]}"
        for name in sorted(spec.env)
        if name in site.fabric.forbidden
    ]
    _check_names(site)
    checkpoint = spec.checkpoint
    exported = [
        "HPCSCALE_SITE HPCSCALE_SUBMISSION_ID HPCSCALE_RUN_DIR HPCSCALE_RESTART_COUNT",
        " ".join(p.variable for p in found if p.kind != "checkpoint"),
        "HPCSCALE_CHECKPOINT_DIR HPCSCALE_STOP_FILE" if checkpoint else "",
    ]
    if not any(p.kind == "code" for p in found):
        exported[0] += " HPCSCALE_CODE_DIR"
    return {
        "version": __version__,
        "spec_hash": spec.spec_hash(),
        "site": site.name,
        "as_of": site.as_of.isoformat(),
        "fabric_kind": site.fabric.kind,
        "header_notes": _provenance(code),
        "places": found,
        "paths": _paths(found),
        "exported": " \\\n  ".join(part for part in exported if part),
        "needs": [p for p in found if p.kind == "input"],
        "makes": _makes(found),
        "start": start_dir(spec),
        "array": spec.array,
        "checkpoint": checkpoint,
        "site_env": sorted(site.env.items()),
        "fabric_env": _fabric_env(site),
        "profiles": [],
        "user_env": sorted(spec.env.items()),
        "secrets": sorted(spec.secrets),
    }


def _fabric_env(site: Site) -> list[dict[str, str]]:
    return [
        {
            "name": name,
            "value": v.value,
            "status": "an example: set your own" if v.example else v.status.value,
        }
        for name, v in sorted(site.fabric.env.items())
    ]


def _provenance(code: CodeId | None) -> list[str]:
    """The header's lines on the code."""
    if code is None:
        return []
    if code.kind == "container":
        return ["Code: in the container's image."]
    lines = []
    if code.kind == "git":
        commit = f"commit {code.commit}" if code.commit else "no commit yet"
        dirty = ", and changes:" if code.dirty_sha256 else "."
        lines.append(f"Code: git {commit}{dirty}")
        if code.dirty_sha256:
            lines.append(f"changes since, sha256 {code.dirty_sha256}")
    if code.tree_sha256:
        lines.append(f"{'' if lines else 'Code: '}files, sha256 {code.tree_sha256}")
    return lines


def _check_names(site: Site) -> None:
    for table, names in (("env", site.env), ("fabric.env", site.fabric.env)):
        for name in names:
            if not NAME.fullmatch(name):
                raise InvalidFileError(
                    f"{name!r} cannot be a variable's name", where=f"site {site.name}: [{table}]"
                )


def _paths(found: list[Place]) -> list[dict[str, str]]:
    paths = [{"variable": p.variable, "staged": p.staged, "plain": p.plain} for p in found]
    if not any(p.kind == "code" for p in found):
        code = {"variable": "HPCSCALE_CODE_DIR", "staged": "$HPCSCALE_RUN_DIR"}
        paths.insert(0, code | {"plain": "$SLURM_SUBMIT_DIR"})
    return paths


def _makes(found: list[Place]) -> list[str]:
    """Directories that the command may expect to be there, as shell words."""
    makes = ['"$HPCSCALE_RUN_DIR"']
    for place in found:
        word = f'"${place.variable}"'
        if place.kind == "checkpoint" or (place.kind == "output" and place.directory):
            makes.append(word)
        elif place.kind == "output":
            makes.append(f'"${{{place.variable}%/*}}"')
    return list(dict.fromkeys(makes))


def software_words(
    spec: JobSpec, site: Site, software: Software | None, found: list[Place]
) -> dict[str, Any] | None:
    """The named software in the templates' words; None when the job names none."""
    if software is None:
        return None
    apptainer = site.container.runtime is ContainerRuntime.APPTAINER
    return {
        "name": spec.software,
        "modules": software.modules,
        "venv": site_path(software.venv) if software.venv else "",
        "conda": site_path(software.conda) if software.conda else "",
        "image": site_path(software.image) if software.image else "",
        "mounts": mounts_word(site, found) if software.image else "",
        "mounts_variable": "APPTAINER_BIND" if apptainer else "HPCSCALE_MOUNTS",
    }
