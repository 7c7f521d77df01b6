"""``hpcscale status``: this user's jobs at all sites, one query a site."""

import datetime as dt
from typing import TYPE_CHECKING, Any

import click

from hpcscale.cli._output import emit_json, emit_table, json_option

if TYPE_CHECKING:
    from hpcscale.ledger import Attempt, Ledger, Run
    from hpcscale.observe import Snapshot

RECENT = dt.timedelta(hours=24)
COLUMNS = (
    "RUN",
    "JOB",
    "NAME",
    "STATE",
    "REASON",
    "NODES",
    "ELAPSED/LIMIT",
    "START",
    "ATTEMPT",
    "COST",
)


@click.command("status")
@click.argument("jobs", nargs=-1, metavar="[JOB]...")
@click.option("--site", "site_name", help="Only jobs at this site.")
@click.option("--all", "show_all", is_flag=True, help="Also jobs that ended over a day ago.")
@json_option
def command(jobs: tuple[str, ...], site_name: str | None, show_all: bool, as_json: bool) -> None:
    """Show your jobs and what they are waiting for.

    JOB is a run id (or its beginning), SITE:ID, a Slurm id or a job's name. Without one: every job
    that has not ended, and those that ended in the last 24 hours.

    A site that gives no answer is reported on stderr, and its jobs are shown as last seen; the exit
    code is 5 only when every site asked gave none.
    """
    from hpcscale.cli._jobs import SitePool, attempts_of, report_sites, resolve_all
    from hpcscale.errors import NotFoundError, UnreachableError
    from hpcscale.ledger import Ledger, utc_now
    from hpcscale.observe import observe

    try:
        ledger = Ledger.open(create=False)
    except NotFoundError as exc:
        if jobs:
            raise
        if as_json:
            emit_json({"at": utc_now(), "sites": [], "runs": []})
        else:
            click.echo(exc.message)
        return

    if site_name is not None:
        _require_site(site_name, ledger)

    def chosen() -> "list[Attempt]":
        if jobs:
            some = [a for f in resolve_all(ledger, jobs) for a in attempts_of(ledger, f)]
            unique = list({a.attempt_id: a for a in some}.values())
        elif show_all:
            unique = ledger.all_attempts()
        else:
            unique = ledger.recent_attempts(utc_now() - RECENT)
        return [a for a in unique if site_name in {None, a.site}]

    with ledger, SitePool() as pool:
        shown = chosen()
        snapshot = observe(ledger, pool, shown)
        if snapshot.changed or any(a.job_id is None for a in shown):
            shown = chosen()
        runs = {run.run_id: run for run in ledger.runs({a.run_id for a in shown})}
        report_sites(snapshot)
        unsent = _unsent(ledger, site_name)
        view = _View(ledger, snapshot)
        if as_json:
            emit_json({**view.document(shown, runs, elements=bool(jobs)), "unsent": unsent})
        elif shown:
            shown.sort(key=lambda a: (runs[a.run_id].created_at, a.number))
            rows = []
            for attempt in shown:
                rows.append(view.row(attempt, runs[attempt.run_id]))
                if jobs:
                    rows += view.element_rows(attempt, runs[attempt.run_id])
            emit_table(COLUMNS, rows)
        else:
            click.echo("no jobs" if show_all or jobs else "no jobs (older ones: --all)")
    if snapshot.failed and len(snapshot.failed) == len(snapshot.answers):
        raise UnreachableError(
            "no site gave an answer; what is shown is what was last seen",
            hint="hpcscale site check " + " ".join(sorted(snapshot.failed)[:1]),
        )


def _require_site(name: str, ledger: "Ledger") -> None:
    """A site that some layer or some job knows: a misspelt name must not look like no jobs."""
    from hpcscale.errors import HpcscaleError, NotFoundError
    from hpcscale.site import load_site

    try:
        load_site(name)
    except NotFoundError:
        if name not in {a.site for a in ledger.all_attempts()}:
            ledger.close()
            raise
    except HpcscaleError:
        return  # broken, but it exists: ``observe`` says so


