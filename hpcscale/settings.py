"""What the machine, the user and the project set once, and where our own state lives.

``/etc/hpcscale/config.toml`` (the machine's) is weaker than ``~/.config/hpcscale/config.toml`` (the
user's own): ``default_site``, ``burst_policy`` and a ``[job]`` table of defaults.
``./hpcscale.toml`` (comes with a cloned repository): a ``[job]`` table alone, and only such keys
that cannot send the job, its data, the user's secrets or money somewhere else.
"""

import difflib
import os
from pathlib import Path
from typing import Any

from hpcscale.errors import InvalidFileError, UsageError
from hpcscale.tomlfile import read_toml, with_line
from hpcscale.urls import is_url

PROJECT_FILE = "hpcscale.toml"

# what somebody may try to set in a project file -> what it is about
_REDIRECTS = {
    "site": "sites",
    "sites": "sites",
    "default_site": "sites",
    "burst_policy": "budgets",
    "transport": "transports",
    "transports": "transports",
    "host": "transports",
    "ssh": "transports",
    "identity_file": "keys",
    "known_hosts": "keys",
    "key": "keys",
    "keys": "keys",
    "template": "templates",
    "templates": "templates",
    "price": "prices",
    "prices": "prices",
    "catalog": "prices",
    "budget": "budgets",
    "budgets": "budgets",
    "policy": "budgets",
    "plugin": "plugins",
    "plugins": "plugins",
    "software": "sites",
    "fabric": "sites",
    "partitions": "sites",
    "state_dir": "sites",
}

# the same below [job]: what would move the job, spend money or read the user's own files
_JOB_REDIRECTS = {
    "site": "it chooses the site",
    "burst": "it spends money",
    "secrets": "it reads the user's own secrets",
}
_SBATCH_REDIRECTS = {
    "clusters": "it sends the job to another cluster",
    "cluster": "it sends the job to another cluster",
    "M": "it sends the job to another cluster",
    "export-file": "it reads a file of the user's",
    "uid": "it runs the job as somebody else",
    "gid": "it runs the job as somebody else",
}
_PATH_TABLES = ("inputs", "outputs")


def config_dir() -> Path:
    """The user's configuration: ``$HPCSCALE_CONFIG_DIR``, else ``$XDG_CONFIG_HOME/hpcscale``."""
    if own := os.environ.get("HPCSCALE_CONFIG_DIR"):
        return Path(own)
    base = os.environ.get("XDG_CONFIG_HOME") or "~/.config"
    return Path(base).expanduser() / "hpcscale"


def etc_dir() -> Path:
    """The machine's configuration."""
    return Path(os.environ.get("HPCSCALE_ETC_DIR") or "/etc/hpcscale")


def state_dir() -> Path:
    """Our own state here: ``$HPCSCALE_STATE_DIR``, else ``$XDG_STATE_HOME/hpcscale``."""
    if own := os.environ.get("HPCSCALE_STATE_DIR"):
        return Path(own).expanduser()
    base = os.environ.get("XDG_STATE_HOME") or "~/.local/state"
    return Path(base).expanduser() / "hpcscale"


def user_config_path() -> Path:
    """The user's ``config.toml``, which need not exist."""
    return config_dir() / "config.toml"


_KNOWN = ("default_site", "burst_policy", "job")


