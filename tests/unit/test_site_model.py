"""The model of a site: Slurm's two passes, and what becomes of jobs that leave."""

import json
from dataclasses import replace

import numpy as np
import pytest
from click.testing import CliRunner

from hpcscale.burst.policy import Budget, BudgetOf, Policy, PolicyKind
from hpcscale.cli import main
from hpcscale.errors import UsageError
from hpcscale.forecast.naive import naive_plan
from hpcscale.forecast.problem import simple_problem
from hpcscale.history.workload import make_workload
from hpcscale.rehearsal import limits_of, outcome_of, policy_named, rehearse
from hpcscale.simulate import site_kernel
from hpcscale.simulate.overflow import Cluster, instance_of
from hpcscale.simulate.site import CloudSide, Jobs, NodeClass, SiteModel, run_site
from hpcscale.simulate.site_floor import Floor
from hpcscale.twin.lab import completed, freed
from hpcscale.twin.result import rank_correlation
from hpcscale.twin.slices import cut, simulate_slice

FOREVER = 2**40


def ints(*values):
    return np.array(values, dtype=np.int64)


def jobs_of(submit, run, limit, need, *, count=None, mask=None):
    size = len(submit)
    return Jobs(
        submit_s=ints(*submit),
        run_s=ints(*run),
        limit_s=ints(*limit),
        need=ints(*need),
        count=ints(*(count or [1] * size)),
        mask=ints(*(mask or [1] * size)),
        part=np.zeros(size, dtype=np.int64),
    )


def site(*classes, cloud=None, **settings):
    exact = {"bf_interval_s": 0, "bf_resolution_s": 1, "bf_window_s": FOREVER}
    given = exact | {"bf_first_window_s": 0} | settings
    return SiteModel(classes, cloud or CloudSide(2.5), **given)


def drawn(rng, size, units, *, exact=False):
    run = rng.integers(1, 500, size)
    limit = run if exact else run + rng.integers(0, 500, size)
    submit = np.sort(rng.integers(0, 3000, size))
    return jobs_of(submit, run, limit, rng.integers(1, units + 1, size))


def plan_of(units, running, need, limit):
    """Backfill alone, on one piece of so many units."""
    size = len(need)
    start, ptr = np.empty(size, np.int64), np.empty(size, np.int64)
    free = ints(units - sum(n for n, _ in running))
    site_kernel.schedule(
        0, free, ints(0), len(running), ints(*[e for _, e in running], 0),
        np.zeros(len(running) + 1, np.int64), ints(*[n for n, _ in running], 0),
        np.arange(size), size, need, np.ones(size, np.int64), np.ones(size, np.int64),
        np.zeros(size, np.int64), limit, False, True, 1, FOREVER, size, False, ints(0), start, ptr,
        np.empty(size + 1, np.int64),
    )  # fmt: skip
    return start


def test_backfill_is_the_naive_conservative_plan():
    rng = np.random.default_rng(1)
    for _ in range(60):
        units = int(rng.integers(2, 12))
        running, left = [], units
        while left and rng.random() < 0.8:
            taken = int(rng.integers(1, left + 1))
            running.append((taken, int(rng.integers(1, 400))))
            left -= taken
        need = rng.integers(1, units + 1, 15)
        limit = rng.integers(1, 400, 15)
        naive = naive_plan(simple_problem(0, units, running, need, limit))[0]
        assert plan_of(units, running, need, limit).tolist() == list(naive)


def picked_plainly(room, kind, mask, need, count):
    """Node by node: the fullest that holds it and is not taken, the first of equals."""
    taken = []
    for _ in range(count):
        free = [
            (int(space), n)
            for n, space in enumerate(room)
            if (mask >> int(kind[n])) & 1 and space >= need and n not in taken
        ]
        if not free:
            return None
        taken.append(min(free)[1])
    return taken


def test_nodes_taken_level_by_level_are_those_taken_one_by_one():
    rng = np.random.default_rng(3)
    filled = 0
    for _ in range(400):
        nodes = int(rng.integers(1, 12))
        room, kind = rng.integers(-1, 5, nodes), rng.integers(0, 3, nodes)
        mask, need, count = int(rng.integers(1, 8)), int(rng.integers(1, 5)), rng.integers(1, 7)
        chosen = np.full(nodes + 1, -7)
        plain = picked_plainly(room, kind, mask, need, count)
        fits = count <= nodes and site_kernel._pick(room, kind, mask, need, count, chosen)
        assert fits == (plain is not None)
        if plain is not None:
            filled += 1
            assert chosen[:count].tolist() == plain
            assert (chosen[count:] == -7).all()
    assert filled > 60


