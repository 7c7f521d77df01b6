"""A faked job, and the grammar of the commands' options."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field

_LONG_OPTIONS = {
    "J": "job-name", "p": "partition", "N": "nodes", "t": "time", "o": "output", "e": "error",
    "x": "exclude", "a": "array", "G": "gpus", "n": "ntasks", "c": "cpus-per-task", "A": "account",
    "q": "qos", "D": "chdir",
}  # fmt: skip
_FLAGS = {"parsable", "exclusive", "requeue", "no-requeue", "hold", "test-only"}


@dataclass
class FakeJob:
    """One job, array element, or the pending rest of an array (``tasks`` then)."""

    number: int
    base: int
    task: int | None
    name: str
    user: str
    comment: str
    partition: str
    nodes_wanted: int
    gpus_per_node: int
    exclude: str
    limit_s: int
    runtime_s: int
    result: int
    submitted: int
    eligible: int
    tasks: list[int] = field(default_factory=list)
    throttle: int | None = None
    state: str = "PENDING"
    reason: str = "None"
    nodes: list[str] = field(default_factory=list)
    started: int | None = None
    ends: int | None = None
    status: int = 0  # wait status
    restarts: int = 0
    completing: bool = False  # requeued, and its processes are not gone yet
    held: bool = False
    dependency: str = ""  # as sbatch was given it; "?" is not faked

    def copied(self) -> "FakeJob":
        """One more of it, that shares nothing with it."""
        other = copy.copy(self)
        other.tasks, other.nodes = list(self.tasks), list(self.nodes)
        return other

    @property
    def shown_id(self) -> str:
        """Its id as squeue prints it."""
        if self.task is not None:
            return f"{self.base}_{self.task}"
        if self.tasks:
            limit = f"%{self.throttle}" if self.throttle else ""
            return f"{self.base}_[{fold_tasks(self.tasks)}{limit}]"
        return str(self.base)


def read_options(words: Sequence[str]) -> dict[str, str]:
    """Long names of options and their values; stops at the first word that is none."""
    found: dict[str, str] = {}
    queue = list(words)
    while queue and queue[0].startswith("-"):
        word = queue.pop(0)
        if word.startswith("--"):
            name, equals, value = word[2:].partition("=")
        else:
            name, equals, value = _LONG_OPTIONS.get(word[1], word[1]), word[2:], word[2:]
        if not equals and name not in _FLAGS and queue and not queue[0].startswith("-"):
            value = queue.pop(0)
        found[name] = value
    return found


def fold_tasks(tasks: list[int]) -> str:
    """``[1, 2, 3, 7]`` as ``1-3,7``."""
    spans: list[tuple[int, int]] = []
    for task in sorted(tasks):
        if spans and spans[-1][1] == task - 1:
            spans[-1] = (spans[-1][0], task)
        else:
            spans.append((task, task))
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in spans)
