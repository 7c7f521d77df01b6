"""Answers that are remembered while the handover is simulated.

Only what depends on nothing but its arguments, or on a ledger that nobody has written to since. The
handover's own steps are never remembered, nor is any act: a simulation with this and one without
go the same way (``tests/unit/test_handover_simulation.py``).
"""

import functools
import sqlite3
import sys

import msgspec

import hpcscale.burst.candidates
import hpcscale.burst.decide
import hpcscale.burst.run
import hpcscale.ledger_rows
import hpcscale.prepare
import hpcscale.render
from hpcscale import units
from hpcscale.burst.moves import Moves
from hpcscale.executor import HpcscaleExecutor
from hpcscale.ledger import Attempt
from hpcscale.ledger_file import LedgerFile
from hpcscale.ledger_reads import LedgerReads
from hpcscale.ledger_rows import attempt_from_row
from hpcscale.render import render
from hpcscale.slurm import _squeue

MANY = 20_000  # remembered answers of one kind, then all are forgotten

READS = {  # a question to the ledger, and the table that it reads
    "runs": "runs", "run": "runs",
    "attempt": "attempts", "attempts": "attempts", "all_attempts": "attempts",
    "open_attempts": "attempts", "elements": "elements", "site_answers": "sites",
    "events": "events", "decisions": "decisions",
}  # fmt: skip
PURE = (units.expand_hostlist, units.fold_hostlist)
_REAL_PARSE = _squeue.parse
_REAL_RENDER = render


class Known(dict):
    """Answers by question; bounded."""

    def put(self, key, value):
        if len(self) >= MANY:
            self.clear()
        self[key] = value
        return value


def _copied(value):
    if isinstance(value, list):
        return list(value)
    return dict(value) if isinstance(value, dict) else value


def of_a_text(function):
    """A pure function of a text or of names; callers may change the list that they get."""
    known = Known()

    def call(arg):
        key = arg if isinstance(arg, str) else tuple(arg)
        if key not in known:
            known.put(key, function(arg))
        return _copied(known[key])

    return call


def of_what_stays(function):
    """A pure function of things that are neither changed nor thrown away; by identity."""
    known = Known()

    def call(*args, **options):
        key = (*map(id, args), *options.items())
        if key not in known:
            known.put(key, (function(*args, **options), args))
        return _copied(known[key][0])

    return call


@functools.cache
def _written(sql):
    """The table that a statement writes to; ``*``: it takes back what was written."""
    words = sql.split(None, 5)
    if words[0] in {"INSERT", "UPDATE", "DELETE"}:  # INSERT INTO t, INSERT OR … INTO t
        at = words.index("INTO") if "INTO" in words else words[0] == "DELETE"
        return words[at + 1].partition("(")[0]
    return "*" if words[0] == "ROLLBACK" else None


class Counting(sqlite3.Connection):
    """Heeds the writes to each table."""

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.known = {}  # table -> question -> answer, until the next write
        self.used = set()  # tables with rows
        self._rows = None

    def execute(self, sql, *values):
        if table := _written(sql):
            self._heed(table, *values)
        return super().execute(sql, *values)

    def executemany(self, sql, *values):
        if table := _written(sql):
            self._heed(table)
        return super().executemany(sql, *values)

    def _heed(self, table, values=()):
        self._rows = None
        if table == "*":
            self.known.clear()
            return
        self.used.add(table)
        if table == "events" and len(values) != 5:
            self.known.clear()
        self.known.pop(table, None)
        if table == "events" and values:  # of its kind alone something else is known now
            self.known.pop(("events", values[3]), None)

    def all_rows(self):
        """Table -> its rows."""
        if self._rows is None:
            found = {}
            for table in sorted(self.used):
                rows = super().execute(f"SELECT * FROM {table}").fetchall()
                found[table] = [tuple(row) for row in rows]
            self._rows = {table: rows for table, rows in found.items() if rows}
        return self._rows


def of_a_ledger(function, table, ledger_of=lambda it: it):
    """A question to a ledger: the same answer until somebody writes to its table."""
    name = function.__qualname__

    @functools.wraps(function)
    def ask(self, *args):
        db = ledger_of(self)._db
        if not isinstance(db, Counting):
            return function(self, *args)
        key = (name, *[a if isinstance(a, str) or a is None else _frozen(a) for a in args])
        of_a_kind = table == "events" and len(args) == 2 and args[1] is not None
        known = db.known.setdefault(("events", args[1]) if of_a_kind else table, {})
        if key not in known:
            known[key] = function(self, *args)
        return _copied(known[key])

    return ask


def _frozen(arg):
    if isinstance(arg, Attempt):
        return arg.attempt_id
    return frozenset(arg) if isinstance(arg, (set, list, tuple)) else arg


