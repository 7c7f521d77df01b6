"""A site's whole queue, its nodes and its ended jobs: what a forecast asks, four commands in all.

What the site hides from this user (``PrivateData`` of slurm.conf(5)) is missing from the answers
without a word; ``hidden`` tells from the configuration what that may be.
"""

import datetime as dt
from collections.abc import Sequence
from typing import Protocol

import msgspec

from hpcscale.errors import UnreachableError
from hpcscale.slurm import _squeue
from hpcscale.slurm.states import job_state
from hpcscale.slurm.transport import Completed
from hpcscale.slurm.types import JobState, SiteFacts
from hpcscale.units import expand_hostlist, gres_gpus, parse_tres, tres_gpus

_FIELDS = (
    "JobArrayID", "State", "UserName", "Account", "Partition", "QOS", "Reason", "NodeList",
    "NumNodes", "NumCPUs", "tres-alloc", "tres-per-node", "tres-per-job", "Dependency",
    "PriorityLong", "TimeLimit", "SubmitTime", "EligibleTime", "StartTime", "OverSubscribe",
    "Reservation", "Name",
)  # fmt: skip
_GONE = ("DOWN", "DRAIN", "FAIL", "NO_RESPOND", "POWERING_DOWN", "UNKNOWN", "REBOOT")
ENDED_COLUMNS = (
    "JobIDRaw,JobID,User,Account,Partition,QOS,State,Submit,Start,End,ElapsedRaw,TimelimitRaw,"
    "NNodes,NCPUS,AllocTRES"
)


class Asker(Protocol):
    """Asks a site's Slurm one read-only command; raises ``UnreachableError`` without an answer."""

    def question(self, argv: Sequence[str]) -> Completed:
        """The command's output; it succeeded."""


class QueuedJob(msgspec.Struct, frozen=True):
    """A pending or running job of anybody. Times are seconds since 1970; None: not known.

    Attributes:
        job_id: ``123``, ``123_4``, ``123+1``; the pending rest of an array has its base id.
        array_pending: indices of that rest, such as ``3-99%4``.
        partitions: those it may start in; of a running job the one it is in.
        cpus: over all nodes, asked for or allocated.
        gpus: likewise.
        exclusive: whole nodes.
        start_s: of a pending job Slurm's own estimate.
        reservation: it starts in there alone; several with commas.
        name: as its user called it; ``--dependency=singleton`` goes by it.
    """

    job_id: str
    state: JobState
    user: str
    account: str
    partitions: tuple[str, ...]
    qos: str
    reason: str
    nodes: str
    num_nodes: int
    cpus: int
    gpus: int
    exclusive: bool
    dependency: str
    array_pending: str
    priority: int
    limit_s: int | None
    submit_s: int | None
    eligible_s: int | None
    start_s: int | None
    reservation: str = ""
    name: str = ""


class NodeFacts(msgspec.Struct, frozen=True):
    """One node: what it has, where it belongs, and whether jobs may start on it.

    Attributes:
        maintenance: nothing but a reservation for maintenance keeps it from being usable.
    """

    name: str
    partitions: tuple[str, ...]
    cpus: int
    gpus: int
    usable: bool
    maintenance: bool = False


class Reservation(msgspec.Struct, frozen=True):
    """Nodes kept from other jobs for a time; seconds since 1970.

    Attributes:
        cpus: that are kept, of all nodes together; None: not said, or all.
        flex: its jobs may begin before it, end after it and take other nodes, too.
    """

    name: str
    nodes: str
    start_s: int
    end_s: int
    cpus: int | None = None
    flex: bool = False


def queue(asker: Asker) -> tuple[QueuedJob, ...]:
    """Every pending and running job that this user may see, by one squeue call."""
    separators = _squeue.Separators.new()
    *inner, last = _FIELDS
    columns = [f"{name}:{separators.field}" for name in inner] + [f"{last}:{separators.record}"]
    done = asker.question(
        ["squeue", "--noheader", "--all", "--states=PD,CF,R,S,CG", f"--Format={','.join(columns)}"]
    )
    with _squeue.without_gc():
        records = done.stdout.split(separators.record + "\n")
        if records.pop().strip():
            raise UnreachableError("squeue's answer is cut short", hint="try again")
        reader = _Reader()
        return tuple([reader.job(record.split(separators.field)) for record in records])


