"""``Workload``: the jobs of a trace or of a site's accounting, one numpy array a column.

Every reader makes this type, and the forecast, the simulator and the policies read it. Times are
seconds on the source's own axis (since 1970 where the source says so); NaN is "not known".
"""

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hpcscale.errors import InvalidFileError

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]


class Status(enum.IntEnum):
    """How a job stands in the source."""

    UNKNOWN = 0
    COMPLETED = 1
    FAILED = 2
    TIMEOUT = 3
    CANCELLED = 4
    RUNNING = 5
    PENDING = 6


CATEGORIES = ("user", "account", "partition", "qos")


@dataclass(frozen=True, eq=False)
class Workload:
    """Jobs as columns of equal length, read-only, in order of submission.

    Attributes:
        job_id: the source's own ids, text.
        submit_s: when the job was submitted; never NaN.
        start_s: when it started; NaN: it has not, or the source does not say.
        runtime_s: how long it ran; NaN: it has not ended, or the source does not say.
        limit_s: its time limit; NaN: none, or not known.
        nodes: whole nodes (the processors of a trace that counts only those).
        cpus: cores over all nodes; 0: not known.
        gpus: GPUs over all nodes; 0 for none.
        user, account, partition, qos: index into ``names[column]``; -1: not known.
        status: values of ``Status``.
        names: column -> its names, for the four index columns.
        source: the file or the query it came from, for messages.
    """

    job_id: NDArray[np.str_]
    submit_s: Floats
    start_s: Floats
    runtime_s: Floats
    limit_s: Floats
    nodes: Ints
    cpus: Ints
    gpus: Ints
    user: Ints
    account: Ints
    partition: Ints
    qos: Ints
    status: Ints
    names: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    source: str = ""

    def __post_init__(self) -> None:
        """Check shapes and values; a reader's fault shows here, with the job's id.

        Raises:
            InvalidFileError: columns of different lengths, a negative or missing value.
        """
        size = len(self.job_id)
        for name in COLUMNS:
            column = getattr(self, name)
            if column.shape != (size,):
                raise InvalidFileError(
                    f"column {name} has shape {column.shape}, not ({size},)", where=self.source
                )
            column.setflags(write=False)
        for name in CATEGORIES:
            codes = getattr(self, name)
            if size and not -1 <= codes.min() <= codes.max() < max(1, len(self.names[name])):
                raise InvalidFileError(f"column {name} names no entry", where=self.source)
        self._refuse("submit_s", ~np.isfinite(self.submit_s), "has no time of submission")
        with np.errstate(invalid="ignore"):
            for name in ("runtime_s", "limit_s", "nodes", "cpus", "gpus"):
                self._refuse(name, getattr(self, name) < 0, "is negative")
            self._refuse("start_s", self.start_s < self.submit_s, "starts before its submission")
        self._refuse("submit_s", np.diff(self.submit_s, prepend=-np.inf) < 0, "is out of order")

    def _refuse(self, column: str, bad: Bools, what: str) -> None:
        if bad.any():
            first = int(np.argmax(bad))
            raise InvalidFileError(
                f"job {self.job_id[first]} {what} ({column}); {int(bad.sum())} such jobs",
                where=self.source or None,
            )

    def __len__(self) -> int:
        return len(self.job_id)

    @property
    def wait_s(self) -> Floats:
        """From submission to start; NaN where the start is not known."""
        return self.start_s - self.submit_s

    @property
    def end_s(self) -> Floats:
        """Start plus runtime; NaN where either is not known."""
        return self.start_s + self.runtime_s

    @property
    def gpus_per_node(self) -> Ints:
        """GPUs on each node of the job, rounded up."""
        return -(-self.gpus // np.maximum(self.nodes, 1))

    def name(self, column: str, row: int) -> str:
        """The name in an index column (``user``, ``account``, ``partition``, ``qos``); or empty."""
        code = int(getattr(self, column)[row])
        return self.names[column][code] if code >= 0 else ""

    def select(self, rows: Bools | Ints | slice) -> "Workload":
        """These rows, by mask, index array or slice; the names stay whole."""
        return replace(self, **{name: getattr(self, name)[rows] for name in COLUMNS})

    def between(self, first_s: float, last_s: float) -> "Workload":
        """Jobs submitted at or after ``first_s`` and before ``last_s``."""
        low, high = np.searchsorted(self.submit_s, [first_s, last_s])
        return self.select(slice(int(low), int(high)))

    def split(self, fraction: float) -> tuple["Workload", "Workload"]:
        """The first part of the jobs by order of submission, and the rest: to tune and to score."""
        cut = int(len(self) * fraction)
        return self.select(slice(0, cut)), self.select(slice(cut, None))


COLUMNS = tuple(f.name for f in fields(Workload) if f.name not in {"names", "source"})
_FLOATS = ("submit_s", "start_s", "runtime_s", "limit_s")
_COUNTS = ("nodes", "cpus", "gpus", "status")


def make_workload(
    *,
    submit_s: ArrayLike,
    job_id: Sequence[str] | NDArray[Any] | None = None,
    names: Mapping[str, Sequence[str]] | None = None,
    source: str = "",
    **columns: ArrayLike | Sequence[str],
) -> Workload:
    """A ``Workload`` from the columns at hand; sorted by submission (stable), gaps filled in.

    Args:
        submit_s: as in ``Workload``; its length is every column's.
        job_id: default the row numbers from 1.
        names: column -> names, where ``user``, ``account``, ``partition`` or ``qos`` is given as
            indexes; a column given as text needs none.
        source: for messages.
        columns: any others of ``Workload``; not given: NaN for times, 1 for nodes, 0 for cpus,
            gpus and status, -1 for the index columns.

    Raises:
        InvalidFileError: a column does not fit.
    """
    submit = np.asarray(submit_s, dtype=np.float64)
    size = len(submit)
    unknown = set(columns) - set(COLUMNS)
    if unknown:
        raise TypeError(f"no such column: {', '.join(sorted(unknown))}")
    ids = np.arange(1, size + 1).astype(str) if job_id is None else np.asarray(job_id, dtype=str)
    made: dict[str, Any] = {"job_id": ids, "submit_s": submit}
    tables = {name: tuple((names or {}).get(name, ())) for name in CATEGORIES}
    for name in _FLOATS[1:]:
        made[name] = np.array(columns.get(name, np.full(size, np.nan)), dtype=np.float64)
    for name in _COUNTS:
        default = np.full(size, 1 if name == "nodes" else 0)
        made[name] = np.array(columns.get(name, default), dtype=np.int64)
    for name in CATEGORIES:
        values = np.asarray(columns.get(name, np.full(size, -1)))
        if values.dtype.kind in "UO":
            found, codes = np.unique(values.astype(str), return_inverse=True)
            tables[name] = tuple(str(text) for text in found)
            values = np.where(values.astype(str) == "", -1, codes)
        made[name] = values.astype(np.int64)
    if all(column.shape == (size,) for column in made.values()):
        order = np.argsort(submit, kind="stable")
        made = {name: column[order] for name, column in made.items()}
    return Workload(**made, names=tables, source=source)
