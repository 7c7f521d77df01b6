"""Injections into the handover on real Slurm, on several labs at once; keeps a result file.

    python tests/benchmarks/handover.py [--count N] [--labs N] [--minutes M] [--out FILE]

Each injection is one handover: a SIGKILL of `hpcscale burst run` at one of its acts, together with
a fault of one of the sites (``tests/injection_set.py``, ``tests/injections.py``). An injection for
which its lab does not become ready, so that it has not begun, is tried again on a new lab; one that
has begun is not (``labs_anew`` of the result tells why there were new labs). What is known is
written to FILE's ``….part.json`` after each, and an interrupted run is gone on with: injections
that are in it, made with the same code, are not made again, whatever came of them. The result takes
its place in FILE when it is complete.
"""

import argparse
import datetime as dt
import hashlib
import itertools
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import injections
from injection_set import Injection, Outcome, pairs, summary

import hpcscale
from hpcscale import judge
from hpcscale.errors import LabError
from hpcscale.lab.lab import Lab

RESULTS = Path(__file__).parent / "results"
SLURM = set()
ANEW = []
TRIES = 3
ENOUGH = 300


def code():
    """Of which code: a hash of the package's sources."""
    root = Path(hpcscale.__file__).parent
    digest = hashlib.sha256()
    for path in sorted(p for p in root.rglob("*") if p.is_file() and p.suffix != ".pyc"):
        digest.update(f"{path.relative_to(root)}\0".encode() + path.read_bytes())
    return digest.hexdigest()[:12]


def commit():
    """Of the checkout; empty where there is none."""
    argv = ["git", "-C", str(RESULTS), "rev-parse", "--short", "HEAD"]
    try:
        done = subprocess.run(argv, capture_output=True, text=True, timeout=20, check=False)
    except OSError:
        return ""
    return done.stdout.strip()


def labs_here():
    """As many as this machine bears: a handover waits more than it computes."""
    memory_gb = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return max(2, min(3 * (os.cpu_count() or 1) + 1, int(memory_gb), 24))


def _end(*_):
    """Take the lab down; no second signal interrupts that (one comes of each thread of a parent)."""
    signal.signal(signal.SIGTERM, lambda *_: None)
    sys.exit(1)


def work(number, todo, done, parent):
    """One lab, one injection after the other, until there are none.

    It ends with its parent, however that ends: an interrupted run leaves nothing behind.
    """
    signal.signal(signal.SIGTERM, _end)
    signal.signal(signal.SIGINT, lambda *_: None)  # Ctrl-C is the parent's; not ignored by children
    injections.die_with_parent(parent, signal.SIGTERM)
    judge.NEVER_REACHED_S = (
        injections.NEVER_REACHED_S
    )  # of the burst processes too: they are forked
    folder = Path(tempfile.mkdtemp(prefix=f"hpcscale-injections-{number}-", dir="/tmp"))
    waits, failed = None, 0  # an injection that has not begun; labs that did not get on with it
    try:
        for n in itertools.count():
            before, ended = waits, False
            try:
                with Lab.up(folder / f"lab{n}", injections.OPTIONS, die_with_me=True) as lab:
                    os.environ.update(lab.env())
                    own = folder / str(n)
                    own.mkdir()
                    waits = on_one_lab(injections.Site(lab, own), todo, done, waits)
                    ended = waits is None
            except LabError:
                done.put(NewLab(traceback.format_exc(limit=4)))
            if ended:
                return
            failed = failed + 1 if waits is before else 1
            if failed == TRIES:
                if waits is None:
                    return
                done.put((waits, f"it could not begin on {TRIES} labs"))
                waits, failed = None, 0
    finally:
        done.put(None)
        shutil.rmtree(folder, ignore_errors=True)


@dataclass(frozen=True)
class NewLab:
    """A lab that was given up, and why."""

    why: str


def on_one_lab(site, todo, done, first):
    """Injections, ``first`` before those that are to do; the one for which the lab was not ready.

    None: there are no more.
    """
    done.put(site.onprem("sbatch", "--version", check=True))
    injection = first or todo.get()
    while injection is not None:
        try:
            done.put(site.inject(injection))
        except injections.NotReadyError as exc:
            done.put(NewLab(f"{injection}: {exc}"))
            return injection
        except Exception:  # noqa: BLE001 # told in the result: neither good nor bad
            done.put((injection, traceback.format_exc(limit=4)))
        injection = todo.get()
    return None