def _parse():
    """squeue's text is read once; when it was asked is left out: an end without a time is now."""
    known = Known()

    def parse(text, separators, *, observed_at, wanted=None):  # the real one's
        key = (text, wanted and frozenset(wanted.ids))
        jobs = known.get(key)
        if jobs is None:
            jobs = known.put(key, _REAL_PARSE(text, separators, observed_at=None, wanted=wanted))
        return dict(jobs)

    return parse


_RENDERED = {}


def _render(spec, site, **options):
    """The same job is rendered once for all interleavings."""
    key = (repr(spec), site.name, *site.partitions, repr(options))
    if key not in _RENDERED:
        _RENDERED[key] = _REAL_RENDER(spec, site, **options)
    return _RENDERED[key]


class Unwritten:
    """Stands in for the audit log of ``burst run``: nothing here reads it."""

    def add(self, act, **data):
        return None


def remember(put, folder):
    """Let these answers be remembered.

    Args:
        put: ``put(where, name, value)`` replaces an attribute until the simulation ends.
        folder: submitit's.
    """
    pure = {f.__name__: (f, of_a_text(f)) for f in PURE}
    for name, module in list(sys.modules.items()):
        if name.startswith("hpcscale"):
            for function, (real, quick) in pure.items():
                if getattr(module, function, None) is real:
                    put(module, function, quick)
    for name, table in READS.items():
        put(LedgerReads, name, of_a_ledger(getattr(LedgerReads, name), table))
    put(Moves, "_read", of_a_ledger(Moves._read, "moves", lambda moves: moves.ledger))
    put(LedgerReads, "_with_scripts", _with_scripts)
    put(LedgerFile, "rows", _rows)
    # one text, one spec: what follows is then remembered by identity
    put(hpcscale.ledger_rows, "from_json", of_a_bytes(hpcscale.ledger_rows.from_json))
    put(hpcscale.burst.decide, "offers", _offers(hpcscale.burst.decide.offers))
    put(hpcscale.burst.candidates, "place", _place(hpcscale.burst.candidates.place))
    put(hpcscale.render, "render", _render)
    put(hpcscale.prepare, "render", _render)
    words = _squeue.Separators.new()
    put(_squeue.Separators, "new", classmethod(lambda _: words))
    put(_squeue, "format_option", of_what_stays(_squeue.format_option))
    put(_squeue, "parse", _parse())
    put(hpcscale.burst.run, "AuditLog", Unwritten)
    put(hpcscale.burst.run, "jobs_folder", lambda: folder)
    put(HpcscaleExecutor, "_keep_script", lambda *_: None)


_REAL_ROWS = LedgerFile.rows
_AGAIN = "SELECT DISTINCT submission_id FROM events WHERE kind = ? AND at >= ?"


def _rows(self, sql, *values):
    """Of a kind of events that there is none of, none is young."""
    if sql == _AGAIN and isinstance(self._db, Counting) and not self.events(None, values[0]):
        return []
    return _REAL_ROWS(self, sql, *values)


def _with_scripts(self, rows):
    """Scripts stand in the ledger for good."""
    texts = self.__dict__.setdefault("_texts", {})
    for row in rows:
        sha256 = row["script_sha256"]
        if not texts.get(sha256):
            found = self._all("SELECT text FROM scripts WHERE sha256 = ?", sha256)
            texts[sha256] = found[0]["text"] if found else ""
    return [_attempt(row, texts[row["script_sha256"]]) for row in rows]


_ATTEMPTS = Known()


def _attempt(row, script):
    """The same columns are the same attempt; nobody changes one."""
    key = (*row, script)
    if key not in _ATTEMPTS:
        _ATTEMPTS.put(key, attempt_from_row(row, script))
    return _ATTEMPTS[key]


def of_a_bytes(function):
    known = Known()

    def call(data):
        return known[data] if data in known else known.put(data, function(data))

    return call


def _offers(function):
    """What a target offers; the sites and the empty catalog stay."""
    known = Known()

    def call(place, catalog, policy, now):
        key = (msgspec.json.encode(place), id(policy), now.date())
        if key not in known:
            found = function(place, catalog, policy, now)
            known.put(key, (found, policy))  # kept, so that no other has its id
        return known[key][0]

    return call


def _place(function):
    """How a target would be asked to take a job: of profiles, policies and specs, which stay."""
    known = Known()

    def call(spec, limit_s, name, policy, site, *, send_gb=None, gpu_type=None):
        key = (id(spec), limit_s, name, id(policy), id(site), send_gb, gpu_type)
        if key not in known:
            found = function(spec, limit_s, name, policy, site, send_gb=send_gb, gpu_type=gpu_type)
            known.put(key, (found, spec, policy, site))  # kept, so that no other has their ids
        return known[key][0]

    return call
