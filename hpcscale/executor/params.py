"""submitit's parameters in a ``JobSpec``'s words."""

import datetime as dt
import math
import os
import re
import shlex
import sys
import typing as tp
from decimal import Decimal
from pathlib import Path

from submitit.slurm import slurm

from hpcscale.errors import UsageError
from hpcscale.site import Site
from hpcscale.spec import BurstMode, BurstTerms, Function, JobSpec, Resources
from hpcscale.units import parse_deadline, parse_duration_s, parse_memory_mb, parse_money_usd

# ours, besides those of submitit's own Slurm executor
OWN = frozenset({"software", "code", "env", "burst", "max_cost_usd", "deadline"})
SIGNAL = slurm.SlurmJobEnvironment.USR_SIG

# least value of what is counted; submitit takes 0 tasks for one
_COUNTS = {
    "nodes": 1, "ntasks_per_node": 0, "cpus_per_task": 1, "gpus_per_node": 0, "num_gpus": 0,
    "array_parallelism": 1, "signal_delay_s": 0,
}  # fmt: skip
# as they are written for an AutoExecutor
_WORDS = {
    "ntasks_per_node": "tasks_per_node", "num_gpus": "gpus_per_node",
    "array_parallelism": "hpcscale_array_parallelism", "signal_delay_s": "hpcscale_signal_delay_s",
}  # fmt: skip
# options that change what sbatch does with the request, so that there is no such job
_NO_OPTIONS = frozenset({"array", "parsable", "test-only", "wait", "wrap"})

_TO_OPTION = (
    "cpus_per_gpu", "gpus_per_task", "mem_per_gpu", "mem_per_cpu", "exclude", "gres", "mail_type",
    "mail_user", "nodelist", "dependency", "wckey",
)  # fmt: skip


class ParameterError(UsageError, ValueError):
    """A parameter that cannot be; a ``ValueError`` as well, as submitit raises."""

    def __str__(self) -> str:
        # a program's user sees this text alone
        return super().__str__() + (f" (try: {self.hint})" if self.hint else "")


def valid_parameters() -> set[str]:
    """Every name that ``update_parameters`` takes."""
    return set(slurm._get_default_parameters()) | OWN  # noqa: SLF001 # submitit's plugin contract


def time_limit_min(asked: tp.Mapping[str, tp.Any]) -> int:
    """The time limit in minutes, as submitit counts it; 5 by default, as there.

    Raises:
        ParameterError: no time, or none at all.
    """
    value = asked.get("time", 5)
    try:
        if isinstance(value, str) and not value.isdigit():
            seconds = parse_duration_s(value)
            if seconds is None:
                raise ValueError("a function needs a time limit")
            minutes = seconds / 60
        else:
            minutes = float(value)
        # Slurm takes 0 for no limit at all
        if not 0 < minutes < math.inf:
            raise ValueError(f"{value!r} is no time limit: it must be more than nothing")
    except (TypeError, ValueError) as exc:
        raise ParameterError(str(exc), where="time", hint="timeout_min=60") from None
    return max(1, math.ceil(minutes))  # Slurm counts minutes


def max_cost_of(asked: tp.Mapping[str, tp.Any]) -> Decimal | None:
    """The most that a move may cost, in dollars.

    Raises:
        ParameterError: no amount.
    """
    value = asked.get("max_cost_usd")
    if value is None:
        return None
    try:
        if isinstance(value, bool):
            raise ValueError(f"{value!r} is no amount in dollars")  # noqa: TRY004 # caught below
        return parse_money_usd(f"{value:f}" if isinstance(value, Decimal) else str(value))
    except ValueError as exc:
        raise ParameterError(
            str(exc), where="max_cost_usd", hint="hpcscale_max_cost_usd=39.50"
        ) from None


