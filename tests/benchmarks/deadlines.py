"""Deadlines under the live decide in the site model; raw figures to results/deadlines-model.json.

Boots are lognormal (half within 3 min, 19 of 20 within 8), 5 % of the requests find no nodes. Traces
come from HPCSCALE_TRACES or from beside the checkout.

``--premium [LOAD…]``: what deadlines cost `value` more than the same jobs without them, same seeds, to
results/deadlines-premium.json.
"""

import json
import sys
from pathlib import Path

import numpy as np
from msgspec.structs import replace

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from trace_files import trace

from hpcscale.history.read import read_history
from hpcscale.rehearsal import limits_of, policy_named, rehearse
from hpcscale.simulate.overflow import Cluster, instance_of
from hpcscale.simulate.site import CloudSide, NodeClass, SiteModel

RESULTS = Path(__file__).with_name("results") / "deadlines-model.json"
PREMIUM = RESULTS.with_name("deadlines-premium.json")
CLOUD = CloudSide(2.5, boot_p50_s=180, boot_p95_s=480, no_capacity=0.05, staging_s=60)


def main() -> None:
    out = []
    for load in ("0.75", "1", "1.5"):
        work = read_history(trace(f"starburst/table4-seed13-load{load}.csv.gz")).workload
        for seed in range(3):
            one = instance_of(work, Cluster(4, 8), seed=seed)
            limit = limits_of(work.limit_s[one.rows], one.run_h * 3600, seed=seed)
            model = SiteModel((NodeClass("gpu", 4, 8),), CLOUD)
            for name in ("deadline", "value"):
                policy = replace(policy_named(name, one), deadline=True)
                made = rehearse(one, policy, model, limit, seed=seed)
                wanted = np.isfinite(one.deadline_h)
                out.append(
                    {
                        "load": load,
                        "seed": seed,
                        "policy": name,
                        "feasible": int(made.feasible.sum()),
                        "met": int(made.met[made.feasible].sum()),
                        "with_deadline": int(wanted.sum()),
                        "met_of_all": int(made.met[wanted].sum()),
                        "usd": float(made.lived.usd.sum()),
                        "over": float(made.most_over_usd),
                        "events": made.lived.events,
                    }
                )
                print(out[-1], flush=True)
    RESULTS.write_text(json.dumps(out) + "\n")


def premium(loads: list[str]) -> None:
    """`value` on the same jobs and seeds, once with the deadline rules and once without."""
    out = []
    for load in loads:
        work = read_history(trace(f"starburst/table4-seed13-load{load}.csv.gz")).workload
        for seed in range(3):
            one = instance_of(work, Cluster(4, 8), seed=seed)
            limit = limits_of(work.limit_s[one.rows], one.run_h * 3600, seed=seed)
            model = SiteModel((NodeClass("gpu", 4, 8),), CLOUD)
            with_, without = (
                rehearse(one, replace(policy_named("value", one), deadline=kept), model, limit,
                         seed=seed)
                for kept in (True, False)
            )  # fmt: skip
            wanted = np.isfinite(one.deadline_h)
            usd = float(with_.lived.usd.sum()), float(without.lived.usd.sum())
            out.append(
                {
                    "load": load,
                    "seed": seed,
                    "with_deadline": int(wanted.sum()),
                    "met_of_all": int(with_.met[wanted].sum()),
                    "met_of_all_without": int(without.met[wanted].sum()),
                    "usd": usd[0],
                    "usd_without": usd[1],
                    "premium_usd": usd[0] - usd[1],
                }
            )
            print(out[-1], flush=True)
    PREMIUM.write_text(json.dumps(out) + "\n")


if __name__ == "__main__":
    if "--premium" in sys.argv:
        premium(sys.argv[sys.argv.index("--premium") + 1 :] or ["0.75", "1", "1.5"])
    else:
        main()
