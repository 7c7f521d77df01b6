"""The ledger's file: SQLite opened, checked, migrated and written so that nothing gets lost.

It stands in a home directory, often NFS or Lustre, so: no WAL (it needs memory shared on one host,
sqlite.org/wal.html), short ``BEGIN IMMEDIATE`` writes, a long busy timeout.
"""

import contextlib
import os
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn, Self

from hpcscale.errors import NotFoundError, StateError
from hpcscale.ledger_schema import APPLICATION_ID, MIGRATIONS
from hpcscale.settings import state_dir

FILE_NAME = "ledger.sqlite3"
BUSY_TIMEOUT_S = 30.0
MIN_FILE_BYTES = 512  # the smallest page, and so the smallest file, of SQLite


def ledger_path() -> Path:
    """Where this user's ledger stands."""
    return state_dir() / FILE_NAME


class LedgerFile:
    """An open ledger file, without knowledge of what is in its tables."""

    def __init__(self, path: Path, db: sqlite3.Connection) -> None:
        self.path = path
        self._db = db
        self._lock = threading.RLock()

    @classmethod
    def open(cls, path: Path | None = None, *, create: bool = True) -> Self:
        """Open the ledger, creating or migrating it as needed.

        Args:
            path: default ``ledger_path()``.
            create: whether a missing file is made.

        Raises:
            NotFoundError: it does not exist and ``create`` is False.
            StateError: it cannot be used; the file is left as it is.
        """
        path = path or ledger_path()
        try:
            if not create and not path.exists():
                raise NotFoundError(
                    "no ledger yet: nothing was submitted from here",
                    where=str(path),
                    hint="hpcscale submit --help",
                )
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            if not path.exists():
                _create(path)
            fragment = path.stat().st_size < MIN_FILE_BYTES
        except OSError as exc:
            raise StateError(
                f"the ledger's directory cannot be used: {exc.strerror}",
                where=str(path.parent),
                hint="export HPCSCALE_STATE_DIR=a directory of yours",
            ) from exc
        if fragment:  # SQLite would take it for an empty database, and begin anew
            _refuse(path, sqlite3.DatabaseError("file is not a database: cut short"))
        try:
            db = sqlite3.connect(
                path, timeout=BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False
            )
        except sqlite3.Error as exc:
            _refuse(path, exc)
        ledger = cls(path, db)
        try:
            ledger._prepare()
        except BaseException:
            db.close()
            raise
        return ledger

    def close(self) -> None:
        """Let go of the file."""
        self._db.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _prepare(self) -> None:
        with self._errors():
            self._db.row_factory = sqlite3.Row
            self._db.execute("PRAGMA foreign_keys = ON")
            version = self._check_file()
            if self._one("PRAGMA journal_mode")[0] != "delete":
                self._db.execute("PRAGMA journal_mode = DELETE")
            if version == len(MIGRATIONS):
                return
        with self._write():
            # read again under the lock: another process may have been faster
            for step in MIGRATIONS[self._one("PRAGMA user_version")[0] :]:
                for statement in step:
                    self._db.execute(statement)
            self._db.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            self._db.execute(f"PRAGMA user_version = {len(MIGRATIONS)}")

    def _check_file(self) -> int:
        """Refuse a file that is foreign or newer than we are; its version otherwise.

        A file that is cut short or damaged is noticed by SQLite itself.
        """
        tables = self._one("SELECT count(*) FROM sqlite_master")[0]
        version: int = self._one("PRAGMA user_version")[0]
        owner = self._one("PRAGMA application_id")[0]
        aside = _aside(self.path)
        if tables and owner != APPLICATION_ID:
            raise StateError(
                "this SQLite file is not hpcscale's ledger",
                where=str(self.path),
                hint=f"export HPCSCALE_STATE_DIR=another directory, or set it aside: {aside}",
            )
        if version > len(MIGRATIONS):
            raise StateError(
                f"the ledger was written by a newer hpcscale (format {version}; "
                f"this one knows {len(MIGRATIONS)})",
                where=str(self.path),
                hint="use that newer hpcscale: pip install --upgrade hpcscale",
            )
        return version

    @contextmanager
    def writing(self) -> Iterator[sqlite3.Connection]:
        """One write transaction, for modules that keep a table of their own here."""
        with self._write():
            yield self._db

    def rows(self, sql: str, *values: Any) -> list[sqlite3.Row]:
        """All rows of a query, for modules that keep a table of their own here."""
        return self._all(sql, *values)

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """Every failure of SQLite as a StateError with the next step."""
        with self._lock:
            try:
                yield
            except sqlite3.Error as exc:
                _refuse(self.path, exc)

    @contextmanager
    def _write(self) -> Iterator[None]:
        with self._errors():
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
            except BaseException:
                if self._db.in_transaction:  # SQLite ends it itself after a disk error
                    self._db.execute("ROLLBACK")
                raise
            self._db.execute("COMMIT")

    def _all(self, sql: str, *values: Any) -> list[sqlite3.Row]:
        with self._lock:  # as ``_errors``, which costs as much as a small query
            try:
                rows: list[sqlite3.Row] = self._db.execute(sql, values).fetchall()
            except sqlite3.Error as exc:
                _refuse(self.path, exc)
            return rows

    def _one(self, sql: str, *values: Any) -> sqlite3.Row:
        row: sqlite3.Row = self._db.execute(sql, values).fetchone()
        return row

    def _insert(self, table: str, **fields: Any) -> sqlite3.Cursor:
        return self._db.execute(
            f"INSERT INTO {table} ({', '.join(fields)}) VALUES ({', '.join('?' * len(fields))})",  # noqa: S608 # names are this module's own
            tuple(fields.values()),
        )


def _create(path: Path) -> None:
    """Make the file whole at once, so that an empty one is always a damaged one.

    Killed anywhere, this leaves no ledger or a good one; of two at once both get the same.
    """
    import tempfile

    # the scripts in it are the user's own: nobody else reads them
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    os.close(handle)
    try:
        db = sqlite3.connect(name, isolation_level=None)
        try:
            db.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        finally:
            db.close()
        with contextlib.suppress(FileExistsError):
            os.link(name, path)
    except sqlite3.Error as exc:
        _refuse(path, exc)
    finally:
        Path(name).unlink()


def _aside(path: Path) -> str:
    return f"mv {path} {path}.old  # jobs at the sites are not touched by that"


def _refuse(path: Path, exc: sqlite3.Error) -> NoReturn:
    """SQLite's error in words, with what to do; nothing on disk is changed."""
    text = str(exc)
    aside = _aside(path)
    if "not a database" in text or "malformed" in text or "unsupported file format" in text:
        what, hint = (
            f"the ledger is damaged ({text})",
            f"restore it from a backup, or set it aside: {aside}",
        )
    elif "locked" in text:
        what, hint = (
            f"the ledger was busy for {BUSY_TIMEOUT_S:.0f} s ({text})",
            "another hpcscale is writing: try again",
        )
    elif "readonly" in text or "unable to open" in text:
        what, hint = (
            f"the ledger cannot be written ({text})",
            "check its owner and mode, or export HPCSCALE_STATE_DIR=a directory of yours",
        )
    elif "full" in text:
        what, hint = f"no room to write the ledger ({text})", "free some space, then try again"
    else:
        what, hint = (
            f"the ledger cannot be used ({text})",
            "export HPCSCALE_STATE_DIR=a directory on a file system with working locks",
        )
    raise StateError(what, where=str(path), hint=hint) from exc
