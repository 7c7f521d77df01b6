"""One thing that ``site check`` looked at."""

import enum
from dataclasses import dataclass

from hpcscale.errors import UnreachableError


class Verdict(enum.StrEnum):
    """How a check came out."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"
    SKIP = "skipped"


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was looked at.

    Attributes:
        name: what, in two or three words.
        verdict: only FAIL makes the site unfit.
        message: what was seen.
        hint: what to do about it.
        unreachable: the failure is that nobody answered.
    """

    name: str
    verdict: Verdict
    message: str
    hint: str = ""
    unreachable: bool = False


def silent(name: str, error: UnreachableError) -> Check:
    """The check for which nobody answered."""
    return Check(name, Verdict.FAIL, str(error), error.hint or "", unreachable=True)
