"""One class of nodes at one moment: who runs, who waits, and when each that waits would start."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hpcscale.forecast import easy_kernel
from hpcscale.forecast.jit import Kernels
from hpcscale.forecast.plan import plan
from hpcscale.forecast.problem import Ints, simple_problem

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Queue:
    """The state of a queue; pending jobs in the order in which the scheduler looks at them.

    Attributes:
        now_s: the moment.
        capacity: nodes of the class.
        running_nodes, elapsed_s, running_limit_s: one entry a running job.
        pending_nodes, pending_limit_s: one entry a pending job.
        fast: compiled kernels.
    """

    now_s: int
    capacity: int
    running_nodes: Ints
    elapsed_s: Ints
    running_limit_s: Ints
    pending_nodes: Ints
    pending_limit_s: Ints
    fast: bool = True

    def planned_s(self, running_s: NDArray[Any], pending_s: NDArray[Any]) -> Floats:
        """Wait of each pending job in the conservative plan.

        Args:
            running_s: what each running job is believed to run in all.
            pending_s: what each pending job is believed to run.
        """
        until = self.now_s + self._rest(running_s)
        running = list(zip(self.running_nodes.tolist(), until.tolist(), strict=True))
        problem = simple_problem(
            self.now_s, self.capacity, running, self.pending_nodes, _whole(pending_s)
        )
        return np.asarray(plan(problem, fast=self.fast).wait_s, dtype=np.float64)

    def run_on_s(self, running_s: NDArray[Any], pending_s: NDArray[Any]) -> Floats:
        """Wait of each pending job when EASY backfill runs on, with nobody new in the queue.

        The scheduler of this future knows the limits alone, as the real one does; jobs end when
        they are believed to. Arguments as in ``planned_s``.
        """
        rest = self._rest(running_s)
        believed = _whole(pending_s)
        nodes = np.concatenate([self.running_nodes, self.pending_nodes]).astype(np.int64)
        runtime = np.concatenate([rest, believed])
        until_limit = np.maximum(1, self.running_limit_s - self.elapsed_s)
        limits = np.concatenate([until_limit, _whole(self.pending_limit_s)])
        size = len(nodes)
        kernels = Kernels(easy_kernel, fast=self.fast)
        start: Any = kernels.native(np.zeros(size, dtype=np.int64))
        space = [kernels.native(np.zeros(size + 1, dtype=np.int64)) for _ in range(5)]
        # running jobs come first and fit, so they all start "now"
        kernels.call.run_easy(
            max(self.capacity, int(self.running_nodes.sum())),  # nodes may have gone down since
            *(
                kernels.native(column.astype(np.int64))
                for column in (
                    np.full(size, self.now_s), nodes, runtime, np.maximum(runtime, limits)
                )
            ),
            start,
            *space,
        )  # fmt: skip
        return np.asarray(start[len(rest) :], dtype=np.float64) - self.now_s

    def _rest(self, running_s: NDArray[Any]) -> Ints:
        return _whole(np.asarray(running_s - self.elapsed_s))


def _whole(seconds: NDArray[Any]) -> Ints:
    return np.asarray(np.maximum(1, np.rint(seconds)), dtype=np.int64)


def live_point_s(limits_s: float, learned_s: float, run_on_s: float) -> float:
    """The start that a live site's forecast goes by, of the three that plans give.

    What fits now by the limits starts now: Slurm's backfill decides by limits. What only EASY
    would start now does not, since Slurm keeps a place for more than the first job; there the plan
    with learned runtimes stands. Else what running on gives.
    """
    if limits_s <= 0:
        return 0.0
    return run_on_s if run_on_s > 0 else learned_s