class _Reader:
    """Makes jobs of rows; texts that come again and again are understood once."""

    def __init__(self) -> None:
        self._limits: dict[str, int | None] = {}
        self._gpus: dict[tuple[str, str, str, int], int] = {}
        self._partitions: dict[str, tuple[str, ...]] = {}
        self._names: dict[str, str] = {}

    def job(self, fields: list[str]) -> QueuedJob:
        if len(fields) != len(_FIELDS):
            raise UnreachableError(
                f"squeue's answer has {len(fields)} columns instead of {len(_FIELDS)}",
                hint="hpcscale needs Slurm 22.05 or later on the site",
            )
        (
            job_id, state, user, account, partition, qos, reason, node_list, num_nodes, cpus, alloc,
            per_node, per_job, dependency, priority, limit, submit, eligible, start, share,
            reservation, name,
        ) = fields  # fmt: skip
        base, task, offset, pending = _squeue._parse_id(job_id)  # noqa: SLF001  # same room
        suffix = f"_{task}" if task is not None else f"+{offset}" if offset is not None else ""
        nodes = int(num_nodes) if num_nodes.isdigit() else 1
        if limit not in self._limits:
            self._limits[limit] = _squeue.parse_limit(limit)
        asked = (alloc, per_node, per_job, nodes)
        if asked not in self._gpus:
            self._gpus[asked] = _gpus(*asked)
        if partition not in self._partitions:
            self._partitions[partition] = tuple(partition.split(","))
        return QueuedJob(
            job_id=f"{base}{suffix}",
            state=job_state(state),
            user=user,
            account=account,
            partitions=self._partitions[partition],
            qos=qos,
            reason=reason,
            nodes=node_list,
            num_nodes=max(1, nodes),
            cpus=int(cpus) if cpus.isdigit() else nodes,
            gpus=self._gpus[asked],
            exclusive=share == "NO",
            dependency="" if dependency == "(null)" else dependency,
            array_pending=pending,
            priority=int(priority) if priority.isdigit() else 0,
            limit_s=self._limits[limit],
            submit_s=_seconds(submit),
            eligible_s=_seconds(eligible),
            start_s=_seconds(start),
            reservation="" if reservation == "(null)" else reservation,
            name=self._names.setdefault(name, name),
        )


def _gpus(alloc: str, per_node: str, per_job: str, nodes: int) -> int:
    if gpus := tres_gpus(parse_tres(alloc)):
        return gpus
    count, _ = gres_gpus(_squeue._tres_request(per_node))  # noqa: SLF001  # same room
    if count:
        return count * nodes
    return gres_gpus(_squeue._tres_request(per_job))[0]  # noqa: SLF001  # same room


def _seconds(text: str) -> int | None:
    return int(text) if text.isdigit() and text != "0" else None


def nodes(asker: Asker) -> tuple[NodeFacts, ...]:
    """Every node with its partitions, by one sinfo call."""
    separators = _squeue.Separators.new()
    columns = ",".join(
        f"{name}:{separators.field}" for name in ("NodeList", "Partition", "StateComplete", "CPUs")
    )
    done = asker.question(
        ["sinfo", "--noheader", "--all", "--Node", f"--Format={columns},Gres:{separators.record}"]
    )
    found: dict[str, tuple[list[str], str, int, int]] = {}
    for record in done.stdout.split(separators.record + "\n"):
        row = record.split(separators.field)
        if len(row) != 5:
            continue
        name, partition, state, cpus, gres = (field.strip() for field in row)
        known = found.setdefault(
            name, ([], state.upper(), int(cpus) if cpus.isdigit() else 1, gres_gpus(gres)[0])
        )
        known[0].append(partition.rstrip("*"))
    made = []
    for name, (parts, state, cores, gpus) in found.items():
        there = not any(word in state for word in _GONE)
        closed = "MAINT" in state
        made.append(
            NodeFacts(name, tuple(parts), cores, gpus, there and not closed, there and closed)
        )
    return tuple(made)


def reservations(asker: Asker) -> tuple[Reservation, ...]:
    """Reservations to come and under way."""
    done = asker.question(["scontrol", "--oneliner", "show", "reservation"])
    found = []
    for line in done.stdout.splitlines():
        pairs = dict(word.partition("=")[::2] for word in line.split() if "=" in word)
        first, last = _seconds(pairs.get("StartTime", "")), _seconds(pairs.get("EndTime", ""))
        if first and last and pairs.get("Nodes", "(null)") != "(null)":
            cpus = parse_tres(pairs.get("TRES", "")).get("cpu", "")
            found.append(
                Reservation(
                    pairs["ReservationName"], pairs["Nodes"], first, last,
                    cpus=int(cpus) if cpus.isdigit() else None,
                    flex="FLEX" in pairs.get("Flags", "").split(","),
                )
            )  # fmt: skip
    return tuple(found)


