"""``python -m hpcscale``."""

from hpcscale.cli import run

if __name__ == "__main__":
    run()
