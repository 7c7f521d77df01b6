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

from sim_faults import CLOUD, ONPREM

import hpcscale.executor.watch
import hpcscale.judge
import hpcscale.render
import hpcscale.submit
from hpcscale import units
from hpcscale.burst.handover import Handover
from hpcscale.burst.moves import Moves, Step
from hpcscale.burst.sight import Sight
from hpcscale.ledger import Ledger
from hpcscale.ledger_file import LedgerFile
from hpcscale.render import render
from hpcscale.site import load_site
from hpcscale.slurm.types import JobState, JobStatus

START = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)


class Base:
    """What all interleavings start from, made once: a job in a full on-prem queue, and its ledger."""

    def __init__(self):
        self.folder = Path(tempfile.mkdtemp(prefix="hpcscale-sim-", dir=_fast_folder()))
        os.environ["HPCSCALE_STATE_DIR"] = str(self.folder / "state")
        self.sites = {
            name: load_site(name, [f"state_dir=/site/{name}"]).site for name in (ONPREM, CLOUD)
        }

    def close(self):
        shutil.rmtree(self.folder, ignore_errors=True)


def _fast_folder():
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


def memory_ledger(path, source=None):
    """A ledger in memory: a new one, or a copy."""
    db = sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False)
    if source is not None:
        source._db.backup(db)
    ledger = Ledger(path, db)
    ledger._prepare()
    return ledger


PURE = (units.expand_hostlist, units.fold_hostlist)
_RENDERED = {}
_REAL_RENDER = render
_REAL_WRITE = LedgerFile._write
_REAL_SAVE = Moves.save
_REAL_UTC_NOW = hpcscale.ledger.utc_now


def _render(spec, site, **options):
    """Rendering is pure: the same job is rendered once for all interleavings."""
    key = (repr(spec), site.name, repr(options))
    if key not in _RENDERED:
        _RENDERED[key] = _REAL_RENDER(spec, site, **options)
    return _RENDERED[key]


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
    def monotonic():
        return _WORLD[0].monotonic()


@contextlib.contextmanager
def simulated():
    """Time, kills and ledger writes are the world's, for all of hpcscale."""
    undo = []
    remembered = {f.__name__: _remembered(f) for f in PURE}

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
        for pure in PURE:
            if getattr(module, pure.__name__, None) is pure:
                put(module, pure.__name__, remembered[pure.__name__])
    put(LedgerFile, "_write", _write)
    put(Moves, "save", _save)
    put(hpcscale.render, "render", _render)
    put(hpcscale.executor.watch, "_WATCHERS", {})
    put(hpcscale.judge, "_still_submitting", lambda *_: _submitting())
    put(hpcscale.submit, "new_submission_id", lambda: f"hs-{next(_WORLD[0].numbers):016x}")
    put(hpcscale.submit, "new_run_id", lambda: "rsimulation")
    base = Base()
    try:
        yield base
    finally:
        base.close()
        for where, name, value in reversed(undo):
            setattr(where, name, value)


def _remembered(pure):
    """A pure function of a text or of names; callers may change the list that they get."""
    known = {}

    def call(arg):
        key = arg if isinstance(arg, str) else tuple(arg)
        if key not in known:
            known[key] = pure(arg)
        found = known[key]
        return list(found) if isinstance(found, list) else found

    return call


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
    """A handover that trusts what it saw of the fence a tick ago."""
    look_again = Handover._keep_fence

    def trusting(self, move, origin, connection):
        if move.step is not Step.CLAIMING:
            return look_again(self, move, origin, connection)
        status = JobStatus(origin.job_id, JobState.PENDING, "PENDING", exc_nodes=move.fence or "")
        return move, Sight(status)

    if "fence" in rules:
        Handover._keep_fence = trusting
    try:
        yield
    finally:
        Handover._keep_fence = look_again
