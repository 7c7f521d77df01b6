"""Speed against its promises, side by side in one run. `make bench`; exit 1 when one is broken.

    help      CPU of `hpcscale --help` at most 1.5 times that of a bare click program
    submit    CPU of `hpcscale submit` of a 2-node job at most 1.25 times that of the shortest
              script that submits it with submitit's AutoExecutor
    status    `hpcscale status` of 1,000 jobs: one squeue, and at most squeue's own time + 0.3 s
    map_array map_array of 10,000 functions at most 1.3 times submitit's own; aim: 1 s

Name some to run only those. Medians; results go to tests/benchmarks/results/, dated.
"""

import compileall
import datetime as dt
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from measure import alternate

HERE = Path(__file__).resolve().parent
HPCSCALE = str(Path(sys.executable).with_name("hpcscale"))

BARE_CLICK = """
import click

@click.group()
@click.version_option("1.0", prog_name="bare")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
def main(debug):
    "A program with as many commands as hpcscale."
{commands}
if __name__ == "__main__":
    main()
"""

BARE_COMMAND = """
@main.command()
@click.option("--json", is_flag=True, help="Print JSON.")
def {name}(json):
    "Does {name}."
"""

SUBMITIT = """
import submitit, subprocess, sys
executor = submitit.AutoExecutor(folder=sys.argv[1], cluster="slurm")
executor.update_parameters(nodes=2, timeout_min=10, slurm_partition="gpu")
job = executor.submit(subprocess.check_call, ["true"])
print(job.job_id)
"""

# one call in a fresh process, as a user's script makes it; nothing of it starts
MAP_ARRAY = """
import sys, tempfile, time
import submitit
cluster, folder, count = sys.argv[1], tempfile.mkdtemp(dir=sys.argv[2]), int(sys.argv[3])
site = {"hpcscale_site": "lab-onprem"} if cluster == "hpcscale" else {}
executor = submitit.AutoExecutor(folder=folder, cluster=cluster, **site)
executor.update_parameters(
    timeout_min=10, slurm_partition="gpu", slurm_additional_parameters={"hold": True}
)
begin = time.perf_counter()
jobs = executor.map_array(pow, range(count), [2] * count)
print(f"seconds {time.perf_counter() - begin:.4f} jobs {len({job.job_id for job in jobs})}")
"""

STATUS_JOBS = 1000
MAP_TASKS = 10_000


def bench_help(work: Path) -> dict[str, Any]:
    """`hpcscale --help` against a bare click program with as many commands."""
    from hpcscale.cli import COMMANDS

    program = work / "bare.py"
    commands = "".join(BARE_COMMAND.format(name=f"verb{i}") for i in range(len(COMMANDS)))
    program.write_text(BARE_CLICK.format(commands=commands))
    series = alternate(
        {"hpcscale": [HPCSCALE, "--help"], "click": [sys.executable, str(program), "--help"]}, 20
    )
    ratio = series["hpcscale"].cpu / series["click"].cpu
    return {
        "what": "CPU of `hpcscale --help` / CPU of a bare click program",
        "value": round(ratio, 3),
        "at_most": 1.5,
        "ok": ratio <= 1.5,
        "series": {name: s.as_dict() for name, s in series.items()},
    }


