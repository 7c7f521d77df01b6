"""From what the user wrote to a ``JobSpec``: flags, a JOB.toml or an sbatch script, defaults.

Layers, weakest first: ``[job]`` of the user's ``config.toml`` < ``[job]`` of the project's
``./hpcscale.toml`` < the JOB.toml or the script's ``#SBATCH`` lines < flags. Tables merge key by
key. Every message names the file, the line and the key, or the flag.
"""

import datetime as dt
import os
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from hpcscale.errors import HpcscaleError, InvalidFileError, NotFoundError, UsageError
from hpcscale.jobkeys import JobKeys, require_sbatch_options
from hpcscale.sbatch_script import fields, read_script
from hpcscale.settings import choose_site, project_job_defaults, user_job_defaults
from hpcscale.spec import (
    BurstMode,
    BurstTerms,
    Checkpoint,
    JobSpec,
    Launcher,
    Resources,
    Script,
    SecretSource,
)
from hpcscale.tomlfile import (
    bad_key,
    convert_toml,
    invalid_key,
    merge_layer,
    origin_of,
    read_toml,
    with_line,
)
from hpcscale.units import (
    parse_array,
    parse_deadline,
    parse_duration_s,
    parse_memory_mb,
    parse_money_usd,
)

MAX_SCRIPT_BYTES = 4 * 1024**2  # slurm.conf(5) max_script_size
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_PATH_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]*")
_SECRET_NAME = re.compile(
    r"(?:^|_)(?:TOKEN|SECRET|SECRETS|PASSWORD|PASSWD|PASSPHRASE|API_?KEY|APIKEY|ACCESS_KEY|"
    r"PRIVATE_KEY|SECRET_KEY|CREDENTIALS?)$|(?:^|_)(?:SECRET|PASSWORD)_",
    re.IGNORECASE,
)
_SHELL_SYNTAX = re.compile(r"[$`|&;<>()*?\[\]{}~\n]")


class _Layers:
    """The merged keys, and who set each."""

    def __init__(self) -> None:
        self.merged: dict[str, Any] = {}
        self.origins: dict[str, str] = {}
        self.tables: dict[str, str] = {}  # file -> prefix of its keys

    def add(self, data: Mapping[str, Any], origin: str, prefix: str = "") -> None:
        self.tables[origin] = prefix
        if isinstance(data.get("command"), (str, list)):
            # a stronger layer's command replaces a weaker one whole
            self.merged.pop("command", None)
        merge_layer(self.merged, data, origin, self.origins)

    def where(self, key: str) -> str:
        """``FILE:LINE: key`` or the flag that set a key."""
        origin = origin_of(self.origins, key)
        if origin.startswith("--") or not origin:
            return origin or key
        return f"{with_line(origin, self.tables.get(origin, '') + key)}: {key}"


def load_job(
    source: str | None = None,
    *,
    flags: Mapping[str, Any] | None = None,
    flag_names: Mapping[str, str] | None = None,
    command: Sequence[str] = (),
    now: dt.datetime | None = None,
    cwd: Path | None = None,
) -> JobSpec:
    """Join all that was said about a job.

    Args:
        source: a ``*.toml`` job file, or an sbatch script; None: flags and command are all.
        flags: in a job file's shape, ``{"resources": {"nodes": 2}}``; the strongest layer.
        flag_names: dotted key -> the flag as typed, for messages; default ``--key``.
        command: what follows ``--``: the command, or a script's own arguments.
        now: aware; default the current time (deadlines are read against it).
        cwd: where the user stands; default the current directory.

    Returns:
        The spec; ``site`` is set to the site that was asked for or is the default.

    Raises:
        UsageError: flags that do not go together, or no command or site at all.
        InvalidFileError: a file is wrong; file, line and key are named.
        NotFoundError: no such file.
    """
    cwd = (cwd or Path.cwd()).absolute()
    now = now or dt.datetime.now(dt.UTC)
    layers = _Layers()
    for data, path in (user_job_defaults(), project_job_defaults(cwd)):
        if path is not None and data:
            _check_keys({"job": data}, JobTable, str(path))
            layers.add(data, str(path), "job.")
    text = script_path = None
    if source is not None:
        path = cwd / Path(source).expanduser()
        if path.suffix == ".toml":
            _require_file(path, source)
            data = read_toml(path)
            _check_keys(data, JobKeys, str(path))
            layers.add(_paths_from(data, path.parent, cwd), str(path))
        else:
            text, script_path = _read_text(path, source), str(path)
            script = read_script(text, source)
            layers.add(fields(script), source)
    _add_flags(layers, flags or {}, flag_names or {})
    keys = _typed(layers)
    site = choose_site(keys.site)
    foreign: Script | None = None
    if text is not None:
        foreign = read_script(text, source or "", site)
    elif command:
        layers.merged["command"] = list(command)
        layers.origins["command"] = "--"
        keys = _typed(layers)
    return _build(
        keys, layers, site=site, script=foreign, arguments=command, now=now, cwd=cwd,
        script_path=script_path,
    )  # fmt: skip


