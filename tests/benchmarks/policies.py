"""Overflow policies against Compute-Wait at equal mean wait; raw figures to results/policies.json.

    python tests/benchmarks/policies.py [starburst] [philly] [philly_split] [philly_draws] [bounds]
        [spot] [split]

Traces come from HPCSCALE_TRACES or from beside the checkout. Two ways of setting knobs are shown:
in hindsight, as published comparisons do, and beforehand: one knob for all instances, found on
instances drawn here with other seeds. In the second way Compute-Wait still gets its knob in
hindsight, at the very mean wait that ``value`` came to, so the comparison favours it.
"""

import json
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from trace_files import trace

from hpcscale.history.read import read_history
from hpcscale.simulate import overflow_kernel as kernel
from hpcscale.simulate.overflow import Cluster, Expect, Rules, instance_of, simulate
from hpcscale.simulate.policies import at_mean_wait, rules_of

RESULTS = Path(__file__).with_name("results") / "policies.json"
ONE_KNOB = Rules(kernel.VALUE, 12.0, gain=3.0)  # found on seeds 1 to 4 of the same distributions
FACTORS = np.geomspace(0.003, 3, 60)
# down to waits of a second: where a front ended at longer waits its last cost stood for shorter ones
TO_SECONDS = np.concatenate([[0.0], np.geomspace(3e-5, 0.003, 14, endpoint=False), FACTORS[::3]])
DRAWS = 6
SHIFT_H = 0.1


def cheapest(front: list[tuple[float, float]], wait_h: float) -> float:
    """Cost of the best knob at this mean wait, between the knobs on both sides of it."""
    best: list[tuple[float, float]] = []
    for wait, cost in sorted(front):
        if not best or cost < best[-1][1]:
            best.append((wait, cost))
    return float(np.interp(wait_h, [w for w, _ in best], [c for _, c in best]))


def front_of(instance, make, knobs, expect=None) -> list[tuple[float, float]]:
    runs = (simulate(instance, make(float(knob)), expect) for knob in knobs)
    return [(run.mean_wait_h, float(run.cloud_cost_usd)) for run in runs]


def starburst() -> dict:
    out: dict = {"instances": []}
    names = [("table4-seed13", s) for s in ("0.75", "1", "1.5")]
    names += [(f"synthetic-seed{n}", s) for s in ("0.75", "1", "1.5") for n in range(101, 111)]
    for name, load in names:
        began = time.perf_counter()
        work = read_history(trace(f"starburst/{name}-load{load}.csv.gz")).workload
        one = instance_of(work, Cluster(4, 8))
        reference = simulate(one, rules_of("constant-wait", one))
        target = reference.mean_wait_h
        no_wait = simulate(one, rules_of("no-wait", one))
        theirs = at_mean_wait("compute-wait", rules_of("compute-wait", one), one, target).outcome
        ours = at_mean_wait("value", rules_of("value", one), one, target).outcome
        fixed_rules = Rules(ONE_KNOB.rule, ONE_KNOB.knob, gain=ONE_KNOB.gain, budget_h=target)
        fixed = simulate(one, fixed_rules)
        front = front_of(one, lambda f: Rules(kernel.PATIENCE_BY_COST, f), FACTORS)
        row = {
            "instance": name,
            "load": load,
            "target_wait_h": target,
            "no_wait_usd": float(no_wait.cloud_cost_usd),
            "constant_wait_usd": float(reference.cloud_cost_usd),
            "compute_wait_usd": float(theirs.cloud_cost_usd),
            "value_usd": float(ours.cloud_cost_usd),
            "value_wait_h": ours.mean_wait_h,
            "ratio": float(ours.cloud_cost_usd / theirs.cloud_cost_usd),
            "one_knob_usd": float(fixed.cloud_cost_usd),
            "one_knob_wait_h": fixed.mean_wait_h,
            "one_knob_ratio": float(fixed.cloud_cost_usd) / cheapest(front, fixed.mean_wait_h),
            "seconds": time.perf_counter() - began,
        }
        out["instances"].append(row)
        print(row["instance"], load, f"{row['ratio']:.3f} {row['one_knob_ratio']:.3f}", flush=True)
    out["summary"] = {}
    for load in ("0.75", "1", "1.5"):
        rows = [r for r in out["instances"] if r["load"] == load and "synth" in r["instance"]]
        out["summary"][load] = {
            key: {
                "mean": float(np.mean([r[key] for r in rows])),
                "worst": float(np.max([r[key] for r in rows])),
            }
            for key in ("ratio", "one_knob_ratio")
        }
    return out