def _read_config(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    data = read_toml(path)
    for key in data:
        if key not in _KNOWN:
            close = difflib.get_close_matches(key, _KNOWN, n=1)
            raise InvalidFileError(
                f"unknown key {key!r}",
                where=with_line(str(path), key),
                hint=f"did you mean {close[0]!r}?"
                if close
                else "known keys: default_site, burst_policy and the table [job]; a site's own "
                f"keys stand in {path.parent / 'sites'}/NAME.toml",
            )
    for key in _KNOWN[:2]:
        if not isinstance(data.get(key, ""), str):
            raise InvalidFileError(
                f"key {key!r} must be text",
                where=with_line(str(path), key),
                hint=f'write {key} = "NAME"',
            )
    return data


def _config_paths() -> list[Path]:
    """The machine's ``config.toml`` and the user's, which is stronger; none need exist."""
    return [etc_dir() / "config.toml", user_config_path()]


def _chosen(key: str) -> tuple[str, str] | None:
    """A setting's value and who sets it: a variable, the user's file or the machine's."""
    variable = f"HPCSCALE_{key.upper()}"
    if value := os.environ.get(variable):
        return value, f"${variable}"
    for path in reversed(_config_paths()):
        if value := _read_config(path).get(key):
            return value, str(path)
    return None


def default_site() -> tuple[str, str] | None:
    """The site used without ``--site``, and who says so; None when nobody does.

    ``$HPCSCALE_DEFAULT_SITE`` is stronger than the user's ``config.toml``, that than the machine's.
    """
    return _chosen("default_site")


def burst_policy() -> tuple[str, str] | None:
    """The policy used without ``--policy``: name or path, and who says so; None: nobody does.

    A path in a ``config.toml`` starts at that file's directory.
    """
    return _chosen("burst_policy")


def choose_site(asked: str | None) -> str:
    """The site's name: what was asked for, else the default.

    Raises:
        UsageError: neither is given.
    """
    if asked:
        return asked
    chosen = default_site()
    if chosen is None:
        raise UsageError(
            "no site is named and there is no default",
            hint=f'--site NAME (see `hpcscale site list`), or write default_site = "NAME" in '
            f"{user_config_path()}",
        )
    return chosen[0]


def job_defaults() -> list[tuple[dict[str, Any], Path]]:
    """The ``[job]`` tables of the machine's and the user's ``config.toml``, the stronger last."""
    return [
        (_job_table(_read_config(path), path), path) for path in _config_paths() if path.is_file()
    ]


def project_job_defaults(cwd: Path | None = None) -> tuple[dict[str, Any], Path | None]:
    """The ``[job]`` table of the project's ``./hpcscale.toml``, checked, and the file.

    Args:
        cwd: the directory looked in (no parents are searched); default the current one.

    Raises:
        InvalidFileError: the file sets what a project must not set; the key is named.
    """
    path = (cwd or Path.cwd()) / PROJECT_FILE
    if not path.is_file():
        return {}, None
    data = read_toml(path)
    for key in data:
        if key == "job":
            continue
        about = _REDIRECTS.get(key)
        raise InvalidFileError(
            f"a project file must not set {key!r}"
            + (f": {about} are the user's to choose" if about else "; it holds [job] alone"),
            where=with_line(str(path), key),
            hint=_instead(key, about),
        )
    job = _job_table(data, path)
    for key in job:
        if key in _JOB_REDIRECTS:
            raise InvalidFileError(
                f"a project file must not set 'job.{key}': {_JOB_REDIRECTS[key]}",
                where=with_line(str(path), f"job.{key}"),
                hint="give it on the command line, in a JOB.toml that you name there, or in "
                f"[job] of {user_config_path()}",
            )
        if key in _REDIRECTS and key != "software":
            raise InvalidFileError(
                f"a project file must not set 'job.{key}': {_REDIRECTS[key]} are the user's "
                "to choose",
                where=with_line(str(path), f"job.{key}"),
                hint=_instead(key, _REDIRECTS[key]),
            )
    options = job.get("sbatch")
    for option in options if isinstance(options, dict) else ():
        if why := _SBATCH_REDIRECTS.get(option.lstrip("-")):
            raise InvalidFileError(
                f"a project file must not set 'job.sbatch.{option}': {why}",
                where=with_line(str(path), f"job.sbatch.{option}"),
                hint="give it on the command line or in a JOB.toml that you name there",
            )
    _paths_stay_inside(job, path)
    return job, path


def _instead(key: str, about: str | None) -> str:
    if about == "sites" and key in {"default_site", "site"}:
        return f'write default_site = "NAME" in {user_config_path()}, or say --site NAME'
    if about in {"sites", "transports", "keys", "prices"}:
        return f"write it in {config_dir() / 'sites'}/NAME.toml"
    if about:
        return f"remove it; the user's own files are below {config_dir()}"
    return f"move it below [job], or remove it; the user's own files are below {config_dir()}"


def _job_table(data: dict[str, Any], path: Path | None) -> dict[str, Any]:
    job = data.get("job", {})
    if not isinstance(job, dict):
        raise InvalidFileError(
            "'job' must be a table", where=with_line(str(path), "job"), hint="write [job]"
        )
    return job


def _paths_stay_inside(job: dict[str, Any], path: Path) -> None:
    """Refuse paths of a project file that leave the project: they would be copied to a site."""
    root = path.parent.resolve()
    named = [("code", job.get("code")), ("workdir", job.get("workdir"))]
    for table in _PATH_TABLES:
        entries = job.get(table)
        if isinstance(entries, dict):
            named += [(f"{table}.{name}", value) for name, value in entries.items()]
    for key, value in named:
        if isinstance(value, str) and is_url(value):
            raise InvalidFileError(
                f"a project file must not name an object store: {value!r}",
                where=with_line(str(path), f"job.{key}"),
                hint="give it on the command line, as in --input NAME=URL",
            )
        if isinstance(value, str) and not (
            root / Path(value).expanduser()
        ).resolve().is_relative_to(root):
            raise InvalidFileError(
                f"a project file must not name a path outside the project: {value!r}",
                where=with_line(str(path), f"job.{key}"),
                hint="give such a path on the command line, as in --input NAME=PATH",
            )
