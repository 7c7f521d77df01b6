"""The values of a job file: what each means, and what is wrong with it."""

import datetime as dt
import difflib
import os
import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from hpcscale.errors import HpcscaleError, InvalidFileError, UsageError
from hpcscale.jobkeys import JobKeys
from hpcscale.spec import BurstMode, BurstTerms, Checkpoint, Resources, SecretSource
from hpcscale.units import parse_deadline, parse_duration_s, parse_memory_mb, parse_money_usd
from hpcscale.urls import is_url, url_fault

_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_PATH_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]*")
_SHELL_SYNTAX = re.compile(r"[$`|&;<>()*?\[\]{}~\n]")
_SECRET_NAME = re.compile(
    r"(?:^|_)(?:TOKEN|SECRET|SECRETS|PASSWORD|PASSWD|PASSPHRASE|API_?KEY|APIKEY|ACCESS_KEY|"
    r"PRIVATE_KEY|SECRET_KEY|CREDENTIALS?)$|(?:^|_)(?:SECRET|PASSWORD)_",
    re.IGNORECASE,
)


# key -> as a flag and as a line of a file
_HINTS = {
    "burst.deadline": ("--deadline +6h", 'deadline = "+6h"'),
    "burst.max_cost_usd": ("--max-cost 40", "max_cost_usd = 40"),
    "resources.mem": ("--mem 64G", 'mem = "64G"'),
    "resources.time": ("--time 4:00:00", 'time = "4:00:00"'),
}


class Reader:
    """Turns values into what they mean; a bad one is told with its place."""

    def __init__(self, where: Callable[[str], str]) -> None:
        self._where = where

    def error(self, key: str, message: str, *, hint: str | None = None) -> HpcscaleError:
        """The error of a key: of usage when a flag set it, else of its file."""
        where = self._where(key)
        kind = UsageError if where.startswith("--") else InvalidFileError
        return kind(message, where=where, hint=hint)

    def parse(self, key: str, function: Any, *args: Any) -> Any:
        """What a grammar makes of a value; its ValueError becomes the key's error."""
        try:
            return function(*args)
        except ValueError as exc:
            hint = None
            if key in _HINTS:
                flag = self._where(key).startswith("--")
                hint = _HINTS[key][0 if flag else 1]
            raise self.error(key, str(exc), hint=hint) from exc

    def choice(self, key: str, kinds: Any, value: str) -> Any:
        """A member of an enumeration."""
        try:
            return kinds(value)
        except ValueError:
            names = [str(k.value) for k in kinds]
            close = difflib.get_close_matches(value, names, n=1)
            raise self.error(
                key,
                f"{value!r} is none of {', '.join(names)}",
                hint=f"did you mean {close[0]!r}?" if close else None,
            ) from None


def command_words(value: str | list[str] | None) -> tuple[str, ...]:
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


def name_of(command: Sequence[str]) -> str:
    """A name from the command: the program, or what the interpreter runs."""
    for word in command:
        base = word.rpartition("/")[2]
        if word.startswith("-") or re.fullmatch(r"python[\d.]*|ba?sh|env|torchrun", base):
            continue
        if plain := re.match(r"[A-Za-z0-9_.-]+", base.removesuffix(".py")):
            return plain[0][:40]
    return "hpcscale"


def absolute(path: str, cwd: Path) -> str:
    """Absolute, without ``..``; links stay as they are. A slash at the end stays: a directory."""
    full = os.path.normpath(cwd / Path(path).expanduser())
    return full + "/" if path.endswith("/") and full != "/" else full


def resources_of(keys: JobKeys, reader: Reader) -> Resources:
    """``[resources]``, numbers checked and grammars read."""
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


def checkpoint_of(
    keys: JobKeys, reader: Reader, resources: Resources, cwd: Path
) -> Checkpoint | None:
    """``[checkpoint]``; the warning must come within the time limit."""
    asked = keys.checkpoint
    if asked is None:
        return None
    if not asked.dir:
        raise reader.error(
            "checkpoint", "the checkpoint directory is not named", hint="--checkpoint-dir DIR"
        )
    if is_url(asked.dir):
        raise reader.error(
            "checkpoint.dir",
            "a checkpoint lives in a directory, not in an object store",
            hint="--checkpoint-dir DIR; an [outputs] entry may be a URL",
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
        dir=absolute(asked.dir, cwd), lead_s=lead_s, stop_wait_s=wait_s, max_restarts=restarts
    )


def env_of(env: Mapping[str, str], reader: Reader) -> dict[str, str]:
    """``[env]``, without our own names and without what looks like a secret."""
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


def secrets_of(secrets: Mapping[str, str], reader: Reader) -> dict[str, SecretSource]:
    """``[secrets]``: where each is read; nothing is read here."""
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
                f"secret {name}: nothing says where its value is read",
                hint=f"--secret {name}=file:PATH, or --secret {name}=env:VARIABLE",
            )
        if kind == "file":
            value = absolute(value, Path.cwd())
        found[name] = SecretSource(kind=kind, name=value)
    return found


def paths_of(paths: Mapping[str, str], table: str, reader: Reader, cwd: Path) -> dict[str, str]:
    """``[inputs]`` or ``[outputs]``, absolute, each with a variable of its own."""
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
        if is_url(path):
            if why := url_fault(path):
                raise reader.error(key, f"{name}: {why}", hint=f"{name}=s3://BUCKET/KEY")
            found[name] = path
            continue
        full = absolute(path, cwd)
        if table == "outputs" and not full.endswith("/") and Path(full).is_dir():
            full += "/"  # so the script makes it a directory as well
        found[name] = full
    return found


def _data_tags(reader: Reader, tags: list[str]) -> tuple[str, ...]:
    for tag in tags:
        if not re.fullmatch(r"[a-z0-9][a-z0-9-]*", tag):
            raise reader.error(
                "burst.data",
                f"{tag!r} is no tag of data",
                hint='lower-case words, such as data = ["hipaa", "eu-only"]',
            )
    return tuple(sorted(set(tags)))


def burst_of(keys: JobKeys, reader: Reader, now: dt.datetime) -> BurstTerms:
    """``[burst]``; a deadline that has passed is refused."""
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
    if asked.egress_gb is not None and not 0 <= asked.egress_gb < float("inf"):
        raise reader.error("burst.egress_gb", "must be at least 0 gigabytes")
    return BurstTerms(
        mode=reader.choice("burst.mode", BurstMode, asked.mode or "never"),
        deadline=deadline,
        max_cost_usd=cost,
        data=_data_tags(reader, asked.data),
        egress_gb=asked.egress_gb,
    )