def philly_jobs():
    """Shared virtual clusters as one, jobs of at most 8 GPUs, days 25 to 109."""
    work = read_history(trace("philly-2017-vcs.csv.gz")).workload
    days = (work.submit_s - work.submit_s[0]) / 86400
    return work.select((work.gpus <= 8) & (days >= 25) & (days <= 109))


def by_cost(factor: float) -> Rules:
    return Rules(kernel.PATIENCE_BY_COST, factor)


def philly() -> dict:
    """Learned runtimes, knob fronts; and what following the cheaper policy so far would have come to."""
    work = philly_jobs()
    expect = Expect(learned=True)
    knobs = np.geomspace(1.25, 1280, 31)
    out: dict = {"jobs": len(work), "waits_h": [0.03, 0.08, 0.15], "clusters": []}
    for nodes in (64, 40, 24):
        one = instance_of(work, Cluster(nodes, 8))
        theirs = [simulate(one, by_cost(float(f)), expect) for f in TO_SECONDS]
        ours = [simulate(one, Rules(kernel.VALUE, float(mu)), expect) for mu in knobs]
        front, value = (
            [(run.mean_wait_h, float(run.cloud_cost_usd)) for run in runs]
            for runs in (theirs, ours)
        )
        followed = [
            {
                "hour_usd": float(mu),
                "wait_h": run.mean_wait_h,
                "ratio": float(run.cloud_cost_usd) / cheapest(front, run.mean_wait_h),
                "ratio_followed": follow(run, theirs, float(mu), front),
            }
            for mu, run in zip(knobs, ours, strict=True)
        ]
        row = {
            "nodes": nodes,
            "load": float(one.gpu_hours.sum() / (nodes * 8 * one.arrival_h[-1])),
            "compute_wait_front": front,
            "value_front": value,
            "ratio": [
                cheapest(value, w) / cheapest(front, w)
                if min(x for x, _ in value) <= w <= max(x for x, _ in value)
                else None
                for w in out["waits_h"]
            ],
            "bare_knobs": followed,
        }
        out["clusters"].append(row)
        print(nodes, row["ratio"], max(k["ratio"] for k in followed), flush=True)
    return out


def follow(ours, theirs, hour_usd: float, front, looks: int = 100) -> float:
    """The ratio of a mixture of ``value`` and Compute-Wait with any knob, No-Wait among them.

    It looks so many times, and from then on does what has cost least up to there, in dollars and in
    waits at what an hour is worth, once that is 2 % less than what it does. Each policy's figures
    are of a run of its own, which favours the mixture: it switches for nothing.
    """
    runs = [ours, *theirs]
    usd, wait = np.array([run.usd for run in runs]), np.array([run.wait_h for run in runs])
    so_far, now, paid, waited = np.zeros(len(runs)), 0, 0.0, 0.0
    for part in np.array_split(np.arange(usd.shape[1]), looks):
        best = int(np.argmin(so_far))
        now = best if so_far[best] < 0.98 * so_far[now] else now
        paid += usd[now, part].sum()
        waited += wait[now, part].sum()
        so_far += usd[:, part].sum(axis=1) + hour_usd * wait[:, part].sum(axis=1)
    return float(paid / cheapest(front, waited / usd.shape[1]))


