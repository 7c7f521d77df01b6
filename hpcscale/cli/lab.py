"""`hpcscale lab`: real Slurm on one machine, an on-prem and a cloud site."""

from typing import TYPE_CHECKING

import click

from hpcscale.cli._lab_dir import dir_option, lab_path, open_lab
from hpcscale.cli._lab_faults import fault
from hpcscale.cli._output import emit_json, emit_table, json_option, notice, printable

if TYPE_CHECKING:
    from hpcscale.lab import Lab


@click.group()
def command() -> None:
    """Real Slurm on this machine: lab-onprem and lab-cloud, no shared file system."""


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
@click.option(
    "--one-slurmdbd", is_flag=True, help="One slurmdbd for both: `-M` reaches the other site."
)
@click.option("--fast", default=1, metavar="N", help="Controllers' clocks run N times faster.")
@click.option(
    "--software",
    type=click.Path(),
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
    "--cloud-partition",
    is_flag=True,
    help="lab-onprem has a partition `cloud` of nodes that boot on demand: lab-onprem/cloud.",
)
@click.option(
    "--cover",
    multiple=True,
    type=click.Path(),
    help="A further directory that the sites must not see (repeatable).",
)
@click.option("--no-isolation", is_flag=True, help="Make no namespaces.")
@json_option
def up(  # noqa: PLR0917  # click passes them by keyword
    directory: str | None,
    nodes: int,
    gpus: int,
    accounting: bool,
    one_slurmdbd: bool,
    fast: int,
    software: str | None,
    boot_delay: float,
    suspend_time: int,
    grace_time: int,
    cloud_partition: bool,
    cover: tuple[str, ...],
    no_isolation: bool,
    as_json: bool,
) -> None:
    """Start a lab; returns when every node can be used."""
    from pathlib import Path

    from hpcscale.lab import Lab, LabOptions

    lab = Lab.up(
        lab_path(directory),
        LabOptions(
            nodes=nodes,
            gpus=gpus,
            accounting=accounting,
            one_slurmdbd=one_slurmdbd,
            fast=fast,
            software=lab_path(software),
            boot_delay_s=boot_delay,
            suspend_time_s=suspend_time,
            grace_time_s=grace_time,
            cloud_partition=cloud_partition,
            isolate=not no_isolation,
            cover=tuple(Path(each) for each in cover),
        ),
    )
    _show(lab, as_json=as_json)
    if not as_json:
        where = f" --dir {directory}" if directory else ""
        notice(f'ready. Next: eval "$(hpcscale lab env{where})"')


@command.command()
@dir_option
@json_option
def status(directory: str | None, as_json: bool) -> None:
    """Sites, daemons, nodes and what isolation holds."""
    _show(open_lab(directory), as_json=as_json)


@command.command()
@dir_option
@json_option
def env(directory: str | None, as_json: bool) -> None:
    """Print the exports that point hpcscale and Slurm's commands at the lab.

    Use as: eval "$(hpcscale lab env)"
    """
    import shlex

    variables = open_lab(directory).env()
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
    ctx: click.Context, directory: str | None, as_json: bool, site: str, argv: tuple[str, ...]
) -> None:
    """Run a command on a site's login node; its exit code is passed through."""
    place = open_lab(directory).site(site)
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
    directory: str | None,
    site: str | None,
    follow: bool,
    daemon: str | None,
    lines: int,
    as_json: bool,
) -> None:
    """The daemons' logs."""
    from hpcscale.errors import UsageError
    from hpcscale.lab.process import tail

    lab = open_lab(directory)
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
def down(directory: str | None, keep: bool, as_json: bool) -> None:
    """End every process of the lab and remove its directory."""
    from hpcscale.lab import Lab

    removed = Lab.remove(lab_path(directory), keep=keep)
    if as_json:
        emit_json({"dir": str(removed), "kept": keep})
    else:
        notice(f"the lab in {removed} is down")


command.add_command(fault)
