"""The whole story on real Slurm, in a few minutes: ``make demo``.

Two sites come up on this machine. The on-prem queue is full; a training job with a deadline is
submitted to it, cannot start in time, and overflows to the cloud site, where it finishes. Every
step is a command that anyone could have typed; what it printed follows it. With ``--save`` the
output is kept in docs/demo/output.txt, from where `make docs` takes it into the README.
"""

import argparse
import difflib
import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
BIN = Path(sys.executable).parent
TIMEOUT_S = 230  # of any one command

JOB_TOML = """\
name = "digits"
command = ["train_digits.py", "--steps", "300"]
launcher = "torchrun"
partition = "gpu"
software = "lab-python"

[resources]
nodes = 2
gpus_per_node = 2       # a torchrun process for each
time = "10:00"

[inputs]
digits = "digits.npz"   # reaches the program as $HPCSCALE_INPUT_DIGITS, on any site

[outputs]
result = "result/"      # a directory, fetched back to here

[checkpoint]
dir = "checkpoints"
max_restarts = 1        # what it may cost counts each of them

[burst]
mode = "auto"           # on-prem first; a policy may move it
max_cost_usd = 50
"""

POLICY_TOML = """\
from = "lab-onprem"
to = ["lab-cloud"]
max_wait = "1h"         # waiting alone is no reason for an hour
deadline = true         # a deadline is: move while boot + staging + time limit still fit
deadline_margin = "5m"
cron_interval = "1m"    # how often cron calls: a gate stays closed for twice that at most
"""


class Demo:
    """Runs commands in the project directory, shows them, and remembers what was shown."""

    def __init__(self, lab: Path, project: Path) -> None:
        self.lab = lab
        self.project = project
        self.env = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM", "HPCSCALE"))}
        # what people would see in a pipe: no colours, no cut lines
        self.env.update(NO_COLOR="1", PATH=f"{BIN}:{self.env['PATH']}:/usr/sbin:/sbin")
        self.shown: list[str] = []
        self.begin = time.monotonic()

    def say(self, text: str = "") -> None:
        """A line of the story."""
        # paths of this one run mean nothing to a reader
        names = ((self.project, "~/digits"), (self.lab, "/tmp/lab"), (ROOT, "~/hpcscale"))  # noqa: S108
        for path, name in names:
            text = text.replace(str(path), name)
        self.shown.append(text)
        print(text, flush=True)

    def chapter(self, text: str) -> None:
        """What the next commands are about."""
        self.say(f"\n# {text}  [{time.monotonic() - self.begin:.0f} s]")

    def run(self, *argv: str, show: bool = True, ok: tuple[int, ...] = (0,)) -> str:
        """Run ``hpcscale …`` and show it as it was typed; its standard output."""
        if show:
            self.say(f"\n$ hpcscale {shlex.join(argv)}")
        done = subprocess.run(
            [str(BIN / "hpcscale"), *argv],
            cwd=self.project,
            env=self.env,
            stdout=subprocess.PIPE,
            # as on a terminal, where notices stand between the results
            stderr=subprocess.STDOUT if show else subprocess.PIPE,
            text=True,
            timeout=TIMEOUT_S,
            check=False,
        )
        if show:
            for line in done.stdout.rstrip().splitlines():
                self.say(line)
        if done.returncode not in ok:
            self.say(done.stderr or "")
            raise SystemExit(f"demo: hpcscale {shlex.join(argv)} ended with {done.returncode}")
        return done.stdout

    def ask(self, *argv: str, ok: tuple[int, ...] = (0,)) -> Any:
        """Run ``hpcscale … --json`` unseen; its data."""
        return json.loads(self.run(*argv, "--json", show=False, ok=ok))["data"]


def make_project(project: Path) -> None:
    """The directory that a researcher would have: code, data, a job file and a policy."""
    from sklearn.datasets import load_digits

    project.mkdir()
    shutil.copy(HERE / "train_digits.py", project)
    shutil.copy(ROOT / "hpcscale" / "train" / "checkpoint.py", project)
    import numpy as np

    digits = load_digits()
    np.savez_compressed(project / "digits.npz", images=digits.data, labels=digits.target)
    (project / "job.toml").write_text(JOB_TOML, encoding="utf-8")
    (project / "policy.toml").write_text(POLICY_TOML, encoding="utf-8")


