"""What a job costs that moves into a cloud partition: each start at the price of where it ran."""

import datetime as dt
from decimal import Decimal

import msgspec
import pytest
from partition_sites import WITHIN, Partitions
from render_cases import CLOUD_PARTITION, job
from render_cases import site as make_site

from hpcscale.burst.catalog import Offer
from hpcscale.burst.charges import charges
from hpcscale.burst.moves import Step
from hpcscale.burst.shapes import shapes
from hpcscale.cost import spent_usd
from hpcscale.errors import BurstRefusedError
from hpcscale.ledger import Ledger, utc_now
from hpcscale.observe import observe
from hpcscale.site import BurstTarget, Fabric, Partition
from hpcscale.slurm.types import JobState
from hpcscale.spec import Checkpoint

NOW = dt.datetime(2026, 5, 1, 12, tzinfo=dt.UTC)


@pytest.fixture
def sites(tmp_path):
    sites = Partitions(tmp_path)
    sites.fill()
    yield sites
    sites.ledger.close()


def test_what_the_floor_costs_says_nothing_of_a_rented_partition():
    site = make_site(
        "hpc",
        price=None,
        partitions={"cloud": Partition(fabric=Fabric(kind="efa"), burst=BurstTarget(target=True))},
    )
    assert site.gpu_hour_usd("cloud") is None


def test_a_partition_may_be_rented_by_a_row_of_the_catalog():
    rented = CLOUD_PARTITION.partitions["cloud"]
    site = msgspec.structs.replace(
        CLOUD_PARTITION,
        partitions={"cloud": msgspec.structs.replace(rented, offer="aws/us-east-1/p5.48xlarge")},
    )
    offer = Offer(
        provider="aws", region="us-east-1", instance="p5.48xlarge", gpus=8, gpu_type="h100",
        on_demand_usd=Decimal(80), source="a page", as_of=NOW.date(),
    )  # fmt: skip
    catalog = {offer.name: offer}
    target = site.in_partition("cloud")
    found, why_not = shapes(job("x", gpus=1, partition="cloud"), target, catalog, NOW.date())
    assert why_not == []
    # the whole node of eight at ten dollars each, ten minutes and five of boot
    assert found[0].cost.usd == Decimal("20.00")


def test_a_requeue_may_cost_once_more_and_a_long_run_does_not_hold_up_others(sites):
    sites.policy = msgspec.structs.replace(WITHIN, max_moves_per_run=1)
    saved = str(sites.project / "ckpt")
    first = sites.submit(checkpoint=Checkpoint(dir=saved, max_restarts=2))
    done = sites.tick()
    # each of three starts may take four minutes longer to boot than expected, of eight GPUs
    cost = done.plan.decisions[0].cost_usd
    assert done.plan.decisions[0].worst_usd == 3 * (cost + Decimal("3.67"))
    second = sites.submit()
    sites.tick()
    assert sites.partition(first) == sites.partition(second) == "cloud"


def test_undo_puts_the_old_partition_and_the_old_price_back(sites):
    sites.busy_cloud()
    waiting = sites.submit()
    sites.tick()
    assert sites.partition(waiting) == "cloud"
    move = sites.handover().undo(sites.move(waiting))
    assert (move.step, move.message, move.target) == (Step.FAILED, "taken back by its user", None)
    assert sites.partition(waiting) == "gpu"
    assert sites.attempt(waiting).gpu_hour_usd == Decimal("2.10")
    assert charges(sites.ledger) == []
    sites.tick()
    assert sites.partition(waiting) == "gpu", "it rests"
    with pytest.raises(BurstRefusedError, match="nothing to undo"):
        sites.handover().undo(move)


