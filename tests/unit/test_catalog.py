"""The catalog of offers: sourced rows, old prices, imports."""

import datetime as dt
import json
from decimal import Decimal

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from hpcscale.burst.catalog import (
    REFUSE_DAYS,
    WARN_DAYS,
    Offer,
    cheapest,
    offers_from,
    require_fresh,
    staleness,
    to_toml,
)
from hpcscale.burst.catalog_import import offers_of
from hpcscale.burst.catalog_load import load_catalog
from hpcscale.cli import main
from hpcscale.errors import BurstRefusedError, HpcscaleError, InvalidFileError, UsageError
from hpcscale.tomlfile import read_toml

DAY = dt.date(2026, 11, 1)


def offer(**kw):
    defaults = {
        "provider": "aws", "region": "us-east-1", "instance": "p5.48xlarge", "gpus": 8,
        "gpu_type": "h100", "mem_gb": 2048.0, "on_demand_usd": Decimal("55.04"), "source": "a page",
        "as_of": DAY,
    }  # fmt: skip
    return Offer(**{**defaults, **kw})


def test_every_bundled_row_has_a_source_a_date_and_no_price_of_zero():
    rows = [row for row, _ in load_catalog().values()]
    assert len(rows) > 10
    for row in rows:
        assert row.source
        assert row.as_of <= dt.date(2026, 11, 22)
        assert row.on_demand_usd is None or row.on_demand_usd > 0
        assert row.egress_usd_per_gb is not None
        assert "egress" in row.source
    assert any(row.on_demand_usd is None for row in rows)


def test_old_prices_warn_and_then_promise_nothing():
    row = offer()
    assert staleness(row, DAY + dt.timedelta(days=WARN_DAYS)) is None
    assert "31 days old" in (staleness(row, DAY + dt.timedelta(days=WARN_DAYS + 1)) or "")
    require_fresh(row, DAY + dt.timedelta(days=REFUSE_DAYS))
    with pytest.raises(BurstRefusedError, match="too old") as caught:
        require_fresh(row, DAY + dt.timedelta(days=REFUSE_DAYS + 1))
    assert "catalog import" in (caught.value.hint or "")
    with pytest.raises(BurstRefusedError, match="ahead"):
        require_fresh(row, DAY - dt.timedelta(days=1))
    with pytest.raises(BurstRefusedError, match="unknown"):
        require_fresh(offer(on_demand_usd=None), DAY)


def test_the_cheapest_shape_that_holds_the_job_and_unknown_prices_last():
    small = offer(instance="g5", gpus=4, on_demand_usd=Decimal(6), mem_gb=None)
    unknown = offer(instance="p6", on_demand_usd=None)
    abroad = offer(region="eu-central-1", on_demand_usd=Decimal(60))
    rows = [unknown, abroad, small, offer()]
    assert cheapest(rows, gpus_per_node=4)[0] is small
    assert cheapest(rows, gpus_per_node=4, mem_gb=10)[0].instance == "p5.48xlarge"
    assert [o.region for o in cheapest(rows, gpus_per_node=8, regions=["eu-central-1"])] == [
        "eu-central-1"
    ]
    assert cheapest(rows, gpus_per_node=8)[-1] is unknown
    assert not cheapest(rows, gpus_per_node=9)


prices = st.none() | st.decimals(min_value="0.0001", max_value=10**6, places=4)


@given(
    st.lists(
        st.builds(
            offer,
            instance=st.text(min_size=1, max_size=9),
            on_demand_usd=prices,
            spot_usd=prices,
            note=st.none() | st.text(max_size=20),
            interruption_per_hour=st.none() | st.floats(0, 1),
            egress_free=st.booleans(),
        ),
        unique_by=lambda o: o.name,
        max_size=4,
    )
)
def test_a_catalog_that_was_written_reads_back(tmp_path_factory, rows):
    path = tmp_path_factory.mktemp("catalog") / "c.toml"
    path.write_text(to_toml(rows), encoding="utf-8")
    assert offers_from(read_toml(path), str(path)) == rows


