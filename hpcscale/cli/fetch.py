"""``hpcscale fetch``: a run's outputs, checkpoint and logs come here, also while it runs."""

from typing import TYPE_CHECKING

import click

from hpcscale.cli._output import emit_json, json_option, notice, printable

if TYPE_CHECKING:
    from hpcscale.ledger import Attempt, Found, Ledger


@click.command("fetch")
@click.argument("job", metavar="JOB")
@click.option("--output", "outputs", metavar="NAME", multiple=True, help="This output alone.")
@click.option("--checkpoint", is_flag=True, help="The checkpoint directory alone.")
@click.option("--logs", is_flag=True, help="The logs alone.")
@click.option("--to", metavar="DIR", help="Below this directory; default where each belongs.")
@click.option(
    "--max-bytes", metavar="SIZE", default="50G", show_default=True, help="More is refused."
)
@json_option
def command(
    *,
    job: str,
    outputs: tuple[str, ...],
    checkpoint: bool,
    logs: bool,
    to: str | None,
    max_bytes: str,
    as_json: bool,
) -> None:
    """Bring a run's files here.

    \b
      hpcscale fetch r7k2m9q4xa
      hpcscale fetch r7k2m9q4xa --output model --to /tmp/look
      hpcscale fetch onprem:4711 --logs

    Without --output, --checkpoint or --logs all three come. A job may still run: what it has
    written so far is copied, and the next fetch brings what changed since. What is here already, by
    size and time, is not copied again; what was cut goes on where it stopped. At a job's end
    `hpcscale wait` and the handover do the same by themselves.

    Of one element of an array (SITE:ID_TASK) comes what is its own: its log, its part of the
    checkpoint, its function's result. Outputs that all elements share come with --output.

    Links, devices, pipes and names that lead out of their directory are never brought. With --to,
    an output is DIR/NAME, the others are DIR/checkpoint and DIR/logs.

    Exit code 1 when something could not be brought, 4 when it is more than --max-bytes, 5 when the
    site gave no answer.
    """  # noqa: D301  # click's mark for text that is not rewrapped
    from pathlib import Path

    from hpcscale.cli._jobs import SitePool
    from hpcscale.cli._transfer_bar import Bar
    from hpcscale.errors import HpcscaleError
    from hpcscale.ledger import Ledger
    from hpcscale.results import fetch, must_fetch

    limit = _bytes(max_bytes)
    with Ledger.open(create=False) as ledger, SitePool() as pool:
        found = ledger.resolve(job)
        attempt = found.attempt
        names = _names(attempt, outputs, checkpoint=checkpoint, logs=logs)
        if not must_fetch(attempt, pool(attempt.site)) and to is None and not attempt.fetched:
            notice(f"{attempt.run_id} works in place at {attempt.site}: nothing is to be fetched")
        ended = _ended(ledger, found)
        with Bar() as bar:
            fetched = fetch(
                ledger,
                pool(attempt.site),
                attempt,
                task=found.task,
                names=names,
                to=None if to is None else Path(to).expanduser().absolute(),
                max_bytes=limit,
                meter=bar,
            )
    for text in fetched.refused:
        notice(f"refused: {text}")
    for text in fetched.skipped:
        notice(f"not fetched: {text}")
    for name in fetched.shared:
        notice(
            f"{name} is of all elements, and stays: hpcscale fetch {attempt.run_id} "
            f"--output {name.removeprefix('outputs/')}"
        )
    if as_json:
        emit_json(
            {
                "run_id": attempt.run_id,
                "ref": _ref(found),
                "site": attempt.site,
                "ended": ended,
                "files": [str(path) for path in fetched.files],
                "objects": fetched.objects,
                "bytes": fetched.size,
                "unchanged": fetched.unchanged,
                "refused": [printable(text) for text in fetched.refused],
                "skipped": [printable(text) for text in fetched.skipped],
                "shared": fetched.shared,
            }
        )
    else:
        for path in [*map(str, fetched.files), *fetched.objects]:
            click.echo(printable(path))
        so_far = "" if ended else " so far"
        notice(
            f"{len(fetched.files) + len(fetched.objects)} files, {fetched.size} bytes{so_far}; "
            f"{fetched.unchanged} were here already"
        )
    if fetched.skipped:
        raise HpcscaleError(
            f"{len(fetched.skipped)} files were not fetched", hint=f"again: hpcscale fetch {job}"
        )


def _ref(found: "Found") -> str | None:
    from hpcscale.units import JobId, JobRef

    ref = found.attempt.ref
    if ref is None or found.task is None:
        return str(ref) if ref else None
    return str(JobRef(ref.site, JobId(ref.job_id.base, found.task)))


def _ended(ledger: "Ledger", found: "Found") -> bool:
    if found.task is None or found.attempt.ended:
        return found.attempt.ended
    element = ledger.elements(found.attempt).get(found.task)
    return element is not None and element.state.terminal


def _names(
    attempt: "Attempt", outputs: tuple[str, ...], *, checkpoint: bool, logs: bool
) -> list[str] | None:
    """The names below the run's directory that were asked for; None for all."""
    from hpcscale.errors import NotFoundError

    names = [f"outputs/{name}" for name in outputs] + ["checkpoint"] * checkpoint
    for name in names:
        if name not in attempt.staged:
            known = ", ".join(sorted(k for k in attempt.staged if "inputs/" not in k)) or "none"
            raise NotFoundError(
                f"the run has no {name} to be fetched; it has: {known}",
                where=f"run {attempt.run_id}",
                hint="what lies below a site's shared_dirs is used in place, and never copied",
            )
    return [*names, *(["logs"] * logs)] or None


def _bytes(text: str) -> int:
    from hpcscale.errors import UsageError
    from hpcscale.units import parse_memory_mb

    try:
        return int(parse_memory_mb(text) * 1024**2)
    except ValueError as exc:
        raise UsageError(f"--max-bytes {text}: {exc}", hint="--max-bytes 200G") from exc
