"""A slice of a history on real Slurm.

It runs on a lab of up to 64 slurmd on this machine, whose controller's clock is sped up. Jobs sleep
until that clock says that they have run as long as in the history. What is simulated has the same
jobs, at the times at which Slurm took them in and as long as they held their nodes there (a busy
machine ends them late); Slurm's start is compared with ours.
"""

import datetime as dt
import re
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from hpcscale.errors import LabError
from hpcscale.lab import Lab, LabOptions
from hpcscale.lab.daemons import Site
from hpcscale.lab.model import CLOUD, ONPREM
from hpcscale.lab.process import patience
from hpcscale.twin.result import Twin
from hpcscale.twin.slices import BF_INTERVAL_S, Slice, simulate_slice
from hpcscale.units import expand_hostlist

SCHEDULER = (
    f"bf_interval={BF_INTERVAL_S},bf_resolution=60,bf_window=1440,bf_max_job_test=5000,"
    "default_queue_depth=5000,batch_sched_delay=3,sched_interval=60"
)
FREED = re.compile(
    r"^\[([^\]]+)\] (?:_job_complete: JobId=(\d+) done|debug2: node_did_resp (\S+))", re.MULTILINE
)
LEAST_REAL_S = 1.0  # a shorter job is over before Slurm has noted that it runs
PROBES = 12
TRIES = 5
# after the longest job, real seconds in which none ends (more of them on a busy machine)
STALLED_S = 60.0

# {start}: of the job by the controller's clock; {base}, {real}: that clock and the machine's
SCRIPT = """#!/bin/sh
start=$(date -d "$(squeue -h -j $SLURM_JOB_ID -o %S)" +%s)
now=$(date +%s.%N)
exec sleep $(awk -v s="$start" -v n="$now" 'BEGIN {{
  left = (s + {run_s} - ({base:.3f} + (n - {real:.3f}) * {fast})) / {fast}
  print (left > 0 ? left : 0) }}')
"""

Progress = Callable[[str, float], None]


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
    logs = directory / ONPREM / "log"
    options = LabOptions(
        nodes=part.cluster_nodes,
        gpus=part.gpus_per_node,
        fast=fast,
        scheduler=scheduler_of(fast),
        extra_conf={
            ONPREM: (
                # the model knows no tree of switches, which changes the order of the nodes
                "TopologyPlugin=topology/none",
                "JobCompType=jobcomp/filetxt",
                f"JobCompLoc={logs / 'jobcomp.log'}",
                "SlurmdTimeout=0",  # a busy machine's slurmd is silent for a minute, and not down
                "SlurmctldDebug=debug2",  # it says then when a node is free again
            )
        },
    )
    progress(f"starting {part.cluster_nodes} slurmd", 0.0)
    with Lab.up(directory, options, die_with_me=True) as lab:
        lab.site(CLOUD).stop("slurmctld")  # nothing moves here
        site = lab.site(ONPREM)
        clock = _clock(site, fast)
        ids = _submit(site, part, clock, progress)
        longest_s = float(part.limit_s.max()) / fast
        rows = _wait(site, logs / "jobcomp.log", ids, longest_s, progress)
        said = (logs / "slurmctld.log").read_text(errors="replace")
    return judge(part, [rows[job] for job in ids], freed(said, rows), clock, began)


def judge(
    part: Slice, rows: "list[_Row]", free: dict[str, float], clock: "_Clock", began: float
) -> Twin:
    """Simulate what Slurm was given, and put both side by side.

    Args:
        part: the slice.
        rows: what Slurm says of each job.
        free: when its nodes were free again, by job id.
        clock: the controller's.
        began: ``time.monotonic()`` when all began.
    """
    times = np.array([[r.submit_s, r.start_s, r.end_s, free[r.job]] for r in rows])
    submit, start, end, freed_s = (times - times[:, :1].min()).T
    held = np.maximum(1, np.rint(freed_s - start)).astype(np.int64)
    return Twin(
        part=part,
        fast=clock.fast,
        submit_s=submit,
        slurm_start_s=start,
        slurm_end_s=end,
        slurm_freed_s=freed_s,
        our_start_s=simulate_slice(part, submit.astype(np.int64), held),
        not_completed=sum(r.state != "COMPLETED" for r in rows),
        clock_s=clock.off_s,
        real_s=time.monotonic() - began,
    )


def scheduler_of(fast: int) -> str:
    """SchedulerParameters: Slurm's defaults, but for what counts its own time of computing.

    A pass that takes 50 ms takes 3 s by a clock 60 times as fast: it would be cut short, or begun
    anew, as no controller's is (slurm.conf(5) max_sched_time, bf_max_time, bf_yield_interval).
    """
    return (
        f"{SCHEDULER},max_sched_time={max(5, 3 * fast // 2)},bf_max_time=3600,"
        "bf_yield_interval=10000000,bf_continue"
    )


def freed(log: str, rows: dict[str, "_Row"]) -> dict[str, float]:
    """When the last node of each job was free again, by the controller's log (debug2).

    Between a job's end and that, its nodes are COMPLETING (squeue(1)): milliseconds on a site, and
    as many of the machine's here, which are seconds of a clock that is sped up. A node is free when
    it has answered that the job is gone.
    """
    free = {job: row.end_s for job, row in rows.items()}
    to_leave: dict[str, list[str]] = {}  # node -> jobs
    for at, ended, node in FREED.findall(log):
        if ended in rows:
            for name in expand_hostlist(rows[ended].nodes):
                to_leave.setdefault(name, []).append(ended)
        now = dt.datetime.fromisoformat(at).astimezone().timestamp()
        for job in to_leave.pop(node, []):
            free[job] = max(free[job], now)
    return free


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
    job: str
    submit_s: float
    start_s: float
    end_s: float
    state: str
    nodes: str


def _wait(
    site: Site, log: Path, ids: list[str], longest_s: float, progress: Progress
) -> dict[str, _Row]:
    """What Slurm says of each job, once all have ended."""
    wanted = set(ids)
    rows: dict[str, _Row] = {}
    ended, since = -1, time.monotonic()
    while True:
        with suppress(FileNotFoundError):
            rows = completed(log.read_text())
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


def completed(text: str) -> dict[str, _Row]:
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
        where = re.search(r" NodeList=(\S+)", line)
        if job is not None and state is not None and "SubmitTime=" in line:
            rows[job[1]] = _Row(
                job[1],
                at(line, "SubmitTime"),
                at(line, "StartTime"),
                at(line, "EndTime"),
                state[1],
                where[1] if where else "",
            )
    return rows
