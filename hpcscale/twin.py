"""Is the simulator right? A slice of a history on real Slurm, and simulated; both compared.

The slice runs on a lab of up to 64 slurmd on this machine, whose controller's clock is sped up.
Jobs sleep until that clock says that they have run as long as in the history. What is simulated has
the same jobs, at the times at which Slurm took them in and as long as they ran there (a busy
machine ends them late); Slurm's start is compared with ours.
"""

import datetime as dt
import re
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hpcscale.errors import LabError, UsageError
from hpcscale.history.workload import Workload
from hpcscale.lab import Lab, LabOptions
from hpcscale.lab.daemons import Site
from hpcscale.lab.model import CLOUD, ONPREM
from hpcscale.lab.process import patience
from hpcscale.simulate.site import CloudSide, Jobs, NodeClass, SiteModel, run_site

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

NODES = 64
BF_INTERVAL_S = 30  # slurm.conf(5): the defaults of a site that sets nothing
SCHEDULER = (
    f"bf_interval={BF_INTERVAL_S},bf_resolution=60,bf_window=1440,bf_max_job_test=5000,"
    "default_queue_depth=5000,batch_sched_delay=3,sched_interval=60"
)
LEAST_REAL_S = 1.0  # a shorter job is over before Slurm has noted that it runs
LONGEST = 1 / 3  # of the slice: what runs longer is cut
NO_LIMIT = 2.0  # a job without a limit gets so many times its runtime
LOAD = 1.1  # the slice whose load is nearest to it
PROBES = 12
TRIES = 5
# after the longest job, real seconds in which none ends (more of them on a busy machine)
STALLED_S = 60.0
LATE = 0.05  # of the mean runtime

# {start}: of the job by the controller's clock; {base}, {real}: that clock and the machine's
SCRIPT = """#!/bin/sh
start=$(date -d "$(squeue -h -j $SLURM_JOB_ID -o %S)" +%s)
now=$(date +%s.%N)
exec sleep $(awk -v s="$start" -v n="$now" 'BEGIN {{
  left = (s + {run_s} - ({base:.3f} + (n - {real:.3f}) * {fast})) / {fast}
  print (left > 0 ? left : 0) }}')
"""

Progress = Callable[[str, float], None]


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
        return float((simulate_slice(self, self.submit_s) + self.run_s).max()) / fast


@dataclass(frozen=True, eq=False)
class Twin:
    """What Slurm did, and what we say that it does; seconds by the controller's clock.

    Attributes:
        submit_s: when Slurm took each job in, after the first.
        slurm_start_s, slurm_end_s: of each.
        our_start_s: simulated, from the same submissions and runtimes.
        not_completed: jobs that ended in another way than COMPLETED.
        clock_s: how far off the controller's clock may have been taken to be.
        real_s: how long it took on this machine.
    """

    part: Slice
    fast: int
    submit_s: Floats
    slurm_start_s: Floats
    slurm_end_s: Floats
    our_start_s: Floats
    not_completed: int
    clock_s: float
    real_s: float

    def figures(self) -> dict[str, Any]:
        """What the comparison comes to, JSON-ready."""
        real = self.slurm_start_s - self.submit_s
        ours = self.our_start_s - self.submit_s
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
            "mean_wait_error": float(ours.mean() / real.mean() - 1) if real.sum() else 0.0,
            "start_order_correlation": rank_correlation(self.slurm_start_s, self.our_start_s),
            "wait_correlation": rank_correlation(real, ours),
            "mean_absolute_difference_s": float(np.abs(real - ours).mean()),
            "mean_run_s": float(self.part.run_s.mean()),
            "ran_longer_than_asked_s": float(late.mean()),
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


