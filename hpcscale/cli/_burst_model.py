"""``hpcscale burst simulate --model slurm``: the live decide against a model of the site."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from hpcscale.burst.policy import Policy
    from hpcscale.history.workload import Workload
    from hpcscale.rehearsal import Rehearsal
    from hpcscale.simulate.compare import Comparison
    from hpcscale.simulate.overflow import Instance
    from hpcscale.simulate.site import SiteModel

F = TypeVar("F", bound=Callable[..., Any])

_OPTIONS = (
    click.option(
        "--model",
        type=click.Choice(["plain", "slurm"]),
        default="plain",
        show_default=True,
        help="plain: as published comparisons do, whoever fits starts, and a cloud without boots. "
        "slurm: backfill on single nodes, boots and what follows, and the decide of `burst run`.",
    ),
    click.option(
        "--node-class",
        "node_classes",
        multiple=True,
        metavar="NAME=NxG",
        help="slurm: N nodes of G GPUs (repeatable; else --nodes and --gpus-per-node). Jobs of a "
        "partition of that name run there, others anywhere.",
    ),
    click.option("--boot", metavar="TIME", help="slurm: until half of the cloud's nodes are up."),
    click.option(
        "--boot-p95", metavar="TIME", help="slurm: until 19 of 20 are; boots are lognormal."
    ),
    click.option(
        "--no-capacity",
        type=click.FloatRange(0, 0.9),
        default=0.0,
        help="slurm: share of the requests that find no nodes.",
    ),
    click.option(
        "--interruptions-per-hour",
        type=click.FloatRange(0, 0.99),
        default=0.0,
        help="slurm: chance that a cloud job's nodes are taken back within an hour.",
    ),
    click.option(
        "--checkpoint-every",
        metavar="TIME",
        help="slurm: what is taken back goes on from there. Default: it begins anew.",
    ),
    click.option(
        "--node-failures-per-year",
        type=click.FloatRange(0, 1000),
        default=0.0,
        help="slurm: of each node on-prem; its jobs are requeued.",
    ),
)


def model_options(command: F) -> F:
    """The options of the model."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def site_model(
    instance: "Instance", workload: "Workload", asked: dict[str, Any], boot: dict[str, float]
) -> "tuple[SiteModel, Any]":
    """The model as asked for, and which of its classes each job may take.

    Args:
        instance: the jobs.
        workload: the history, for names of partitions.
        asked: the options above, by name.
        boot: ``boot_p95_s``, ``staging_s`` and ``boot_timeout_s`` of the cloud's profile, if any.
    """
    import re

    import numpy as np

    from hpcscale.errors import UsageError
    from hpcscale.simulate.site import CloudSide, NodeClass, SiteModel

    cluster = instance.cluster
    classes = []
    for text in asked["node_classes"]:
        match = re.fullmatch(r"([\w.-]+)=(\d+)x(\d+)", text)
        if match is None or not int(match[2]) or not int(match[3]):
            raise UsageError(f"{text!r} is no class of nodes", where="--node-class", hint="gpu=4x8")
        classes.append(NodeClass(match[1], int(match[2]), int(match[3])))
    if not classes:
        classes = [NodeClass("all", cluster.nodes, cluster.gpus_per_node)]
    p95 = _seconds(asked["boot_p95"], "--boot-p95")
    p50 = _seconds(asked["boot"], "--boot")
    if p95 is None:
        p95 = boot.get("boot_p95_s", 0.0) if p50 is None else 2 * p50
    if p50 is None:
        p50 = p95 / 2
    if p95 < p50:
        raise UsageError("--boot-p95 is below --boot", hint="--boot 3m --boot-p95 8m")
    checkpoint = _seconds(asked["checkpoint_every"], "--checkpoint-every")
    model = SiteModel(
        classes=tuple(classes),
        cloud=CloudSide(
            unit_hour_usd=float(cluster.cloud_gpu_hour_usd),
            boot_p50_s=p50,
            boot_p95_s=p95,
            staging_s=boot.get("staging_s", 0.0),
            boot_timeout_s=max(boot.get("boot_timeout_s", 1800.0), p95),
            no_capacity=asked["no_capacity"],
            interrupted_per_h=asked["interruptions_per_hour"],
            checkpoint_s=float("inf") if checkpoint is None else max(1.0, checkpoint),
        ),
        failures_per_node_h=asked["node_failures_per_year"] / 8766,
    )
    every = (1 << len(classes)) - 1
    named = {c.name: 1 << k for k, c in enumerate(classes)}
    masks = np.array(
        [named.get(workload.name("partition", int(row)), every) for row in instance.rows],
        dtype=np.int64,
    )
    kinds = np.array([c.units for c in classes])
    holds = np.zeros(len(instance), dtype=bool)
    for k, one in enumerate(classes):
        holds |= ((masks >> k) & 1).astype(bool) & (kinds[k] >= instance.per_node) & (
            one.nodes >= instance.count
        )  # fmt: skip
    if not holds.all():
        first = int(np.argmin(holds))
        raise UsageError(
            f"no class of nodes holds {int((~holds).sum())} jobs, such as one of "
            f"{instance.count[first]} nodes x {instance.per_node[first]} GPUs",
            where="--node-class",
        )
    return model, masks


