"""Slurm's own grammars, pure: durations, memory, job ids, TRES, and absolute times.

Sources: sbatch(1) for ``--time``, ``--mem`` and ``--array``; squeue(1) for job id forms.
"""

import datetime as dt
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from functools import total_ordering

_DURATION_WORDS = {"UNLIMITED", "INFINITE", "PARTITION_LIMIT", "NOT_SET", "N/A", ""}
_DAYS = re.compile(r"(?P<d>\d+)-(?P<h>\d+)(?::(?P<m>\d+)(?::(?P<s>\d+))?)?")
_CLOCK = re.compile(r"(?:(?P<h>\d+):)?(?P<m>\d+):(?P<s>\d+)")
_HUMAN = re.compile(r"(?:(\d+)\s*d)?\s*(?:(\d+)\s*h)?\s*(?:(\d+)\s*m(?:in)?)?\s*(?:(\d+)\s*s)?")


def parse_duration_s(text: str) -> int | None:
    """Seconds of a Slurm time limit; None for UNLIMITED and its kin.

    Accepts the forms of sbatch(1) ``--time``: ``minutes``, ``minutes:seconds``,
    ``hours:minutes:seconds``, ``days-hours``, ``days-hours:minutes``,
    ``days-hours:minutes:seconds``; and ``1d 12h 30m 10s``. Zero is 0 here, although sbatch reads
    a time limit of zero as none.

    Raises:
        ValueError: the text has none of these forms.
    """
    text = text.strip()
    if not text.isascii():  # digits of other scripts are no digits to Slurm
        raise ValueError(f"{text!r} is no duration: write minutes, HH:MM:SS or like 1h30m")
    if text.upper() in _DURATION_WORDS:
        return None
    if text.isdigit():
        return int(text) * 60
    if match := _DAYS.fullmatch(text):
        days, hours, minutes, seconds = (int(match[k] or 0) for k in "dhms")
        return ((days * 24 + hours) * 60 + minutes) * 60 + seconds
    if match := _CLOCK.fullmatch(text):
        return (int(match["h"] or 0) * 60 + int(match["m"])) * 60 + int(match["s"])
    if (match := _HUMAN.fullmatch(text)) and any(match.groups()):
        days, hours, minutes, seconds = (int(g or 0) for g in match.groups())
        return ((days * 24 + hours) * 60 + minutes) * 60 + seconds
    raise ValueError(f"{text!r} is no duration: write minutes, HH:MM:SS, D-HH:MM:SS or like 1h30m")


def format_duration(seconds: int | None) -> str:
    """Slurm's canonical ``D-HH:MM:SS`` or ``HH:MM:SS``; ``UNLIMITED`` for None."""
    if seconds is None:
        return "UNLIMITED"
    days, rest = divmod(int(seconds), 86400)
    clock = f"{rest // 3600:02}:{rest % 3600 // 60:02}:{rest % 60:02}"
    return f"{days}-{clock}" if days else clock


_MEM_UNITS_MB = {
    "": Decimal(1),
    "K": Decimal(1) / 1024,  # exact: a power of two
    "M": Decimal(1),
    "G": Decimal(1024),
    "T": Decimal(1024 * 1024),
}


def parse_memory_mb(text: str) -> int:
    """MiB of a Slurm memory size (``--mem``: default unit M; suffix K, M, G or T), rounded up.

    Raises:
        ValueError: not a memory size.
    """
    match = re.fullmatch(
        r"([0-9]+(?:\.[0-9]+)?)([KMGT]?)(?:i?B)?[cn]?", text.strip(), re.IGNORECASE | re.ASCII
    )
    if not match:
        raise ValueError(f"{text!r} is no memory size: write like 512M, 64G or 1T")
    return math.ceil(Decimal(match[1]) * _MEM_UNITS_MB[match[2].upper()])


