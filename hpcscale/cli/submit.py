"""``hpcscale submit``: a job from flags, a JOB.toml or an sbatch script, to Slurm."""

from typing import TYPE_CHECKING, Any

import click

from hpcscale.cli._job_options import JobArguments, JobCommand, job_options
from hpcscale.cli._output import emit_json, json_option, notice, printable, silence_stdout
from hpcscale.errors import HpcscaleError

if TYPE_CHECKING:
    import datetime as dt
    from collections.abc import Callable

    from hpcscale.connect import Connection
    from hpcscale.ledger import Ledger
    from hpcscale.render import RenderedJob
    from hpcscale.site import Site
    from hpcscale.spec import JobSpec
    from hpcscale.submit import Submission


@click.command("submit", cls=JobCommand, context_settings={"help_option_names": ["-h", "--help"]})
@job_options
@click.option("--dry-run", is_flag=True, help="Print script, place and cost; change nothing.")
@json_option
def command(job: JobArguments, dry_run: bool, as_json: bool) -> None:
    """Submit a job to a site's Slurm.

    \b
      hpcscale submit --nodes 2 --gpus-per-node 4 --launcher torchrun -- train.py --epochs 3
      hpcscale submit JOB.toml --time 2:00:00
      hpcscale submit SCRIPT.sbatch -- arguments of the script

    Prints one line: the job, its run and its log. A JOB.toml holds the same as the flags, and flags
    win. When sbatch gives no answer (exit 5) do not submit again: `hpcscale status` finds the job
    by its submission id.
    """  # noqa: D301  # click's mark for text that is not rewrapped
    from hpcscale.prepare import prepare
    from hpcscale.site import load_site

    spec = job.load()
    assert spec.site is not None  # load() chose one
    site = load_site(spec.site).site
    rendered = prepare(spec, site)
    if dry_run:
        import datetime as dt

        burst = _burst_notes(spec, site, lambda: dt.datetime.now(dt.UTC))
        _dry_run(job, rendered, site, burst, as_json=as_json)
        return
    from hpcscale.cli._transfer_bar import Bar
    from hpcscale.connect import connect
    from hpcscale.ledger import Ledger
    from hpcscale.submit import submit

    with Ledger.open() as ledger, connect(site) as connection, Bar() as bar:
        now = connection.clock.now  # the clock that will judge it
        burst = _burst_notes(spec, site, now, ledger, connection)
        for text in burst:
            notice(text)
        submission = submit(rendered, site, connection, ledger, meter=bar)
    for text in submission.notices:
        notice(text)
    try:
        _tell(submission, burst, as_json=as_json)
    except OSError as exc:  # a full disk, or nobody reads: the job exists all the same
        silence_stdout()
        raise HpcscaleError(
            f"{submission.ref} was submitted as run {submission.run_id}, but standard output "
            f"cannot be written: {exc.strerror}",
            hint=f"hpcscale status {submission.run_id}",
        ) from exc


def _tell(submission: "Submission", burst: list[str], *, as_json: bool) -> None:
    if as_json:
        emit_json(
            {
                "ref": str(submission.ref),
                "site": submission.site,
                "script": submission.script,
                "submission_id": submission.submission_id,
                "array_size": submission.array_size,
                "run_id": submission.run_id,
                "run_dir": submission.run_dir,
                "notices": [*burst, *submission.notices],
            }
        )
        return
    log = "%A_%a" if submission.array_size is not None else str(submission.ref.job_id)
    log = log.replace("%A", str(submission.ref.job_id)).replace("%a", "*")
    click.echo(
        f"{submission.ref}  run {submission.run_id}  "
        f"log {submission.site}:{submission.run_dir}/logs/{log}.log"
    )


def _burst_notes(
    spec: "JobSpec",
    site: "Site",
    now: "Callable[[], dt.datetime]",
    ledger: "Ledger | None" = None,
    connection: "Connection | None" = None,
) -> list[str]:
    """What a job that may burst is told; raises as ``prospect.burst_notes``."""
    from hpcscale.spec import BurstMode

    if spec.burst.mode is BurstMode.NEVER:
        return []  # most jobs: they need not wait for these imports
    from hpcscale.burst.prospect import burst_notes, money_left

    money = None if ledger is None or connection is None else money_left(ledger, connection)
    return burst_notes(spec, site, now, money)


def _dry_run(
    job: JobArguments, rendered: "RenderedJob", site: "Site", burst: list[str], *, as_json: bool
) -> None:
    """Print what would be sent; no file, no ledger row and no question to the site."""
    from hpcscale.cost import estimate
    from hpcscale.precheck import require_fit
    from hpcscale.staging import check_local
    from hpcscale.submit import log_notices, read_secrets, sbatch_options, user_comment
    from hpcscale.verify import comment_with

    spec = rendered.spec
    read_secrets(spec.secrets)  # whether they are there; the values go nowhere
    check_local(rendered.staged)
    dependency, waits = _dependency(spec, site.name)
    run_dir = f"{site.state_dir}/runs/RUN_ID"
    comment = comment_with(user_comment(spec), "SUBMISSION_ID")
    options = sbatch_options(rendered, run_dir, comment, dependency)
    cost = estimate(spec, site)
    why = _why_here(job, site.name)
    notices = [*rendered.notices, *waits, *log_notices(spec, run_dir)]
    if as_json:
        emit_json(
            {
                "dry_run": True,
                "site": site.name,
                "why": why,
                "script": rendered.script,
                "sbatch_options": options,
                "copied": rendered.staged,
                "array_size": spec.array_size,
                "cost": {
                    "usd": cost.usd,
                    "why": cost.why,
                    "gpu_hour_usd": cost.gpu_hour_usd,
                    "gpus": cost.gpus,
                    "boot_hours": cost.boot_hours,
                },
                "burst": burst,
                "notices": notices,
            }
        )
    else:
        goes = [item for item in rendered.staged.items() if not item[0].startswith("outputs/")]
        comes = [item for item in rendered.staged.items() if item[0].startswith("outputs/")]
        rows: list[tuple[str, Any]] = [
            ("site", f"{site.name}, by {why}"),
            ("sbatch", " ".join(options)),
            ("copied", ", ".join(f"{path} -> {name}" for name, path in goes)),
            ("fetched", ", ".join(f"{name} -> {path}" for name, path in comes)),
            ("cost", cost),
            *(("burst", note) for note in burst),
            *(("notice", text) for text in notices),
        ]
        for name, text in rows:
            if text:
                click.echo(printable(f"# {name}: {text}"))
        click.echo(rendered.script, nl=False)
    require_fit(spec, site)  # last: what does not fit is worth seeing


def _why_here(job: JobArguments, name: str) -> str:
    from hpcscale.settings import default_site

    if job.values.get("site"):
        return "--site"
    default = default_site()
    if default is not None and default[0] == name:
        return f"default_site in {default[1]}" if "$" not in default[1] else default[1]
    return f"site in {job.source or 'the job defaults'}"


def _dependency(spec: "JobSpec", site_name: str) -> tuple[str | None, tuple[str, ...]]:
    if not spec.after:
        return spec.directives.get("dependency"), ()
    import tempfile
    from pathlib import Path

    from hpcscale.after import resolve_dependency
    from hpcscale.ledger import FILE_NAME, Ledger, ledger_path

    if ledger_path().exists():
        with Ledger.open(create=False) as ledger:
            return resolve_dependency(spec, site_name, ledger)
    with (
        tempfile.TemporaryDirectory() as nowhere,
        Ledger.open(Path(nowhere) / FILE_NAME) as ledger,
    ):
        return resolve_dependency(spec, site_name, ledger)
