"""``hpcscale forecast``: when a job starts, how sure that is, and what would start it sooner."""

from typing import TYPE_CHECKING, Any

import click

from hpcscale.cli._job_options import JobArguments, JobCommand, job_options
from hpcscale.cli._output import emit_json, emit_table, json_option, printable
from hpcscale.cli._spans import short, span, when
from hpcscale.errors import HpcscaleError

if TYPE_CHECKING:
    from hpcscale.outlook.answer import Forecast
    from hpcscale.spec import JobSpec


@click.command("forecast", cls=JobCommand, context_settings={"help_option_names": ["-h", "--help"]})
@job_options
@click.option(
    "--apply",
    "lever",
    type=click.Choice(["time", "time-min", "partition", "nodes"]),
    help="Change the waiting job as the forecast offers; asks first.",
)
@click.option("--yes", is_flag=True, help="With --apply: do not ask.")
@click.option(
    "--demand",
    "hours",
    type=click.IntRange(1, 168),
    metavar="HOURS",
    help="Of the site: the work that its users will submit, hour by hour, against its nodes.",
)
@click.option(
    "--backtest",
    is_flag=True,
    help="Of the site: forecast the jobs of its history again, and compare with what came.",
)
@json_option
def command(
    job: JobArguments,
    *,
    lever: str | None,
    yes: bool,
    hours: int | None,
    backtest: bool,
    as_json: bool,
) -> None:
    """When will a job start: of one that waits, or of one not submitted yet.

    \b
      hpcscale forecast lab-onprem:123        a waiting job (also a run's id or name)
      hpcscale forecast JOB.toml              as if it were submitted now
      hpcscale forecast --nodes 2 --gpus-per-node 4 --time 4:00:00 --partition gpu
      hpcscale forecast --site lab-onprem --demand 24    what the site is in for
      hpcscale forecast --site lab-onprem --backtest     how good forecasts there are

    Its own site comes first, then every other that has a login node, as if it were submitted there
    now; where nodes boot on demand, copying and the boot are counted. --site asks one alone. p50
    is the plan of the queue with learned runtimes; nine of ten jobs start before p90, once enough
    forecasts have come true to calibrate both. Below it: what would start it sooner, other sites
    and changes of the request that cost nothing. Changes nothing, but for --apply: a shorter limit
    only where a checkpoint verifies already.
    """  # noqa: D301  # click's mark for text that is not rewrapped
    from hpcscale.extras import require

    require("forecast", "a forecast")
    if backtest:
        from hpcscale.cli._forecast_backtest import show
        from hpcscale.errors import UsageError

        if hours is not None or lever is not None:
            raise UsageError("--backtest is asked alone", hint="hpcscale forecast --backtest")
        show(_site_alone(job, "--backtest"), as_json=as_json)
        return
    if hours is not None:
        _demand(job, hours, as_json=as_json)
        return
    if lever is not None:
        _apply(job, lever, yes=yes, as_json=as_json)
        return
    found, gains = _of_job(job.source, job) if _names_a_job(job.source) else _of_spec(job)
    if as_json:
        emit_json([_plain(forecast) for forecast in found])
        return
    columns = ["SITE", "JOB", "STATE", "START P50", "START P90", "QUEUE", "HISTORY"]
    if boots := any(forecast.boot_p95_s is not None for forecast in found):
        columns.insert(5, "BOOT P50/P95")
    emit_table(columns, [_row(forecast, boots=boots) for forecast in found])
    _explain(found[0])  # what costs nothing comes before other sites
    for line in gains:
        click.echo(printable(f"{found[0].site}: {line}"))
    for forecast in found[1:]:
        _explain(forecast)


def _row(f: "Forecast", *, boots: bool) -> list[str]:
    boot = "-"
    if f.boot_p50_s is not None and f.boot_p95_s is not None:
        boot = f"{short(f.boot_p50_s)} / {short(f.boot_p95_s)}"
    return [
        f.site, f.job or "-", f.state, span(f.p50_s), span(f.p90_s), *([boot] if boots else []),
        f"{f.queue_level}, {f.pending_jobs} pending", f"{f.history_level}, {f.learned_jobs} ended",
    ]  # fmt: skip


