"""``hpcscale site``: which places there are, what each profile says, and whether it works."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from hpcscale.cli._output import emit_json, emit_table, json_option, notice

if TYPE_CHECKING:
    from pathlib import Path

set_option: Callable[[Any], Any] = click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="KEY=VALUE",
    help="Set one key of the profile for this call, as in transport.port=2222.",
)


@click.group()
def command() -> None:
    """Sites: list them, show a profile, prove that one works."""


@command.command("list")
@json_option
def list_sites(as_json: bool) -> None:
    """List the sites that some layer describes."""
    from hpcscale.errors import HpcscaleError
    from hpcscale.settings import default_site
    from hpcscale.site import load_site, site_names

    chosen = default_site()
    default = chosen[0] if chosen else None
    rows: list[list[str]] = []
    data: list[dict[str, Any]] = []
    for name in site_names():
        try:
            site = load_site(name).site
        except HpcscaleError as exc:  # one broken file must not hide the other sites
            rows.append([name, f"broken: {exc}", "", "", "", "", ""])
            data.append({"name": name, "error": str(exc)})
            continue
        price = site.gpu_hour_usd()
        item: dict[str, Any] = {
            "name": name,
            "title": site.title,
            "default": name == default,
            "transport": site.transport.kind.value,
            "host": site.transport.host,
            "gpus_per_node": site.gpus_per_node,
            "gpu_type": site.gpu_type,
            "fabric": site.fabric.kind,
            "gpu_hour_usd": price,
            "as_of": site.as_of,
            "burst_target": site.burst.target,
        }
        data.append(item)
        rows.append(
            [
                name + (" (default)" if item["default"] else ""),
                item["transport"] + (f" {site.transport.host}" if site.transport.host else ""),
                f"{site.gpus_per_node or '?'} x {site.gpu_type or 'gpu'}",
                site.fabric.kind,
                f"${price}" if price else "unknown",
                str(site.as_of),
                "yes" if site.burst.target else "no",
            ]
        )
    if as_json:
        emit_json(data)
        return
    emit_table(
        ["SITE", "TRANSPORT", "GPUS/NODE", "FABRIC", "GPU-HOUR", "AS OF", "BURST TARGET"], rows
    )


@command.command()
@click.argument("name")
@click.option("--origin", is_flag=True, help="Say which layer set each key (file and line).")
@set_option
@json_option
def show(name: str, origin: bool, overrides: tuple[str, ...], as_json: bool) -> None:
    """Show a site's profile as merged from its layers."""
    import msgspec

    from hpcscale.site import load_site

    loaded = load_site(name, overrides)
    if as_json:
        document: dict[str, Any] = {"site": msgspec.to_builtins(loaded.site)}
        if origin:
            document["origins"] = {key: loaded.origin(key) for key in loaded.origins}
        emit_json(document)
        return
    rows = [
        [key, text, *([loaded.origin(key)] if origin else [])]
        for key, text in _flat(msgspec.to_builtins(loaded.site))
    ]
    emit_table(["KEY", "VALUE", *(["ORIGIN"] if origin else [])], rows)


@command.command()
@click.argument("name")
@click.option(
    "--probe-job/--no-probe-job",
    default=None,
    help="Run a job of some seconds on one node, to see the state directory from there. "
    "Default: yes, except on a burst target, where it boots (and bills) a node.",
)
@set_option
@json_option
@click.pass_context
def check(
    ctx: click.Context,
    name: str,
    probe_job: bool | None,
    overrides: tuple[str, ...],
    as_json: bool,
) -> None:
    """Prove that a site works: connection, Slurm, partitions, GPUs, state directory, clock.

    Exit code 0 when all is well, 1 when a check fails, 5 when nobody answers.
    """
    from hpcscale.connect import connect
    from hpcscale.errors import HpcscaleError, UnreachableError
    from hpcscale.site import load_site
    from hpcscale.survey import Verdict, survey

    site = load_site(name, overrides).site
    connection = connect(site)
    try:
        checks = list(
            survey(
                connection,
                probe_job=not site.burst.target if probe_job is None else probe_job,
            )
        )
    finally:
        connection.close()
    failed = [c for c in checks if c.verdict is Verdict.FAIL]
    if as_json:
        emit_json(
            {
                "site": name,
                "ok": not failed,
                "checks": [
                    {
                        "name": c.name,
                        "verdict": c.verdict,
                        "message": c.message,
                        "hint": c.hint,
                    }
                    for c in checks
                ],
            }
        )
    else:
        emit_table(
            ["CHECK", "VERDICT", "WHAT WAS SEEN"],
            [[c.name, c.verdict.value, c.message] for c in checks],
        )
        for c in checks:
            if c.hint and c.verdict is not Verdict.OK:
                notice(f"{c.name}: {c.hint}")
    if failed:
        silent = any(c.unreachable for c in failed)
        ctx.exit(UnreachableError.exit_code if silent else HpcscaleError.exit_code)


