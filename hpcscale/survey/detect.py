"""``site detect``: look at a live cluster and say what a profile of it would hold."""

import datetime as dt
import posixpath
import re
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from msgspec.structs import replace

from hpcscale.connect import Connection, connect
from hpcscale.errors import HpcscaleError, NotFoundError, NotSentError, UnreachableError
from hpcscale.site import Fabric, Site, TransportConfig, TransportKind
from hpcscale.slurm import remote
from hpcscale.slurm.transport import Transport
from hpcscale.slurm.types import SiteFacts
from hpcscale.survey.draft import Seen
from hpcscale.survey.live import probe_argv

_BELOW_HOME = "~/.local/state/hpcscale/site"
_SHARED_VARIABLES = ("WORK", "PROJECT", "SCRATCH")  # where sites put what all nodes see
_BIN_DIRS = (
    "/opt/slurm/bin",
    "/usr/local/slurm/bin",
    "/usr/local/bin",
    "/cm/shared/apps/slurm/current/bin",
    "/opt/software/slurm/bin",
)
_PROBE = 'echo "node=${SLURMD_NODENAME:-?}"; for f; do echo "saw=$f=$(cat "$f" 2>/dev/null)"; done'


def detect(
    transport: TransportConfig,
    *,
    name: str | None,
    state_dir: str | None,
    probe_job: bool | None,
    say: Callable[[str], None],
) -> Seen:
    """Look at a cluster.

    Args:
        transport: how to reach it; what it leaves open is found out.
        name: of the profile; default the cluster's own.
        state_dir: where runs are to lie; default the first place that the nodes see.
        probe_job: run a job of some seconds to see the state directory from a node; None runs one
            unless nodes would boot for it.
        say: told what is going on.

    Raises:
        UnreachableError: nobody answers, or no Slurm is found there.
    """
    say("connecting")
    config = _with_login(transport)
    with _connection(config) as connection:
        config = _with_commands(connection.transport, config)
    with _connection(config) as connection:
        say("asking the controller")
        facts = connection.client.facts()
        switches = connection.client.switches()
        if probe_job is None:
            boots = any(p.boots for p in facts.partitions.values())
            probe_job = not boots and not config.cluster  # no step by -M
        say("looking for a state directory" + (" with a job on one node" if probe_job else ""))
        directory, note = _state_dir(connection, facts, state_dir, probe_job=probe_job)
    return Seen(
        name=name or profile_name(facts.cluster),
        transport=_differing(config),
        state_dir=directory,
        state_dir_note=note,
        facts=facts,
        switches=switches,
        today=dt.datetime.now(dt.UTC).date(),
    )


def profile_name(cluster: str) -> str:
    """A cluster's name as a site may be called: lower case letters, digits, ``-``."""
    return re.sub(r"[^a-z0-9]+", "-", cluster.lower()).strip("-") or "cluster"


def _site(config: TransportConfig) -> Site:
    today = dt.datetime.now(dt.UTC).date()
    return Site(name="detected", as_of=today, transport=config, fabric=Fabric(kind="unknown"))


@contextmanager
def _connection(config: TransportConfig) -> Iterator[Connection]:
    connection = connect(_site(config))
    try:
        yield connection
    finally:
        connection.close()


def _with_login(config: TransportConfig) -> TransportConfig:
    """The kind that gets in: paramiko, or ssh(1) with its open connections where that does not."""
    try:
        with _connection(config) as connection:
            connection.transport.run(["true"])
    except NotSentError as first:
        if config.kind is not TransportKind.SSH or "login was refused" not in first.message:
            raise
        other = replace(config, kind=TransportKind.OPENSSH)
        try:
            with _connection(other) as connection:
                connection.transport.run(["true"])
        except UnreachableError as second:
            raise second from first  # its hint is the line that opens a master connection
        return other
    return config


def _with_commands(transport: Transport, config: TransportConfig) -> TransportConfig:
    """Where Slurm's commands are, when not on PATH; which SLURM_CONF, when only a login knows."""
    if config.slurm_bin is None and not _has(transport, "squeue"):
        for argv in (["bash", "-lc", "command -v squeue"], *_at_usual_places()):
            found = transport.run(argv).stdout.strip().splitlines()
            if found and found[-1].startswith("/"):
                config = replace(config, slurm_bin=posixpath.dirname(found[-1]))
                break
        else:
            raise UnreachableError(
                "no squeue was found there",
                where=transport.name,
                hint="--slurm-bin DIRECTORY says where Slurm's commands are",
            )
    if config.slurm_conf is None:
        plain = _variable(transport, ["printenv", "SLURM_CONF"])
        login = _variable(transport, ["bash", "-lc", "printenv SLURM_CONF"])
        # a local command gets ours from this very shell, which cron will not have
        if (plain and transport.is_local) or (login and not plain):
            config = replace(config, slurm_conf=plain or login)
    return config


