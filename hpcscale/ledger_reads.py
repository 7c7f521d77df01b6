"""Reading the ledger: runs, attempts, events, decisions; and which attempt a JOB argument names."""

import datetime as dt
import json
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from decimal import Decimal

from hpcscale.errors import NotFoundError, UsageError
from hpcscale.ledger_file import LedgerFile
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
    element_from_row,
    read_time,
    run_from_row,
    stamp,
    utc_now,
)
from hpcscale.slurm.types import JobState
from hpcscale.units import JobId, parse_array

_ATTEMPTS = "SELECT * FROM attempts"


class LedgerReads(LedgerFile):
    """What can be asked of a ledger. ``hpcscale.ledger.Ledger`` adds the writing."""

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

    def any_moving(self) -> bool:
        """Say whether a run is on its way to another site; `burst.moves` reads which."""
        return bool(self._all("SELECT 1 FROM moves WHERE settled = 0 LIMIT 1"))

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

    def cost_of(self, attempt: Attempt, seconds: float) -> Decimal | None:
        """Dollars for holding an attempt's nodes so long, each hour at its own price.

        None when a price is unknown.
        """
        from hpcscale.cost import spent_usd

        before_s, before_usd = 0.0, Decimal(0)
        if attempt.role is not Role.BURST and not attempt.earlier_s:  # it was never elsewhere
            return spent_usd(attempt.gpus, seconds, attempt.gpu_hour_usd)
        for event in self.events(attempt.run_id, "attempt.repriced"):
            if event.submission_id == attempt.submission_id:
                if event.data["usd"] is None:
                    return None
                before_s, before_usd = float(event.data["seconds"]), Decimal(event.data["usd"])
        rest = spent_usd(attempt.gpus, seconds - before_s, attempt.gpu_hour_usd)
        return None if rest is None else before_usd + rest

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
            rows = self._begun(rows)
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

    def _begun(self, rows: list[sqlite3.Row]) -> list[sqlite3.Row]:
        """Of runs those with an attempt: a batch of functions has none, and a name of its parts."""
        begun: set[str] = set()
        for part in _chunks([str(row["run_id"]) for row in rows]):
            marks = ", ".join("?" * len(part))
            found = self._all(
                f"SELECT DISTINCT run_id FROM attempts WHERE run_id IN ({marks})",  # noqa: S608 # question marks alone
                *part,
            )
            begun |= {str(row["run_id"]) for row in found}
        return [row for row in rows if row["run_id"] in begun] or rows

    def _whole(self, run: Run) -> Found:
        attempts = self.attempts(run.run_id)
        if not attempts:
            return self._only_part(run)
        current = next((a for a in reversed(attempts) if not a.ended), attempts[-1])
        return Found(run=run, attempt=current)

    def _only_part(self, run: Run) -> Found:
        """What a run without an attempt means: a batch (``hpcscale.batches``), its one part."""
        parts = [str(e.data["run_id"]) for e in self.events(run.run_id, "batch.sending")]
        sent = [part for part in parts if part and self.attempts(part)]
        if len(sent) == 1:
            return self._whole(self.run(sent[0]))
        if sent:
            raise NotFoundError(
                f"run {run.run_id} was sent in {len(sent)} parts",
                hint=f"name one or more of them: {' '.join(sent)}",
            )
        dropped = self.events(run.run_id, "batch.dropped")
        if self.events(run.run_id, "batch.stored") and not dropped:
            raise NotFoundError(
                f"run {run.run_id} waits here until {run.site} has room",
                hint="hpcscale tend sends it",
            )
        # killed between the two rows: sbatch was never near
        why = f": {dropped[-1].data['why']}" if dropped else ""
        raise NotFoundError(
            f"run {run.run_id} was never submitted{why}", hint="hpcscale submit it again"
        )


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