def cut(
    work: Workload, nodes: int, gpus_per_node: int, *, jobs: int, span_s: float, least_run_s: float
) -> Slice:
    """The stretch of a history, so many jobs long, whose load is nearest to ``LOAD``.

    Args:
        work: the history.
        nodes: of the cluster that it is of; more than the lab has narrows each job.
        gpus_per_node: of it; of no meaning where the history has no GPUs.
        jobs: how many.
        span_s: from the first submission to the last; all times are multiplied to fit.
        least_run_s: shorter jobs are lengthened to it.

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
    for first in range(0, len(rows) - jobs + 1, max(1, jobs // 2)):
        here = slice(first, first + jobs)
        span = float(submit[here][-1] - submit[here][0])
        if span <= 0:
            continue
        factor = span_s / span
        scaled = np.clip(run[here] * factor, least_run_s, LONGEST * span_s)
        load = float((scaled * units[here]).sum()) / (have * span_s)
        if found is None or abs(load - LOAD) < abs(found[0] - LOAD):
            found = (load, first, factor)
    if found is None:
        raise UsageError(
            f"all stretches of {jobs} jobs were submitted at one moment", hint="a larger --lab-jobs"
        )
    load, first, factor = found
    here = slice(first, first + jobs)
    runs = np.clip(run[here] * factor, least_run_s, LONGEST * span_s)
    limit = work.limit_s[rows][here] * factor
    limit = np.where(np.isfinite(limit), limit, NO_LIMIT * runs)
    minutes = np.maximum(1, np.ceil(np.maximum(limit, runs) / 60))
    return Slice(
        first_row=int(rows[first]),
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


def simulate_slice(part: Slice, submit_s: Ints, run_s: Ints | None = None) -> Ints:
    """Our start of each job, if they come at these times and run so long.

    What a minute's grid, backfill every half minute and the order of submission are here, they are
    in the lab's slurm.conf.
    """
    shared = bool(part.gpus.any())
    run_s = part.run_s if run_s is None else run_s
    jobs = Jobs(
        submit_s=submit_s,
        run_s=run_s,
        # Slurm ends a job some seconds after its limit
        limit_s=np.maximum(part.limit_s, run_s),
        need=part.gpus if shared else np.ones(len(part), dtype=np.int64),
        count=part.nodes,
        mask=np.ones(len(part), dtype=np.int64),
        part=np.zeros(len(part), dtype=np.int64),
    )
    units = part.gpus_per_node if shared else 1
    model = SiteModel(
        classes=(NodeClass("lab", part.cluster_nodes, units),),
        cloud=CloudSide(0.0),
        bf_interval_s=BF_INTERVAL_S,
        bf_max_job_test=5000,
    )
    return run_site(jobs, model).start_s


def run_twin(
    part: Slice, directory: Path, *, fast: int, progress: Progress = lambda _what, _share: None
) -> Twin:
    """Run the slice on real Slurm, then simulate it.

    Args:
        part: from ``cut``.
        directory: for the lab; it is gone afterwards.
        fast: the controller's seconds in a real one.
        progress: what is done, and the share of it.

    Raises:
        LabError: the lab does not start, Slurm takes no job, or for too long none has ended.
    """
    began = time.monotonic()
    log = directory / ONPREM / "log" / "jobcomp.log"
    options = LabOptions(
        nodes=part.cluster_nodes,
        gpus=part.gpus_per_node,
        fast=fast,
        scheduler=SCHEDULER,
        extra_conf={ONPREM: ("JobCompType=jobcomp/filetxt", f"JobCompLoc={log}")},
    )
    progress(f"starting {part.cluster_nodes} slurmd", 0.0)
    with Lab.up(directory, options, die_with_me=True) as lab:
        lab.site(CLOUD).stop("slurmctld")  # nothing moves here
        site = lab.site(ONPREM)
        clock = _clock(site, fast)
        ids = _submit(site, part, clock, progress)
        longest_s = float(part.limit_s.max()) / fast
        rows = _wait(site, log, ids, longest_s, progress)
    times = np.array([rows[job][:3] for job in ids], dtype=np.float64)
    submit, start, end = (times - times[:, :1].min()).T
    ran = np.maximum(1, end - start).astype(np.int64)
    ours = simulate_slice(part, submit.astype(np.int64), ran)
    return Twin(
        part=part,
        fast=fast,
        submit_s=submit,
        slurm_start_s=start,
        slurm_end_s=end,
        our_start_s=ours.astype(np.float64),
        not_completed=sum(rows[job].state != "COMPLETED" for job in ids),
        clock_s=clock.off_s,
        real_s=time.monotonic() - began,
    )


@dataclass(frozen=True, slots=True)
class _Clock:
    """The controller's clock was at ``base_s`` when this machine's was at ``real_s``."""

    base_s: float
    real_s: float
    off_s: float
    fast: int


def _clock(site: Site, fast: int) -> _Clock:
    """The controller's clock at a moment of this machine's, and how far off that may be.

    ``sbatch --test-only`` on an empty site answers with the controller's "now", in whole seconds;
    it lies between asking and hearing.
    """
    low, high = -np.inf, np.inf
    real = time.time()
    for _ in range(PROBES):
        before = time.time()
        done = site.exec(["sbatch", "--test-only", "-n1", "-t1", "--wrap", "true"], timeout_s=60)
        after = time.time()
        said = re.search(r"to start at (\S+)", done.stderr + done.stdout)
        if said is None:
            raise LabError(f"no answer to --test-only: {done.stderr.strip()}", where=ONPREM)
        clock = dt.datetime.fromisoformat(said[1]).astimezone().timestamp()
        low = max(low, clock - (after - real) * fast)
        high = min(high, clock + 1 - (before - real) * fast)
    return _Clock((low + high) / 2, real, float(abs(high - low) / 2), fast)


def _submit(site: Site, part: Slice, clock: _Clock, progress: Progress) -> list[str]:
    """Hand each job over at its time; their ids."""
    ids = []
    first = time.time()
    for j in range(len(part)):
        wait = first + float(part.submit_s[j]) / clock.fast - time.time()
        if wait > 0:
            time.sleep(wait)
        script = SCRIPT.format(
            run_s=int(part.run_s[j]), base=clock.base_s, real=clock.real_s, fast=clock.fast
        )
        asked = ["--exclusive"] if not part.gpus[j] else [f"--gres=gpu:{part.gpus[j]}"]
        limit = f"-t{part.limit_s[j] // 60}"
        ids.append(_sbatch(site, [f"-N{part.nodes[j]}", limit, *asked], script, f"twin{j}"))
        progress(f"{j + 1} of {len(part)} jobs submitted", (j + 1) / len(part) / 2)
    return ids


def _sbatch(site: Site, asked: list[str], script: str, name: str) -> str:
    """The job's id; a controller that is too busy to answer is asked again."""
    said = ""
    for _ in range(TRIES):
        if said:
            # it may have come through all the same
            there = site.exec(["squeue", "-h", "-a", "-n", name, "-o", "%i"], timeout_s=120)
            if there.returncode != 0:
                time.sleep(1)
                continue
            if there.stdout.strip():
                return there.stdout.split()[0]
        done = site.exec(
            ["sbatch", "--parsable", "-J", name, "--mem=100", "-o", "/dev/null", *asked],
            timeout_s=120,
            stdin=script,
        )
        if done.returncode == 0:
            return done.stdout.strip().partition(";")[0]
        said = done.stderr.strip()
    raise LabError(f"Slurm does not take a job: {said}", where=ONPREM)