def planned_plainly(free, held, waiting, horizon=400):
    """Second by second: the first at which enough nodes hold a job for all of its limit."""
    room = np.tile(np.array(free), (horizon, 1))
    for end, node, units in held:
        room[end:, node] += units
    kind, starts = np.zeros(len(free), dtype=np.int64), []
    for need, count, limit in waiting:
        for t in range(horizon - limit):
            holds = (room[t : t + limit] >= need).all(axis=0)
            least = np.where(holds, room[t], -1)
            if holds.sum() >= count:
                nodes = picked_plainly(least, kind, 1, need, count)
                room[t : t + limit, nodes] -= need
                starts.append(t)
                break
    return starts


def test_a_plan_that_looks_at_each_node_once_is_that_of_each_second():
    rng = np.random.default_rng(5)
    later = 0
    for _ in range(150):
        nodes, units = int(rng.integers(2, 7)), int(rng.integers(1, 5))
        free, held = [units] * nodes, []
        for _ in range(int(rng.integers(0, 2 * nodes))):
            node, end = int(rng.integers(nodes)), int(rng.integers(1, 30))
            took = int(rng.integers(0, free[node] + 1))
            free[node] -= took
            held.append((end, node, took))
        waiting = [
            (int(rng.integers(1, units + 1)), int(rng.integers(1, nodes + 1)),
             int(rng.integers(1, 20)))
            for _ in range(8)
        ]  # fmt: skip
        need, count, limit = (ints(*column) for column in zip(*waiting, strict=True))
        ends, of, taken = (ints(*c) for c in zip(*(held or [(0, 0, 0)]), strict=True))
        start, ptr, zeros = ints(*[0] * 8), ints(*[0] * 8), ints(*[0] * 8)
        site_kernel.schedule(
            0, ints(*free), ints(*[0] * nodes), len(held), ends, of, taken, ints(*range(8)), 8,
            need, count, zeros + 1, zeros, limit, False, True, 1, 10**6, 8, False, ints(0),
            start, ptr, ints(*[0] * (8 * nodes)),
        )  # fmt: skip
        assert start.tolist() == planned_plainly(free, held, waiting)
        later += int((start > 0).sum())
    assert later > 300


def test_no_unit_is_taken_twice_and_every_job_ends():
    rng = np.random.default_rng(2)
    for seed in range(15):
        jobs = drawn(rng, 80, 8)
        lived = run_site(jobs, site(NodeClass("a", 1, 8)), seed=seed)
        assert (lived.start_s >= jobs.submit_s).all()
        assert (lived.end_s - lived.start_s == np.minimum(jobs.run_s, jobs.limit_s)).all()
        for t in lived.start_s:
            assert jobs.need[(lived.start_s <= t) & (t < lived.end_s)].sum() <= 8


def test_no_later_job_delays_an_earlier_one_that_keeps_its_limit():
    rng = np.random.default_rng(3)
    for _ in range(15):
        jobs = drawn(rng, 60, 6, exact=True)
        all_of_them = run_site(jobs, site(NodeClass("a", 1, 6))).start_s
        half = Jobs(**{
            name: getattr(jobs, name)[:30]
            for name in ("submit_s", "run_s", "limit_s", "need", "count", "mask", "part")
        })  # fmt: skip
        assert run_site(half, site(NodeClass("a", 1, 6))).start_s.tolist() == (
            all_of_them[:30].tolist()
        )


def test_backfill_passes_the_first_that_does_not_fit_only_within_its_limit():
    # 4 units; 3 busy until 100; the head wants 4; a short job goes first, a long one does not
    jobs = jobs_of([0, 1, 2, 3], [100, 50, 90, 200], [100, 50, 90, 200], [3, 4, 1, 1])
    assert run_site(jobs, site(NodeClass("a", 1, 4))).start_s.tolist() == [0, 100, 2, 150]


