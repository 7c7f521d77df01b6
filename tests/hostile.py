"""The corpus of hostile words, ``hostile.json``: what people, sites and jobs may send us.

``@W@`` in a word is the witness: a file that only a shell which read the word as commands makes.
"""

import json
from pathlib import Path
from typing import NamedTuple

import pytest

CORPUS = Path(__file__).with_name("hostile.json")
AT_LEAST = 100


class Word(NamedTuple):
    """One word, and what it is after."""

    kind: str
    text: str


def words(witness, *, nul=False, every=1):
    """The corpus, its witness filled in; words with NUL only when asked for; each n-th or all."""
    found = [Word(e["kind"], e["text"].replace("@W@", str(witness)))
             for e in json.loads(CORPUS.read_text())]  # fmt: skip
    assert len(found) >= AT_LEAST
    return [w for w in found if nul or "\0" not in w.text][::every]


EVERY = [5, pytest.param(1, marks=pytest.mark.slow)]
