"""``SshTransport``: one SSH connection by paramiko, reused; files over sftp.

Host keys are pinned: an unknown or changed key is refused. No agent forwarding. Multi-factor
logins, and what ssh(1) alone understands in a configuration, want kind = "openssh".
"""

import contextlib
import errno
import secrets
import shlex
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from hpcscale.errors import (
    HostKeyError,
    HpcscaleError,
    NotFoundError,
    NotSentError,
    UnreachableError,
)
from hpcscale.slurm._remote_shell import RawResult, RemoteShell, shown_name
from hpcscale.slurm._ssh_login import PermanentError, login
from hpcscale.slurm._ssh_route import Hop, Wish, route
from hpcscale.slurm.transport import DEFAULT_TIMEOUT_S, mode_of, open_here

if TYPE_CHECKING:
    import paramiko

_ATTEMPTS = 3
_BACKOFF_S = 0.5  # doubled after each failed attempt
_SMALL_INPUT = 65536  # fits the channel's window: needs no thread
_CHUNK = 1 << 20


class SshTransport(RemoteShell):
    """Runs commands on a login node. Connects at the first use, and again after a cut.

    A command is sent once: when no answer comes after it was sent, ``UnreachableError`` is
    raised and nothing is repeated. Reads of files are repeated once.

    Args:
        host: name, address or alias of ``~/.ssh/config`` (see ``_ssh_route`` for what is read).
        port: of its sshd; 22 leaves it to the configuration.
        user: remote user; default the configuration's, else the local one.
        identity_file: private key, from the agent when that holds it; default the configuration's,
            the agent's and the usual files in ``~/.ssh``.
        known_hosts: file with the pinned host key; default ``~/.ssh/known_hosts``.
        proxy_jump: ``[user@]host[:port]``, several with commas; default the configuration's.
        ssh_config: read instead of ``~/.ssh/config``.
        connect_timeout_s: for each of: TCP, banner, authentication.
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
        self._wish = Wish(host, port, user, identity_file, known_hosts, proxy_jump, ssh_config)
        self._connect_timeout_s = connect_timeout_s
        self._clients: list[paramiko.SSHClient] = []  # jump hosts, then the login node
        self._sftp: paramiko.SFTPClient | None = None
        self._lock = threading.RLock()
        self.name = shown_name(host, port, user)

    # ---- the connection ----

    def _connected(self) -> "paramiko.Transport":
        with self._lock:
            if self._clients:
                current = self._clients[-1].get_transport()
                if current is not None and current.is_active():
                    return current
                self.close()
            delay_s = _BACKOFF_S
            for attempt in range(1, _ATTEMPTS + 1):
                try:
                    return self._connect()
                except HostKeyError:
                    raise
                except PermanentError as exc:
                    raise exc.error from exc
                except NotSentError:
                    if attempt == _ATTEMPTS:
                        raise
                time.sleep(delay_s)
                delay_s *= 2
        raise AssertionError("the loop returns or raises")

    def _connect(self) -> "paramiko.Transport":
        """Log in on each jump host and on the login node, one through the other."""
        hops = self._route()
        clients: list[paramiko.SSHClient] = []
        try:
            for index, hop in enumerate(hops):
                last = index == len(hops) - 1
                sock = self._through(clients[-1], hop) if clients else None
                client = login(
                    hop,
                    sock,
                    where=self.name if last else f"{self.name} through {hop.destination()}",
                    config=self._wish.ssh_config,
                    jumps=hops[:index],
                    timeout_s=self._connect_timeout_s,
                )
                clients.append(client)
        except BaseException:
            _close_all(clients)
            raise
        transport = clients[-1].get_transport()
        if transport is None:
            _close_all(clients)
            raise self._no_connection("closed at once")
        self._clients = clients
        return transport

    def _route(self) -> tuple[Hop, ...]:
        try:
            return route(self._wish)
        except NotSentError as exc:
            raise PermanentError(exc) from exc

    def _through(self, jump: "paramiko.SSHClient", hop: Hop) -> "paramiko.Channel":
        transport = jump.get_transport()
        try:
            if transport is None:
                raise EOFError("it closed at once")
            return transport.open_channel(
                "direct-tcpip",
                (hop.address, hop.port),
                ("127.0.0.1", 0),
                timeout=self._connect_timeout_s,
            )
        except (OSError, EOFError, self._ssh_error()) as exc:
            raise self._no_connection(f"the jump host does not reach {hop.name} ({exc})") from exc

    def _no_connection(self, reason: str) -> NotSentError:
        return NotSentError(
            f"cannot connect: {reason}", where=self.name, hint=f"try again, or: {self._try_line()}"
        )

    def _try_line(self) -> str:
        wish = self._wish
        destination = f"{wish.user}@{wish.host}" if wish.user else wish.host
        return shlex.join(["ssh", "-p", str(wish.port), destination, "true"])

    def close(self) -> None:
        """Drop the connection; the next use opens another."""
        with self._lock:
            if self._sftp is not None:
                with contextlib.suppress(OSError, EOFError):
                    self._sftp.close()
            _close_all(self._clients)
            self._sftp, self._clients = None, []

    # ---- commands ----

    def _exec(self, line: str, stdin: bytes | None, timeout_s: float) -> RawResult:
        channel = self._open_channel()
        try:
            return self._talk(channel, line, stdin, timeout_s)
        except HpcscaleError:
            raise
        except TimeoutError as exc:
            self.close()
            raise UnreachableError(
                f"no answer within {timeout_s:g} s", where=self.name, hint="try again"
            ) from exc
        except (OSError, EOFError, self._ssh_error()) as exc:
            self.close()
            raise UnreachableError(
                f"the connection broke: {exc or type(exc).__name__}",
                where=self.name,
                hint="try again",
            ) from exc
        finally:
            with contextlib.suppress(OSError, EOFError):
                channel.close()

    def _open_channel(self) -> "paramiko.Channel":
        """A session; nothing was asked yet, so a dead connection is simply replaced."""
        for last in (False, True):
            connection = self._connected()
            try:
                return connection.open_session(timeout=self._connect_timeout_s)
            except (OSError, EOFError, self._ssh_error()) as exc:
                self.close()
                if last:
                    raise self._no_connection(str(exc) or "no session") from exc
        raise AssertionError("the loop returns or raises")

    @staticmethod
    def _ssh_error() -> type[Exception]:
        import paramiko

        return paramiko.SSHException

    def _talk(
        self, channel: "paramiko.Channel", line: str, stdin: bytes | None, timeout_s: float
    ) -> RawResult:
        deadline = time.monotonic() + timeout_s
        channel.settimeout(timeout_s)
        errors: list[bytes] = []

        def read_errors() -> None:
            with contextlib.suppress(OSError, EOFError):
                while block := channel.recv_stderr(_CHUNK):
                    errors.append(block)

        def write(data: bytes) -> None:
            # The command may end without reading all of its input.
            with contextlib.suppress(OSError, EOFError):
                channel.sendall(data)
                channel.shutdown_write()

        channel.exec_command(line.encode("utf-8", "surrogateescape"))
        threads = [threading.Thread(target=read_errors, daemon=True)]
        data = stdin or b""
        if len(data) > _SMALL_INPUT:
            threads.append(threading.Thread(target=write, args=(data,), daemon=True))
        else:
            write(data)
        for thread in threads:
            thread.start()
        blocks = []
        while True:
            channel.settimeout(max(0.01, deadline - time.monotonic()))
            block = channel.recv(_CHUNK)
            if not block:
                break
            blocks.append(block)
        if not channel.status_event.wait(max(0.01, deadline - time.monotonic())):
            raise TimeoutError
        threads[0].join(max(0.01, deadline - time.monotonic()))
        code = channel.recv_exit_status()
        if code < 0:
            raise EOFError("it was cut before the command ended")
        return RawResult(code, b"".join(blocks), b"".join(errors))

    # ---- files ----

    def put_file(self, local: Path, remote: str, *, mode: int | None = None) -> None:
        """Copy a file by a temporary name and a rename; its mode is set before its content."""
        with open_here(local) as source:
            wanted = mode_of(source) if mode is None else mode
            self._copy(source, remote, wanted)

    def _copy(self, source: BinaryIO, remote: str, mode: int) -> None:
        with self._replacing(remote, mode) as target:
            while block := source.read(_CHUNK):
                target.write(block)

    def put_bytes(self, data: bytes, remote: str, *, mode: int = 0o600) -> None:
        """Write a file by a temporary name and a rename; its mode is set before its content."""
        with self._replacing(remote, mode) as target:
            target.write(data)

    @contextlib.contextmanager
    def _replacing(self, remote: str, mode: int) -> Iterator["paramiko.SFTPFile"]:
        temporary = f"{remote}.{secrets.token_hex(4)}.tmp"
        with self._file_errors(f"cannot write {remote}"):
            sftp = self._files()
            try:
                with sftp.open(temporary, "wx") as target:
                    target.set_pipelined(True)
                    target.chmod(mode)
                    yield target
                    written = target.tell()
                # paramiko drops the server's refusals of pipelined writes: the size is the proof
                if sftp.stat(temporary).st_size != written:
                    raise OSError(errno.ENOSPC, "only a part was written: no space left there?")
                sftp.posix_rename(temporary, remote)
            except BaseException:
                with contextlib.suppress(Exception):
                    sftp.remove(temporary)
                raise

    def get_file(self, remote: str, local: Path) -> None:
        """Copy a file to ``local``, by a temporary name and a rename."""
        temporary = local.with_name(f"{local.name}.{secrets.token_hex(4)}.tmp")
        try:
            self._twice(lambda: self._download(remote, temporary))
            temporary.replace(local)
        finally:
            temporary.unlink(missing_ok=True)

    def _download(self, remote: str, local: Path) -> None:
        try:
            target = local.open("wb")
        except OSError as exc:
            raise HpcscaleError(f"cannot write {local}: {exc.strerror}") from exc
        with target, self._file_errors(f"cannot read {remote}"):
            self._files().getfo(remote, target)

    def read_bytes(self, remote: str, *, offset: int = 0, limit: int | None = None) -> bytes:
        """Bytes ``offset`` up to ``offset + limit`` of a file."""
        blocks: list[bytes] = []

        def read() -> None:
            blocks.clear()
            with (
                self._file_errors(f"cannot read {remote}"),
                self._files().open(remote, "rb") as source,
            ):
                source.seek(offset)
                if limit is None:
                    source.prefetch()
                elif limit > _CHUNK:  # else one question and one answer for each 32 KiB
                    source.prefetch(min(source.stat().st_size or 0, offset + limit))
                blocks.append(source.read(limit))

        self._twice(read)
        return b"".join(blocks)

    def _twice(self, read: Callable[[], None]) -> None:
        try:
            read()
        except UnreachableError as exc:
            if not exc.transient:
                raise
            read()

    def _files(self) -> "paramiko.SFTPClient":
        with self._lock:
            self._connected()
            if self._sftp is None and self._clients:
                self._sftp = self._clients[-1].open_sftp()
            if self._sftp is None:
                raise self._no_connection("closed at once")
            channel = self._sftp.get_channel()
            if channel is not None:
                channel.settimeout(DEFAULT_TIMEOUT_S)
            return self._sftp

    @contextlib.contextmanager
    def _file_errors(self, what: str) -> Iterator[None]:
        try:
            yield
        except HpcscaleError:
            raise
        except FileNotFoundError as exc:
            raise NotFoundError(f"{what}: it does not exist", where=self.name) from exc
        except (TimeoutError, EOFError, self._ssh_error()) as exc:
            self.close()
            raise UnreachableError(
                f"{what}: the connection broke ({exc or type(exc).__name__})",
                where=self.name,
                hint="try again",
            ) from exc
        except OSError as exc:
            if isinstance(exc, socket.error) and exc.errno in {errno.EPIPE, errno.ECONNRESET}:
                self.close()
                raise UnreachableError(f"{what}: the connection broke", where=self.name) from exc
            raise HpcscaleError(f"{what}: {exc.strerror or exc}", where=self.name) from exc


def _close_all(clients: "list[paramiko.SSHClient]") -> None:
    """The last first: the others carry it."""
    for client in reversed(clients):
        with contextlib.suppress(OSError, EOFError):
            client.close()
