"""The only caller of sbatch; the command line, the executor and the handover come through here.

Order: check, read secrets, write the ledger row, stage, sbatch, note the answer. The row stands
before sbatch is called, and the submission id goes along in the job's comment, so whatever happens
in between (a time-out, a kill, a power cut) the job is found again and never submitted twice.
"""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from hpcscale import staging
from hpcscale.after import named, note_named, resolve_dependency
from hpcscale.connect import Connection
from hpcscale.cost import estimate, time_limit_s
from hpcscale.errors import (
    HpcscaleError,
    InvalidFileError,
    NotFoundError,
    NotSentError,
    RefusedError,
    SubmitUnknownError,
)
from hpcscale.ledger import Attempt, Ledger, Role, Run, new_run_id, new_submission_id
from hpcscale.precheck import doubts, explain_refusal, require_fit
from hpcscale.prepare import note_code, pack_code, secret_files
from hpcscale.render import RenderedJob
from hpcscale.site import Site
from hpcscale.spec import JobSpec, SecretSource
from hpcscale.transfer import SILENT, Meter
from hpcscale.units import JobRef
from hpcscale.verify import comment_with

MAX_SECRET_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True)
class Submission:
    """A job that Slurm has taken.

    Attributes:
        ref: ``site:id``.
        script: its text.
        array_size: elements; None when it is no array.
        run_dir: the run's directory on the site; logs are in its ``logs``.
        notices: what the user should know.
    """

    ref: JobRef
    site: str
    script: str
    submission_id: str
    array_size: int | None
    run_id: str
    run_dir: str
    attempt: Attempt
    notices: tuple[str, ...] = ()


def submit(
    rendered: RenderedJob,
    site: Site,
    connection: Connection,
    ledger: Ledger,
    *,
    run: Run | None = None,
    role: Role = Role.ONPREM,
    cwd: str | None = None,
    submission_id: str | None = None,
    after: tuple[str | None] | None = None,
    check: Callable[[], None] | None = None,
    timeout_s: float = 60.0,
    meter: Meter = SILENT,
) -> Submission:
    """Submit a rendered job.

    Args:
        rendered: from ``render(spec, site)``.
        site: the same site.
        connection: to it.
        ledger: where the run is kept.
        run: for a further attempt of a run; a new run otherwise.
        role: why this attempt exists.
        cwd: where the user stands; default the current directory.
        submission_id: one that was noted before; default a new one.
        after: Slurm's ``--dependency``, where the caller knows better than the spec's terms.
        check: called within the transaction that writes the attempt's row; what it raises is
            raised, and nothing is submitted.
        timeout_s: of sbatch.
        meter: told how copying goes on.

    Raises:
        RefusedError: by our checks or by sbatch; nothing was submitted, nothing is left there.
        SubmitUnknownError: no answer: the job may exist. ``observe`` tells later; do not repeat.
        NotFoundError, InvalidFileError: a secret or something to be copied cannot be read.
        UnreachableError: the site cannot be reached; nothing was submitted.
        StateError: the ledger cannot be written; nothing was submitted.
    """
    spec = rendered.spec
    require_fit(spec, site)
    secrets = read_secrets(spec.secrets)
    staging.check_local(rendered.staged)
    code = pack_code(rendered)
    if after is None:
        waits_for = list(named(spec, ledger))
        dependency, notices = resolve_dependency(spec, site.name, ledger)
    else:
        waits_for, dependency, notices = [], after[0], ()
    notices = (*notices, *doubts(spec, site))

    run_id = run.run_id if run else new_run_id()
    submission_id = submission_id or new_submission_id()
    run_dir = f"{connection.state_dir}/runs/{run_id}"
    comment = comment_with(user_comment(spec), submission_id)
    cost = estimate(spec, site)
    if run is None:
        run = ledger.new_run(spec, site=site.name, cwd=cwd, run_id=run_id)
    attempt = ledger.new_attempt(
        run,
        site=site.name,
        submission_id=submission_id,
        script=rendered.script,
        script_sha256=rendered.sha256,
        run_dir=run_dir,
        comment=comment,
        role=role,
        num_nodes=spec.resources.nodes,
        gpus=cost.gpus // (spec.array_size or 1),
        time_limit_s=time_limit_s(spec, site),
        array_size=spec.array_size,
        gpu_hour_usd=cost.gpu_hour_usd,
        staged=rendered.staged,
        check=check,
    )
    note_code(ledger, attempt, rendered, code)
    note_named(ledger, attempt, waits_for)
    options = sbatch_options(rendered, run_dir, comment, dependency)
    try:
        staging.make_run_dir(connection.transport, run_dir)
        connection.transport.put_bytes(rendered.script.encode(), f"{run_dir}/script.sh", mode=0o700)
        staging.stage_in(
            connection.transport,
            run_dir,
            rendered.staged,
            code=code,
            never=secret_files(spec.secrets),
            meter=meter,
        )
        staging.put_secrets(connection.transport, run_dir, submission_id, secrets)
    except BaseException as exc:  # a Ctrl-C during a long copy as well: sbatch was not called
        why = "interrupted" if isinstance(exc, KeyboardInterrupt) else str(exc)
        _undo(connection, ledger, attempt, f"not submitted: {why or type(exc).__name__}")
        raise
    try:
        job_id = connection.client.sbatch(
            rendered.script, options, [submission_id, run_dir], timeout_s=timeout_s
        )
    except RefusedError as exc:
        _undo(connection, ledger, attempt, exc.message)
        exc.where = f"site {site.name}"
        raise explain_refusal(exc, spec, site, connection.client) from exc
    except NotSentError as exc:
        _undo(connection, ledger, attempt, f"not submitted: {exc.message}")
        raise
    except BaseException as exc:
        ledger.set_submit_unknown(attempt, "sbatch gave no answer: the job may or may not exist")
        if not isinstance(exc, HpcscaleError):
            raise
        raise SubmitUnknownError(
            exc.message
            if isinstance(exc, SubmitUnknownError)
            else f"the job may or may not exist: {exc.message}",
            where=f"site {site.name}",
            hint=f"do not submit again; hpcscale status {run.run_id} tells once the site answers",
        ) from exc
    attempt = ledger.set_submitted(attempt, job_id)
    return Submission(
        ref=JobRef(site.name, job_id),
        site=site.name,
        script=rendered.script,
        submission_id=submission_id,
        array_size=spec.array_size,
        run_id=run.run_id,
        run_dir=run_dir,
        attempt=attempt,
        notices=(*rendered.notices, *notices, *log_notices(spec, run_dir)),
    )


