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
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

from hpcscale.ledger_file import FILE_NAME, ledger_path
from hpcscale.ledger_records import LedgerRecords, to_json_text
from hpcscale.ledger_rows import (
    MOVED_TO,
    Attempt,
    Decision,
    Element,
    Event,
    Found,
    Role,
    Run,
    SiteAnswer,
    money_text,
    stamp,
    utc_now,
)
from hpcscale.slurm.types import JobState
from hpcscale.spec import JobSpec, to_json
from hpcscale.units import JobId

__all__ = [
    "FILE_NAME",
    "MOVED_TO",
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


class Ledger(LedgerRecords):
    """Reads and writes the ledger. ``Ledger.open`` makes one; several processes may at once."""

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
            user=user or whoami(),
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
        check: Callable[[], None] | None = None,
    ) -> Attempt:
        """Add an attempt in state SUBMITTING: written before sbatch is called.

        ``check`` is called within the same transaction; where it raises nothing is added.
        """
        now = utc_now()
        with self._write():
            if check is not None:
                check()
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

    def set_forgotten(
        self,
        attempt: Attempt,
        why: str = "its end was not seen; its user closed the record",
    ) -> Attempt:
        """It is gone, by the word of its user or of Slurm: its end stays unknown."""
        return self._set(
            attempt,
            "attempt.forgotten",
            {"state": attempt.state.value, "last_state": attempt.last_state.value},
            state=JobState.UNKNOWN.value,
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

    def set_terms(
        self, attempt: Attempt, gpus: int, gpu_hour_usd: Decimal | None, where: str
    ) -> Attempt:
        """Its hours are counted by another price from its start on: it moved to other nodes.

        Args:
            attempt: no array; a cost that was settled already is settled anew.
            gpus: that are paid for.
            gpu_hour_usd: None when unknown.
            where: for the event, such as ``hpc/cloud``.
        """
        from hpcscale.cost import held_s, spent_usd

        attempt = self.attempt(attempt.submission_id)
        if (attempt.gpus, attempt.gpu_hour_usd) == (gpus, gpu_hour_usd):
            return attempt
        fields: dict[str, Any] = {"gpus": gpus, "gpu_hour_usd": money_text(gpu_hour_usd)}
        if attempt.cost_usd is not None:
            seconds = attempt.earlier_s
            if attempt.start_time and attempt.end_time:
                seconds += held_s(attempt.start_time, attempt.end_time, attempt.end_time)
            fields["cost_usd"] = money_text(spent_usd(gpus, seconds, gpu_hour_usd))
        data = {"at": where, "gpus": gpus, "gpu_hour_usd": fields["gpu_hour_usd"]}
        return self._set(attempt, "attempt.terms", data, **fields)

    def reprice(
        self,
        attempt: Attempt,
        gpus: int,
        gpu_hour_usd: Decimal | None,
        seconds: float,
        where: str,
    ) -> Attempt:
        """Its hours are counted by another price from now on: it went to other nodes.

        Args:
            attempt: no array.
            gpus: that are paid for.
            gpu_hour_usd: None when unknown.
            seconds: that its nodes were held until now, at the price until now.
            where: for the event.
        """
        attempt = self.attempt(attempt.submission_id)
        if (attempt.gpus, attempt.gpu_hour_usd) == (gpus, gpu_hour_usd):
            return attempt
        usd = self.cost_of(attempt, seconds)
        fields = {"gpus": gpus, "gpu_hour_usd": money_text(gpu_hour_usd)}
        data = {"at": where, "seconds": seconds, "usd": money_text(usd), **fields}
        return self._set(attempt, "attempt.repriced", data, **fields)

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
            return self.add_decision(kind, reason, data, run_id=run_id)

    def add_decision(
        self, kind: str, reason: str, data: Mapping[str, Any], *, run_id: str | None = None
    ) -> int:
        """As ``decide``, within a write transaction (``writing``) of the caller."""
        cursor = self._insert(
            "decisions",
            at=stamp(utc_now()),
            run_id=run_id,
            kind=kind,
            reason=reason,
            data=to_json_text(data),
        )
        return int(cursor.lastrowid or 0)


def whoami() -> str:
    """The user of this process, by name where it has one."""
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return str(os.getuid())
