"""A site's own history, as it is now in its accounting: for a replay."""

import datetime as dt

from hpcscale.connect import Connection
from hpcscale.errors import InvalidFileError, NotFoundError
from hpcscale.history.reading import Reading
from hpcscale.history.tables import parse_table
from hpcscale.outlook.snapshot import asker_of
from hpcscale.slurm import whole


def past(connection: Connection, days_s: int, *, gpus_per_node: int = 8) -> Reading:
    """Jobs that ended at a site lately, by one sacct call.

    Args:
        connection: to the site.
        days_s: how far back, seconds before the controller's time.
        gpus_per_node: of the site, for rows that count GPUs alone.

    Raises:
        NotFoundError: it has no slurmdbd.
        InvalidFileError: nothing has ended since.
        UnreachableError: no answer.
    """
    where = f"sacct of {connection.site.name}"
    if not connection.client.facts().has_accounting:
        raise NotFoundError(
            f"{connection.site.name} keeps no accounting (no slurmdbd), so no history", where=where,
            hint="--history FILE: a trace, or what sacct printed at another site",
        )  # fmt: skip
    since = connection.client.now() - dt.timedelta(seconds=days_s)
    lines = [line for line in whole.ended(asker_of(connection), since).splitlines() if line]
    if len(lines) < 2:
        raise InvalidFileError(
            f"no job has ended since {since:%Y-%m-%d %H:%M}Z", where=where,
            hint="a longer time, such as live:365d",
        )  # fmt: skip
    return parse_table(lines, where, gpus_per_node=gpus_per_node)