@total_ordering
@dataclass(frozen=True)
class JobId:
    """One Slurm job, array element (``123_4``) or het component (``123+1``).

    Sorted by number: a base id comes before its elements, ``123_9`` before ``123_10``.
    """

    base: int
    array_task: int | None = None
    het_offset: int | None = None

    def __str__(self) -> str:
        if self.array_task is not None:
            return f"{self.base}_{self.array_task}"
        if self.het_offset is not None:
            return f"{self.base}+{self.het_offset}"
        return str(self.base)

    def __lt__(self, other: "JobId") -> bool:
        return self._key() < other._key()

    def _key(self) -> tuple[int, int, int]:
        task = -1 if self.array_task is None else self.array_task
        return self.base, task, -1 if self.het_offset is None else self.het_offset

    @classmethod
    def parse(cls, text: str) -> "JobId":
        """Parse ``123``, ``123_4`` or ``123+1``.

        Raises:
            ValueError: none of these.
        """
        match = re.fullmatch(r"(\d+)(?:_(\d+)|\+(\d+))?", text.strip(), re.ASCII)
        if not match or int(match[1]) == 0:
            raise ValueError(f"{text!r} is no job id: write like 123, 123_4 or 123+1")
        return cls(
            int(match[1]),
            int(match[2]) if match[2] else None,
            int(match[3]) if match[3] else None,
        )


@dataclass(frozen=True, order=True)
class JobRef:
    """One job at one site: ``site:12345``, ``site:12345_7`` or ``site:12345+1``."""

    site: str
    job_id: JobId

    def __str__(self) -> str:
        return f"{self.site}:{self.job_id}"

    @classmethod
    def parse(cls, text: str) -> "JobRef":
        """Parse ``site:id``.

        Raises:
            ValueError: no site, or no job id.
        """
        site, colon, job_id = text.strip().rpartition(":")
        if not colon or not site:
            raise ValueError(f"{text!r} is no job: write like lab-onprem:123, or a run id")
        return cls(site, JobId.parse(job_id))


_ARRAY_PART = re.compile(r"([0-9]{1,18})(?:-([0-9]{1,18})(?::([0-9]{1,18}))?)?")
_MAX_ARRAY_SIZE = 4_000_001  # the most that slurm.conf(5) lets MaxArraySize be


def parse_array(text: str) -> tuple[list[int], int | None]:
    """Indices of an ``--array`` value, and its ``%`` limit of simultaneous tasks.

    Raises:
        ValueError: not an array specification of sbatch(1).
    """
    body, _, limit = text.strip().partition("%")
    indices: set[int] = set()
    largest = 0
    try:
        for part in body.split(","):
            match = _ARRAY_PART.fullmatch(part)
            if match is None:
                raise ValueError
            first, last, step = int(match[1]), int(match[2] or match[1]), int(match[3] or 1)
            if last < first or step < 1:
                raise ValueError
            if last >= _MAX_ARRAY_SIZE:
                largest = last
                break
            indices.update(range(first, last + 1, step))
        throttle = int(limit) if "%" in text else None
        if throttle is not None and (throttle < 1 or not limit.isdigit()):
            raise ValueError
    except ValueError:
        raise ValueError(
            f"{text!r} is no array: write like 0-15, 1,3,5-7, 0-30:3 or 0-99%4"
        ) from None
    if largest:
        raise ValueError(
            f"{text!r} goes to index {largest}: no Slurm takes one above {_MAX_ARRAY_SIZE - 1}"
        )
    return sorted(indices), throttle


def parse_tres(text: str) -> dict[str, str]:
    """``cpu=4,mem=8G,gres/gpu:h100=2`` as a dict; an empty or ``(null)`` value is an empty dict."""
    if not text or text in {"(null)", "N/A"}:
        return {}
    return dict(item.partition("=")[::2] for item in text.split(",") if item)


def tres_gpus(tres: dict[str, str]) -> int:
    """GPUs in a TRES dict: ``gres/gpu``, else the sum of its typed entries."""
    if "gres/gpu" in tres:
        return int(tres["gres/gpu"])
    return sum(int(v) for k, v in tres.items() if k.startswith("gres/gpu:"))


