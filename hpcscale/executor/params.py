"""submitit's parameters in a ``JobSpec``'s words."""

import math
import os
import shlex
import sys
import typing as tp
from decimal import Decimal
from pathlib import Path

from submitit.slurm import slurm

from hpcscale.errors import UsageError
from hpcscale.site import Site
from hpcscale.spec import BurstMode, BurstTerms, Function, JobSpec, Resources
from hpcscale.units import parse_duration_s, parse_memory_mb

# ours, besides those of submitit's own Slurm executor
OWN = frozenset({"software", "code", "env", "burst", "max_cost_usd"})
SIGNAL = slurm.SlurmJobEnvironment.USR_SIG

_TO_OPTION = (
    "cpus_per_gpu", "gpus_per_task", "mem_per_gpu", "mem_per_cpu", "exclude", "gres", "mail_type",
    "mail_user", "nodelist", "dependency", "wckey",
)  # fmt: skip


class ParameterError(UsageError, ValueError):
    """A parameter that cannot be; a ``ValueError`` as well, as submitit raises."""


def valid_parameters() -> set[str]:
    """Every name that ``update_parameters`` takes."""
    return set(slurm._get_default_parameters()) | OWN  # noqa: SLF001 # submitit's plugin contract


def time_limit_min(asked: tp.Mapping[str, tp.Any]) -> int:
    """The time limit in minutes, as submitit counts it; 5 by default, as there."""
    value = asked.get("time", 5)
    if isinstance(value, str) and not value.isdigit():
        try:
            seconds = parse_duration_s(value)
        except ValueError as exc:
            raise ParameterError(str(exc), where="time") from None
        if seconds is None:
            raise ParameterError(
                "a function needs a time limit", where="time", hint="timeout_min=60"
            )
        return max(1, -(-seconds // 60))
    # Slurm counts minutes, and takes 0 for no limit at all
    return max(1, math.ceil(float(value)))


def may_burst(asked: tp.Mapping[str, tp.Any]) -> bool:
    """Whether the job may go to another site."""
    return BurstMode(asked.get("burst") or "never") is not BurstMode.NEVER


def num_tasks(asked: tp.Mapping[str, tp.Any]) -> int:
    """Tasks of one job."""
    if asked.get("use_srun") is False:
        return 1
    return int(asked.get("nodes") or 1) * max(1, int(asked.get("ntasks_per_node") or 1))


def to_spec(
    asked: tp.Mapping[str, tp.Any], site: Site, python: str, pickles: Path, folder: Path
) -> JobSpec:
    """The job of one function; an array's ``array`` is set by whoever sends it.

    Args:
        asked: submitit's parameters, and ours.
        site: where it goes first.
        python: the interpreter there, as shell words.
        pickles: directory of the pickles.
        folder: where results belong, on this machine.
    """
    code = asked.get("code")
    code_dir = None if code is None else Path(code).expanduser().absolute()
    workdir = code_dir or _seen_here(site)
    gpus = asked.get("gpus_per_node", asked.get("num_gpus"))
    tasks = asked.get("ntasks_per_node")
    mem = asked.get("mem")
    cost = asked.get("max_cost_usd")
    exclusive = asked.get("exclusive")
    env = {str(k): str(v) for k, v in dict(asked.get("env") or {}).items()}
    # what may go to another site brings its modules along (code), and finds no path of this machine
    if not may_burst(asked) and (here := _import_path(site)):
        env.setdefault("PYTHONPATH", os.pathsep.join(here))
    return JobSpec(
        name=asked.get("job_name", "submitit"),
        command=(*shlex.split(python), "-u", "-m", "submitit.core._submit"),
        function=Function(
            python=python,
            pickled_by=f"{sys.version_info[0]}.{sys.version_info[1]}",
            setup=tuple(asked.get("setup") or ()),
            teardown=tuple(asked.get("teardown") or ()),
            srun_args=tuple(asked.get("srun_args") or ()),
            use_srun=bool(asked.get("use_srun", True)),
            stderr_to_stdout=bool(asked.get("stderr_to_stdout", False)),
        ),
        inputs={"submitit": str(pickles)},
        outputs={"submitit": f"{folder}/"},
        workdir=None if workdir is None else str(workdir),
        code="" if workdir is None else str(code_dir or workdir),
        software=asked.get("software"),
        env=env,
        partition=_text(asked, "partition"),
        account=_text(asked, "account"),
        qos=_text(asked, "qos"),
        constraint=_text(asked, "constraint"),
        comment=_text(asked, "comment"),
        directives=_options(asked),
        resources=Resources(
            nodes=int(asked.get("nodes") or 1),
            gpus_per_node=int(gpus or 0),
            tasks_per_node=None if tasks is None else max(1, int(tasks)),
            cpus_per_task=asked.get("cpus_per_task"),
            mem_gb=None if mem is None else _gigabytes(str(mem)),
            time_limit_s=time_limit_min(asked) * 60,
            exclusive=exclusive is True,
        ),
        burst=BurstTerms(
            mode=BurstMode(asked.get("burst") or "never"),
            max_cost_usd=None if cost is None else Decimal(str(cost)),
        ),
    )


def _text(asked: tp.Mapping[str, tp.Any], name: str) -> str | None:
    return None if asked.get(name) is None else str(asked[name])


def _options(asked: tp.Mapping[str, tp.Any]) -> dict[str, str | None]:
    """What has no word of its own in a ``JobSpec``: sbatch options as they are."""
    options: dict[str, str | None] = {
        # to the tasks, not to the batch script: submitit's job side saves and requeues
        "signal": f"{SIGNAL}@{int(asked.get('signal_delay_s', 90))}",
        "requeue": None,
    }
    for name in _TO_OPTION:
        if asked.get(name) is not None:
            options[name.replace("_", "-")] = str(asked[name])
    if isinstance(asked.get("exclusive"), str):
        options["exclusive"] = asked["exclusive"]
    for name, value in dict(asked.get("additional_parameters") or {}).items():
        option = str(name).replace("_", "-")
        if value is False or value is None:
            options.pop(option, None)
        else:
            options[option] = None if value is True else str(value)
    return options


def check(asked: tp.Mapping[str, tp.Any]) -> None:
    """Refuse what would break the script, when it is set and not when it is sent.

    Raises:
        ParameterError: a value that cannot be.
    """
    for name in ("setup", "teardown", "srun_args"):
        if isinstance(asked.get(name), str):
            raise ParameterError(f"{name} is a list of texts", hint=f"{name}=['…']")
    for line in (*(asked.get("setup") or ()), *(asked.get("teardown") or ())):
        if "\0" in str(line):
            raise ParameterError("a shell line cannot hold a NUL byte")
    time_limit_min(asked)
    if asked.get("burst") is not None:
        try:
            BurstMode(asked["burst"])
        except ValueError:
            raise ParameterError(
                f"burst={asked['burst']!r}", hint="one of: " + ", ".join(BurstMode)
            ) from None


def _seen_here(site: Site) -> Path | None:
    """The current directory where the nodes see it."""
    here = Path.cwd()
    return here if any(here.is_relative_to(root) for root in _shared(site)) else None


def _shared(site: Site) -> list[str]:
    return [root for root in site.shared_dirs if root] if site.transport.kind == "local" else []


def _import_path(site: Site) -> list[str]:
    """Where this process imports from, besides its interpreter's own, as far as nodes may see it.

    A function's modules are found there again on a local site.
    """
    if site.transport.kind != "local":
        return []
    own = (sys.prefix, sys.base_prefix)
    paths = [path for path in sys.path if path and Path(path).is_dir()]
    return [path for path in paths if not path.startswith(own)]


def _gigabytes(text: str) -> float:
    """Memory as submitit writes it (``4GB``) or as sbatch takes it (``4000``)."""
    try:
        return parse_memory_mb(text) / 1024
    except ValueError as exc:
        raise ParameterError(str(exc), where="mem") from None