ROW = '[[offer]]\nprovider="x"\nregion="r"\ninstance="i"\ngpus=8\nsource="s"\nas_of=2026-01-01\n'


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (ROW + "on_demand_usd = 0.0", "no price"),
        (ROW + "spot_usd = -1", "no price"),
        (ROW + "egress_usd_per_gb = 0.0", "egress_free = true"),
        (ROW + "egress_usd_per_gb = -1", "no price"),
        (ROW + "egress_usd_per_gb = 0.1\negress_free = true", "egress_free"),
        (ROW + "boot_p50_s = 10\nboot_p95_s = 5", "less than"),
        (ROW + "interruption_per_hour = 2.0", "chance"),
        (ROW + "prise = 5", "prise"),
        (ROW + ROW, "twice"),
        (ROW.replace('"s"', '""'), "source"),
        ("offer = 5", "offer"),
    ],
)
def test_a_wrong_row_is_named(tmp_path, text, says):
    path = tmp_path / "c.toml"
    path.write_text(text)
    with pytest.raises(InvalidFileError, match=says):
        offers_from(read_toml(path), str(path))


GPUHUNT = """instance_name,location,price,cpu,memory,gpu_count,gpu_name,gpu_memory,spot
p5.48xlarge,us-east-1,98.32,192,2048.0,8,H100,80.0,False
p5.48xlarge,us-east-1,40.5,192,2048.0,8,H100,80.0,True
m5.large,us-east-1,0.096,2,8.0,0,,,False
g6e.48xlarge,us-east-1,0.0,192,1536.0,8,L40S,48.0,False
"""
SKYPILOT = """InstanceType,vCPUs,MemoryGiB,AcceleratorName,AcceleratorCount,GPUInfo,Region,AvailabilityZone,Price,SpotPrice
p4d.24xlarge,96.0,1152.0,A100,8.0,x,us-west-2,us-west-2a,32.77,12.5
p4d.24xlarge,96.0,1152.0,A100,8.0,x,us-west-2,us-west-2b,32.77,11.5
p4de.24xlarge,96.0,1152.0,A100-80GB,8.0,x,us-west-2,us-west-2b,,
c5.large,2.0,4.0,,,,us-west-2,us-west-2b,0.1,0.05
"""
LIBCLOUD = json.dumps(
    {
        "updated": 1740936978,
        "compute": {"ec2_linux": {"p5.48xlarge": {"us-east-1": 98.32, "us-west-2": 0.0}}},
    }
)


def test_gpuhunt_on_demand_and_spot_become_one_row_and_zero_is_unknown():
    p5, g6e = sorted(
        offers_of(GPUHUNT, "gpuhunt", source="f", as_of=DAY), key=lambda o: -float(o.gpu_mem_gb)
    )
    assert (p5.on_demand_usd, p5.spot_usd, p5.gpu_type) == (
        Decimal("98.32"),
        Decimal("40.5"),
        "h100",
    )
    assert (g6e.on_demand_usd, g6e.gpu_type) == (None, "l40s")


def test_skypilot_takes_the_cheapest_zone():
    p4d, p4de = offers_of(SKYPILOT, "skypilot", source="f", as_of=DAY)
    assert (p4d.on_demand_usd, p4d.spot_usd) == (Decimal("32.77"), Decimal("11.5"))
    assert (p4de.gpu_type, p4de.on_demand_usd) == ("a100", None)


def test_libcloud_has_its_own_date():
    east, west = offers_of(LIBCLOUD, "libcloud", source="f", as_of=None)
    assert (east.on_demand_usd, east.as_of) == (Decimal("98.32"), dt.date(2025, 3, 2))
    assert west.on_demand_usd is None


