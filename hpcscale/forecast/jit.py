"""Kernels compiled by numba where that pays and is installed; else the same functions as Python.

Kernel modules hold plain functions that index and compare, nothing more. Compiled they take numpy
arrays; as plain Python they take lists, which Python indexes some five times faster than arrays.
"""

import os
from functools import cache
from importlib import import_module
from types import FunctionType, ModuleType, SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray


def shift(values: Any, low: int, high: int, by: int) -> None:
    """Move ``values[low:high]`` up by ``by`` places, 8 at most. For lists."""
    values[low + by : high + by] = values[low:high]


def _shift_array(values: Any, low: int, high: int, by: int) -> None:
    # eight at a time, all read before any is written: the plain loop is six times slower, since
    # the compiler must fear that one element's place is the next one's source
    k = high
    while k - 8 >= low:
        k -= 8
        a, b, c, d = values[k], values[k + 1], values[k + 2], values[k + 3]
        e, f, g, h = values[k + 4], values[k + 5], values[k + 6], values[k + 7]
        values[k + by], values[k + by + 1], values[k + by + 2], values[k + by + 3] = a, b, c, d
        values[k + by + 4], values[k + by + 5], values[k + by + 6], values[k + by + 7] = e, f, g, h
    while k > low:
        k -= 1
        values[k + by] = values[k]


@cache
def compiled(module: ModuleType) -> SimpleNamespace | None:
    """The module's functions compiled, on disk from then on; None without numba.

    The first call in an installation takes some seconds, later ones a fraction of one.
    ``HPCSCALE_NO_NUMBA=1`` stands for "numba is not installed".
    """
    if os.environ.get("HPCSCALE_NO_NUMBA"):
        return None
    try:
        from numba import njit
    except ImportError:
        return None
    names = dict(vars(module))
    if "shift" in names:
        names["shift"] = njit(cache=True)(_shift_array)
    for name, function in vars(module).items():
        if not isinstance(function, FunctionType):
            continue
        if function.__module__ != module.__name__ and function.__module__.endswith("kernel"):
            other = compiled(import_module(function.__module__))
            names[name] = getattr(other, name)
        if function.__module__ == module.__name__:
            # numba looks a callee up in its caller's globals: there it must be compiled already
            twin = FunctionType(function.__code__, names, name, function.__defaults__)
            names[name] = njit(cache=True)(twin)
    return SimpleNamespace(**names)


class Kernels:
    """A module's functions in one of the two forms, and ``native`` for their array arguments."""

    def __init__(self, module: ModuleType, *, fast: bool) -> None:
        found = compiled(module) if fast else None
        self.is_compiled = found is not None
        self.call: Any = found or module

    def native(self, array: NDArray[Any]) -> Any:
        """The array, or a list of its values, as the functions take it."""
        return np.ascontiguousarray(array) if self.is_compiled else array.tolist()