class JobTable(msgspec.Struct, frozen=True):
    """A file with a ``[job]`` table; the other keys are judged by ``hpcscale.settings``."""

    job: JobKeys


def _require_file(path: Path, source: str) -> None:
    if not path.exists():
        raise NotFoundError(
            f"no file {source!r}",
            hint="a command stands behind `--`: hpcscale submit … -- COMMAND",
        )
    if path.is_dir():
        raise InvalidFileError("it is a directory", where=source)


def _read_text(path: Path, source: str) -> str:
    _require_file(path, source)
    try:
        if path.stat().st_size > MAX_SCRIPT_BYTES:
            raise InvalidFileError("larger than 4 MB: Slurm takes no such script", where=source)
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as exc:
        raise InvalidFileError("not UTF-8 text: no script", where=source) from exc
    except OSError as exc:
        raise InvalidFileError(f"cannot be read: {exc.strerror}", where=source) from exc


def _check_keys(data: Mapping[str, Any], type_: Any, path: str) -> None:
    convert_toml(data, type_, path)
    table = data.get("job", data)
    require_sbatch_options(
        table.get("sbatch", {}),
        lambda option: with_line(path, ("job." if table is not data else "") + f"sbatch.{option}"),
    )


def _paths_from(data: dict[str, Any], here: Path, cwd: Path) -> dict[str, Any]:
    """Relative paths of a job file are relative to the file, not to where the user stands."""
    if here == cwd:
        return data
    data = dict(data)
    for table in ("inputs", "outputs"):
        if table in data:
            data[table] = {n: _join(here, p) for n, p in data[table].items()}
    for key in ("code", "workdir"):
        if data.get(key):
            data[key] = _join(here, data[key])
    if "dir" in data.get("checkpoint", {}):
        data["checkpoint"] = data["checkpoint"] | {"dir": _join(here, data["checkpoint"]["dir"])}
    return data


def _join(here: Path, path: str) -> str:
    if Path(path).expanduser().is_absolute():
        return path
    return str(here / path) + ("/" if path.endswith("/") else "")


def _add_flags(layers: _Layers, flags: Mapping[str, Any], names: Mapping[str, str]) -> None:
    def walk(data: Mapping[str, Any], at: str) -> None:
        for key, value in data.items():
            dotted = f"{at}.{key}" if at else key
            if isinstance(value, Mapping):
                walk(value, dotted)
                continue
            nested: Any = value
            for part in reversed(dotted.split(".")):
                nested = {part: nested}
            name = names.get(dotted) or names.get(dotted.partition(".")[0])
            layers.add(nested, name or f"--{key.replace('_', '-')}")

    walk(flags, "")


