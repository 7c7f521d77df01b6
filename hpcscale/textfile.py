"""Text files that a user names: read whole, as they are, and never more than makes sense."""

from pathlib import Path

from hpcscale.errors import InvalidFileError, NotFoundError

MAX_BYTES = 4 * 1024**2  # slurm.conf(5) max_script_size


def read_text(path: Path, name: str | None = None, *, hint: str | None = None) -> str:
    """A file's text with its line ends unchanged; a pipe or device is read as far as the limit.

    Args:
        path: the file.
        name: how messages call it; default the path.
        hint: for a file that does not exist.

    Raises:
        NotFoundError: no such file.
        InvalidFileError: it cannot be read, is no UTF-8 text, or is larger than ``MAX_BYTES``.
    """
    name = str(path) if name is None else name
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except FileNotFoundError as exc:
        raise NotFoundError(f"no file {name!r}", hint=hint) from exc
    except IsADirectoryError as exc:
        raise InvalidFileError("it is a directory", where=name) from exc
    except (OSError, ValueError) as exc:  # ValueError: a NUL in the name
        reason = getattr(exc, "strerror", None) or str(exc)
        raise InvalidFileError(f"cannot be read: {reason}", where=name) from exc
    return decode(data, name)


def decode(data: bytes, name: str) -> str:
    """UTF-8 text of at most ``MAX_BYTES``; raises as ``read_text`` does."""
    if len(data) > MAX_BYTES:
        raise InvalidFileError(
            f"larger than {MAX_BYTES // 1024**2} MB: neither a job file nor a script that Slurm"
            " takes",
            where=name,
        )
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as exc:
        raise InvalidFileError("not UTF-8 text", where=name) from exc
