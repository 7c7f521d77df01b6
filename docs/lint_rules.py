"""Writes ``docs/reference/lint.md``: the table comes from the rules themselves."""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from hpcscale.lint import all_rules  # noqa: E402  # the checkout's own package

PAGE = ROOT / "docs" / "reference" / "lint.md"
HEAD = """# Lint rules

<!-- Written by docs/lint_rules.py: change the rule, then run it again. -->

`hpcscale lint FILE...` reads sbatch scripts, rendered ones and your own. Each finding has the rule,
the line, the reason and the line to write instead; exit code 1 when there are errors, 0 with
warnings alone. `--site NAME` adds what is only wrong at that site: its limits and its fabric.

A rule says nothing where it is not sure. Comments, here-documents and quoted text are no code, and
without `--site` nothing is said of fabrics and limits. Each rule is tested with a line it must find
and lines it must leave alone (`tests/unit/test_lint.py`).

| rule | severity | finds | because |
|---|---|---|---|
"""
TAIL = """
## Leaving its site

A script of your own may run at another site (`--burst`, or an attempt there) only when these find
nothing in it; else it is refused with the lines. They are judged for the other site, not by
`hpcscale lint`.

| rule | finds | write instead |
|---|---|---|
| HS101 | a variable of the network: `NCCL_*`, `FI_*`, `UCX_*` | nothing: profiles set it |
| HS102 | `module load`, `ml`, `spack load`, `conda activate` | `--software NAME` |
| HS103 | an absolute path, or one below home, that is not the system's | `--input NAME=PATH` |
"""


def page() -> str:
    """The page's text."""
    rows = []
    for rule in all_rules():
        because = f"<{rule.source}>" if rule.source.startswith("https:") else rule.source
        rows.append(f"| {rule.id} | {rule.severity.value} | {rule.title} | {because} |\n")
    return HEAD + "".join(rows) + TAIL


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
