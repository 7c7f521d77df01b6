"""The ``#SBATCH`` lines of our own scripts: sorted, one option a line."""

from collections.abc import Mapping

from hpcscale.render.shell import directive_safe, directive_tame
from hpcscale.site import Site
from hpcscale.spec import JobSpec, Launcher
from hpcscale.units import format_duration

Directives = dict[str, str | None]


def ranks_per_node(spec: JobSpec) -> int:
    """Ranks on each node: as asked, else one a GPU, else one."""
    return spec.resources.tasks_per_node or spec.resources.gpus_per_node or 1


def slurm_tasks_per_node(spec: JobSpec) -> int:
    """Slurm tasks on each node: torchrun is one task that starts the ranks itself."""
    if spec.launcher is Launcher.TORCHRUN:
        return 1
    if spec.launcher is Launcher.PLAIN:
        return spec.resources.tasks_per_node or 1
    return ranks_per_node(spec)


def cpus_per_slurm_task(spec: JobSpec, site: Site) -> int | None:
    """``--cpus-per-task``; the spec counts CPUs of a rank, so torchrun's one task gets them all."""
    asked = spec.resources.cpus_per_task
    if asked is None and site.launch.cpus_per_gpu and spec.resources.gpus_per_node:
        per_node = site.launch.cpus_per_gpu * spec.resources.gpus_per_node
        return max(1, per_node // slurm_tasks_per_node(spec))
    if asked is not None and spec.launcher is Launcher.TORCHRUN:
        return asked * ranks_per_node(spec)
    return asked


def resource_directives(spec: JobSpec, site: Site) -> Directives:
    """What the job asks for, in sbatch's words."""
    want = spec.resources
    found: Directives = {
        "partition": spec.partition or site.default_partition,
        "account": spec.account or site.account,
        "qos": spec.qos or site.qos,
        "nodes": str(want.nodes),
        "ntasks-per-node": str(slurm_tasks_per_node(spec)),
    }
    if spec.constraint:
        found["constraint"] = spec.constraint
    if want.gpus_per_node:
        found["gpus-per-node"] = str(want.gpus_per_node)
    if cpus := cpus_per_slurm_task(spec, site):
        found["cpus-per-task"] = str(cpus)
    if want.mem_gb is not None:
        found["mem"] = f"{round(want.mem_gb * 1024)}M" if want.mem_gb else "0"
    if want.time_limit_s is not None:
        found["time"] = format_duration(-(-want.time_limit_s // 60) * 60)
    if spec.array:
        found["array"] = spec.array
    # a site without account or QOS leaves them to Slurm
    missing = [k for k in ("partition", "account", "qos") if not found[k]]
    for key in missing:
        del found[key]
    if want.exclusive:
        found["exclusive"] = None
    return found


def job_directives(spec: JobSpec, site: Site) -> Directives:
    """All directives of a script of ours, by option."""
    found: Directives = {k: v or None for k, v in site.directives.items()}
    found |= resource_directives(spec, site)
    found["job-name"] = spec.name
    found["export"] = ",".join(site.keep_env) or "NONE"
    found["output"] = "hpcscale-%A_%a.log" if spec.array else "hpcscale-%j.log"
    found["open-mode"] = "append"
    if spec.checkpoint is not None:
        found["signal"] = f"B:USR1@{spec.checkpoint.lead_s}"
        found["requeue"] = None
    # the job's comment carries our id, and what it waits for is known at submission
    own = {k: v for k, v in spec.directives.items() if k not in {"comment", "dependency", "error"}}
    return found | own


def directive_lines(directives: Mapping[str, str | None], options: list[str]) -> list[str]:
    """Sorted ``--option=value`` texts.

    A value that a ``#SBATCH`` line cannot hold safely goes to ``options`` as an argv element; of a
    name a tamed form stays for those who run the script by plain sbatch.
    """
    lines: list[str] = []
    for option, value in sorted(directives.items()):
        if value is None:
            lines.append(f"--{option}")
        elif directive_safe(value):
            lines.append(f"--{option}={value}")
        else:
            options.append(f"--{option}={value}")
            if option == "job-name":
                lines.append(f"--{option}={directive_tame(value) or 'job'}")
    return lines
