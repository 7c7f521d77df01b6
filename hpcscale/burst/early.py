"""Data that goes ahead of its job: how much of it a target lacks, and sending it there.

Code and large inputs are kept at a site by their content, and the run's directory there has the
same name whenever its job comes: what was sent early is found again, and a later submission sends
what changed since. Secrets do not go ahead.
"""

import os
from pathlib import Path

from hpcscale.burst.asked import spec_for
from hpcscale.burst.plan import Decision
from hpcscale.connect import Connection
from hpcscale.errors import HpcscaleError
from hpcscale.ledger import Ledger, Run
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
        self._known: dict[str, int | None] = {}

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
        sizes = [None if is_url(p.local) else self._size(p.local) for p in found]
        known = [size for size in sizes if size is not None]
        return sum(known) / 1e9 if len(known) == len(sizes) else None

    def _size(self, path: str) -> int | None:
        if path not in self._known:
            self._known[path] = _size_of(path)
        return self._known[path]


def _size_of(path: str) -> int | None:
    try:
        root = Path(path)
        if not root.is_dir():
            return root.stat().st_size
        total = count = 0
        for folder, _, names in os.walk(path):
            count += len(names)
            if count > MOST_FILES:
                return None
            total += sum(Path(folder, name).lstat().st_size for name in names)
    except OSError:
        return None
    return total


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
    ledger.event(run.run_id, EVENT, {"site": site.name, "why": decision.stage_why})
    return True
