"""``OpensshTransport``: the user's own ssh(1) with its config, for multi-factor and jump hosts.

It never prompts (BatchMode). A multi-factor login is done once by the user, who opens a master
connection with the line that the error message holds; commands then go through it.
"""

import re
import secrets
import shlex
import shutil
import time
from pathlib import Path

from hpcscale.errors import HostKeyError, NotSentError, UnreachableError
from hpcscale.slurm._process import run_process
from hpcscale.slurm._remote_shell import RawResult, RemoteShell, shown_name
from hpcscale.slurm.transport import slurm_environment

_CONTROL_PATH = "~/.ssh/hpcscale-%C"
# Said by ssh(1) before a session exists, so the command cannot have run.
_BEFORE_SESSION = re.compile(
    r"Connection refused|Could not resolve hostname|No route to host|Network is unreachable"
    r"|Operation timed out|Connection timed out|connect to host|kex_exchange_identification"
    r"|Connection closed by remote host.*port|banner exchange|Bad configuration option"
    r"|Too many authentication failures|Connection reset by .* port \d+\s*$",
    re.IGNORECASE,
)
_AUTH = re.compile(r"Permission denied|Authentication failed|Host is in the process", re.IGNORECASE)
_HOST_KEY = re.compile(r"Host key verification failed|HOST IDENTIFICATION HAS CHANGED")


_ATTEMPTS = 3
_BACKOFF_S = 0.5  # doubled after each failed attempt


class _NobodyThereError(NotSentError):
    """No connection was made; another attempt may help."""


