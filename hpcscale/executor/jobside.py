"""What submitit asks inside a job. This file goes along with every function: no hpcscale there.

It needs the standard library and submitit alone. Besides submitit's own files it leaves
``<job>_<task>_outcome.json``: how the function ended, for readers that must not unpickle.
"""

import atexit
import json
import os
import shutil
import sys
import time
import traceback
import typing as tp
from pathlib import Path

from submitit.slurm import slurm

PEERS_S = 10.0  # a task that failed waits as long for the others' outcomes
PICKLED_BY = "hpcscale_python"  # beside the copy of this file that goes along: which Python pickled


class HpcscaleJobEnvironment(slurm.SlurmJobEnvironment):
    """Slurm's own variables, under our executor's name."""

    @property
    def paths(self) -> tp.Any:
        """Submitit's paths, once it is certain that this Python can read what is there.

        Raises:
            RuntimeError: it is of another version than the one that pickled.
        """
        _require_same_python()
        return super().paths

    def _requeue(self, countdown: int) -> None:
        ask = os.environ.get("HPCSCALE_REQUEUE_FILE")
        if ask and shutil.which("scontrol") is None:
            # in a container: the batch script, which is not in it, requeues once the step has ended
            Path(ask).touch()
            return
        super()._requeue(countdown)

    def _handle_signals(self, paths: tp.Any, submission: tp.Any) -> None:
        super()._handle_signals(paths, submission)
        atexit.register(_tell, paths, os.getpid())


def _require_same_python() -> None:
    """An image's Python cannot be asked before the job starts; a wrong one may even crash."""
    # not beside __file__: where hpcscale is installed too, this may be the module of that one
    entries = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    files = [path for entry in entries if entry and (path := Path(entry, PICKLED_BY)).is_file()]
    pickled_by = files[0].read_text(encoding="utf-8").strip() if files else ""
    ours = f"{sys.version_info[0]}.{sys.version_info[1]}"
    if pickled_by and pickled_by != ours:
        raise RuntimeError(
            f"{sys.executable} in this job is Python {ours}, and the function was pickled by "
            f"{pickled_by}: pickled functions do not cross versions; name another with "
            "hpcscale_python='…' or hpcscale_software=NAME"
        )


def _tell(paths: tp.Any, pid: int) -> None:
    """Write the outcome, once the result is there; a job that was requeued has none yet."""
    if os.getpid() != pid or not paths.result_pickle.exists():
        return  # a fork of the function's, or it goes on later
    # the interpreter keeps the exception that ended it; submitit raises it again after pickling it
    problem: BaseException | None = getattr(sys, "last_value", None)
    outcome: dict[str, tp.Any] = {
        "schema": 1,
        "outcome": "success" if problem is None else "error",
        "submission_id": os.environ.get("HPCSCALE_SUBMISSION_ID", ""),
        "job": paths.job_id,
        "task": paths.task_id,
        "restart": int(os.environ.get("HPCSCALE_RESTART_COUNT", "0")),
        "time": int(time.time()),
    }
    if problem is not None:
        text = "".join(traceback.format_exception(problem))
        outcome |= {
            "error": type(problem).__name__,
            "message": str(problem)[:2000],
            "trace": text[-8000:],
        }
    path = _outcome(paths, paths.task_id)
    temporary = path.with_name(f"{path.name}.new")
    temporary.write_text(json.dumps(outcome), encoding="utf-8")
    temporary.replace(path)
    if problem is not None:
        _let_the_others_tell(paths)


def _outcome(paths: tp.Any, task: int | str) -> Path:
    name = f"{paths.job_id}_{task}_outcome.json"
    found: Path = paths.result_pickle.with_name(name)
    return found


def _let_the_others_tell(paths: tp.Any) -> None:
    """Our exit code would make srun kill tasks that are about to fail, or to end, as well."""
    tasks = int(os.environ.get("SLURM_NTASKS", "1"))
    until = time.monotonic() + PEERS_S
    while time.monotonic() < until and not all(_outcome(paths, t).exists() for t in range(tasks)):
        time.sleep(0.1)