def philly_split() -> dict:
    """Philly with one knob set on the first 40 % of the jobs, scored on the rest.

    Compute-Wait gets its best knob in hindsight on the rest, at the very mean wait that ``value``
    came to there, and the better of two kinds of knowledge: ``value``'s, and the mean of the last
    two ended jobs (its own published one; kept in policies.json from an earlier run).
    """
    kept = json.loads(RESULTS.read_text())["philly_last_two"]
    work = philly_jobs()
    expect = Expect(learned=True)
    out: dict = {"jobs": len(work), "waits_h": [0.03, 0.08, 0.15], "clusters": []}
    for nodes in (64, 40, 24):
        one = instance_of(work, Cluster(nodes, 8))
        cut = int(0.4 * len(one))
        early, late = one.part(slice(0, cut)), one.part(slice(cut, None))
        front = front_of(late, by_cost, TO_SECONDS, expect)
        both = front + [tuple(point) for point in kept[str(nodes)]]
        rows = []
        for knob in np.geomspace(1.25, 80, 7):
            runs = [
                simulate(part, Rules(kernel.VALUE, float(knob)), expect) for part in (early, late)
            ]
            wait, cost = runs[1].mean_wait_h, float(runs[1].cloud_cost_usd)
            rows.append(
                {"hour_usd": float(knob), "early_wait_h": runs[0].mean_wait_h, "wait_h": wait,
                 "usd": cost, "ratio_same_knowledge": cost / cheapest(front, wait),
                 "ratio": cost / cheapest(both, wait)}
            )  # fmt: skip
            print(nodes, rows[-1], flush=True)
        # the least value of an hour that kept to the wait on the first part
        chosen = [
            next((r for r in rows if r["early_wait_h"] <= wait), rows[-1])
            for wait in out["waits_h"]
        ]
        out["clusters"].append(
            {"nodes": nodes, "compute_wait_front": front, "knobs": rows,
             "set_on_the_first_part": chosen}
        )  # fmt: skip
    return out


def philly_draws() -> dict:
    """The last 60 % of Philly with bare knobs, arrivals shifted by up to minutes, several draws.

    One heavy job more or less in the cloud moves a policy's cost by some percent, and which one it
    is hangs on minutes. So costs and waits of each knob are averaged over draws before fronts are
    made; the ratio of each draw alone to its own front is kept as well, and so is that of each of
    Compute-Wait's own knobs to the front of all of them.
    """
    work = philly_jobs()
    expect = Expect(learned=True)
    knobs = np.geomspace(5, 320, 7)
    out: dict = {"draws": DRAWS, "shift_h": SHIFT_H, "clusters": []}
    for nodes in (64, 40, 24):
        one = instance_of(work, Cluster(nodes, 8))
        late = one.part(slice(int(0.4 * len(one)), None))
        rng = np.random.default_rng(7)
        fronts, values = [], []
        for draw in range(DRAWS):
            part = late if draw == 0 else shifted(late, rng.uniform(0, SHIFT_H, len(late)))
            fronts.append(front_of(part, by_cost, TO_SECONDS, expect))
            values.append(front_of(part, lambda mu: Rules(kernel.VALUE, mu), knobs, expect))
        theirs, ours = np.array(fronts), np.array(values)
        mean = [tuple(point) for point in theirs.mean(axis=0)]
        rows = []
        for i, knob in enumerate(knobs):
            wait, cost = ours[:, i].mean(axis=0)
            alone = [
                float(run[i][1] / cheapest(f, run[i][0]))
                for run, f in zip(values, fronts, strict=True)
            ]
            rows.append(
                {"hour_usd": float(knob), "wait_h": float(wait), "usd": float(cost),
                 "usd_deviation": float(ours[:, i, 1].std()),
                 "ratio": float(cost / cheapest(mean, wait)), "each_alone": alone}
            )  # fmt: skip
            print(nodes, rows[-1], flush=True)
        own = [cost / cheapest(f, wait) for f in fronts for wait, cost in f]
        out["clusters"].append(
            {"nodes": nodes, "knobs": rows, "compute_wait_mean_front": mean,
             "compute_wait_to_its_own_front": {"mean": float(np.mean(own)), "worst": max(own)}}
        )  # fmt: skip
    return out


