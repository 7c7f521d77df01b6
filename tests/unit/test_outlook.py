"""A live site's forecast, from snapshots made by hand: classes, order, limits, levers."""

import math
import random
from dataclasses import replace

import msgspec
import numpy as np
import pytest
from queue_views import HOUR, NOW, PARTITIONS, nodes, pending, running, snapshot

from hpcscale.errors import HpcscaleError, UnreachableError
from hpcscale.forecast.queue import Queue, live_point_s
from hpcscale.history.tables import parse_table
from hpcscale.outlook import ahead, answer
from hpcscale.outlook.answer import _levers, as_queued
from hpcscale.outlook.learned import Track
from hpcscale.outlook.model import SiteModel
from hpcscale.outlook.snapshot import Level
from hpcscale.slurm.transport import Completed
from hpcscale.slurm.whole import ENDED_COLUMNS, NodeFacts, Reservation, RunLimit, run_limits
from hpcscale.spec import JobSpec, Resources


def history(*rows):
    """Ended jobs: (user, partition, limit in minutes, seconds run)."""
    lines = [ENDED_COLUMNS.replace(",", "|")]
    for at, (user, partition, limit, seconds) in enumerate(rows, start=1000):
        start = NOW - 10 * HOUR + at
        fields = [at, at, user, "a", partition, "normal", "COMPLETED", start - 5, start,
                  start + seconds, seconds, limit, 1, 8, "cpu=8,node=1"]  # fmt: skip
        lines.append("|".join(map(str, fields)))
    return parse_table(lines, "made")


def model(seen, past=None, more=()):
    made = SiteModel(seen, past)
    made.learn(more)
    return made


def test_jobs_start_by_priority_when_those_before_them_end():
    seen = snapshot(
        running(1, "gpu[1-4]", since=600, num_nodes=4, cpus=32),
        pending(3, priority=50, num_nodes=4, cpus=32),
        pending(2, priority=90, num_nodes=4, cpus=32, limit_s=2 * HOUR),
        pending(4, priority=10, partitions=("cpu",)),
    )
    times = model(seen).times().limits_s
    assert times == {"2": HOUR - 600, "3": 3 * HOUR - 600, "4": 0}


def test_learned_runtimes_bring_the_plan_forward():
    seen = snapshot(running(1, "gpu[1-4]", num_nodes=4, cpus=32), pending(2, num_nodes=4, cpus=32))
    past = history(*[("ann", "gpu", 60, 360)] * 30)
    times = model(seen, past).times()
    assert times.limits_s["2"] == HOUR
    assert 300 < times.learned_s["2"] < 0.3 * HOUR
    assert 300 < times.run_on_s["2"] < 0.3 * HOUR
    assert times.start_s("2") == times.run_on_s["2"]
    # nothing learned: what Slurm plans by the limits is all that there is
    blank = model(seen).times()
    assert (blank.run_on_s, blank.start_s("2")) == ({}, blank.learned_s["2"])


