"""Prices and shapes from the catalog: the cheapest that holds the job, and no promise on old ones."""

import datetime as dt
from decimal import Decimal

import msgspec
import pytest
from deciding import decided, offered_at

from hpcscale.burst.catalog import Offer
from hpcscale.burst.plan import Action, Candidate
from hpcscale.burst.policy import Budget, BudgetOf, Policy, PolicyKind
from hpcscale.burst.shapes import as_rented, shapes, with_catalog
from hpcscale.site import load_site
from hpcscale.slurm.types import JobState
from hpcscale.spec import BurstMode, JobSpec, Resources

TODAY = dt.date(2026, 11, 22)
NOW = dt.datetime(2026, 11, 22, 12, tzinfo=dt.UTC)


def row(instance, gpus, usd, **kw):
    price = None if usd is None else Decimal(usd)
    values = {"mem_gb": 64.0, "cpus": 16, "source": "made up", "as_of": TODAY, **kw}
    return Offer(
        provider="x", region="r", instance=instance, gpus=gpus, on_demand_usd=price, **values
    )


def catalog(*rows):
    return {offer.name: offer for offer in rows}


def cloud(**partitions):
    """lab-cloud with a partition for each row that is named."""
    site = load_site("lab-cloud").site
    gpu = site.partitions["gpu"]
    parts = {n: msgspec.structs.replace(gpu, offer=f"x/r/{r}") for n, r in partitions.items()}
    return msgspec.structs.replace(site, partitions=parts, default_partition=next(iter(parts)))


def spec(gpus=4, mem_gb=None, **kw):
    return JobSpec(
        name="j", command=("true",),
        resources=Resources(nodes=1, gpus_per_node=gpus, mem_gb=mem_gb, time_limit_s=3600), **kw,
    )  # fmt: skip


ROWS = catalog(row("small", 1, 1), row("big", 8, 16), row("dear", 4, 20), row("unknown", 4, None))
SITE = cloud(a="dear", b="small", c="unknown", d="big")


def test_the_cheapest_shape_that_holds_the_job_comes_first_and_unknown_prices_last():
    found, why_not = shapes(spec(), SITE, ROWS, TODAY)
    assert [s.partition for s in found] == ["d", "a", "c"]
    # a whole instance of 8 GPUs is paid for, and 30 s of boot
    assert found[0].cost.usd == Decimal("16.14")
    assert found[2].cost.usd is None
    assert why_not == ["partition b: small has 1 GPUs, the job wants 4"]
    found, _ = shapes(spec(gpus=1), SITE, ROWS, TODAY)
    assert found[0].partition == "b"


def test_memory_and_cpus_must_be_enough_and_known():
    rows = catalog(row("big", 8, 16, mem_gb=None), row("dear", 4, 20, mem_gb=99.0))
    found, why_not = shapes(spec(mem_gb=80), cloud(a="big", b="dear"), rows, TODAY)
    assert [s.partition for s in found] == ["b"]
    assert why_not == ["partition a: the memory of big is not known, the job wants 80 GB"]
    many = msgspec.structs.replace(
        spec(), resources=Resources(nodes=1, gpus_per_node=4, tasks_per_node=4, cpus_per_task=8)
    )
    assert "has 16 CPUs, the job wants 32" in shapes(many, SITE, ROWS, TODAY)[1][-1]


def test_another_kind_of_gpu_is_said_and_one_with_less_memory_does_not_hold_the_job():
    rows = catalog(
        row("t4", 4, 3, gpu_type="t4", gpu_mem_gb=16.0),
        row("h200", 4, 30, gpu_type="h200", gpu_mem_gb=141.0),
        row("h100", 4, 40, gpu_type="h100", gpu_mem_gb=80.0),
        row("unsaid", 4, 50),
    )
    site = cloud(a="t4", b="h200", c="h100", d="unsaid")
    found, why_not = shapes(spec(), site, rows, TODAY, gpu_type="H100")
    assert [(s.partition, s.note) for s in found] == [
        ("b", "on h200 GPUs, where it waits for H100"), ("c", ""), ("d", "")
    ]  # fmt: skip
    assert why_not == ["partition a: t4 has t4 GPUs of 16 GB, the job waits for H100 of 80 GB"]
    # nothing is held against what is not known, nor against a job without GPUs
    assert len(shapes(spec(), site, rows, TODAY)[0]) == 4
    assert len(shapes(spec(), site, rows, TODAY, gpu_type="p6000")[0]) == 4
    assert len(shapes(spec(gpus=0), site, rows, TODAY, gpu_type="h100")[0]) == 4
    policy = Policy(from_site="o", to=("lab-cloud",))
    (option, *_) = offered_at(spec(), 3600, site, policy, rows, TODAY, gpu_type="h100")
    assert (option.partition, "on h200 GPUs" in option.cost_why) == ("b", True)


