"""Run a command where directories are empty: ``without.py DIR,DIR… ARGV…``.

In a mount namespace of its own an empty tmpfs lies over each of them; nothing on the machine
changes. For an ordinary user this is below a user namespace in which only that user exists.
"""

import os
import sys

from hpcscale.lab import _nsinit


def main(directories: list[str], argv: list[str]) -> None:
    _nsinit.unshare_as_self(_nsinit.CLONE_NEWNS, os.geteuid() != 0)
    _nsinit.mount("none", "/", None, _nsinit.MS_REC | _nsinit.MS_PRIVATE)
    for directory in directories:
        _nsinit.mount("empty", directory, "tmpfs", 0, "mode=755")
    os.execv(argv[0], argv)


if __name__ == "__main__":
    main(sys.argv[1].split(","), sys.argv[2:])
