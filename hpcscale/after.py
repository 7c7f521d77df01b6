"""What a job waits for: Slurm's ``--dependency`` of its ``--after`` terms.

Slurm knows jobs by ids, which a controller that has died may give out again. So it is noted in the
ledger which runs the terms named when the job was submitted.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from hpcscale.errors import NotFoundError, RefusedError, UsageError
from hpcscale.ledger import Attempt, Ledger
from hpcscale.slurm.types import JobState
from hpcscale.spec import JobSpec
from hpcscale.units import JobId

EVENT = "attempt.waits_for"
_DEPENDENCY_TYPES = frozenset(
    {"after", "afterany", "afterok", "afternotok", "aftercorr", "afterburstbuffer"}
)


@dataclass(frozen=True, slots=True)
class Named:
    """One job that a term names, or ``singleton``.

    Attributes:
        kind: ``afterok`` …, or ``singleton``.
        run_id: its run; empty: the ledger does not know it.
        task: of an element.
        job: its id, where the ledger does not know it.
    """

    kind: str
    run_id: str = ""
    task: int | None = None
    job: str = ""


def named(spec: JobSpec, ledger: Ledger) -> Iterator[Named]:
    """The jobs that ``--after`` terms name now.

    Raises:
        UsageError: more than one run fits.
    """
    for kind, text in _each(spec):
        if kind == "singleton":
            yield Named(kind)
            continue
        try:
            found = ledger.resolve(text)
        except NotFoundError:
            yield Named(kind, job=text.rpartition(":")[2])
        else:
            yield Named(kind, run_id=found.run.run_id, task=found.task)


def note_named(ledger: Ledger, attempt: Attempt, names: Sequence[Named]) -> None:
    """Write down which jobs a new attempt waits for; later the same words may name others."""
    if not names or ledger.events(attempt.run_id, EVENT):
        return
    data = [{"kind": n.kind, "run": n.run_id, "task": n.task, "job": n.job} for n in names]
    ledger.event(attempt.run_id, EVENT, {"after": data}, submission_id=attempt.submission_id)


def noted_names(ledger: Ledger, attempt: Attempt) -> list[Named]:
    """What ``note_named`` wrote of the run's first attempt."""
    events = ledger.events(attempt.run_id, EVENT)
    data = events[0].data["after"] if events else []
    assert isinstance(data, list)
    return [Named(d["kind"], d["run"], d["task"], d["job"]) for d in data]


def _each(spec: JobSpec) -> Iterator[tuple[str, str]]:
    for term in spec.after:
        if term == "singleton":
            yield term, ""
            continue
        kind, rest = _split_term(term)
        for job in _split_jobs(rest):
            yield kind, job


def resolve_dependency(
    spec: JobSpec, site: str, ledger: Ledger
) -> tuple[str | None, tuple[str, ...]]:
    """Slurm's ``--dependency`` of the ``--after`` terms and of the directives, and notices.

    A term is ``[TYPE:]JOB[:JOB…]`` with a JOB as in ``Ledger.resolve`` (or a job of the site that
    the ledger does not know, as ``site:123`` or ``123``), or ``singleton``. TYPE is ``afterok``
    unless given.

    Raises:
        UsageError: a term cannot be read, or names a job at another site.
        RefusedError: it can never be satisfied.
    """
    terms: list[str] = []
    notices: list[str] = []
    for kind, job in _each(spec):
        if kind == "singleton":
            terms.append(kind)
        elif (job_id := _dependency_job(kind, job, site, ledger, notices)) is not None:
            terms.append(f"{kind}:{job_id}")
    # a directive stands on the command line alone; a script's own stays where it is, unless ours
    # on the command line would replace it
    own = own_dependency(spec) if spec.after else spec.directives.get("dependency")
    if own:
        terms.insert(0, own)
    return ",".join(terms) or None, tuple(notices)


def own_dependency(spec: JobSpec) -> str | None:
    """What its script or its directives ask for."""
    if spec.directives.get("dependency"):
        return spec.directives["dependency"]
    for _, option, value in reversed(spec.script.directives if spec.script else ()):
        if option in {"dependency", "d"}:
            return value
    return None


def _split_term(term: str) -> tuple[str, str]:
    kind, colon, rest = term.partition(":")
    return (kind, rest) if colon and kind in _DEPENDENCY_TYPES else ("afterok", term)


def _split_jobs(text: str) -> Sequence[str]:
    """``onprem:1:r2:3`` -> ``onprem:1``, ``r2``, ``3``: a number belongs to the word before it."""
    jobs: list[str] = []
    for word in text.split(":"):
        if jobs and word[:1].isdigit() and not jobs[-1][:1].isdigit() and ":" not in jobs[-1]:
            jobs[-1] += f":{word}"
        else:
            jobs.append(word)
    return jobs


def _dependency_job(
    kind: str, text: str, site: str, ledger: Ledger, notices: list[str]
) -> JobId | None:
    where = f"--after {kind}:{text}"
    try:
        found = ledger.resolve(text)
    except NotFoundError:
        other, _, number = text.rpartition(":")
        try:
            foreign = JobId.parse(number)
        except ValueError:
            raise UsageError(
                f"no job {text!r} in the ledger", where=where, hint="--after afterok:RUN_ID"
            ) from None
        if other and other != site:
            raise _elsewhere(where, text, other, site) from None
        return foreign
    attempt = found.attempt
    if attempt.site != site:
        raise _elsewhere(where, text, attempt.site, site)
    if attempt.ended:
        # Slurm forgets ended jobs and refuses to depend on them: the ledger remembers
        good = attempt.state is JobState.COMPLETED
        if (kind == "afterok" and not good) or (kind == "afternotok" and good):
            raise RefusedError(
                f"it ended {attempt.state.value}: the dependency can never be satisfied",
                where=where,
                hint=f"hpcscale logs {attempt.run_id}",
            )
        notices.append(f"{where}: it has ended {attempt.state.value} already")
        return None
    if attempt.job_id is None:
        raise RefusedError(
            "Slurm has given it no id yet", where=where, hint=f"hpcscale status {attempt.run_id}"
        )
    return JobId(attempt.job_id.base, found.task)


def _elsewhere(where: str, text: str, there: str, site: str) -> UsageError:
    return UsageError(
        f"{text!r} runs at {there}, and Slurm at {site} cannot wait for it",
        where=where,
        hint=f"hpcscale wait {text} && hpcscale submit …, or --site {there}",
    )
