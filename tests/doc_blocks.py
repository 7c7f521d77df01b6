"""The fenced blocks of the documentation, for tests that run or read them."""

import re
import shlex
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
_BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", flags=re.DOTALL | re.MULTILINE)


class Block(NamedTuple):
    """A fenced block.

    Attributes:
        where: ``docs/jobs.md:8``.
        kind: the word behind the fence.
        text: its lines.
    """

    where: str
    kind: str
    text: str


def blocks(*kinds: str) -> list[Block]:
    """All blocks of these kinds."""
    found = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for match in _BLOCK.finditer(text):
            line = text.count("\n", 0, match.start()) + 1
            where = f"{page.relative_to(ROOT)}:{line}"
            found.append(Block(where, match[1], match[2]))
    return [block for block in found if block.kind in kinds]


def calls(block: Block) -> list[list[str]]:
    """The words behind ``hpcscale`` of each line that calls it, long lines joined."""
    found = []
    for line in block.text.replace("\\\n", " ").splitlines():
        match = re.match(r"(?:\$ |\*/\d+ [* ]+)?hpcscale (.*)", line)
        if match:
            words = shlex.split(match[1], comments=True)
            ends = [i for i, word in enumerate(words) if word in {"|", ">", "&&"}]
            found.append(words[: ends[0]] if ends else words)
    return found