def _undo(connection: Connection, ledger: Ledger, attempt: Attempt, why: str) -> None:
    """Leave nothing on the site of an attempt that Slurm does not have."""
    if attempt.number > 1 or attempt.role is Role.BURST:
        # the run's directory may hold what its other attempts have there, also attempts of another
        # ledger, which this one knows nothing of: decisions that jobs at their gates are to read
        staging.remove_secrets(connection.transport, attempt.run_dir, attempt.submission_id)
    else:
        staging.remove_run_dir(connection.transport, attempt.run_dir, attempt.run_id)
    ledger.set_refused(attempt, why)


def sbatch_options(
    rendered: RenderedJob, run_dir: str, comment: str, dependency: str | None
) -> list[str]:
    """Options that belong to this submission; all that belongs to the job is in the script."""
    log = "%A_%a.log" if rendered.spec.array_size is not None else "%j.log"
    options = [
        *rendered.options,
        f"--comment={comment}",
        f"--output={run_dir}/logs/{log}",
        "--open-mode=append",
        f"--chdir={run_dir}",
    ]
    names = (
        {option for _, option, _ in rendered.spec.script.directives}
        if (rendered.spec.script)
        else set()
    )
    if names & {"e", "error"} or "error" in rendered.spec.directives:
        options.append(f"--error={run_dir}/logs/{log}")  # one log, whatever the script asks for
    if dependency:
        options.append(f"--dependency={dependency}")
    return options


def log_notices(spec: JobSpec, run_dir: str) -> tuple[str, ...]:
    """Say so when a script or an option names other logs than ``hpcscale logs`` reads."""
    asked = [
        (option, value) for _, option, value in (spec.script.directives if spec.script else ())
    ]
    own = [
        f"--{'error' if option in {'e', 'error'} else 'output'}={value}"
        for option, value in (*asked, *spec.directives.items())
        if option in {"o", "output", "e", "error"}
    ]
    if not own:
        return ()
    whose = "the script's" if spec.script else "the option"
    text = f"{whose} {' '.join(own)} is not used: output and errors go to {run_dir}/logs, "
    return (text + "where `hpcscale logs` reads them",)


def user_comment(spec: JobSpec) -> str | None:
    """The user's own ``--comment``, from the spec, else from the script's directives."""
    if spec.comment:
        return spec.comment
    if spec.directives.get("comment"):
        return spec.directives["comment"]
    for _, option, value in reversed(spec.script.directives if spec.script else ()):
        if option == "comment" and value:
            return value
    return None


def read_secrets(sources: Mapping[str, SecretSource]) -> dict[str, bytes]:
    """Values of secrets, read now and kept nowhere.

    Raises:
        NotFoundError: a variable or file is not there.
        InvalidFileError: a file cannot be read, is empty or is no secret's size.
    """
    values: dict[str, bytes] = {}
    for name, source in sources.items():
        if source.kind == "env":
            text = os.environ.get(source.name)
            if not text:
                raise NotFoundError(
                    f"secret {name}: the variable {source.name} is "
                    + ("not set" if text is None else "empty"),
                    hint=f"export {source.name}=…  or --secret {name}=file:PATH",
                )
            value = text.encode("utf-8", "surrogateescape")
        else:
            path = Path(source.name).expanduser()
            try:
                value = path.read_bytes()
            except FileNotFoundError:
                raise NotFoundError(
                    f"secret {name}: no file {path}", hint=f"--secret {name}=file:PATH"
                ) from None
            except OSError as exc:
                raise InvalidFileError(
                    f"secret {name}: cannot be read: {exc.strerror}", where=str(path)
                ) from exc
        if b"\0" in value or not value.strip() or len(value) > MAX_SECRET_BYTES:
            raise InvalidFileError(
                f"secret {name}: empty, longer than {MAX_SECRET_BYTES // 1024} KB or no text",
                where=source.name,
            )
        values[name] = value
    return values
