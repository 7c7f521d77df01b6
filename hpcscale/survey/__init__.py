"""``site check``: does a site do what its profile promises? Asked of the live site, never assumed.

Every check says what was seen and, when it is not well, what to write or to ask for.
"""

import datetime as dt
import time
from collections.abc import Iterator

from hpcscale.connect import Connection
from hpcscale.errors import HpcscaleError, UnreachableError
from hpcscale.precheck import fetch_facts
from hpcscale.slurm.types import SiteFacts
from hpcscale.survey.checks import Check, Verdict, silent
from hpcscale.survey.live import numbers, state_directory, submit_tests
from hpcscale.survey.profile import gpus, partitions, profile

__all__ = ["Check", "Verdict", "survey"]

TESTED_FROM = (22, 5)  # the oldest Slurm that the test suite has run on
CLOCK_WARN_S = 5.0


def survey(connection: Connection, *, probe_job: bool) -> Iterator[Check]:
    """Look at a site, one check after the other; ends early when nobody answers.

    Args:
        connection: to the site.
        probe_job: run a job of some seconds on one node (a cloud site boots one, and bills it).
    """
    site = connection.site
    began = time.monotonic()
    try:
        connection.transport.run(["true"], timeout_s=site.transport.connect_timeout_s + 20)
    except UnreachableError as exc:
        yield silent("connect", exc)
        return
    took = f"{time.monotonic() - began:.2f} s"
    yield Check("connect", Verdict.OK, f"{connection.transport.name} answered in {took}")
    try:
        facts = fetch_facts(site, connection.client)
    except UnreachableError as exc:
        yield silent("controller", exc)
        return
    except HpcscaleError as exc:
        yield Check("controller", Verdict.FAIL, str(exc), exc.hint or "")
        return
    yield _version(facts)
    yield _clock(connection)
    yield from partitions(site, facts)
    yield gpus(site, facts)
    yield from submit_tests(connection, facts)
    yield from state_directory(connection, facts, probe_job=probe_job)
    yield from profile(site, dt.datetime.now(dt.UTC).date())


def _version(facts: SiteFacts) -> Check:
    message = f"Slurm {facts.version}, cluster {facts.cluster}, " + (
        "with slurmdbd" if facts.has_accounting else "without slurmdbd"
    )
    if numbers(facts.version)[:2] < TESTED_FROM:
        return Check(
            "controller", Verdict.WARN, message, "older than 22.05, the oldest Slurm tested with"
        )
    return Check("controller", Verdict.OK, message)


def _clock(connection: Connection) -> Check:
    before = dt.datetime.now(dt.UTC)
    try:
        there = connection.client.now()
    except UnreachableError as exc:
        return silent("clock", exc)
    after = dt.datetime.now(dt.UTC)
    offset_s = (there - (before + (after - before) / 2)).total_seconds()
    # the controller tells whole seconds, and the answer took its time
    unsure_s = 1 + (after - before).total_seconds() / 2
    message = f"the controller's clock is {offset_s:+.1f} s from ours (± {unsure_s:.1f} s)"
    if abs(offset_s) > CLOCK_WARN_S + unsure_s:
        return Check(
            "clock", Verdict.WARN, message, "deadlines are reckoned by its clock; ask for NTP"
        )
    return Check("clock", Verdict.OK, message)
