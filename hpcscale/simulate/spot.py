"""Spot policies on recorded availability: what they cost, and what they close of the gap."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hpcscale.errors import InvalidFileError, NotFoundError
from hpcscale.simulate import spot_kernel as kernel
from hpcscale.simulate.overflow import Ints


@dataclass(frozen=True, slots=True, eq=False)
class Availability:
    """One zone's record (the format of skypilot-org/spot-traces).

    Attributes:
        look_h: hours between two looks.
        up: 1 where an instance could be had.
    """

    name: str
    look_h: float
    up: Ints


@dataclass(frozen=True, slots=True)
class SpotResult:
    """Means over all starts, in units of running on demand throughout.

    Attributes:
        greedy: spot when it is up, else wait until on-demand is the last chance.
        ours: the progress line.
        floor: spot while it is up, on-demand for the rest, no delays: no policy is below.
        best: the best in hindsight, delays included (rounded down): no policy is below.
        missed: deadlines missed by ours.
        starts: how many were replayed.
    """

    greedy: float
    ours: float
    floor: float
    best: float
    missed: int
    starts: int

    @property
    def gap_closed(self) -> float:
        """Of the way from greedy to the floor."""
        return (self.greedy - self.ours) / (self.greedy - self.floor)

    @property
    def gap_closed_to_best(self) -> float:
        """Of the way from greedy to the best in hindsight."""
        return (self.greedy - self.ours) / (self.greedy - self.best)


def read_availability(path: Path) -> Availability:
    """A record of one zone.

    Raises:
        NotFoundError: no such file.
        InvalidFileError: not of this format.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        look_h = float(data["metadata"]["gap_seconds"]) / 3600
        up = (np.array(data["data"], dtype=np.int64) > 0).astype(np.int64)
    except FileNotFoundError as exc:
        raise NotFoundError(f"no file {str(path)!r}") from exc
    except (ValueError, KeyError, TypeError) as exc:
        raise InvalidFileError("no record of availability", where=str(path)) from exc
    return Availability(path.stem, look_h, up)


def replay_spot(
    zones: Iterable[Availability],
    *,
    work_h: float = 24.0,
    slack: float = 1.15,
    delay_h: float = 0.2,
    price_ratio: float = 0.3,
    start_every_h: float = 6.0,
    since: float = 0.0,
) -> SpotResult:
    """Jobs that start all over the records, each alone in its zone.

    Args:
        zones: the records.
        work_h: of each job.
        slack: deadline over work.
        delay_h: of each start.
        price_ratio: spot over on-demand.
        start_every_h: between two jobs.
        since: only jobs that start after so much of each record.
    """
    time = slack * work_h
    greedy, ours, floor, best = [], [], [], []
    missed = 0
    for zone in zones:
        length = int(time / zone.look_h) + 3
        for first in range(0, len(zone.up) - length, int(start_every_h / zone.look_h)):
            if first < since * len(zone.up):
                continue
            up = zone.up[first : first + length]
            args = (up, zone.look_h, work_h, time, delay_h, price_ratio)
            greedy.append(kernel.replay(*args, True)[0])
            cost, end = kernel.replay(*args, False)
            ours.append(cost)
            missed += end > time + 1e-6
            most = min(work_h, (float(up[: length - 3].sum()) + 1) * zone.look_h)
            floor.append(price_ratio * most + work_h - most)
            best.append(kernel.best(*args))
    return SpotResult(
        greedy=float(np.mean(greedy)) / work_h,
        ours=float(np.mean(ours)) / work_h,
        floor=float(np.mean(floor)) / work_h,
        best=float(np.mean(best)) / work_h,
        missed=missed,
        starts=len(ours),
    )