class OpensshTransport(RemoteShell):
    """Runs commands through ssh(1). See ``hpcscale.slurm.ssh.SshTransport`` for the arguments.

    Args:
        host: name, address or alias of ``~/.ssh/config``, which is honoured whole.
        port: given to ssh when it is not 22.
        user: given to ssh when set.
        identity_file: given to ssh when set, and then no other key is tried.
        known_hosts: given to ssh when set; the host key must then be in it.
        proxy_jump: given to ssh when set (ssh(1), -J): the jump hosts' users, keys and host keys
            come from the configuration.
        ssh_config: given to ssh when set (-F): it is read instead of ``~/.ssh/config``.
        connect_timeout_s: for the connection alone.
    """

    def __init__(
        self,
        host: str,
        *,
        port: int = 22,
        user: str | None = None,
        identity_file: str | None = None,
        known_hosts: str | None = None,
        proxy_jump: str | None = None,
        ssh_config: str | None = None,
        connect_timeout_s: float = 10.0,
    ) -> None:
        self._destination = f"{user}@{host}" if user else host
        self._host = host
        self._port = port
        self._options: list[str] = []
        if ssh_config:
            self._options += ["-F", str(Path(ssh_config).expanduser())]
        if proxy_jump:
            self._options += ["-J", proxy_jump]
        if port != 22:
            self._options += ["-p", str(port)]
        if identity_file:
            self._options += ["-i", str(Path(identity_file).expanduser())]
            self._options += ["-o", "IdentitiesOnly=yes"]
        self._known_hosts = known_hosts
        if known_hosts:
            pinned = Path(known_hosts).expanduser()
            self._options += ["-o", f'UserKnownHostsFile="{pinned}"']
            self._options += ["-o", "StrictHostKeyChecking=yes"]
        self._connect_timeout_s = connect_timeout_s
        # ssh(1) ends with 255 for its own troubles, and so may a command that ran
        self._mark = f"hpcscale-arrived-{secrets.token_hex(6)}"
        self._found: dict[str, str] | None = None
        self.name = shown_name(host, port, user)

    def _exec(self, line: str, stdin: bytes | None, timeout_s: float) -> RawResult:
        delay_s = _BACKOFF_S
        for _ in range(1, _ATTEMPTS):
            try:
                return self._exec_once(line, stdin, timeout_s)
            except _NobodyThereError:
                time.sleep(delay_s)
                delay_s *= 2
        return self._exec_once(line, stdin, timeout_s)

    def _exec_once(self, line: str, stdin: bytes | None, timeout_s: float) -> RawResult:
        argv = [
            *self._ssh(),
            "-T", "-x", "-a",
            "-o", "BatchMode=yes",
            "-o", "ClearAllForwardings=yes",
            "-o", "PermitLocalCommand=no",
            "-o", "RemoteCommand=none",
            "-o", "LogLevel=ERROR",
            "-o", "ServerAliveInterval=15",
            "-o", "ServerAliveCountMax=3",
            "-o", f"ConnectTimeout={max(1, round(self._connect_timeout_s))}",
            "-o", "ControlMaster=no",  # use a master that is there; never leave one behind
            "--", self._destination, line,
        ]  # fmt: skip
        done = run_process(
            argv,
            stdin=stdin or b"",
            env=_quiet_environment(),
            cwd=None,
            timeout_s=timeout_s + self._connect_timeout_s,
        )
        if done.timed_out:
            raise UnreachableError(
                f"no answer within {timeout_s:g} s",
                where=self.name,
                hint="try again; a master connection that hangs is ended by: "
                + self._master_line("-O", "exit"),
            )
        pieces = done.stderr.split(f"{self._mark}\n".encode())
        errors = b"".join(pieces)
        if done.returncode == 255 and len(pieces) < 3:  # of ssh itself
            raise self._failure(errors.decode("utf-8", "replace"), arrived=len(pieces) == 2)
        return RawResult(done.returncode, done.stdout, errors)

    def close(self) -> None:
        """Nothing is held open: a master connection is the user's."""

    def _ssh(self) -> list[str]:
        if shutil.which("ssh") is None:
            raise NotSentError(
                "ssh is not installed on this machine",
                where=self.name,
                hint='install the OpenSSH client, or set kind = "ssh" in the site\'s [transport]',
            )
        return ["ssh", *self._options, "-o", f"ControlPath={self._control()}"]

    def _control(self) -> str:
        """The user's own ControlPath for the host when the config has one, else ours."""
        found = self._configuration().get("controlpath", "none")
        return _CONTROL_PATH if found == "none" else found

    def _configuration(self) -> dict[str, str]:
        """What ssh(1) makes of its configuration for this host (ssh -G); asked once."""
        if self._found is None:
            done = run_process(
                ["ssh", *self._options, "-G", "--", self._destination],
                stdin=None,
                env=_quiet_environment(),
                cwd=None,
                timeout_s=self._connect_timeout_s,
            )
            lines = done.stdout.decode("utf-8", "replace").splitlines()
            pairs = [line.partition(" ") for line in lines]
            self._found = {key: value.strip() for key, _, value in reversed(pairs)}
        return self._found

    def _failure(self, text: str, *, arrived: bool) -> UnreachableError:
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        reason = lines[-1] if lines else "ssh gave up without a word"
        if arrived:  # whatever the words: it is not to be sent again
            return UnreachableError(f"the connection broke: {reason}", where=self.name)
        if _HOST_KEY.search(text):
            return self._host_key_error(changed="HAS CHANGED" in text)
        if "ControlPath too long" in text:
            return NotSentError(
                reason,
                where=self.name,
                hint="shorten ControlPath in ~/.ssh/config: a socket's path has 107 bytes at most",
            )
        if _AUTH.search(text):
            return NotSentError(
                f"the login was refused: {reason}",
                where=self.name,
                hint=f"log in once, then try again: {self.master_command()}",
            )
        if _BEFORE_SESSION.search(text):
            return _NobodyThereError(f"cannot connect: {reason}", where=self.name, hint="try again")
        return UnreachableError(f"the connection broke: {reason}", where=self.name)

    def master_command(self) -> str:
        """What the user types to open the master connection, all factors asked there."""
        # kept alive, or told dead, so that no command hangs on it for hours
        alive = ["-o", "ServerAliveInterval=15", "-o", "ServerAliveCountMax=3"]
        return self._master_line("-fN", "-o", "ControlMaster=yes", *alive)

    def _master_line(self, *how: str) -> str:
        options = [*self._options, "-o", f"ControlPath={self._control()}"]
        # ssh expands the ~ of a ControlPath itself
        words = " ".join(w if w.endswith(_CONTROL_PATH) else shlex.quote(w) for w in options)
        return f"ssh {shlex.join(how)} {words} {shlex.quote(self._destination)}"

    def _host_key_error(self, *, changed: bool) -> HostKeyError:
        if (jump := self._configuration().get("proxyjump", "none")) != "none" and not changed:
            return HostKeyError(  # ssh does not say which of them
                f"its host key, or that of the jump host {jump} before it, is not known",
                where=self.name,
                hint="log in once through it and compare the fingerprint with the one the site "
                f"publishes: {shlex.join(['ssh', *self._options, self._destination, 'true'])}",
            )
        file = self._known_hosts or "~/.ssh/known_hosts"
        entry = self._host if self._port == 22 else f"[{self._host}]:{self._port}"
        scan = f"ssh-keyscan -p {self._port} {shlex.quote(self._host)} >> {shlex.quote(file)}"
        if changed:
            return HostKeyError(
                f"its host key is not the one pinned in {file}: this may be an attack, or a new"
                " login node",
                where=self.name,
                hint="only if the site says that its key changed, type: ssh-keygen -R "
                f"{shlex.quote(entry)} -f {shlex.quote(file)}; then {scan}",
            )
        return HostKeyError(
            f"its host key is not in {file}",
            where=self.name,
            hint=f"type: {scan} (and compare the fingerprint, ssh-keygen -lf, with the one the"
            " site publishes)",
        )


def _quiet_environment() -> dict[str, str]:
    """No window may ask for a password either: ssh(1), ENVIRONMENT (also of jump hosts' ssh)."""
    env = slurm_environment()
    for name in ("DISPLAY", "WAYLAND_DISPLAY", "SSH_ASKPASS"):
        env.pop(name, None)
    env["SSH_ASKPASS_REQUIRE"] = "never"
    return env
