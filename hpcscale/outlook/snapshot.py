"""Everything a forecast knows of a site at one moment, and how much of it the site shows."""

import enum
from typing import cast

import msgspec

from hpcscale.connect import Connection
from hpcscale.errors import HpcscaleError, UnreachableError
from hpcscale.outlook.later import Later
from hpcscale.precheck import fetch_facts
from hpcscale.slurm import whole
from hpcscale.slurm.cli import CliClient
from hpcscale.slurm.types import SiteFacts


class Level(enum.StrEnum):
    """How much of something this user sees."""

    FULL = "full"
    OWN = "own jobs only"  # PrivateData=jobs
    ABSENT = "absent"  # no slurmdbd


class Snapshot(msgspec.Struct, frozen=True):
    """A site's queue, nodes and reservations at the controller's time ``now_s``.

    Attributes:
        user: who asks.
        queue_level: FULL, or OWN where other people's jobs are hidden.
        history_level: FULL, or ABSENT where there is no slurmdbd; what slurmdbd hides by its own
            PrivateData shows in the answers only.
        limits: on what may run at one time, where Slurm enforces them.
        notes: what could not be asked, and why.
    """

    site: str
    user: str
    now_s: int
    jobs: tuple[whole.QueuedJob, ...]
    nodes: tuple[whole.NodeFacts, ...]
    reservations: tuple[whole.Reservation, ...]
    facts: SiteFacts
    queue_level: Level
    history_level: Level
    limits: tuple[whole.RunLimit, ...] = ()
    notes: tuple[str, ...] = ()


def asker_of(connection: Connection) -> CliClient:
    """The client (also one whose acts are written down), where it can ask for the whole queue.

    Raises:
        HpcscaleError: it cannot.
    """
    if callable(getattr(connection.client, "question", None)):
        return cast("CliClient", connection.client)
    raise HpcscaleError("this Slurm client cannot list a whole queue", where=connection.site.name)


def take(connection: Connection) -> Snapshot:
    """Ask a site; some seven commands, each at most once.

    Raises:
        UnreachableError: no answer on the queue, the nodes or the time.
    """
    client = asker_of(connection)
    # a controller that is busy lets each question wait: here they wait side by side
    at_once = getattr(client.transport, "at_once", False)
    asked = Later(lambda: whole.queue(client), at_once=at_once)
    told = Later(lambda: fetch_facts(connection.site, client), at_once=at_once)
    listed = Later(lambda: whole.nodes(client), at_once=at_once)
    clock = Later(client.now, at_once=at_once)
    kept = Later(lambda: whole.reservations(client), at_once=at_once)
    facts, jobs, nodes = told.answer(), asked.answer(), listed.answer()
    now_s = int(clock.answer().timestamp())
    user = client.user_name()
    notes: list[str] = []
    reservations: tuple[whole.Reservation, ...] = ()
    try:
        reservations = kept.answer()
    except UnreachableError as exc:
        notes.append(f"reservations are not known: {exc.message}")
    hidden = whole.hidden(facts)
    others = any(job.user != user for job in jobs)
    # root, SlurmUser and operators see all in spite of PrivateData (slurm.conf(5)); where others'
    # jobs show, so do we
    slurm_user = facts.config.get("SlurmUser", "").partition("(")[0]
    sees_all = others or user in {"root", slurm_user}
    queue_level = Level.OWN if "jobs" in hidden and not sees_all else Level.FULL
    history_level = Level.FULL if facts.has_accounting else Level.ABSENT
    limits: tuple[whole.RunLimit, ...] = ()
    enforced = facts.config.get("AccountingStorageEnforce", "limits").lower()
    if facts.has_accounting and ("limits" in enforced or "safe" in enforced):
        try:
            limits = whole.run_limits(client, facts.cluster)
        except UnreachableError as exc:
            notes.append(f"limits of QOS and accounts are not known: {exc.message}")
    return Snapshot(
        site=connection.site.name,
        user=user,
        now_s=now_s,
        jobs=jobs,
        nodes=nodes,
        reservations=reservations,
        facts=facts,
        queue_level=queue_level,
        history_level=history_level,
        limits=limits,
        notes=tuple(notes),
    )
