"""Foreign sbatch scripts: directives and body as they are, our prologue in between.

The prologue takes the two arguments that hpcscale gives (and hands the script its own), reports
start and end, and exports what was declared. For another site than the script was written for, its
site-bound directives are commented out and the profile's own are added.
"""

from typing import Any

from hpcscale.errors import InvalidFileError, LintRefusedError
from hpcscale.render.burstable import script_blockers
from hpcscale.render.directives import Directives, directive_lines, resource_directives
from hpcscale.render.job import common_context, software_words
from hpcscale.render.launch import find_software
from hpcscale.render.places import places
from hpcscale.render.shell import words
from hpcscale.render.templating import fill
from hpcscale.sbatch_script import SITE_BOUND, body_start, fields
from hpcscale.site import Site, Software
from hpcscale.spec import CodeId, JobSpec, Script
from hpcscale.units import parse_duration_s, parse_memory_mb

_NEVER = frozenset({"deadline"})  # ours is no option of Slurm's: it would delete the job


def foreign_text(
    spec: JobSpec,
    script: Script,
    site: Site,
    options: list[str],
    notices: list[str],
    *,
    gate: object = None,
    code: CodeId | None = None,
) -> str:
    """The script with our prologue.

    Args:
        spec: what the script's directives and the flags asked for, together.
        script: ``spec.script``.
        site: where.
        options: gets what no ``#SBATCH`` line can hold.
        notices: gets what the user should know.
        gate: whether and how long the script waits for a decision (``render.Gate``).
        code: which program goes along.

    Raises:
        LintRefusedError: it was written for another site, and cannot run here.
    """
    moved = script.site is not None and script.site != site.name
    if moved and (found := script_blockers(script, site)):
        raise LintRefusedError(
            f"written for {script.site}, it cannot run at {site.name}:\n"
            + "\n".join(f"  line {f.line}: {f.why}" for f in found),
            where=f"{script.path}:{found[0].line}",
            hint=found[0].fix,
        )
    dropped = {o for _, o, _ in script.directives if moved and o in SITE_BOUND}
    added = _added(spec, script, site, moved=moved)
    lines = script.text.splitlines(keepends=True)
    start = body_start(script.text)
    head = _commented(lines[:start], script, dropped)
    if head and not head[-1].endswith("\n"):
        head[-1] += "\n"
    _notices(script, notices, dropped, site)
    if spec.checkpoint is not None:
        notices.append(
            f"{script.path}: a script of one's own gets $HPCSCALE_CHECKPOINT_DIR, but neither "
            "warning nor requeue: it asks for them itself"
        )
    context = _context(spec, script, site, notices, code, moved=moved)
    context["directives"] = directive_lines(added, options)
    context["gate"] = gate
    prologue = fill("foreign.sh.j2", context)
    return "".join([*head, prologue, *lines[start:]])


def _added(spec: JobSpec, script: Script, site: Site, *, moved: bool) -> Directives:
    """Directives where the spec differs from what the script says: by flags or by the site."""
    said = fields(script)
    asked = said.pop("resources", {})
    if "time" in asked:
        asked["time_limit_s"] = parse_duration_s(asked["time"])
    if "mem" in asked:
        asked["mem_gb"] = parse_memory_mb(asked["mem"]) / 1024
    ours = resource_directives(spec, site)
    if spec.array is None:
        ours.pop("array", None)
    ours["job-name"] = spec.name
    # what the script leaves open is left to Slurm, as plain sbatch would
    own_words = {
        "partition": "partition", "account": "account", "qos": "qos",
        "constraint": "constraint", "job-name": "name", "array": "array",
    }  # fmt: skip
    resource_words = {
        "nodes": "nodes", "ntasks-per-node": "tasks_per_node", "cpus-per-task": "cpus_per_task",
        "gpus-per-node": "gpus_per_node", "mem": "mem_gb", "time": "time_limit_s",
        "exclusive": "exclusive",
    }  # fmt: skip
    added: Directives = {}
    for option, word in own_words.items():
        value = getattr(spec, word)
        if option in {"partition", "account", "qos"} and (moved or word not in said):
            if option in ours:
                added[option] = ours[option]
        elif value is not None and value != said.get(word) and option in ours:
            if option == "job-name" and word not in said and value == "hpcscale":
                continue
            added[option] = value
    for option, word in resource_words.items():
        value = getattr(spec.resources, word)
        default = {"nodes": 1, "gpus_per_node": 0, "exclusive": False}.get(word)
        if option in ours and value != asked.get(word, default):
            added[option] = ours[option]
    if moved:
        added |= {k: v or None for k, v in site.directives.items()}
        if not any(option == "export" for _, option, _ in script.directives):
            added["export"] = ",".join(site.keep_env) or "NONE"
    skip = {"comment", "dependency", "error"} | _NEVER
    return added | {k: v for k, v in spec.directives.items() if k not in skip}


def _commented(head: list[str], script: Script, dropped: set[str]) -> list[str]:
    """The directive block, lines of site-bound options turned into comments."""
    result = []
    for number, line in enumerate(head, 1):
        here = [(option, value) for n, option, value in script.directives if n == number]
        if not any(option in dropped for option, _ in here):
            result.append(line)
            continue
        result.append(f"# of another site: {line}")
        for option, value in here:
            if option not in dropped:  # it stood in the same line
                result.append(f"#SBATCH --{option}" + (f"={value}\n" if value else "\n"))
    return result


def _notices(script: Script, notices: list[str], dropped: set[str], site: Site) -> None:
    names = {option for _, option, _ in script.directives}
    if "deadline" in names:
        notices.append(
            f"{script.path}: its --deadline is Slurm's own, which deletes a job that cannot end in "
            "time; it is left as it is"
        )
    if dropped:
        listed = ", ".join(f"--{option}" for option in sorted(dropped))
        notices.append(f"{script.path}: {listed} of {script.site} left out at {site.name}")


def _context(
    spec: JobSpec,
    script: Script,
    site: Site,
    notices: list[str],
    code: CodeId | None,
    *,
    moved: bool,
) -> dict[str, Any]:
    context = common_context(spec, site, notices if moved else [], code)
    own_chdir = [value for _, option, value in script.directives if option in {"chdir", "workdir"}]
    return context | {
        "foreign": True,
        "moved": moved,
        "software": software_words(spec, site, _hosted(spec, site), places(spec, site)),
        "path": script.path,
        "arguments": words(spec.script_args),
        "chdir": own_chdir[-1] if own_chdir else None,
    }


def _hosted(spec: JobSpec, site: Site) -> Software | None:
    """Modules, venv or conda for the script; what is in an image cannot be loaded into it."""
    software = find_software(spec, site)
    if software is not None and software.image:
        raise InvalidFileError(
            f"software {spec.software!r} is an image at {site.name}, and a script of one's own is "
            "not run in one",
            where=f"site {site.name}",
            hint="start the container in the script, or give the command itself: … -- COMMAND",
        )
    return software