def _demand(job: JobArguments, hours: int, *, as_json: bool) -> None:
    import msgspec

    from hpcscale.connect import connect
    from hpcscale.outlook.ahead import ahead
    from hpcscale.site import load_site

    with connect(load_site(_site_alone(job, "--demand 24")).site) as connection:
        seen = ahead(connection, hours)
    if as_json:
        emit_json(msgspec.to_builtins(seen))
        return
    unit = f"{seen.unit}-h"
    emit_table(
        ["HOUR", f"SUBMITTED ({unit})", f"WAITS AT ITS END ({unit})", "NODES MORE"],
        [
            [f"{h.begins:%a %Y-%m-%d %H:%MZ}", f"{h.arriving:.1f}", f"{h.left_over:.1f}",
             str(h.nodes_more) if h.nodes_more else "-"]
            for h in seen.hours
        ],
    )  # fmt: skip
    how = f"by hour of the week, from {seen.weeks} whole weeks, trend {seen.trend:.2f}"
    if not seen.weeks:
        how = "the same for each hour: there is less than a week of history"
    click.echo(
        f"{seen.site}: {seen.capacity} {seen.unit}s in service; {seen.backlog:.1f} {unit} run and "
        f"wait now; {how} ({seen.learned_jobs} ended jobs)"
    )


def _site_alone(job: JobArguments, option: str) -> str:
    """The site that is asked about; an error where a job is named as well."""
    from hpcscale.errors import UsageError
    from hpcscale.settings import choose_site

    asked = [name for name, value in job.values.items() if value and name != "site"]
    if job.source is not None or job.command or asked:
        raise UsageError(
            f"{option.split(maxsplit=1)[0]} is of a site, not of a job",
            hint=f"hpcscale forecast --site NAME {option}",
        )
    return choose_site(job.values.get("site"))


def _apply(job: JobArguments, name: str, *, yes: bool, as_json: bool) -> None:
    import msgspec

    from hpcscale.connect import connect
    from hpcscale.errors import NotFoundError, UsageError
    from hpcscale.ledger import Ledger, ledger_path
    from hpcscale.outlook.answer import forecast_job
    from hpcscale.site import load_site
    from hpcscale.squeeze import apply, choose

    if not _names_a_job(job.source) or job.source is None:
        raise UsageError("--apply changes a job that waits", hint="hpcscale forecast JOB --apply …")
    if not ledger_path().exists():
        raise NotFoundError(f"{job.source} was not submitted by hpcscale", hint="scontrol update")
    with Ledger.open(create=False) as ledger:
        attempt = ledger.resolve(job.source).attempt
        with connect(load_site(attempt.site).site) as connection:
            lever = choose(forecast_job(connection, str(attempt.job_id)), name)
            text = f"{attempt.ref}: {name} {lever.value}, start {when(lever.start_s)}"
            if not yes and not _agreed(text):
                raise UsageError("nothing was changed: it was not agreed to", hint="--yes")
            done = apply(ledger, connection, attempt, lever, name)
    if as_json:
        emit_json(msgspec.to_builtins(done))
        return
    before = f" (it was {done.before})" if done.before else ""
    click.echo(f"{done.job}: {done.field}={done.after}{before}")


def _agreed(text: str) -> bool:
    import sys

    return sys.stdin.isatty() and click.confirm(f"{text}?", err=True)


def _names_a_job(source: str | None) -> bool:
    """Whether the word is a job or a run rather than a file."""
    if source is None:
        return False
    from pathlib import Path

    return not Path(source).exists() and not source.endswith((".toml", ".sbatch", ".sh", ".slurm"))