def test_backfill_keeps_whole_nodes_for_a_job_that_waits():
    # 4 GPUs, 3 of them busy until 100; 2 are wanted then, and 1 now and for long
    jobs = jobs_of([0, 1, 2], [100, 50, 200], [100, 50, 200], [3, 2, 1])
    node = NodeClass("a", 1, 4)
    assert run_site(jobs, site(node)).start_s.tolist() == [0, 100, 100]
    assert run_site(jobs, site(node, bf_whole_nodes=False)).start_s.tolist() == [0, 100, 2]
    # two nodes: only that of the plan is kept
    jobs = jobs_of([0, 0, 1, 2], [100, 100, 50, 200], [100, 200, 50, 200], [3, 3, 2, 1])
    assert run_site(jobs, site(NodeClass("a", 2, 4))).start_s.tolist() == [0, 0, 100, 2]


def test_backfill_comes_at_its_interval_and_the_main_pass_at_once():
    # backfill has looked at 1, a second after the first change, and then at 31, 61 ...
    jobs = jobs_of([0, 3, 5, 40], [100, 50, 20, 5], [100, 50, 20, 5], [2, 4, 1, 1])
    model = site(NodeClass("a", 1, 4), bf_interval_s=30)
    assert run_site(jobs, model).start_s.tolist() == [0, 100, 31, 61]
    # it comes later each time if it lasts
    late = run_site(jobs, replace(model, bf_late_s=3), seed=1).start_s
    assert 31 <= late[2] <= 34
    assert late[2] + 30 <= late[3] <= late[2] + 33


def as_slurm(*classes, **settings):
    return site(*classes, bf_first_window_s=30, bf_window_s=10**6, **settings)


def test_ends_far_ahead_are_taken_together_as_slurm_does():
    """slurm.conf(5) bf_window_linear: the window doubles, so a plan comes late.

    What waits fits when the job that may last until 1200 has ended, but the one until 1500 is in the
    same window: so its place begins there, and what lasts until 1450 does not delay it.
    """
    run = [100, 300, 1200, 1500, 50, 1400]
    jobs = jobs_of([0, 0, 0, 0, 1, 2], run, run, [1, 1, 1, 1, 1, 1], count=[1, 1, 1, 1, 4, 1])
    node = NodeClass("a", 5, 1)
    assert run_site(jobs, site(node)).start_s.tolist()[4:] == [1200, 1250]
    assert run_site(jobs, as_slurm(node)).start_s.tolist()[4:] == [1402, 2]


def test_nodes_are_the_shortest_row_that_holds_a_job():
    # 0 to 1 and 3 are free when the third comes: it takes 3, and leaves the row of two to the next
    run = [50, 100, 500, 500, 500]
    jobs = jobs_of([0, 0, 0, 60, 61], run, run, [1] * 5, count=[2, 1, 1, 1, 2])
    model = as_slurm(NodeClass("a", 5, 1))
    floor = Floor(jobs, model)
    assert floor.start(0, [0, 1, 2], backfill=True) == [0, 1, 2]
    assert [floor.pieces[j] for j in (0, 1, 2)] == [[0, 1], [2], [3]]
    floor.release(0)
    assert floor.start(60, [3, 4], backfill=True) == [3, 4]
    assert [floor.pieces[j] for j in (3, 4)] == [[4], [0, 1]]
    # and what no row holds takes the longest one first
    floor.release(1)
    floor.release(3)
    floor.release(4)
    wide = jobs_of([0], [10], [10], [1], count=[4])
    other = Floor(wide, model)
    other.free[3] = 0
    other.start(0, [0], backfill=False)
    assert other.pieces[0] == [0, 1, 2, 4]


def test_a_node_in_repair_is_in_no_plan():
    jobs = jobs_of([0, 0], [10, 10], [10, 10], [1, 1], count=[2, 1])
    floor = Floor(jobs, as_slurm(NodeClass("a", 2, 1)))
    floor.repair(0, 1000)
    # the first cannot be planned, so it holds no place against the second
    assert floor.start(5, [0, 1], backfill=True) == [1]
    assert floor.pieces[1] == [1]


@pytest.mark.parametrize("units", [1, 4])
def test_slurms_passes_take_no_unit_twice(units):
    for seed in range(20):
        rng = np.random.default_rng(seed)
        size = 60
        run = rng.integers(1, 900, size)
        limit = run + rng.integers(0, 600, size)
        submit = np.sort(rng.integers(0, 3000, size))
        need = rng.integers(1, units + 1, size)
        count = rng.integers(1, 5, size)
        jobs = jobs_of(submit, run, limit, need, count=count.tolist())
        settings = {"bf_interval_s": 30, "bf_resolution_s": 60, "failures_per_node_h": 0.2}
        lived = run_site(jobs, as_slurm(NodeClass("a", 6, units), **settings), seed=seed)
        assert (lived.end_s >= lived.start_s + run * (lived.requeues == 0)).all()
        for now in lived.start_s:
            at = (lived.start_s <= now) & (now < lived.end_s)
            assert (need * count)[at].sum() <= 6 * units


