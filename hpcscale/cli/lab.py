"""`hpcscale lab`: real Slurm on one machine, an on-prem and a cloud site."""

from typing import TYPE_CHECKING

import click

from hpcscale.cli._output import emit_json, emit_table, json_option, notice, printable

if TYPE_CHECKING:
    from pathlib import Path

    from hpcscale.lab import Lab

dir_option = click.option(
    "--dir",
    "directory",
    type=click.Path(),
    help="The lab's directory.  [default: $HPCSCALE_LAB_DIR or /tmp/hpcscale-lab-UID]",
)


@click.group()
def command() -> None:
    """Real Slurm on this machine: lab-onprem and lab-cloud, no shared file system."""


def _path(text: str | None) -> "Path | None":
    from pathlib import Path

    return Path(text) if text else None


def _open(directory: str | None) -> "Lab":
    from hpcscale.lab import Lab

    return Lab.open(_path(directory))


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
        _path(directory),
        LabOptions(
            nodes=nodes,
            gpus=gpus,
            accounting=accounting,
            one_slurmdbd=one_slurmdbd,
            fast=fast,
            software=_path(software),
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
    _show(_open(directory), as_json=as_json)


@command.command()
@dir_option
@json_option
def env(directory: str | None, as_json: bool) -> None:
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
    ctx: click.Context, directory: str | None, as_json: bool, site: str, argv: tuple[str, ...]
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
def down(directory: str | None, keep: bool, as_json: bool) -> None:
    """End every process of the lab and remove its directory."""
    from hpcscale.lab import Lab

    removed = Lab.remove(_path(directory), keep=keep)
    if as_json:
        emit_json({"dir": str(removed), "kept": keep})
    else:
        notice(f"the lab in {removed} is down")


@command.group()
def fault() -> None:
    """Break one thing of a running lab; `clear` puts everything right."""


def _done(text: str, *, as_json: bool, lab: "Lab") -> None:
    if as_json:
        from hpcscale.lab import faults

        emit_json({"done": text, "faults": faults.active(lab)})
    else:
        notice(text)


@fault.command("list")
@dir_option
@json_option
def fault_list(directory: str | None, as_json: bool) -> None:
    """The faults that hold now."""
    from hpcscale.lab import faults

    found = faults.active(_open(directory))
    if as_json:
        emit_json(found)
    else:
        emit_table(
            ["FAULT", "SITE", "DETAIL"], [[f["fault"], f["site"], f["detail"]] for f in found]
        )


@fault.command()
@dir_option
@json_option
def clear(directory: str | None, as_json: bool) -> None:
    """End every fault; returns when all nodes can be used again."""
    from hpcscale.lab import faults

    lab = _open(directory)
    faults.clear(lab)
    _done("no fault is left", as_json=as_json, lab=lab)


@fault.command("node-crash")
@dir_option
@click.argument("node")
@click.option("--keep-stepd", is_flag=True, help="Only slurmd dies; the job's processes live on.")
@json_option
def node_crash(directory: str | None, node: str, keep_stepd: bool, as_json: bool) -> None:
    """Kill a node with kill -9."""
    from hpcscale.lab import faults

    lab = _open(directory)
    faults.node_crash(lab, node, keep_stepd=keep_stepd)
    _done(f"{node} is dead", as_json=as_json, lab=lab)


@fault.command("node-restart")
@dir_option
@click.argument("node")
@json_option
def node_restart(directory: str | None, node: str, as_json: bool) -> None:
    """Start a crashed node again."""
    from hpcscale.lab import faults

    lab = _open(directory)
    faults.node_restart(lab, node)
    _done(f"{node} is back", as_json=as_json, lab=lab)


@fault.command("no-boot")
@dir_option
@click.argument("which", nargs=-1, required=True, metavar="K|NODE...")
@json_option
def no_boot(directory: str | None, which: tuple[str, ...], as_json: bool) -> None:
    """The last K nodes of each boot request, or the named nodes, never come up."""
    from hpcscale.lab import faults

    lab = _open(directory)
    number = int(which[0]) if len(which) == 1 and which[0].isdigit() else None
    faults.no_boot(lab, which if number is None else number)
    _done(f"will not boot: {' '.join(which)}", as_json=as_json, lab=lab)


@fault.command("slow-boot")
@dir_option
@click.argument("seconds", type=float)
@click.argument("nodes", nargs=-1)
@json_option
def slow_boot(directory: str | None, seconds: float, nodes: tuple[str, ...], as_json: bool) -> None:
    """Cloud nodes (all, or the named ones) boot SECONDS later."""
    from hpcscale.lab import faults

    lab = _open(directory)
    faults.slow_boot(lab, seconds, nodes)
    _done(f"boots take {seconds:g} s longer", as_json=as_json, lab=lab)


@fault.command()
@dir_option
@click.argument("site")
@click.argument("act", type=click.Choice(["stop", "continue", "kill", "restart"]))
@json_option
def controller(directory: str | None, site: str, act: str, as_json: bool) -> None:
    """Stop, continue, kill -9 or restart a site's slurmctld."""
    from typing import cast

    from hpcscale.lab import faults

    lab = _open(directory)
    faults.controller(lab, site, cast("faults.ControllerAct", act))
    _done(f"slurmctld of {site}: {act}", as_json=as_json, lab=lab)


@fault.command()
@dir_option
@click.argument("act", type=click.Choice(["stop", "start"]))
@click.argument("site", required=False)
@json_option
def slurmdbd(directory: str | None, act: str, site: str | None, as_json: bool) -> None:
    """Stop or start slurmdbd, of one site or of both."""
    from hpcscale.lab import faults

    lab = _open(directory)
    faults.slurmdbd(lab, "stop" if act == "stop" else "start", site)
    _done(f"slurmdbd: {act}", as_json=as_json, lab=lab)


@fault.command("ssh-cut")
@dir_option
@click.argument("mode", type=click.Choice(["after", "before", "hang", "refuse", "normal"]))
@click.option("--count", default=1, show_default=True, help="Commands that are hit.")
@click.option("--match", default="", help="Only commands that contain this text, such as sbatch.")
@json_option
def ssh_cut(directory: str | None, mode: str, count: int, match: str, as_json: bool) -> None:
    """Break SSH to lab-cloud.

    \b
    after    the next command is carried out, the connection breaks before the reply
    before   the connection breaks before the command is carried out
    hang     the command is carried out, the reply never comes
    refuse   sshd and all its sessions end
    normal   no fault
    """  # noqa: D301  # click's mark for text that is not rewrapped
    from typing import cast

    from hpcscale.lab import faults

    lab = _open(directory)
    faults.ssh_cut(lab, cast("faults.CutMode", mode), count=count, match=match)
    _done(f"ssh to lab-cloud: {mode}", as_json=as_json, lab=lab)


@fault.command("disk-full")
@dir_option
@click.argument("site")
@click.option("--path", type=click.Path(), help="[default: the scratch directory]")
@click.option("--size", default="0", show_default=True, help="Space that stays free, such as 64k.")
@click.option("--undo", is_flag=True, help="Give the space back.")
@json_option
def disk_full(  # noqa: PLR0917  # click passes them by keyword
    directory: str | None, site: str, path: str | None, size: str, undo: bool, as_json: bool
) -> None:
    """Fill a directory, as the site's nodes and logins see it."""
    from hpcscale.lab import faults

    lab = _open(directory)
    if undo:
        faults.disk_free(lab, site)
        _done(f"{site} has space again", as_json=as_json, lab=lab)
        return
    where = faults.disk_full(lab, site, path=_path(path), free_bytes=faults.size_bytes(size))
    _done(f"{where} on {site} has {size} bytes free", as_json=as_json, lab=lab)


@fault.command("clock-skew", context_settings={"ignore_unknown_options": True})
@dir_option
@click.argument("site")
@click.argument("seconds", type=int)
@json_option
def clock_skew(directory: str | None, site: str, seconds: int, as_json: bool) -> None:
    """Set a controller's clock off by SECONDS (it is restarted); 0 ends it."""
    from hpcscale.lab import faults

    lab = _open(directory)
    faults.clock_skew(lab, site, seconds)
    _done(f"the clock of {site} is {seconds:+d} s off", as_json=as_json, lab=lab)
