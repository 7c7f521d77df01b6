"""``hpcscale burst simulate``: what a policy would have cost on a history."""

from typing import TYPE_CHECKING, Any

import click

from hpcscale.cli._burst_history import history_options, read
from hpcscale.cli._burst_model import model_options, more_figures, rehearse_all, site_model
from hpcscale.cli._burst_twin import check, twin_options
from hpcscale.cli._output import emit_json, emit_table, json_option, notice

if TYPE_CHECKING:
    from hpcscale.history.reading import Reading
    from hpcscale.simulate.compare import Comparison
    from hpcscale.simulate.overflow import Cluster, Instance, Rules

MOST_BOUNDED = 3000  # jobs: the bound is a program of some 60 columns each
SEARCH = 100_000_000  # moves times jobs: a minute
DEFAULT_POLICIES = ("no-wait", "constant-wait", "compute-wait", "value")


@click.command()
@history_options
@click.option(
    "--policy",
    "policies",
    multiple=True,
    metavar="NAME|P.toml",
    help="A policy by name or a policy file; may be repeated. Default: no-wait, constant-wait, "
    "compute-wait and value.",
)
@click.option("--site", metavar="SITE", help="Take nodes and GPUs from this site's profile.")
@click.option("--cloud", metavar="SITE", help="Take price and boot from this site's profile.")
@click.option("--nodes", type=click.IntRange(1, 1_000_000), help="Nodes of the cluster.")
@click.option("--gpus-per-node", type=click.IntRange(1, 1024), help="GPUs of each node.")
@click.option("--cloud-gpu-hour-usd", metavar="USD", help="Dollars of a GPU-hour in the cloud.")
@click.option(
    "--equal-wait",
    metavar="POLICY",
    help="Set every policy's knob so that jobs wait as long on average as under this one.",
)
@click.option(
    "--tune-on",
    type=click.FloatRange(0, 0.9),
    default=0.0,
    show_default=True,
    help="Share of the jobs, the earliest, that knobs are set on; the rest is scored. "
    "0 sets them in hindsight.",
)
@click.option(
    "--runtimes",
    type=click.Choice(["known", "learned"]),
    default="known",
    show_default=True,
    help="What policies know: the true runtime, or what ended jobs taught. --model slurm has it "
    "learned always.",
)
@click.option(
    "--deadlines",
    type=click.FloatRange(0, 1),
    default=0.5,
    show_default=True,
    help="Share of jobs with a deadline: 1.5, 2 or 4 runtimes and an hour after submission.",
)
@click.option(
    "--bounds",
    is_flag=True,
    help="Also say what no schedule of that mean wait costs less than, and the cheapest that was "
    "found with all arrivals known. Needs --equal-wait; takes a minute.",
)
@click.option("--seed", type=int, default=0, show_default=True, help="Of whatever is drawn.")
@click.option(
    "--html", metavar="FILE", type=click.Path(), help="Write a report that needs no other file."
)
@model_options
@twin_options
@json_option
def simulate(  # noqa: PLR0917 -- click passes them by keyword
    history: str,
    processors_per_node: int | None,
    policies: tuple[str, ...],
    site: str | None,
    cloud: str | None,
    nodes: int | None,
    gpus_per_node: int | None,
    cloud_gpu_hour_usd: str | None,
    equal_wait: str | None,
    tune_on: float,
    runtimes: str,
    deadlines: float,
    bounds: bool,
    seed: int,
    html: str | None,
    model: str,
    check_on_lab: bool,
    lab_jobs: int,
    lab_first: int | None,
    lab_minutes: float,
    lab_fast: int,
    as_json: bool,
    **asked: Any,
) -> None:
    """Replay a history on a cluster with a cloud behind it, under several policies.

    Nothing is asked of Slurm (but of its accounting, for live:90d) and nothing is moved. The same
    seed gives the same figures.
    """
    from hpcscale.cli._progress import progress
    from hpcscale.errors import UsageError
    from hpcscale.simulate.compare import RUNS, compare
    from hpcscale.simulate.overflow import Expect, instance_of

    if check_on_lab:
        size = _size(site, nodes, gpus_per_node)
        reading, _ = read(history, site, size[1], processors_per_node)
        check(
            reading.workload, *size, jobs=lab_jobs, first=lab_first, minutes=lab_minutes,
            fast=lab_fast, as_json=as_json,
        )  # fmt: skip
        return
    cluster, boot = _cluster(site, cloud, nodes, gpus_per_node, cloud_gpu_hour_usd)
    reading, notes = read(history, site, cluster.gpus_per_node, processors_per_node)
    instance = instance_of(reading.workload, cluster, deadlines=deadlines, seed=seed)
    wanted = list(dict.fromkeys(policies or DEFAULT_POLICIES))
    if len(wanted) < len(policies):
        notice("a policy that is named twice is replayed once")
    if equal_wait is not None and equal_wait not in wanted:
        wanted.insert(0, equal_wait)
    if bounds:
        _may_bound(instance, equal_wait, model)
    if model == "slurm":
        if tune_on:
            raise UsageError(
                "--tune-on is of --model plain", hint="leave it out: the knobs of files stand"
            )
        if runtimes != "learned":
            notice("--model slurm: runtimes are learned from ended jobs, not known")
        shape, masks = site_model(instance, reading.workload, asked, boot)
        with progress("reading the history") as advance:
            made, lived = rehearse_all(
                instance, reading.workload, wanted, shape, masks, equal_wait=equal_wait,
                seed=seed, tell=advance,
            )  # fmt: skip
        data = _data(
            made, history=history, runtimes="learned", seed=seed, equal_wait=equal_wait,
            read=reading.summary(), notes=notes,
        )  # fmt: skip
        data["model"] = "slurm"
        for row in data["policies"]:
            row.update(more_figures(lived[row["policy"]]))
        _price_here(data, site)
        _show(made, data, reading, html, as_json=as_json)
        return
    only = [name.replace("_", "-") for name, value in asked.items() if value]
    if only:
        raise UsageError(
            f"--{only[0].replace('node-classes', 'node-class')} is of --model slurm",
            hint="--model slurm",
        )
    chosen = [(name, _rules(name, instance)) for name in wanted]
    if tune_on and not equal_wait:
        raise UsageError("--tune-on needs --equal-wait", hint="--equal-wait constant-wait")
    if int(len(instance) * tune_on) in {0, len(instance)} and tune_on:
        raise UsageError(f"--tune-on {tune_on} leaves no job on one side", hint="--tune-on 0.4")
    with progress("compiling the simulator (the first time)") as advance:
        done = 0.0

        def tell(name: str, runs: int) -> None:
            nonlocal done
            finished = [n for n, _ in chosen].index(name)
            done = finished + 1 if runs < 0 else max(done, finished) + runs * 0.9 / RUNS
            advance(name, done / len(chosen))

        made = compare(
            instance,
            chosen,
            equal_wait=equal_wait,
            tune_on=tune_on,
            expect=Expect(
                learned=runtimes == "learned",
                boot_h=(boot.get("boot_p95_s", 0.0) + boot.get("staging_s", 0.0)) / 3600,
            ),
            progress=tell,
        )
    data = _data(
        made,
        history=history,
        runtimes=runtimes,
        seed=seed,
        equal_wait=equal_wait,
        read=reading.summary(),
        notes=notes,
    )
    data["model"] = "plain"
    _price_here(data, site)
    if bounds:
        with progress("searching for the best schedule") as advance:
            advance("bounds", 0.0)
            data.update(_bounds(made, equal_wait or "", seed))
    _show(made, data, reading, html, as_json=as_json)