def test_jobs_wait_for_nodes_of_their_class():
    jobs = jobs_of([0, 0, 0], [10] * 3, [10] * 3, [2, 2, 2], mask=[1, 1, 2])
    started = run_site(jobs, site(NodeClass("a", 1, 2), NodeClass("b", 1, 2))).start_s
    assert started.tolist() == [0, 10, 0]
    with pytest.raises(UsageError):
        run_site(jobs_of([0], [1], [1], [3]), site(NodeClass("a", 4, 2)))


def test_a_cloud_that_is_late_or_full_gives_jobs_back():
    jobs = jobs_of([0, 0], [100, 50], [100, 50], [1, 1])
    small = NodeClass("a", 1, 1)

    def all_leave(view):
        return [j for j in view.waiting if view.now_s == 0]

    late = site(small, cloud=CloudSide(3600, boot_p50_s=100, boot_p95_s=100, boot_timeout_s=20))
    lived = run_site(jobs, late, all_leave, every_s=5)
    assert lived.events == {"launches": 1, "boots timed out": 1}
    # the second one comes back at 20 and waits for the first; the boot in vain was paid
    assert lived.start_s.tolist() == [0, 100]
    assert lived.usd.tolist() == [0, 20]
    full = site(small, cloud=CloudSide(3600, no_capacity=1.0, told_after_s=7))
    assert run_site(jobs, full, all_leave, every_s=5).events == {"launches": 1, "no capacity": 1}
    there = site(small, cloud=CloudSide(3600, boot_p50_s=10, boot_p95_s=10, staging_s=5))
    lived = run_site(jobs, there, all_leave, every_s=5)
    assert lived.start_s.tolist() == [0, 15]
    assert lived.left.tolist() == [False, True]
    assert lived.usd.tolist() == [0, 60]


def test_what_is_taken_back_goes_on_from_its_checkpoint_and_not_for_ever():
    jobs = jobs_of([0, 0], [10, 36000], [10, 36000], [1, 1])
    cloud = CloudSide(1, interrupted_per_h=0.9, checkpoint_s=60, tries=3)
    lived = run_site(jobs, site(NodeClass("a", 1, 1), cloud=cloud), lambda v: v.waiting, seed=4)
    assert lived.events["interrupted"] == 3
    assert lived.requeues.tolist() == [0, 3]
    assert 36000 <= lived.end_s[1] <= 36000 + 3 * 60 + 3
    assert lived.usd[1] == pytest.approx((lived.end_s[1] - lived.start_s[1]) / 3600, abs=0.01)


def test_a_failed_node_requeues_its_jobs():
    jobs = jobs_of([0] * 4, [5000] * 4, [5000] * 4, [2] * 4)
    model = site(NodeClass("a", 4, 2), failures_per_node_h=0.2, repair_s=600)
    lived = run_site(jobs, model, seed=1)
    assert lived.events["nodes failed"] >= lived.requeues.sum() > 0
    assert (lived.end_s - lived.start_s == 5000).all()


# ---- the live decide in it


@pytest.fixture(scope="module")
def instance():
    rng = np.random.default_rng(5)
    size = 200
    work = make_workload(
        submit_s=np.cumsum(rng.exponential(220, size)),
        runtime_s=rng.exponential(3600, size) + 60,
        gpus=rng.choice([1, 2, 4, 8], size, p=[0.7, 0.15, 0.1, 0.05]),
    )
    return instance_of(work, Cluster(4, 8))


def lived_under(instance, policy, seed=0, **cloud):
    model = SiteModel((NodeClass("gpu", 4, 8),), CloudSide(2.5, **cloud))
    limit = limits_of(np.full(len(instance), np.nan), instance.run_h * 3600, seed=0)
    return rehearse(instance, policy, model, limit, seed=seed)


