"""The ledger: which runs this user started, their attempts at the sites, and what happened when.

One SQLite file at ``$HPCSCALE_STATE_DIR/ledger.sqlite3``. It stands in a home directory, often NFS
or Lustre, so: no WAL (it needs memory shared on one host), short ``BEGIN IMMEDIATE`` writes, a long
busy timeout. Events and decisions are append-only. No secret's value ever comes here.

Words: a *run* is one training across attempts; an *attempt* is one submission to one site.
"""

import base64
import datetime as dt
import json
import os
import pwd
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

from hpcscale.errors import NotFoundError, UsageError
from hpcscale.ledger_file import FILE_NAME, LedgerFile, ledger_path
from hpcscale.ledger_rows import (
    Attempt,
    Decision,
    Element,
    Event,
    Found,
    Role,
    Run,
    SiteAnswer,
    attempt_from_row,
    changed_fields,
    element_from_row,
    event_fields,
    money_text,
    read_time,
    run_from_row,
    stamp,
    utc_now,
)
from hpcscale.slurm.types import JobState, JobStatus
from hpcscale.spec import JobSpec, to_json
from hpcscale.units import JobId, parse_array

__all__ = [
    "FILE_NAME",
    "Attempt",
    "Decision",
    "Element",
    "Event",
    "Found",
    "Ledger",
    "Role",
    "Run",
    "SiteAnswer",
    "ledger_path",
    "new_run_id",
    "new_submission_id",
    "utc_now",
]


def new_run_id() -> str:
    """``r`` and 10 random base32 characters."""
    return "r" + base64.b32encode(os.urandom(7)).decode("ascii").lower()[:10]


def new_submission_id() -> str:
    """``hs-`` and 16 random hex digits; one for each attempt."""
    return "hs-" + os.urandom(8).hex()


