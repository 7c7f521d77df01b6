"""The Python that the documentation shows runs on the lab as it stands there."""

import os
import subprocess
import sys

import pytest
from doc_blocks import blocks

# what the reader is taken to have
BEFORE = """
def train(config):
    return f"trained {config}"

configs = ["a", "b"]
"""
SAYS = {
    "README.md": ["[1, 4, 9]"],
    "docs/submitit.md": ["trained config.yaml", str([["trained a"] * 8, ["trained b"] * 8])],
}
PYTHON = blocks("python")


def test_each_page_with_python_is_run():
    assert sorted(b.where.partition(":")[0] for b in PYTHON) == sorted(SAYS)


@pytest.mark.slow
@pytest.mark.parametrize("block", PYTHON, ids=lambda b: b.where)
def test_python_of_the_documentation_runs(lab_env, tmp_path, block):
    page = block.where.partition(":")[0]
    path = tmp_path / "example.py"
    path.write_text(BEFORE + block.text, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, str(path)],
        check=False,
        cwd=tmp_path,
        env=dict(os.environ),
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    assert not done.stderr
    assert done.stdout.splitlines() == SAYS[page]
