"""Spot or on-demand for a job with a deadline: a progress line and a safety net. Arithmetic alone.

*Slack* is the time left less the work left. Spot is taken whenever it is up and the slack bears the
delay of starting there and, if it is taken back at once, of starting on demand. When it is down the
job waits as long as its slack is above the line: the share of its first slack that belongs to the
share of work still to do. Below the line, and always before the last moment at which on-demand
still makes it, it runs on demand. After "Can't Be Late" (NSDI'24): progress is uniform. A slack
that bears many starts is spent earlier: of much slack a good part is never needed again. A job
that runs on demand goes back to spot at once while its slack bears several starts, and else when
spot has been up for as long as two starts last: many spells are over before that.
"""

import math

WAIT, SPOT, ON_DEMAND = range(3)

CALM = 2.0  # so many starts long spot is to be up before a job with little slack goes back to it
FEW = 8.0  # a slack of fewer starts is little
STARTS = 20.0  # a slack of more starts than this is spent earlier


def choose(  # noqa: PLR0917 -- numba takes no keywords
    up: bool,
    on: int,
    slack_h: float,
    first_slack_h: float,
    work_left: float,
    delay_h: float,
    look_h: float,
    up_h: float = math.inf,
) -> int:
    """Where to run until the next look.

    Args:
        up: whether spot can be had now; a spot node that is up stays up until the next look.
        on: where it runs now; ``WAIT`` also when its spot node was just taken.
        slack_h: time left less work left less what is left of a start's delay.
        first_slack_h: the slack at the beginning.
        work_left: share of the work, 1 to 0.
        delay_h: of every start: boot, staging, work since the last checkpoint.
        look_h: until the next look.
        up_h: how long spot has been up.

    Returns:
        ``WAIT``, ``SPOT`` or ``ON_DEMAND``.
    """
    if up:
        if on == ON_DEMAND and up_h < CALM * delay_h and slack_h < FEW * delay_h:
            return ON_DEMAND
        if on == SPOT or slack_h - look_h >= 2.0 * delay_h:
            return SPOT
        return ON_DEMAND
    if on == ON_DEMAND:
        return ON_DEMAND  # leaving it would cost a second start
    line_h = first_slack_h * work_left
    if first_slack_h > STARTS * delay_h:
        line_h *= max(0.5, math.sqrt(STARTS * delay_h / first_slack_h))
    if slack_h - look_h >= delay_h and slack_h - look_h >= line_h:
        return WAIT
    return ON_DEMAND
