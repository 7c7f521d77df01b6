"""Jinja2, sandboxed and strict; compiled templates are kept in the user's cache."""

import os
import shlex
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hpcscale.assets import bundled_dir

if TYPE_CHECKING:
    from jinja2.sandbox import SandboxedEnvironment


@lru_cache(maxsize=1)
def _environment() -> "SandboxedEnvironment":
    from jinja2 import FileSystemLoader, StrictUndefined
    from jinja2.sandbox import SandboxedEnvironment

    environment = SandboxedEnvironment(
        loader=FileSystemLoader(bundled_dir("templates")),
        undefined=StrictUndefined,
        autoescape=False,  # shell, not HTML: values go through the `sh` filter
        keep_trailing_newline=True,
        bytecode_cache=_cache(),
        auto_reload=True,
    )
    environment.filters["sh"] = shlex.quote
    environment.filters["quoted"] = _quoted
    environment.filters["line"] = _one_line
    return environment


def _quoted(text: str) -> str:
    """A value in single quotes, whatever it is: what a reviewer expects behind ``export K=``."""
    return "'" + text.replace("'", "'\\''") + "'"


def _one_line(text: str) -> str:
    """Text for a comment: nothing in it begins a new line."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


def _cache() -> Any:
    """Compiled templates, so that a submit does not compile them; None where nothing is writable.

    The directory must be the user's own: what is read from it is run.
    """
    from jinja2 import FileSystemBytecodeCache

    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    directory = Path(base).expanduser() / "hpcscale" / "templates"
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = directory.stat()
    except (OSError, RuntimeError):  # RuntimeError: no home directory is known
        return None
    if status.st_uid != os.geteuid() or status.st_mode & 0o022 or not os.access(directory, os.W_OK):
        return None
    return FileSystemBytecodeCache(str(directory))


def fill(template: str, context: Mapping[str, Any]) -> str:
    """The text of a template.

    Args:
        template: file name below ``templates/``.
        context: its one variable ``job``.
    """
    try:
        return _environment().get_template(template).render(job=context)
    except OSError:
        # the cache's disk is full, or its files vanished: do without
        environment = _environment().overlay(bytecode_cache=None)
        return environment.get_template(template).render(job=context)