@command.command()
@click.argument("host", required=False)
@click.option("--name", help="Name of the profile.  [default: the cluster's own name]")
@click.option(
    "--kind",
    type=click.Choice(["local", "ssh", "openssh"]),
    help="How to reach it.  [default: local without HOST; else ssh, and openssh where that is "
    "not let in]",
)
@click.option("--user", help="The name there.")
@click.option("--port", default=22, show_default=True, help="Of its sshd.")
@click.option("--identity-file", type=click.Path(), help="Private key.")
@click.option("--known-hosts", type=click.Path(), help="File that pins its host key.")
@click.option("--proxy-jump", metavar="HOSTS", help="[user@]host[:port] to go through.")
@click.option("--ssh-config", type=click.Path(), help="Read instead of ~/.ssh/config.")
@click.option("--cluster", metavar="NAME", help="Ask this other cluster of its slurmdbd (-M).")
@click.option("--slurm-conf", metavar="PATH", help="SLURM_CONF there.")
@click.option("--slurm-bin", metavar="DIR", help="Where Slurm's commands are there.")
@click.option("--state-dir", metavar="DIR", help="Where runs are to lie there.")
@click.option(
    "--probe-job/--no-probe-job",
    default=None,
    help="Run a job of some seconds to see the state directory from a node.  [default: yes, "
    "unless a node would boot for it]",
)
@click.option("-o", "--output", type=click.Path(), metavar="FILE", help="Where to; - prints it.")
@click.option("--force", is_flag=True, help="Overwrite a profile of that name.")
@json_option
def detect(  # noqa: PLR0917  # click passes them by keyword
    host: str | None,
    name: str | None,
    state_dir: str | None,
    probe_job: bool | None,
    output: str | None,
    force: bool,
    as_json: bool,
    **reach: Any,
) -> None:
    """Write the profile of a live cluster, as far as it can be seen.

    HOST is the login node, or an alias of ~/.ssh/config; without it, this machine's Slurm is
    looked at. What no command can tell, such as prices and the fabric's variables, is left out.
    """
    import msgspec

    from hpcscale.survey.detect import detect as look
    from hpcscale.survey.draft import UNKNOWN, draft, remarks

    if name is not None:
        _refuse_taken(name, output, force=force)  # before anything runs there
    seen = look(
        _transport(host, **reach),
        name=name,
        state_dir=state_dir,
        probe_job=probe_job,
        say=_progress,
    )
    text = draft(seen)
    path = None if output == "-" else _refuse_taken(seen.name, output, force=force)
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.tmp")
        temporary.write_text(text)
        temporary.replace(path)
    if as_json:
        emit_json(
            {
                "name": seen.name,
                "path": None if path is None else str(path),
                "toml": text,
                "facts": msgspec.to_builtins(seen.facts),
                "unknown": list(UNKNOWN),
                "remarks": remarks(seen),
            }
        )
        return
    if path is None:
        click.echo(text, nl=False)
        return
    click.echo(str(path))
    for remark in remarks(seen):
        notice(remark)
    notice(f"left out, since no command tells: {', '.join(UNKNOWN)}")
    _say_next(path, seen.name)


def _say_next(path: "Path", name: str) -> None:
    """What to type next; a file elsewhere is no site yet."""
    from hpcscale.site import user_file

    home = user_file(name)
    if path.absolute() != home:
        notice(f"sites are read from {home.parent}: mkdir -p {home.parent} && mv {path} {home}")
    notice(f"next: hpcscale site check {name}")


def _transport(host: str | None, kind: str | None, **reach: Any) -> Any:
    """What the options say of the way there."""
    from hpcscale.errors import UsageError
    from hpcscale.site import TransportConfig, TransportKind

    chosen = kind or ("ssh" if host else "local")
    if (chosen == "local") != (host is None):
        raise UsageError(
            f"--kind {chosen} {'takes no HOST' if host else 'needs a HOST'}",
            hint="hpcscale site detect --help",
        )
    user, at, name = (host or "").rpartition("@")
    if at:
        host, reach["user"] = name, reach["user"] or user
    return TransportConfig(kind=TransportKind(chosen), host=host, **reach)


def _refuse_taken(name: str, output: str | None, *, force: bool) -> Any:
    """The path to write, when nothing is there that it would overwrite or be mixed with."""
    import re
    from pathlib import Path

    from hpcscale.errors import RefusedError, UsageError
    from hpcscale.site import site_names, user_file

    if re.fullmatch(r"[a-z0-9][a-z0-9-]*", name) is None:
        raise UsageError(f"{name!r} is no name of a site", hint="--name with a-z, 0-9 and -")
    path = Path(output) if output not in {None, "-"} else user_file(name)
    taken = path.exists() or (output is None and name in site_names())
    if taken and output != "-" and not force:
        raise RefusedError(
            f"there is a profile {name} already",
            where=str(path) if path.exists() else None,
            hint="--name OTHER, -o FILE, or --force to overwrite it",
        )
    return path


def _progress(text: str) -> None:
    """On a terminal only."""
    import sys

    if sys.stderr.isatty():
        notice(f"{text} …")


def _flat(value: Any, at: str = "") -> list[tuple[str, str]]:
    """Dotted keys and their values as text; what is unset is left out."""
    if isinstance(value, dict):
        return [
            line
            for key, below in value.items()
            for line in _flat(below, f"{at}.{key}" if at else key)
        ]
    if value is None or value in ([], ()):
        return []
    if isinstance(value, (list, tuple)):
        return [(at, ", ".join(map(str, value)))]
    if isinstance(value, bool):
        return [(at, "true" if value else "false")]
    return [(at, str(value).strip())]
