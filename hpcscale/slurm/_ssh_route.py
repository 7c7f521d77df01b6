"""Where an SSH connection goes: the site's profile joined with the user's ``~/.ssh/config``.

Of ssh_config(5) these are honoured: Host, Match (without exec), Include, HostName, User, Port,
IdentityFile, UserKnownHostsFile and ProxyJump. What stands in the profile wins. The system-wide
file is not read.
"""

import glob
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from hpcscale.errors import NotSentError

if TYPE_CHECKING:
    import paramiko

_MAX_JUMPS = 8
_MAX_INCLUDES = 16  # as deep as ssh(1) follows them
_KEYWORD = re.compile(r"^\s*(\w+)(?:\s*=\s*|\s+)(.*?)\s*$")
_JUMP = re.compile(
    r"(?:ssh://)?(?:(?P<user>[A-Za-z0-9_.+][A-Za-z0-9_.+@-]*)@)?"
    r"(?:\[(?P<six>[0-9A-Fa-f:.%]+)\]|(?P<host>[A-Za-z0-9_.][A-Za-z0-9_.-]*))(?::(?P<port>\d+))?/?"
)
USE_OPENSSH = 'set kind = "openssh" in the site\'s [transport]: ssh(1) understands all of it'


@dataclass(frozen=True, slots=True)
class Wish:
    """What the profile says; None leaves it to the user's configuration.

    Attributes:
        host: name, address or alias.
        port: 22 leaves it to the configuration.
        user: the name there.
        identity_file: the only key that is tried.
        known_hosts: the only file in which host keys are looked up.
        proxy_jump: ``[user@]host[:port]``, several with commas; ``none`` for no jump.
        ssh_config: read instead of ``~/.ssh/config``.
    """

    host: str
    port: int = 22
    user: str | None = None
    identity_file: str | None = None
    known_hosts: str | None = None
    proxy_jump: str | None = None
    ssh_config: str | None = None


@dataclass(frozen=True, slots=True)
class Hop:
    """One SSH connection.

    Attributes:
        name: as it was written, for messages.
        address: what is connected to, and looked up in known_hosts.
        identity_files: private keys; only these are tried when ``only_these_keys``.
        known_hosts: files with host keys; the first is the one to name in hints.
    """

    name: str
    address: str
    port: int
    user: str | None
    identity_files: tuple[str, ...]
    only_these_keys: bool
    known_hosts: tuple[Path, ...]

    def destination(self) -> str:
        """``user@host`` as ssh(1) takes it."""
        return f"{self.user}@{self.name}" if self.user else self.name


def route(wish: Wish) -> tuple[Hop, ...]:
    """The connections to make, one through the other; the last is the login node.

    Raises:
        NotSentError: the configuration cannot be read, or asks for what paramiko cannot do.
    """
    file = _config_file(wish)
    config = _read(file) if file.is_file() else None
    if config is None and wish.ssh_config:
        raise NotSentError(
            f"there is no file {file}", where="[transport] ssh_config", hint="correct its path"
        )
    found = _lookup(config, wish.host, file)
    target = _hop(found, wish.host, wish, port=wish.port, user=wish.user, is_target=True)
    jumps = wish.proxy_jump or _text(found, "proxyjump")
    return (*_jumps(jumps, config, wish, file, depth=0), target)


def _config_file(wish: Wish) -> Path:
    return Path(wish.ssh_config or "~/.ssh/config").expanduser()


def _jumps(
    text: str | None,
    config: "paramiko.SSHConfig | None",
    wish: Wish,
    file: Path,
    depth: int,
) -> Iterator[Hop]:
    """Jump hosts in order; only the first of a list may have jump hosts of its own."""
    if text is None or text.lower() == "none":
        return
    for index, word in enumerate(text.split(",")):
        match = _JUMP.fullmatch(word.strip())
        if match is None or depth > _MAX_JUMPS:
            raise NotSentError(
                f"jump host {word.strip()!r} is not [user@]host[:port]"
                if match is None
                else f"the jump hosts lead in a circle ({text})",
                where=f"ProxyJump of {wish.host}",
                hint=f'correct it in {file}, or write proxy_jump = "…" in the site\'s [transport]',
            )
        name = match["six"] or match["host"]
        found = _lookup(config, name, file)
        if index == 0:
            yield from _jumps(_text(found, "proxyjump"), config, wish, file, depth + 1)
        port = int(match["port"] or 22)
        yield _hop(found, name, wish, port=port, user=match["user"], is_target=False)