class _Row(NamedTuple):
    submit_s: float
    start_s: float
    end_s: float
    state: str


def _wait(
    site: Site, log: Path, ids: list[str], longest_s: float, progress: Progress
) -> dict[str, _Row]:
    """What Slurm says of each job, once all have ended."""
    wanted = set(ids)
    rows: dict[str, _Row] = {}
    ended, since = -1, time.monotonic()
    while True:
        with suppress(FileNotFoundError):
            rows = _completed(log.read_text())
        done = wanted & set(rows)
        progress(f"{len(done)} of {len(ids)} jobs have ended", (1 + len(done) / len(ids)) / 2)
        if done == wanted:
            return rows
        if len(done) > ended:
            ended, since = len(done), time.monotonic()
        # some job always runs; none runs longer than the longest
        still_s = time.monotonic() - since
        if still_s > longest_s + patience(STALLED_S):
            raise LabError(
                f"no job has ended for {still_s:.0f} s, and {len(wanted) - len(done)} of "
                f"{len(ids)} have not; {_stuck(site)}",
                where=ONPREM,
                hint="on a machine that is less busy, or fewer jobs (--lab-jobs)",
            )
        time.sleep(0.5)


def _stuck(site: Site) -> str:
    """The queue and the nodes in a line, for the error message."""
    try:
        jobs = site.exec(["squeue", "-h", "-a", "-o", "%T %r"], timeout_s=60).stdout.splitlines()
        nodes = site.exec(["sinfo", "-h", "-p", "gpu", "-o", "%D %T"], timeout_s=60).stdout
    except LabError as exc:
        return f"Slurm does not say why: {exc}"
    queue = ", ".join(f"{jobs.count(each)} {each}" for each in dict.fromkeys(jobs))
    return f"jobs: {queue or 'none'}; nodes: {', '.join(nodes.splitlines())}"


def _completed(text: str) -> dict[str, _Row]:
    """Each line of jobcomp/filetxt (slurm.conf(5) ``JobCompType``); the last of a job counts."""

    def at(line: str, key: str) -> float:
        found = re.search(rf" {key}=(\d\S+)", line)
        if found is None:
            return float("nan")
        return dt.datetime.fromisoformat(found[1]).astimezone().timestamp()

    rows = {}
    # the last line may be half written
    for line in text.rpartition("\n")[0].splitlines():
        job = re.match(r"JobId=(\d+) ", line)
        state = re.search(r" JobState=(\S+)", line)
        if job is not None and state is not None and "SubmitTime=" in line:
            rows[job[1]] = _Row(
                at(line, "SubmitTime"), at(line, "StartTime"), at(line, "EndTime"), state[1]
            )
    return rows
