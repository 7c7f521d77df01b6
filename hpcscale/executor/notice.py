"""What a user of the executor should know, said once.

submitit's own logger writes every warning twice, to stdout and to stderr.
"""

import logging

from submitit.core import logger

_LOG = logging.getLogger("hpcscale")


def warn(text: str) -> None:
    """A warning, unless submitit's (``SUBMITIT_LOG_LEVEL``) are not wanted."""
    if logger.get_logger().isEnabledFor(logging.WARNING):
        _LOG.warning(text)
