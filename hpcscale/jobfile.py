"""From what the user wrote to a ``JobSpec``: flags, a JOB.toml or an sbatch script, defaults.

Layers, weakest first: ``[job]`` of the user's ``config.toml`` < ``[job]`` of the project's
``./hpcscale.toml`` < the JOB.toml or the script's ``#SBATCH`` lines < flags. Tables merge key by
key. Every message names the file, the line and the key, or the flag.
"""

import datetime as dt
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from hpcscale.errors import InvalidFileError, NotFoundError, UsageError
from hpcscale.jobkeys import JobKeys, require_sbatch_options
from hpcscale.jobvalues import (
    Reader,
    absolute,
    burst_of,
    checkpoint_of,
    command_words,
    env_of,
    name_of,
    paths_of,
    resources_of,
    secrets_of,
)
from hpcscale.sbatch_script import fields, read_script
from hpcscale.settings import choose_site, job_defaults, project_job_defaults
from hpcscale.spec import (
    IN_CONTAINER,
    JobSpec,
    Launcher,
    Script,
)
from hpcscale.textfile import read_text
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
)
from hpcscale.urls import is_url


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
    runs: bool = True,
    now: dt.datetime | None = None,
    cwd: Path | None = None,
) -> JobSpec:
    """Join all that was said about a job.

    Args:
        source: a ``*.toml`` job file, or an sbatch script; None: flags and command are all.
        flags: in a job file's shape, ``{"resources": {"nodes": 2}}``; the strongest layer.
        flag_names: dotted key -> the flag as typed, for messages; default ``--key``.
        command: what follows ``--``: the command, or a script's own arguments.
        runs: False: it is asked about and never run, so that it needs no command.
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
    for data, path in (*job_defaults(), project_job_defaults(cwd)):
        if path is not None and data:
            _check_keys({"job": data}, JobTable, str(path))
            layers.add(data, str(path), "job.")
    text = script_path = None
    if source is not None:
        path = cwd / Path(source).expanduser()
        if path.suffix == ".toml":
            _require_file(path, source, runs=runs)
            data = read_toml(path)
            _check_keys(data, JobKeys, str(path))
            layers.add(_paths_from(data, path.parent, cwd), str(path))
        else:
            _require_file(path, source, runs=runs)
            text, script_path = read_text(path, source), str(path)
            script = read_script(text, source)
            layers.add(fields(script), source)
    _add_flags(layers, flags or {}, flag_names or {})
    keys = _typed(layers)
    site = choose_site(keys.site)
    foreign: Script | None = None
    if text is not None:
        foreign = read_script(text, source or "", site)
    elif not command and not runs and not keys.command:
        command = ("true",)
    if text is None and command:
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


def _require_file(path: Path, source: str, *, runs: bool = True) -> None:
    try:
        path.stat()
    except FileNotFoundError:
        raise NotFoundError(
            f"no file {source!r}",
            hint="a command stands behind `--`: hpcscale submit … -- COMMAND"
            if runs
            else f"ls {path.parent}",
        ) from None
    except (OSError, ValueError):
        return  # reading it says why
    if path.is_dir():
        raise InvalidFileError("it is a directory", where=source)


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
        if data.get(key) and not data[key].startswith(IN_CONTAINER):
            data[key] = _join(here, data[key])
    if "dir" in data.get("checkpoint", {}):
        data["checkpoint"] = data["checkpoint"] | {"dir": _join(here, data["checkpoint"]["dir"])}
    return data


def _join(here: Path, path: str) -> str:
    if is_url(path) or Path(path).expanduser().is_absolute():
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
    reader = Reader(layers.where)
    command = () if script else command_words(keys.command)
    if not any(command[:1]) and script is None:
        raise UsageError(
            "there is nothing to run",
            hint="hpcscale submit … -- COMMAND, a JOB.toml with `command = …`, or an sbatch script",
        )
    name = keys.name
    if name is None:
        name = Path(script_path).name if script_path else name_of(command)
    if "\0" in name or not name.strip() or len(name) > 512:
        raise reader.error("name", "a job's name holds 1 to 512 characters and no NUL")
    workdir = absolute(keys.workdir, cwd) if keys.workdir else str(cwd)
    code = _code(keys.code, cwd)
    array = keys.array
    if array is not None:
        reader.parse("array", parse_array, array)
    resources = resources_of(keys, reader)
    checkpoint = checkpoint_of(keys, reader, resources, cwd)
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
        env=env_of(keys.env, reader),
        secrets=secrets_of(keys.secrets, reader),
        inputs=paths_of(keys.inputs, "inputs", reader, cwd),
        outputs=paths_of(keys.outputs, "outputs", reader, cwd),
        checkpoint=checkpoint,
        software=keys.software,
        workdir=workdir,
        code=code,
        directives=_sbatch(keys, layers),
        array=array,
        after=tuple(keys.after),
        burst=burst_of(keys, reader, now),
    )


def _code(code: str | None, cwd: Path) -> str | None:
    if not code or code.startswith(IN_CONTAINER):
        return code
    return absolute(code, cwd)


def _sbatch(keys: JobKeys, layers: _Layers) -> dict[str, str | None]:
    options = require_sbatch_options(keys.sbatch, lambda o: layers.where(f"sbatch.{o}"))
    return dict(sorted(options.items()))
