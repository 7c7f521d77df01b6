"""Slices of a history: cut to a lab's size and time, and simulated."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hpcscale.errors import UsageError
from hpcscale.history.workload import Workload
from hpcscale.simulate.site import CloudSide, Jobs, NodeClass, SiteModel, run_site

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

NODES = 64
CPUS = 32  # of each; a job has one task a node
BF_INTERVAL_S = 30  # slurm.conf(5): the defaults of a site that sets nothing
LONGEST = 1 / 3  # of the slice: what runs longer is cut
NO_LIMIT = 2.0  # a job without a limit gets so many times its runtime
DRAWS = 24
LATE_S = 1
LATER_S = 3
LOAD = 1.1  # the slice whose load is nearest to it


@dataclass(frozen=True, eq=False)
class Slice:
    """Jobs as they are to be submitted; times in the controller's seconds.

    Attributes:
        first_row: of the history.
        submit_s: after the first one.
        run_s, limit_s: whole seconds; limits whole minutes.
        nodes: of each job.
        gpus: on each of them; 0 where jobs take nodes whole.
        stretched: the history's times were multiplied by it.
        narrowed: likewise numbers of nodes (at least 1 is left).
        load: node-seconds (or GPU-seconds) over what the cluster has until the last submission.
    """

    first_row: int
    submit_s: Ints
    run_s: Ints
    limit_s: Ints
    nodes: Ints
    gpus: Ints
    cluster_nodes: int
    gpus_per_node: int
    stretched: float
    narrowed: float
    load: float

    def __len__(self) -> int:
        return len(self.submit_s)

    def real_s(self, fast: int) -> float:
        """How long it will take on this machine from the first submission, as simulated."""
        return float((simulate_slice(self, self.submit_s, draws=1)[0] + self.run_s).max()) / fast


def cut(
    work: Workload, nodes: int, gpus_per_node: int, *, jobs: int, span_s: float, least_run_s: float,
    first: int | None = None,
) -> Slice:  # fmt: skip
    """The stretch of a history, so many jobs long, whose load is nearest to ``LOAD``.

    Args:
        work: the history.
        nodes: of the cluster that it is of; more than the lab has narrows each job.
        gpus_per_node: of it; of no meaning where the history has no GPUs.
        jobs: how many.
        span_s: from the first submission to the last; all times are multiplied to fit.
        least_run_s: shorter jobs are lengthened to it.
        first: take the stretch that begins with this job of those that can run, whatever its load.

    Raises:
        UsageError: too few jobs that the cluster could run.
    """
    shared = bool(work.gpus.any())
    count = np.maximum(work.nodes, 1)
    if shared:
        count = np.maximum(count, -(-work.gpus // gpus_per_node))
    per_node = -(-work.gpus // count)
    known = np.isfinite(work.runtime_s) & (work.runtime_s > 0) & (count <= nodes)
    rows = np.flatnonzero(known & (~shared | (work.gpus > 0)))
    if len(rows) < jobs:
        raise UsageError(
            f"only {len(rows)} jobs of the history can run on {nodes} nodes: --lab-jobs {jobs}",
            hint=f"--lab-jobs {max(1, len(rows))}, or another --nodes",
        )
    narrowed = min(1.0, NODES / nodes)
    cluster = min(nodes, NODES)
    width = np.maximum(1, np.rint(count[rows] * narrowed)).astype(np.int64)
    units = width * per_node[rows] if shared else width
    have = cluster * (gpus_per_node if shared else 1)
    submit, run = work.submit_s[rows], work.runtime_s[rows]
    found: tuple[float, int, float] | None = None
    last = len(rows) - jobs
    for begin in range(0, last + 1, max(1, jobs // 2)) if first is None else [min(first, last)]:
        here = slice(begin, begin + jobs)
        span = float(submit[here][-1] - submit[here][0])
        if span <= 0:
            continue
        factor = span_s / span
        scaled = np.clip(run[here] * factor, least_run_s, LONGEST * span_s)
        load = float((scaled * units[here]).sum()) / (have * span_s)
        if found is None or abs(load - LOAD) < abs(found[0] - LOAD):
            found = (load, begin, factor)
    if found is None:
        raise UsageError(
            f"all stretches of {jobs} jobs were submitted at one moment", hint="a larger --lab-jobs"
        )
    load, begin, factor = found
    here = slice(begin, begin + jobs)
    runs = np.clip(run[here] * factor, least_run_s, LONGEST * span_s)
    limit = work.limit_s[rows][here] * factor
    limit = np.where(np.isfinite(limit), limit, NO_LIMIT * runs)
    minutes = np.maximum(1, np.ceil(np.maximum(limit, runs) / 60))
    return Slice(
        first_row=int(rows[begin]),
        submit_s=np.rint((submit[here] - submit[here][0]) * factor).astype(np.int64),
        run_s=np.rint(runs).astype(np.int64),
        limit_s=(minutes * 60).astype(np.int64),
        nodes=width[here],
        gpus=per_node[rows][here] if shared else np.zeros(jobs, dtype=np.int64),
        cluster_nodes=cluster,
        gpus_per_node=gpus_per_node if shared else 0,
        stretched=factor,
        narrowed=narrowed,
        load=load,
    )


def simulate_slice(
    part: Slice, submit_s: Ints, run_s: Ints | None = None, *, draws: int = DRAWS
) -> Floats:
    """Our start of each job, if they come at these times and hold their nodes so long.

    What a minute's grid, backfill every half minute and the order of submission are here, they are
    in the lab's slurm.conf. A second decides which of two nodes is taken, and that at times who
    waits for an hour, so it is simulated more than once: backfill comes up to ``LATE_S`` later than
    its interval each time, and jobs end up to ``LATER_S`` later.

    Returns:
        One row a draw, one column a job.
    """
    shared = bool(part.gpus.any())
    run_s = part.run_s if run_s is None else run_s
    units = part.gpus_per_node if shared else 1
    model = SiteModel(
        classes=(NodeClass("lab", part.cluster_nodes, units, cpus=CPUS),),
        cloud=CloudSide(0.0),
        bf_interval_s=BF_INTERVAL_S,
        bf_late_s=LATE_S,
        bf_max_job_test=5000,
    )
    starts = np.empty((draws, len(part)))
    for seed in range(draws):
        later = np.random.default_rng(seed).integers(0, LATER_S, len(part), endpoint=True)
        lasts = run_s + later
        jobs = Jobs(
            submit_s=submit_s,
            run_s=lasts,
            # Slurm ends a job some seconds after its limit
            limit_s=np.maximum(part.limit_s, lasts),
            need=part.gpus if shared else np.ones(len(part), dtype=np.int64),
            count=part.nodes,
            mask=np.ones(len(part), dtype=np.int64),
            part=np.zeros(len(part), dtype=np.int64),
            cpus=np.ones(len(part), dtype=np.int64),
        )
        starts[seed] = run_site(jobs, model, seed=seed).start_s
    return starts
