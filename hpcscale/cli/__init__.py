"""The command line: a lazy click group, and the one place where an error becomes an exit code.

Each command lives in ``hpcscale/cli/<verb>.py``, a thin module that imports click alone at the top;
everything heavier is imported inside the function. ``hpcscale --help`` therefore loads click and
little else (``tests/unit/test_import_budget.py`` holds the allow-list).
"""

import errno
import os
import sys
from importlib import import_module
from typing import NoReturn

import click

from hpcscale import __version__
from hpcscale.errors import (
    EXIT_INTERRUPTED,
    HpcscaleError,
    InternalError,
    InvalidFileError,
    UsageError,
)

# verb -> module below hpcscale.cli; the attribute is always `command`
COMMANDS: dict[str, str] = {
    "burst": "burst",
    "cancel": "cancel",
    "catalog": "catalog",
    "fetch": "fetch",
    "forecast": "forecast",
    "lab": "lab",
    "lint": "lint",
    "logs": "logs",
    "render": "render",
    "site": "site",
    "status": "status",
    "submit": "submit",
    "tend": "tend",
    "wait": "wait",
}


class LazyGroup(click.Group):
    """Loads a command's module when it is named, or when help lists it."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Every verb, in alphabetical order."""
        del ctx
        return sorted(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import one verb's module."""
        del ctx
        module = COMMANDS.get(cmd_name)
        if module is None:
            return None
        command = import_module(f"hpcscale.cli.{module}").command
        assert isinstance(command, click.Command)
        return command


@click.group(
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(__version__, prog_name="hpcscale")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
def main(debug: bool) -> None:
    """Batch jobs on Slurm, on-prem first, bursting to cloud GPU nodes when it pays."""
    if debug:
        os.environ["HPCSCALE_DEBUG"] = "1"


def report_error(error: HpcscaleError) -> None:
    """Print an error for a person: what, where, what to do next. To stderr."""
    from hpcscale.cli._output import printable_lines

    # a site's own words stand in it
    click.echo(printable_lines(f"hpcscale: error: {error}"), err=True)
    if error.hint:
        click.echo(printable_lines(f"  try: {error.hint}"), err=True)


def _open_standard_streams() -> None:
    """A stream that the caller closed (``>&-``) is None in Python: give it /dev/null instead."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: PTH123, SIM115


def _require_utf8(words: list[str]) -> None:
    """Refuse arguments in another encoding: no script, comment or ledger row could hold them.

    Raises:
        UsageError: an argument is not UTF-8.
    """
    for word in words:
        try:
            word.encode("utf-8")
        except UnicodeEncodeError:
            raise UsageError(
                f"an argument is not UTF-8 text: {os.fsencode(word)!r}",
                hint="write it in UTF-8; a file of another name can be linked: ln -s FILE NAME",
            ) from None


def run() -> NoReturn:
    """Console entry point. Exit codes are documented in ``hpcscale.errors``."""
    _open_standard_streams()
    try:
        _require_utf8(sys.argv[1:])
        code = main.main(standalone_mode=False, prog_name="hpcscale")
    except click.exceptions.Abort:
        click.echo("hpcscale: interrupted", err=True)
        sys.exit(EXIT_INTERRUPTED)
    except click.ClickException as exc:
        exc.show()
        sys.exit(exc.exit_code)
    except HpcscaleError as exc:
        if os.environ.get("HPCSCALE_DEBUG"):
            raise
        report_error(exc)
        sys.exit(exc.exit_code)
    except KeyboardInterrupt:
        click.echo("hpcscale: interrupted", err=True)
        sys.exit(EXIT_INTERRUPTED)
    except BrokenPipeError:
        # `hpcscale status | head`: the reader left, which is no error of ours
        from hpcscale.cli._output import silence_stdout

        silence_stdout()
        sys.exit(0)
    except Exception as exc:  # the last line of defence: a bug shows no traceback unasked
        if os.environ.get("HPCSCALE_DEBUG"):
            raise
        if isinstance(exc, OSError) and exc.filename is not None:
            named = InvalidFileError(
                f"cannot be used: {exc.strerror}",
                where=os.fsdecode(exc.filename),
                hint=f"look at it and at the directories above: namei -l {exc.filename!r}",
            )
            report_error(named)
            sys.exit(named.exit_code)
        if isinstance(exc, OSError) and exc.errno == errno.ENOSPC:
            error = HpcscaleError(
                f"what there is to say cannot be written: {exc.strerror}",
                where="standard output",
                hint="hpcscale status  (what was asked for may have been done)",
            )
            from hpcscale.cli._output import silence_stdout

            silence_stdout()
            report_error(error)
            sys.exit(error.exit_code)
        report_error(
            InternalError(
                f"internal error: {type(exc).__name__}: {exc}",
                hint="run again as `hpcscale --debug …` and report what it prints",
            )
        )
        sys.exit(InternalError.exit_code)
    # click returns ctx.exit()'s code in non-standalone mode
    sys.exit(code if isinstance(code, int) else 0)
