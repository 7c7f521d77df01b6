"""Run a command whose syslog is a daemon of its own: rsyslogd, on a /dev/log that only it has.

    unshare --user --map-root-user --mount python with_syslog.py FILE COMMAND…

FILE gets what the daemon receives; it is there in full when the command's exit code is returned.
"""

import os
import socket
import subprocess
import sys
import syslog
import tempfile
import time
import uuid
from pathlib import Path

from hpcscale.lab.process import patience

CONF = """
global(workDirectory="{work}")
module(load="imuxsock" SysSock.Name="/dev/log" SysSock.RateLimit.Interval="0")
auth.* action(type="omfile" file="{file}" fileCreateMode="0600")
"""
KEPT = ("null", "zero", "random", "urandom", "full")


def own_dev(work: Path) -> None:
    """A /dev of this mount namespace alone: without it the socket would be the machine's."""
    dev = work / "dev"
    dev.mkdir()
    mount("-t", "tmpfs", "tmpfs", str(dev))
    for name in KEPT:
        (dev / name).touch()
        mount("--bind", f"/dev/{name}", str(dev / name))
    (dev / "shm").mkdir()
    mount("--rbind", str(dev), "/dev")
    subprocess.run(["umount", "--recursive", str(dev)], check=True, timeout=patience(30))


def mount(*words: str) -> None:
    subprocess.run(["mount", *words], check=True, timeout=patience(30))


def until(found, what: str, daemon: subprocess.Popen) -> None:
    end = time.monotonic() + patience(60)
    while not found():
        if daemon.poll() is not None or time.monotonic() > end:
            sys.exit(f"with_syslog: {what}: rsyslogd's exit code is {daemon.poll()}")
        time.sleep(0.05)


def answers() -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as probe:
        return probe.connect_ex("/dev/log") == 0


def main() -> int:
    file, command = Path(sys.argv[1]), sys.argv[2:]
    with tempfile.TemporaryDirectory(prefix="hpcscale-syslog-") as name:
        work = Path(name)
        conf = work / "rsyslog.conf"
        conf.write_text(CONF.format(work=work, file=file))
        own_dev(work)
        program = ["/usr/sbin/rsyslogd", "-n", "-i", "NONE", "-f", str(conf)]
        with subprocess.Popen(program, stdin=subprocess.DEVNULL) as daemon:
            try:
                until(answers, "no socket", daemon)
                code = subprocess.run(command, check=False, timeout=patience(120)).returncode
                mark = uuid.uuid4().hex  # comes after all that the command said
                syslog.syslog(syslog.LOG_NOTICE | syslog.LOG_AUTH, mark)
                until(
                    lambda: file.exists() and mark in file.read_text(),
                    "the mark did not arrive",
                    daemon,
                )
            finally:
                daemon.terminate()
                daemon.wait(patience(30))
        return code


if __name__ == "__main__":
    os.umask(0o077)
    sys.exit(main())
