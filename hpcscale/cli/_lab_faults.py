"""``hpcscale lab fault``: break one thing of a running lab."""

from typing import TYPE_CHECKING

import click

from hpcscale.cli._lab_dir import dir_option, lab_path, open_lab
from hpcscale.cli._output import emit_json, emit_table, json_option, notice

if TYPE_CHECKING:
    from hpcscale.lab import Lab


@click.group()
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

    found = faults.active(open_lab(directory))
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

    lab = open_lab(directory)
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

    lab = open_lab(directory)
    faults.node_crash(lab, node, keep_stepd=keep_stepd)
    _done(f"{node} is dead", as_json=as_json, lab=lab)


@fault.command("node-restart")
@dir_option
@click.argument("node")
@json_option
def node_restart(directory: str | None, node: str, as_json: bool) -> None:
    """Start a crashed node again."""
    from hpcscale.lab import faults

    lab = open_lab(directory)
    faults.node_restart(lab, node)
    _done(f"{node} is back", as_json=as_json, lab=lab)


@fault.command("no-boot")
@dir_option
@click.argument("which", nargs=-1, required=True, metavar="K|NODE...")
@json_option
def no_boot(directory: str | None, which: tuple[str, ...], as_json: bool) -> None:
    """The last K nodes of each boot request, or the named nodes, never come up."""
    from hpcscale.lab import faults

    lab = open_lab(directory)
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

    lab = open_lab(directory)
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

    lab = open_lab(directory)
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

    lab = open_lab(directory)
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

    lab = open_lab(directory)
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

    lab = open_lab(directory)
    if undo:
        faults.disk_free(lab, site)
        _done(f"{site} has space again", as_json=as_json, lab=lab)
        return
    where = faults.disk_full(lab, site, path=lab_path(path), free_bytes=faults.size_bytes(size))
    _done(f"{where} on {site} has {size} bytes free", as_json=as_json, lab=lab)


@fault.command("clock-skew", context_settings={"ignore_unknown_options": True})
@dir_option
@click.argument("site")
@click.argument("seconds", type=int)
@json_option
def clock_skew(directory: str | None, site: str, seconds: int, as_json: bool) -> None:
    """Set a controller's clock off by SECONDS (it is restarted); 0 ends it."""
    from hpcscale.lab import faults

    lab = open_lab(directory)
    faults.clock_skew(lab, site, seconds)
    _done(f"the clock of {site} is {seconds:+d} s off", as_json=as_json, lab=lab)
