"""The real code in a simulation: its time, its kills and its ledgers' writes are the world's."""

import contextlib
import datetime as dt
import os
import shutil
import sqlite3
import sys
import tempfile
import types
from pathlib import Path

import sim_kinds
import sim_site
import sim_speed
from sim_faults import CLOUD, ONPREM

import hpcscale.burst.run
import hpcscale.executor.watch
import hpcscale.judge
import hpcscale.submit
from hpcscale.burst.handover import Handover
from hpcscale.burst.moves import Moves, Step
from hpcscale.burst.sight import Sight
from hpcscale.ledger import Ledger
from hpcscale.ledger_file import LedgerFile
from hpcscale.site import load_site
from hpcscale.slurm.types import JobState, JobStatus

# of a ledger, each after those that it refers to
TABLES = (
    "runs", "scripts", "attempts", "elements", "sites", "decisions", "events", "moves",
)  # fmt: skip
START = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)


class Base:
    """What all interleavings start from, made once: a job in a full on-prem queue, and its ledger."""

    def __init__(self):
        self.folder = Path(tempfile.mkdtemp(prefix="hpcscale-sim-", dir=_fast_folder()))
        os.environ["HPCSCALE_STATE_DIR"] = str(self.folder / "state")
        self._ledgers = {}
        self.starts = {}  # by kind of work
        self.sites = {
            name: load_site(name, [f"state_dir=/site/{name}"]).site for name in (ONPREM, CLOUD)
        }

        self.with_partition = load_site(
            ONPREM, [f"state_dir=/site/{ONPREM}", *sim_kinds.PARTITION]
        ).site

    def ledger(self, name, source=None):
        """An empty ledger in memory, or a copy of another."""
        if name not in self._ledgers:
            self._ledgers[name] = memory_ledger(self.folder / name)
        _copy_rows(self._ledgers[name], source)
        return self._ledgers[name]

    def close(self):
        for ledger in self._ledgers.values():
            ledger.close()
        shutil.rmtree(self.folder, ignore_errors=True)


def _fast_folder():
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


def memory_ledger(path):
    """A new ledger in memory."""
    ledger = Ledger(
        path,
        sqlite3.connect(
            ":memory:", isolation_level=None, factory=sim_speed.Counting, cached_statements=500
        ),
    )
    ledger._prepare()
    triggers = (
        "SELECT name FROM sqlite_master WHERE type = 'trigger' AND sql LIKE '%BEFORE DELETE%'"
    )
    for (name,) in ledger._db.execute(triggers).fetchall():
        ledger._db.execute(f"DROP TRIGGER {name}")  # we ourselves delete, between interleavings
    return ledger


def _copy_rows(ledger, source):
    """Of a ledger used before: rows go, and those of another come; its statements stay compiled."""
    db = ledger._db
    rows = {} if source is None else source._db.all_rows()
    # what refers to another goes before it and comes after it: to switch foreign keys off and on
    # would have each statement compiled again
    db.execute("BEGIN")
    for table in reversed(TABLES):
        if table in db.used:
            db.execute(f"DELETE FROM {table}")
    for table in TABLES:
        if those := rows.get(table):
            marks = ", ".join("?" * len(those[0]))
            db.executemany(f"INSERT INTO {table} VALUES ({marks})", those)
    db.execute("COMMIT")
    db.known.clear()
    assert db.used <= set(TABLES), db.used
    db.used = set(rows)


_REAL_WRITE = LedgerFile._write
_REAL_SAVE = Moves.save
_REAL_UTC_NOW = hpcscale.ledger.utc_now


_WORLD = [None]


@contextlib.contextmanager
def _write(self):
    world = _WORLD[0]
    process = world.current() if world else None
    if process is not None:
        world.around_save(process)
    with _REAL_WRITE(self):
        yield
    if process is not None:
        world.after_save(process)


def _save(self, move, **changes):
    world = _WORLD[0]
    after = _REAL_SAVE(self, move, **changes)
    process = world.current() if world else None
    if after is not None and process is not None:
        world.moved(process, move, after)
    return after


def _utc_now():
    return _WORLD[0].utc_now() if _WORLD[0] else _REAL_UTC_NOW()


class _Time:
    """Stands in for the module ``time``."""

    @staticmethod
    def sleep(seconds):
        _WORLD[0].sleep(seconds)

    @staticmethod
    def time():
        return _WORLD[0].utc_now().timestamp()

    @staticmethod
    def monotonic():
        return _WORLD[0].monotonic()


@contextlib.contextmanager
def simulated(*, remembered=True):
    """Time, kills and ledger writes are the world's, for all of hpcscale.

    Args:
        remembered: whether answers are (``sim_speed``); the same happens without, slowly.
    """
    undo = []

    def put(where, name, value):
        undo.append((where, name, getattr(where, name)))
        setattr(where, name, value)

    for name, module in list(sys.modules.items()):
        if not name.startswith("hpcscale"):
            continue
        if getattr(module, "utc_now", None) is _REAL_UTC_NOW:
            put(module, "utc_now", _utc_now)
        if name.startswith("hpcscale.burst") and isinstance(
            getattr(module, "time", None), types.ModuleType
        ):
            put(module, "time", _Time)
    put(LedgerFile, "_write", _write)
    put(Moves, "save", _save)
    put(hpcscale.executor.watch, "_WATCHERS", {})
    # snapshots of decisions lie in a folder that interleavings would share; nothing here reads them
    put(hpcscale.burst.run, "keep", lambda _: None)
    put(hpcscale.burst.run, "_facts", lambda _: _WORLD[0].facts)  # no file of them either
    put(hpcscale.judge, "_still_submitting", lambda *_: _submitting())
    put(hpcscale.submit, "new_submission_id", lambda: f"hs-{next(_WORLD[0].numbers):016x}")
    put(hpcscale.submit, "new_run_id", lambda: "rsimulation")
    base = Base()
    if remembered:
        sim_speed.remember(put, base.folder / "jobs")
    put(sim_site.MemorySlurm, "remembers", remembered)
    try:
        yield base
    finally:
        base.close()
        for where, name, value in reversed(undo):
            setattr(where, name, value)


def _submitting():
    """Whether a process that wrote a row of ours may still live: one that is in a call."""
    world = _WORLD[0]
    me = world.current()
    return any(p.busy and p is not me and not p.dead for p in world.processes)


@contextlib.contextmanager
def patched(world):
    _WORLD[0] = world
    try:
        yield
    finally:
        _WORLD[0] = None


@contextlib.contextmanager
def left_out(rules):
    """A handover that trusts what it saw of the fence a tick ago, or that counts an old price."""
    look_again, set_terms = Handover._keep_fence, Ledger.set_terms

    def trusting(self, move, origin, connection):
        if move.step is not Step.CLAIMING:
            return look_again(self, move, origin, connection)
        status = JobStatus(origin.job_id, JobState.PENDING, "PENDING", exc_nodes=move.fence or "")
        return move, Sight(status)

    if "fence" in rules:
        Handover._keep_fence = trusting
    if "price" in rules:
        Ledger.set_terms = lambda *_: None
    try:
        yield
    finally:
        Handover._keep_fence, Ledger.set_terms = look_again, set_terms
