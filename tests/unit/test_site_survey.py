"""What ``site check`` says of a profile, given the controller's facts."""

import datetime as dt
import os
import stat
from pathlib import Path

from fake_sites import Sites
from msgspec.structs import replace

from hpcscale.site import load_site
from hpcscale.slurm.types import PartitionFacts, SiteFacts
from hpcscale.survey.checks import Verdict
from hpcscale.survey.live import numbers, probe_partition, state_directory
from hpcscale.survey.profile import gpus, partitions, profile

TODAY = dt.date(2026, 11, 22)
GPU = PartitionFacts(
    name="gpu", default=True, max_time_s=7 * 86400, total_nodes=4, gpus_per_node=4, gpu_type="h100"
)


def facts(*there):
    return SiteFacts(
        version="22.05.8",
        cluster="c",
        partitions={p.name: p for p in there},
        fetched_at=dt.datetime(2026, 11, 22, tzinfo=dt.UTC),
    )


def site(name="lab-onprem", *overrides):
    return load_site(name, overrides).site


def by_name(checks):
    return {c.name: c for c in checks}


def test_a_profile_that_agrees_is_ok():
    spot, urgent = replace(GPU, name="spot"), replace(GPU, name="urgent")
    found = by_name(partitions(site(), facts(GPU, spot, urgent)))
    assert {c.verdict for c in found.values()} == {Verdict.OK}
    assert found["partition gpu"].message == "4 nodes, 4 h100 each, up to 7-00:00:00"


def test_differences_are_named_with_both_values():
    live = replace(GPU, gpu_type="h200", max_time_s=3600, up=False)
    check = by_name(partitions(site(), facts(live)))["partition gpu"]
    assert check.verdict is Verdict.WARN
    assert check.message == (
        "gpu_type is h100 in the profile and h200 there; "
        "max_time is 7-00:00:00 in the profile and 01:00:00 there; it is not up"
    )
    assert "lab-onprem.toml" in check.hint


def test_missing_partitions_fail():
    found = by_name(partitions(site(), facts(replace(GPU, name="main"))))
    assert found["partition gpu"].verdict is Verdict.FAIL
    assert found["default partition"].verdict is Verdict.FAIL
    assert "the controller has main" in found["default partition"].message


def test_a_profile_without_partitions_lists_the_controllers():
    (check,) = partitions(site("generic-ib"), facts(GPU))
    assert check.verdict is Verdict.OK
    assert check.message == "the profile names none; the controller has gpu"


def test_gpus_of_profile_and_controller():
    assert gpus(site(), facts(GPU)).verdict is Verdict.OK
    none = gpus(site(), facts(replace(GPU, gpus_per_node=0)))
    assert none.verdict is Verdict.FAIL
    assert "no GRES gpu" in none.message
    more = gpus(site(), facts(replace(GPU, gpus_per_node=8)))
    assert (more.verdict, "gpus_per_node = 8" in more.hint) == (Verdict.WARN, True)
    other = gpus(site(), facts(replace(GPU, gpu_type="a100")))
    assert (other.verdict, 'gpu_type = "a100"' in other.hint) == (Verdict.WARN, True)
    cpu_only = site("lab-onprem", "gpus_per_node=0")
    assert gpus(cpu_only, facts(replace(GPU, gpus_per_node=0))).verdict is Verdict.OK


def test_examples_and_unknown_prices_are_warned_of():
    found = by_name(profile(site("generic-ib"), TODAY))
    assert found["fabric"].verdict is Verdict.WARN
    assert "NCCL_IB_HCA, NCCL_SOCKET_IFNAME" in found["fabric"].message
    assert found["price"].verdict is Verdict.WARN
    mine = site(
        "generic-ib", "fabric.env.NCCL_IB_HCA==mlx5_0", "fabric.env.NCCL_SOCKET_IFNAME=bond0"
    )
    assert by_name(profile(mine, TODAY))["fabric"].verdict is Verdict.OK


def test_a_burst_partition_without_a_price_is_warned_of():
    cloud = ("partitions.cloud.burst.target=true", "partitions.cloud.fabric.kind=efa")
    check = by_name(profile(site("lab-onprem", *cloud), TODAY))["price of partition cloud"]
    assert check.verdict is Verdict.WARN
    priced = site("lab-onprem", *cloud, "partitions.cloud.gpu_hour_usd=6.88")
    assert "price of partition cloud" not in by_name(profile(priced, TODAY))


def test_an_old_cloud_price_is_warned_of():
    aws = site("aws-p5")
    assert by_name(profile(aws, dt.date(2026, 10, 6)))["price"].verdict is Verdict.OK
    late = by_name(profile(aws, dt.date(2026, 10, 7)))["price"]
    assert late.verdict is Verdict.WARN
    assert "31 days ago" in late.message


def test_the_probe_goes_where_it_can_push_nobody_out():
    spot, urgent = replace(GPU, name="spot", default=False), replace(GPU, name="urgent")
    assert probe_partition(site(), facts(GPU, spot, urgent)) == "spot"
    assert probe_partition(site(), facts(GPU, replace(spot, up=False))) == "gpu"
    assert probe_partition(site("generic-ib"), facts(urgent, GPU)) == "urgent"
    assert probe_partition(site("generic-ib"), facts()) is None


def test_versions_are_compared_as_numbers():
    assert numbers("22.05.8") == (22, 5, 8)
    assert numbers("26.05.0-0rc1") == (26, 5, 0)
    assert numbers("") == ()


def test_what_the_check_writes_is_for_its_user_alone(tmp_path, monkeypatch):
    sites = Sites(tmp_path)
    connection = sites("lab-onprem")
    transport, modes = connection.transport, {}
    read = transport.read_bytes

    def look(path, **kw):
        for each in (Path(path), Path(path).parent, Path(connection.state_dir)):
            modes[each.name] = stat.S_IMODE(each.stat().st_mode)
        return read(path, **kw)

    monkeypatch.setattr(transport, "read_bytes", look)
    before = os.umask(0o022)
    try:
        found = by_name(state_directory(connection, facts(GPU), probe_job=False))
    finally:
        os.umask(before)
        sites.ledger.close()
    assert found["state directory"].verdict is Verdict.OK
    assert modes.pop("token") == 0o600
    assert list(modes.values()) == [0o700, 0o700]
