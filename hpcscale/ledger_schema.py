"""The ledger's tables, as numbered migrations. A released migration is never edited: add one.

The file's ``user_version`` is the number of migrations that it has seen, its ``application_id``
says that it is ours (sqlite.org, PRAGMA application_id). No STRICT tables: RHEL 8 and 9 carry
SQLite 3.26 and 3.34, older than those.
"""

APPLICATION_ID = 0x48504353  # "HPCS"

_FIRST = (
    """
    CREATE TABLE runs (
        run_id TEXT PRIMARY KEY,
        created_at TEXT NOT NULL,
        name TEXT NOT NULL,
        user TEXT NOT NULL,
        cwd TEXT NOT NULL,
        spec TEXT NOT NULL,
        site TEXT NOT NULL,
        burst_mode TEXT NOT NULL,
        deadline TEXT,
        max_cost_usd TEXT
    )
    """,
    "CREATE INDEX runs_by_name ON runs (name)",
    # the same script text is stored once, however many attempts ran it
    "CREATE TABLE scripts (sha256 TEXT PRIMARY KEY, text TEXT NOT NULL)",
    """
    CREATE TABLE attempts (
        attempt_id INTEGER PRIMARY KEY,
        run_id TEXT NOT NULL REFERENCES runs (run_id),
        number INTEGER NOT NULL,
        site TEXT NOT NULL,
        submission_id TEXT NOT NULL UNIQUE,
        role TEXT NOT NULL,
        created_at TEXT NOT NULL,
        job_id TEXT,
        state TEXT NOT NULL,
        last_state TEXT NOT NULL,
        raw_state TEXT NOT NULL DEFAULT '',
        reason TEXT NOT NULL DEFAULT '',
        seen_at TEXT,
        submit_time TEXT,
        start_time TEXT,
        end_time TEXT,
        ended INTEGER NOT NULL DEFAULT 0,
        exit_code INTEGER,
        exit_signal INTEGER,
        nodes TEXT NOT NULL DEFAULT '',
        num_nodes INTEGER NOT NULL DEFAULT 0,
        gpus INTEGER NOT NULL DEFAULT 0,
        restarts INTEGER NOT NULL DEFAULT 0,
        time_limit_s INTEGER,
        job_user TEXT NOT NULL DEFAULT '',
        script_sha256 TEXT NOT NULL REFERENCES scripts (sha256),
        run_dir TEXT NOT NULL,
        comment TEXT NOT NULL,
        array_size INTEGER,
        gpu_hour_usd TEXT,
        cost_usd TEXT,
        staged TEXT NOT NULL DEFAULT '{}',
        fetched INTEGER NOT NULL DEFAULT 0,
        UNIQUE (run_id, number)
    )
    """,
    "CREATE INDEX attempts_by_job ON attempts (site, job_id)",
    "CREATE INDEX attempts_open ON attempts (site) WHERE ended = 0",
    """
    CREATE TABLE elements (
        attempt_id INTEGER NOT NULL REFERENCES attempts (attempt_id),
        task INTEGER NOT NULL,
        state TEXT NOT NULL,
        raw_state TEXT NOT NULL,
        reason TEXT NOT NULL,
        nodes TEXT NOT NULL,
        start_time TEXT,
        end_time TEXT,
        restarts INTEGER NOT NULL,
        exit_code INTEGER,
        exit_signal INTEGER,
        PRIMARY KEY (attempt_id, task)
    ) WITHOUT ROWID
    """,
    """
    CREATE TABLE sites (
        site TEXT PRIMARY KEY,
        asked_at TEXT NOT NULL,
        answered_at TEXT,
        error TEXT
    )
    """,
    """
    CREATE TABLE decisions (
        decision_id INTEGER PRIMARY KEY,
        at TEXT NOT NULL,
        run_id TEXT REFERENCES runs (run_id),
        kind TEXT NOT NULL,
        reason TEXT NOT NULL,
        data TEXT NOT NULL
    )
    """,
    "CREATE INDEX decisions_by_run ON decisions (run_id)",
    """
    CREATE TABLE events (
        event_id INTEGER PRIMARY KEY,
        at TEXT NOT NULL,
        run_id TEXT REFERENCES runs (run_id),
        submission_id TEXT,
        kind TEXT NOT NULL,
        data TEXT NOT NULL
    )
    """,
    "CREATE INDEX events_by_run ON events (run_id)",
    # history is added to, never rewritten
    """
    CREATE TRIGGER events_stay BEFORE UPDATE ON events
    BEGIN SELECT RAISE(ABORT, 'events are append-only'); END
    """,
    """
    CREATE TRIGGER events_keep BEFORE DELETE ON events
    BEGIN SELECT RAISE(ABORT, 'events are append-only'); END
    """,
    """
    CREATE TRIGGER decisions_stay BEFORE UPDATE ON decisions
    BEGIN SELECT RAISE(ABORT, 'decisions are append-only'); END
    """,
    """
    CREATE TRIGGER decisions_keep BEFORE DELETE ON decisions
    BEGIN SELECT RAISE(ABORT, 'decisions are append-only'); END
    """,
)

# moves between sites (hpcscale.burst.moves): one unsettled move of a run at most
_MOVES = (
    """
    CREATE TABLE moves (
        move_id INTEGER PRIMARY KEY,
        run_id TEXT NOT NULL REFERENCES runs (run_id),
        step TEXT NOT NULL,
        settled INTEGER NOT NULL,
        revision INTEGER NOT NULL,
        data TEXT NOT NULL
    )
    """,
    "CREATE UNIQUE INDEX moves_open ON moves (run_id) WHERE settled = 0",
    "CREATE INDEX moves_by_run ON moves (run_id)",
)

# seconds that nodes were held by starts before the latest: a requeue sets start_time anew
_EARLIER = ("ALTER TABLE attempts ADD COLUMN earlier_s REAL NOT NULL DEFAULT 0",)

MIGRATIONS: tuple[tuple[str, ...], ...] = (_FIRST, _MOVES, _EARLIER)