def story(demo: Demo) -> None:
    """Everything between `lab up` and `lab down`."""
    demo.env.update(demo.ask("lab", "env", "--dir", str(demo.lab)))

    demo.chapter("Two sites: one here, one that is reached by SSH and boots its nodes on demand")
    demo.run("site", "list")

    demo.chapter("Somebody fills the on-prem GPUs for the day")
    demo.run(
        "submit", "--site", "lab-onprem", "--name", "somebody", "--partition", "gpu",
        "--nodes", "4", "--gpus-per-node", "4", "--time", "8:00:00", "--", "sleep", "28800",
    )  # fmt: skip

    demo.chapter("Our job: a training on two nodes, in a file")
    demo.say("\n$ cat job.toml")
    demo.say(JOB_TOML.rstrip())

    demo.chapter("What would be submitted, where, and for how much")
    demo.run("submit", "job.toml", "--site", "lab-onprem", "--deadline", "+12m", "--dry-run")
    demo.run("submit", "job.toml", "--site", "lab-onprem", "--deadline", "+12m")
    run_id = next(r["run_id"] for r in demo.ask("status")["runs"] if r["name"] == "digits")
    demo.run("status")

    demo.chapter("The decision: what would move, where, when and why")
    demo.say("\n$ cat policy.toml")
    demo.say(POLICY_TOML.rstrip())
    demo.run("burst", "plan", "--policy", "policy.toml")

    demo.chapter("The same job as the cloud site will get it: what differs from the script above")
    show_difference(demo)

    demo.chapter("The move. A cron line would call this every few minutes, without --wait")
    demo.run("burst", "run", "--policy", "policy.toml")
    demo.run("status")
    demo.run("burst", "run", "--policy", "policy.toml", "--wait")

    demo.chapter("It trained there, from the same code and data, and its results come back")
    demo.run("wait", run_id)
    demo.run("logs", run_id)
    demo.run("status")


def show_difference(demo: Demo) -> None:
    """Both sites' scripts, line by line: only what belongs to the site may differ."""
    demo.say("\n$ diff <(hpcscale render job.toml --site lab-onprem) \\")
    demo.say("       <(hpcscale render job.toml --site lab-cloud)")
    here, there = (
        demo.run("render", "job.toml", "--site", site, show=False).splitlines()
        for site in ("lab-onprem", "lab-cloud")
    )
    for line in difflib.unified_diff(here, there, "lab-onprem", "lab-cloud", lineterm="", n=0):
        demo.say(line)


def summary(demo: Demo) -> None:
    """Accuracy from the fetched result, cost from the ledger."""
    result = json.loads((demo.project / "result" / "result.json").read_text(encoding="utf-8"))
    demo.chapter("What came back")
    demo.say("\n$ cat result/result.json")
    demo.say(json.dumps(result))
    attempts = [
        attempt
        for run in demo.ask("status", "--all")["runs"]
        if run["name"] == "digits"
        for attempt in run["attempts"]
    ]
    cost = attempts[-1]["cost_so_far_usd"]
    demo.say()
    demo.say(f"accuracy: {result['accuracy']:.1%} on digits it had not seen")
    demo.say(f"ran on:   {result['site']}")
    demo.say(f"cost:     {cost} USD")


def left_running(lab: Path) -> list[str]:
    """Processes that still name the lab's directory; there must be none."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if str(lab) in command:
            found.append(f"{entry.name} {command}")
    return found


def main() -> int:
    """Up, the story, down; 0 when it was told to its end and nothing is left running."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--save", action="store_true", help="keep the output for the README")
    save = parser.parse_args().save
    # sockets have short names, so the lab lies directly below /tmp
    work = Path(tempfile.mkdtemp(prefix="hpcscale-demo-", dir="/tmp"))
    demo = Demo(work / "lab", work / "digits")
    try:
        make_project(demo.project)
        demo.chapter("Real Slurm on this machine")
        try:
            demo.run("lab", "up", "--dir", str(demo.lab))
            story(demo)
            summary(demo)
        finally:
            if demo.lab.exists():
                demo.run("lab", "down", "--dir", str(demo.lab))
        left = left_running(work)
        if left:
            raise SystemExit("demo: still running: " + "; ".join(left))
        demo.say(f"\n# Nothing is left running. {time.monotonic() - demo.begin:.0f} s in all.")
    finally:
        shutil.rmtree(work, ignore_errors=True)
    if save:
        text = "\n".join(demo.shown).strip() + "\n"
        (HERE / "output.txt").write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
