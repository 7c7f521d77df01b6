"""`make demo` tells its story to the end, and the README shows what it really prints."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
OUTPUT = ROOT / "docs" / "demo" / "output.txt"


def commands(text: str) -> list[str]:
    """The commands that were typed, without what differs from run to run."""
    typed = re.findall(r"^\$ (.+)$", text, flags=re.MULTILINE)
    typed = [re.sub(r"20\d\d-\d\d-\d\dT[\d:]+Z", "WHEN", line) for line in typed]
    return [re.sub(r"\br[a-z2-7]{10}\b", "RUN", line) for line in typed]


def facts(text: str) -> None:
    """What the story promises, whatever the ids and times of this run."""
    assert re.search(r"^#!/bin/bash$", text, flags=re.MULTILINE), "no script"
    assert re.search(r"lab-onprem:\d+ .*digits", text), "the job never waited on-prem"
    assert re.search(r"lab-cloud:\d+ .*digits .*COMPLETED", text), "it did not end in the cloud"
    accuracy = re.search(r"^accuracy: ([\d.]+)%", text, flags=re.MULTILINE)
    assert accuracy is not None
    assert float(accuracy[1]) > 93
    assert re.search(r"^ran on:   lab-cloud$", text, flags=re.MULTILINE)
    assert re.search(r"^cost:     [\d.]+ USD$", text, flags=re.MULTILINE)
    assert "deadline" in text
    assert "Traceback" not in text


def test_the_stored_output_is_a_whole_story():
    facts(OUTPUT.read_text(encoding="utf-8"))


@pytest.mark.lab
@pytest.mark.begins_first
@pytest.mark.timeout(300)
def test_the_demo_runs_and_prints_what_the_readme_shows():
    done = subprocess.run(
        [sys.executable, str(ROOT / "docs" / "demo" / "run_demo.py")],
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr
    facts(done.stdout)
    assert commands(done.stdout) == commands(OUTPUT.read_text(encoding="utf-8"))
    seconds = re.search(r"Nothing is left running\. (\d+) s in all", done.stdout)
    assert seconds is not None
    assert int(seconds[1]) < 240