def bench_submit(work: Path, env: dict[str, str]) -> dict[str, Any]:
    """`hpcscale submit` against submitit's AutoExecutor, both on the lab's on-prem site."""
    script = work / "with_submitit.py"
    script.write_text(SUBMITIT)
    # where people stand on a login node: on the cluster's own file system
    here = work / "lab" / "lab-onprem" / "scratch" / "here"
    here.mkdir()

    def cancel(_: str, __: str) -> None:
        # a full queue would slow down whoever comes second
        subprocess.run(["scancel", "--user", str(os.getuid())], env=env, check=True, timeout=30)

    series = alternate(
        {
            "hpcscale": [
                HPCSCALE, "submit", "--site", "lab-onprem", "--partition", "gpu", "--nodes", "2",
                "--time", "10", "--", "true",
            ],
            "submitit": [sys.executable, str(script), str(work / "submitit")],
        },
        15,
        env=env,
        cwd=here,
        after=cancel,
    )  # fmt: skip
    ratio = series["hpcscale"].cpu / series["submitit"].cpu
    return {
        "what": "CPU of `hpcscale submit` / CPU of submitit's AutoExecutor, 2 nodes",
        "value": round(ratio, 3),
        "at_most": 1.25,
        "aim": 0.95,
        "ok": ratio <= 1.25,
        "series": {name: s.as_dict() for name, s in series.items()},
    }


def fill(env: dict[str, str]) -> None:
    """Submit STATUS_JOBS held jobs through the library: its ledger then knows each of them."""
    os.environ.update(env)
    from hpcscale.connect import connect
    from hpcscale.ledger import Ledger
    from hpcscale.render import render
    from hpcscale.site import load_site
    from hpcscale.spec import JobSpec, Resources
    from hpcscale.submit import submit

    site = load_site("lab-onprem").site
    spec = JobSpec(
        command=("true",),
        name="held",
        partition="gpu",
        resources=Resources(time_limit_s=600),
        directives={"hold": None},
    )
    rendered = render(spec, site)
    connection = connect(site)
    try:
        ledger = Ledger.open()
        for _ in range(STATUS_JOBS):
            submit(rendered, site, connection, ledger)
    finally:
        connection.close()


def bench_status(work: Path, env: dict[str, str]) -> dict[str, Any]:
    """`hpcscale status` of 1,000 pending jobs against the squeue that it calls."""
    begin = dt.datetime.now(dt.UTC)
    fill(env)
    filled_s = (dt.datetime.now(dt.UTC) - begin).total_seconds()

    # a squeue that counts its calls stands first on PATH
    calls = work / "calls"
    shim = work / "bin" / "squeue"
    shim.parent.mkdir()
    real = shutil.which("squeue", path=env["PATH"])
    # one line a call: its arguments, which hold no blanks
    shim.write_text(f'#!/bin/sh\necho "$*" >> "{calls}"\nexec "{real}" "$@"\n')
    shim.chmod(0o755)
    counted = {**env, "PATH": f"{shim.parent}:{env['PATH']}"}
    from measure import once

    _, _, output = once([HPCSCALE, "status", "--json"], counted)
    asked = calls.read_text().splitlines()
    seen = output.count('"submission_id"')

    series = alternate(
        {
            "hpcscale": [HPCSCALE, "status"],
            "squeue": ["squeue", *asked[0].split()],  # the very same question
        },
        11,
        env=env,
    )
    extra = series["hpcscale"].wall - series["squeue"].wall
    return {
        "what": f"wall time of `hpcscale status` of {STATUS_JOBS} jobs less squeue's own",
        "value": round(extra, 3),
        "at_most": 0.3,
        "squeue_calls": len(asked),
        "jobs_seen": seen,
        "filled_s": round(filled_s, 1),
        "ok": extra <= 0.3 and len(asked) == 1 and seen >= STATUS_JOBS,
        "series": {name: s.as_dict() for name, s in series.items()},
    }


