"""The bundled profiles are data with sources; what a source does not ask for is not there."""

import datetime as dt
from decimal import Decimal

import pytest

from hpcscale.assets import bundled_dir
from hpcscale.site import Evidence, load_site
from hpcscale.tomlfile import read_toml

NAMES = sorted(path.stem for path in bundled_dir("site-configs").glob("*.toml"))


@pytest.fixture(autouse=True)
def bundled_only(tmp_path, monkeypatch):
    monkeypatch.setenv("HPCSCALE_ETC_DIR", str(tmp_path / "etc"))
    monkeypatch.setenv("HPCSCALE_CONFIG_DIR", str(tmp_path / "user"))


def test_the_four_sites_of_the_first_release_are_bundled():
    assert {"lab-onprem", "lab-cloud", "generic-ib", "aws-p5"} <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_every_fabric_variable_has_source_date_and_mark(name):
    site = load_site(name).site
    assert site.fabric.env, "a profile without fabric variables shows no contrast"
    for variable, known in site.fabric.env.items():
        assert known.source.startswith("https://"), variable
        assert isinstance(known.as_of, dt.date), variable
        assert known.status in Evidence, variable
        assert known.as_of <= dt.date(2026, 11, 22), f"{variable}: a date after the reading"
        assert not set(known.value) & set("<>\n"), f"{variable}: a placeholder is no value"
    for variable, why in site.fabric.forbidden.items():
        assert variable not in site.fabric.env, f"{variable} is both set and forbidden"
        assert "(" in why, f"{variable}: names its source in parentheses"


@pytest.mark.parametrize("name", NAMES)
def test_no_profile_claims_a_run_on_hardware_that_nobody_had(name):
    site = load_site(name).site
    if site.fabric.kind in {"infiniband", "efa"}:
        assert {v.status for v in site.fabric.env.values()} == {Evidence.DOCUMENTED}


@pytest.mark.parametrize("name", NAMES)
def test_prices_are_exact_decimals_with_source_and_date(name):
    price = load_site(name).site.price
    if price is None:
        assert name == "generic-ib", "only the template without an owner has no price"
        return
    assert isinstance(price.gpu_hour_usd, Decimal)
    assert price.gpu_hour_usd > 0
    assert price.source
    if name.startswith("lab-"):
        assert "made up" in price.source


def test_the_price_of_a_p5_gpu_is_that_of_the_snapshot():
    site = load_site("aws-p5").site
    assert site.gpu_hour_usd() * 8 == Decimal("55.04")
    assert site.price.as_of == dt.date(2026, 9, 6)


def test_an_unknown_price_is_unknown_not_zero():
    site = load_site("generic-ib").site
    assert site.gpu_hour_usd() is None
    zero = load_site("aws-p5", ["price.gpu_hour_usd=0"]).site
    assert zero.gpu_hour_usd() is None


def test_a_partitions_price_wins_over_the_sites():
    site = load_site("lab-onprem", ["partitions.spot.gpu_hour_usd=1.05"]).site
    assert site.gpu_hour_usd("spot") == Decimal("1.05")
    assert site.gpu_hour_usd("gpu") == Decimal("2.10")


def test_the_fabrics_contrast():
    ib, efa = load_site("generic-ib").site.fabric, load_site("aws-p5").site.fabric
    assert {"NCCL_IB_HCA", "NCCL_SOCKET_IFNAME"} == set(ib.env)
    assert "NCCL_IB_HCA" not in efa.env
    assert {"FI_EFA_USE_HUGE_PAGE", "NCCL_SOCKET_IFNAME"} == set(efa.env)
    assert "RDMAV_FORK_SAFE" in efa.forbidden


def test_values_that_a_site_must_replace_say_so():
    assert all(v.example for v in load_site("generic-ib").site.fabric.env.values())
    assert not any(v.example for v in load_site("aws-p5").site.fabric.env.values())


@pytest.mark.parametrize("name", NAMES)
def test_bundled_profiles_name_nobodys_machines(name):
    transport = read_toml(bundled_dir("site-configs") / f"{name}.toml")["transport"]
    assert set(transport) <= {"kind"}
