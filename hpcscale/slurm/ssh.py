"""``SshTransport``: one SSH connection by paramiko, reused; files over sftp.

Host keys are pinned: an unknown or changed key is refused. No agent forwarding. It reads no
``~/.ssh/config``: for jump hosts, host aliases and multi-factor logins use kind = "openssh".
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
from typing import TYPE_CHECKING

from hpcscale.errors import (
    HostKeyError,
    HpcscaleError,
    NotFoundError,
    NotSentError,
    UnreachableError,
)
from hpcscale.slurm._remote_shell import RawResult, RemoteShell
from hpcscale.slurm.transport import DEFAULT_TIMEOUT_S

if TYPE_CHECKING:
    import paramiko

_KEEPALIVE_S = 15
_ATTEMPTS = 3
_BACKOFF_S = 0.5  # doubled after each failed attempt
_SMALL_INPUT = 65536  # fits the channel's window: needs no thread
_CHUNK = 1 << 20


class SshTransport(RemoteShell):
    """Runs commands on a login node. Connects at the first use, and again after a cut.

    A command is sent once: when no answer comes after it was sent, ``UnreachableError`` is
    raised and nothing is repeated. Reads of files are repeated once.

    Args:
        host: name or address.
        port: of its sshd.
        user: remote user; default the local one.
        identity_file: private key; default the agent and the usual files in ``~/.ssh``.
        known_hosts: file with the pinned host key; default ``~/.ssh/known_hosts``.
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
        connect_timeout_s: float = 10.0,
    ) -> None:
        self._host = host
        self._port = port
        self._user = user
        self._identity = str(Path(identity_file).expanduser()) if identity_file else None
        self._known_hosts = Path(known_hosts or "~/.ssh/known_hosts").expanduser()
        self._connect_timeout_s = connect_timeout_s
        self._client: paramiko.SSHClient | None = None
        self._sftp: paramiko.SFTPClient | None = None
        self._lock = threading.RLock()
        self.name = f"{user}@{host}:{port}" if user else f"{host}:{port}"

    # ---- the connection ----

    def _connected(self) -> "paramiko.Transport":
        with self._lock:
            if self._client is not None:
                current = self._client.get_transport()
                if current is not None and current.is_active():
                    return current
                self.close()
            delay = _BACKOFF_S
            for attempt in range(1, _ATTEMPTS + 1):
                try:
                    return self._connect()
                except HostKeyError:
                    raise
                except _PermanentError as exc:
                    raise exc.error from exc
                except NotSentError:
                    if attempt == _ATTEMPTS:
                        raise
                time.sleep(delay)
                delay *= 2
        raise AssertionError("the loop returns or raises")

    def _connect(self) -> "paramiko.Transport":
        import paramiko

        client = paramiko.SSHClient()
        client.set_missing_host_key_policy(paramiko.RejectPolicy())
        try:
            if self._known_hosts.is_file():
                client.load_system_host_keys(str(self._known_hosts))
        except OSError as exc:
            raise _PermanentError(
                NotSentError(
                    f"{self._known_hosts} cannot be read: {exc.strerror}",
                    where=self.name,
                    hint="known_hosts stands in the site's [transport]; it must be yours to read",
                )
            ) from exc
        timeout = self._connect_timeout_s
        try:
            client.connect(
                self._host,
                port=self._port,
                username=self._user,
                key_filename=self._identity,
                allow_agent=self._identity is None,
                look_for_keys=self._identity is None,
                timeout=timeout,
                banner_timeout=timeout,
                auth_timeout=timeout,
                channel_timeout=timeout,
            )
        except paramiko.BadHostKeyException as exc:
            client.close()
            raise self._changed_key(exc) from exc
        except paramiko.AuthenticationException as exc:
            client.close()
            raise _PermanentError(self._login_refused(str(exc))) from exc
        except paramiko.SSHException as exc:
            client.close()
            if "not found in known_hosts" in str(exc):
                raise self._unknown_key() from exc
            if "No authentication methods available" in str(exc) or "private key" in str(exc):
                raise _PermanentError(self._login_refused(str(exc))) from exc
            raise self._no_connection(str(exc)) from exc
        except FileNotFoundError as exc:
            client.close()
            text = f"key file {exc.filename} does not exist"
            raise _PermanentError(self._login_refused(text)) from exc
        except (OSError, EOFError) as exc:
            client.close()
            if file := getattr(exc, "filename", None):
                text = f"key file {file} cannot be read: {getattr(exc, 'strerror', exc)}"
                raise _PermanentError(self._login_refused(text)) from exc
            reason = getattr(exc, "strerror", None) or str(exc) or type(exc).__name__
            raise self._no_connection(reason) from exc
        transport = client.get_transport()
        if transport is None:
            raise self._no_connection("closed at once")
        transport.set_keepalive(_KEEPALIVE_S)
        self._client = client
        return transport

    def _no_connection(self, reason: str) -> NotSentError:
        return NotSentError(
            f"cannot connect: {reason}",
            where=self.name,
            hint=f"ssh -p {self._port} {self._destination()} true",
        )

    def _login_refused(self, reason: str) -> NotSentError:
        key = f"-i {shlex.quote(self._identity)} " if self._identity else ""
        return NotSentError(
            f"the login was refused: {reason}",
            where=self.name,
            hint=f"ssh {key}-p {self._port} {self._destination()} true"
            " (identity_file and user stand in the site's [transport]; for a multi-factor login"
            ' set kind = "openssh")',
        )

    def _destination(self) -> str:
        return f"{self._user}@{self._host}" if self._user else self._host

    def _unknown_key(self) -> HostKeyError:
        return HostKeyError(
            f"its host key is not in {self._known_hosts}",
            where=self.name,
            hint=f"type: ssh-keyscan -p {self._port} {self._host} >> "
            f"{shlex.quote(str(self._known_hosts))}"
            " (and compare the fingerprint, ssh-keygen -lf, with the one the site publishes)",
        )

    def _changed_key(self, exc: "paramiko.BadHostKeyException") -> HostKeyError:
        entry = self._host if self._port == 22 else f"[{self._host}]:{self._port}"
        return HostKeyError(
            f"its host key {exc.key.fingerprint} is not the one pinned in {self._known_hosts}:"
            " this may be an attack, or a new login node",
            where=self.name,
            hint="only if the site says that its key changed, type: ssh-keygen -R "
            f"{shlex.quote(entry)} -f {shlex.quote(str(self._known_hosts))}; then ssh-keyscan -p "
            f"{self._port} {self._host} >> {shlex.quote(str(self._known_hosts))}",
        )

    def close(self) -> None:
        """Drop the connection; the next use opens another."""
        with self._lock:
            for thing in (self._sftp, self._client):
                if thing is not None:
                    with contextlib.suppress(OSError, EOFError):
                        thing.close()
            self._sftp = self._client = None

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

        channel.exec_command(line.encode())
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
        wanted = local.stat().st_mode & 0o777 if mode is None else mode
        with local.open("rb") as source, self._replacing(remote, wanted) as target:
            while block := source.read(_CHUNK):
                target.write(block)

    def put_bytes(self, data: bytes, remote: str, *, mode: int = 0o644) -> None:
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
            if self._sftp is None and self._client is not None:
                self._sftp = self._client.open_sftp()
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


class _PermanentError(Exception):
    """Carries an error that another attempt would only repeat."""

    def __init__(self, error: NotSentError) -> None:
        super().__init__(str(error))
        self.error = error
