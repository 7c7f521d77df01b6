"""`hpcscale lint`: what is wrong in sbatch scripts."""

import click

from hpcscale.cli._output import emit_json, json_option, printable


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("files", nargs=-1, required=True, metavar="FILE...")
@click.option("--site", "site_name", metavar="NAME", help="The site the scripts are for.")
@json_option
def command(files: tuple[str, ...], site_name: str | None, as_json: bool) -> None:
    """Check sbatch scripts, rendered or your own.

    Each finding has a rule, a line, the reason and the line to write instead. Exit code 1 when
    there are errors, 0 with warnings alone. A FILE of - is standard input.
    """
    import sys
    from pathlib import Path

    from hpcscale.errors import InvalidFileError
    from hpcscale.lint import Severity, lint
    from hpcscale.site import load_site
    from hpcscale.textfile import MAX_BYTES, decode, read_text

    site = load_site(site_name).site if site_name else None
    found = []
    for name in files:
        if name == "-":
            text = decode(sys.stdin.buffer.read(MAX_BYTES + 1), "stdin")
        else:
            text = read_text(Path(name), name, hint="hpcscale lint FILE")
        if "\r\n" in text:
            raise InvalidFileError(
                "its lines end as on Windows: sbatch would refuse it",
                where=name,
                hint=f"sed -i 's/\\r$//' {name}",
            )
        found += lint(text, "stdin" if name == "-" else name, site)
    errors = sum(f.severity is Severity.ERROR for f in found)
    if as_json:
        emit_json(
            {
                "findings": [
                    {
                        "path": f.path,
                        "line": f.line,
                        "rule": f.rule,
                        "severity": f.severity.value,
                        "why": f.why,
                        "fix": f.fix,
                    }
                    for f in found
                ],
                "errors": errors,
                "warnings": len(found) - errors,
            }
        )
    else:
        for finding in found:
            click.echo(printable(str(finding)))
            if finding.fix:
                click.echo(f"    fix: {printable(finding.fix)}")
    if errors:
        click.get_current_context().exit(1)
