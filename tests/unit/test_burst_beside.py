"""What `burst explain` says beside its decision."""

from decimal import Decimal

import msgspec

from hpcscale.cli._burst_beside import cost_here, free_levers, lever_line
from hpcscale.errors import NotFoundError
from hpcscale.outlook.answer import Lever
from hpcscale.site import load_site
from hpcscale.spec import JobSpec, Resources
from hpcscale.units import JobId

SPEC = JobSpec(command=("true",), resources=Resources(nodes=2, gpus_per_node=4))


def test_the_best_change_that_costs_nothing_is_one_line_with_how_to_apply_it():
    short = Lever("time", "00:30:00", "of 40 ended jobs none ran longer", 600.0, 7200.0)
    other = Lever("nodes", "1", "one node less", 900.0, 6900.0)
    assert lever_line((short, other), "onprem:7") == (
        "free: --time 00:30:00 would start it here in 10 min (of 40 ended jobs none ran longer); "
        "hpcscale forecast onprem:7 --apply time"
    )
    assert lever_line((), "onprem:7") == ""


class Waits:
    job_id = JobId(7, 3)


def test_no_forecast_leaves_the_decision_alone_and_an_element_is_asked_as_its_array(monkeypatch):
    asked = []

    def forecast_job(_, job_id):
        asked.append(job_id)
        raise NotFoundError("no such job")

    monkeypatch.setattr("hpcscale.outlook.answer.forecast_job", forecast_job)
    assert free_levers(None, Waits()) == ()
    assert asked == ["7"]


def test_hours_on_the_floor_have_the_profiles_price():
    site = load_site("lab-onprem").site
    partition = site.partitions[site.default_partition]
    priced = msgspec.structs.replace(partition, gpu_hour_usd=Decimal("1.50"))
    parts = {**site.partitions, site.default_partition: priced}
    usd, why = cost_here(SPEC, 3600, msgspec.structs.replace(site, partitions=parts))
    assert usd == Decimal("12.00"), why
