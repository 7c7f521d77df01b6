"""The plan's kernel as machine code on disk: made once, loaded without numba, not if spoilt."""

import numpy as np
import pytest

from hpcscale.forecast import kernel, machine
from hpcscale.forecast.plan import plan
from hpcscale.forecast.problem import simple_problem


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where one compiled kernel lies."""
    made = tmp_path_factory.mktemp("objects")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NUMBA_CACHE_DIR", str(made))
        machine._function(kernel, "plan_jobs")
    return made


@pytest.fixture
def without_numba(folder, monkeypatch):
    """The folder, and an error for whoever would compile."""

    def fail(*_):
        raise ImportError("numba was asked for")

    monkeypatch.setenv("NUMBA_CACHE_DIR", str(folder))
    monkeypatch.delenv("HPCSCALE_NO_NUMBA", raising=False)
    monkeypatch.setattr(machine, "_compiled", fail)
    machine.machine_code.cache_clear()
    yield folder
    machine.machine_code.cache_clear()


def problem():
    rng = np.random.default_rng(3)
    return simple_problem(0, 24, [(8, 90)], rng.integers(1, 25, 700), rng.integers(1, 300, 700))


def test_a_compiled_kernel_is_loaded_without_the_compiler(without_numba):
    assert machine.machine_code(kernel, "plan_jobs") is not None
    asked = problem()
    assert plan(asked, fast=True).start_s.tolist() == plan(asked, fast=False).start_s.tolist()


def spoil_one_byte(path):
    data = bytearray(path.read_bytes())
    data[-9] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    "spoil",
    [
        spoil_one_byte,
        lambda path: path.write_bytes(path.read_bytes()[:900]),
        lambda path: path.chmod(0o666),
        lambda path: path.unlink(),
    ],
)
def test_what_is_spoilt_or_open_to_others_is_not_loaded(without_numba, spoil):
    (path,) = without_numba.glob("*.o")
    data = path.read_bytes()
    try:
        spoil(path)
        assert machine.machine_code(kernel, "plan_jobs") is None
    finally:
        path.unlink(missing_ok=True)
        path.write_bytes(data)
        path.chmod(0o644)
    machine.machine_code.cache_clear()
    assert machine.machine_code(kernel, "plan_jobs") is not None


def test_it_can_be_declined(without_numba, monkeypatch):
    monkeypatch.setenv("HPCSCALE_NO_NUMBA", "1")
    assert machine.machine_code(kernel, "plan_jobs") is None


def test_arrays_of_another_kind_are_refused(without_numba):
    code = machine.machine_code(kernel, "plan_jobs")
    with pytest.raises(TypeError, match="arguments, not 1"):
        code(1)
    numbers = np.zeros(4)
    given = [0 if kind is int else numbers for kind in machine._parameters(kernel.plan_jobs)]
    with pytest.raises(TypeError, match="int64"):
        code(*given)
