"""What `render` and `submit` have in common: how a job is said on the command line."""

from collections.abc import Callable, Mapping
from functools import update_wrapper
from typing import TYPE_CHECKING, Any

import click

from hpcscale.errors import UsageError

if TYPE_CHECKING:
    from hpcscale.spec import JobSpec

_COMMAND = "hpcscale.command"


class JobCommand(click.Command):
    """A command whose words after ``--`` are the job's own, never options or a file of ours."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Keep what follows the first ``--``; click would throw the mark away."""
        if "--" in args:
            cut = args.index("--")
            ctx.meta[_COMMAND] = tuple(args[cut + 1 :])
            args = args[:cut]
        return super().parse_args(ctx, args)

    def collect_usage_pieces(self, ctx: click.Context) -> list[str]:
        """Usage line: the command stands last."""
        return [*super().collect_usage_pieces(ctx), "[-- COMMAND...]"]


class JobArguments:
    """What was typed, not yet judged.

    Attributes:
        source: JOB.toml or script; None when there is none.
        values: option values by parameter name.
        command: the words after ``--``.
    """

    def __init__(
        self, source: str | None, values: Mapping[str, Any], command: tuple[str, ...]
    ) -> None:
        self.source = source
        self.values = values
        self.command = command

    def load(self, *, runs: bool = True) -> "JobSpec":
        """Join flags, file and defaults.

        Args:
            runs: False: no command is needed.

        Raises:
            HpcscaleError: see ``hpcscale.jobfile.load_job``.
        """
        from hpcscale.jobfile import load_job

        flags, names = self._flags()
        return load_job(self.source, flags=flags, flag_names=names, command=self.command, runs=runs)

    def _flags(self) -> tuple[dict[str, Any], dict[str, str]]:
        flags: dict[str, Any] = {}
        names: dict[str, str] = {}
        for parameter, dotted in _KEYS.items():
            value = self.values.get(parameter)
            if value is None or value is False or value == ():
                continue
            flag = f"--{parameter.replace('_', '-')}"
            names[dotted] = flag
            table, _, key = dotted.rpartition(".")
            if parameter in _PAIRS:
                value = dict(_pair(flag, text) for text in value)
                for name in value:
                    names[f"{dotted}.{name}"] = f"{flag} {name}"
            elif isinstance(value, tuple):
                value = list(value)
            (flags.setdefault(table, {}) if table else flags)[key] = value
        if self.values.get("no_code"):
            if "code" in flags:
                raise UsageError("--code and --no-code together", hint="give one of them")
            flags["code"], names["code"] = "", "--no-code"
        return flags, names


# parameter -> key of a job file
_KEYS = {
    "name": "name", "site": "site", "partition": "partition", "account": "account", "qos": "qos",
    "constraint": "constraint", "launcher": "launcher", "software": "software", "array": "array",
    "after": "after", "code": "code", "workdir": "workdir", "nodes": "resources.nodes",
    "gpus_per_node": "resources.gpus_per_node", "tasks_per_node": "resources.tasks_per_node",
    "cpus_per_task": "resources.cpus_per_task", "mem": "resources.mem", "time": "resources.time",
    "exclusive": "resources.exclusive", "env": "env", "secret": "secrets", "input": "inputs",
    "output": "outputs", "checkpoint_dir": "checkpoint.dir", "checkpoint_lead": "checkpoint.lead",
    "max_restarts": "checkpoint.max_restarts", "burst": "burst.mode",
    "deadline": "burst.deadline", "max_cost": "burst.max_cost_usd", "sbatch": "sbatch",
}  # fmt: skip
_PAIRS = frozenset({"env", "secret", "input", "output", "sbatch"})