def _typed(layers: _Layers) -> JobKeys:
    try:
        keys: JobKeys = msgspec.convert(layers.merged, JobKeys, strict=True)
    except msgspec.ValidationError as exc:
        key = bad_key(exc, layers.merged, JobKeys)
        raise invalid_key(exc, JobKeys, key, layers.where(key)) from exc
    return keys


def _build(
    keys: JobKeys,
    layers: _Layers,
    *,
    site: str,
    script: Script | None,
    arguments: Sequence[str],
    now: dt.datetime,
    cwd: Path,
    script_path: str | None,
) -> JobSpec:
    reader = _Reader(layers)
    command = () if script else _command(keys.command)
    if not command and script is None:
        raise UsageError(
            "there is nothing to run",
            hint="hpcscale submit … -- COMMAND, a JOB.toml with `command = …`, or an sbatch script",
        )
    name = keys.name
    if name is None:
        name = Path(script_path).name if script_path else _name_of(command)
    if "\0" in name or not name.strip() or len(name) > 512:
        raise reader.error("name", "a job's name holds 1 to 512 characters and no NUL")
    workdir = _absolute(keys.workdir, cwd) if keys.workdir else str(cwd)
    code = keys.code if keys.code in {None, ""} else _absolute(keys.code or "", cwd)
    array = keys.array
    if array is not None:
        reader.parse("array", parse_array, array)
    resources = _resources(keys, reader)
    checkpoint = _checkpoint(keys, reader, resources, cwd)
    for term in keys.after:
        if not term.strip():
            raise reader.error("after", "an empty term", hint="--after afterok:JOB")
    return JobSpec(
        name=name,
        command=command,
        script=script,
        script_args=tuple(arguments) if script else (),
        launcher=reader.choice("launcher", Launcher, keys.launcher or "plain"),
        resources=resources,
        site=site,
        partition=keys.partition,
        account=keys.account,
        qos=keys.qos,
        constraint=keys.constraint,
        comment=keys.comment,
        env=_env(keys.env, reader),
        secrets=_secrets(keys.secrets, reader),
        inputs=_paths(keys.inputs, "inputs", reader, cwd),
        outputs=_paths(keys.outputs, "outputs", reader, cwd),
        checkpoint=checkpoint,
        software=keys.software,
        workdir=workdir,
        code=code,
        directives=_sbatch(keys, layers),
        array=array,
        after=tuple(keys.after),
        burst=_burst(keys, reader, now),
    )


class _Reader:
    """Turns values into what they mean; a bad one is told with its place."""

    def __init__(self, layers: _Layers) -> None:
        self._layers = layers

    def error(self, key: str, message: str, *, hint: str | None = None) -> HpcscaleError:
        where = self._layers.where(key)
        kind = UsageError if where.startswith("--") else InvalidFileError
        return kind(message, where=where, hint=hint)

    def parse(self, key: str, function: Any, *args: Any) -> Any:
        try:
            return function(*args)
        except ValueError as exc:
            raise self.error(key, str(exc)) from exc

    def choice(self, key: str, kinds: Any, value: str) -> Any:
        try:
            return kinds(value)
        except ValueError:
            names = [str(k.value) for k in kinds]
            import difflib

            close = difflib.get_close_matches(value, names, n=1)
            raise self.error(
                key,
                f"{value!r} is none of {', '.join(names)}",
                hint=f"did you mean {close[0]!r}?" if close else None,
            ) from None


def _command(value: str | list[str] | None) -> tuple[str, ...]:
    """Argv; a text with shell syntax is run by bash, in the job."""
    if value is None:
        return ()
    if isinstance(value, list):
        return tuple(value)
    if _SHELL_SYNTAX.search(value):
        return ("bash", "-c", value)
    try:
        return tuple(shlex.split(value))
    except ValueError:
        return ("bash", "-c", value)


def _name_of(command: Sequence[str]) -> str:
    """A name from the command: the program, or what the interpreter runs."""
    for word in command:
        base = word.rpartition("/")[2]
        if word.startswith("-") or re.fullmatch(r"python[\d.]*|ba?sh|env|torchrun", base):
            continue
        if plain := re.match(r"[A-Za-z0-9_.-]+", base.removesuffix(".py")):
            return plain[0][:40]
    return "hpcscale"


