"""What a rule is, what it reads, and the list that rules join.

Precision first: a rule says nothing where it is not sure. Comments, here-documents and quoted text
are no code (``Source.bare``); a rule about a site's limits or fabric speaks only when the site is
known.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property

from hpcscale.errors import InvalidFileError
from hpcscale.lint.finding import Severity
from hpcscale.lint.source import Source
from hpcscale.sbatch_script import read_script
from hpcscale.site import Site


@dataclass(frozen=True)
class Script:
    """What rules read.

    Attributes:
        source: the text.
        site: the site it is for; None: rules about sites keep silent.
    """

    source: Source
    site: Site | None = None
    directives: tuple[tuple[int, str, str | None], ...] = field(default=())

    @classmethod
    def of(cls, text: str, path: str, site: Site | None) -> "Script":
        """Read a script; directives that cannot be read are judged by HS001."""
        try:
            found = read_script(text, path).directives
        except InvalidFileError:
            found = ()
        return cls(Source(path, text), site, found)

    def option(self, name: str) -> tuple[int, str | None] | None:
        """Line and value of a directive, the last one of that name (it wins)."""
        hits = [(line, value) for line, option, value in self.directives if option == name]
        return hits[-1] if hits else None

    @cached_property
    def commands(self) -> list[tuple[int, str]]:
        """Logical lines of code (continuations joined), quoted text kept: (first line, text)."""
        joined: list[tuple[int, str]] = []
        start, text = 0, ""
        for number, line in enumerate(self.source.code, 1):
            if not text:
                start = number
            if line.endswith("\\"):
                text += line[:-1] + " "
                continue
            joined.append((start, text + line))
            text = ""
        return joined


Found = Iterator[tuple[int, str, str]]  # line, why, fix
Check = Callable[[Script], Found]


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule, for the table in ``docs/lint.md``.

    Attributes:
        id: such as ``HS002``.
        severity: of all its findings.
        title: a few words.
        source: why we say so: a man page, a provider's or a project's page, an issue.
        check: the function.
    """

    id: str
    severity: Severity
    title: str
    source: str
    check: Check


RULES: list[Rule] = []


def rule(id_: str, severity: Severity, title: str, source: str) -> Callable[[Check], Check]:
    """Add the decorated function to the list."""

    def add(check: Check) -> Check:
        RULES.append(Rule(id_, severity, title, source, check))
        return check

    return add