def deadline_of(asked: tp.Mapping[str, tp.Any]) -> dt.datetime | None:
    """When results are wanted; a relative one counts from now, which is the submission.

    Raises:
        ParameterError: it cannot be read, or has passed.
    """
    value = asked.get("deadline")
    if value is None:
        return None
    now = dt.datetime.now(dt.UTC)
    hint = "hpcscale_deadline='+6h', '18:00', '2026-11-30T18:00' or a datetime"
    try:
        if isinstance(value, dt.datetime):
            when = value.astimezone(dt.UTC)  # a naive time is the user's own local time
        elif isinstance(value, (str, dt.date)):
            when = parse_deadline(str(value), now)
        else:
            raise ValueError(f"{value!r} is no deadline")  # noqa: TRY004 # caught below
        if when <= now:
            local = when.astimezone().isoformat(timespec="minutes")
            raise ValueError(f"the deadline {local} has passed")
    except (OverflowError, ValueError) as exc:
        raise ParameterError(str(exc), where="deadline", hint=hint) from None
    return when


def env_of(asked: tp.Mapping[str, tp.Any]) -> dict[str, str]:
    """Variables of the job.

    Raises:
        ParameterError: no mapping, or a name or value that cannot be a variable's.
    """
    env, hint = asked.get("env"), "hpcscale_env={'NAME': 'VALUE'}"
    if env is None:
        return {}
    if not isinstance(env, tp.Mapping):
        raise ParameterError(f"{env!r} is no dict of variables", where="env", hint=hint)
    for name, value in env.items():
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", str(name)):
            raise ParameterError(
                f"{name!r} cannot be a variable's name: letters, digits and _",
                where="env",
                hint=hint,
            )
        if value is None or "\0" in str(value):
            raise ParameterError(
                f"{name}: {value!r} cannot be a variable's value", where="env", hint=hint
            )
    return {str(k): str(v) for k, v in env.items()}


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
    exclusive = asked.get("exclusive")
    env = env_of(asked)
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
            deadline=deadline_of(asked),
            max_cost_usd=max_cost_of(asked),
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
    max_cost_of(asked)
    deadline_of(asked)
    env_of(asked)
    _check_counts(asked)
    _check_additional(asked.get("additional_parameters"))
    if asked.get("burst") is not None:
        try:
            BurstMode(asked["burst"])
        except ValueError:
            raise ParameterError(
                f"{asked['burst']!r} is none of {', '.join(BurstMode)}",
                where="burst",
                hint="hpcscale_burst='auto'",
            ) from None


def _check_counts(asked: tp.Mapping[str, tp.Any]) -> None:
    for name, least in _COUNTS.items():
        value = asked.get(name)
        if value is None:
            continue
        known = _WORDS.get(name, name)
        hint = f"{known}={max(1, least)}"
        try:
            number = int(value)
        except (TypeError, ValueError):
            if name == "gpus_per_node" and isinstance(value, str) and ":" in value:
                hint = f"{known}={value.rpartition(':')[2]}, hpcscale_constraint=… for the kind"
            raise ParameterError(f"{value!r} is no number", where=known, hint=hint) from None
        if number < least or number != float(value):
            what = "a whole number" if number != float(value) else f"at least {least}"
            raise ParameterError(f"{value!r}: {what} is wanted", where=known, hint=hint)


def _check_additional(options: object) -> None:
    if options is None:
        return
    where, hint = "additional_parameters", "hpcscale_additional_parameters={'nice': 100}"
    if not isinstance(options, tp.Mapping):
        raise ParameterError(f"{options!r} is no dict of sbatch options", where=where, hint=hint)
    for name in options:
        option = str(name).replace("_", "-")
        if not re.fullmatch(r"[A-Za-z][A-Za-z0-9-]*", option):
            raise ParameterError(f"{name!r} is no option of sbatch", where=where, hint=hint)
        if option in _NO_OPTIONS:
            raise ParameterError(
                f"--{option} does not go with a function",
                where=where,
                hint="map_array, or batch(), makes arrays" if option == "array" else hint,
            )


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