def _absolute(path: str, cwd: Path) -> str:
    """Absolute, without ``..``; links stay as they are. A slash at the end stays: a directory."""
    full = os.path.normpath(cwd / Path(path).expanduser())
    return full + "/" if path.endswith("/") and full != "/" else full


def _resources(keys: JobKeys, reader: _Reader) -> Resources:
    want = keys.resources
    for name, least in (
        ("nodes", 1),
        ("gpus_per_node", 0),
        ("tasks_per_node", 1),
        ("cpus_per_task", 1),
    ):
        value = getattr(want, name)
        if value is not None and not least <= value <= 1_000_000:
            raise reader.error(
                f"resources.{name}", f"{name} = {value}: must be a number from {least} on"
            )
    mem_gb = None
    if want.mem is not None:
        mem_gb = reader.parse("resources.mem", parse_memory_mb, str(want.mem)) / 1024
    limit_s = None
    if want.time is not None:
        limit_s = reader.parse("resources.time", parse_duration_s, str(want.time))
        if limit_s is not None and limit_s <= 0:
            raise reader.error("resources.time", "a time limit of nothing")
    return Resources(
        nodes=want.nodes if want.nodes is not None else 1,
        gpus_per_node=want.gpus_per_node or 0,
        tasks_per_node=want.tasks_per_node,
        cpus_per_task=want.cpus_per_task,
        mem_gb=mem_gb,
        time_limit_s=limit_s,
        exclusive=want.exclusive,
    )


