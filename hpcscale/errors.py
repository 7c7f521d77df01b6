"""The errors of hpcscale, and the exit code that each one means.

.. code-block:: text

    HpcscaleError                  1   something failed
    ├── UsageError                 2   flags that do not go together
    ├── InvalidFileError           3   a job, site, policy or script file is wrong
    │   └── LintRefusedError       3   a script cannot run where it was asked to
    ├── RefusedError               4   the request was refused (by us before sbatch, or by sbatch)
    │   └── NotThisJobError        4   the id names another job now: the act was not done
    ├── UnreachableError           5   no answer: site, controller, ssh or a time-out (transient)
    │   ├── HostKeyError           5   the host key is unknown or changed (not transient)
    │   ├── NotSentError           5   no answer, and the request certainly never left
    │   └── SubmitUnknownError     5   sbatch gave no answer: the job may or may not exist
    ├── JobFailedError             6   the job itself ended badly (`hpcscale wait`)
    ├── BurstRefusedError          7   policy, budget or data rule says no
    ├── NotFoundError              8   no such job, site or file
    ├── StateError                 9   the ledger, a lock or a state directory cannot be used
    │   └── NotOursError           9   others may write where hpcscale keeps its state
    └── LabError                  10   the lab could not be started or changed
    InternalError                 70   a bug in hpcscale (BSD sysexits EX_SOFTWARE)
                                 130   interrupted (Ctrl-C)

Every error carries what happened, where (file, key, line) and what to type next. Only
``hpcscale.cli`` turns an error into an exit code; a traceback is shown with ``--debug`` alone.
"""

from typing import ClassVar


class HpcscaleError(Exception):
    """Root of everything hpcscale raises on purpose.

    Args:
        message: what happened, one sentence, no trailing newline.
        where: the place, such as ``job.toml:12`` or ``site lab-cloud, key partitions[0].name``.
        hint: what to type or change next.
    """

    exit_code: ClassVar[int] = 1
    transient: ClassVar[bool] = False

    def __init__(self, message: str, *, where: str | None = None, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.where = where
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.where}: {self.message}" if self.where else self.message


class UsageError(HpcscaleError):
    """Flags or arguments that do not go together."""

    exit_code = 2


class InvalidFileError(HpcscaleError):
    """A job, site, policy or script file is wrong: ``where`` holds file, line or key."""

    exit_code = 3


class LintRefusedError(InvalidFileError):
    """A script cannot run where it was asked to: the message lists line numbers."""


class RefusedError(HpcscaleError):
    """The request was refused before or by sbatch; nothing was submitted."""

    exit_code = 4


class NotThisJobError(RefusedError):
    """Slurm reuses ids: the id names another job now, so the act was not done."""


class UnreachableError(HpcscaleError):
    """No answer from a site: connection, controller or a command's timeout. Try again."""

    exit_code = 5
    transient = True


class HostKeyError(UnreachableError):
    """The server's host key is unknown or differs from the pinned one."""

    transient = False


class NotSentError(UnreachableError):
    """No answer, and the request never reached the site's controller: nothing was done there."""


class SubmitUnknownError(UnreachableError):
    """Sbatch gave no answer: the job may exist; it is matched later by its submission id."""


class JobFailedError(HpcscaleError):
    """The job ended in a state other than COMPLETED."""

    exit_code = 6


class BurstRefusedError(HpcscaleError):
    """Policy, budget, lint or a data rule forbids the move."""

    exit_code = 7


class NotFoundError(HpcscaleError):
    """No such job, site, template or file."""

    exit_code = 8


class StateError(HpcscaleError):
    """The ledger, a lock file or a site's state directory cannot be read or written."""

    exit_code = 9


class NotOursError(StateError):
    """A state directory is another user's, or others may write in it: nothing there was used."""


class LabError(HpcscaleError):
    """The lab could not be started, changed or stopped."""

    exit_code = 10


class InternalError(HpcscaleError):
    """A bug in hpcscale."""

    exit_code = 70


EXIT_INTERRUPTED = 130