def test_the_kind_of_gpu_that_a_job_waits_for_is_its_partitions():
    site = load_site("lab-onprem").site
    name, gpu = next((n, p) for n, p in site.partitions.items() if not p.burst.target)
    old = msgspec.structs.replace(gpu, gpu_type="t4")
    site = msgspec.structs.replace(
        site, gpu_type="h100", partitions={name: gpu, "old": old}, default_partition="old"
    )
    assert site.partition_gpu_type("old") == "t4"
    assert site.partition_gpu_type(None) == "t4"
    assert site.partition_gpu_type("elsewhere") == "h100"
    assert site.partition_gpu_type(f"{name},old") is None


def test_a_row_that_no_file_has_is_no_shape():
    found, why_not = shapes(spec(), cloud(a="nowhere"), ROWS, TODAY)
    assert (found, why_not) == ([], ["partition a rents x/r/nowhere, which no catalog file has"])


def test_boot_and_interruptions_are_the_rows():
    rows = catalog(row("big", 8, 16, boot_p50_s=200, boot_p95_s=600, interruption_per_hour=0.05))
    site = cloud(a="big")
    made = offered_at(spec(), 3600, site, Policy(from_site="o", to=("lab-cloud",)), rows, TODAY)[0]
    assert (made.boot_s, made.offer, made.interruption_per_hour) == (600, "x/r/big", 0.05)
    assert made.partition == "a"
    # an hour, the gate's lease of twice 5 min, 5 s of staging and the boot at $16
    assert made.cost_usd == Decimal("21.36")
    assert made.cost_why.startswith("x/r/big: ")


def test_a_price_that_is_missing_is_unknown_though_the_profile_has_one():
    site = with_catalog(cloud(c="unknown"), ROWS)
    assert site.price is not None
    assert site.gpu_hour_usd("c") is None
    assert with_catalog(cloud(a="dear"), ROWS).gpu_hour_usd("a") == Decimal(5)


@pytest.mark.parametrize(
    ("age", "says", "hard"), [(30, "", False), (31, "31 days old", False), (181, "181 days", True)]
)
def test_old_prices_warn_and_then_keep_no_promise(age, says, hard):
    rows = catalog(row("big", 8, 16, as_of=TODAY - dt.timedelta(days=age)))
    (shape,), _ = shapes(spec(), cloud(a="big"), rows, TODAY)
    assert says in shape.note
    assert bool(shape.unpromised) is hard


def test_the_profiles_own_price_grows_old_too():
    site = load_site("lab-cloud").site
    (shape,), _ = shapes(spec(), site, {}, site.price.as_of + dt.timedelta(days=181))
    assert "no budget can be kept with the price of lab-cloud" in shape.unpromised


def test_hard_money_is_refused_on_an_old_price_and_other_jobs_move():
    rows = catalog(row("big", 8, 16, as_of=TODAY - dt.timedelta(days=200)))
    always = Policy(from_site="o", to=("lab-cloud",), kind=PolicyKind.ALWAYS)
    there = offered_at(spec(), 3600, cloud(a="big"), always, rows, TODAY)[0]
    there = msgspec.structs.replace(there, blockers=())

    def decision(policy=always, **kw):
        job = Candidate(
            run_id="r", ref="o:1", name="j", mode=BurstMode.AUTO, state=JobState.PENDING,
            waiting_since=NOW, time_limit_s=3600, options=(there,), user="ada", **kw,
        )  # fmt: skip
        return decided([job], policy, NOW).decisions[0]

    assert decision().action is Action.MOVE
    assert decision().partition == "a"
    refused = decision(max_cost_usd=Decimal(99))
    assert refused.action is Action.REFUSE
    assert "200 days old" in refused.reason
    assert "hpcscale catalog import" in refused.reason
    budget = Budget(of=BudgetOf.USER, usd=Decimal(999))
    held = decision(msgspec.structs.replace(always, budgets=(budget,)))
    assert held.action is Action.REFUSE


def test_before_submission_a_site_is_seen_as_the_job_would_find_it():
    rows = catalog(row("big", 8, 16, boot_p95_s=600), row("small", 1, 1))
    site, why_not = as_rented(spec(), cloud(a="small", b="big"), rows, TODAY)
    assert (site.default_partition, site.burst.boot_allowance_s, why_not) == ("b", 600, [])
    assert site.gpu_hour_usd("b") == Decimal(2)
    _, why_not = as_rented(spec(gpus=9), cloud(a="small", b="big"), rows, TODAY)
    assert len(why_not) == 2
    plain = load_site("lab-cloud").site
    assert as_rented(spec(), plain, {}, TODAY) == (plain, [])