def _seconds(text: str | None, flag: str) -> float | None:
    from hpcscale.errors import UsageError
    from hpcscale.units import parse_duration_s

    if text is None:
        return None
    try:
        return float(parse_duration_s(text) or 0)
    except ValueError as exc:
        raise UsageError(str(exc), where=flag, hint=f"{flag} 5m") from exc


def rehearse_all(
    instance: "Instance",
    workload: "Workload",
    names: Sequence[str],
    model: "SiteModel",
    masks: Any,
    *,
    equal_wait: str | None,
    seed: int,
    tell: Callable[[str, float], None],
) -> "tuple[Comparison, dict[str, Rehearsal]]":
    """Each policy on the same jobs; with ``equal_wait`` at that one's mean wait."""
    from hpcscale.burst.budget import Payer
    from hpcscale.rehearsal import at_mean_wait, limits_of, outcome_of, rehearse
    from hpcscale.simulate.compare import Comparison
    from hpcscale.simulate.policies import Tuned

    limit_s = limits_of(workload.limit_s[instance.rows], instance.run_h * 3600, seed=seed)
    payers = [
        Payer(
            user=workload.name("user", int(row)),
            account=workload.name("account", int(row)),
        )
        for row in instance.rows
    ]
    policies = {name: _policy(name, instance) for name in names}

    def run(name: str, policy: "Policy") -> "Rehearsal":
        place = list(policies).index(name) / len(policies)
        return rehearse(
            instance, policy, model, limit_s, mask=masks, payers=payers, seed=seed,
            progress=lambda share: tell(name, place + share / len(policies)),
        )  # fmt: skip

    found: dict[str, Rehearsal] = {}
    fronts: dict[str, tuple[tuple[float, float], ...]] = {}
    target = None
    if equal_wait is not None:
        found[equal_wait] = run(equal_wait, policies[equal_wait])
        target = outcome_of(instance, found[equal_wait]).mean_wait_h
    for name, policy in policies.items():
        if name in found:
            continue
        if target is None:
            found[name] = run(name, policy)
            continue
        found[name], fronts[name] = at_mean_wait(instance, policy, target, partial(run, name))
    results = tuple(
        Tuned(name, outcome_of(instance, found[name]), fronts.get(name, ()), name in fronts)
        for name in policies
    )
    return Comparison(instance, results, target, instance), found


def _policy(name: str, instance: "Instance") -> "Policy":
    from pathlib import Path

    from hpcscale.burst.policies import policy_anywhere
    from hpcscale.errors import UsageError
    from hpcscale.rehearsal import policy_named
    from hpcscale.simulate.policies import NAMES

    if name.endswith(".toml"):
        return policy_anywhere(Path(name))
    if name not in NAMES:
        raise UsageError(f"no policy {name!r}", hint=f"one of: {', '.join(NAMES)}")
    return policy_named(name, instance)


def more_figures(made: "Rehearsal") -> dict[str, Any]:
    """What the model knows besides ``compare.figures``."""
    import numpy as np

    lived = made.lived
    feasible = made.feasible
    met = made.met
    return {
        "feasible_deadlines": int(feasible.sum()),
        "feasible_deadline_hit_rate": float(met[feasible].mean()) if feasible.any() else 1.0,
        "requeues": int(np.sum(lived.requeues)),
        "events": dict(sorted(lived.events.items())),
        "decisions": made.decisions,
        "reservation_exceeded_usd": float(made.most_over_usd),
    }
