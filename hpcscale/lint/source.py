"""A shell script cut into what is code and what is not: comments, quoted text and here-documents.

Not a parser: enough to keep rules from crying wolf over text that only looks like code.
"""

import re
from dataclasses import dataclass
from functools import cached_property

from hpcscale.sbatch_script import body_start

_HEREDOC = re.compile(r"<<(?P<dash>-?)\s*(?P<word>'[^'\n]+'|\"[^\"\n]+\"|\\?[A-Za-z_]\w*)")


@dataclass(frozen=True)
class Source:
    """One script.

    Attributes:
        path: for messages.
        text: the whole script.
    """

    path: str
    text: str

    @cached_property
    def lines(self) -> list[str]:
        """Its lines as they are."""
        return self.text.split("\n")

    @cached_property
    def bare(self) -> list[str]:
        """Lines with comments, here-documents and the insides of quotes blanked out."""
        return _mask(self.text, keep_quoted=False).split("\n")

    @cached_property
    def code(self) -> list[str]:
        """Lines with comments and here-documents blanked out; quoted text is left."""
        return _mask(self.text, keep_quoted=True).split("\n")

    @cached_property
    def first_command(self) -> int:
        """Line number of the first command; one past the end when there is none."""
        return body_start(self.text) + 1

    def find(self, pattern: str, *, quoted: bool = False) -> list[tuple[int, re.Match[str]]]:
        """(line number, match) of a pattern in code."""
        found = []
        for number, line in enumerate(self.code if quoted else self.bare, 1):
            found += [(number, match) for match in re.finditer(pattern, line)]
        return found

    def line(self, number: int) -> str:
        """One line as it is, by its number from 1."""
        return self.lines[number - 1] if 0 < number <= len(self.lines) else ""


def _mask(text: str, *, keep_quoted: bool) -> str:
    out: list[str] = []
    i = 0
    quote = ""
    pending: list[tuple[str, bool]] = []  # here-documents that begin after this line

    def blank(part: str) -> str:
        return "".join("\n" if c == "\n" else " " for c in part)

    while i < len(text):
        char = text[i]
        if quote:
            if char == "\\" and quote != "'" and i + 1 < len(text):
                pair = text[i : i + 2]
                out.append(pair if keep_quoted else blank(pair))
                i += 2
                continue
            if char == quote:
                out.append(char)
                quote = ""
            else:
                out.append(char if keep_quoted else blank(char))
            i += 1
        elif char == "\\" and i + 1 < len(text):
            out.append(text[i : i + 2])
            i += 2
        elif char in "'\"":
            quote = char
            out.append(char)
            i += 1
        elif char == "#" and (i == 0 or text[i - 1] in " \t\n;|&("):
            end = text.find("\n", i)
            end = len(text) if end < 0 else end
            out.append(blank(text[i:end]))
            i = end
        elif (
            text.startswith("<<", i)
            and not text.startswith("<<<", i)
            and (match := _HEREDOC.match(text, i))
        ):
            pending.append((match["word"].strip("'\"\\"), bool(match["dash"])))
            out.append(match[0])
            i = match.end()
        elif text.startswith("<<<", i):
            out.append("<<<")
            i += 3
        elif char == "\n" and pending:
            out.append("\n")
            i += 1
            for word, dash in pending:
                while i < len(text):
                    end = text.find("\n", i)
                    end = len(text) if end < 0 else end
                    line = text[i:end]
                    out.append(blank(line) + ("\n" if end < len(text) else ""))
                    i = min(end + 1, len(text))
                    if (line.lstrip("\t") if dash else line) == word:
                        break
            pending = []
        else:
            out.append(char)
            i += 1
    return "".join(out)
