"""A kernel as machine code on disk: loading numba takes longer than a whole plan, this does not.

numba compiles a kernel once; its LLVM code becomes an object file that llvmlite alone (numba's own
foundation) loads and links, in a twentieth of the time. Such a kernel takes pointers to int64 where
its parameters are ``Any``, int64 where they are ``int``, and returns nothing. The file is named by
a digest of what its content follows from: the source, the processor, llvmlite's version.

Objects lie where numba keeps its own: in ``NUMBA_CACHE_DIR``, beside the compiled Python files of
this package, or in the user's cache. What anybody else could have written is not loaded.
"""

import ctypes
import hashlib
import importlib
import inspect
import os
import sys
import tempfile
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

import numpy as np

from hpcscale.forecast import jit

_FORM = "1"  # of the files
_DIGEST = 32
# without wrappers the code calls nothing outside of itself
_PLAIN = {"no_cpython_wrapper": True, "no_cfunc_wrapper": True, "error_model": "numpy"}
_keep: list[Any] = []  # engines own the code that was loaded


@cache
def machine_code(module: ModuleType, name: str) -> Callable[..., None] | None:
    """A kernel of a module, to be called with contiguous int64 arrays and ints.

    None where numba is not installed or not wanted, or no such code can be made.
    """
    if os.environ.get("HPCSCALE_NO_NUMBA"):
        return None
    # whatever is the matter, there are two other ways to run a kernel
    with suppress(ImportError, OSError, RuntimeError, AttributeError, TypeError, ValueError):
        return _function(module, name)
    return None


def _function(module: ModuleType, name: str) -> Callable[..., None]:
    import llvmlite
    import llvmlite.binding as llvm

    cpu, features = llvm.get_host_cpu_name(), llvm.get_host_cpu_features().flatten()
    parts = (*_modules(module), jit, sys.modules[__name__])
    texts = [inspect.getsource(part) for part in parts]
    facts = [_FORM, name, cpu, features, llvmlite.__version__, *texts]
    digest = hashlib.sha256("\0".join(facts).encode()).hexdigest()
    file = f"{module.__name__.rpartition('.')[2]}.{name}-{digest[:24]}.o"
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    target = llvm.Target.from_default_triple().create_target_machine(
        cpu=cpu, features=features, opt=3, jit=True
    )
    code = _read(file)
    if code is None:
        code = target.emit_object(llvm.parse_assembly(_compiled(module, name)))
        _write(file, code)
    engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), target)
    engine.add_object_file(llvm.ObjectFileRef.from_data(code))
    engine.finalize_object()
    address = engine.get_function_address(name)
    if not address:
        raise RuntimeError(f"no function {name} in {file}")
    _keep.append(engine)
    return _called(getattr(module, name), address)


def _called(kernel: Callable[..., Any], address: int) -> Callable[..., None]:
    kinds = [kind is int for kind in _parameters(kernel)]
    types = [ctypes.c_int64 if scalar else ctypes.c_void_p for scalar in kinds]
    # numba's own way to call: places for what it returns and for what it raises come first
    function = ctypes.CFUNCTYPE(ctypes.c_int32, ctypes.c_void_p, ctypes.c_void_p, *types)(address)

    def call(*given: Any) -> None:
        if len(given) != len(kinds):
            raise TypeError(f"{kernel.__name__} takes {len(kinds)} arguments, not {len(given)}")
        passed = []
        for value, scalar in zip(given, kinds, strict=True):
            if scalar:
                passed.append(int(value))
                continue
            if value.dtype != np.int64 or not value.flags.c_contiguous:
                raise TypeError(f"{kernel.__name__} takes contiguous arrays of int64")
            passed.append(value.ctypes.data)
        result, error = ctypes.c_void_p(), ctypes.c_void_p()
        function(ctypes.addressof(result), ctypes.addressof(error), *passed)

    return call


def _parameters(kernel: Callable[..., Any]) -> list[Any]:
    return [kind for name, kind in kernel.__annotations__.items() if name != "return"]


def _compiled(module: ModuleType, name: str) -> str:
    """LLVM's text of a kernel under its plain name."""
    numba: Any = importlib.import_module("numba")
    names = _twins(numba, module)
    integer = numba.types.int64
    pointer = numba.types.CPointer(integer)
    kinds = [integer if kind is int else pointer for kind in _parameters(getattr(module, name))]
    names[name].compile(tuple(kinds))
    (signature,) = names[name].signatures
    symbol = names[name].overloads[signature].fndesc.llvm_func_name
    text: str = names[name].inspect_llvm(signature)
    return text.replace(f"@{symbol}(", f"@{name}(").replace(f'@"{symbol}"(', f"@{name}(")


def _modules(module: ModuleType) -> list[ModuleType]:
    """A kernel module and those that its functions come from."""
    found = {module.__name__: module}
    for function in vars(module).values():
        if isinstance(function, FunctionType) and function.__module__.endswith("kernel"):
            found[function.__module__] = sys.modules[function.__module__]
    return list(found.values())


def _twins(numba: Any, module: ModuleType) -> dict[str, Any]:
    """A module's names, with its own and others' kernel functions as numba takes them."""
    names = dict(vars(module))
    if "shift" in names:
        names["shift"] = numba.njit(**_PLAIN)(jit._shift_array)  # noqa: SLF001  # its other form
    for other in _modules(module)[1:]:
        theirs = _twins(numba, other)
        names |= {
            name: theirs[name]
            for name in names
            if getattr(module, name, None) is vars(other).get(name)
            and isinstance(vars(other).get(name), FunctionType)
        }
    for name, function in vars(module).items():
        if isinstance(function, FunctionType) and function.__module__ == module.__name__:
            twin = FunctionType(function.__code__, names, name, function.__defaults__)
            names[name] = numba.njit(**_PLAIN)(twin)
    return names


def _folders() -> list[Path]:
    if given := os.environ.get("NUMBA_CACHE_DIR"):
        return [Path(given)]
    user = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return [Path(__file__).parent / "__pycache__", Path(user).expanduser() / "hpcscale"]


def _read(file: str) -> bytes | None:
    for folder in _folders():
        path = folder / file
        with suppress(OSError):
            facts = path.stat()
            if facts.st_uid not in {0, os.geteuid()} or facts.st_mode & 0o022:
                continue
            data = path.read_bytes()
            if hashlib.sha256(data[_DIGEST:]).digest() == data[:_DIGEST]:
                return data[_DIGEST:]
    return None


def _write(file: str, code: bytes) -> None:
    """For the next process; where nothing can be written each compiles anew."""
    for folder in _folders():
        with suppress(OSError):
            folder.mkdir(parents=True, exist_ok=True)
            handle, temporary = tempfile.mkstemp(dir=folder, prefix=f".{file}.")
            try:
                with os.fdopen(handle, "wb") as out:
                    os.fchmod(handle, 0o644)
                    out.write(hashlib.sha256(code).digest() + code)
                os.replace(temporary, folder / file)  # noqa: PTH105  # atomic
            except BaseException:
                with suppress(OSError):
                    os.unlink(temporary)  # noqa: PTH108
                raise
            return