def _show(
    made: "Comparison", data: dict[str, Any], reading: "Reading", html: str | None, *, as_json: bool
) -> None:
    from pathlib import Path

    if html is not None:
        from hpcscale.simulate.report import page

        Path(html).write_text(page(made, data, reading.workload), encoding="utf-8")
    if as_json:
        emit_json(data)
        return
    _print(made, data)
    if html is not None:
        notice(f"report: {html}")


def _may_bound(instance: "Instance", equal_wait: str | None, model: str) -> None:
    from hpcscale.errors import UsageError
    from hpcscale.extras import require

    require("bound", "--bounds")
    if equal_wait is None or model != "plain":
        raise UsageError(
            "--bounds are of one mean wait, in --model plain", hint="--equal-wait constant-wait"
        )
    if len(instance) > MOST_BOUNDED:
        raise UsageError(
            f"--bounds: {len(instance):,} jobs are too many for it, {MOST_BOUNDED:,} the most",
            hint="a shorter part of the history",
        )


def _bounds(made: "Comparison", equal_wait: str, seed: int) -> dict[str, float]:
    """Dollars at the mean wait of one policy, on the jobs that are scored: proof and schedule."""
    from hpcscale.simulate.bound import lower_bound
    from hpcscale.simulate.offline import best_known

    asked = next(r.outcome.mean_wait_h for r in made.results if r.name == equal_wait)
    # a knob keeps to it within 1 %: the bounds are of the longest of these waits, so below them all
    within = [r.outcome for r in made.results if r.outcome.mean_wait_h <= 1.01 * asked]
    target = max(one.mean_wait_h for one in within)
    first = min(within, key=lambda one: one.cloud_cost_usd)
    best = best_known(first, target, moves=SEARCH // max(1, len(made.scored)), seed=seed)
    return {
        "bounds_mean_wait_h": target,
        "lower_bound_usd": lower_bound(made.scored, target).usd,
        # what a policy made is a schedule, too
        "best_known_usd": float(min(first.cloud_cost_usd, best.cloud_cost_usd)),
    }


def _cluster(
    site: str | None,
    cloud: str | None,
    nodes: int | None,
    gpus_per_node: int | None,
    usd: str | None,
) -> "tuple[Cluster, dict[str, float]]":
    from decimal import Decimal, InvalidOperation

    from hpcscale.errors import UsageError
    from hpcscale.simulate.overflow import Cluster

    boot: dict[str, float] = {}
    price = None
    nodes, gpus_per_node = _size(site, nodes, gpus_per_node)
    if cloud is not None:
        from hpcscale.site import load_site

        profile = load_site(cloud).site
        price = profile.gpu_hour_usd(profile.default_partition)
        boot = {
            "boot_p95_s": float(profile.burst.boot_allowance_s),
            "staging_s": float(profile.burst.staging_s),
            "boot_timeout_s": float(profile.burst.boot_timeout_s),
        }
        if price is None and usd is None:
            raise UsageError(
                f"{cloud} has no price of a GPU-hour", hint="--cloud-gpu-hour-usd 2.50"
            )
    if usd is not None:
        try:
            price = Decimal(usd)
        except InvalidOperation:
            price = Decimal(-1)
        if not price.is_finite() or price <= 0:
            raise UsageError(
                f"{usd!r} is no price", where="--cloud-gpu-hour-usd", hint="dollars, such as 2.50"
            )
    if price is None:
        raise UsageError(
            "the price of a GPU-hour in the cloud is not known",
            hint="--cloud-gpu-hour-usd 2.50, or --cloud SITE",
        )
    return Cluster(nodes, gpus_per_node, price), boot


def _size(site: str | None, nodes: int | None, gpus_per_node: int | None) -> tuple[int, int]:
    """Nodes and GPUs of each, as asked for or by the profile."""
    from hpcscale.errors import UsageError

    if site is not None:
        from hpcscale.site import load_site

        profile = load_site(site).site
        partition = profile.partitions.get(profile.default_partition or "")
        nodes = nodes or (partition.nodes if partition else None)
        gpus_per_node = gpus_per_node or profile.partition_gpus_per_node(profile.default_partition)
    if not nodes or not gpus_per_node:
        raise UsageError(
            "the size of the cluster is not known",
            hint="--nodes 4 --gpus-per-node 8, or --site SITE",
        )
    return nodes, gpus_per_node


def _rules(name: str, instance: Any) -> "Rules":
    """A policy by its name with the default knob, or as its file sets it."""
    from dataclasses import replace
    from pathlib import Path

    from hpcscale.simulate.policies import rules_of

    if not name.endswith(".toml"):
        return rules_of(name, instance)
    from hpcscale.burst.policies import policy_anywhere
    from hpcscale.burst.policy import PolicyKind

    policy = policy_anywhere(Path(name))
    guard = policy.deadline and policy.kind is not PolicyKind.NEVER
    match policy.kind:
        case PolicyKind.RULES:
            kind, knob = "threshold", (policy.max_wait_s or 0) / 3600
            if policy.max_wait_s is None:
                kind = "deadline" if policy.deadline else "never"
        case PolicyKind.THRESHOLD | PolicyKind.CONSTANT_WAIT:
            kind, knob = policy.kind.value, policy.wait_s / 3600
        case PolicyKind.COMPUTE_WAIT:
            kind, knob = policy.kind.value, policy.wait_per_gpu_hour_s / 3600
        case PolicyKind.VALUE:
            kind, knob = policy.kind.value, float(policy.hour_usd)
        case _:
            kind, knob = policy.kind.value, 0.0
    rules = rules_of(kind, instance)
    if policy.kind is PolicyKind.VALUE:
        rules = replace(rules, cap=policy.cap)
    # a file's `wait` blocks nobody: Slurm starts whoever fits
    return replace(rules, knob=knob, depth=policy.depth, guard=guard, blocking=False)


def _data(
    made: "Comparison",
    *,
    history: str,
    runtimes: str,
    seed: int,
    equal_wait: str | None,
    read: str,
    notes: list[str],
) -> dict[str, Any]:
    from hpcscale.simulate.compare import figures, fronts

    rows = [figures(result) for result in made.results]
    cluster = made.instance.cluster
    return {
        "history": history,
        "read": read,
        "notes": notes,
        "jobs": len(made.instance),
        "jobs_scored": len(made.scored),
        "left_out": made.instance.left_out,
        "nodes": cluster.nodes,
        "gpus_per_node": cluster.gpus_per_node,
        "cloud_gpu_hour_usd": float(cluster.cloud_gpu_hour_usd),
        "runtimes": runtimes,
        "seed": seed,
        "equal_wait": equal_wait,
        "equal_wait_h": made.target_h,
        "knobs_set_in_hindsight": equal_wait is not None and made.scored is made.instance,
        "policies": [{**row, "front": on} for row, on in zip(rows, fronts(rows), strict=True)],
    }


def _price_here(data: dict[str, Any], site: str | None) -> None:
    """What the hours at home cost by the profile's price of a GPU-hour; null without one."""
    price = None
    if site is not None:
        from hpcscale.site import load_site

        profile = load_site(site).site
        price = profile.gpu_hour_usd(profile.default_partition)
    data["here_gpu_hour_usd"] = None if price is None else float(price)
    for row in data["policies"]:
        hours = row["here_gpu_hours"]
        row["here_cost_usd"] = None if price is None else round(hours * float(price), 2)


def _print(made: "Comparison", data: dict[str, Any]) -> None:
    rows = [
        [
            one["policy"],
            f"${one['cloud_cost_usd']:,.2f}",
            f"{one['mean_wait_h']:.4f}",
            f"{one['p99_wait_h']:.3f}",
            f"{one['deadline_hit_rate']:.1%}",
            f"{one['jobs_in_cloud']:,}",
            f"{one['utilisation']:.1%}",
            f"{one['knob']:.4g}" if one["knob"] else "-",
        ]
        for one in data["policies"]
    ]
    columns = (
        "POLICY", "CLOUD COST", "MEAN WAIT H", "P99 WAIT H", "DEADLINES MET", "IN CLOUD", "BUSY",
        "KNOB",
    )  # fmt: skip
    emit_table(columns, rows)
    if data["here_gpu_hour_usd"] is not None:
        here = ", ".join(f"{p['policy']} ${p['here_cost_usd']:,.2f}" for p in data["policies"])
        click.echo(f"hours here at ${data['here_gpu_hour_usd']:g} a GPU-hour: {here}")
    cluster = made.instance.cluster
    click.echo(
        f"{data['jobs_scored']:,} jobs on {cluster.nodes} nodes x {cluster.gpus_per_node} GPUs, "
        f"cloud at ${cluster.cloud_gpu_hour_usd} a GPU-hour, runtimes {data['runtimes']}"
    )
    if "best_known_usd" in data:
        best, least = data["best_known_usd"], data["lower_bound_usd"]
        wait_h = data["bounds_mean_wait_h"]
        alike = [one for one in data["policies"] if one["mean_wait_h"] <= wait_h]
        cheap = min(alike, key=lambda one: one["cloud_cost_usd"])
        click.echo(
            f"at a mean wait of {wait_h:.4f} h no schedule costs less than "
            f"${least:,.2f}; with all arrivals known one of ${best:,.2f} was found, "
            f"${cheap['cloud_cost_usd'] - best:,.2f} below {cheap['policy']}"
        )
    notice(data["read"])
    for why, count in data["left_out"].items():
        notice(f"{count:,} jobs left out: {why}")
    if data["knobs_set_in_hindsight"]:
        notice("knobs were set in hindsight, on the jobs that are scored: --tune-on 0.4 does not")
