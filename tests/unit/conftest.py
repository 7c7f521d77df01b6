"""Fixtures that several files of tests share; a file's own stand before these."""

import pytest
from fake_executor import executor_at, fresh

from hpcscale.testing import FakeSlurm


@pytest.fixture
def fresh_registries(monkeypatch):
    """Nothing that submitit or the executor kept from another test."""
    fresh(monkeypatch)


@pytest.fixture
def slurm():
    """A faked controller."""
    return FakeSlurm()


@pytest.fixture
def executor(tmp_path, slurm):
    """An executor at it."""
    return executor_at(tmp_path, slurm)
