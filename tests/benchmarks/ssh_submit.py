"""Submits over SSH: through one connection that is kept, and with an ssh of its own for each.

    python tests/benchmarks/ssh_submit.py [--count 1000]

Held jobs on a lab's cloud site, whose sshd, Slurm and network are all on this machine: what is
left is the cost of the way there. The four take turns in each round, so all see the same machine.

    sbatch    CliClient.sbatch over one paramiko connection
    submit    hpcscale.submit over the same connection: run directory, script and ledger besides
    master    sbatch over ssh(1) and a master connection (ControlMaster)
    ssh       `ssh HOST sbatch` with a login of its own: what people write in a loop

Exit 1 when the median of ``sbatch`` is more than half of that of ``ssh``.
"""

import argparse
import datetime as dt
import json
import os
import platform
import resource
import shlex
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hpcscale.connect import connect
from hpcscale.lab import Lab, LabOptions
from hpcscale.ledger import Ledger
from hpcscale.render import render
from hpcscale.site import load_site
from hpcscale.slurm.cli import CliClient
from hpcscale.slurm.openssh import OpensshTransport
from hpcscale.spec import JobSpec, Resources
from hpcscale.submit import submit

RESULTS = Path(__file__).resolve().parent / "results"
SCRIPT = "#!/bin/sh\ntrue\n"
OPTIONS = ["--hold", "--output=/dev/null", "--time=5", "--chdir=/"]
AT_MOST = 0.5


class Timed:
    """Wall and CPU seconds of calls; CPU counts child processes."""

    def __init__(self, call: Callable[[], object]) -> None:
        self.call = call
        self.wall_s: list[float] = []
        self.cpu_s: list[float] = []

    def once(self, *, counted: bool) -> None:
        cpu, begin = _cpu_s(), time.perf_counter()
        self.call()
        wall = time.perf_counter() - begin
        if counted:
            self.wall_s.append(wall)
            self.cpu_s.append(_cpu_s() - cpu)

    def as_dict(self) -> dict[str, Any]:
        ordered = sorted(self.wall_s)
        return {
            "submits": len(ordered),
            "wall_median_s": round(statistics.median(ordered), 5),
            "wall_p95_s": round(ordered[int(0.95 * (len(ordered) - 1))], 5),
            "wall_total_s": round(sum(ordered), 3),
            "cpu_median_s": round(statistics.median(self.cpu_s), 5),
        }


def _cpu_s() -> float:
    found = 0.0
    for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN):
        used = resource.getrusage(who)
        found += used.ru_utime + used.ru_stime
    return found


def measure(work: Path, count: int) -> dict[str, Timed]:
    """All four in turn, ``count`` times; the first turn, with the logins, is not counted."""
    site = load_site("lab-cloud").site
    way = site.transport
    connection = connect(site)
    ledger = Ledger.open()
    spec = JobSpec(command=("true",), name="held", directives={"hold": None},
                   resources=Resources(time_limit_s=300))  # fmt: skip
    rendered = render(spec, site)
    control = f"{work}/cm"
    config = work / "ssh_config"
    config.write_text(
        f"Host cloud\n  HostName {way.host}\n  Port {way.port}\n  User {way.user}\n"
        f"  IdentityFile {way.identity_file}\n  IdentitiesOnly yes\n"
        f"  UserKnownHostsFile {way.known_hosts}\n"
        f"Host cloud-master\n  HostName {way.host}\n  Port {way.port}\n  User {way.user}\n"
        f"  ControlPath {control}\n"
        f"  IdentityFile {way.identity_file}\n  IdentitiesOnly yes\n"
        f"  UserKnownHostsFile {way.known_hosts}\n"
    )
    over_master = OpensshTransport("cloud-master", ssh_config=str(config))
    master = CliClient(over_master)
    plain = ["ssh", "-F", str(config), "-o", "BatchMode=yes", "-T", "cloud",
             shlex.join(["sbatch", "--parsable", *OPTIONS])]  # fmt: skip

    def by_ssh() -> None:
        subprocess.run(plain, input=SCRIPT, text=True, check=True, timeout=60,
                       stdout=subprocess.DEVNULL)  # fmt: skip

    timed = {
        "sbatch": Timed(lambda: connection.client.sbatch(SCRIPT, OPTIONS)),
        "submit": Timed(lambda: submit(rendered, site, connection, ledger)),
        "master": Timed(lambda: master.sbatch(SCRIPT, OPTIONS)),
        "ssh": Timed(by_ssh),
    }
    subprocess.run(shlex.split(over_master.master_command()), check=True, timeout=60,
                   stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                   stderr=subprocess.DEVNULL)  # fmt: skip
    try:
        for number in range(count + 1):
            for one in timed.values():
                one.once(counted=number > 0)
            if sys.stderr.isatty() and number % 10 == 0:
                print(f"\r{number} of {count}", end="", file=sys.stderr)
        found = len(connection.client.jobs().jobs)
        if found != len(timed) * (count + 1):
            sys.exit(f"bench: {found} jobs are there instead of {len(timed) * (count + 1)}")
    finally:
        subprocess.run(["ssh", "-F", str(config), "-O", "exit", "cloud-master"], check=False,
                       capture_output=True, timeout=30)  # fmt: skip
        connection.close()
    return timed


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--count", type=int, default=50, help="submits of each (default 50)")
    count = parser.parse_args().count
    work = Path(tempfile.mkdtemp(prefix="hpcscale-bench-", dir="/tmp"))
    load_before = os.getloadavg()[0]
    lab = None
    try:
        lab = Lab.up(work / "lab", LabOptions(nodes=1), die_with_me=True)
        os.environ.update(lab.env())
        timed = measure(work, count)
    finally:
        if lab:
            lab.down()
        shutil.rmtree(work, ignore_errors=True)
    series = {name: one.as_dict() for name, one in timed.items()}
    base = statistics.median(timed["ssh"].wall_s)
    ratios = {name: round(statistics.median(one.wall_s) / base, 3) for name, one in timed.items()}
    now = dt.datetime.now(dt.UTC)
    document = {
        "at": now.isoformat(timespec="seconds"),
        "what": f"{count} submits of each kind, in turn; medians; ratio to `ssh HOST sbatch`",
        "python": platform.python_version(),
        "cores": os.cpu_count(),
        "load": [round(load_before, 1), round(os.getloadavg()[0], 1)],
        "ratio": ratios,
        "at_most": AT_MOST,
        "ok": ratios["sbatch"] <= AT_MOST,
        "series": series,
    }
    for name, one in series.items():
        print(f"{name:8} {one['wall_median_s']:.4f} s (p95 {one['wall_p95_s']:.4f}), "
              f"{one['wall_total_s']:.1f} s in all, {ratios[name]:.2f} of ssh's")  # fmt: skip
    path = RESULTS / f"ssh-submit-{now:%Y-%m-%d}.json"
    path.write_text(json.dumps(document, indent=1) + "\n")
    print(f"results: {path}")
    return 0 if document["ok"] else 1


if __name__ == "__main__":
    sys.exit(main())