def _has(transport: Transport, command: str) -> bool:
    return transport.run(["sh", "-c", 'command -v "$1"', "sh", command]).returncode == 0


def _at_usual_places() -> list[list[str]]:
    return [["ls", "--", f"{directory}/squeue"] for directory in _BIN_DIRS]


def _variable(transport: Transport, argv: list[str]) -> str | None:
    done = transport.run(argv)
    lines = done.stdout.strip().splitlines()
    return lines[-1] if done.returncode == 0 and lines and lines[-1].startswith("/") else None


def _state_dir(
    connection: Connection, facts: SiteFacts, wanted: str | None, *, probe_job: bool
) -> tuple[str, str]:
    """The first candidate that can be written and, with a probe, that a node sees; and how so."""
    transport = connection.transport
    token = secrets.token_hex(8)
    usable: dict[str, str] = {}  # as it is written -> the token's path
    try:
        for candidate in [wanted] if wanted else list(_candidates(transport)):
            path = _plant(transport, candidate, token)
            if path is not None:
                usable[candidate] = path
        if not usable:
            raise HpcscaleError(
                f"{wanted or _BELOW_HOME} cannot be written",
                where=transport.name,
                hint="--state-dir DIRECTORY, one that the login node and all nodes see",
            )
        first = next(iter(usable))
        if not probe_job:
            return first, "not yet seen from a node: hpcscale site check --probe-job tells"
        node, seen = _seen_from_a_node(connection, facts, list(usable.values()), token)
        if node is None:
            return first, "not yet seen from a node, none was free: try site check later"
        for candidate, path in usable.items():
            if path in seen:
                return candidate, f"seen from node {node}"
        raise HpcscaleError(
            f"node {node} sees none of {', '.join(usable)}",
            where=transport.name,
            hint="--state-dir DIRECTORY, one that the login node and all nodes see",
        )
    finally:
        for path in usable.values():
            ours = posixpath.dirname(path)
            transport.run(["rm", "-rf", "--", ours])
            transport.run(["rmdir", "--ignore-fail-on-non-empty", "--", posixpath.dirname(ours)])


def _candidates(transport: Transport) -> Iterator[str]:
    yield _BELOW_HOME
    for variable in _SHARED_VARIABLES:
        if value := _variable(transport, ["printenv", variable]):
            yield f"{value.rstrip('/')}/hpcscale-state"


def _plant(transport: Transport, candidate: str, token: str) -> str | None:
    """Write the token below a candidate; its path, None where that is not possible."""
    try:
        path = f"{remote.expand(transport, candidate)}/detect-{token}/token"
        remote.mkdir(transport, posixpath.dirname(path), 0o700)
        transport.put_bytes(token.encode(), path, mode=0o600)
    except (NotFoundError, HpcscaleError) as exc:
        if isinstance(exc, UnreachableError):
            raise
        return None
    return path


def _seen_from_a_node(
    connection: Connection, facts: SiteFacts, paths: list[str], token: str
) -> tuple[str | None, set[str]]:
    """A node's name and which files it can read; None when no node was free."""
    argv, env, wait_s = probe_argv(connection.site, facts)
    done = connection.transport.run(
        [*argv, "/bin/sh", "-c", _PROBE, "sh", *paths], env=env, timeout_s=wait_s
    )
    node, seen = None, set()
    for line in done.stdout.splitlines():
        if line.startswith("node="):
            node = line.removeprefix("node=")
        path, _, found = line.removeprefix("saw=").rpartition("=")
        if found == token:
            seen.add(path)
    return node, seen


def _differing(config: TransportConfig) -> dict[str, str | int]:
    """The keys that a file must hold: those that are not the default's."""
    default = TransportConfig()
    keys = ("host", "port", "user", "identity_file", "known_hosts", "proxy_jump", "ssh_config",
            "cluster", "slurm_conf", "slurm_bin")  # fmt: skip
    found: dict[str, str | int] = {"kind": config.kind.value}
    for key in keys:
        if (value := getattr(config, key)) != getattr(default, key):
            found[key] = value
    return found
