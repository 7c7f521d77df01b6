"""Reservations in a site's plan: whoever is in one starts there, whoever is not keeps out."""

import math

from hypothesis import given, settings
from hypothesis import strategies as st
from queue_views import HOUR, NOW, nodes, pending, running, snapshot

from hpcscale.outlook.answer import as_queued
from hpcscale.outlook.model import SiteModel
from hpcscale.slurm import whole
from hpcscale.slurm.transport import Completed
from hpcscale.slurm.whole import NodeFacts, Reservation
from hpcscale.spec import JobSpec

MINUTE = 60


def limits(seen):
    made = SiteModel(seen, None)
    made.learn()
    return made.times().limits_s


def kept(name="mine", at="gpu[1-2]", begin=HOUR, end=3 * HOUR, **fields):
    return Reservation(name, at, NOW + begin, NOW + end, **fields)


def test_a_job_starts_in_its_reservation_and_others_keep_out():
    seen = snapshot(
        pending(1, num_nodes=2, cpus=16, reservation="mine"),
        pending(2, num_nodes=1, cpus=8, reservation="mine", limit_s=90 * MINUTE, priority=90),
        pending(3, num_nodes=3, cpus=24, limit_s=2 * HOUR, priority=80),
        pending(4, num_nodes=2, cpus=16, limit_s=9 * HOUR, priority=70),
        pending(5, num_nodes=1, cpus=8, reservation="other", priority=60),
        reservations=(kept(),),
    )
    times = limits(seen)
    # the second would end after the reservation; Slurm starts it, and ends it with that
    assert (times["1"], times["2"]) == (HOUR, 2 * HOUR)
    # two nodes are outside: too few for the third job, and too few hours for the fourth before it
    assert (times["3"], times["4"]) == (3 * HOUR, 5 * HOUR)
    assert math.isinf(times["5"])


def test_a_job_that_gets_no_turn_before_the_end_never_starts():
    jobs = [pending(at, num_nodes=2, cpus=16, reservation="mine", priority=-at) for at in (1, 2, 3)]
    times = limits(snapshot(*jobs, reservations=(kept(begin=-HOUR, end=2 * HOUR),)))
    assert (times["1"], times["2"], times["3"]) == (0, HOUR, math.inf)


def test_what_runs_in_a_reservation_is_counted_once():
    seen = snapshot(
        running(1, "gpu[1-2]", num_nodes=2, cpus=16, reservation="mine", limit_s=2 * HOUR),
        pending(2, num_nodes=2, cpus=16),
        pending(3, num_nodes=1, cpus=8, reservation="mine"),
        pending(4, num_nodes=4, cpus=32, priority=1),
        reservations=(kept(begin=-HOUR),),
    )
    assert limits(seen) == {"2": 0, "3": 2 * HOUR, "4": 3 * HOUR}


def test_a_flexible_reservation_binds_its_jobs_to_nothing():
    job = pending(1, num_nodes=2, cpus=16, reservation="mine")
    assert limits(snapshot(job, reservations=(kept(flex=True),))) == {"1": 0}
    assert limits(snapshot(job, reservations=(kept(),))) == {"1": HOUR}


def test_reserved_cores_leave_the_rest_of_their_nodes():
    seen = snapshot(
        pending(1, num_nodes=1, cpus=4, reservation="mine"),
        pending(2, num_nodes=4, cpus=24, limit_s=2 * HOUR, priority=50),
        pending(3, num_nodes=1, cpus=6, limit_s=9 * HOUR, priority=10),
        reservations=(kept(at="gpu1", cpus=4),),
    )
    # 28 CPUs are left of 32 while it lasts: the third has to wait until the second has ended
    assert limits(seen) == {"1": HOUR, "2": 0, "3": 2 * HOUR}


def test_nodes_in_maintenance_come_back_with_the_end_of_their_reservation():
    down = tuple(NodeFacts(f"gpu{k}", ("gpu",), 8, 4, False, True) for k in range(1, 5))
    job = pending(1, num_nodes=4, cpus=32)
    window = kept(at="gpu[1-4]", begin=-HOUR, end=2 * HOUR)
    assert limits(snapshot(job, nodes=down, reservations=(window,))) == {"1": 2 * HOUR}
    assert limits(snapshot(job, nodes=down)) == {"1": math.inf}


def test_a_job_file_may_name_a_reservation():
    spec = JobSpec(command=("true",), directives={"reservation": "mine"})
    seen = snapshot(reservations=(kept(),))
    made = SiteModel(seen, None)
    job = as_queued(spec, seen)
    made.learn((job,))
    assert made.times(added=job).limits_s[job.job_id] == HOUR


SIZE = 5  # nodes of a made-up site


@st.composite
def sites(draw):
    """Whole-node jobs of whole minutes, some in one of two reservations, some running."""
    minutes = st.integers(1, 12)
    taken: set[int] = set()
    reservations = []
    for name in draw(st.sampled_from([(), ("a",), ("a", "b")])):
        mine = draw(st.sets(st.integers(1, SIZE), min_size=1, max_size=3))
        begin = draw(st.integers(-3, 10))
        reservations.append((name, mine, begin, begin + draw(minutes)))
    jobs = []
    for at in range(draw(st.integers(0, 3))):
        free = sorted(set(range(1, SIZE + 1)) - taken)
        if not free:
            break
        on = draw(st.sets(st.sampled_from(free), min_size=1, max_size=2))
        taken |= on
        jobs.append(running(at + 1, ",".join(f"gpu{k}" for k in sorted(on)), num_nodes=len(on),
                            cpus=8 * len(on), exclusive=True, limit_s=MINUTE * draw(minutes)))  # fmt: skip
    for at in range(draw(st.integers(1, 8))):
        size = draw(st.integers(1, SIZE))
        jobs.append(pending(at + 50, num_nodes=size, cpus=8 * size, exclusive=True, priority=99 - at,
                            limit_s=MINUTE * draw(minutes),
                            reservation=draw(st.sampled_from(["", "", "a", "b"]))))  # fmt: skip
    return jobs, reservations


