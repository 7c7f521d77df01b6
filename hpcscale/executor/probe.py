"""Which Python runs a function at a site, and whether it can read our pickles."""

import json
import shlex
import sys
import typing as tp

from hpcscale.connect import Connection
from hpcscale.errors import NotFoundError, UsageError
from hpcscale.executor.notice import warn
from hpcscale.render.job import software_words
from hpcscale.render.launch import find_software
from hpcscale.render.templating import fill
from hpcscale.site import ContainerRuntime, Site, Software
from hpcscale.slurm.transport import Completed
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
_RUN_IMAGE = {ContainerRuntime.APPTAINER: "apptainer exec", ContainerRuntime.PYXIS: "enroot start"}
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

    Of an image it is the profile's word, or the image's own where it can be started on the login
    node; else a warning says that the job will look.

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
    found = find_software(JobSpec(software=software), site)
    where = f"site {site.name}"
    options = "hpcscale_python='…' or hpcscale_software=NAME of " + (
        ", ".join(sorted(site.software)) or "a [software.NAME] in the site's profile"
    )
    image = found is not None and found.image is not None
    if found is not None and found.image and found.python:
        declared = tuple(int(part) for part in found.python.split("."))
        _compare(
            _version(declared),
            ours,
            f"the profile says that {software}'s image has",
            where,
            options,
        )
        _SEEN.add(key)
        return
    done = _ask(connection, JobSpec(software=software), found, python)
    said = _said(done.stdout)
    if said is None:
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        if image:  # no runtime on the login node, an image of a registry: not known before
            warn(
                f"{site.name}: the Python in {software}'s image must be {ours} and have submitit; "
                f"it cannot be asked before the job starts ({lines[-1]}), which will look; "
                f'or say it in the profile: python = "3.…" below [software.{software}]'
            )
            _SEEN.add(key)
            return
        raise NotFoundError(
            f"the interpreter {python} cannot be run there: {lines[-1]}", where=where, hint=options
        )
    whose = f"{python} in {software}'s image" if image else f"{python} there"
    _compare(_version(said["python"]), ours, f"{whose} is", where, options)
    for name in ("submitit", "cloudpickle"):
        if said.get(name) is None:
            install = f"install it there: {python} -m pip install submitit; or "
            raise NotFoundError(
                f"{whose} has no {name} ({said.get('why')})",
                where=where,
                hint=("" if image else install) + options,
            )
    _SEEN.add(key)


def _ask(
    connection: Connection, spec: JobSpec, software: Software | None, python: str
) -> Completed:
    """Run the interpreter on the login node, within the image if there is one.

    Apptainer starts an image file for one command, and so does ``enroot start`` with a squashfs
    file, which is what Pyxis takes besides names in a registry. Nothing is pulled for it.
    """
    site = connection.site
    image = None
    if software is not None and software.image:
        image = _RUN_IMAGE[site.container.runtime]
    words = software_words(spec, site, software, [])
    script = fill(
        "probe.sh.j2", {"software": words, "python": python, "code": _CODE, "image": image}
    )
    return connection.transport.run(["bash", "-s"], stdin=script, timeout_s=90.0)


def _compare(theirs: str, ours: str, who: str, where: str, hint: str) -> None:
    if theirs != ours:
        raise UsageError(
            f"{who} Python {theirs}, and the function was pickled by {ours}: "
            "pickled functions do not cross versions",
            where=where,
            hint=hint,
        )


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
    return ".".join(str(p) for p in parts[:2])