def shifted(one, by_h):
    """The same jobs, each arriving that much later."""
    arrival = one.arrival_h + by_h
    order = np.argsort(arrival, kind="stable")
    columns = ("run_h", "per_node", "count", "group", "deadline_h", "rows")
    moved = {name: getattr(one, name)[order] for name in columns}
    return replace(one, arrival_h=arrival[order], **moved)


def bounds() -> dict:
    """The published instance between the best schedule known and a proven bound."""
    from hpcscale.simulate.bound import lower_bound
    from hpcscale.simulate.offline import best_known

    work = read_history(trace("starburst/table4-seed13-load1.csv.gz")).workload
    one = instance_of(work, Cluster(4, 8))
    target = simulate(one, rules_of("constant-wait", one)).mean_wait_h
    ours = at_mean_wait("value", rules_of("value", one), one, target).outcome
    began = time.perf_counter()
    best = best_known(ours, target, moves=700_000)
    searched = time.perf_counter()
    bound = lower_bound(one, target, step_h=0.025)
    return {
        "value_usd": float(ours.cloud_cost_usd),
        "best_known_usd": float(best.cloud_cost_usd),
        "best_known_wait_h": best.mean_wait_h,
        "moves": 700_000,
        "search_s": searched - began,
        "lower_bound_usd": bound.usd,
        "step_h": 0.025,
        "columns": bound.columns,
        "bound_s": time.perf_counter() - searched,
    }


def split() -> dict:
    """Knobs set on the first 40 % of the jobs; Compute-Wait's in hindsight on the rest."""
    from hpcscale.simulate.compare import compare

    names = ("constant-wait", "compute-wait", "value")
    out: dict = {}
    for load in ("0.75", "1", "1.5"):
        rows = []
        for seed in range(101, 111):
            file = trace(f"starburst/synthetic-seed{seed}-load{load}.csv.gz")
            one = instance_of(read_history(file).workload, Cluster(4, 8))
            policies = [(name, rules_of(name, one)) for name in names]
            made = compare(one, policies, equal_wait="constant-wait", tune_on=0.4)
            ours = made.results[2].outcome
            front = front_of(made.scored, lambda f: Rules(kernel.PATIENCE_BY_COST, f), FACTORS)
            ratio = float(ours.cloud_cost_usd) / cheapest(front, ours.mean_wait_h)
            rows.append({"seed": seed, "ratio": ratio, "wait_h": ours.mean_wait_h})
        ratios = [row["ratio"] for row in rows]
        out[load] = {"mean": float(np.mean(ratios)), "worst": max(ratios), "instances": rows}
        print(load, out[load]["mean"], out[load]["worst"], flush=True)
    return out


def spot() -> dict:
    """Nine zones of V100 spot, 45 days each: 24 h of work, 0.2 h a start, spot at 0.3 of the price."""
    from hpcscale.simulate.spot import read_availability, replay_spot

    folder = trace("spot/availability/1-node/aws-02-15-2023")
    zones = [read_availability(path) for path in sorted(folder.glob("*_v100_1.json"))]
    out = {}
    for slack in (1.05, 1.15, 1.25, 1.5):
        found = replay_spot(zones, slack=slack)
        late = replay_spot(zones, slack=slack, since=0.4)
        out[str(slack)] = {
            "greedy": found.greedy,
            "progress_line": found.ours,
            "floor_without_delays": found.floor,
            "best_in_hindsight": found.best,
            "gap_closed_to_floor": found.gap_closed,
            "gap_closed_to_best": found.gap_closed_to_best,
            "gap_closed_to_best_after_40_percent": late.gap_closed_to_best,
            "missed": found.missed,
            "starts": found.starts,
        }
        print(slack, found, late.gap_closed_to_best, flush=True)
    return out


def main() -> None:
    asked = sys.argv[1:] or ["starburst", "philly", "bounds", "spot", "split"]
    data = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    for name in asked:
        data[name] = {
            "starburst": starburst,
            "philly": philly,
            "philly_split": philly_split,
            "philly_draws": philly_draws,
            "bounds": bounds,
            "spot": spot,
            "split": split,
        }[name]()
        RESULTS.write_text(json.dumps(data, indent=1) + "\n")


if __name__ == "__main__":
    main()
