"""Targets without nodes, as a job's options know of them. Pure."""

from collections.abc import Iterable

import msgspec

from hpcscale.burst.plan import Candidate
from hpcscale.burst.seen import Shortage


def rested(job: Candidate, shortages: Iterable[Shortage]) -> Candidate:
    """The job with what is known of shortages at its targets."""
    known = {(s.target, s.partition): s for s in shortages}
    if not known:
        return job
    options = tuple(
        msgspec.structs.replace(option, resting_until=found.until, resting_why=found.why)
        if (found := known.get((option.site, option.partition)))
        else option
        for option in job.options
    )
    return msgspec.structs.replace(job, options=options)
