"""``compiled``: a function made fast by numba where that is installed, else itself."""

import os
import types
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any, TypeVar, cast

F = TypeVar("F", bound=Callable[..., Any])


def fast() -> bool:
    """Whether numba is installed, and wanted: ``HPCSCALE_NO_NUMBA=1`` stands for "it is not"."""
    return not os.environ.get("HPCSCALE_NO_NUMBA") and find_spec("numba") is not None


def compiled(function: F, **names: Any) -> F:
    """``function`` compiled, kept on disk for the next process; itself where numba is missing.

    Args:
        function: of numbers, arrays and tuples alone.
        names: compiled functions that stand for globals of the same name in it.
    """
    if not fast():
        return function
    import numba

    bound = types.FunctionType(
        function.__code__,
        {**function.__globals__, **names},
        function.__name__,
        function.__defaults__,
        function.__closure__,
    )
    bound.__module__ = function.__module__
    bound.__qualname__ = function.__qualname__
    return cast(F, numba.njit(cache=True, nogil=True)(bound))