def run(chosen, labs, minutes, keep):
    """Run injections; their outcomes and what could not be carried out."""
    context = multiprocessing.get_context("fork")
    todo, done = context.Queue(), context.Queue()
    for injection in chosen:
        todo.put(injection)
    for _ in range(labs):
        todo.put(None)
    workers = [
        context.Process(target=work, args=(n, todo, done, os.getpid()), daemon=True)
        for n in range(labs)
    ]
    for worker in workers:
        worker.start()
    try:
        return _gather(labs, todo, done, minutes, keep)
    except BaseException:
        for worker in workers:
            worker.terminate()
        raise
    finally:
        for worker in workers:
            worker.join(60)  # it takes its lab down
            worker.kill()
            worker.join()


def _gather(labs, todo, done, minutes, keep):
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
        if isinstance(got, NewLab):
            ANEW.append(got.why)
            continue
        if isinstance(got, Outcome):
            outcomes.append(got)
        else:
            broken.append(got)
        keep(outcomes, broken)
    return outcomes, broken


def known(path, code_now, *, other_code=False):
    """What an earlier run has kept: outcomes that count, outcomes to repeat, seconds."""
    if not path.exists():
        return [], [], 0
    data = json.loads(path.read_text())
    every = [Outcome.of(each) for each in data["each"]]
    counts = [o for o in every if o.code == code_now or (other_code and o.clean)]
    again = [o for o in every if o not in counts] if other_code else []
    seconds = data["seconds"] if counts else 0  # those of other code are not this run's
    return counts, [Outcome.of(each) for each in data["repeated"]] + again, seconds


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=len(pairs()))
    parser.add_argument("--undisturbed", type=int, default=6, help="handovers without any fault")
    parser.add_argument(
        "--other-code",
        action="store_true",
        help="count what was clean with other code too, and repeat what was not; both are told",
    )
    parser.add_argument("--labs", type=int, default=labs_here())
    parser.add_argument("--minutes", type=float, default=30)
    today = f"{dt.datetime.now(dt.UTC):%Y-%m-%d}"
    parser.add_argument("--out", type=Path, default=RESULTS / f"handover-{today}.json")
    args = parser.parse_args()
    part = args.out.with_suffix(".part.json")
    code_now, commit_now = code(), commit()
    earlier, repeated, before_s = known(part, code_now, other_code=args.other_code)
    have = Counter(out.injection for out in earlier)
    have.subtract([Injection()] * args.undisturbed)  # which come besides the one among the pairs
    chosen = [Injection()] * -min(0, have[Injection()])
    chosen += [i for i in pairs() if have[i] <= 0][: args.count]
    print(f"{len(earlier)} are known; {len(chosen)} on {args.labs} labs", flush=True)
    begin = time.monotonic()
    outcomes, broken = [], []

    def keep(new, not_done):
        outcomes[:], broken[:] = earlier + new, not_done
        for out in new:
            out.code = code_now
        result = {
            "date": f"{dt.datetime.now(dt.UTC):%FT%TZ}",
            "commit": commit_now,
            "cores": os.cpu_count(),
            "slurm": sorted(SLURM),
            "load": os.getloadavg()[0],
            "labs": args.labs,
            "seconds": before_s + round(time.monotonic() - begin),
            **summary(outcomes),
            "labs_anew": ANEW,
            "not_carried_out": [{"injection": str(i), "why": why} for i, why in broken],
            "repeated": [out.data() for out in repeated],
            "each": [out.data() for out in outcomes],
        }
        part.parent.mkdir(parents=True, exist_ok=True)
        temporary = part.with_suffix(".tmp")
        temporary.write_text(json.dumps(result, indent=1, default=str) + "\n")
        temporary.replace(part)
        if new:
            tell(len(outcomes), new[-1])

    keep([], [])
    run(chosen, args.labs, args.minutes, keep)
    if len(outcomes) >= min(ENOUGH, args.count):
        part.replace(args.out)
    else:
        print(f"not complete; the next run goes on with {part}")
    told = {k: v for k, v in summary(outcomes).items() if k != "kinds"}
    print(json.dumps({**told, "labs_anew": len(ANEW), "not_carried_out": len(broken)}, indent=1))
    return 0 if all(out.clean for out in outcomes) else 1


def tell(number, out):
    """One line."""
    word = "DOUBLE" if out.double else "LOST" if out.lost else "ok" if out.clean else "BAD"
    print(f"{number:4} {out.seconds:6.1f} s {word:6} {out.step:10} {out.injection}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
