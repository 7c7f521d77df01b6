"""``FakeSlurm``: a Slurm on a dictionary and a clock that moves when told, for fast tests.

It is a ``Transport``: ``CliClient(FakeSlurm())`` is a client. It passes the contract suite that
real Slurm passes (``tests/contract``). Slurm's commands are faked; everything else, files too, is
this machine's own. What it does not fake it refuses or has no way to ask for: het jobs,
accounting, preemption, node failures, jobs of several partitions; of dependencies others than
afterok, afternotok, afterany and singleton.

A job script is not executed: it lasts as long as its ``sleep N`` lines say and ends with its last
``exit N``, of those that are not indented. A node is given whole to a job that asks for no GPUs.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path

from hpcscale.errors import NotSentError, UnreachableError
from hpcscale.slurm.local import LocalTransport
from hpcscale.slurm.transport import DEFAULT_TIMEOUT_S, Completed
from hpcscale.testing.commands import FakeCommands
from hpcscale.testing.jobs import FakeJob

__all__ = ["FakeJob", "FakeSlurm", "unreachable_transport"]

COMMANDS = frozenset({"sbatch", "squeue", "sacct", "scancel", "scontrol", "sinfo", "sdiag"})
_DOWN = "slurm_load_jobs error: Unable to contact slurm controller (connect failure)\n"


class FakeSlurm(FakeCommands):
    """A site in memory; the arguments are ``FakeController``'s."""

    name = "fake Slurm"
    is_local = True

    @cached_property
    def _files(self) -> LocalTransport:
        return LocalTransport()

    # ---- Transport ----

    def run(
        self,
        argv: Sequence[str],
        *,
        stdin: str | bytes | None = None,
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
        timeout_s: float = DEFAULT_TIMEOUT_S,
    ) -> Completed:
        """Run a Slurm command on the dictionary; any other on this machine."""
        command = argv[0].rpartition("/")[2]
        if command not in COMMANDS:
            return self._files.run(argv, stdin=stdin, env=env, cwd=cwd, timeout_s=timeout_s)
        self.calls.append(tuple(argv))
        if self.hanging:
            raise UnreachableError(
                f"{command} gave no answer within {timeout_s:g} s", where=self.name
            )
        if self.down:
            return Completed(tuple(argv), 1, "", _DOWN)
        self.tick()
        text = stdin.decode() if isinstance(stdin, bytes) else stdin or ""
        handler: Callable[[list[str], str], tuple[int, str, str]] = getattr(self, f"_{command}")
        code, out, err = handler(list(argv[1:]), text)
        self.tick()
        if command == "sbatch" and self.lose_submit:
            self.lose_submit = False
            raise UnreachableError("sbatch gave no answer", where=self.name)
        return Completed(tuple(argv), code, out, err)

    def put_file(self, local: Path, remote: str, *, mode: int | None = None) -> None:
        """As ``LocalTransport``."""
        self._files.put_file(local, remote, mode=mode)

    def put_bytes(self, data: bytes, remote: str, *, mode: int = 0o600) -> None:
        """As ``LocalTransport``."""
        self._files.put_bytes(data, remote, mode=mode)

    def get_file(self, remote: str, local: Path) -> None:
        """As ``LocalTransport``."""
        self._files.get_file(remote, local)

    def read_bytes(self, remote: str, *, offset: int = 0, limit: int | None = None) -> bytes:
        """As ``LocalTransport``."""
        return self._files.read_bytes(remote, offset=offset, limit=limit)

    def close(self) -> None:
        """Nothing is held open."""


def unreachable_transport(name: str = "nowhere") -> "FakeSlurm":
    """A site whose ssh does not connect: every command and file raises ``NotSentError``."""
    return _Unreachable(name)


class _Unreachable(FakeSlurm):
    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name

    def run(
        self,
        argv: Sequence[str],
        *,
        stdin: str | bytes | None = None,  # noqa: ARG002  # the protocol's
        env: Mapping[str, str] | None = None,  # noqa: ARG002
        cwd: str | None = None,  # noqa: ARG002
        timeout_s: float = DEFAULT_TIMEOUT_S,  # noqa: ARG002
    ) -> Completed:
        raise NotSentError(f"cannot connect, so {argv[0]} did not run", where=self.name)
