"""Run a command as an ordinary user: ``as_ordinary_user.py [--user=NAME] HOME ARGV…``, as root.

Without a name as a user who does not exist outside: in a mount namespace of its own the password
file gets one more line. The Python of this test run and the checkout are made reachable where they
lie in root's closed home. Nothing on the machine changes.
"""

import os
import pwd
import sys
import tempfile
from pathlib import Path

from hpcscale.lab import _nsinit, namespace

ROOT = Path(__file__).resolve().parents[2]
UID, NAME = 54321, "hpcscale-test"


def main(home: str, argv: list[str], user: str) -> None:
    entry = None if user == NAME else pwd.getpwnam(user)
    uid, gid = (UID, UID) if entry is None else (entry.pw_uid, entry.pw_gid)
    mounts = [] if entry else [_passwd(home)]
    closed = Path("/root")
    needed = (Path(namespace.helper_python()).parent.parent, Path(sys.prefix), ROOT)
    if hidden := [path for path in dict.fromkeys(needed) if path.is_relative_to(closed)]:
        mounts = [
            {"target": str(closed), "mode": "755"},
            *({"source": str(path), "target": str(path)} for path in hidden),
            *mounts,
        ]
    _nsinit.unshare(_nsinit.CLONE_NEWNS)
    _nsinit.mount("none", "/", None, _nsinit.MS_REC | _nsinit.MS_PRIVATE)
    _nsinit.apply_mounts(mounts)
    for mount in mounts:
        if mount["target"] == "/etc/passwd":
            Path(mount["source"]).unlink()
    os.setgroups([])
    os.setgid(gid)
    os.setuid(uid)
    os.chdir(home)
    keep = {name: os.environ[name] for name in ("PATH", "PYTHONPATH") if name in os.environ}
    os.execve(argv[0], argv, keep | {"HOME": home, "USER": user, "LOGNAME": user})


def _passwd(home: str) -> dict[str, str]:
    with tempfile.NamedTemporaryFile("w", dir=home, delete=False) as passwd:
        passwd.write(Path("/etc/passwd").read_text())
        passwd.write(f"{NAME}:x:{UID}:{UID}::{home}:/bin/sh\n")
    Path(passwd.name).chmod(0o644)
    return {"source": passwd.name, "target": "/etc/passwd"}


if __name__ == "__main__":
    who, *rest = sys.argv[1:]
    if who.startswith("--user="):
        main(rest[0], rest[1:], who.partition("=")[2])
    else:
        main(who, rest, NAME)