class _View:
    """Turns attempts into rows and documents."""

    def __init__(self, ledger: "Ledger", snapshot: "Snapshot") -> None:
        self._ledger = ledger
        self._snapshot = snapshot
        self._counts = ledger.element_counts()
        self._seen = ledger.site_answers()
        self._moving = _moves(ledger)

    def row(self, attempt: "Attempt", run: "Run") -> list[str]:
        cost = self._cost(attempt)
        return [
            run.run_id,
            str(attempt.ref) if attempt.ref else f"{attempt.site}:?",
            run.name,
            self._state(attempt),
            self._reason(attempt),
            attempt.nodes or (str(attempt.num_nodes) if attempt.num_nodes else ""),
            self._elapsed(attempt),
            _start(attempt),
            _number(attempt) + (f", restart {attempt.restarts}" if attempt.restarts else ""),
            "unknown" if cost is None else f"${cost}",
        ]

    def element_rows(self, attempt: "Attempt", run: "Run") -> list[list[str]]:
        """A row for each known element of an array that was asked for by name."""
        from hpcscale.cli._jobs import local_time
        from hpcscale.reasons import explain, explain_exit

        return [
            [
                run.run_id,
                f"{attempt.ref}_{task}",
                run.name,
                e.state.value,
                explain_exit(e.exit_code, e.exit_signal) or explain(e.reason, e.state),
                e.nodes,
                "",
                local_time(e.start_time),
                _number(attempt),
                "",
            ]
            for task, e in sorted(self._ledger.elements(attempt).items())
        ]

    def document(
        self, attempts: "list[Attempt]", runs: "dict[str, Run]", *, elements: bool
    ) -> dict[str, Any]:
        import msgspec

        from hpcscale.cli._jobs import attempt_json

        by_run: dict[str, list[dict[str, Any]]] = {}
        for attempt in attempts:
            by_run.setdefault(attempt.run_id, []).append(
                {
                    **attempt_json(attempt),
                    "reason_text": self._reason(attempt),
                    "cost_so_far_usd": self._cost(attempt),
                    "elapsed_s": round(self._held_s(attempt)),
                    "stale": attempt.site in self._snapshot.failed and not attempt.ended,
                    "elements": {
                        s.value: n for s, n in self._counts.get(attempt.attempt_id, {}).items()
                    },
                    **(
                        {
                            "tasks": [
                                msgspec.structs.asdict(e)
                                for _, e in sorted(self._ledger.elements(attempt).items())
                            ]
                        }
                        if elements and attempt.array_size is not None
                        else {}
                    ),
                }
            )
        return {
            "at": self._snapshot.at,
            "sites": [
                {"site": a.site, "answered_at": a.answered_at, "error": a.error}
                for a in self._snapshot.answers.values()
            ],
            "runs": [
                {
                    "run_id": run.run_id,
                    "name": run.name,
                    "created_at": run.created_at,
                    "burst_mode": run.burst_mode,
                    "deadline": run.deadline,
                    "max_cost_usd": run.max_cost_usd,
                    "attempts": by_run[run.run_id],
                }
                for run in sorted(runs.values(), key=lambda r: r.created_at)
            ],
        }

    def _state(self, attempt: "Attempt") -> str:
        if attempt.array_size is None:
            return attempt.state.value
        counts = self._counts.get(attempt.attempt_id, {})
        parts = [f"{n} {state.value}" for state, n in sorted(counts.items())]
        unseen = attempt.array_size - sum(counts.values())
        if unseen > 0 and counts:
            parts.append(f"{unseen} not seen")
        return ", ".join(parts) or f"{attempt.state.value} x{attempt.array_size}"

    def _reason(self, attempt: "Attempt") -> str:
        from hpcscale.cli._jobs import local_time
        from hpcscale.reasons import explain, explain_end
        from hpcscale.slurm.types import JobState

        if attempt.ended:
            return explain_end(
                attempt.state, attempt.reason, attempt.exit_code, attempt.exit_signal
            )
        if attempt.state is JobState.UNKNOWN:
            seen = local_time(attempt.seen_at)
            return f"not listed any more; last seen {attempt.last_state.value} {seen}"
        parts = [explain(attempt.reason, attempt.state)]
        if attempt.run_id in self._moving:
            parts.insert(0, self._moving[attempt.run_id])
        if attempt.site in self._snapshot.failed:
            answer = self._seen.get(attempt.site)
            answered = answer.answered_at if answer else None
            parts.insert(0, f"no answer since {local_time(answered or attempt.created_at)}")
        return "; ".join(p for p in parts if p)

    def _held_s(self, attempt: "Attempt") -> float:
        from hpcscale.cost import held_s
        from hpcscale.slurm.types import JobState

        if attempt.state is JobState.UNKNOWN and attempt.last_state.active:
            # what it does since nobody knows
            return held_s(attempt.start_time, attempt.seen_at, self._snapshot.at)
        if attempt.ended or attempt.last_state.active:
            ahead = dt.timedelta(seconds=self._snapshot.offsets_s.get(attempt.site, 0.0))
            return held_s(attempt.start_time, attempt.end_time, self._snapshot.at + ahead)
        return 0.0

    def _elapsed(self, attempt: "Attempt") -> str:
        from hpcscale.units import format_duration

        if attempt.array_size is not None:
            return f"-/{format_duration(attempt.time_limit_s)}"
        limit = format_duration(attempt.time_limit_s)
        return f"{format_duration(round(self._held_s(attempt)))}/{limit}"

    def _cost(self, attempt: "Attempt") -> Any:
        if attempt.cost_usd is not None:
            return attempt.cost_usd
        if attempt.array_size is not None and not attempt.ended:
            return None  # known when its elements have ended
        held = attempt.earlier_s + self._held_s(attempt)
        return self._ledger.cost_of(attempt, held)


