"""Which Python runs a function at a site, and whether it can read our pickles."""

import json
import shlex
import sys
import typing as tp

from submitit.core import logger

from hpcscale.connect import Connection
from hpcscale.errors import NotFoundError, UsageError
from hpcscale.render.job import software_words
from hpcscale.render.launch import find_software
from hpcscale.render.templating import fill
from hpcscale.site import Site
from hpcscale.spec import JobSpec

_CODE = """import json, sys
found = {"python": list(sys.version_info[:2])}
for name in ("submitit", "cloudpickle"):
    try:
        found[name] = getattr(__import__(name), "__version__", "")
    except Exception as error:
        found[name] = None
        found["why"] = str(error)
print(json.dumps(found))
"""
_SEEN: set[tuple[str, str, str | None, str]] = set()


def default_python(site: Site, software: str | None) -> str:
    """The interpreter's name there: of the named software, else this one on a local site."""
    if software is not None:
        return "python"
    return shlex.quote(sys.executable) if site.transport.kind == "local" else "python3"


def require_same_python(
    connection: Connection, python: str, software: str | None, pickled_by: str = ""
) -> None:
    """Ask the site's Python for its version, once for each process; pickles cross no versions.

    Args:
        connection: to the site.
        python: the interpreter there, as shell words.
        software: in which it is started.
        pickled_by: the version that the pickles are of; default this process's.

    Raises:
        UsageError: it is another version.
        NotFoundError: there is none, or no submitit in it.
        InvalidFileError: the site has no such software.
        UnreachableError: no answer.
    """
    site = connection.site
    ours = pickled_by or _version(sys.version_info[:2])
    key = (site.name, python, software, ours)
    if key in _SEEN or (
        connection.transport.is_local
        and software is None
        and python == default_python(site, software)
    ):
        return
    found_software = find_software(JobSpec(software=software), site)
    if found_software is not None and found_software.image:
        logger.get_logger().warning(
            f"{site.name}: the Python in {software}'s image must be {ours} and have submitit; "
            "that is looked at when the job starts"
        )
        _SEEN.add(key)
        return
    words = software_words(JobSpec(software=software), site, found_software, [])
    script = fill("probe.sh.j2", {"software": words, "python": python, "code": _CODE})
    done = connection.transport.run(["bash", "-s"], stdin=script, timeout_s=60.0)
    said = _said(done.stdout)
    where = f"site {site.name}"
    options = "hpcscale_python='…' or hpcscale_software=NAME of " + (
        ", ".join(sorted(site.software)) or "a [software.NAME] in the site's profile"
    )
    if said is None:
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        raise NotFoundError(
            f"the interpreter {python} cannot be run there: {lines[-1]}", where=where, hint=options
        )
    if _version(said["python"]) != ours:
        raise UsageError(
            f"{python} there is Python {_version(said['python'])}, and the function was pickled by "
            f"{ours}: pickled functions do not cross versions",
            where=where,
            hint=options,
        )
    for name in ("submitit", "cloudpickle"):
        if said.get(name) is None:
            raise NotFoundError(
                f"{python} there has no {name} ({said.get('why')})",
                where=where,
                hint=f"install it there: {python} -m pip install submitit; or {options}",
            )
    _SEEN.add(key)


def _said(text: str) -> dict[str, tp.Any] | None:
    for line in reversed(text.splitlines()):  # modules may have printed something before
        try:
            data = json.loads(line)
        except ValueError:
            continue
        if isinstance(data, dict) and isinstance(data.get("python"), list):
            return data
    return None


def _version(parts: tp.Sequence[int]) -> str:
    return ".".join(str(p) for p in parts)
