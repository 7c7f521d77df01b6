"""One login by paramiko: keys, agent, pinned host key; never a prompt, never a forwarded agent."""

import base64
import contextlib
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hpcscale.errors import HostKeyError, NotSentError
from hpcscale.slurm._ssh_route import Hop

if TYPE_CHECKING:
    import paramiko

_KEEPALIVE_S = 15


class PermanentError(Exception):
    """Carries an error that another attempt would only repeat."""

    def __init__(self, error: NotSentError) -> None:
        super().__init__(str(error))
        self.error = error


def login(
    hop: Hop,
    sock: "paramiko.Channel | None",
    *,
    where: str,
    config: str | None,
    jumps: tuple[Hop, ...],
    timeout_s: float,
) -> "paramiko.SSHClient":
    """Connect and authenticate.

    Args:
        hop: where to.
        sock: a channel through the jump host before it; None connects by TCP.
        where: for messages.
        config: the ssh_config file to name in hints when it is not the usual one.
        jumps: the jump hosts before it, to name in hints.
        timeout_s: for each of: TCP, banner, authentication.

    Raises:
        HostKeyError: the host key is unknown or changed.
        PermanentError: the login was refused.
        NotSentError: nobody answered; another attempt may help.
    """
    import paramiko

    line = _command(hop, config, jumps)
    client = paramiko.SSHClient()
    client.set_missing_host_key_policy(paramiko.RejectPolicy())
    try:
        _load_known_hosts(client, hop, where)
        with _keys(hop) as keys:
            client.connect(
                hop.address,
                port=hop.port,
                username=hop.user,
                sock=sock,
                timeout=timeout_s,
                banner_timeout=timeout_s,
                auth_timeout=timeout_s,
                channel_timeout=timeout_s,
                **keys,
            )
        transport = client.get_transport()
        if transport is None:
            raise NotSentError("cannot connect: closed at once", where=where, hint=line)
        transport.set_keepalive(_KEEPALIVE_S)
    except BaseException as exc:
        client.close()
        if isinstance(exc, Exception) and (error := _translate(exc, hop, where, line)):
            raise error from exc
        raise
    return client


def _load_known_hosts(client: "paramiko.SSHClient", hop: Hop, where: str) -> None:
    for file in hop.known_hosts:
        try:
            if file.is_file():
                client.load_system_host_keys(str(file))
        except OSError as exc:
            raise PermanentError(
                NotSentError(
                    f"{file} cannot be read: {exc.strerror}",
                    where=where,
                    hint="known_hosts stands in the site's [transport]; it must be yours to read",
                )
            ) from exc


@contextlib.contextmanager
def _keys(hop: Hop) -> Iterator[dict[str, Any]]:
    """What to offer: the keys that were named, from the agent when it holds them; else all."""
    if not hop.only_these_keys:
        there = [key for key in hop.identity_files if Path(key).is_file()]
        yield {"key_filename": there or None}
        return
    only: dict[str, Any] = {"allow_agent": False, "look_for_keys": False}
    with _agent() as agent:
        keys = () if agent is None else agent.get_keys()
        held = [key for key in keys if key.asbytes() in _public_keys(hop)]
        # the agent's copy is the only one of use when a passphrase locks the file
        yield only | ({"pkey": held[0]} if held else {"key_filename": list(hop.identity_files)})


def _public_keys(hop: Hop) -> list[bytes]:
    found = []
    for file in hop.identity_files:
        with contextlib.suppress(OSError, ValueError, IndexError):
            found.append(base64.b64decode(Path(f"{file}.pub").read_text().split()[1]))
    return found


@contextlib.contextmanager
def _agent() -> "Iterator[paramiko.Agent | None]":
    """The user's agent; None when none runs."""
    import paramiko

    try:
        agent = paramiko.Agent()
    except (OSError, paramiko.SSHException):
        yield None
        return
    try:
        yield agent
    finally:
        agent.close()


