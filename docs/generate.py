"""Writes the pages that are output: commands, exit codes, and the README's generated parts.

``make docs`` runs it; ``tests/unit/test_docs.py`` fails when a page is not what it would write.
Without arguments it writes; ``--check`` names the pages that are out of date and exits 1.
"""

import sys
from pathlib import Path

import click

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from hpcscale import errors  # noqa: E402  # the checkout's own package
from hpcscale.cli import main  # noqa: E402  # likewise

GENERATED = "<!-- Written by docs/generate.py: change the source, then run `make docs`. -->"
WIDTH = 88
DEMO_OUTPUT = ROOT / "docs" / "demo" / "output.txt"


def help_of(command: click.Command, path: str, parent: click.Context | None) -> str:
    """One command's section, with its subcommands below it."""
    context = click.Context(command, info_name=path.rsplit(" ", 1)[-1], parent=parent)
    context.max_content_width = WIDTH
    context.terminal_width = WIDTH
    # `-h` belongs to the top group's settings, which click hands down in a real call
    context.help_option_names = ["-h", "--help"]
    text = command.get_help(context).rstrip()
    parts = [f"## {path}\n\n```text\n{text}\n```\n"]
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            child = command.get_command(context, name)
            if child is not None and not child.hidden:
                parts.append(help_of(child, f"{path} {name}", context))
    return "\n".join(parts)


def cli_page() -> str:
    """docs/cli.md: what every `--help` prints."""
    return f"# Commands\n\n{GENERATED}\n\n{help_of(main, 'hpcscale', None)}"


def exit_codes() -> dict[int, list[type[errors.HpcscaleError]]]:
    """Exit code -> the errors that carry it, in the order of the file."""
    found: dict[int, list[type[errors.HpcscaleError]]] = {}
    for value in vars(errors).values():
        if isinstance(value, type) and issubclass(value, errors.HpcscaleError):
            found.setdefault(value.exit_code, []).append(value)
    return dict(sorted(found.items()))


def exit_code_page() -> str:
    """docs/exit-codes.md: one table for people, the tree for readers of the code."""
    rows = ["| code | meaning | try again? |", "|---:|---|---|", "| 0 | Done. | |"]
    for code, classes in exit_codes().items():
        for cls in classes:
            meaning = (cls.__doc__ or "").strip().splitlines()[0]
            again = "yes" if cls.transient else ""
            rows.append(f"| {code} | {meaning} (`{cls.__name__}`) | {again} |")
    rows.append(f"| {errors.EXIT_INTERRUPTED} | Interrupted (Ctrl-C). | |")
    table = "\n".join(rows)
    return (
        f"# Exit codes\n\n{GENERATED}\n\n"
        "Every command ends with one of these. The message on standard error says what happened,\n"
        "where (file, line, key) and what to type next; standard output then holds nothing that\n"
        "is half a result. `hpcscale --debug` adds the traceback.\n\n"
        f"{table}\n\n"
        "A command line that click itself refuses (no such option) is a usage error too: 2.\n\n"
        "Inside a job script other codes count: the script ends with the command's own exit code,\n"
        "or with 96 (a checkpoint was not saved, as another start counts now), 97 (its set-up\n"
        "failed), 98 (another copy of the job holds the claim) or 99 (stopped at the bound of\n"
        "restarts).\n"
    )


def between(text: str, name: str, body: str) -> str:
    """Replace what stands between two markers of a page."""
    begin, end = f"<!-- begin {name} -->", f"<!-- end {name} -->"
    if begin not in text:
        return text
    head, rest = text.split(begin, 1)
    tail = rest.split(end, 1)[1]
    return f"{head}{begin}\n{body}\n{end}{tail}"


def shortened(output: str) -> str:
    """The demo's output with the middle of the script left out; the whole is in the file."""
    lines = output.splitlines()
    begin = lines.index("#!/bin/bash")
    first = next(i for i in range(begin, len(lines)) if lines[i].startswith("unset SLURM_EXPORT"))
    last = lines.index('exit "$rc"')
    step = next(i for i in range(begin, last) if lines[i].startswith("srun "))
    gap, rest = step - first - 1, last - step - 6
    lines[step + 6 : last] = [f"[{rest} lines: wait, stop flag, requeue]"]
    lines[first + 1 : step] = [f"[{gap} lines: paths, reports, software, rendezvous, traps]"]
    return "\n".join(lines)


def readme() -> str:
    """README.md with the demo's stored output in its place."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    if DEMO_OUTPUT.is_file():
        output = DEMO_OUTPUT.read_text(encoding="utf-8").rstrip()
        text = between(text, "demo output", f"```text\n{shortened(output)}\n```")
    return text


def pages() -> dict[Path, str]:
    """Every generated page, as it should be."""
    return {
        ROOT / "docs" / "cli.md": cli_page(),
        ROOT / "docs" / "exit-codes.md": exit_code_page(),
        ROOT / "README.md": readme(),
    }


def run() -> int:
    """Write the pages, or with ``--check`` compare them."""
    stale = []
    for path, text in pages().items():
        if path.is_file() and path.read_text(encoding="utf-8") == text:
            continue
        stale.append(path.relative_to(ROOT))
        if "--check" not in sys.argv:
            path.write_text(text, encoding="utf-8")
            print(f"wrote {path.relative_to(ROOT)}")
    if "--check" in sys.argv and stale:
        print(f"out of date, run `make docs`: {', '.join(map(str, stale))}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(run())
