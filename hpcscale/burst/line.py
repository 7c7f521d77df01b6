"""A job on nodes that may be taken back: its progress line, its safety net, what it costs. Pure.

The moments are those of ``burst.spot``, which the simulator runs: spot is taken only while the
slack (time left less work left) bears one taking at the worst moment and a start on demand after
that. A job that waits for a spot node goes to the net when its slack falls below the line, the
share of its first slack that belongs to the work still to do, and always before the last moment at
which on-demand still makes it. A job without a deadline has slack without end: only ``tries`` and
the boot timeout bring it to the net.
"""

import datetime as dt
import enum
import math
from decimal import ROUND_UP, Decimal

import msgspec

from hpcscale.burst import spot
from hpcscale.cost import CENT

REQUEUE_S = 120  # slurmctld notices a lost node, ends the job and puts it back into the queue


class Line(msgspec.Struct, frozen=True, kw_only=True):
    """What a job on spot nodes is held against.

    Attributes:
        deadline: when results are wanted, less the policy's margin; None: at any time.
        limit_s: bound of its runtime.
        boot_s: bound of a spot node's start, and ``net_boot_s`` of the net's.
        lost_s: work that a taken node loses at most: all of it without checkpoints.
        look_s: bound of the time between a taking and what is done about it.
        first_slack_s: the slack when it was sent there.
        boot_timeout_s: it waits no longer for a spot node.
        tries: takings after which it goes to the net.
    """

    deadline: dt.datetime | None = None
    limit_s: int
    boot_s: int
    net_boot_s: int
    lost_s: int
    look_s: int
    first_slack_s: float = 0.0
    boot_timeout_s: int = 1800
    tries: int = 3

    def slack_s(self, now: dt.datetime, done_s: float = 0.0) -> float:
        """Seconds left, less the work left; infinite without a deadline."""
        if self.deadline is None:
            return math.inf
        return (self.deadline - now).total_seconds() - (self.limit_s - done_s)

    def bears(self, now: dt.datetime, done_s: float = 0.0) -> bool:
        """Whether a spot node may be asked for now: it is taken at the worst moment, and yet."""
        delay_s = (self.boot_s + self.lost_s + self.net_boot_s) / 2
        place = spot.choose(
            True, spot.WAIT, self.slack_s(now, done_s) / 3600, 0.0, 1.0,
            delay_s / 3600, self.look_s / 3600,
        )  # fmt: skip
        return place == spot.SPOT


class Standing(enum.StrEnum):
    """How the job stands with Slurm."""

    RUNNING = "running"
    BOOTING = "booting"
    WAITING = "waiting"


def to_net(
    line: Line, now: dt.datetime, standing: Standing, *, waited_s: float, taken: int, done_s: float
) -> str | None:
    """Why it goes to the net now, half a sentence; None: it stays with spot until the next look.

    Args:
        line: of the job.
        now: its site's clock.
        standing: of the job.
        waited_s: since it was last put into the queue.
        taken: how often its nodes were taken back.
        done_s: work of earlier starts that a checkpoint has kept.
    """
    slack_s = line.slack_s(now, done_s)
    # until the next look nothing is done: what is safe must be safe then, too
    if slack_s < 2 * line.look_s + line.net_boot_s:
        return "its slack is used up: from here on only nodes that nobody takes back make it"
    if standing is Standing.RUNNING:
        return None
    if taken >= line.tries:
        return f"its nodes were taken back {taken} times"
    if waited_s > line.boot_timeout_s:
        return f"no spot node came within {round(line.boot_timeout_s / 60)} min"
    # a spot node that comes before the next look begins with the slack that is left then
    if waited_s > line.boot_s or taken:
        later = now + dt.timedelta(seconds=line.look_s)
        if not line.bears(later, done_s):
            return "its slack does not bear that another spot node is taken back"
    if standing is Standing.WAITING and waited_s > line.boot_s and line.deadline is not None:
        left = max(0.0, 1.0 - done_s / max(1, line.limit_s))
        place = spot.choose(
            False, spot.WAIT, slack_s / 3600, line.first_slack_s / 3600, left,
            line.net_boot_s / 3600, line.look_s / 3600,
        )  # fmt: skip
        if place == spot.ON_DEMAND:
            return "no spot node came, and it is behind its progress line"
    return None


def expected_usd(
    *,
    gpus: int,
    hours: float,
    boot_h: float,
    lost_h: float | None,
    gpu_hour_usd: Decimal,
    taken_per_h: float,
    net_usd: Decimal,
    tries: int,
) -> Decimal:
    """Expected dollars of a job on spot nodes, the net's share among them.

    Takings come at random at a constant rate. With checkpoints each one costs a boot and the work
    since the last of them, and more than ``tries`` the price of the net; without them each start
    begins anew, and after ``tries`` lost starts the net runs all of it.

    Args:
        gpus: billed, of all nodes.
        hours: of work.
        boot_h: of one start.
        lost_h: work lost by a taking; None: all of it.
        gpu_hour_usd: of the spot nodes.
        taken_per_h: chance an hour that one of its nodes is taken.
        net_usd: the whole job on the net.
        tries: see ``Line``.
    """
    rate = max(0.0, taken_per_h)
    mean = rate * hours
    if lost_h is not None:
        held_h = boot_h + hours + min(mean, float(tries)) * (boot_h + lost_h)
        few = sum(math.exp(-mean) * mean**k / math.factorial(k) for k in range(tries))
        net = 1.0 - few
    else:
        fails = -math.expm1(-mean)
        ran_h = hours if mean < 1e-9 else fails / rate
        starts = sum(fails**k for k in range(tries))
        held_h = starts * (boot_h + ran_h)
        net = fails**tries
    spot_usd = Decimal(gpus) * Decimal(held_h) * gpu_hour_usd
    return (spot_usd + Decimal(net) * net_usd).quantize(CENT, ROUND_UP)
