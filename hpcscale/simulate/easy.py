"""EASY backfill over a workload: when each job would have started on so many nodes."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hpcscale.errors import HpcscaleError
from hpcscale.forecast import easy_kernel
from hpcscale.forecast.jit import Kernels
from hpcscale.history.workload import Workload

Ints = NDArray[np.int64]
_WORTH_COMPILING = 20_000  # jobs


class SimulationError(HpcscaleError):
    """A workload that cannot be run on this site."""


@dataclass(frozen=True, eq=False)
class Replay:
    """What became of each job of a workload.

    Attributes:
        workload: the jobs that were run: those with a runtime and no wider than the site.
        start_s: when each started.
        left_out: jobs of the original that were not run, by reason.
        deepest_queue: the most jobs that ever waited at one time.
    """

    workload: Workload
    start_s: Ints
    left_out: dict[str, int]
    deepest_queue: int

    @property
    def wait_s(self) -> NDArray[np.float64]:
        """From submission to start."""
        return np.asarray(self.start_s - np.rint(self.workload.submit_s), dtype=np.float64)


def runnable(workload: Workload, capacity: int) -> tuple[Workload, dict[str, int]]:
    """The jobs that can be run again on ``capacity`` nodes, and how many cannot, by reason."""
    unknown = ~np.isfinite(workload.runtime_s)
    wide = ~unknown & (workload.nodes > capacity)
    kept = workload.select(~unknown & ~wide)
    reasons = {"no runtime known": int(unknown.sum()), "wider than the site": int(wide.sum())}
    return kept, {reason: count for reason, count in reasons.items() if count}


def replay_easy(
    workload: Workload,
    capacity: int,
    *,
    fast: bool | None = None,
) -> Replay:
    """Run the jobs in order of submission under EASY backfill, each killed at its limit.

    Args:
        workload: the jobs; one without a limit counts as knowing its runtime.
        capacity: whole nodes, all alike.
        fast: compiled by numba; default: from 20,000 jobs on.

    Raises:
        SimulationError: nothing to run.
    """
    jobs, left_out = runnable(workload, capacity)
    if not len(jobs):
        raise SimulationError(
            f"none of {len(workload)} jobs can be run on {capacity} nodes",
            where=workload.source or None,
        )
    submit, nodes, runtime, limit = arrays(jobs)
    kernels = Kernels(easy_kernel, fast=len(jobs) >= _WORTH_COMPILING if fast is None else fast)
    native = kernels.native
    size = len(jobs)
    start = native(np.zeros(size, dtype=np.int64))
    space = [native(np.zeros(size + 1, dtype=np.int64)) for _ in range(5)]
    deepest = kernels.call.run_easy(
        capacity, native(submit), native(nodes), native(runtime), native(limit), start, *space
    )
    return Replay(jobs, np.asarray(start, dtype=np.int64), left_out, int(deepest))


def arrays(jobs: Workload) -> tuple[Ints, Ints, Ints, Ints]:
    """Whole seconds: submission, nodes, runtime (at least 1, cut at the limit), limit."""
    submit = np.rint(jobs.submit_s).astype(np.int64)
    limit = np.where(np.isfinite(jobs.limit_s), jobs.limit_s, jobs.runtime_s)
    limits = np.maximum(1, np.rint(limit)).astype(np.int64)
    runtime = np.maximum(1, np.rint(jobs.runtime_s)).astype(np.int64)
    return submit, np.maximum(1, jobs.nodes), np.minimum(runtime, limits), limits
