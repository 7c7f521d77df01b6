"""The site model against real Slurm on slices of traces; raw figures to results/twin.json.

    python tests/benchmarks/twin.py [NAME ...]
    python tests/benchmarks/twin.py --again     # simulate what Slurm was given once more, no lab

Some twelve minutes each, on a lab of up to 64 slurmd. Traces come from HPCSCALE_TRACES or from
beside the checkout. Nothing is fitted: each slice is the one that ``cut`` takes.
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
# file, nodes and GPUs of a node of the cluster, jobs, real minutes
SLICES = {
    "theta": ("alcf-theta-2022.swf.gz", 4360, 1, 150, 8),
    "hpc2n": ("hpc2n-2002-head.swf.gz", 240, 1, 150, 8),
    "starburst": ("starburst/table4-seed13-load1.csv.gz", 4, 8, 150, 8),
}


def again(one: dict) -> Twin:
    """The run of a result file, simulated by the model of today."""
    rows = {key: np.array(column) for key, column in one["rows"].items()}
    part = Slice(
        one["first_job_of_the_history"], rows["submit_s"], rows["run_s"], rows["limit_s"],
        rows["nodes"], rows["gpus"], one["nodes"], one["gpus_per_node"],
        one["times_multiplied_by"], one["nodes_multiplied_by"], one["load"],
    )  # fmt: skip
    start = rows["slurm_start_s"].astype(float)
    end = rows["slurm_end_s"].astype(float)
    ran = np.maximum(1, end - start).astype(np.int64)
    ours = simulate_slice(part, rows["submit_s"], ran)
    return Twin(
        part, one["clock_times_real"], rows["submit_s"].astype(float), start, end,
        ours.astype(float), one.get("jobs_not_completed", 0), one["clock_uncertain_s"],
        one["real_s"],
    )  # fmt: skip


def main() -> None:
    if sys.argv[1:] == ["--again"]:
        data = json.loads(RESULTS.read_text())
        for name, one in data.items():
            if "slurm_end_s" not in one["rows"]:
                continue  # of before ends were kept
            made = again(one)
            one.update(made.figures())
            one["rows"]["our_start_s"] = made.our_start_s.astype(int).tolist()
            print(name, json.dumps(made.figures(), indent=1), flush=True)
        RESULTS.write_text(json.dumps(data) + "\n")
        return
    for name in sys.argv[1:] or list(SLICES):
        file, nodes, gpus, jobs, minutes = SLICES[name]
        work = read_history(trace(file), gpus_per_node=gpus).workload
        part = cut(
            work, nodes, gpus, jobs=jobs, span_s=minutes * 60 * FAST,
            least_run_s=LEAST_REAL_S * FAST,
        )  # fmt: skip
        with tempfile.TemporaryDirectory(prefix="hpcscale-twin-") as folder:
            made = run_twin(part, Path(folder) / "lab", fast=FAST)
        jobs_of = {
            "submit_s": made.submit_s, "slurm_start_s": made.slurm_start_s,
            "slurm_end_s": made.slurm_end_s, "our_start_s": made.our_start_s, "run_s": part.run_s, "limit_s": part.limit_s,
            "nodes": part.nodes, "gpus": part.gpus,
        }  # fmt: skip
        data = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
        data[name] = {
            "trace": file,
            "load_of_the_machine": os.getloadavg(),
            **made.figures(),
            "rows": {key: column.astype(int).tolist() for key, column in jobs_of.items()},
        }
        RESULTS.write_text(json.dumps(data) + "\n")
        print(name, json.dumps(made.figures(), indent=1), flush=True)


if __name__ == "__main__":
    main()
