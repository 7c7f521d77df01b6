"""What goes along with functions: their pickles, renumbered from 0, and submitit's job side."""

import os
import pickle
import shutil
import sys
import typing as tp
import uuid
from collections.abc import Sequence
from pathlib import Path

import cloudpickle
from submitit.core import utils

from hpcscale.errors import UsageError
from hpcscale.executor import jobside

OWN = ".hpcscale"  # our directory below submitit's folder
_MODULE = "hpcscale_jobside"


class PickleSizeError(UsageError, RuntimeError):
    """Pickles larger than ``max_pickle_size_gb``; a ``RuntimeError`` as well, as in submitit."""


def write_pickles(
    folder: Path,
    submissions: Sequence[utils.DelayedSubmission],
    *,
    timeout_min: int,
    max_num_timeout: int,
    max_size_gb: float,
) -> Path:
    """Write ``0.pkl``, ``1.pkl`` … and the job side into a new directory.

    Args:
        folder: submitit's folder, without ids in it.
        submissions: the functions.
        timeout_min: their time limit, which the job side compares with.
        max_num_timeout: how often a function may be requeued after its time limit.
        max_size_gb: of all pickles, judged by the first.

    Raises:
        PickleSizeError: the pickles are larger than that.
    """
    directory = folder / OWN / uuid.uuid4().hex[:16]
    directory.mkdir(parents=True, mode=0o700)
    _write_job_side(directory / "lib")
    for number, submission in enumerate(submissions):
        submission.set_timeout(timeout_min, max_num_timeout)
        # what submission.dump() writes, with less ado around it: there may be tens of thousands
        data = cloudpickle.dumps(submission, pickle.HIGHEST_PROTOCOL)
        _write(f"{directory}/{number}.pkl", data)
        if number == 0:
            size_gb = len(data) / 1024**3 * len(submissions)
            if size_gb > max_size_gb:
                shutil.rmtree(directory)
                raise PickleSizeError(
                    f"about {size_gb:.2f} GB of pickles, more than max_pickle_size_gb="
                    f"{max_size_gb:g}",
                    hint="pass a path instead of the data, or raise hpcscale_max_pickle_size_gb",
                )
    return directory


def _write(path: str, data: bytes) -> None:
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        rest = memoryview(data)
        while rest:
            rest = rest[os.write(handle, rest) :]
    finally:
        os.close(handle)


def _write_job_side(lib: Path) -> None:
    """The job environment as submitit finds it: a module and its entry point."""
    info = lib / f"{_MODULE}-1.dist-info"
    info.mkdir(parents=True)
    shutil.copyfile(jobside.__file__, lib / f"{_MODULE}.py")
    version = f"{sys.version_info[0]}.{sys.version_info[1]}"
    (lib / jobside.PICKLED_BY).write_text(f"{version}\n", encoding="utf-8")
    (info / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {_MODULE}\nVersion: 1\n", encoding="utf-8"
    )
    (info / "entry_points.txt").write_text(
        f"[submitit]\njob_environment = {_MODULE}:HpcscaleJobEnvironment\n", encoding="utf-8"
    )


def outside_modules(submissions: Sequence[utils.DelayedSubmission]) -> dict[str, str]:
    """Modules of the functions that are installed nowhere, and where each is imported from."""
    found: dict[str, str] = {}
    for submission in submissions:
        function: tp.Any = submission.function
        name = getattr(function, "__module__", None) or type(function).__module__
        module = sys.modules.get(name)
        path = getattr(module, "__file__", None)
        if name == "__main__" or path is None or name in found:
            continue
        if not path.startswith((sys.prefix, sys.base_prefix)) and "-packages" not in path:
            file = Path(path).absolute()
            depth = name.count(".") + (file.stem == "__init__")
            found[name] = str(file.parents[min(depth, len(file.parents) - 1)])
    return dict(sorted(found.items()))