def test_the_live_policies_differ_as_they_must(instance):
    made = {
        name: outcome_of(instance, lived_under(instance, policy_named(name, instance)))
        for name in ("never", "no-wait", "compute-wait", "value")
    }
    assert not made["never"].left.any()
    waits = [made[n].mean_wait_h for n in ("no-wait", "value", "never")]
    assert waits == sorted(waits)
    costs = [made[n].cloud_cost_usd for n in ("never", "compute-wait", "no-wait")]
    assert costs == sorted(costs)


def test_feasible_deadlines_are_met_while_boots_keep_their_bound(instance):
    policy = policy_named("deadline", instance)
    # a spread of 0: every boot takes what is believed
    made = lived_under(instance, policy, boot_p50_s=300, boot_p95_s=300, staging_s=60)
    assert made.feasible.sum() > 20
    assert made.met[made.feasible].all()


@pytest.mark.parametrize("seed", range(4))
def test_no_budget_is_exceeded_and_no_job_costs_more_than_was_reserved(instance, seed):
    policy = Policy(
        from_site="x", to=("y",), kind=PolicyKind.NO_WAIT, cron_interval_s=60,
        max_moves_per_run=1000, budgets=(Budget(of=BudgetOf.ALL, usd=150),),
    )  # fmt: skip
    made = lived_under(
        instance, policy, seed, boot_p50_s=200, boot_p95_s=900, no_capacity=0.1,
        interrupted_per_h=0.3,
    )  # fmt: skip
    assert made.most_over_usd == 0
    assert 0 < made.lived.usd.sum() <= 150


def test_the_same_seed_gives_the_same_lives(instance):
    policy = policy_named("value", instance)
    cloud = {"boot_p50_s": 200, "boot_p95_s": 900, "no_capacity": 0.1, "interrupted_per_h": 0.3}
    one, two = (lived_under(instance, policy, 7, **cloud).lived for _ in range(2))
    assert one.usd.tolist() == two.usd.tolist()
    assert one.end_s.tolist() == two.end_s.tolist()


def test_runtimes_of_the_future_change_no_decision_of_today(instance):
    """Jobs that have not ended by noon run twice as long: what left before is the same."""
    policy = policy_named("value", instance)
    model = SiteModel((NodeClass("gpu", 4, 8),), CloudSide(2.5))
    limit = limits_of(np.full(len(instance), np.nan), instance.run_h * 3600, seed=0) * 4
    one = rehearse(instance, policy, model, limit).lived
    noon = float(np.median(instance.arrival_h - instance.arrival_h[0])) * 3600
    longer = np.where(one.end_s > noon, 2 * instance.run_h, instance.run_h)
    other = replace(instance, run_h=longer)
    two = rehearse(other, policy, model, limit).lived
    before = one.start_s < noon
    assert before.sum() > 50
    assert one.start_s[before].tolist() == two.start_s[before].tolist()
    assert one.left[before].tolist() == two.left[before].tolist()


# ---- the command


@pytest.fixture
def history(tmp_path):
    rng = np.random.default_rng(6)
    path = tmp_path / "jobs.csv"
    rows = zip(
        np.cumsum(rng.exponential(1 / 16, 80)), rng.exponential(1, 80),
        rng.choice([1, 2, 8], 80), strict=True,
    )  # fmt: skip
    path.write_text("arrival_h,runtime_h,gpus\n" + "\n".join(f"{a},{r},{g}" for a, r, g in rows))
    return path


def asked(history, *args):
    size = ("--nodes", "4", "--gpus-per-node", "8", "--cloud-gpu-hour-usd", "2.50")
    return CliRunner().invoke(
        main, ["burst", "simulate", "--history", str(history), *size, *map(str, args)]
    )


def test_the_command_judges_with_the_live_decide(history, tmp_path):
    out = asked(
        history, "--model", "slurm", "--policy", "no-wait", "--policy", "value", "--boot", "2m",
        "--boot-p95", "5m", "--no-capacity", "0.1", "--equal-wait", "constant-wait",
        "--html", tmp_path / "r.html", "--json",
    )  # fmt: skip
    assert out.exit_code == 0, out.output
    data = json.loads(out.stdout)["data"]
    rows = {row["policy"]: row for row in data["policies"]}
    assert data["model"] == "slurm"
    assert rows["no-wait"]["events"]["launches"] > 0
    assert rows["value"]["reservation_exceeded_usd"] == 0
    assert rows["value"]["mean_wait_h"] <= data["equal_wait_h"] * 1.001
    assert "Money counts boots" in (tmp_path / "r.html").read_text()


