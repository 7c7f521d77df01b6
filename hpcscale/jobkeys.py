"""The keys of a job file, as TOML spells them; ``hpcscale.jobfile`` gives them their meaning."""

import difflib
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from hpcscale.errors import InvalidFileError
from hpcscale.sbatch_script import SHORT_OPTIONS


class _Keys(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    pass


class ResourceKeys(_Keys, frozen=True, kw_only=True):
    """``[resources]``.

    Attributes:
        nodes: how many.
        gpus_per_node: on each.
        tasks_per_node: ranks on each node; default one a GPU.
        cpus_per_task: CPUs of a rank.
        mem: memory of each node, ``"64G"``, or MB as a number; 0 is all of it.
        time: limit, minutes or ``"HH:MM:SS"``, ``"1-12:00:00"``, ``"90m"``.
        exclusive: whole nodes.
    """

    nodes: int | None = None
    gpus_per_node: int | None = None
    tasks_per_node: int | None = None
    cpus_per_task: int | None = None
    mem: int | str | None = None
    time: int | str | None = None
    exclusive: bool = False


class CheckpointKeys(_Keys, frozen=True, kw_only=True):
    """``[checkpoint]``.

    Attributes:
        dir: the directory; reaches the command as ``$HPCSCALE_CHECKPOINT_DIR``.
        lead: how long before the time limit the stop signal comes; seconds, or like ``"2m"``.
        stop_wait: how long the command may take to save and end.
        max_restarts: requeues, then the job ends.
    """

    dir: str | None = None
    lead: int | str | None = None
    stop_wait: int | str | None = None
    max_restarts: int | None = None


class BurstKeys(_Keys, frozen=True, kw_only=True):
    """``[burst]``.

    Attributes:
        mode: ``never``, ``auto`` or ``only``.
        deadline: when results are wanted.
        max_cost_usd: most that the job may cost elsewhere.
        data: what its data is, such as ``hipaa`` or ``eu-only``: where it may not go.
        egress_gb: most gigabytes that come back from another site (outputs, logs): for the cost.
    """

    mode: str | None = None
    deadline: Any = None
    max_cost_usd: Any = None
    data: list[str] = []
    egress_gb: float | None = None


class JobKeys(_Keys, frozen=True, kw_only=True):
    """A JOB.toml, or the ``[job]`` table of a settings file.

    Attributes:
        name: of the job; default from the command.
        command: a list of words; or a text, split like a shell does, and run by bash when it holds
            shell syntax such as ``$VARIABLE`` or ``|``.
        launcher: ``plain``, ``srun`` or ``torchrun``.
        site: where it runs; default ``default_site``.
        partition: Slurm's.
        account: Slurm's.
        qos: Slurm's.
        constraint: Slurm's.
        comment: kept in Slurm's comment, before our id.
        software: a ``[software.NAME]`` of the site.
        code: directory that goes along where the nodes do not see it; ``""`` for none,
            ``"container:DIR"`` when the program is in the software's image.
        workdir: directory the job starts in; default where the user stands.
        array: as sbatch's ``--array``.
        after: jobs to wait for, ``afterok:JOB``.
        resources: how much.
        env: variables of the job.
        secrets: NAME = ``"file:PATH"`` or ``"env:VARIABLE"``.
        inputs: NAME = path.
        outputs: NAME = path; a slash at its end makes it a directory.
        checkpoint: where to save, and when to stop.
        burst: whether it may go elsewhere.
        sbatch: any other sbatch option, ``hint = "nomultithread"``; true for one without value.
    """

    name: str | None = None
    command: str | list[str] | None = None
    launcher: str | None = None
    site: str | None = None
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    comment: str | None = None
    software: str | None = None
    code: str | None = None
    workdir: str | None = None
    array: str | None = None
    after: list[str] = msgspec.field(default_factory=list)
    resources: ResourceKeys = ResourceKeys()
    env: dict[str, str] = msgspec.field(default_factory=dict)
    secrets: dict[str, str] = msgspec.field(default_factory=dict)
    inputs: dict[str, str] = msgspec.field(default_factory=dict)
    outputs: dict[str, str] = msgspec.field(default_factory=dict)
    checkpoint: CheckpointKeys | None = None
    burst: BurstKeys = BurstKeys()
    sbatch: dict[str, Any] = msgspec.field(default_factory=dict)


# options that have a key (and a meaning) of their own, or are ours
_HAS_KEY = {
    "job-name": "name", "partition": "partition", "account": "account", "qos": "qos",
    "constraint": "constraint", "array": "array", "nodes": "resources.nodes",
    "gpus-per-node": "resources.gpus_per_node", "gres": "resources.gpus_per_node",
    "gpus": "resources.gpus_per_node", "ntasks-per-node": "resources.tasks_per_node",
    "cpus-per-task": "resources.cpus_per_task", "mem": "resources.mem", "time": "resources.time",
    "exclusive": "resources.exclusive", "chdir": "workdir", "dependency": "after",
    "comment": "comment", "clusters": "site",
}  # fmt: skip
_OURS = {
    "output": "`hpcscale logs` knows where the log is",
    "error": "both streams go to one log",
    "open-mode": "logs are appended to, so that a requeue keeps them",
    "export": "a job gets the same environment on every site: name variables below [env]",
    "export-file": "name variables below [env]",
    "signal": "a [checkpoint] asks for the signal",
    "requeue": "a [checkpoint] asks for it",
    "deadline": "Slurm's deletes the job; ours is `deadline` below [burst]",
    "wrap": "write `command`",
    "parsable": "hpcscale reads sbatch's answer",
    "wait": "hpcscale wait",
    "test-only": "hpcscale submit --dry-run",
    "input": "declare it below [inputs]",
    "uid": "jobs are yours",
    "gid": "jobs are yours",
    "hetjob": "het jobs are not supported; submit them as a script",
}


def require_sbatch_options(
    options: Mapping[str, Any], where: Callable[[str], str]
) -> dict[str, str | None]:
    """Other sbatch options by long name; None for one without value; those set to false are gone.

    Args:
        options: as written below ``[sbatch]``.
        where: the place of an option, for messages.

    Raises:
        InvalidFileError: an option that has a key of its own, is ours, or has no usable value.
    """
    found: dict[str, str | None] = {}
    for written, value in options.items():
        option = written.lstrip("-").replace("_", "-")
        option = SHORT_OPTIONS.get(option, option)
        if option in _HAS_KEY:
            raise InvalidFileError(
                f"sbatch option {written!r} has a key of its own",
                where=where(written),
                hint=f"write {_HAS_KEY[option]} = …",
            )
        if option in _OURS:
            raise InvalidFileError(
                f"sbatch option {written!r} cannot be set: {_OURS[option]}", where=where(written)
            )
        if not option or not option.replace("-", "").isalnum() or not option.isascii():
            known = difflib.get_close_matches(option, SHORT_OPTIONS.values(), n=1)
            raise InvalidFileError(
                f"{written!r} is no sbatch option",
                where=where(written),
                hint=f"did you mean {known[0]!r}?" if known else "see sbatch(1)",
            )
        if value is False:
            continue
        if not isinstance(value, (str, int)) or "\0" in str(value):
            raise InvalidFileError(
                f"sbatch option {written!r}: must be text, a number or true", where=where(written)
            )
        found[option] = None if value is True else str(value)
    return found
