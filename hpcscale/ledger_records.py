"""Writing down what was seen of attempts, and the helpers of every write to them."""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from hpcscale.ledger_reads import LedgerReads
from hpcscale.ledger_rows import (
    Attempt,
    Element,
    SiteAnswer,
    changed_fields,
    event_fields,
    money_text,
    read_time,
    stamp,
    utc_now,
)
from hpcscale.slurm.types import JobStatus

# made once: json.dumps makes one at each call where it has options
to_json_text = json.JSONEncoder(default=str).encode


class LedgerRecords(LedgerReads):
    """Records what Slurm, the sites and the jobs said. ``hpcscale.ledger.Ledger`` adds the rest."""

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
            (attempt, self._settled_anew(attempt, fields))
            for attempt, status in statuses
            if (fields := changed_fields(attempt, status))
        ]
        self.update_attempts(changes)
        return len(changes)

    def _settled_anew(self, attempt: Attempt, fields: dict[str, Any]) -> dict[str, Any]:
        """With the cost of a second start, where an attempt whose cost was settled had one."""
        if attempt.cost_usd is None or "earlier_s" not in fields:
            return fields
        from hpcscale.cost import held_s

        end = read_time(fields["end_time"]) if "end_time" in fields else attempt.end_time
        start = read_time(fields["start_time"]) if "start_time" in fields else attempt.start_time
        cost = self.cost_of(attempt, fields["earlier_s"] + held_s(start, end, utc_now()))
        return {**fields, "cost_usd": money_text(cost)}

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

    def record_elements(
        self, attempt: Attempt, elements: Iterable[Element], known: Mapping[int, Element]
    ) -> None:
        """Record elements of an array; pass those that changed.

        An end that another process has recorded meanwhile is not taken back by an older sight.

        Args:
            attempt: the array.
            elements: as they are now.
            known: the rows from which that was concluded, as ``elements`` gave them.
        """
        changed = list(elements)
        if not changed:
            return
        with self._write():
            stored = self.elements(attempt)
            self._put_elements(
                attempt,
                [
                    e
                    for e in changed
                    if e.state.terminal
                    or (row := stored.get(e.task)) is None
                    or not row.state.terminal
                    or row == known.get(e.task)
                ],
            )

    def _put_elements(self, attempt: Attempt, elements: Iterable[Element]) -> None:
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
        self._db.executemany(
            "INSERT OR REPLACE INTO elements VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", rows
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
            data=to_json_text(data),
        )