@pytest.mark.parametrize("seed", range(4))
def test_whole_nodes_of_one_kind_run_on_as_in_the_benchmark(seed, monkeypatch):
    """What a site's users get is what was measured: with the same runtimes, the same starts."""
    rng = random.Random(seed)
    held = [
        running(at, f"gpu{at}", since=60 * rng.randrange(30), exclusive=True,
                limit_s=60 * rng.randrange(40, 90)) for at in range(1, 4)
    ]  # fmt: skip
    waiting = [
        pending(at, priority=1000 - at, num_nodes=rng.randrange(1, 5), exclusive=True,
                limit_s=60 * rng.randrange(1, 90)) for at in range(10, 50)
    ]  # fmt: skip
    lasts = {j.job_id: 60.0 * rng.randrange(1, j.limit_s // 60 + 1) for j in waiting}
    lasts |= {j.job_id: NOW - j.start_s + 60.0 * rng.randrange(1, 10) for j in held}
    monkeypatch.setattr(
        SiteModel, "drawn_s", lambda _, job, draws: np.full(len(draws), lasts[job.job_id])
    )
    seen = snapshot(*held, *waiting, nodes=nodes(4, "gpu", 4))
    times = model(seen, history(("ann", "gpu", 60, 900))).times()
    asked = Queue(
        NOW, 4, np.ones(3, dtype=int), np.array([NOW - j.start_s for j in held]),
        np.array([j.limit_s for j in held]), np.array([j.num_nodes for j in waiting]),
        np.array([j.limit_s for j in waiting]), fast=False,
    )  # fmt: skip
    expected = asked.run_on_s(*(np.array([lasts[j.job_id] for j in k]) for k in (held, waiting)))
    assert [times.run_on_s[j.job_id] for j in waiting] == expected.tolist()


def test_a_long_queue_is_planned_as_a_whole_instead_of_run_on():
    past = history(*[("ann", "gpu", 60, 360)] * 30)
    busy = running(1, "gpu[1-4]", num_nodes=4, cpus=32)
    for tasks in (500, 501):
        seen = snapshot(busy, pending(2, array_pending=f"1-{tasks - 1}"), pending(3, priority=1))
        made = model(seen, past)
        whole, left = made.times(), made.times(without={"3"})
        # the queue as it is decides, so plans with and without a job are of one kind
        assert (bool(whole.run_on_s), bool(left.run_on_s)) == (tasks == 500, tasks == 500)
        if tasks == 501:
            assert whole.start_s("3") == whole.learned_s["3"]


def test_what_only_easy_would_start_now_waits_as_planned():
    # beside the head one node is left, but for three hours it would be in the next job's way
    seen = snapshot(
        running(1, "gpu[1-2]", num_nodes=2, exclusive=True),
        pending(2, num_nodes=3, exclusive=True),
        pending(3, priority=5, num_nodes=4, exclusive=True),
        pending(4, priority=1, exclusive=True, limit_s=3 * HOUR),
        nodes=nodes(4, "gpu", 4),
    )
    times = model(seen, history(*[("ann", "gpu", 60, 3500)] * 30)).times()
    assert (times.run_on_s["4"], times.limits_s["4"]) == (0, 3 * HOUR)
    assert times.start_s("4") == times.learned_s["4"] > HOUR
    assert 0 < times.start_s("2") == times.run_on_s["2"] <= HOUR
    assert live_point_s(0, 50, 40) == 0


def test_a_running_job_with_an_allocation_on_some_nodes_leaves_the_others():
    seen = snapshot(
        running(1, "gpu[1-2]", num_nodes=2, cpus=16, gpus=8),
        pending(2, gpus=8, num_nodes=2, cpus=2),
        pending(3, gpus=1, cpus=1, priority=1),
    )
    assert model(seen).times().limits_s == {"2": 0, "3": HOUR}


def test_nodes_that_are_down_hold_nothing():
    seen = snapshot(
        pending(2, num_nodes=4, cpus=4),
        pending(3, num_nodes=3, cpus=3, priority=1),
        nodes=(*nodes(3, "gpu", 4), *nodes(1, "gpu", 4, usable=False, first=4)),
    )
    assert model(seen).times().limits_s == {"2": math.inf, "3": 0}


def test_a_job_over_several_kinds_of_nodes_takes_all_of_them_together():
    mixed = (*nodes(2, "gpu", 4), NodeFacts("big1", ("gpu",), 64, 0, usable=True))
    seen = snapshot(
        pending(2, num_nodes=3, exclusive=True), pending(3, priority=1, cpus=1), nodes=mixed
    )
    times = model(seen).times().limits_s
    assert times["2"] == 0
    assert times["3"] == HOUR


def test_reservations_dependencies_begin_times_and_held_jobs():
    seen = snapshot(
        running(1, "cpu1", partitions=("cpu",), since=600),
        pending(2, partitions=("cpu",), dependency="afterok:1(unfulfilled)", cpus=1),
        pending(3, partitions=("cpu",), eligible_s=NOW + 7200, cpus=1),
        pending(4, partitions=("cpu",), num_nodes=2, cpus=16, priority=1),
        pending(5, reason="JobHeldUser"),
        pending(6, priority=0),
        reservations=(Reservation("maint", "cpu[1-2]", NOW + 3 * HOUR, NOW + 9 * HOUR),),
    )
    times = model(seen).times().limits_s
    assert times["2"] == HOUR - 600
    assert times["3"] == 7200
    assert times["4"] == 9 * HOUR
    assert not {"5", "6"} & set(times)


def test_an_array_with_a_throttle_and_a_qos_allowance():
    tasks = pending(2, array_pending="1-6%2", cpus=1)
    after = pending(3, dependency="afterany:2_*(unfulfilled)", cpus=1, priority=1)
    times = model(snapshot(tasks, after)).times().limits_s
    assert times == {"2": 0, "3": 3 * HOUR}
    limited = snapshot(
        running(1, "gpu1", cpus=1), pending(2, cpus=1), pending(3, cpus=1, user="bob"),
        limits=(RunLimit("qos/user", "normal", "jobs", 1),),
    )  # fmt: skip
    assert model(limited).times().limits_s == {"2": HOUR, "3": 0}


def test_a_singleton_waits_for_those_of_its_user_and_name():
    only = {"dependency": "singleton(unfulfilled)", "name": "chain", "cpus": 1, "num_nodes": 1}
    seen = snapshot(
        running(1, "gpu1", since=600, name="chain", cpus=1),
        running(2, "gpu2", name="chain", user="bob", cpus=1, limit_s=9 * HOUR),
        pending(3, priority=90, **only),
        pending(4, priority=80, **only),
        pending(5, priority=70, **only, user="bob"),
        pending(6, priority=60, **only | {"name": "other"}),
        pending(7, priority=99, name="chain", cpus=1),  # submitted later: nobody waits for it
    )
    expected = {"7": 0, "3": HOUR - 600, "4": 2 * HOUR - 600, "5": 9 * HOUR, "6": 0}
    assert model(seen).times().limits_s == expected


@pytest.mark.parametrize(
    ("dependency", "hours"),
    [
        ("afterok:1(unfulfilled),afterok:2(unfulfilled)", 5),
        ("afterok:1(unfulfilled)?afterok:2(unfulfilled)", 2),
        ("afterok:1(unfulfilled),afterok:3(unfulfilled)", 8),
        ("afterok:1(unfulfilled)?afterok:3(unfulfilled)", 2),
        ("afterany:3(unfulfilled)?afterany:4(unfulfilled)", 8),
        ("afterany:99(unfulfilled)?afterany:2(unfulfilled)", 5),
        ("afterany:99(unfulfilled)", 0),  # nobody knows of it
    ],
)
def test_all_or_any_of_several_jobs_are_waited_for(dependency, hours):
    seen = snapshot(
        running(1, "gpu1", limit_s=2 * HOUR),
        running(2, "gpu[2-4]", num_nodes=3, cpus=24, limit_s=5 * HOUR),
        pending(3, priority=90, num_nodes=4, cpus=32, limit_s=3 * HOUR),
        pending(4, priority=80, num_nodes=4, cpus=32, limit_s=3 * HOUR),
        pending(5, priority=70, partitions=("cpu",), dependency=dependency),
    )
    assert model(seen).times().limits_s["5"] == hours * HOUR


def test_a_queue_planned_without_some_jobs_is_that_of_a_site_without_them():
    rng = random.Random(8)
    for _ in range(30):
        waiting = [
            pending(
                at, priority=rng.randrange(1, 9), num_nodes=rng.choice((1, 1, 2, 4)),
                cpus=rng.choice((4, 8, 16)), gpus=rng.choice((0, 2)),
                limit_s=rng.choice((None, 600, 2 * HOUR)), user=rng.choice(("ann", "bob")),
                eligible_s=rng.choice((None, NOW + 900)),
                dependency=rng.choice((
                    "", "", f"afterok:{rng.randrange(1, 22)}(unfulfilled)", "singleton(unfulfilled)",
                    f"afterok:{rng.randrange(1, 22)}(unfulfilled)?afterok:2(unfulfilled)",
                )),
                name=rng.choice("xy"),
                array_pending=rng.choice(("", "", "1-6%2", "3-9")),
                partitions=rng.choice((("gpu",), ("cpu",), ("gpu", "cpu"))),
            )
            for at in range(10, 22)
        ]  # fmt: skip
        others = (running(1, "gpu[1-2]", num_nodes=2, cpus=16), running(2, "cpu1", since=900))
        limits = (RunLimit("qos/user", "normal", "jobs", 3),)
        past = history(*[("ann", "gpu", 60, 900), ("bob", "cpu", 120, 60)] * 9)
        whole = model(snapshot(*others, *waiting, limits=limits), past)
        for _ in range(3):
            gone = {job.job_id for job in rng.sample(waiting, 4)}
            left = [job for job in waiting if job.job_id not in gone]
            alone = model(snapshot(*others, *left, limits=limits), past).times()
            assert set(alone.run_on_s) == set(alone.learned_s)
            assert whole.times(without=gone) == alone
            asked = {job.job_id for job in rng.sample(left, 2)}
            some = whole.times(of=asked, without=gone)
            assert asked <= set(some.limits_s) <= set(alone.limits_s)
            assert all(alone.limits_s[name] == at for name, at in some.limits_s.items())
            assert all(alone.learned_s[name] == at for name, at in some.learned_s.items())
            assert all(alone.run_on_s[name] == at for name, at in some.run_on_s.items())


@pytest.mark.parametrize(
    ("limit", "waits"),
    [
        (RunLimit("qos", "normal", "jobs", 1), {"2", "3", "4"}),
        (RunLimit("qos/user", "normal", "cpu", 2), {"2", "4"}),
        (RunLimit("qos", "normal", "gpu", 4), {"2", "3", "4"}),
        (RunLimit("account", "a", "node", 1), {"2", "3", "4"}),
        (RunLimit("account", "b", "node", 1), set()),
        (RunLimit("user", "a", "jobs", 1, "ann"), {"2", "4"}),
        (RunLimit("user", "b", "jobs", 1, "ann"), set()),
    ],
)
def test_limits_of_qos_accounts_and_users_hold_jobs_back(limit, waits):
    seen = snapshot(
        running(1, "gpu1", cpus=1, gpus=4), pending(2, cpus=2, gpus=1),
        pending(3, cpus=1, gpus=1, user="bob"), pending(4, cpus=2, gpus=1), limits=(limit,),
    )  # fmt: skip
    times = model(seen).times().limits_s
    assert {name for name, start in times.items() if start} == waits


def limited(*limits, partition_qos="", **fields):
    """Which of three jobs wait beside one that runs, in account ``a`` but for job 4."""
    gpu = msgspec.structs.replace(PARTITIONS["gpu"], qos=partition_qos)
    seen = snapshot(
        running(1, "gpu1", cpus=1, gpus=1, **fields),
        pending(2, cpus=1, gpus=1, **fields),
        pending(3, cpus=1, gpus=1, user="bob", **fields),
        pending(4, cpus=1, gpus=1, user="eve", account="b", **fields),
        limits=limits,
        facts=msgspec.structs.replace(snapshot().facts, partitions=PARTITIONS | {"gpu": gpu}),
    )
    return {name for name, start in model(seen).times().limits_s.items() if start}


def test_the_qos_of_a_partition_limits_what_runs_in_it():
    one = RunLimit("qos/user", "part", "jobs", 1)
    assert limited(one) == set()
    assert limited(one, partition_qos="part") == {"2"}
    # one in any of several partitions is under none of them for sure
    assert limited(one, partition_qos="part", partitions=("gpu", "cpu")) == set()
    # where both bound the same, the partition's counts, but for a QOS that goes before it
    wide = RunLimit("qos/user", "normal", "jobs", 9)
    assert limited(one, wide, partition_qos="part") == {"2"}
    over = msgspec.structs.replace(wide, first=True)
    assert limited(one, over, partition_qos="part") == set()
    other = RunLimit("qos", "normal", "gpu", 2)
    assert limited(one, other, partition_qos="part") == {"2", "4"}


def test_each_account_of_a_qos_and_all_below_an_account_have_a_limit():
    assert limited(RunLimit("qos/account", "normal", "jobs", 1)) == {"2", "3"}
    below = [RunLimit("account", name, "gpu", 2, of="top") for name in "ab"]
    assert limited(*below) == {"3", "4"}


def test_limits_are_read_of_qos_and_of_accounts_with_those_above_them():
    tables = {
        "qos": "normal||4|2||||\nfast|DenyOnLimit,OverPartQOS|||8|gres/gpu=2||cpu=64\n",
        "assoc": "root||||9||\ntop|||||gres/gpu=8|root\nmid||||5||top\nlow||||||mid\n"
        "low|ann||3|||\nlow|bob|gpu|1|||\n",
    }

    class Asker:
        def question(self, argv):
            what = argv[argv.index("show") + 1]
            assert argv[-1].count(",") == tables[what].splitlines()[0].count("|")
            return Completed(tuple(argv), 0, tables[what], "")

    found = run_limits(Asker(), "c")
    assert found[:5] == (
        RunLimit("qos/user", "normal", "jobs", 4),
        RunLimit("qos/account", "normal", "jobs", 2),
        RunLimit("qos", "fast", "jobs", 8, first=True),
        RunLimit("qos/user", "fast", "gpu", 2, first=True),
        RunLimit("qos", "fast", "cpu", 64, first=True),
    )
    assert set(found[5:]) == {
        RunLimit("user", "low", "jobs", 3, "ann"),
        RunLimit("account", "top", "gpu", 8),
        RunLimit("account", "mid", "jobs", 5),
        RunLimit("account", "mid", "gpu", 8, of="top"),
        RunLimit("account", "low", "jobs", 5, of="mid"),
        RunLimit("account", "low", "gpu", 8, of="top"),
    }


def test_a_partition_of_a_higher_tier_goes_first_whatever_the_priority():
    facts = PARTITIONS | {
        "urgent": msgspec.structs.replace(PARTITIONS["gpu"], name="urgent", priority_tier=100)
    }
    seen = snapshot(
        running(1, "gpu[1-4]", since=600, num_nodes=4, cpus=32),
        pending(2, priority=900, num_nodes=4, cpus=32),
        pending(3, priority=1, num_nodes=4, cpus=32, partitions=("urgent",)),
        nodes=tuple(
            NodeFacts(f"gpu{at}", ("gpu", "urgent"), 8, 4, usable=True) for at in range(1, 5)
        ),
        facts=msgspec.structs.replace(snapshot().facts, partitions=facts),
    )
    made = model(seen)
    assert made.times().limits_s == {"3": HOUR - 600, "2": 2 * HOUR - 600}
    # so does a job that is not submitted yet, and one that is moved there
    spec = JobSpec(
        command=("true",), partition="urgent", resources=Resources(nodes=4, time_limit_s=HOUR)
    )
    job = as_queued(spec, seen)
    late = msgspec.structs.replace(job, partitions=("gpu",))
    assert model(seen, None, (job,)).times(added=job).limits_s[job.job_id] == 2 * HOUR - 600
    assert model(seen, None, (late,)).times(added=late).limits_s[late.job_id] == 3 * HOUR - 600
    moved = msgspec.structs.replace(seen.jobs[1], partitions=("urgent",))
    assert made.times(changed=moved).limits_s["2"] == HOUR - 600


def test_a_job_not_submitted_yet_comes_last():
    spec = JobSpec(
        command=("true",), resources=Resources(nodes=4, gpus_per_node=4, time_limit_s=HOUR)
    )
    seen = snapshot(pending(2, num_nodes=4, cpus=32))
    job = as_queued(spec, seen)
    assert (job.gpus, job.cpus, job.limit_s, job.partitions) == (16, 16, HOUR, ("gpu",))
    assert model(seen, None, (job,)).times(added=job).limits_s[job.job_id] == HOUR


def test_levers_are_free_changes_that_gain():
    # the head waits for all four nodes; three are idle, so what ends in time may start now
    seen = snapshot(
        running(1, "gpu1", user="bob", since=0, limit_s=2 * HOUR),
        pending(2, num_nodes=4, cpus=32, user="bob", limit_s=10 * HOUR),
        pending(3, priority=1, num_nodes=2, cpus=16, limit_s=6 * HOUR),
    )
    past = history(*[("ann", "gpu", 360, 1200)] * 30)
    made = model(seen, past)
    job = seen.jobs[2]
    point = made.times(changed=job).start_s("3")
    assert HOUR < point < 2 * HOUR  # ends are drawn, so it need not be the whole limit
    levers = {lever.change: lever for lever in _levers(made, job, point, new=False)}
    assert set(levers) == {"time", "partition"}
    assert levers["partition"].value == "cpu"
    assert levers["time"].start_s == 0
    # what was learned of the user's own jobs, with a tenth to spare, in steps of five minutes
    assert levers["time"].value in {"00:25:00", "00:30:00"}
    assert levers["time"].sooner_s == pytest.approx(point)


def test_no_shorter_limit_is_offered_on_too_little():
    seen = snapshot(running(1, "gpu[1-4]", num_nodes=4, cpus=32), pending(3, limit_s=6 * HOUR))
    made = model(seen, history(("bob", "gpu", 360, 60)))
    assert [lever.change for lever in _levers(made, seen.jobs[1], HOUR, new=False)] == ["partition"]


def test_forecasts_are_compared_with_what_came(monkeypatch, tmp_path):
    monkeypatch.setenv("HPCSCALE_STATE_DIR", str(tmp_path))
    for at in range(25):
        first = Track(snapshot(pending(at)), None)
        first.remember({str(at): 600.0})
        later = snapshot(running(at, "gpu1", since=-1200), now_s=NOW + 1200)
        second = Track(later, None)
        second.remember({})
        assert second.residuals == at + 1
    job = pending(99)
    assert second.say(job, 600.0) == pytest.approx((1200.0, 1200.0))
    assert math.isnan(second.waits.upper_s())
    (tmp_path / "forecast" / "onprem.json").write_text("{ broken")
    assert Track(later, None).residuals == 0


def test_a_forecast_knows_how_many_jobs_its_user_has_waiting(monkeypatch, tmp_path):
    monkeypatch.setenv("HPCSCALE_STATE_DIR", str(tmp_path))
    seen = snapshot(
        running(1, "gpu1"),
        pending(2, array_pending="0-9:3,20,..."),  # cut short by squeue: counted as one
        pending(3, array_pending="4-99%4"),
        pending(4),
        pending(5, user="bob"),
    )
    Track(seen, None).remember(dict.fromkeys("2345", 600.0))
    kept = msgspec.json.decode((tmp_path / "forecast" / "onprem.json").read_bytes())["asked"]
    assert {name: row[-1] for name, row in kept.items()} == {"2": 97, "3": 97, "4": 97, "5": 0}


def test_a_row_that_slurmdbd_completes_later_takes_the_place_of_the_first(monkeypatch, tmp_path):
    from hpcscale.outlook import learned

    monkeypatch.setenv("HPCSCALE_STATE_DIR", str(tmp_path))
    header = ENDED_COLUMNS.replace(",", "|")
    first = f"7|7|ann|a||Unknown|COMPLETED|{NOW - 90}|{NOW - 80}|{NOW - 20}|60||1|8|"
    whole = f"7|7|ann|a|gpu|normal|COMPLETED|{NOW - 90}|{NOW - 80}|{NOW - 20}|60|30|1|8|"
    for text, limit in ((first, None), (whole, 1800), ("", 1800)):
        monkeypatch.setattr(learned.whole, "ended", lambda *_, t=text: f"{header}\n{t}\n")
        past, notes = learned.history(snapshot(), None)
        assert notes == ()
        (known,) = past.workload.limit_s.tolist()
        assert math.isnan(known) if limit is None else known == limit


def test_history_is_asked_for_only_from_where_it_stopped(monkeypatch, tmp_path):
    from hpcscale.outlook import learned

    monkeypatch.setenv("HPCSCALE_STATE_DIR", str(tmp_path))
    header = ENDED_COLUMNS.replace(",", "|")
    asked = []

    def ended(_, since):
        asked.append(int(since.timestamp()))
        end = NOW - 7200 + 600 * len(asked)
        row = [len(asked), len(asked), "ann", "a", "gpu", "normal", "COMPLETED", end - 90, end - 80,
               end, 80, 30, 1, 8, ""]  # fmt: skip
        return f"{header}\n{'|'.join(map(str, row))}\n"

    monkeypatch.setattr(learned.whole, "ended", ended)
    known = [len(learned.history(snapshot(), None)[0].workload) for _ in range(3)]
    assert known == [1, 2, 3]
    # a month at first, then from an hour before the last end known: slurmdbd may hear of one late
    assert asked == [NOW - 30 * 86400, NOW - 6600 - HOUR, NOW - 6000 - HOUR]

    def silent(*_):
        raise UnreachableError("sacct: no answer")

    monkeypatch.setattr(learned.whole, "ended", silent)
    past, notes = learned.history(snapshot(), None)
    assert len(past.workload) == 3
    assert "what was learned before is used" in notes[0]


@pytest.mark.parametrize(("text", "step"), [("", 60), ("bf_resolution=600,bf_window=9", 600)])
def test_a_plan_goes_in_the_schedulers_own_steps(text, step):
    from msgspec.structs import replace

    seen = snapshot(running(1, "gpu[1-4]", since=7, num_nodes=4, cpus=32), pending(2))
    seen = replace(seen, facts=replace(seen.facts, config={"SchedulerParameters": text}))
    assert model(seen).times().limits_s["2"] == HOUR
    assert (HOUR % step, (HOUR - 7) % step) == (0, step - 7)


def test_demand_ahead_carries_on_what_the_nodes_cannot_do(monkeypatch):
    # two weeks in which one hour of each brings 40 GPU-hours, and no other hour any
    week = 168 * HOUR
    lines = [ENDED_COLUMNS.replace(",", "|")]
    for number in range(20):
        start = NOW - (2 - number % 2) * week
        lines.append("|".join(map(str, [
            number, number, "ann", "a", "gpu", "normal", "COMPLETED", start, start, start + HOUR,
            HOUR, 60, 1, 8, "cpu=8,node=1,gres/gpu=4",
        ])))  # fmt: skip
    seen = snapshot(
        running(1, "gpu1", since=600, gpus=4, user="bob"), pending(2, gpus=4, user="bob")
    )
    monkeypatch.setattr(ahead, "take", lambda _: seen)
    monkeypatch.setattr(ahead, "asker_of", lambda _: None)
    monkeypatch.setattr(ahead, "history", lambda *_: (parse_table(lines, "made"), ()))
    said = ahead.ahead(None, 4)
    assert (said.unit, said.capacity, said.weeks, said.trend) == ("GPU", 16, 2, 1.0)
    assert said.backlog == pytest.approx(4 * 50 / 60 + 4, abs=0.2)
    arriving = [hour.arriving for hour in said.hours]
    assert arriving[0] == pytest.approx(40)
    assert arriving[1:] == [0, 0, 0]
    # 16 of the 40 and of the backlog are done in each hour
    left = [hour.left_over for hour in said.hours]
    first = 40 + said.backlog - 16
    assert left == pytest.approx([first, first - 16, 0, 0])
    assert [hour.nodes_more for hour in said.hours] == [math.ceil(x / 4) for x in left]
    assert said.hours[1].begins.timestamp() == NOW + HOUR

    monkeypatch.setattr(ahead, "history", lambda *_: (None, ("no job has ended yet",)))
    with pytest.raises(HpcscaleError, match="no job has ended yet"):
        ahead.ahead(None, 4)
    monkeypatch.setattr(ahead, "take", lambda _: snapshot(queue_level=Level.OWN))
    with pytest.raises(HpcscaleError, match="hides other people's jobs"):
        ahead.ahead(None, 4)


def test_hidden_jobs_make_the_forecast_wider_or_unknown(monkeypatch, tmp_path):
    """Own jobs only: no plan and no p50; the bound is that of past waits alone, or there is none."""
    monkeypatch.setenv("HPCSCALE_STATE_DIR", str(tmp_path))
    waits = [60 * at for at in range(1, 101)]
    past = history(*[("ann", "gpu", 60, 360)] * 100)
    jobs = past.workload
    known = replace(past, workload=replace(jobs, start_s=jobs.submit_s + waits))
    job = pending(7)

    def said(level, reading, notes=()):
        seen = snapshot(job, queue_level=level)
        monkeypatch.setattr(answer, "take", lambda _: seen)
        monkeypatch.setattr(answer, "history", lambda *_: (reading, notes))
        monkeypatch.setattr(answer, "asker_of", lambda _: None)
        return answer.forecast_job(None, "7")

    full = said(Level.FULL, known)
    assert (full.queue_level, full.p50_s, full.p90_s) == ("full", 0, 0)
    own = said(Level.OWN, known)
    assert (own.queue_level, own.p50_s) == ("own jobs only", None)
    assert 85 * 60 < own.p90_s <= 100 * 60
    assert own.bound.startswith("of past waits alone (QBETS)")
    blind = said(Level.OWN, None)
    assert (blind.p50_s, blind.p90_s) == (None, None)
    assert blind.bound.startswith("unknown: the site hides")