def _pair(flag: str, text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not name:
        raise UsageError(f"{text!r} names nothing", where=flag, hint=f"{flag} NAME=VALUE")
    if flag == "--secret" and not equals:
        return name, f"env:{name}"
    if flag == "--sbatch" and not equals:
        return name, True
    if not equals:
        raise UsageError(f"{text!r} has no value", where=flag, hint=f"{flag} {name}=VALUE")
    return name, value


def _number(*names: str, text: str) -> Any:
    return click.option(*names, type=int, metavar="N", help=text)


_OPTIONS = (
    click.option("--site", metavar="NAME", help="Where; default: your default_site."),
    click.option("--name", metavar="NAME", help="Name of the job."),
    _number("--nodes", text="How many nodes."),
    _number("--gpus-per-node", text="GPUs on each node."),
    _number("--tasks-per-node", text="Ranks on each node; default one a GPU."),
    _number("--cpus-per-task", text="CPUs of each rank."),
    click.option("--mem", metavar="SIZE", help="Memory of each node, as 64G; 0 is all of it."),
    click.option(
        "--time", metavar="LIMIT", help="Time limit: minutes, HH:MM:SS, D-HH or like 90m."
    ),
    click.option("--exclusive", is_flag=True, help="Whole nodes."),
    click.option("--partition", metavar="NAME", help="Slurm's partition."),
    click.option("--account", metavar="NAME", help="Slurm's account."),
    click.option("--qos", metavar="NAME", help="Slurm's QOS."),
    click.option("--constraint", metavar="FEATURES", help="Features of the nodes."),
    click.option("--launcher", metavar="plain|srun|torchrun", help="How the ranks start."),
    click.option("--software", metavar="NAME", help="A [software.NAME] of the site."),
    click.option("--env", metavar="K=V", multiple=True, help="A variable of the job."),
    click.option(
        "--secret",
        metavar="NAME[=file:PATH|env:VAR]",
        multiple=True,
        help="A variable whose value no script, log or ledger ever holds.",
    ),
    click.option("--input", metavar="N=PATH", multiple=True, help="Read as $HPCSCALE_INPUT_<N>."),
    click.option(
        "--output",
        metavar="N=PATH",
        multiple=True,
        help="Written to $HPCSCALE_OUTPUT_<N>; a slash at its end makes it a directory.",
    ),
    click.option(
        "--code",
        metavar="DIR",
        help="Goes along where the nodes do not see it; container:DIR is in the image.",
    ),
    click.option("--no-code", is_flag=True, help="No directory goes along."),
    click.option("--workdir", metavar="DIR", help="Start there; default the current directory."),
    click.option(
        "--checkpoint-dir",
        metavar="DIR",
        help="$HPCSCALE_CHECKPOINT_DIR; the job is warned, stopped and requeued before its limit.",
    ),
    click.option(
        "--checkpoint-lead", metavar="TIME", help="Warn so long before the limit: 120, 5m."
    ),
    _number("--max-restarts", text="Requeues after which a checkpointing job ends."),
    click.option("--deadline", metavar="WHEN", help="Results wanted by: +6h, 18:00, 2026-11-30."),
    click.option("--max-cost", metavar="USD", help="The most it may cost elsewhere."),
    click.option("--burst", metavar="never|auto|only", help="May it run on another site?"),
    click.option("--array", metavar="SPEC", help="As sbatch's: 0-15, 1,3,5-7, 0-99%4."),
    click.option(
        "--after", metavar="[TYPE:]JOB", multiple=True, help="Wait for a job; afterok unless said."
    ),
    click.option(
        "--sbatch", metavar="OPTION[=V]", multiple=True, help="Any other sbatch option, long name."
    ),
)


def job_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options of a job; the command gets them as one argument, ``job: JobArguments``.

    To be used below ``@click.command(cls=JobCommand)``.
    """
    parameters = {*_KEYS, "no_code"}

    def wrapper(words: tuple[str, ...], **options: Any) -> Any:
        values = {k: options.pop(k) for k in list(options) if k in parameters}
        command = click.get_current_context().meta.get(_COMMAND, ())
        if len(words) > 1:
            raise UsageError(
                f"one file at most: {' '.join(words)}",
                hint=f"a command stands behind `--`: -- {' '.join(words)}",
            )
        job = JobArguments(words[0] if words else None, values, command)
        return function(job=job, **options)

    update_wrapper(wrapper, function)
    decorated: Callable[..., Any] = wrapper
    for option in reversed(_OPTIONS):
        decorated = option(decorated)
    argument = click.argument("words", nargs=-1, metavar="[JOB.toml|SCRIPT.sbatch]")
    return argument(decorated)