def _translate(exc: Exception, hop: Hop, where: str, line: str) -> Exception | None:
    """Our error for what paramiko raised; None when it is ours already, or a bug."""
    import paramiko

    def refused(reason: str, hint: str = "") -> PermanentError:
        hint = hint or (
            f"{line} (identity_file and user stand in the site's [transport]; for a multi-factor"
            ' login set kind = "openssh")'
        )
        error = NotSentError(f"the login was refused: {reason}", where=where, hint=hint)
        return PermanentError(error)

    text = str(exc)
    if isinstance(exc, (NotSentError, PermanentError)):
        return None
    if isinstance(exc, paramiko.BadHostKeyException):
        return _changed_key(hop, where, exc.key.fingerprint)
    if isinstance(exc, paramiko.PasswordRequiredException):
        files = " ".join(shlex.quote(file) for file in hop.identity_files)
        return refused(
            "the private key has a passphrase and no agent holds it",
            f"ssh-add {files}".rstrip() + ' (first, when no agent runs: eval "$(ssh-agent)")',
        )
    if isinstance(exc, paramiko.AuthenticationException):
        return refused(text)
    if isinstance(exc, paramiko.SSHException):
        if "not found in known_hosts" in text:
            return _unknown_key(hop, where)
        if "No authentication methods available" in text or "private key" in text:
            return refused(text)
        return NotSentError(f"cannot connect: {text}", where=where, hint=line)
    if isinstance(exc, FileNotFoundError) and exc.filename:
        return refused(f"key file {exc.filename} does not exist")
    if isinstance(exc, (OSError, EOFError)):
        if file := getattr(exc, "filename", None):
            return refused(f"key file {file} cannot be read: {getattr(exc, 'strerror', exc)}")
        reason = getattr(exc, "strerror", None) or text or type(exc).__name__
        return NotSentError(f"cannot connect: {reason}", where=where, hint=line)
    if isinstance(exc, ValueError):  # a key file of a kind that paramiko cannot read
        return refused(text)
    return None


def _command(hop: Hop, config: str | None, jumps: tuple[Hop, ...]) -> str:
    """The ssh(1) line with which the user can try the same."""
    words = ["ssh"]
    if config:
        words += ["-F", config]
    if hop.only_these_keys:
        words += ["-i", hop.identity_files[0]]
    if jumps:
        spec = [j.destination() + (f":{j.port}" if j.port != 22 else "") for j in jumps]
        words += ["-J", ",".join(spec)]
    return shlex.join([*words, "-p", str(hop.port), hop.destination(), "true"])


def _scan(hop: Hop) -> str:
    file = shlex.quote(str(hop.known_hosts[0]))
    return f"ssh-keyscan -p {hop.port} {shlex.quote(hop.address)} >> {file}"


def _unknown_key(hop: Hop, where: str) -> HostKeyError:
    return HostKeyError(
        f"the host key of {hop.name} is not in {hop.known_hosts[0]}",
        where=where,
        hint=f"type: {_scan(hop)} (and compare the fingerprint, ssh-keygen -lf, with the one the"
        " site publishes)",
    )


def _changed_key(hop: Hop, where: str, fingerprint: str) -> HostKeyError:
    entry = hop.address if hop.port == 22 else f"[{hop.address}]:{hop.port}"
    file = hop.known_hosts[0]
    for candidate in hop.known_hosts:
        with contextlib.suppress(OSError):
            if entry in candidate.read_text(errors="replace"):
                file = candidate
                break
    return HostKeyError(
        f"the host key of {hop.name}, {fingerprint}, is not the one pinned in {file}:"
        " this may be an attack, or a new login node",
        where=where,
        hint="only if the site says that its key changed, type: ssh-keygen -R "
        f"{shlex.quote(entry)} -f {shlex.quote(str(file))}; then {_scan(hop)}",
    )
