"""Which lab a command of ``hpcscale lab`` means."""

from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from pathlib import Path

    from hpcscale.lab import Lab

dir_option = click.option(
    "--dir",
    "directory",
    type=click.Path(),
    help="The lab's directory.  [default: $HPCSCALE_LAB_DIR or /tmp/hpcscale-lab-UID]",
)


def lab_path(text: str | None) -> "Path | None":
    from pathlib import Path

    return Path(text) if text else None


def open_lab(directory: str | None) -> "Lab":
    from hpcscale.lab import Lab

    return Lab.open(lab_path(directory))
