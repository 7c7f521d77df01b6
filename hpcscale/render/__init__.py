"""(JobSpec, Site) -> the sbatch script that would be sent. Pure: same input, same bytes.

``render`` is the first half of a submit: printing what it returns is the dry run, sending it
(``hpcscale.submit``) is the submit. The script needs no hpcscale on the site.
"""

import hashlib
from dataclasses import dataclass, field

from hpcscale.errors import InvalidFileError, UsageError
from hpcscale.render.job import job_context
from hpcscale.render.partitions import own_site, serves
from hpcscale.render.places import code_in_place, staged_paths
from hpcscale.render.templating import fill
from hpcscale.site import Site
from hpcscale.spec import CodeId, JobSpec

__all__ = ["Gate", "RenderedJob", "burst_blockers", "partition_blockers", "render", "serves"]


@dataclass(frozen=True, slots=True)
class RenderedJob:
    """The request that would be sent to one site.

    Attributes:
        site: name of the site it is for.
        script: the whole sbatch script.
        options: sbatch options that cannot stand in a ``#SBATCH`` line, each one argv element.
        spec: what it was made from.
        spec_hash: of ``spec``.
        sha256: of ``script``.
        staged: what must be copied to the run's directory, by its name there (``code``,
            ``inputs/N``, ``outputs/N``, ``checkpoint``) -> path on the submitting machine.
        home: whether the job starts in the submitter's own directory, in place.
        notices: what the user should know.
        code: which program it starts, when somebody looked (``hpcscale.prepare``).
    """

    site: str
    script: str
    options: tuple[str, ...]
    spec: JobSpec
    spec_hash: str
    sha256: str
    staged: dict[str, str] = field(default_factory=dict)
    home: bool = False
    notices: tuple[str, ...] = ()
    code: CodeId | None = None


@dataclass(frozen=True, slots=True)
class Gate:
    """A moved job waits for its handover's decision before the command begins.

    Attributes:
        lease_s: seconds at the gate after which the job itself decides that it does not begin.
    """

    lease_s: int


def render(
    spec: JobSpec, site: Site, *, gate: Gate | None = None, code: CodeId | None = None
) -> RenderedJob:
    """Write the script of a job for a site.

    Args:
        spec: what to run.
        site: where.
        gate: for an attempt that a handover makes; by plain sbatch the script has none.
        code: which program it starts: stands in the script's header.

    Raises:
        UsageError: the spec has neither command nor script.
        InvalidFileError: the site does not offer what the job names (software, containers), or a
            value holds a NUL byte.
        LintRefusedError: a foreign script of another site cannot run here; lines are named.
    """
    notices: list[str] = []
    options: list[str] = []
    own = site if spec.script is not None else own_site(spec, site)
    if spec.script is not None:
        from hpcscale.render.foreign import foreign_text

        script = foreign_text(spec, spec.script, site, options, notices, gate=gate, code=code)
    elif spec.command:
        script = fill("job.sh.j2", job_context(spec, site, options, notices, code) | {"gate": gate})
    else:
        raise UsageError(
            "there is nothing to run", hint="hpcscale submit … -- COMMAND, or name a script"
        )
    if held := next((text for text in (script, *options) if "\0" in text), None):
        at = held.index("\0")
        raise InvalidFileError(
            f"a NUL byte in {held[max(0, at - 20) : at + 10]!r}: bash drops it without a word",
            hint="remove it from the job's or the site's values",
        )
    return RenderedJob(
        site=site.name,
        script=script,
        options=tuple(options),
        spec=spec,
        spec_hash=spec.spec_hash(),
        sha256=hashlib.sha256(script.encode()).hexdigest(),
        staged=staged_paths(spec, own),
        home=code_in_place(spec, own),
        notices=tuple(notices),
        code=code,
    )


def burst_blockers(spec: JobSpec, site: Site) -> list[str]:
    """Reasons why a job cannot run at another site than it was written for; none: it can.

    Args:
        spec: the job.
        site: the other site.
    """
    # `submit` renders one job and leaves: it does not load what it does not need
    from hpcscale.render.burstable import blockers

    return blockers(spec, site)


def partition_blockers(spec: JobSpec, site: Site, other: Site) -> list[str]:
    """Reasons why a waiting job cannot be moved into another partition; none: it can.

    Args:
        spec: the job.
        site: where it was sent.
        other: ``site.in_partition(NAME)``.
    """
    from hpcscale.render.burstable import partition_blockers as found

    if spec.array is not None:
        return ["it is an array, whose elements may start in both partitions"]
    return found(spec, site, other)