@pytest.mark.parametrize(
    ("args", "hint"),
    [
        (["--boot", "2m"], "--model slurm"),
        (["--model", "slurm", "--boot", "5m", "--boot-p95", "1m"], "--boot 3m"),
        (["--model", "slurm", "--boot", "soon"], "--boot 5m"),
        (["--model", "slurm", "--node-class", "gpu"], "gpu=4x8"),
        (["--model", "slurm", "--policy", "valeu"], "value"),
    ],
)
def test_what_is_wrong_is_named(history, args, hint):
    result = asked(history, *args)
    assert isinstance(result.exception, UsageError)
    assert hint in (result.exception.hint or "")


# ---- the slice that real Slurm is compared on


def test_a_slice_keeps_order_limits_and_its_length():
    rng = np.random.default_rng(8)
    work = make_workload(
        submit_s=np.cumsum(rng.exponential(600, 400)),
        runtime_s=rng.exponential(7200, 400) + 10,
        limit_s=np.full(400, 43200.0),
        nodes=rng.integers(1, 900, 400),
    )
    part = cut(work, 1000, 1, jobs=50, span_s=3600, least_run_s=60)
    assert len(part) == 50
    assert part.submit_s[0] == 0
    assert part.submit_s[-1] == 3600
    assert (part.nodes >= 1).all()
    assert part.nodes.max() <= part.cluster_nodes == 64
    assert (part.limit_s % 60 == 0).all()
    assert (part.run_s <= part.limit_s).all()
    assert part.run_s.min() >= 60
    start = simulate_slice(part, part.submit_s, draws=3)
    assert start.shape == (3, 50)
    assert (start >= part.submit_s).all()
    other = cut(work, 1000, 1, jobs=50, span_s=3600, least_run_s=60, first=120)
    assert other.first_row == 120
    assert cut(work, 1000, 1, jobs=50, span_s=3600, least_run_s=60, first=999).first_row == 350
    with pytest.raises(UsageError):
        cut(work, 1000, 1, jobs=500, span_s=3600, least_run_s=60)


def test_rank_correlation():
    assert rank_correlation(np.array([1.0, 2, 3, 4]), np.array([10.0, 20, 30, 40])) == 1
    assert rank_correlation(np.array([1.0, 2, 3, 4]), np.array([4.0, 3, 2, 1])) == -1
    tied = rank_correlation(np.array([1.0, 1, 2, 3]), np.array([1.0, 2, 3, 3]))
    assert tied == pytest.approx(8 / 9)


def test_a_job_has_left_when_its_last_node_has_said_so():
    line = (
        "JobId=7 Name=twin0 JobState=COMPLETED StartTime=2026-01-02T03:04:05 "
        "EndTime=2026-01-02T03:05:05 NodeList=n[1-2] SubmitTime=2026-01-02T03:04:00 \n"
    )
    rows = completed(line + line.replace("=7", "=8").replace("[1-2]", "3"))
    log = """\
[2026-01-02T03:04:06.000] debug2: node_did_resp n1
[2026-01-02T03:05:05.100] _job_complete: JobId=7 done
[2026-01-02T03:05:05.100] _job_complete: JobId=8 done
[2026-01-02T03:05:06.000] debug2: node_did_resp n2
[2026-01-02T03:05:09.500] debug2: node_did_resp n1
[2026-01-02T03:05:19.500] debug2: node_did_resp n1
"""
    free = freed(log, rows)
    assert free["7"] - rows["7"].end_s == 4.5
    assert free["8"] == rows["8"].end_s


def test_a_start_beyond_the_window_of_backfill_is_far_and_not_unknown():
    work = make_workload(
        submit_s=[0, 60], runtime_s=[60 * 3600, 600], nodes=[1, 1], gpus=[8, 8],
        limit_s=[60 * 3600, 600],
    )  # fmt: skip
    instance = instance_of(work, Cluster(1, 8), deadlines=0)
    limit = limits_of(work.limit_s, instance.run_h * 3600, seed=0)
    model = SiteModel((NodeClass("all", 1, 8),), CloudSide(2.5))
    assert model.bf_window_s < 60 * 3600
    lived = rehearse(instance, policy_named("value", instance), model, limit).lived
    # it would wait for 60 h, and leaves at the next look
    assert lived.left.tolist() == [False, True]
    assert lived.start_s[1] - 60 < 3600