def _hop(
    found: "paramiko.SSHConfigDict",
    name: str,
    wish: Wish,
    *,
    port: int,
    user: str | None,
    is_target: bool,
) -> Hop:
    keys = list(found.get("identityfile", ()))
    if wish.identity_file and (is_target or not keys):
        keys = [wish.identity_file]
    files = (_text(found, "userknownhostsfile") or "").split()
    if wish.known_hosts and (is_target or not files):
        files = [wish.known_hosts]
    elif not files:
        files = ["~/.ssh/known_hosts", "~/.ssh/known_hosts2", "/etc/ssh/ssh_known_hosts"]
    try:
        configured = int(_text(found, "port") or 22)
    except ValueError:
        configured = 22
    only = (_text(found, "identitiesonly") or "").lower() == "yes"
    return Hop(
        name=name,
        address=_text(found, "hostname") or name,
        port=port if port != 22 else configured,
        user=user or _text(found, "user"),
        identity_files=tuple(str(Path(key).expanduser()) for key in keys),
        only_these_keys=bool(keys) and (only or bool(wish.identity_file and is_target)),
        known_hosts=tuple(Path(file).expanduser() for file in files),
    )


def _text(found: "paramiko.SSHConfigDict", key: str) -> str | None:
    value = found.get(key)
    return str(value) if value is not None else None


def _lookup(config: "paramiko.SSHConfig | None", name: str, file: Path) -> "paramiko.SSHConfigDict":
    import paramiko
    from paramiko.ssh_exception import CouldNotCanonicalize

    if config is None:
        return paramiko.SSHConfigDict({"hostname": name})
    try:
        found = config.lookup(name)
    except (CouldNotCanonicalize, KeyError, ValueError) as exc:
        raise _not_understood(file, str(exc)) from exc
    if found.get("proxycommand"):
        raise _not_understood(file, f"ProxyCommand of {name} is for ssh(1) alone")
    return found


def _read(file: Path) -> "paramiko.SSHConfig":
    import paramiko

    try:
        text = "\n".join(_lines(file, depth=0, in_block=False)) + "\n"
    except OSError as exc:
        raise NotSentError(f"it cannot be read: {exc.strerror}", where=str(file)) from exc
    if found := re.search(r"(?im)^\s*match\b.*\bexec\b.*$", text):
        # it would run a command through a shell, each time that a site is asked
        raise _not_understood(file, f"{found[0].strip()!r} is for ssh(1) alone")
    try:
        return paramiko.SSHConfig.from_text(text)
    except (paramiko.ConfigParseError, ValueError) as exc:
        raise _not_understood(file, str(exc)) from exc


def _lines(file: Path, *, depth: int, in_block: bool) -> Iterator[str]:
    """A file's lines with those of its Includes, which paramiko does not know, in their place."""
    for line in file.read_text(errors="replace").splitlines():
        word = _KEYWORD.match(line)
        keyword = word[1].lower() if word else ""
        in_block = in_block or keyword in {"host", "match"}
        if keyword != "include" or word is None or depth >= _MAX_INCLUDES:
            yield line
            continue
        for pattern in word[2].replace('"', "").split():
            path = Path(pattern).expanduser()
            path = path if path.is_absolute() else Path("~/.ssh").expanduser() / path
            for included in sorted(glob.glob(str(path))):  # noqa: PTH207  # an absolute pattern
                below = list(_lines(Path(included), depth=depth + 1, in_block=in_block))
                blocks = [b for b in below if re.match(r"(?i)\s*(host|match)\b", b)]
                if blocks and in_block:
                    raise _not_understood(file, f"{line.strip()!r} stands below a Host line")
                yield from below
                if blocks:
                    yield "Host *"  # what follows is for all hosts again


def _not_understood(file: Path, what: str) -> NotSentError:
    return NotSentError(f"not understood: {what}", where=str(file), hint=USE_OPENSSH)