class Ledger(LedgerFile):
    """Reads and writes the ledger. ``Ledger.open`` makes one; several processes may at once."""

    # --- writing -----------------------------------------------------------------------------

    def new_run(
        self,
        spec: JobSpec,
        *,
        site: str,
        cwd: str | None = None,
        user: str | None = None,
        run_id: str | None = None,
    ) -> Run:
        """Add a run. The ledger's user is the one of this machine."""
        run = Run(
            run_id=run_id or new_run_id(),
            created_at=utc_now(),
            name=spec.name,
            user=user or _whoami(),
            cwd=cwd or str(Path.cwd()),
            spec=spec,
            site=site,
            burst_mode=spec.burst.mode,
            deadline=spec.burst.deadline,
            max_cost_usd=spec.burst.max_cost_usd,
        )
        with self._write():
            self._insert(
                "runs",
                run_id=run.run_id,
                created_at=stamp(run.created_at),
                name=run.name,
                user=run.user,
                cwd=run.cwd,
                spec=to_json(spec).decode(),
                site=run.site,
                burst_mode=run.burst_mode.value,
                deadline=stamp(run.deadline),
                max_cost_usd=money_text(run.max_cost_usd),
            )
            self._event(run.run_id, None, "run.created", {"site": site, "name": run.name})
        return run

    def new_attempt(
        self,
        run: Run,
        *,
        site: str,
        submission_id: str,
        script: str,
        script_sha256: str,
        run_dir: str,
        comment: str,
        role: Role = Role.ONPREM,
        num_nodes: int = 0,
        gpus: int = 0,
        time_limit_s: int | None = None,
        array_size: int | None = None,
        gpu_hour_usd: Decimal | None = None,
        staged: Mapping[str, Any] | None = None,
    ) -> Attempt:
        """Add an attempt in state SUBMITTING: written before sbatch is called."""
        now = utc_now()
        with self._write():
            number = self._one(
                "SELECT coalesce(max(number), 0) + 1 FROM attempts WHERE run_id = ?", run.run_id
            )[0]
            self._db.execute(
                "INSERT OR IGNORE INTO scripts (sha256, text) VALUES (?, ?)",
                (script_sha256, script),
            )
            self._insert(
                "attempts",
                run_id=run.run_id,
                number=number,
                site=site,
                submission_id=submission_id,
                role=role.value,
                created_at=stamp(now),
                state=JobState.SUBMITTING.value,
                last_state=JobState.SUBMITTING.value,
                script_sha256=script_sha256,
                run_dir=run_dir,
                comment=comment,
                num_nodes=num_nodes,
                gpus=gpus,
                time_limit_s=time_limit_s,
                array_size=array_size,
                gpu_hour_usd=money_text(gpu_hour_usd),
                staged=json.dumps(staged or {}),
            )
            self._event(
                run.run_id,
                submission_id,
                "attempt.submitting",
                {
                    "site": site,
                    "number": number,
                    "role": role.value,
                    "host": os.uname().nodename,
                    "pid": os.getpid(),
                },
            )
        return self.attempt(submission_id)

    def set_submitted(
        self, attempt: Attempt, job_id: JobId, submit_time: dt.datetime | None = None
    ) -> Attempt:
        """Sbatch answered with this id."""
        return self._set(
            attempt,
            "attempt.submitted",
            {"job": str(job_id)},
            job_id=str(job_id),
            submit_time=stamp(submit_time),
            state=JobState.PENDING.value,
            last_state=JobState.PENDING.value,
            seen_at=stamp(utc_now()),
            reason="",
            end_time=None,
            ended=0,
        )

    def set_submit_unknown(self, attempt: Attempt, why: str) -> Attempt:
        """Sbatch gave no answer: the job may exist; observing will tell by the submission id."""
        return self._set(
            attempt,
            "attempt.submit_unknown",
            {"why": why},
            state=JobState.SUBMIT_UNKNOWN.value,
            last_state=JobState.SUBMIT_UNKNOWN.value,
            reason=why,
        )

    def set_refused(self, attempt: Attempt, why: str) -> Attempt:
        """Sbatch said no, or the job never reached it: this attempt is over."""
        return self._set(
            attempt,
            "attempt.refused",
            {"why": why},
            state=JobState.REFUSED.value,
            last_state=JobState.REFUSED.value,
            reason=why,
            end_time=stamp(utc_now()),
            ended=1,
        )

    def set_fetched(self, attempt: Attempt, files: Sequence[str] = ()) -> Attempt:
        """Outputs and logs are here."""
        return self._set(attempt, "attempt.fetched", {"files": list(files)[:100]}, fetched=1)

    def set_cost(self, attempt: Attempt, cost_usd: Decimal) -> Attempt:
        """Settle what an ended attempt cost."""
        return self._set(
            attempt, "attempt.cost", {"usd": str(cost_usd)}, cost_usd=money_text(cost_usd)
        )

    def record_status(self, attempt: Attempt, status: JobStatus) -> Attempt:
        """Record what Slurm said of one attempt that is no array."""
        self.record([(attempt, status)])
        return self.attempt(attempt.submission_id)

    def record(self, statuses: Iterable[tuple[Attempt, JobStatus]]) -> int:
        """Record many statuses in one transaction; unchanged ones cost nothing.

        Returns:
            How many attempts changed.
        """
        changes = [
            (attempt, fields)
            for attempt, status in statuses
            if (fields := changed_fields(attempt, status))
        ]
        self.update_attempts(changes)
        return len(changes)

    def update_attempts(self, changes: Sequence[tuple[Attempt, Mapping[str, Any]]]) -> None:
        """Set columns (stored values) of many attempts in one transaction, with their events."""
        if not changes:
            return
        with self._write():
            for attempt, fields in changes:
                if self._update(attempt.attempt_id, fields) and "state" in fields:
                    self._event(
                        attempt.run_id,
                        attempt.submission_id,
                        "attempt.state",
                        {"from": attempt.state.value, **event_fields(fields)},
                    )

    def record_elements(self, attempt: Attempt, elements: Iterable[Element]) -> None:
        """Record elements of an array; pass those that changed."""
        rows = [
            (
                attempt.attempt_id,
                e.task,
                e.state.value,
                e.raw_state,
                e.reason,
                e.nodes,
                stamp(e.start_time),
                stamp(e.end_time),
                e.restarts,
                e.exit_code,
                e.exit_signal,
            )
            for e in elements
        ]
        if rows:
            with self._write():
                self._db.executemany(
                    "INSERT OR REPLACE INTO elements VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                    rows,
                )

    def record_answers(self, answers: Iterable[SiteAnswer]) -> None:
        """Note which sites answered when, and which did not and why."""
        rows = [(a.site, stamp(a.asked_at), stamp(a.answered_at), a.error) for a in answers]
        if rows:
            with self._write():
                self._db.executemany(
                    "INSERT INTO sites VALUES (?, ?, ?, ?) ON CONFLICT (site) DO UPDATE SET "
                    "asked_at = excluded.asked_at, error = excluded.error, "
                    "answered_at = coalesce(excluded.answered_at, answered_at)",
                    rows,
                )

    def event(
        self,
        run_id: str | None,
        kind: str,
        data: Mapping[str, Any] | None = None,
        *,
        submission_id: str | None = None,
    ) -> None:
        """Append an event; it is on disk when this returns."""
        with self._write():
            self._event(run_id, submission_id, kind, data or {})

    def decide(
        self, kind: str, reason: str, data: Mapping[str, Any], *, run_id: str | None = None
    ) -> int:
        """Append a decision with the data it was made on; returns its number."""
        with self._write():
            cursor = self._insert(
                "decisions",
                at=stamp(utc_now()),
                run_id=run_id,
                kind=kind,
                reason=reason,
                data=json.dumps(data, default=str),
            )
            return int(cursor.lastrowid or 0)

    # --- reading -----------------------------------------------------------------------------

    def runs(self, run_ids: Iterable[str] | None = None) -> list[Run]:
        """All runs, or these, oldest first."""
        if run_ids is None:
            rows = self._all("SELECT * FROM runs ORDER BY created_at, rowid")
        else:
            rows = []
            for part in _chunks(sorted(set(run_ids))):
                marks = ", ".join("?" * len(part))
                rows += self._all(
                    f"SELECT * FROM runs WHERE run_id IN ({marks})",  # noqa: S608 # question marks alone
                    *part,
                )
            rows.sort(key=lambda row: str(row["created_at"]))
        return [run_from_row(row) for row in rows]

    def run(self, run_id: str) -> Run:
        """One run by its whole id. Raises NotFoundError."""
        rows = self._all("SELECT * FROM runs WHERE run_id = ?", run_id)
        if not rows:
            raise NotFoundError(f"no run {run_id!r} in the ledger", hint="hpcscale status --all")
        return run_from_row(rows[0])

    def attempt(self, submission_id: str) -> Attempt:
        """One attempt by its submission id, read afresh. Raises NotFoundError."""
        rows = self._all(_ATTEMPTS + " WHERE submission_id = ?", submission_id)
        if not rows:
            raise NotFoundError(f"no submission {submission_id!r} in the ledger")
        return self._with_scripts(rows)[0]

    def attempts(self, run_id: str) -> list[Attempt]:
        """A run's attempts, first to latest."""
        rows = self._all(_ATTEMPTS + " WHERE run_id = ? ORDER BY number", run_id)
        return self._with_scripts(rows)

    def all_attempts(self, site: str | None = None) -> list[Attempt]:
        """Every attempt (of one site), oldest first."""
        rows = self._all(_ATTEMPTS + " WHERE ?1 IS NULL OR site = ?1 ORDER BY attempt_id", site)
        return self._with_scripts(rows)

    def recent_attempts(self, since: dt.datetime) -> list[Attempt]:
        """All attempts of runs of which one has not ended, or ended after ``since``."""
        rows = self._all(
            # the plus: not by the index on run_id, whose order would have to be sorted
            _ATTEMPTS + " WHERE +run_id IN "  # noqa: S608 # constants alone
            "(SELECT run_id FROM attempts WHERE ended = 0 OR end_time >= ?) ORDER BY attempt_id",
            stamp(since),
        )
        return self._with_scripts(rows)

    def open_attempts(self, site: str | None = None) -> list[Attempt]:
        """Attempts whose state is not final (at one site), oldest first."""
        rows = self._all(
            _ATTEMPTS + " WHERE ended = 0 AND (?1 IS NULL OR site = ?1) ORDER BY attempt_id", site
        )
        return self._with_scripts(rows)

    def _with_scripts(self, rows: Sequence[sqlite3.Row]) -> list[Attempt]:
        """Attempts of rows. Not by a join: it would copy a script's text into each of its rows."""
        texts: dict[str, str] = {}
        for sha256 in {row["script_sha256"] for row in rows}:
            for row in self._all("SELECT text FROM scripts WHERE sha256 = ?", sha256):
                texts[sha256] = row["text"]
        return [attempt_from_row(row, texts.get(row["script_sha256"], "")) for row in rows]

    def elements(self, attempt: Attempt) -> dict[int, Element]:
        """Known elements of an array attempt by task number."""
        rows = self._all("SELECT * FROM elements WHERE attempt_id = ?", attempt.attempt_id)
        return {row["task"]: element_from_row(row) for row in rows}

    def element_counts(self) -> dict[int, dict[JobState, int]]:
        """Attempt id -> state -> number of known elements, for all arrays by one query."""
        counts: dict[int, dict[JobState, int]] = {}
        for row in self._all(
            "SELECT attempt_id, state, count(*) AS n FROM elements GROUP BY attempt_id, state"
        ):
            counts.setdefault(row["attempt_id"], {})[JobState(row["state"])] = row["n"]
        return counts

    def site_answers(self) -> dict[str, SiteAnswer]:
        """When each site was last asked and last answered."""
        return {
            row["site"]: SiteAnswer(
                site=row["site"],
                asked_at=read_time(row["asked_at"]) or utc_now(),
                answered_at=read_time(row["answered_at"]),
                error=row["error"],
            )
            for row in self._all("SELECT * FROM sites")
        }

    def events(self, run_id: str | None = None, kind: str | None = None) -> list[Event]:
        """Events (of one run, of one kind), oldest first."""
        rows = self._all(
            "SELECT * FROM events WHERE (?1 IS NULL OR run_id = ?1) "
            "AND (?2 IS NULL OR kind = ?2) ORDER BY event_id",
            run_id,
            kind,
        )
        return [
            Event(
                event_id=row["event_id"],
                at=read_time(row["at"]) or utc_now(),
                run_id=row["run_id"],
                submission_id=row["submission_id"],
                kind=row["kind"],
                data=json.loads(row["data"]),
            )
            for row in rows
        ]

    def decisions(self, run_id: str | None = None) -> list[Decision]:
        """Decisions (on one run), oldest first."""
        rows = self._all(
            "SELECT * FROM decisions WHERE ?1 IS NULL OR run_id = ?1 ORDER BY decision_id", run_id
        )
        return [
            Decision(
                decision_id=row["decision_id"],
                at=read_time(row["at"]) or utc_now(),
                run_id=row["run_id"],
                kind=row["kind"],
                reason=row["reason"],
                data=json.loads(row["data"]),
            )
            for row in rows
        ]

    # --- finding -----------------------------------------------------------------------------

    def find(self, text: str) -> Attempt:
        """The attempt that a JOB argument names; for a run its current one (see ``resolve``)."""
        return self.resolve(text).attempt

    def resolve(self, text: str) -> Found:
        """What a JOB argument names.

        Accepts a run id or an unambiguous beginning of one, a submission id, ``site:123``,
        ``site:123_7``, a bare ``123`` or ``123_7``, and a job's name. Slurm reuses ids, so an id
        that several attempts had means the newest.

        Raises:
            NotFoundError: nothing in the ledger fits.
            UsageError: more than one run fits.
        """
        text = text.strip()
        if runs := self._all("SELECT * FROM runs WHERE run_id = ?", text.lower()):
            return self._whole(run_from_row(runs[0]))
        if rows := self._all(_ATTEMPTS + " WHERE submission_id = ?", text):
            attempt = self._with_scripts(rows)[0]
            return Found(run=self.run(attempt.run_id), attempt=attempt, whole_run=False)
        if found := self._by_job_id(text):
            return found
        rows = self._all("SELECT * FROM runs WHERE name = ? ORDER BY created_at", text)
        if not rows and text:
            escaped = text.lower().replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")
            rows = self._all(
                "SELECT * FROM runs WHERE run_id LIKE ? ESCAPE '\\' ORDER BY created_at",
                escaped + "%",
            )
        if not rows:
            raise NotFoundError(
                f"no job {text!r} in the ledger",
                hint="hpcscale status --all  (give a run id, SITE:ID or a job's name)",
            )
        if len(rows) > 1:
            ids = ", ".join(str(row["run_id"]) for row in rows[-5:])
            raise UsageError(
                f"{text!r} fits {len(rows)} runs", hint=f"name one by its run id: {ids}"
            )
        return self._whole(run_from_row(rows[0]))

    def _by_job_id(self, text: str) -> Found | None:
        site, colon, id_text = text.rpartition(":")
        try:
            job = JobId.parse(id_text)
        except ValueError:
            return None
        base = JobId(job.base)
        rows = self._all(
            _ATTEMPTS + " WHERE job_id IN (?1, ?2) AND (?3 = '' OR site = ?3) "
            "ORDER BY ended, attempt_id DESC",
            str(base),
            str(job),
            site if colon else "",
        )
        if not rows:
            return None
        sites = {str(row["site"]) for row in rows}
        if len(sites) > 1:
            raise UsageError(
                f"{text!r} is a job at {len(sites)} sites",
                hint="say which: " + ", ".join(f"{name}:{job}" for name in sorted(sites)),
            )
        attempt = self._with_scripts(rows)[0]
        run = self.run(attempt.run_id)
        _require_element(run, attempt, job.array_task)
        return Found(
            run=run,
            attempt=attempt,
            task=job.array_task,
            whole_run=False,
        )

    def _whole(self, run: Run) -> Found:
        attempts = self.attempts(run.run_id)
        if not attempts:  # killed between the two rows: sbatch was never near
            raise NotFoundError(
                f"run {run.run_id} was never submitted", hint="hpcscale submit it again"
            )
        current = next((a for a in reversed(attempts) if not a.ended), attempts[-1])
        return Found(run=run, attempt=current)

    # --- helpers

    def _update(self, attempt_id: int, fields: Mapping[str, Any], *, revive: bool = False) -> bool:
        """Set columns; False when another process saw the attempt's end meanwhile.

        An end is not taken back by an older sight of the job, unless ``revive`` says so.
        """
        sets = ", ".join(f"{name} = ?" for name in fields)
        goes_on = "state" in fields and not fields.get("ended")
        guard = " AND ended = 0" if goes_on and not revive else ""
        cursor = self._db.execute(
            f"UPDATE attempts SET {sets} WHERE attempt_id = ?{guard}",  # noqa: S608 # names are this module's own
            (*fields.values(), attempt_id),
        )
        return cursor.rowcount > 0

    def _set(self, attempt: Attempt, kind: str, data: Mapping[str, Any], **fields: Any) -> Attempt:
        with self._write():
            self._update(attempt.attempt_id, fields, revive=True)
            self._event(attempt.run_id, attempt.submission_id, kind, data)
        return self.attempt(attempt.submission_id)

    def _event(
        self, run_id: str | None, submission_id: str | None, kind: str, data: Mapping[str, Any]
    ) -> None:
        self._insert(
            "events",
            at=stamp(utc_now()),
            run_id=run_id,
            submission_id=submission_id,
            kind=kind,
            data=json.dumps(data, default=str),
        )


_ATTEMPTS = "SELECT * FROM attempts"


def _whoami() -> str:
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return str(os.getuid())


def _chunks(items: Sequence[str], size: int = 500) -> Iterator[Sequence[str]]:
    """SQLite bounds the number of parameters of a statement (999 before 3.32)."""
    for start in range(0, len(items), size):
        yield items[start : start + size]


def _require_element(run: Run, attempt: Attempt, task: int | None) -> None:
    """An element that the array does not have must not be taken for the array."""
    if task is None:
        return
    if attempt.array_size is None:
        raise NotFoundError(f"{attempt.ref} is no array", hint=f"name it as {attempt.ref}")
    if run.spec.array is not None and task not in parse_array(run.spec.array)[0]:
        raise NotFoundError(
            f"{attempt.ref} has no element {task}", hint=f"its elements: {run.spec.array}"
        )
