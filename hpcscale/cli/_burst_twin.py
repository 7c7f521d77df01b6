"""``hpcscale burst simulate --check-on-lab``: a slice of the history on real Slurm."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

from hpcscale.cli._output import emit_json, notice

if TYPE_CHECKING:
    from hpcscale.history.workload import Workload

F = TypeVar("F", bound=Callable[..., Any])

_OPTIONS = (
    click.option(
        "--check-on-lab",
        is_flag=True,
        help="Simulate nothing but a slice of the history, and run the same jobs on real Slurm (a "
        "lab of up to 64 slurmd on this machine, its clock sped up): do both agree?",
    ),
    click.option(
        "--lab-jobs",
        type=click.IntRange(10, 5000),
        default=150,
        show_default=True,
        help="Jobs of the slice.",
    ),
    click.option(
        "--lab-first",
        type=click.IntRange(min=0),
        default=None,
        help="Begin with this job of those that can run there.  [default: the stretch whose load "
        "is nearest to 1.1]",
    ),
    click.option(
        "--lab-minutes",
        type=click.FloatRange(0.5, 600),
        default=10.0,
        show_default=True,
        help="Real minutes from its first submission to the last.",
    ),
    click.option(
        "--lab-fast",
        type=click.IntRange(2, 60),
        default=60,
        show_default=True,
        help="How many times faster the controller's clock runs.",
    ),
)


def twin_options(command: F) -> F:
    """The options of the check."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def check(
    workload: "Workload",
    nodes: int,
    gpus_per_node: int,
    *,
    jobs: int,
    first: int | None,
    minutes: float,
    fast: int,
    as_json: bool,
) -> None:
    """Run it and print how far both are apart."""
    import shutil
    import tempfile
    from pathlib import Path

    from hpcscale.cli._progress import progress
    from hpcscale.lab.place import sigterm_as_interrupt
    from hpcscale.twin.lab import LEAST_REAL_S, run_twin
    from hpcscale.twin.result import short_of_cpu
    from hpcscale.twin.slices import cut

    part = cut(
        workload, nodes, gpus_per_node, jobs=jobs, span_s=minutes * 60 * fast,
        least_run_s=LEAST_REAL_S * fast, first=first,
    )  # fmt: skip
    notice(
        f"{len(part)} jobs, load {part.load:.2f}, on {part.cluster_nodes} slurmd of this machine: "
        f"about {part.real_s(fast) / 60 + 0.5:.0f} min"
    )
    with sigterm_as_interrupt():
        folder = Path(tempfile.mkdtemp(prefix="hpcscale-twin-"))
        try:
            with progress("starting the lab") as advance:
                made = run_twin(part, folder / "lab", fast=fast, progress=advance)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    data = made.figures()
    if as_json:
        emit_json(data)
        return
    click.echo(
        f"{data['jobs']} jobs on {data['nodes']} nodes, {data['jobs_that_waited']} of them waited; "
        f"the controller's clock ran {fast} times as fast ({data['real_s'] / 60:.1f} min in all)"
    )
    click.echo(f"mean wait on Slurm:   {data['slurm_mean_wait_s']:,.0f} s of its clock")
    click.echo(
        f"mean wait simulated:  {data['our_mean_wait_s']:,.0f} s ({data['mean_wait_error']:+.1%}), "
        f"{data['our_mean_wait_least_s']:,.0f} to {data['our_mean_wait_most_s']:,.0f} s where "
        "seconds decide otherwise"
    )
    click.echo(
        f"order of starts:      correlation {data['start_order_correlation']:.4f} (1: the same)"
    )
    click.echo(f"waits, job by job:    correlation {data['wait_correlation']:.4f} (1: the same)")
    if data["jobs_not_completed"]:
        notice(f"{data['jobs_not_completed']} jobs were ended by Slurm before their time")
    if short_of_cpu(made):
        notice(
            f"this machine was too busy: jobs of {data['mean_run_s']:,.0f} s on average ended "
            f"{data['ran_longer_than_asked_s']:,.0f} s late; --lab-fast {max(2, fast // 2)} with "
            f"--lab-minutes {2 * minutes:g} asks less of it"
        )
