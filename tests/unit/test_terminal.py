"""A job's output on a terminal: colours stay, nothing else is obeyed, wherever it is cut."""

import pytest

from hpcscale.cli._terminal import TerminalFilter

CASES = {
    "plain text\tand\r\nlines\n": "plain text\tand\r\nlines\n",
    "\x1b[1;31mred\x1b[0m": "\x1b[1;31mred\x1b[0m",
    "a\x1b[2Jb\x1b[10;20Hc": "abc",
    "a\x1b]0;title\x07b": "ab",
    "a\x1b]52;c;ZXZpbA==\x1b\\b": "ab",
    "a\x1bP+q544e\x1b\\b": "ab",
    "a\x1b_secret\x1b\\b": "ab",
    "a\x1bcb\x1b7c\x1b=d\x1b(0e": "abcde",
    "a\x9b2Jb\x9d0;t\x9cc\x90d\x9ce": "abce",
    "a\x07b\x08c\x00d\x7fe\x0cf": "abcdef",
    "abc\u202edef\u2066g": "abcdefg",
    "\x1b[\nline": "[\nline",  # no sequence: only the escape goes
    "\x1b]never closed " + "x" * 5000: "]never closed " + "x" * 5000,
    "é 名前 \U0001f600": "é 名前 \U0001f600",
    "\x1b[38;2;1;2;3mtrue colour\x1b[m": "\x1b[38;2;1;2;3mtrue colour\x1b[m",
    "\x1b[>4;2mkeys": "keys",
}


@pytest.mark.parametrize(("text", "shown"), CASES.items())
@pytest.mark.parametrize("size", [1, 2, 3, 7, 10_000])
def test_the_same_is_shown_however_it_is_cut(text, shown, size):
    terminal, data = TerminalFilter(), text.encode()
    pieces = [terminal.feed(data[i : i + size]) for i in range(0, len(data), size)]
    assert "".join(pieces) == shown


def test_bytes_that_are_no_text():
    assert TerminalFilter().feed(b"a\xff\xfeb") == "a\ufffd\ufffdb"
