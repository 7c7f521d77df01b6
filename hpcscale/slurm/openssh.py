"""``OpensshTransport``: the user's own ssh(1) with its config, for multi-factor and jump hosts.

It never prompts (BatchMode). A multi-factor login is done once by the user, who opens a master
connection with the line that the error message holds; commands then go through it.
"""

import re
import shlex
import shutil
from pathlib import Path

from hpcscale.errors import HostKeyError, NotSentError, UnreachableError
from hpcscale.slurm._answers import bad_options
from hpcscale.slurm._process import run_process
from hpcscale.slurm._remote_shell import RawResult, RemoteShell
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


class OpensshTransport(RemoteShell):
    """Runs commands through ssh(1). See ``hpcscale.slurm.ssh.SshTransport`` for the arguments.

    Args:
        host: name, address or alias of ``~/.ssh/config``, which is honoured whole.
        port: given to ssh when it is not 22.
        user: given to ssh when set.
        identity_file: given to ssh when set, and then no other key is tried.
        known_hosts: given to ssh when set; the host key must then be in it.
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
        connect_timeout_s: float = 10.0,
    ) -> None:
        self._destination = f"{user}@{host}" if user else host
        self._host = host
        self._port = port
        self._options: list[str] = []
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
        self._control_path: str | None = None
        self.name = f"{self._destination}:{port}"

    def _exec(self, line: str, stdin: bytes | None, timeout_s: float) -> RawResult:
        argv = [
            *self._ssh(),
            "-T", "-x", "-a",
            "-o", "BatchMode=yes",
            "-o", "ClearAllForwardings=yes",
            "-o", "PermitLocalCommand=no",
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
            env=slurm_environment(),
            cwd=None,
            timeout_s=timeout_s + self._connect_timeout_s,
        )
        if done.timed_out:
            raise UnreachableError(
                f"no answer within {timeout_s:g} s", where=self.name, hint="try again"
            )
        if done.returncode == 255:  # of ssh itself, or of the command
            text = done.stderr.decode("utf-8", "replace")
            if not bad_options(done.returncode, text):
                raise self._failure(text)
        return RawResult(done.returncode, done.stdout, done.stderr)

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
        if self._control_path is None:
            self._control_path = _CONTROL_PATH
            done = run_process(
                ["ssh", *self._options, "-G", "--", self._destination],
                stdin=None,
                env=slurm_environment(),
                cwd=None,
                timeout_s=self._connect_timeout_s,
            )
            found = re.search(rb"^controlpath (.+)$", done.stdout, re.MULTILINE)
            if found and found[1].strip() != b"none":
                self._control_path = found[1].decode("utf-8", "replace").strip()
        return self._control_path

    def _failure(self, text: str) -> UnreachableError:
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        reason = lines[-1] if lines else "ssh gave up without a word"
        if _HOST_KEY.search(text):
            return self._host_key_error(changed="HAS CHANGED" in text)
        if _AUTH.search(text):
            return NotSentError(
                f"the login was refused: {reason}",
                where=self.name,
                hint=f"log in once, then try again: {self.master_command()}",
            )
        if _BEFORE_SESSION.search(text):
            return NotSentError(f"cannot connect: {reason}", where=self.name, hint="try again")
        return UnreachableError(f"the connection broke: {reason}", where=self.name)

    def master_command(self) -> str:
        """What the user types to open the master connection, all factors asked there."""
        options = [*self._options, "-o", f"ControlPath={self._control()}"]
        words = " ".join(w if w.endswith(_CONTROL_PATH) else shlex.quote(w) for w in options)
        return f"ssh -MNf {words} {shlex.quote(self._destination)}"

    def _host_key_error(self, *, changed: bool) -> HostKeyError:
        file = self._known_hosts or "~/.ssh/known_hosts"
        entry = self._host if self._port == 22 else f"[{self._host}]:{self._port}"
        scan = f"ssh-keyscan -p {self._port} {self._host} >> {file}"
        if changed:
            return HostKeyError(
                f"its host key is not the one pinned in {file}: this may be an attack, or a new"
                " login node",
                where=self.name,
                hint="only if the site says that its key changed, type: ssh-keygen -R "
                f"{shlex.quote(entry)} -f {file}; then {scan}",
            )
        return HostKeyError(
            f"its host key is not in {file}",
            where=self.name,
            hint=f"type: {scan} (and compare the fingerprint, ssh-keygen -lf, with the one the"
            " site publishes)",
        )
