"""`hpcscale lab`: real Slurm on one machine, an on-prem and a cloud site."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from hpcscale.cli._output import emit_json, emit_table, json_option, notice, printable

if TYPE_CHECKING:
    from hpcscale.lab import Lab

dir_option = click.option(
    "--dir",
    "directory",
    type=click.Path(path_type=Path),
    help="The lab's directory.  [default: $HPCSCALE_LAB_DIR or /tmp/hpcscale-lab-UID]",
)


@click.group()
def command() -> None:
    """Real Slurm on this machine: lab-onprem and lab-cloud, no shared file system."""


def _open(directory: Path | None) -> "Lab":
    from hpcscale.lab import Lab

    return Lab.open(directory)


def _show(lab: "Lab", *, as_json: bool) -> None:
    status = lab.status()
    if as_json:
        emit_json(status)
        return
    rows = []
    for name, site in status["sites"].items():
        bad = [
            f"{daemon} {state}" for daemon, state in site["daemons"].items() if state != "running"
        ]
        nodes: dict[str, int] = {}
        for state in site["nodes"].values():
            nodes[state] = nodes.get(state, 0) + 1
        rows.append(
            [
                name,
                ", ".join(bad) or "all daemons running",
                ", ".join(f"{count} {state}" for state, count in nodes.items()) or "no answer",
                "local" if name == "lab-onprem" else f"ssh 127.0.0.1:{site['ports']['sshd']}",
            ]
        )
    emit_table(["SITE", "DAEMONS", "NODES", "REACHED BY"], rows)
    for note in status["notes"]:
        notice(f"weaker isolation: {note}")


@command.command()
@dir_option
@click.option("--nodes", default=4, show_default=True, help="Nodes of each site.")
@click.option("--gpus", default=4, show_default=True, help="GPUs of each node.")
@click.option("--accounting", is_flag=True, help="slurmdbd on MariaDB for both sites.")
@click.option("--fast", default=1, metavar="N", help="Controllers' clocks run N times faster.")
@click.option(
    "--software",
    type=click.Path(path_type=Path),
    help="Directory shared read-only with both sites.  [default: this Python's environment]",
)
@click.option(
    "--boot-delay", default=1.0, show_default=True, metavar="S", help="Boot time of a cloud node."
)
@click.option(
    "--suspend-time",
    default=20,
    show_default=True,
    metavar="S",
    help="Idle seconds until a cloud node is powered down.",
)
@click.option(
    "--grace-time", default=0, show_default=True, metavar="S", help="GraceTime of partition spot."
)
@click.option(
    "--cover",
    multiple=True,
    type=click.Path(path_type=Path),
    help="A further directory that the sites must not see (repeatable).",
)
@click.option("--no-isolation", is_flag=True, help="Make no namespaces.")
@json_option
def up(  # noqa: PLR0917  # click passes them by keyword
    directory: Path | None,
    nodes: int,
    gpus: int,
    accounting: bool,
    fast: int,
    software: Path | None,
    boot_delay: float,
    suspend_time: int,
    grace_time: int,
    cover: tuple[Path, ...],
    no_isolation: bool,
    as_json: bool,
) -> None:
    """Start a lab; returns when every node can be used."""
    from hpcscale.lab import Lab, LabOptions

    lab = Lab.up(
        directory,
        LabOptions(
            nodes=nodes,
            gpus=gpus,
            accounting=accounting,
            fast=fast,
            software=software,
            boot_delay_s=boot_delay,
            suspend_time_s=suspend_time,
            grace_time_s=grace_time,
            isolate=not no_isolation,
            cover=cover,
        ),
    )
    _show(lab, as_json=as_json)
    if not as_json:
        where = f" --dir {directory}" if directory else ""
        notice(f'ready. Next: eval "$(hpcscale lab env{where})"')


@command.command()
@dir_option
@json_option
def status(directory: Path | None, as_json: bool) -> None:
    """Sites, daemons, nodes and what isolation holds."""
    _show(_open(directory), as_json=as_json)


@command.command()
@dir_option
@json_option
def env(directory: Path | None, as_json: bool) -> None:
    """Print the exports that point hpcscale and Slurm's commands at the lab.

    Use as: eval "$(hpcscale lab env)"
    """
    import shlex

    variables = _open(directory).env()
    if as_json:
        emit_json(variables)
        return
    for name, value in variables.items():
        click.echo(f"export {name}={shlex.quote(value)}")


@command.command("exec", context_settings={"ignore_unknown_options": True})
@dir_option
@click.option("--json", "as_json", is_flag=True, help="Capture, and print one JSON document.")
@click.argument("site")
@click.argument("argv", nargs=-1, required=True, type=click.UNPROCESSED, metavar="-- CMD...")
@click.pass_context
def exec_command(
    ctx: click.Context, directory: Path | None, as_json: bool, site: str, argv: tuple[str, ...]
) -> None:
    """Run a command on a site's login node; its exit code is passed through."""
    place = _open(directory).site(site)
    if as_json:
        done = place.exec(argv, timeout_s=24 * 3600)
        emit_json({"exit_code": done.returncode, "stdout": done.stdout, "stderr": done.stderr})
        ctx.exit(done.returncode)
    ctx.exit(place.interactive(argv))


@command.command()
@dir_option
@click.argument("site", required=False)
@click.option("-f", "--follow", is_flag=True, help="Go on printing as the logs grow.")
@click.option("--daemon", help="One daemon's log, such as slurmctld or slurmd.onprem1.")
@click.option("-n", "--lines", default=20, show_default=True, help="Lines of each log.")
@json_option
def logs(  # noqa: PLR0917  # click passes them by keyword
    directory: Path | None,
    site: str | None,
    follow: bool,
    daemon: str | None,
    lines: int,
    as_json: bool,
) -> None:
    """The daemons' logs."""
    from hpcscale.errors import UsageError
    from hpcscale.lab.process import tail

    lab = _open(directory)
    files = lab.log_files(site, daemon)
    if as_json:
        if follow:
            raise UsageError("--json and --follow do not go together")
        emit_json({str(path): tail(path, lines).splitlines() for path in files})
        return
    for path in files:
        click.echo(f"==> {path} <==")
        for line in tail(path, lines).splitlines():
            click.echo(printable(line))
    if follow:
        for path, line in lab.follow(files):
            click.echo(f"{path.parent.parent.name}/{path.stem}: {printable(line)}")


@command.command()
@dir_option
@click.option("--keep", is_flag=True, help="Leave the directory: logs and state.")
@json_option
def down(directory: Path | None, keep: bool, as_json: bool) -> None:
    """End every process of the lab and remove its directory."""
    lab = _open(directory)
    lab.down(keep=keep)
    if as_json:
        emit_json({"dir": str(lab.state.directory), "kept": keep})
    else:
        notice(f"the lab in {lab.state.directory} is down")
