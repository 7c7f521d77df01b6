"""Rules for sbatch scripts, ours and foreign ones. Pure."""

from typing import TYPE_CHECKING

from hpcscale.lint.finding import Finding, Severity
from hpcscale.site import Site

if TYPE_CHECKING:
    from hpcscale.lint.rule import Rule

__all__ = ["Finding", "Severity", "all_rules", "lint"]


def all_rules() -> "list[Rule]":
    """Every rule, by id."""
    from hpcscale.lint import body, directives
    from hpcscale.lint.rule import RULES

    assert body.__name__
    assert directives.__name__  # both have joined the list
    return sorted(RULES, key=lambda rule: rule.id)


def lint(text: str, path: str = "script", site: Site | None = None) -> list[Finding]:
    """Findings in a script, by line.

    Args:
        text: the whole script.
        path: for messages.
        site: the site it is for; without one, rules about a site's limits and fabric keep silent.
    """
    from hpcscale.lint.rule import Script

    script = Script.of(text, path, site)
    found = {
        Finding(rule.id, line, rule.severity, why, fix, path)
        for rule in all_rules()
        for line, why, fix in rule.check(script)
    }
    return sorted(found, key=lambda f: (f.line, f.rule, f.why))
