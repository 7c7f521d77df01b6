"""A job as it would be asked of another site than the one that it was written for. Pure."""

import msgspec

from hpcscale.site import Site
from hpcscale.spec import JobSpec


def spec_for(
    spec: JobSpec, time_limit_s: int | None, site: Site, partition: str | None = None
) -> JobSpec:
    """The job as it would be asked of another site.

    Partition, account, QOS and constraint are the origin's words: the target's profile says its
    own. A limit that the origin's partition set goes along, so that the job means the same. What it
    was to wait for has happened when it moves, and is known at the origin alone.
    """
    directives = {k: v for k, v in spec.directives.items() if k != "dependency"}
    # the script's report is then proof that all nodes are up, not the first alone (sbatch(1))
    directives.setdefault("wait-all-nodes", "1")
    resources = spec.resources
    if resources.time_limit_s is None and time_limit_s is not None:
        resources = msgspec.structs.replace(resources, time_limit_s=time_limit_s)
    return msgspec.structs.replace(
        spec,
        site=site.name,
        partition=partition,
        account=None,
        qos=None,
        constraint=None,
        after=(),
        directives=directives,
        resources=resources,
        outputs=_outputs(spec, site),
    )


def _outputs(spec: JobSpec, site: Site) -> dict[str, str]:
    """A function's files are named by its job id, which the origin may have given out too."""
    if spec.function is None:
        return dict(spec.outputs)
    return {name: f"{path.rstrip('/')}/{site.name}/" for name, path in spec.outputs.items()}


def with_gate_time(spec: JobSpec, seconds: int) -> JobSpec:
    """The job with a time limit that leaves it its own time after the gate and staging."""
    limit_s = spec.resources.time_limit_s
    if limit_s is None:
        return spec
    resources = msgspec.structs.replace(spec.resources, time_limit_s=limit_s + seconds)
    return msgspec.structs.replace(spec, resources=resources)
