"""One `hpcscale burst run` at a time: a lock file made by ``link(2)``, which is atomic on NFS too.

``flock`` and ``fcntl`` locks are local to a host on many NFS mounts, and home directories live on
NFS. The lock only saves work: two runs at once are harmless, as every step of a move is a
compare-and-set in the ledger. So a stale lock may be taken over as soon as it is surely stale:

* same host, same boot, and the process is gone (or its id belongs to a younger process);
* same host, another boot;
* another host: not touched for ``STALE_AFTER_S`` (its holder touches it each minute).

A taker first creates ``<lock>.break-<token of the stale lock>`` by ``link(2)``: of all that see the
same stale lock one wins, and replaces it by a rename.
"""

import contextlib
import json
import os
import secrets
import socket
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import msgspec

from hpcscale.errors import StateError

STALE_AFTER_S = 900.0
TOUCH_S = 60.0


class Holder(msgspec.Struct, frozen=True, kw_only=True):
    """Who holds the lock.

    Attributes:
        started: clock ticks since boot at which the process started (``/proc/PID/stat``).
        token: random; tells this lock from the next one of the same process.
    """

    host: str
    pid: int
    boot_id: str
    started: str
    token: str

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"


class LockHeldError(StateError):
    """Somebody else holds the lock; ``holder`` says who."""

    def __init__(self, holder: Holder, path: Path) -> None:
        super().__init__(
            f"another `hpcscale burst run` is at work ({holder})",
            where=str(path),
            hint="it does the same work; `hpcscale burst status` shows it. Stop it to go first",
        )
        self.holder = holder


class RunLock:
    """Context manager that holds the lock.

    Args:
        path: of the lock file.
        patience_s: how long to wait for another holder to be done.

    Raises:
        LockHeldError: on entry, when a live process holds it.
        StateError: on entry, when the directory cannot be written.
    """

    def __init__(self, path: Path, patience_s: float = 0.0) -> None:
        self.path = path
        self._patience_s = patience_s
        self._me = _myself()
        self._stop = threading.Event()

    def __enter__(self) -> Self:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            deadline = time.monotonic() + self._patience_s
            while True:
                try:
                    self._acquire()
                    break
                except LockHeldError:
                    if time.monotonic() >= deadline:
                        raise
                time.sleep(0.2)
        except OSError as exc:
            raise StateError(
                f"the lock cannot be written: {exc.strerror}",
                where=str(self.path),
                hint="check the directory's permissions and free space, or set HPCSCALE_STATE_DIR",
            ) from exc
        # a long copy must not make the lock look abandoned to another host
        threading.Thread(target=self._keep, name="burst lock", daemon=True).start()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stop.set()
        held = _read(self.path)
        if held is not None and held.token == self._me.token:
            self.path.unlink(missing_ok=True)

    def touch(self) -> None:
        """Tell other hosts that the holder lives."""
        held = _read(self.path)
        if held is not None and held.token == self._me.token:
            os.utime(self.path)

    def _keep(self) -> None:
        while not self._stop.wait(TOUCH_S):
            with contextlib.suppress(OSError):
                self.touch()

    def _acquire(self) -> None:
        mine = self.path.with_name(f"{self.path.name}.{self._me.token}")
        mine.write_bytes(msgspec.json.encode(self._me))
        try:
            held: Holder | None = None
            for _ in range(10):
                if _link(mine, self.path):
                    return
                held = _read(self.path)
                if held is None:
                    if not self.path.exists():
                        continue  # released between our link and our read
                    held = _unreadable(self.path)
                if not _stale(held, self.path):
                    raise LockHeldError(held, self.path)
                if self._break(held, mine):
                    return
            raise LockHeldError(held or _unreadable(self.path), self.path)
        finally:
            mine.unlink(missing_ok=True)

    def _break(self, stale: Holder, mine: Path) -> bool:
        """Take over from a holder that is gone; whether we won."""
        ticket = self.path.with_name(f"{self.path.name}.break-{stale.token}")
        if not _link(mine, ticket):
            breaker = _read(ticket)
            if breaker is not None and _stale(breaker, ticket):
                ticket.unlink(missing_ok=True)  # it died between its link and its rename
            return False
        # holding the ticket: is it still the stale one that stands there?
        current = _read(self.path)
        if current is None and not self.path.exists():
            ticket.unlink(missing_ok=True)
            return False
        if current is not None and current.token != stale.token:
            ticket.unlink(missing_ok=True)
            return False
        takeover = self.path.with_name(f"{mine.name}.take")
        takeover.write_bytes(msgspec.json.encode(self._me))
        takeover.replace(self.path)
        ticket.unlink(missing_ok=True)
        return True


def _link(source: Path, target: Path) -> bool:
    """``link(2)``; a reply lost by NFS is resolved by looking who stands there."""
    try:
        os.link(source, target)
    except FileExistsError:
        try:
            return source.samefile(target)
        except FileNotFoundError:
            return False
    return True


def _read(path: Path) -> Holder | None:
    try:
        return msgspec.json.decode(path.read_bytes(), type=Holder)
    except (OSError, msgspec.MsgspecError):
        return None


def _unreadable(path: Path) -> Holder:
    """A lock whose text is broken (a full disk): stale only by its age."""
    return Holder(
        host="an unknown host", pid=0, boot_id="", started="", token=f"broken-{path.name}"
    )


def _stale(held: Holder, path: Path) -> bool:
    if held.host == socket.gethostname():
        if held.boot_id != _boot_id():
            return True
        return _process_started(held.pid) != held.started
    try:
        # written by another host's clock onto a shared disk: the server's clock on both sides
        # of the comparison would need a write, and a skew of minutes stays within the limit
        return time.time() - path.stat().st_mtime > STALE_AFTER_S
    except FileNotFoundError:
        return False


def _myself() -> Holder:
    return Holder(
        host=socket.gethostname(),
        pid=os.getpid(),
        boot_id=_boot_id(),
        started=_process_started(os.getpid()) or "",
        token=secrets.token_hex(8),
    )


def _boot_id() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return ""


def _process_started(pid: int) -> str | None:
    """When a process started, as /proc has it (proc(5), field 22 of stat); None when gone."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    fields = stat.rpartition(")")[2].split()
    return None if fields[0] in {"Z", "X"} else fields[19]


def holder_of(path: Path) -> dict[str, Any] | None:
    """Who holds the lock now, for ``burst status``; None when nobody living does."""
    held = _read(path)
    if held is None or _stale(held, path):
        return None
    return json.loads(msgspec.json.encode(held))  # type: ignore[no-any-return]  # JSON of a struct is an object
