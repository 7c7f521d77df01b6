"""What a job printed, made harmless for the reader's terminal.

A log is shown as it comes, in pieces: a sequence that is cut between two of them is still one.
Colours stay (SGR, ECMA-48 8.3.117), tabs, line ends and carriage returns too; all else that a
terminal obeys goes: cursor movement, titles, clipboard, key redefinition, C1 controls, and the
Unicode marks that turn the direction of writing.
"""

import codecs
import re

_STRING = (
    "(?:\x1b[\\]PX^_]|[\x9d\x90\x98\x9e\x9f])[^\x07\x9c\x1b]{0,4096}"  # OSC, DCS, PM, APC, SOS
)
_CSI = "(?:\x1b\\[|\x9b)[0-?]*[ -/]*"
_SEQUENCE = re.compile(
    "(?P<colour>\x1b\\[[0-9;:]*m)"
    f"|{_CSI}[@-~]"
    f"|{_STRING}(?:\x07|\x9c|\x1b\\\\)"
    "|\x1b[ -/]*[0-OQ-WYZ\\\\`-~]"  # but [ ] P X ^ _, which open the ones above
    f"|(?P<open>(?:{_STRING}\x1b?|{_CSI}|\x1b[ -/]*)\\Z)"
    # and what stands alone
    "|[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]",
)


class TerminalFilter:
    """Feed it a log's bytes; it gives back what may be shown."""

    def __init__(self) -> None:
        self._decode = codecs.getincrementaldecoder("utf-8")("replace").decode
        self._held = ""

    def feed(self, data: bytes) -> str:
        """The next piece as text; what may be the start of a sequence waits for the rest."""
        text, self._held = self._held + self._decode(data), ""
        return _SEQUENCE.sub(self._shown, text)

    def _shown(self, found: re.Match[str]) -> str:
        self._held = found["open"] or ""
        return found["colour"] or ""