def _unsent(ledger: "Ledger", site_name: str | None) -> list[dict[str, Any]]:
    """Batches with tasks that a limit kept back; said on stderr."""
    from hpcscale.cli._output import notice

    if not ledger.events(kind="batch.stored"):
        return []
    from hpcscale.batches import waiting

    found = [b for b in waiting(ledger) if site_name in {None, b.run.site}]
    for batch in found:
        notice(
            f"{batch.run.run_id} {batch.run.name}: {batch.unsent} of {batch.size} tasks wait here "
            f"until {batch.run.site} has room; hpcscale tend sends them"
        )
    return [
        {"run_id": b.run.run_id, "site": b.run.site, "tasks": b.size, "waiting": b.unsent}
        for b in found
    ]


def _number(attempt: "Attempt") -> str:
    from hpcscale.ledger import Role

    return f"{attempt.number}" + (" burst" if attempt.role is Role.BURST else "")


def _start(attempt: "Attempt") -> str:
    from hpcscale.cli._jobs import local_time
    from hpcscale.slurm.types import JobState

    if attempt.start_time is None:
        return "N/A"
    if (
        attempt.state in {JobState.CANCELLED, JobState.DEADLINE, JobState.BOOT_FAIL}
        and attempt.start_time == attempt.end_time
        and attempt.array_size is None
    ):
        return "never"  # cancelled while it waited: Slurm then says it began when it ended
    waiting = not attempt.ended and not attempt.last_state.active
    return ("~" if waiting else "") + local_time(attempt.start_time)


def _moves(ledger: "Ledger") -> dict[str, str]:
    """Run id -> where it is being moved, for moves under way."""
    if not ledger.any_moving():
        return {}
    from hpcscale.burst.moves import FOLLOWED, Moves, origin_attempt

    found: dict[str, str] = {}
    alone: dict[str, list[str]] = {}
    for move in Moves(ledger).unsettled():
        if move.step in FOLLOWED and not move.same_job:
            continue  # its command runs there, and what waited here tells itself where it went
        word = "moved" if move.same_job and move.target else "moving"
        found[move.run_id] = f"{word} to {move.to_site}"
        if move.task is not None:
            run_id = origin_attempt(ledger, move).run_id
            alone.setdefault(run_id, []).append(f"element {move.task} to {move.to_site}")
    return found | {run_id: f"moving {', '.join(texts)}" for run_id, texts in alone.items()}
