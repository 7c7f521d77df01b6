"""The site model against real Slurm on slices of traces; raw figures to results/twin.json.

    python tests/benchmarks/twin.py [NAME ...]
    python tests/benchmarks/twin.py --again     # simulate what Slurm was given once more, no lab

Some twelve minutes each, on a lab of up to 64 slurmd. Traces come from HPCSCALE_TRACES or from
beside the checkout. Nothing is fitted.
"""

import json
import os
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
from trace_files import trace

from hpcscale.history.read import read_history
from hpcscale.twin.lab import LEAST_REAL_S, run_twin
from hpcscale.twin.result import Twin
from hpcscale.twin.slices import Slice, cut, simulate_slice

RESULTS = Path(__file__).with_name("results") / "twin.json"
FAST = 60
MINUTES = 7
# file, nodes and GPUs of a node of the cluster, jobs, the first job (None: the load nearest to 1.1)
SLICES = {
    "starburst-a": ("starburst/table4-seed13-load1.csv.gz", 4, 8, 150, 0),
    "starburst-b": ("starburst/synthetic-seed101-load1.csv.gz", 4, 8, 150, 1050),
    "hpc2n-a": ("hpc2n-2002-head.swf.gz", 240, 1, 150, 2100),
    "hpc2n-b": ("hpc2n-2002-head.swf.gz", 240, 1, 150, 3000),
    "theta-a": ("alcf-theta-2022.swf.gz", 4360, 1, 150, None),
    "philly-a": ("philly-2017-vcs.csv.gz", 4, 8, 120, 18000),
}
COLUMNS = ("submit_s", "slurm_start_s", "slurm_end_s", "slurm_freed_s")


def again(one: dict) -> Twin:
    """The run of a result file, simulated by the model of today."""
    rows = {key: np.array(column) for key, column in one["rows"].items()}
    part = Slice(
        one["first_job_of_the_history"], rows["submit_s"], rows["run_s"], rows["limit_s"],
        rows["nodes"], rows["gpus"], one["nodes"], one["gpus_per_node"],
        one["times_multiplied_by"], one["nodes_multiplied_by"], one["load"],
    )  # fmt: skip
    submit, start, end, free = (rows[key].astype(float) for key in COLUMNS)
    held = np.maximum(1, free - start).astype(np.int64)
    ours = simulate_slice(part, rows["submit_s"], held)
    return Twin(
        part, one["clock_times_real"], submit, start, end, free, ours,
        one["jobs_not_completed"], one["clock_uncertain_s"], one["real_s"],
    )  # fmt: skip


def rows_of(made: Twin) -> dict[str, list[int]]:
    """What is kept of each job."""
    part = made.part
    columns = {key: getattr(made, key) for key in COLUMNS} | {
        "our_start_s": made.our_start_s.mean(axis=0),
        "run_s": part.run_s, "limit_s": part.limit_s, "nodes": part.nodes, "gpus": part.gpus,
    }  # fmt: skip
    return {key: np.rint(column).astype(int).tolist() for key, column in columns.items()}


def keep(data: dict) -> None:
    """Write the results, all slices together first."""
    slices = {name: one for name, one in data.items() if name != "together"}
    jobs = sum(one["jobs"] for one in slices.values())
    real, ours = (
        sum(one["jobs"] * one[key] for one in slices.values()) / jobs
        for key in ("slurm_mean_wait_s", "our_mean_wait_s")
    )
    together = {
        "slices": len(slices),
        "jobs": jobs,
        "slurm_mean_wait_s": real,
        "our_mean_wait_s": ours,
        "mean_wait_error": ours / real - 1,
        "worst_error": max((one["mean_wait_error"] for one in slices.values()), key=abs),
        "least_start_order_correlation": min(
            one["start_order_correlation"] for one in slices.values()
        ),
    }
    RESULTS.write_text(json.dumps({"together": together} | slices) + "\n")


def main() -> None:
    data = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    if sys.argv[1:] == ["--again"]:
        for name, one in data.items():
            if name == "together":
                continue
            made = again(one)
            one.update(made.figures(), rows=rows_of(made))
            print(name, json.dumps(made.figures(), indent=1), flush=True)
        keep(data)
        return
    for name in sys.argv[1:] or list(SLICES):
        file, nodes, gpus, jobs, first = SLICES[name]
        work = read_history(trace(file), gpus_per_node=gpus).workload
        part = cut(
            work, nodes, gpus, jobs=jobs, span_s=MINUTES * 60 * FAST,
            least_run_s=LEAST_REAL_S * FAST, first=first,
        )  # fmt: skip
        before = os.getloadavg()
        with tempfile.TemporaryDirectory(prefix="hpcscale-twin-") as folder:
            made = run_twin(part, Path(folder) / "lab", fast=FAST)
        data[name] = {
            "trace": file,
            "load_of_the_machine": [before[0], os.getloadavg()[1], os.getloadavg()[0]],
            **made.figures(),
            "rows": rows_of(made),
        }
        keep(data)
        print(name, json.dumps(made.figures(), indent=1), flush=True)


if __name__ == "__main__":
    main()