@pytest.mark.parametrize(
    ("text", "kind", "as_of", "says"),
    [
        (GPUHUNT, "gpuhunt", None, "when"),
        (GPUHUNT, "skypilot", DAY, "missing"),
        (LIBCLOUD, "gpuhunt", DAY, "missing"),
        ("{}", "libcloud", None, "pricing.json"),
        (GPUHUNT.replace(",8,", ",eight,"), "gpuhunt", DAY, "no number"),
        ("instance_name,location,price,gpu_count\n", "gpuhunt", DAY, "no offer"),
    ],
)
def test_a_file_of_another_kind_is_refused(text, kind, as_of, says):
    with pytest.raises(InvalidFileError, match=says):
        offers_of(text, kind, source="f", as_of=as_of)


def run(*args):
    result = CliRunner().invoke(main, ["catalog", *map(str, args)])
    if isinstance(result.exception, HpcscaleError):
        raise result.exception
    return result


def test_show_and_check_as_tables_and_as_json():
    assert "p5.48xlarge" in run("show", "--gpu-type", "h100").stdout
    data = json.loads(run("show", "--gpus", "8", "--json").stdout)["data"]["offers"]
    known = [Decimal(o["on_demand_usd"]) for o in data if o["on_demand_usd"]]
    assert known == sorted(known)
    result = run("check", "--json", "--today", "2026-11-22")
    assert result.exit_code == 0
    assert json.loads(result.stdout)["data"]["fit_for_budgets"] > 5
    assert run("check", "--today", "2036-01-01").exit_code == 7


def test_an_import_goes_into_the_users_catalog_and_is_found(tmp_path, monkeypatch):
    monkeypatch.setenv("HPCSCALE_CONFIG_DIR", str(tmp_path / "config"))
    file = tmp_path / "vms.csv"
    file.write_text(SKYPILOT)
    out = tmp_path / "mine.toml"
    result = run("import", file, "--format", "skypilot", "--as-of", "2026-11-01", "--output", out)
    assert "2 offers, 1 of them without a price" in result.stdout
    assert len(offers_from(read_toml(out), "x")) == 2


@pytest.mark.parametrize(
    ("given", "price", "free"),
    [((), None, False), (("0.09",), Decimal("0.09"), False), (("free",), None, True)],
)
def test_an_import_says_what_leaving_costs_where_it_is_told(tmp_path, given, price, free):
    file, out = tmp_path / "vms.csv", tmp_path / "mine.toml"
    file.write_text(SKYPILOT)
    said = [word for text in given for word in ("--egress-usd-per-gb", text)]
    run("import", file, "--format", "skypilot", "--as-of", "2026-11-01", "--output", out, *said)
    for row in offers_from(read_toml(out), "x"):
        assert (row.egress_usd_per_gb, row.egress_free) == (price, free)
        assert row.egress_usd == (Decimal(0) if free else price)


@pytest.mark.parametrize("egress", ["0", "-1", "nan", "Free "])
def test_an_egress_price_that_is_none_is_refused_at_an_import(tmp_path, egress):
    file = tmp_path / "vms.csv"
    file.write_text(SKYPILOT)
    with pytest.raises(UsageError, match="no price"):
        run("import", file, "--format", "skypilot", "--as-of", "2026-11-01",
            "--output", tmp_path / "o.toml", "--egress-usd-per-gb", egress)  # fmt: skip


def test_check_says_which_rows_have_no_price_for_what_leaves(tmp_path, monkeypatch):
    monkeypatch.setenv("HPCSCALE_CONFIG_DIR", str(tmp_path))
    (tmp_path / "catalog").mkdir()
    (tmp_path / "catalog" / "x.toml").write_text(ROW + "on_demand_usd = 5.0")
    rows = json.loads(run("check", "--json", "--today", "2026-11-22").stdout)["data"]["offers"]
    problems = {row["offer"]: row["problem"] or "" for row in rows}
    assert "not for budgets of jobs with outputs" in problems.pop("x/r/i")
    assert not [text for text in problems.values() if "outputs" in text]
