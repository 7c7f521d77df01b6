"""Cost: exact sums, whole nodes where they are rented, and unknown when unknown."""

import datetime as dt
from decimal import Decimal

import pytest

from hpcscale.cost import estimate, held_s, spent_usd
from hpcscale.site import BurstTarget, Fabric, Partition, Price, Site
from hpcscale.spec import JobSpec, Resources

DAY = dt.date(2026, 1, 1)
NOW = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)


def site(price="2.50", **fields):
    return Site(
        name="s",
        as_of=DAY,
        fabric=Fabric(kind="loopback"),
        price=None if price is None else Price(gpu_hour_usd=Decimal(price), source="x", as_of=DAY),
        **fields,
    )


def job(array=None, partition=None, **resources):
    resources.setdefault("nodes", 2)
    resources.setdefault("gpus_per_node", 4)
    resources.setdefault("time_limit_s", 3600)
    return JobSpec(
        command=("x",), array=array, partition=partition, resources=Resources(**resources)
    )


def test_nodes_times_gpus_times_limit_times_price():
    cost = estimate(job(), site())
    assert cost.usd == Decimal("20.00")
    assert str(cost) == "at most $20.00 (2 nodes x 4 GPUs x 1 h x $2.50/GPU-hour)"


def test_a_fraction_of_a_cent_is_rounded_up():
    assert estimate(job(time_limit_s=1), site()).usd == Decimal("0.01")


def test_rented_nodes_are_paid_whole_and_from_their_boot():
    rented = site(gpus_per_node=8, burst=BurstTarget(target=True, boot_allowance_s=360))
    cost = estimate(job(gpus_per_node=1), rented)
    assert cost.usd == Decimal("44.00")  # 16 GPUs x 1.1 h x 2.50
    assert "0.1 h for boot" in cost.why


def test_an_exclusive_job_pays_its_whole_nodes():
    assert estimate(job(gpus_per_node=1, exclusive=True), site(gpus_per_node=8)).gpus == 16


def test_every_element_of_an_array_is_paid():
    assert estimate(job(array="0-9%2"), site()).usd == Decimal("200.00")


def test_a_partition_may_have_its_own_price_and_limit():
    with_partition = site(
        partitions={"big": Partition(gpu_hour_usd=Decimal(4), max_time="2:00:00")}
    )
    cost = estimate(job(partition="big", time_limit_s=None), with_partition)
    assert cost.usd == Decimal("64.00")


@pytest.mark.parametrize(
    ("spec", "where", "word"),
    [
        (job(), site(price=None), "no price"),
        (job(), site(price="0"), "no price"),  # 0 in a catalog means unknown
        (job(time_limit_s=None), site(), "no time limit"),
        (job(gpus_per_node=0), site(), "no GPUs"),
    ],
)
def test_what_is_unknown_says_unknown(spec, where, word):
    cost = estimate(spec, where)
    assert cost.usd is None
    assert str(cost).startswith("unknown: ")
    assert word in cost.why


def test_what_was_spent():
    assert spent_usd(8, 3600, Decimal("2.50")) == Decimal("20.00")
    assert spent_usd(8, -5, Decimal("2.50")) == Decimal("0.00")
    assert spent_usd(8, 3600, None) is None
    assert spent_usd(0, 3600, Decimal(1)) is None


def test_nodes_are_held_from_start_to_end():
    hour = dt.timedelta(hours=1)
    assert held_s(None, None, NOW) == 0
    assert held_s(NOW, None, NOW + hour) == 3600
    assert held_s(NOW, NOW + hour, NOW + 5 * hour) == 3600
    assert held_s(NOW + hour, None, NOW) == 0, "an expected start costs nothing"
    late = "this machine's clock is hours behind the site's: what was held costs all the same"
    assert held_s(NOW + 4 * hour, NOW + 5 * hour, NOW) == 3600, late