def _checkpoint(
    keys: JobKeys, reader: _Reader, resources: Resources, cwd: Path
) -> Checkpoint | None:
    asked = keys.checkpoint
    if asked is None:
        return None
    if not asked.dir:
        raise reader.error(
            "checkpoint", "the checkpoint directory is not named", hint="--checkpoint-dir DIR"
        )

    def seconds(key: str, value: int | str | None, default: int) -> int:
        if value is None:
            return default
        found = value
        if isinstance(value, str):
            found = int(value) if value.isdigit() else reader.parse(key, parse_duration_s, value)
        if not isinstance(found, int) or found < 1:
            raise reader.error(key, f"{value!r}: write seconds, or like 2m")
        return found

    lead_s = seconds("checkpoint.lead", asked.lead, Checkpoint.__struct_defaults__[-3])
    wait_s = seconds("checkpoint.stop_wait", asked.stop_wait, min(90, max(1, lead_s * 3 // 4)))
    if lead_s > 65535:
        raise reader.error("checkpoint.lead", "Slurm takes at most 65535 s")
    if resources.time_limit_s is not None and lead_s >= resources.time_limit_s:
        raise reader.error(
            "checkpoint.lead" if asked.lead is not None else "resources.time",
            f"the stop signal is asked for {lead_s} s before the end, "
            f"and the time limit is {resources.time_limit_s} s",
            hint="a longer --time, or a shorter --checkpoint-lead",
        )
    if wait_s > lead_s:
        raise reader.error(
            "checkpoint.stop_wait",
            f"the job waits {wait_s} s for the command after a signal that comes {lead_s} s "
            "before its end",
            hint="stop_wait below lead",
        )
    restarts = asked.max_restarts if asked.max_restarts is not None else 20
    if restarts < 0:
        raise reader.error("checkpoint.max_restarts", "must be 0 or more")
    return Checkpoint(
        dir=_absolute(asked.dir, cwd), lead_s=lead_s, stop_wait_s=wait_s, max_restarts=restarts
    )


def _env(env: Mapping[str, str], reader: _Reader) -> dict[str, str]:
    for name, value in env.items():
        key = f"env.{name}"
        if not _VARIABLE.fullmatch(name):
            raise reader.error(
                key, f"{name!r} cannot be a variable's name", hint="--env NAME=VALUE"
            )
        if name.startswith("HPCSCALE_"):
            raise reader.error(key, f"{name} is hpcscale's own: the job script sets HPCSCALE_*")
        if _SECRET_NAME.search(name):
            raise reader.error(
                key,
                f"{name} looks like a secret, and --env would write it into the script",
                hint=f"--secret {name}=env:{name}, or --secret {name}=file:PATH",
            )
        if "\0" in value:
            raise reader.error(key, f"{name}: a value cannot hold NUL")
    return dict(env)


def _secrets(secrets: Mapping[str, str], reader: _Reader) -> dict[str, SecretSource]:
    found = {}
    for name, source in secrets.items():
        key = f"secrets.{name}"
        if not _VARIABLE.fullmatch(name) or name.startswith("HPCSCALE_"):
            raise reader.error(
                key, f"{name!r} cannot be a secret's name", hint="--secret NAME=file:PATH"
            )
        kind, colon, value = source.partition(":")
        if not colon or kind not in {"file", "env"} or not value:
            raise reader.error(
                key,
                f"secret {name}: says neither where it is read",
                hint=f"--secret {name}=file:PATH, or --secret {name}=env:VARIABLE",
            )
        if kind == "file":
            value = _absolute(value, Path.cwd())
        found[name] = SecretSource(kind=kind, name=value)
    return found


def _paths(paths: Mapping[str, str], table: str, reader: _Reader, cwd: Path) -> dict[str, str]:
    found: dict[str, str] = {}
    variables: dict[str, str] = {}
    for name, path in paths.items():
        key = f"{table}.{name}"
        if not _PATH_NAME.fullmatch(name):
            raise reader.error(
                key,
                f"{name!r} is no name for a path: letters, digits, _ and - (it becomes part of a "
                "variable's name)",
                hint=f"--{table[:-1]} NAME=PATH",
            )
        if not path or "\0" in path or "\n" in path:
            raise reader.error(key, f"{name}: {path!r} is no path")
        variable = name.upper().replace("-", "_")
        if variable in variables:
            raise reader.error(key, f"{name} and {variables[variable]} would be one variable")
        variables[variable] = name
        full = _absolute(path, cwd)
        if table == "outputs" and not full.endswith("/") and Path(full).is_dir():
            full += "/"  # so the script makes it a directory as well
        found[name] = full
    return found


def _sbatch(keys: JobKeys, layers: _Layers) -> dict[str, str | None]:
    options = require_sbatch_options(keys.sbatch, lambda o: layers.where(f"sbatch.{o}"))
    return dict(sorted(options.items()))


def _burst(keys: JobKeys, reader: _Reader, now: dt.datetime) -> BurstTerms:
    asked = keys.burst
    deadline: dt.datetime | None = None
    if asked.deadline is not None:
        value = asked.deadline
        if isinstance(value, dt.datetime):
            deadline = value.astimezone(dt.UTC)
        elif isinstance(value, (str, dt.date)):
            deadline = reader.parse("burst.deadline", parse_deadline, str(value), now)
        else:
            raise reader.error(
                "burst.deadline",
                f"{value!r} is no deadline",
                hint='deadline = "2026-11-30T18:00", "18:00" or "+6h"',
            )
        if deadline <= now:
            raise reader.error(
                "burst.deadline",
                f"the deadline {deadline.astimezone().isoformat(timespec='minutes')} has passed",
                hint="a later one, such as --deadline +6h",
            )
    cost = None
    if asked.max_cost_usd is not None:
        if isinstance(asked.max_cost_usd, bool):
            raise reader.error("burst.max_cost_usd", "must be an amount in dollars")
        cost = reader.parse("burst.max_cost_usd", parse_money_usd, str(asked.max_cost_usd))
    return BurstTerms(
        mode=reader.choice("burst.mode", BurstMode, asked.mode or "never"),
        deadline=deadline,
        max_cost_usd=cost,
    )