def bench_map_array(work: Path, env: dict[str, str]) -> dict[str, Any]:
    """`map_array` of 10,000 functions, ours and submitit's, both on the lab's on-prem site."""
    script = work / "map_array.py"
    script.write_text(MAP_ARRAY)
    here = work / "lab" / "lab-onprem" / "scratch" / "map"
    for name in ("hpcscale", "submitit"):
        (here / name).mkdir(parents=True)
    seconds: dict[str, list[float]] = {"hpcscale": [], "submitit": []}

    def note(name: str, output: str) -> None:
        found = re.search(rf"seconds (\S+) jobs {MAP_TASKS}\b", output)
        if found is None:
            sys.exit(f"bench: map_array of {name} gave not {MAP_TASKS} jobs:\n{output}")
        seconds[name].append(float(found[1]))
        subprocess.run(["scancel", "--user", str(os.getuid())], env=env, check=True, timeout=60)
        # Files stay until the end: ext4 gives an inode that was freed less than a minute ago to no
        # new file, and passes over them one by one (recently_deleted() in fs/ext4/ialloc.c): each
        # round would pay for the files of the one before.

    series = alternate(
        {
            name: [sys.executable, str(script), cluster, str(here / name), str(MAP_TASKS)]
            for name, cluster in (("hpcscale", "hpcscale"), ("submitit", "slurm"))
        },
        5,
        env=env,
        cwd=here,
        after=note,
    )
    for name, times in seconds.items():  # of the call alone; the first warmed the caches
        series[name].wall_s = times[1:]
    ratio = series["hpcscale"].wall / series["submitit"].wall
    return {
        "what": f"seconds of map_array of {MAP_TASKS} functions / submitit's own",
        "value": round(ratio, 3),
        "at_most": 1.3,
        "aim_s": 1.0,
        "ok": ratio <= 1.3,
        "series": {name: s.as_dict() for name, s in series.items()},
    }


def slurm_version(env: dict[str, str]) -> str:
    done = subprocess.run(
        ["sbatch", "--version"], env=env, capture_output=True, text=True, check=True, timeout=10
    )
    return done.stdout.strip()


def main() -> int:
    wanted = sys.argv[1:] or ["help", "submit", "status", "map_array"]
    work = Path(tempfile.mkdtemp(prefix="hpcscale-bench-", dir="/tmp"))
    results: dict[str, Any] = {}
    lab = None
    env = dict(os.environ)
    # Slurm's own variables of whoever calls must not steer either side
    env = {k: v for k, v in env.items() if not k.startswith(("SLURM_", "SBATCH_", "SQUEUE_"))}
    # an installed package is compiled, as submitit's and click's here are
    compileall.compile_dir(HERE.parents[1] / "hpcscale", quiet=1)
    try:
        if set(wanted) & {"submit", "status", "map_array"}:
            from hpcscale.lab import Lab
            from hpcscale.lab.model import LabOptions

            # room for the arrays of all rounds: ended jobs count for a while
            roomy = {"lab-onprem": ("MaxJobCount=500000",)}
            lab = Lab.up(work / "lab", LabOptions(extra_conf=roomy))
            env.update(lab.env())
        if "help" in wanted:
            results["help"] = bench_help(work)
        if "submit" in wanted:
            results["submit"] = bench_submit(work, env)
        if "status" in wanted:
            results["status"] = bench_status(work, env)
        if "map_array" in wanted:
            results["map_array"] = bench_map_array(work, env)
        version = slurm_version(env) if lab else None
    finally:
        if lab:
            subprocess.run(["scancel", "--user", str(os.getuid())], env=env, check=False)
            lab.down()
        shutil.rmtree(work, ignore_errors=True)

    for name, result in results.items():
        verdict = "ok" if result["ok"] else "TOO SLOW"
        print(f"{name:8} {result['value']:.3f} (at most {result['at_most']})  {verdict}")
        for who, series in result["series"].items():
            print(
                f"         {who:10} CPU {series['cpu_median_s']:.3f} s,"
                f" wall {series['wall_median_s']:.3f} s"
            )
    now = dt.datetime.now(dt.UTC)
    document = {
        "at": now.isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "slurm": version,
        "cores": os.cpu_count(),
        "load": [round(v, 1) for v in os.getloadavg()],
        "results": results,
    }
    part = "-".join(["", *sys.argv[1:]])  # of a part only: a file of its own
    path = HERE / "results" / f"{now:%Y-%m-%d}{part}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(document, indent=1) + "\n")
    print(f"results: {path}")
    return 0 if all(r["ok"] for r in results.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
