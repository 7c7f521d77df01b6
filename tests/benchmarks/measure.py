"""CPU and wall time of whole processes, measured alternately so that both see the same machine."""

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path


@dataclass
class Series:
    """Times of one program, in seconds; CPU is user + system of it and all its descendants."""

    cpu_s: list[float] = field(default_factory=list)
    wall_s: list[float] = field(default_factory=list)

    @property
    def cpu(self) -> float:
        return statistics.median(self.cpu_s)

    @property
    def wall(self) -> float:
        return statistics.median(self.wall_s)

    def as_dict(self) -> dict[str, object]:
        return {
            "cpu_median_s": round(self.cpu, 4),
            "wall_median_s": round(self.wall, 4),
            "cpu_s": [round(v, 4) for v in self.cpu_s],
            "wall_s": [round(v, 4) for v in self.wall_s],
        }


def once(
    argv: Sequence[str], env: Mapping[str, str] | None = None, cwd: Path | None = None
) -> tuple[float, float, str]:
    """Run to the end: (CPU seconds, wall seconds, standard output); exits when the program fails.

    wait4 counts the descendants that the program itself has waited for, which both sides of each
    comparison do.
    """
    with open(os.devnull) as nothing:  # noqa: PTH123  # a descriptor is all that is wanted
        read, write = os.pipe()
        begin = time.perf_counter()
        process = subprocess.Popen(  # reaped below by wait4, which Popen cannot do
            argv, stdin=nothing, stdout=write, stderr=subprocess.STDOUT, env=env, cwd=cwd
        )
        os.close(write)
        with os.fdopen(read, encoding="utf-8", errors="replace") as stream:
            output = stream.read()
        _, status, usage = os.wait4(process.pid, 0)
        wall = time.perf_counter() - begin
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        sys.exit(f"bench: {' '.join(argv)} failed ({process.returncode}):\n{output}")
    return usage.ru_utime + usage.ru_stime, wall, output


def alternate(
    programs: Mapping[str, Sequence[str]],
    rounds: int,
    *,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    after: Callable[[str, str], None] | None = None,
) -> dict[str, Series]:
    """Run the programs in turn, ``rounds`` times; a first round warms caches and is not counted.

    Args:
        programs: name -> argv.
        rounds: measured runs of each.
        env: environment of all.
        cwd: where all of them start.
        after: called with (name, output) after each run, outside the measured time.
    """
    series = {name: Series() for name in programs}
    for number in range(rounds + 1):
        for name, argv in programs.items():
            cpu, wall, output = once(argv, env, cwd)
            if number:
                series[name].cpu_s.append(cpu)
                series[name].wall_s.append(wall)
            if after:
                after(name, output)
    return series
