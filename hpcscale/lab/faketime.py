"""What libfaketime shares between processes, where a lab's controllers have their own clock.

It keeps two small files in ``/dev/shm`` that carry the pid of the process which loaded it, and
leaves them there when a daemon goes into the background or is killed. With namespaces every site
has its own ``/dev/shm``; without them the pids are written down, and the files go with the lab.
"""

import contextlib
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

from hpcscale.lab.model import SitePaths

SHARED = Path("/dev/shm")  # noqa: S108  # libfaketime makes its files there (shm_open(3))


def _record(paths: SitePaths) -> Path:
    return paths.etc / "faketime.pids"


def with_faketime(
    command: Sequence[str], env: Mapping[str, str], paths: SitePaths, *, own_shm: bool
) -> list[str]:
    """The command with libfaketime's settings, for it alone: not for nsenter on the way to it.

    Args:
        command: argv.
        env: ``LD_PRELOAD`` and ``FAKETIME``.
        paths: of the site.
        own_shm: the site has a ``/dev/shm`` of its own, which goes with it.
    """
    argv = ["env", *(f"{k}={v}" for k, v in env.items()), *command]
    if own_shm:
        return argv
    # exec keeps the pid
    return ["sh", "-c", f'echo $$ >> {shlex.quote(str(_record(paths)))} && exec "$@"', "sh", *argv]


def forget(paths: SitePaths) -> None:
    """Remove what libfaketime left of daemons that are gone. All of the site's are."""
    try:
        pids = _record(paths).read_text().split()
    except OSError:
        return
    for pid in pids:
        for name in (f"faketime_shm_{pid}", f"sem.faketime_sem_{pid}"):
            with contextlib.suppress(FileNotFoundError, PermissionError):
                (SHARED / name).unlink()