def gres_gpus(gres: str) -> tuple[int, str | None]:
    """GPUs on a node and their type, from a GRES text such as ``gpu:h100:4(S:0-1)``."""
    count, kind = 0, None
    for item in re.sub(r"\([^)]*\)", "", gres or "").split(","):
        parts = item.split(":")
        if parts[0] != "gpu":
            continue
        if len(parts) == 1:
            count += 1
        elif parts[-1].isdigit():
            count += int(parts[-1])
            kind = parts[1] if len(parts) > 2 else kind
        else:
            count += 1
            kind = parts[1]
    return count, kind


_HOSTLIST = re.compile(r"[A-Za-z0-9_.,\[\]-]+")


def expand_hostlist(text: str) -> list[str]:
    """Names of a hostlist such as ``node[1-4,7]``, each once, sorted by number.

    Raises:
        ValueError: not a hostlist.
    """
    if not text or text in {"(null)", "None assigned", "n/a"}:
        return []
    # ClusterShell's grammar knows more (@group, a!b, a&b): Slurm's does not
    if not _HOSTLIST.fullmatch(text):
        raise ValueError(f"{text!r} is no hostlist: write like node[1-4,7]")
    if "[" not in text and "," not in text:
        return [text]
    from ClusterShell.NodeSet import RESOLVER_NOGROUP, NodeSet, NodeSetException

    try:
        return list(NodeSet(text, resolver=RESOLVER_NOGROUP))
    except NodeSetException as exc:
        raise ValueError(f"{text!r} is no hostlist: {exc}") from exc


def fold_hostlist(names: Sequence[str]) -> str:
    """Shortest hostlist for these names."""
    if not names:
        return ""
    from ClusterShell.NodeSet import RESOLVER_NOGROUP, NodeSet

    return str(NodeSet.fromlist(list(names), resolver=RESOLVER_NOGROUP))


def parse_deadline(text: str, now: dt.datetime) -> dt.datetime:
    """When results are wanted, as an aware UTC time.

    Accepts ISO 8601 (``2026-11-30T18:00``, local time unless it has an offset), a plain date
    (its end of day), ``HH:MM`` (the next one), and ``+DURATION`` from now (``+6h``, ``+1-00:00``).

    Args:
        text: what the user wrote.
        now: aware; the base of relative forms.

    Raises:
        ValueError: none of these forms.
    """
    text = text.strip()
    if text.startswith("+"):
        seconds = parse_duration_s(text[1:])
        if seconds is None:
            raise ValueError(f"{text!r} is no deadline")
        try:
            return (now + dt.timedelta(seconds=seconds)).astimezone(dt.UTC)
        except OverflowError:
            raise ValueError(f"{text!r} is no deadline: too far away") from None
    local = now.astimezone()
    if re.fullmatch(r"\d{1,2}:\d{2}", text):
        hour, minute = map(int, text.split(":"))
        if hour > 23 or minute > 59:
            raise ValueError(f"{text!r} is no time of day: write like 18:00")
        when = local.replace(hour=hour, minute=minute, second=0, microsecond=0)
        return (when if when > local else when + dt.timedelta(days=1)).astimezone(dt.UTC)
    try:
        when = dt.datetime.fromisoformat(text)
    except ValueError:
        raise ValueError(
            f"{text!r} is no deadline: write like 2026-11-30T18:00, 18:00 or +6h"
        ) from None
    if re.fullmatch(r"\d{4}-\d{2}-\d{2}", text):
        when = when.replace(hour=23, minute=59, second=59)
    try:
        return when.astimezone(dt.UTC)  # a naive time is the user's own local time
    except OverflowError:
        raise ValueError(f"{text!r} is no deadline: too far away") from None


# a comma parts thousands only: 1,5 may mean one and a half
_MONEY = re.compile(r"(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)(?:\.[0-9]+)?|\.[0-9]+")


def parse_money_usd(text: str) -> Decimal:
    """A dollar amount, ``400``, ``400.50`` or ``$400``, not negative.

    Raises:
        ValueError: not an amount.
    """
    digits = text.strip().removeprefix("$").strip()
    if not _MONEY.fullmatch(digits):
        raise ValueError(f"{text!r} is no amount in dollars: write like 400 or 39.50")
    return Decimal(digits.replace(",", ""))
