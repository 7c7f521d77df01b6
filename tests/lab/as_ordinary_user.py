"""Run a command as a user who does not exist outside: ``as_ordinary_user.py HOME ARGV…``, as root.

In a mount namespace of its own the password file gets one more line, and the Python of this test
run is made reachable when it lies in root's closed home. Nothing on the machine changes.
"""

import os
import sys
import tempfile
from pathlib import Path

from hpcscale.lab import _nsinit, namespace

UID, NAME = 54321, "hpcscale-test"


def main(home: str, argv: list[str]) -> None:
    python = Path(namespace.helper_python()).parent.parent
    with tempfile.NamedTemporaryFile("w", dir=home, delete=False) as passwd:
        passwd.write(Path("/etc/passwd").read_text())
        passwd.write(f"{NAME}:x:{UID}:{UID}::{home}:/bin/sh\n")
    Path(passwd.name).chmod(0o644)
    mounts = [{"source": passwd.name, "target": "/etc/passwd"}]
    if python.is_relative_to("/root"):
        mounts = [
            {"target": "/root", "mode": "755"},
            {"source": str(python), "target": str(python)},
            *mounts,
        ]
    _nsinit.unshare(_nsinit.CLONE_NEWNS)
    _nsinit.mount("none", "/", None, _nsinit.MS_REC | _nsinit.MS_PRIVATE)
    _nsinit.apply_mounts(mounts)
    Path(passwd.name).unlink()
    os.setgroups([])
    os.setgid(UID)
    os.setuid(UID)
    os.chdir(home)
    keep = {name: os.environ[name] for name in ("PATH", "PYTHONPATH") if name in os.environ}
    os.execve(argv[0], argv, keep | {"HOME": home, "USER": NAME, "LOGNAME": NAME})


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