def test_a_controller_that_forgets_that_it_was_put_back_is_paid(sites):
    """It waits in the cloud partition again, though its move has failed, and may start there."""
    sites.busy_cloud()
    waiting = sites.submit()
    sites.tick()
    sites.both(10)
    sites.handover().undo(sites.move(waiting))
    assert sites.attempt(waiting).gpu_hour_usd == Decimal("2.10")
    sites.onprem.crash()
    assert sites.partition(waiting) == "cloud"
    sites.tick()
    assert sites.attempt(waiting).gpu_hour_usd == Decimal("6.88")
    sites.connections["lab-onprem"].client.update(waiting.ref.job_id, {"Partition": "gpu"})
    sites.tick()
    assert sites.attempt(waiting).gpu_hour_usd == Decimal("2.10")


@pytest.mark.parametrize("it", ["waits", "has ended"])
def test_it_is_paid_though_our_clock_has_jumped_past_the_time_of_watching(sites, monkeypatch, it):
    sites.busy_cloud()
    waiting = sites.submit()
    sites.tick()
    sites.both(10)
    sites.handover().undo(sites.move(waiting))
    sites.onprem.crash()
    if it == "has ended":
        fake = sites.onprem.jobs[waiting.ref.job_id.base]
        now = int(sites.onprem.now())
        fake.state, fake.started, fake.ends = "COMPLETED", now - 8, now
        observe(sites.ledger, sites)
        assert sites.attempt(waiting).ended
    later = utc_now() + dt.timedelta(hours=1)
    monkeypatch.setattr("hpcscale.burst.follow.utc_now", lambda: later)
    sites.tick()
    assert sites.attempt(waiting).gpu_hour_usd == Decimal("6.88")
    sites.both(1000)
    if it == "has ended":
        assert not sites.handover()._is_watched(sites.move(waiting), later), "nor for ever"


def test_one_that_ran_and_ended_where_its_user_put_it_back_is_not_counted_at_the_clouds_price(
    sites,
):
    sites.busy_cloud()
    waiting = sites.submit()
    sites.tick()
    client = sites.connections["lab-onprem"].client
    client.update(waiting.ref.job_id, {"Partition": "gpu"})
    sites.onprem.run(["scancel", "1"])
    sites.both(80)
    assert client.show(waiting.ref.job_id).state is JobState.COMPLETED
    sites.tick()
    assert sites.move(waiting).step is Step.WITHDRAWN
    # 8 GPUs for its minute
    assert sites.attempt(waiting).cost_usd == Decimal("0.28")


def test_one_that_ran_there_and_is_put_back_pays_each_start_at_its_own_price(sites, monkeypatch):
    waiting = sites.submit()
    sites.tick()
    sites.both(36)
    sites.tick()
    monkeypatch.setattr("hpcscale.burst.shift.KEPT_S", 0.0)
    client = sites.connections["lab-onprem"].client
    assert client.requeue(waiting.ref.job_id)
    client.update(waiting.ref.job_id, {"Partition": "gpu"})
    sites.tick()
    assert sites.move(waiting).step is Step.FAILED
    attempt = sites.attempt(waiting)
    assert attempt.gpu_hour_usd == Decimal("2.10")
    there_s = attempt.earlier_s
    assert there_s >= 30
    there = spent_usd(8, there_s, Decimal("6.88"))
    here = spent_usd(8, 60, Decimal("2.10"))
    assert sites.ledger.cost_of(attempt, there_s + 60) == there + here


def test_what_another_ledger_moved_is_counted_at_its_price_when_its_run_is_cancelled(sites):
    waiting = sites.submit()

    def killed(*_):
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Ledger, "set_terms", killed)
        with pytest.raises(KeyboardInterrupt):
            sites.tick()
    assert sites.move(waiting).old_partition == "gpu"
    sites.connections["lab-onprem"].client.update(waiting.ref.job_id, {"Partition": "cloud"})
    sites.both(20)
    assert sites.handover().cancel(sites.move(waiting)).step is Step.DONE
    assert sites.attempt(waiting).gpu_hour_usd == Decimal("6.88")