def _of_job(source: str | None, job: JobArguments) -> "tuple[list[Forecast], list[str]]":
    """Forecasts, its own site's first, and the lines on where it would start sooner."""
    from hpcscale.cli._forecast_sites import elsewhere, sooner
    from hpcscale.connect import connect
    from hpcscale.outlook.answer import forecast_queued
    from hpcscale.site import load_site

    assert source is not None
    site, job_id = _place(source, job.values.get("site"))
    with connect(load_site(site).site) as connection:
        own, spec = forecast_queued(connection, job_id)
    if job.values.get("site") or own.state != "PENDING":
        return [own], []
    others = elsewhere(_written(source) or spec, own.site)
    return [own, *others], sooner(own, others)


def _written(source: str) -> "JobSpec | None":
    """The job file's words, for a job that hpcscale submitted: the queue shows less."""
    from hpcscale.ledger import Ledger, ledger_path

    if not ledger_path().exists():
        return None
    try:
        with Ledger.open(create=False) as ledger:
            return ledger.run(ledger.resolve(source).attempt.run_id).spec
    except HpcscaleError:
        return None


def _place(text: str, asked: str | None) -> tuple[str, str]:
    """Site and Slurm id of a JOB argument: of the ledger, or as it stands, ``site:123`` or 123."""
    from hpcscale.errors import NotFoundError
    from hpcscale.ledger import Ledger, ledger_path
    from hpcscale.settings import choose_site
    from hpcscale.units import JobId, JobRef

    try:
        ref = JobRef.parse(text)
        return ref.site, str(ref.job_id)
    except ValueError:
        pass
    try:
        return choose_site(asked), str(JobId.parse(text))
    except ValueError:
        pass
    if not ledger_path().exists():
        raise NotFoundError(f"no job, run or file {text!r}", hint="hpcscale status")
    with Ledger.open(create=False) as ledger:
        attempt = ledger.resolve(text).attempt
    if attempt.job_id is None:
        raise NotFoundError(f"{text}: Slurm has not given it an id yet", hint="hpcscale status")
    return attempt.site, str(attempt.job_id)


def _of_spec(job: JobArguments) -> "tuple[list[Forecast], list[str]]":
    from hpcscale.cli._forecast_sites import elsewhere, sooner
    from hpcscale.connect import connect
    from hpcscale.errors import UsageError
    from hpcscale.outlook.answer import forecast_spec
    from hpcscale.site import load_site

    asked = [name for name, value in job.values.items() if value and name != "site"]
    if job.source is None and not job.command and not asked:
        raise UsageError(
            "forecast of what: no job, no job file and no size is named",
            hint="hpcscale forecast JOB, JOB.toml, or --nodes 2 --gpus-per-node 4 --time 4:00:00",
        )
    spec = job.load(runs=False)
    assert spec.site is not None  # load() chose one
    with connect(load_site(spec.site).site) as connection:
        own = forecast_spec(connection, spec)
    if job.values.get("site"):
        return [own], []
    others = elsewhere(spec, own.site)
    return [own, *others], sooner(own, others)


def _plain(forecast: "Forecast") -> dict[str, Any]:
    import math

    import msgspec

    data: dict[str, Any] = msgspec.to_builtins(forecast)
    for lever in data["levers"]:
        lever["start_s"] = lever["start_s"] if math.isfinite(lever["start_s"]) else None
    return data


def _explain(forecast: "Forecast") -> None:
    lines = []
    if forecast.boot_p95_s is not None and forecast.p50_s is not None:
        lines.append(
            f"{short(forecast.staging_s)} of copying and a boot are counted before the start"
        )
    if forecast.bound:
        held = "" if forecast.coverage is None else f"; {forecast.coverage:.0%} of them held so far"
        lines.append(f"p90: {forecast.bound}{held}")
    if forecast.slurm_s is not None:
        lines.append(f"Slurm itself says {span(forecast.slurm_s)}")
    lines += [
        f"sooner: --{lever.change} {lever.value} would start {when(lever.start_s)} ({lever.why})"
        for lever in forecast.levers
    ]
    lines += forecast.notes
    for line in lines:
        click.echo(printable(f"{forecast.site}: {line}"))
