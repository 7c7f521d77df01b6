"""Injections into the handover on real Slurm, on several labs at once; keeps a result file.

    python tests/benchmarks/handover.py [--count N] [--labs N] [--minutes M] [--out FILE]

Each injection is one handover of one job: a SIGKILL of `hpcscale burst run` at one of its acts,
together with a fault of one of the sites (``tests/injections.py``). The result file is written anew
after each, so that an interrupted run has told the truth so far.
"""

import argparse
import datetime as dt
import json
import multiprocessing
import os
import shutil
import sys
import tempfile
import time
import traceback
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import injections
from injections import Injection, Outcome

from hpcscale.lab.lab import Lab
from hpcscale.lab.model import LabOptions

RESULTS = Path(__file__).parent / "results"
SLURM = set()
OPTIONS = LabOptions(boot_delay_s=0.3, suspend_time_s=3600, resume_timeout_s=20)


def work(number, todo, done):
    """One lab, one injection after the other, until there are none."""
    folder = Path(tempfile.mkdtemp(prefix=f"hpcscale-injections-{number}-", dir="/tmp"))
    try:
        with Lab.up(folder / "lab", OPTIONS, die_with_me=True) as lab:
            os.environ.update(lab.env())
            site = injections.Site(lab, folder)
            done.put(site.onprem("sbatch", "--version", check=True))
            while (injection := todo.get()) is not None:
                try:
                    done.put(site.inject(injection))
                except Exception:  # noqa: BLE001 # told in the result: neither good nor bad
                    done.put((injection, traceback.format_exc(limit=4)))
    finally:
        done.put(None)
        shutil.rmtree(folder, ignore_errors=True)


def run(chosen, labs, minutes, keep):
    """Run injections; their outcomes and what could not be carried out."""
    context = multiprocessing.get_context("fork")
    todo, done = context.Queue(), context.Queue()
    for injection in chosen:
        todo.put(injection)
    for _ in range(labs):
        todo.put(None)
    workers = [context.Process(target=work, args=(n, todo, done)) for n in range(labs)]
    for worker in workers:
        worker.start()
    outcomes, broken, left = [], [], labs
    stop_at = time.monotonic() + minutes * 60
    while left:
        if time.monotonic() > stop_at:
            while not todo.empty():  # what is under way is finished
                todo.get()
            for _ in range(labs):
                todo.put(None)
            stop_at = float("inf")
        got = done.get()
        if got is None:
            left -= 1
            continue
        if isinstance(got, str):
            SLURM.add(got)
            continue
        if isinstance(got, Outcome):
            outcomes.append(got)
        else:
            broken.append(got)
        keep(outcomes, broken)
    for worker in workers:
        worker.join()
    return outcomes, broken


def facts():
    """On what it ran."""
    return {"date": f"{dt.datetime.now(dt.UTC):%FT%TZ}", "cores": os.cpu_count()}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=len(injections.pairs()))
    parser.add_argument("--undisturbed", type=int, default=5, help="handovers without any fault")
    parser.add_argument(
        "--more",
        action="store_true",
        help="add to the result file, and repeat what was not clean; both are told",
    )
    parser.add_argument("--labs", type=int, default=3)
    parser.add_argument("--minutes", type=float, default=70)
    today = f"{dt.datetime.now(dt.UTC):%Y-%m-%d}"
    parser.add_argument("--out", type=Path, default=RESULTS / f"handover-{today}.json")
    args = parser.parse_args()
    earlier, repeated, before_s = [], [], 0
    if args.more and args.out.exists():
        known = json.loads(args.out.read_text())
        every = [Outcome.of(each) for each in known["each"]]
        earlier, repeated = [o for o in every if o.clean], [o for o in every if not o.clean]
        repeated = [Outcome.of(each) for each in known.get("repeated", [])] + repeated
        before_s = known["seconds"]
    have = {out.injection for out in earlier}
    again = [out.injection for out in repeated if out.injection not in have]
    chosen = [Injection()] * (0 if earlier else args.undisturbed) + again
    chosen += [i for i in injections.pairs() if i not in have and i not in again][: args.count]
    begin = time.monotonic()

    def keep(new, broken):
        outcomes = earlier + new
        result = {
            **facts(),
            "slurm": sorted(SLURM),
            "load": os.getloadavg()[0],
            "labs": args.labs,
            "seconds": before_s + round(time.monotonic() - begin),
            **injections.summary(outcomes),
            "not_carried_out": [{"injection": str(i), "why": why} for i, why in broken],
            "repeated": [out.data() for out in repeated],
            "each": [out.data() for out in outcomes],
        }
        args.out.parent.mkdir(parents=True, exist_ok=True)
        temporary = args.out.with_suffix(".tmp")
        temporary.write_text(json.dumps(result, indent=1, default=str) + "\n")
        temporary.replace(args.out)
        last = new[-1] if new else None
        if last is not None:
            word = "DOUBLE" if last.double else "LOST" if last.lost else "ok"
            print(f"{len(outcomes):4} {last.seconds:6.1f} s {word:6} {last.step:10} {last.injection}", flush=True)  # fmt: skip

    outcomes, broken = run(chosen, args.labs, args.minutes, keep)
    told = {k: v for k, v in injections.summary(earlier + outcomes).items() if k != "kinds"}
    print(json.dumps({**told, "not_carried_out": len(broken)}, indent=1))
    bad = told["double_starts"] or told["lost"] or told["orphans"] or told["unsettled"]
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