def ended(asker: Asker, since: dt.datetime) -> str:
    """Jobs that ended since then, as sacct's table with its header line (see ``ENDED_COLUMNS``)."""
    states = "CD,F,TO,CA,OOM,NF,PR,BF,DL"
    # the end is far off, since the controller's clock may be ahead of the one that sacct reads
    done = asker.question(
        ["sacct", "--allusers", "--allocations", "--parsable2", f"--state={states}",
         f"--starttime=uts{int(since.timestamp())}", "--endtime=now+30days",
         f"--format={ENDED_COLUMNS}"]
    )  # fmt: skip
    return done.stdout


def hidden(facts: SiteFacts) -> frozenset[str]:
    """What the site keeps from ordinary users: words of ``PrivateData``, lower case."""
    words = facts.config.get("PrivateData", "").lower().replace(" ", "").split(",")
    return frozenset(words) - {"", "none", "(null)"}


def node_names(text: str) -> list[str]:
    """Names of a hostlist as Slurm prints it; none for what is no hostlist."""
    try:
        return expand_hostlist(text)
    except ValueError:
        return []


class RunLimit(msgspec.Struct, frozen=True):
    """The most that may run at one time of the jobs that a limit covers.

    Attributes:
        whose: ``qos`` or ``account`` (all of its jobs), with ``/user`` or ``/account`` each user or
            account of it alone, or ``user``: one user of one account.
        name: of the QOS or account.
        what: ``jobs``, ``cpu``, ``gpu`` or ``node``.
        units: of them.
        user: where ``whose`` is ``user``.
        of: the account above that has the limit, which all below it share; empty: ``name``.
        first: of a QOS that goes before its partition's (flag ``OverPartQOS``).
    """

    whose: str
    name: str
    what: str
    units: int
    user: str = ""
    of: str = ""
    first: bool = False


_QOS = {
    "MaxJobsPU": "qos/user", "MaxJobsPA": "qos/account", "GrpJobs": "qos",
    "MaxTRESPU": "qos/user", "MaxTRESPA": "qos/account", "GrpTRES": "qos",
}  # fmt: skip
_OF_TRES = {"cpu": "cpu", "node": "node", "gres/gpu": "gpu"}


def run_limits(asker: Asker, cluster: str) -> tuple[RunLimit, ...]:
    """Limits on what runs at one time: of QOS, and of the accounts and users of a cluster.

    ``MaxJobs``, ``GrpJobs`` and ``GrpTRES`` of sacctmgr(1), and of a QOS also what one user and one
    account may run: jobs, CPUs, GPUs, nodes. A limit of an account is one of all accounts below it.
    """
    found: list[RunLimit] = []
    for row in _table(asker, ["qos"], ["Name", "Flags", *_QOS]):
        first = "OverPartQOS" in row["Flags"].split(",")
        for column, whose in _QOS.items():
            limits = _limits(whose, row["Name"], row[column])
            found += [msgspec.structs.replace(limit, first=first) for limit in limits]
    parents: dict[str, str] = {}
    shared: dict[str, list[RunLimit]] = {}
    words = ["assoc", *([f"cluster={cluster}"] if cluster else [])]
    for row in _table(asker, words, ["Account", "User", "Partition", "MaxJobs", "GrpJobs",
                                     "GrpTRES", "ParentName"]):  # fmt: skip
        account, user = row["Account"], row["User"]
        if row["Partition"] or account == "root":
            continue
        if user:
            # GrpJobs of a user's association bounds the same jobs as its MaxJobs
            for column in ("MaxJobs", "GrpJobs", "GrpTRES"):
                found += _limits("user", account, row[column], user)
        else:
            parents[account] = row["ParentName"]
            for column in ("GrpJobs", "GrpTRES"):
                shared.setdefault(account, []).extend(_limits("account", account, row[column]))
    for account, parent in parents.items():
        found += shared[account]
        seen, above = {account}, parent
        while above in parents and above not in seen:
            found += [msgspec.structs.replace(x, name=account, of=above) for x in shared[above]]
            seen.add(above)
            above = parents[above]
    return tuple(found)


def _table(asker: Asker, words: Sequence[str], columns: Sequence[str]) -> list[dict[str, str]]:
    done = asker.question(["sacctmgr", "--noheader", "--parsable2", "--readonly", "show", *words,
                           f"format={','.join(columns)}"])  # fmt: skip
    rows = (line.split("|") for line in done.stdout.splitlines())
    return [dict(zip(columns, row, strict=True)) for row in rows if len(row) == len(columns)]


def _limits(whose: str, name: str, text: str, user: str = "") -> list[RunLimit]:
    if text.isdigit():
        return [RunLimit(whose, name, "jobs", int(text), user)]
    return [
        RunLimit(whose, name, _OF_TRES[kind], int(units), user)
        for kind, units in parse_tres(text).items()
        if kind in _OF_TRES and units.isdigit()
    ]
