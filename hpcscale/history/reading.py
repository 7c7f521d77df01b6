"""What a reader hands back: the jobs, and every row that is none, with its line and the reason."""

import gzip
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from hpcscale.errors import InvalidFileError, NotFoundError
from hpcscale.history.workload import Workload

_SHOWN = 3
FORMATS = "what can be read: SWF, sacct -P, or a CSV with a line of names above its rows"


@dataclass(frozen=True)
class Skipped:
    """A row that is no job: its line in the file (from 1) and what is wrong with it."""

    line: int
    what: str


@dataclass(frozen=True)
class Reading:
    """A file read to its end: ``rows == len(workload) + len(skipped) + steps``.

    Attributes:
        workload: the jobs.
        rows: data rows in the file (no comments, no header).
        skipped: rows that could not be understood, in order.
        steps: rows that are steps of a job (``123.batch``): sacct without ``-X`` prints them.
        notes: how the file was taken, where that was not certain.
    """

    workload: Workload
    rows: int
    skipped: tuple[Skipped, ...] = ()
    steps: int = 0
    notes: tuple[str, ...] = ()

    def summary(self) -> str:
        """One sentence: how many jobs, how many rows were left out, and the first of them."""
        text = f"{self.workload.source}: {len(self.workload)} jobs in {self.rows} rows"
        if self.steps:
            text += f", {self.steps} steps"
        if self.skipped:
            first = "; ".join(f"line {s.line}: {s.what}" for s in self.skipped[:_SHOWN])
            more = ", …" if len(self.skipped) > _SHOWN else ""
            text += f", {len(self.skipped)} rows left out ({first}{more})"
        return text


def checked(reading: Reading, *, strict: bool, hint: str = "") -> Reading:
    """The same reading, unless it is of no use.

    Args:
        reading: of a whole file.
        strict: whether one bad row is too many.
        hint: what to type where it is of no use.

    Raises:
        InvalidFileError: no row is a job; or, when ``strict``, one row is not.
    """
    where = reading.workload.source
    if reading.skipped and (strict or not len(reading.workload)):
        first = reading.skipped[0]
        raise InvalidFileError(
            f"{first.what} ({len(reading.skipped)} of {reading.rows} rows cannot be used)",
            where=f"{where}:{first.line}",
            hint=hint or f"look at line {first.line}; {FORMATS}",
        )
    if not len(reading.workload):
        raise InvalidFileError("holds no job", where=where, hint=hint or FORMATS)
    return reading


def lines_of(path: Path) -> Iterator[str]:
    r"""Lines of a text file, unpacked when its first bytes are gzip's, without their line ends.

    Bytes that are no UTF-8 are shown as ``\xNN``, so that a strange user name loses no job.

    Raises:
        NotFoundError: no such file.
        InvalidFileError: it cannot be read, or the packed data is damaged.
    """
    number = 0
    try:
        with path.open("rb") as raw:
            packed = raw.read(2) == b"\x1f\x8b"
            raw.seek(0)
            for line in gzip.GzipFile(fileobj=raw) if packed else raw:
                number += 1
                text = line.decode("utf-8", "backslashreplace").rstrip("\r\n")
                yield text.removeprefix("\ufeff") if number == 1 else text
    except FileNotFoundError as exc:
        raise NotFoundError(f"no file {str(path)!r}", hint=f"ls {path.parent}") from exc
    except IsADirectoryError as exc:
        raise InvalidFileError(
            "is a directory", where=str(path), hint=f"one file of it: ls {path}"
        ) from exc
    except (EOFError, zlib.error, gzip.BadGzipFile) as exc:
        raise InvalidFileError(
            f"the gzip data is damaged: {exc}",
            where=f"{path}:{number + 1}",
            hint=f"gzip -t {path}  (and fetch the file again)",
        ) from exc
    except OSError as exc:
        raise InvalidFileError(
            f"cannot be read: {exc.strerror}", where=str(path), hint=f"ls -l {path}"
        ) from exc
