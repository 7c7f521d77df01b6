"""What a lint rule says."""

import enum
from dataclasses import dataclass


class Severity(enum.StrEnum):
    """How bad it is."""

    ERROR = "error"  # the job fails, loses work or does not do what the line says
    WARNING = "warning"  # it may, or it is slower than it need be


@dataclass(frozen=True, slots=True)
class Finding:
    """One finding.

    Attributes:
        rule: its id, such as ``HS001``; documented in ``docs/lint.md``.
        line: from 1.
        severity: errors make ``hpcscale lint`` exit 1.
        why: what happens, one sentence.
        fix: the line (or lines) to write instead; empty when it is not one line's matter.
        path: the file.
    """

    rule: str
    line: int
    severity: Severity
    why: str
    fix: str = ""
    path: str = ""

    def __str__(self) -> str:
        return f"{self.path or 'script'}:{self.line}: {self.rule} {self.severity.value}: {self.why}"