def by_definition(jobs, reservations):
    """Minute by minute and node by node; what pending jobs take is counted, not placed."""
    runs = [
        (set(whole.node_names(job.nodes)), job.limit_s // MINUTE)
        for job in jobs if job.nodes
    ]  # fmt: skip
    horizon = 300
    used = {}  # (reservation or "", minute) -> nodes

    def free(where, minute):
        found = 0
        for k in range(1, SIZE + 1):
            name = f"gpu{k}"
            if any(name in on and minute < until for on, until in runs):
                continue
            inside = any(k in mine and a <= minute < b for _, mine, a, b in reservations)
            own = any(n == where and k in mine for n, mine, _, _ in reservations)
            found += own if where else not inside
        return found - used.get((where, minute), 0)

    starts = {}
    for job in (job for job in jobs if not job.nodes):
        length, where = job.limit_s // MINUTE, job.reservation
        first, last = 0, horizon
        if where:
            window = [(a, b) for name, _, a, b in reservations if name == where]
            first, last = (max(0, window[0][0]), window[0][1]) if window else (0, 0)
        # a plan does not know that a later job cannot start at all: it still takes its place
        for minute in range(first, horizon if last else 0):
            if all(free(where, m) >= job.num_nodes for m in range(minute, minute + length)):
                break
        else:
            minute = None
        starts[job.job_id] = math.inf if minute is None or minute >= last else minute * MINUTE
        if minute is not None and starts[job.job_id] < math.inf:
            for m in range(minute, minute + length):
                used[where, m] = used.get((where, m), 0) + job.num_nodes
    return starts


@settings(max_examples=100, deadline=None)
@given(sites())
def test_a_plan_with_reservations_equals_its_definition(made):
    jobs, reservations = made
    seen = snapshot(
        *jobs,
        nodes=nodes(SIZE, "gpu", 4),
        reservations=tuple(
            Reservation(name, ",".join(f"gpu{k}" for k in sorted(mine)),
                        NOW + a * MINUTE, NOW + b * MINUTE)
            for name, mine, a, b in reservations if b > 0
        ),
    )  # fmt: skip
    expected = by_definition(jobs, [row for row in reservations if row[3] > 0])
    assert limits(seen) == expected


def test_a_job_that_its_reservation_does_not_wait_for_keeps_nobody_off():
    seen = snapshot(
        running(1, "gpu1", num_nodes=1, cpus=8, exclusive=True, limit_s=MINUTE),
        pending(2, num_nodes=3, cpus=24, exclusive=True, priority=9, reservation="a"),
        pending(3, num_nodes=1, cpus=8, exclusive=True, priority=8, reservation="a"),
        nodes=nodes(SIZE, "gpu", 4),
        reservations=(Reservation("a", "gpu[1-3]", NOW, NOW + MINUTE),),
    )
    assert limits(seen) == {"2": math.inf, "3": 0}


LINE = (
    "ReservationName={name} StartTime={first} EndTime={last} Duration=01:00:00 Nodes={nodes}"
    " NodeCnt=2 CoreCnt=8 Features=(null) PartitionName=(null) Flags={flags} TRES={tres}"
    " Users=ann Groups=(null) Accounts=(null) Licenses=(null) State=INACTIVE"
    " BurstBuffer=(null) Watts=n/a MaxStartDelay=(null)\n"
)


class Answers:
    """Slurm's answer to one command."""

    def __init__(self, text):
        self.text = text

    def question(self, argv):
        stdout = self.text(argv) if callable(self.text) else self.text
        return Completed(tuple(argv), 0, stdout, "")


def test_what_scontrol_says_of_reservations():
    rows = [
        ("a", "gpu[1-2]", "SPEC_NODES", "cpu=16"),
        ("b", "gpu3", "FLEX,SPEC_NODES", "cpu=4"),
        ("licences", "(null)", "LICENSE_ONLY", "(null)"),
    ]
    text = "".join(
        LINE.format(name=name, first=NOW, last=NOW + HOUR, nodes=on, flags=flags, tres=tres)
        for name, on, flags, tres in rows
    )
    assert whole.reservations(Answers(text)) == (
        Reservation("a", "gpu[1-2]", NOW, NOW + HOUR, 16),
        Reservation("b", "gpu3", NOW, NOW + HOUR, 4, flex=True),
    )
    assert whole.reservations(Answers("No reservations in the system\n")) == ()


def test_a_node_in_maintenance_is_told_from_one_that_is_down():
    def answer(argv):
        (form,) = [word for word in argv if word.startswith("--Format=")]
        ends = [part.partition(":")[2] for part in form.removeprefix("--Format=").split(",")]
        rows = [("gpu1", "IDLE"), ("gpu2", "IDLE+MAINTENANCE"), ("gpu3", "DOWN+MAINTENANCE")]
        return "".join(
            "".join(
                value + end
                for value, end in zip((name, "gpu*", state, "8", "gpu:4"), ends, strict=True)
            )
            + "\n"
            for name, state in rows
        )

    found = {n.name: (n.usable, n.maintenance) for n in whole.nodes(Answers(answer))}
    assert found == {"gpu1": (True, False), "gpu2": (False, True), "gpu3": (False, False)}
