"""ResumeProgram and SuspendProgram of the cloud site: a slurmd that starts is a VM that boots.

Executed by path from a copy in the site's tree: standard library only. slurmctld gives these
programs an empty environment, no stdin and a set of blocked signals (hence ``node`` of
``nsinit.py`` resets the mask), and a node counts as booted only with ``slurmd -b``.

Of a slurmd that starts within the second of its request, slurmctld may hear nothing: it takes its
clock minus the uptime that ``slurmd -b`` reports for the time of the boot, both in whole seconds
that do not begin at the same moment. A boot that seems older than its request is answered with
success and passed over (``waiting_for_node_boot`` of slurmctld); slurmd does not register again,
and nodes that boot are not pinged. So a boot ends in a later second than its request came in, and a
node that has not registered for a while gets a new slurmd, as from a service that is restarted.
"""

import contextlib
import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
# within that time a slurmd registers, if it ever does
AGAIN_S = 8.0
STARTS = 4


def say(text: str) -> None:
    """One line in power.log."""
    stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime())
    with (HERE.parent / "log" / "power.log").open("a") as log:
        log.write(f"[{stamp}] {text}\n")


def read(name: str) -> Any:
    """A JSON file beside this one; empty when there is none."""
    try:
        return json.loads((HERE / name).read_text())
    except FileNotFoundError:
        return {}


def expand(config: Any, hostlist: str) -> list[str]:
    """A hostlist as names, by Slurm's own tool."""
    done = subprocess.run(
        [config["scontrol"], "show", "hostnames", hostlist],
        env=config["env"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=True,
        timeout=20,
    )
    return done.stdout.split()


def never_boots(nodes: list[str], faults: Any) -> set[str]:
    """The nodes of one request that do not come up: named ones, or the last k of it."""
    wanted = faults.get("no_boot", [])
    if isinstance(wanted, int):
        return set(nodes[len(nodes) - min(wanted, len(nodes)) :])
    return set(nodes) & set(wanted)


def slow(node: str, faults: Any) -> float:
    """By how many seconds a node's boot is slowed down now."""
    named = faults.get("slow_boot_nodes")
    return float(faults.get("slow_boot_s", 0)) if not named or node in named else 0.0


@contextlib.contextmanager
def switch(config: Any, node: str) -> Iterator[Path]:
    """The node's power switch, held: its file says when it was last switched off (monotonic)."""
    file = Path(config["run"]) / f"power.{node}"
    with file.open("a") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        yield file


def boot(config: Any, node: str, asked: float, *, again: bool = False) -> None:
    """Start a slurmd, unless the node was switched off again while it booted."""
    with switch(config, node) as file:
        if float(file.read_text() or 0) > asked:
            say(f"{node} was powered off before it had booted")
            return
        if again:
            say(f"{node} has not registered: its slurmd is started again")
            stop(Path(config["run"]) / f"slurmd.{node}.pid")
        for _ in range(STARTS):
            done = subprocess.run(
                [
                    *(*config["node"][node], config["slurmd"]),
                    *("-b", "-N", node, "-f", config["slurm_conf"]),
                ],
                env=config["env"],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                check=False,
                timeout=60,
            )
            if done.returncode == 0:
                break
            say(f"slurmd of {node} exited {done.returncode}")
            time.sleep(1)
        else:
            return
    say(f"{node} booted")


def look_after(config: Any, started: dict[str, float], asked: float) -> None:
    """Take those that have registered out of ``started``; start those again that are late."""
    run = Path(config["run"])
    for node in list(started):
        off = float((run / f"power.{node}").read_text() or 0)
        if off > asked or (run / f"{node}.lost-power").exists():
            del started[node]  # if it boots again, that is another request's
    if not started:
        return
    sinfo = str(Path(config["scontrol"]).parent / "sinfo")
    try:
        done = subprocess.run(
            [sinfo, "-h", "-N", "-n", ",".join(started), "-o", "%N %t"],
            env=config["env"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=True,
            timeout=20,
        )
    except (OSError, subprocess.SubprocessError):
        return  # where slurmctld does not answer, slurmd tries again by itself
    for node, state in dict(line.split() for line in done.stdout.splitlines()).items():
        if not state.endswith("#"):
            del started[node]
        elif time.monotonic() - started[node] > AGAIN_S:
            boot(config, node, asked, again=True)
            started[node] = time.monotonic()


def resume(config: Any, nodes: list[str], asked: float) -> None:
    """Boot the nodes of one request, which came at ``asked`` (monotonic)."""
    next_second = asked + 1 - (time.time() - (time.monotonic() - asked)) % 1
    faults = read("faults.json")
    dead = never_boots(nodes, faults)
    slowness = {node: slow(node, faults) for node in nodes}
    started: dict[str, float] = {}
    for node in sorted(nodes, key=lambda n: slowness[n]):
        if node in dead:
            say(f"{node} does not boot (lab fault no-boot)")
            continue
        ready = max(asked + config["boot_delay_s"], next_second)
        # read again: it boots at once when the fault ends
        while (left := ready + slow(node, read("faults.json")) - time.monotonic()) > 0:
            look_after(config, started, asked)
            time.sleep(min(left, 0.2))
        boot(config, node, asked)
        started[node] = time.monotonic()
    end = time.monotonic() + STARTS * AGAIN_S
    while started and time.monotonic() < end:
        look_after(config, started, asked)
        time.sleep(0.2)


def suspend(config: Any, nodes: list[str]) -> None:
    """Switch nodes off."""
    for node in nodes:
        with switch(config, node) as off:
            off.write_text(str(time.monotonic()))
            stop(Path(config["run"]) / f"slurmd.{node}.pid")
        say(f"{node} powered off")


def stop(file: Path) -> None:
    """End the slurmd of a pid file, if there is one."""
    try:
        pid = int(file.read_text())
        os.kill(pid, signal.SIGTERM)
        for _ in range(20):
            time.sleep(0.05)
            os.kill(pid, 0)
        os.kill(pid, signal.SIGKILL)
    except (OSError, ValueError):
        pass  # no pid file, or it has ended
    file.unlink(missing_ok=True)


def main(verb: str, hostlist: str) -> None:
    """Carry out one request of slurmctld."""
    asked = time.monotonic()
    signal.pthread_sigmask(signal.SIG_SETMASK, set())
    config = read("power.json")
    say(f"{verb} {hostlist}")
    nodes = expand(config, hostlist)
    if verb == "resume":
        resume(config, nodes, asked)
    elif verb == "suspend":
        suspend(config, nodes)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
