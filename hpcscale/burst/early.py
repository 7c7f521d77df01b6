"""Data that goes ahead of its job: how much of it a target lacks, and sending it there.

Code and large inputs are kept at a site by their content, and the run's directory there has the
same name whenever its job comes: what was sent early is found again, and a later submission sends
what changed since. Secrets do not go ahead.
"""

import datetime as dt
import os
from pathlib import Path

from hpcscale.burst.asked import spec_for
from hpcscale.burst.plan import Decision
from hpcscale.connect import Connection
from hpcscale.errors import HpcscaleError
from hpcscale.inputs import KEEP_DAYS, LARGE_BYTES
from hpcscale.ledger import Ledger, Run, utc_now
from hpcscale.prepare import code_of, pack_code, prepare, secret_files
from hpcscale.render.places import places
from hpcscale.site import Site
from hpcscale.spec import JobSpec
from hpcscale.staging import make_run_dir, stage_in
from hpcscale.urls import is_url

EVENT = "run.staged"
MOST_FILES = 100_000  # of one input: more are not counted at each look


class Sizes:
    """Gigabytes of a run's inputs that a target has not got; each path is looked at once.

    Args:
        ledger: knows what was sent early.
    """

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._known: dict[str, tuple[int, int] | None] = {}
        self._there: dict[str, dict[str, list[int]]] | None = None

    def __call__(self, spec: JobSpec, site: Site, run_id: str) -> float | None:
        """None: some of it cannot be counted (a URL, a path of the site, too many files)."""
        try:
            found = [p for p in places(spec, site) if p.kind == "input" and not p.in_place]
        except HpcscaleError:
            return None
        if not found:
            return 0.0
        if any(e.data.get("site") == site.name for e in self._ledger.events(run_id, EVENT)):
            return 0.0
        there = self._replicas(site.name)
        total = 0
        for path in {p.local for p in found}:
            if (seen := self._seen(path)) is None:
                return None
            total += 0 if there.get(path) == list(seen) else seen[0]
        return total / 1e9

    def _replicas(self, site: str) -> dict[str, list[int]]:
        """Large inputs that the site has kept from any run: path -> the version of it."""
        if self._there is None:
            self._there = {}
            oldest = utc_now() - dt.timedelta(days=KEEP_DAYS - 1)
            for event in self._ledger.events(kind=EVENT):
                if event.at >= oldest:
                    kept = self._there.setdefault(str(event.data.get("site")), {})
                    kept.update(event.data.get("inputs", {}))
        return self._there.get(site, {})

    def _seen(self, path: str) -> tuple[int, int] | None:
        if path not in self._known:
            self._known[path] = _looked(path)
        return self._known[path]


def _looked(path: str) -> tuple[int, int] | None:
    """Bytes of a file or a tree, and when the newest part of it changed (ns); None: unknown."""
    if is_url(path):
        return None
    try:
        root = Path(path)
        if not root.is_dir():
            found = root.stat()
            return found.st_size, found.st_mtime_ns
        total = count = 0
        newest = root.stat().st_mtime_ns
        for folder, below, names in os.walk(path):
            count += len(names)
            if count > MOST_FILES:
                return None
            parts = [Path(folder, name).lstat() for name in names]
            total += sum(part.st_size for part in parts)
            folders = [Path(folder, name).lstat() for name in below]
            newest = max([newest, *(part.st_mtime_ns for part in (*parts, *folders))])
    except OSError:
        return None
    return total, newest


def send_early(
    ledger: Ledger, run: Run, decision: Decision, site: Site, connection: Connection
) -> bool:
    """Send a run's code and inputs to where it is likely to go; submits nothing.

    Returns:
        False: that was done before.

    Raises:
        HpcscaleError: it cannot be read here or written there; the move will say so again.
    """
    if any(e.data.get("site") == site.name for e in ledger.events(run.run_id, EVENT)):
        return False
    origin = ledger.find(decision.ref)
    rendered = prepare(
        spec_for(run.spec, origin.time_limit_s, site, decision.partition),
        site,
        code=code_of(ledger, origin.run_id),
    )
    run_dir = f"{connection.state_dir}/runs/{run.run_id}"
    make_run_dir(connection.transport, run_dir)
    stage_in(
        connection.transport,
        run_dir,
        rendered.staged,
        code=pack_code(rendered),
        never=secret_files(run.spec.secrets),
    )
    note_sent(ledger, run, site, why=decision.stage_why)
    return True


def note_sent(ledger: Ledger, run: Run, site: Site, *, why: str = "") -> None:
    """Write down which inputs a site has now: it keeps the large ones for other runs."""
    sent = [p.local for p in places(run.spec, site) if p.kind == "input" and not p.in_place]
    kept = {path: list(seen) for path in sent if (seen := _looked(path)) and seen[0] >= LARGE_BYTES}
    ledger.event(run.run_id, EVENT, {"site": site.name, "why": why, "inputs": kept})
