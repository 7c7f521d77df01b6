"""Reservations in a plan: their nodes are closed to all but the jobs submitted into them.

scontrol(1), "RESERVATIONS": a job submitted with ``--reservation`` starts on the reservation's
nodes while it lasts, and is ended with it (``ResvOverRun`` of slurm.conf(5)); with flag FLEX it may
begin before, stay longer and take other nodes, too. What a reservation keeps is a resource of its
own here, so one plan holds both sides.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from hpcscale.forecast.problem import Demand, ProblemBuilder
from hpcscale.outlook.kinds import NodeKind, choices
from hpcscale.outlook.snapshot import Snapshot
from hpcscale.slurm.whole import QueuedJob, Reservation, node_names

Span = tuple[int, int]


class Reserved:
    """The reservations of one plan; made once the general resources of ``kinds`` are.

    Args:
        made: the plan's problem.
        snapshot: of the site.
        kinds: of its nodes.
    """

    def __init__(self, made: ProblemBuilder, snapshot: Snapshot, kinds: Sequence[NodeKind]) -> None:
        self._made, self._now = made, snapshot.now_s
        self._kinds = kinds
        self._of_node = {name: at for at, kind in enumerate(kinds) for name in kind.names}
        self._closed: dict[str, list[Span]] = {}
        self._own: dict[str, tuple[Reservation, list[NodeKind]]] = {}
        for reservation in snapshot.reservations:
            if reservation.end_s > self._now:
                self._enter(reservation)
        self._close()

    def _enter(self, reservation: Reservation) -> None:
        names = [name for name in node_names(reservation.nodes) if name in self._of_node]
        own: dict[int, NodeKind] = {}
        for name in names:
            at = self._of_node[name]
            own.setdefault(at, replace(self._kinds[at], names=[])).names.append(name)
        all_cpus = sum(len(k.names) * k.cpus_per_node for k in own.values())
        part = 1.0
        if reservation.cpus is not None and all_cpus and reservation.cpus < all_cpus:
            part = reservation.cpus / all_cpus
        for at, kind in own.items():
            cpus = round(len(kind.names) * kind.cpus_per_node * part)
            kind.enter(self._made, cpus)
            for resource, units in (
                (kind.cpus, cpus),
                (kind.gpus, len(kind.names) * kind.gpus_per_node),
                (kind.open, len(kind.names)),
            ):
                self._made.hold(resource, units, reservation.start_s)
            if part < 1.0:
                # cores of nodes that others share: they lose those cores and nothing else
                general = self._kinds[at].cpus
                self._made.hold(general, cpus, reservation.end_s, reservation.start_s)
        if part == 1.0:
            for name in names:
                self._closed.setdefault(name, []).append((reservation.start_s, reservation.end_s))
        self._own[reservation.name] = (reservation, list(own.values()))

    def _close(self) -> None:
        """Keep others off reserved nodes; where reservations overlap a node is closed once."""
        spans: Counter[tuple[int, Span]] = Counter()
        for name, closed in self._closed.items():
            self._closed[name] = _joined(closed)
            spans.update((self._of_node[name], span) for span in self._closed[name])
        for (at, (begin, until)), count in spans.items():
            kind = self._kinds[at]
            self._made.hold(kind.cpus, count * kind.cpus_per_node, until, begin)
            self._made.hold(kind.gpus, count * kind.gpus_per_node, until, begin)
            self._made.hold(kind.open, count, until, begin)

    def hold_running(self, job: QueuedJob, until: int) -> None:
        """What a running job has: of its nodes, and of those that a reservation keeps."""
        names = node_names(job.nodes)
        places = Counter(
            (self._of_node[name], tuple(self._closed.get(name, ())))
            for name in names
            if name in self._of_node
        )
        for (at, closed), count in places.items():
            # while a node is closed its own hold says so already
            spans = _without((self._now, until), closed)
            self._kinds[at].hold_running(self._made, job, count / len(names), count, spans)
        for _, own in self._own.values():
            for kind in own:
                count = len(set(kind.names) & set(names))
                if count:
                    spans = [(self._now, until)]
                    kind.hold_running(self._made, job, count / len(names), count, spans)

    def choices(self, job: QueuedJob) -> list[tuple[list[Demand], int | None]]:
        """Where a job may start, and from when on it may not any more."""
        if not job.reservation:
            return [(demands, None) for demands in choices(job, self._kinds)]
        found: list[tuple[list[Demand], int | None]] = []
        for name in job.reservation.split(","):
            if name not in self._own:
                continue
            reservation, own = self._own[name]
            end = None if reservation.flex else reservation.end_s
            found += [(demands, end) for demands in choices(job, own)]
            if reservation.flex:
                found += [(demands, None) for demands in choices(job, self._kinds)]
        return found


def _joined(spans: Sequence[Span]) -> list[Span]:
    """The same times, without overlaps."""
    made: list[Span] = []
    for begin, until in sorted(spans):
        if made and begin <= made[-1][1]:
            made[-1] = (made[-1][0], max(made[-1][1], until))
        else:
            made.append((begin, until))
    return made


def _without(span: Span, holes: Sequence[Span]) -> list[Span]:
    """What is left of a span; ``holes`` in order, none overlapping."""
    begin, until = span
    left: list[Span] = []
    for first, last in holes:
        if first > begin:
            left.append((begin, min(first, until)))
        begin = max(begin, last)
    left.append((begin, until))
    return [(a, b) for a, b in left if a < b]
