"""What Slurm's commands say on failure, sorted: absent, refused, no answer, not sent."""

import re
from collections.abc import Sequence

from hpcscale.errors import HpcscaleError, NotSentError, RefusedError, UnreachableError
from hpcscale.slurm.transport import Completed

ABSENT = ("Invalid job id specified",)

# The controller was never reached (slurm_errno.c's texts): nothing can have happened.
NOT_SENT = (
    "Unable to contact slurm controller (connect failure)",
    "Communication connection failure",
    "Slurm backup controller in standby mode",
    "Slurm controller not responding",
    "Unable to establish control machine address",
    "Could not load the slurm.conf",
    "Could not establish a configuration source",
    "Unable to process configuration file",
    "Unable to resolve",
    # another cluster (-M): its controller is not registered with slurmdbd, or that is away
    "can't be reached now, or it is an invalid entry for --cluster",
    "Only local cluster communication is available",
    "resolve_ctls_from_dns_srv",
    "MUNGE",
    "Munge encode failed",
    "If munged is up",
    "authentication plugin",
    "Resource temporarily unavailable",
    "Slurm temporarily unable to accept job",
)

# A request may have arrived, its answer did not.
UNKNOWN = (
    "Socket timed out",
    "Zero Bytes were transmitted or received",
    "Unexpected message received",
    "Message receive failure",
    "Message send failure",
    "Communication shutdown failure",
    "Insane message length",
    "Unable to contact slurm controller",
    "Transport endpoint is not connected",
    "Connection timed out",
    "Connection reset by peer",
    "Broken pipe",
)

# sbatch ends with -1 when it cannot read its options, before it talks to anybody.
_BAD_OPTIONS = re.compile(
    r"^sbatch: (?:error: )?(?:unrecognized|unknown|invalid|ambiguous|option)\b"
    r"|^Try \"sbatch --help\"|^sbatch: error: Invalid .* specification",
    re.IGNORECASE | re.MULTILINE,
)

_PREFIX = re.compile(
    r"^(?:sbatch|squeue|scancel|scontrol|sinfo|sacct|sacctmgr|sdiag)?:? ?"
    r"(?:error|fatal)?:? ?(?:slurm_\w+ error: )?(?:Batch job submission failed: )?"
    r"(?:allocation failure: )?"
)


def message(done: Completed) -> str:
    """Slurm's error lines as one, without the command's own prefixes."""
    lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
    errors = [line for line in lines if re.search(r"error|fatal|failed|failure", line)]
    chosen = errors or lines[:1] or [f"exit code {done.returncode}"]
    # the first says what, the last why: such as a limit's name, then "violates … policy"
    plain = dict.fromkeys(_PREFIX.sub("", line).strip() or line for line in chosen)
    return "; ".join(plain)


def command_name(argv: Sequence[str]) -> str:
    """``squeue`` of ``/opt/slurm/bin/squeue``."""
    return argv[0].rpartition("/")[2]


def bad_options(returncode: int, stderr: str) -> bool:
    """Whether sbatch did not understand its own options: a refusal, nothing was sent."""
    return returncode == 255 and _BAD_OPTIONS.search(stderr) is not None


def no_answer(done: Completed, where: str) -> HpcscaleError | None:
    """The error when the controller gave no answer; None when it did answer."""
    command = command_name(done.argv)
    if done.returncode in {126, 127}:
        return NotSentError(
            f"{command} cannot be run there: {done.stderr.strip() or 'command not found'}",
            where=where,
            hint="set transport.slurm_bin in the site's profile to where Slurm's commands are",
        )
    text = done.stderr
    if any(phrase in text for phrase in NOT_SENT):
        return NotSentError(
            f"Slurm's controller does not answer ({message(done)})",
            where=where,
            hint="try again; on the site: scontrol ping",
        )
    if bad_options(done.returncode, text):
        return None
    if any(phrase in text for phrase in UNKNOWN) or done.returncode > 128:
        return UnreachableError(
            f"{command} got no answer from Slurm's controller ({message(done)})",
            where=where,
            hint="try again; on the site: scontrol ping",
        )
    return None


def require_success(done: Completed, where: str) -> Completed:
    """``done`` itself when the command succeeded.

    Raises:
        UnreachableError: any failure of a question is no answer.
    """
    if done.returncode == 0:
        return done
    if (error := no_answer(done, where)) is not None:
        raise error
    raise UnreachableError(f"{command_name(done.argv)} failed: {message(done)}", where=where)


def refused(done: Completed, where: str) -> RefusedError:
    """Slurm said no."""
    return RefusedError(f"{command_name(done.argv)} refused: {message(done)}", where=where)
