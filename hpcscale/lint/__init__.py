"""Rules for sbatch scripts, ours and foreign ones. Pure."""

from hpcscale.lint.finding import Finding, Severity
from hpcscale.lint.source import Source

__all__ = ["Finding", "Severity", "Source"]
