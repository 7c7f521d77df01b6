"""The audit log of `hpcscale burst`: each act on a job, written down before it is done.

A file of JSON lines, only ever added to. A line holds the SHA-256 of the line before it, so a line
that is changed, taken out or put in between is noticed by whoever knows a later hash. Each new
head goes to syslog, and `hpcscale burst audit --anchor SITE` keeps it in a file at a site: the log
proves as much as those places are out of reach of whoever might rewrite it. docs/audit.md.

Nothing secret is in it: job ids, sites, node lists, submission ids and hashes.
"""

import fcntl
import hashlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import msgspec

from hpcscale.burst.heads import head_line
from hpcscale.connect import Connection
from hpcscale.errors import NotFoundError, NotSentError, StateError
from hpcscale.ledger import utc_now
from hpcscale.settings import state_dir
from hpcscale.slurm.client import SlurmClient
from hpcscale.slurm.remote import private_dir
from hpcscale.slurm.transport import Completed, Transport
from hpcscale.units import JobId

FILE_NAME = "audit.log"
GENESIS = "0" * 64
_TAIL_BYTES = 65536


def audit_path() -> Path:
    """Where this user's audit log stands."""
    return state_dir() / FILE_NAME


def data_hash(data: Mapping[str, Any]) -> str:
    """SHA-256 of data as JSON with sorted keys: what a decision was made on."""
    text = json.dumps(msgspec.to_builtins(data), sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Head:
    """The last line: its number (from 1; 0 for an empty log) and its hash."""

    number: int
    sha256: str


class AuditLog:
    """One log file; several processes may add to it at once.

    Args:
        path: default ``audit_path()``; made at the first line.
    """

    def __init__(self, path: Path | None = None) -> None:
        self.path = path or audit_path()

    def add(self, act: str, **data: Any) -> Head:
        """Write a line down, durably, before the act that it tells of.

        Raises:
            StateError: it cannot be written: the act is not to be done.
        """
        try:
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            number = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
            try:
                fcntl.flock(number, fcntl.LOCK_EX)
                head = self._append(number, act, data)
            finally:
                os.close(number)
        except OSError as exc:
            raise StateError(
                f"the audit log cannot be written: {exc.strerror}",
                where=str(self.path),
                hint="nothing was done; make room, or export HPCSCALE_STATE_DIR=a directory of "
                "yours",
            ) from exc
        _to_syslog(self.path, head)
        return head

    def _append(self, file: int, act: str, data: Mapping[str, Any]) -> Head:
        size = os.fstat(file).st_size
        part = _TAIL_BYTES
        tail = os.pread(file, part, max(0, size - part))
        while part < size and b"\n" not in tail.rstrip(b"\n"):  # the last line is a long one
            part *= 2
            tail = os.pread(file, part, max(0, size - part))
        torn = bool(tail) and not tail.endswith(b"\n")  # a power cut, a full disk
        last = tail.rstrip(b"\n").rpartition(b"\n")[2]
        number, previous = 1, GENESIS
        if last:
            number = (_number(last) or self._count(file, size)) + 1
            previous = hashlib.sha256(last).hexdigest()
        line = json.dumps(
            {"n": number, "at": f"{utc_now():%Y-%m-%dT%H:%M:%S.%fZ}", "act": act, **data,
             "previous": previous},
            default=str,
        ).encode()  # fmt: skip
        text = (b"\n" if torn else b"") + line + b"\n"
        if os.write(file, text) != len(text):
            raise OSError(28, "no room")
        os.fsync(file)
        return Head(number, hashlib.sha256(line).hexdigest())

    def _count(self, file: int, size: int) -> int:
        return os.pread(file, size, 0).rstrip(b"\n").count(b"\n") + 1

    def verify(self, *, gone: bool = False) -> tuple[Head, dict[int, str]]:
        """Read all of it; the head, and each line's hash by its number.

        Args:
            gone: no log is an empty one, to be compared with heads kept elsewhere.

        Raises:
            NotFoundError: there is none.
            StateError: a line does not follow the one before it.
        """
        try:
            data = self.path.read_bytes()
        except FileNotFoundError:
            if gone:
                return Head(0, GENESIS), {}
            raise NotFoundError(
                "no audit log: nothing was moved from here",
                where=str(self.path),
                hint="the first move begins it: hpcscale burst run --policy P.toml",
            ) from None
        previous, hashes = GENESIS, dict[int, str]()
        for number, line in enumerate(data.rstrip(b"\n").split(b"\n") if data else [], 1):
            found = _parse(line)
            # a line that a crash cut short says nothing; the next one still vouches for its bytes
            if found is not None and (found.get("previous"), found.get("n")) != (previous, number):
                raise StateError(
                    f"line {number} does not follow line {number - 1}: a line was changed, "
                    "taken out or put in",
                    where=f"{self.path}:{number}",
                    hint="compare with the heads in syslog, or at the site: hpcscale burst audit "
                    "--syslog FILE, hpcscale burst audit --anchor SITE",
                )
            previous = hashlib.sha256(line).hexdigest()
            hashes[number] = previous
        return Head(len(hashes), previous), hashes


def _parse(line: bytes) -> dict[str, Any] | None:
    try:
        found = json.loads(line)
    except ValueError:
        return None
    return found if isinstance(found, dict) else None


def _number(line: bytes) -> int | None:
    found = _parse(line)
    number = found.get("n") if found else None
    return number if isinstance(number, int) else None


def _to_syslog(path: Path, head: Head) -> None:
    import syslog

    text = head_line(path, os.getuid(), head.number, head.sha256)
    syslog.syslog(syslog.LOG_NOTICE | syslog.LOG_AUTH, text)


def anchor(connection: Connection, head: Head, hashes: Mapping[int, str]) -> int:
    """Compare with the heads that a site keeps, then keep this one there too.

    Returns:
        How many earlier heads agreed.

    Raises:
        StateError: a head that the site keeps is not in the log.
        UnreachableError: no answer.
    """
    folder = f"{connection.state_dir}/audit-heads"
    private_dir(connection.transport, folder)
    path = f"{folder}/{os.uname().nodename}.{os.getuid()}"
    try:
        kept = connection.transport.read_bytes(path).decode("ascii", "replace").split("\n")
    except NotFoundError:
        kept = []
    known = [line.split() for line in kept if line.strip()]
    for words in known:
        number = int(words[0]) if words[0].isdigit() else 0
        if hashes.get(number) != words[-1]:
            raise StateError(
                f"line {number} is not what it was when {connection.site.name} was told of it: "
                "the log was rewritten or cut",
                where=str(audit_path()),
                hint=f"the heads are in {connection.site.name}:{path}",
            )
    if head.number and (not known or known[-1] != [str(head.number), head.sha256]):
        done = connection.transport.run(
            ["tee", "-a", "--", path], stdin=f"{head.number} {head.sha256}\n"
        )
        if done.returncode:
            raise StateError("the head could not be kept", where=f"{connection.site.name}:{path}")
    return len(known)


# --- each act, where it leaves this machine


def audited(connection: Connection, log: AuditLog) -> Connection:
    """The same connection; what it does to jobs and claims is written down first."""
    name = connection.site.name
    return Connection(
        site=connection.site,
        transport=cast("Transport", _Transport(connection.transport, log, name)),
        client=cast("SlurmClient", _Client(connection.client, log, name)),
        clock=connection.clock,
        _state_dir=connection._state_dir,  # noqa: SLF001 # a copy of the same class
    )


class _Client:
    """A client whose acts are written down."""

    def __init__(self, client: SlurmClient, log: AuditLog, site: str) -> None:
        self._client = client
        self._log = log
        self._site = site

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)

    def sbatch(
        self, script: str, options: Sequence[str], script_args: Sequence[str] = (), **kw: Any
    ) -> JobId:
        sha256 = hashlib.sha256(script.encode()).hexdigest()
        submission = next(iter(script_args), "")
        try:
            self._log.add("submit", site=self._site, submission=submission, script=sha256)
        except StateError as exc:
            raise NotSentError(exc.message, where=exc.where, hint=exc.hint) from exc
        return self._client.sbatch(script, options, script_args, **kw)

    def update(self, job_id: JobId, fields: Mapping[str, str]) -> bool:
        self._log.add("update", site=self._site, job=str(job_id), fields=dict(fields))
        return self._client.update(job_id, fields)

    def change(self, job_id: JobId, fields: Mapping[str, str]) -> str:
        self._log.add("update", site=self._site, job=str(job_id), fields=dict(fields))
        return self._client.change(job_id, fields)

    def cancel(self, job_id: JobId, **kw: Any) -> bool:
        self._log.add("cancel", site=self._site, job=str(job_id), **kw)
        return self._client.cancel(job_id, **kw)

    def requeue(self, job_id: JobId) -> bool:
        self._log.add("requeue", site=self._site, job=str(job_id))
        return self._client.requeue(job_id)

    def release(self, job_id: JobId) -> bool:
        self._log.add("release", site=self._site, job=str(job_id))
        return self._client.release(job_id)


class _Transport:
    """A transport whose claims and decisions are written down: files that ``ln`` makes once."""

    def __init__(self, transport: Transport, log: AuditLog, site: str) -> None:
        self._transport = transport
        self._log = log
        self._site = site
        self._written: dict[str, str] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def put_bytes(self, data: bytes, remote: str, *, mode: int = 0o600) -> None:
        if remote.endswith(".tmp") and len(data) < 64:
            self._written[remote] = data.decode("ascii", "replace").strip()
        self._transport.put_bytes(data, remote, mode=mode)

    def run(self, argv: Sequence[str], **kw: Any) -> Completed:
        if argv[0] == "ln":
            old, new = argv[-2:]
            name = new.rpartition("/")[2]
            word = self._written.pop(old, "")
            if match := re.fullmatch(r"decision\.(hs-\w+)", name):
                self._log.add("decide", site=self._site, submission=match[1], word=word)
            elif name.endswith(".revoked"):
                self._log.add("revoke", site=self._site, owner=name.removesuffix(".revoked"))
            elif "/claims/" in new:
                self._log.add("claim", site=self._site, claim=name, owner=word.split(" ")[0])
        return self._transport.run(argv, **kw)
