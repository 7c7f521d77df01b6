"""What Slurm did beside what we say that it does."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hpcscale.twin.slices import Slice

Floats = NDArray[np.float64]

LATE = 0.05  # of the mean runtime


@dataclass(frozen=True, eq=False)
class Twin:
    """What Slurm did, and what we say that it does; seconds by the controller's clock.

    Attributes:
        submit_s: when Slurm took each job in, after the first.
        slurm_start_s, slurm_end_s: of each.
        slurm_freed_s: when its last node could be taken again.
        our_start_s: simulated, from the same submissions and runtimes; one row a draw.
        not_completed: jobs that ended in another way than COMPLETED.
        clock_s: how far off the controller's clock may have been taken to be.
        real_s: how long it took on this machine.
    """

    part: Slice
    fast: int
    submit_s: Floats
    slurm_start_s: Floats
    slurm_end_s: Floats
    slurm_freed_s: Floats
    our_start_s: Floats
    not_completed: int
    clock_s: float
    real_s: float

    def figures(self) -> dict[str, Any]:
        """What the comparison comes to, JSON-ready."""
        real = self.slurm_start_s - self.submit_s
        begin = self.our_start_s.mean(axis=0)
        ours = begin - self.submit_s
        drawn = (self.our_start_s - self.submit_s).mean(axis=1)
        late = self.slurm_end_s - self.slurm_start_s - self.part.run_s
        return {
            "jobs": len(self.part),
            "first_job_of_the_history": self.part.first_row,
            "nodes": self.part.cluster_nodes,
            "gpus_per_node": self.part.gpus_per_node,
            "load": self.part.load,
            "times_multiplied_by": self.part.stretched,
            "nodes_multiplied_by": self.part.narrowed,
            "clock_times_real": self.fast,
            "real_s": self.real_s,
            "jobs_that_waited": int((real > self.fast).sum()),
            "slurm_mean_wait_s": float(real.mean()),
            "our_mean_wait_s": float(ours.mean()),
            "our_mean_wait_least_s": float(drawn.min()),
            "our_mean_wait_most_s": float(drawn.max()),
            "our_mean_wait_deviation_s": float(drawn.std()),
            "mean_wait_error": float(ours.mean() / real.mean() - 1) if real.sum() else 0.0,
            "start_order_correlation": rank_correlation(self.slurm_start_s, begin),
            "wait_correlation": rank_correlation(real, ours),
            "mean_absolute_difference_s": float(np.abs(real - ours).mean()),
            "mean_run_s": float(self.part.run_s.mean()),
            "ran_longer_than_asked_s": float(late.mean()),
            "nodes_free_after_s": float((self.slurm_freed_s - self.slurm_end_s).mean()),
            "jobs_not_completed": self.not_completed,
            "clock_uncertain_s": self.clock_s,
        }


def short_of_cpu(made: Twin) -> bool:
    """Whether jobs ended so late that what Slurm did is of this machine more than of Slurm."""
    late = made.slurm_end_s - made.slurm_start_s - made.part.run_s
    return float(late.mean()) > LATE * float(made.part.run_s.mean())


def rank_correlation(one: Floats, other: Floats) -> float:
    """Spearman's: that of the ranks, ties at their mean."""

    def ranks(values: Floats) -> Floats:
        _, first, count = np.unique(values, return_inverse=True, return_counts=True)
        upto = np.cumsum(count)
        return np.asarray((upto - (count - 1) / 2)[first.reshape(-1)], dtype=np.float64)

    a, b = ranks(one), ranks(other)
    if len(a) < 2 or not a.std() or not b.std():
        return 1.0 if np.array_equal(a, b) else 0.0
    return float(np.corrcoef(a, b)[0, 1])
