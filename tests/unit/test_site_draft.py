"""What ``site detect`` writes of what it saw: all of it, nothing more, and nothing that escapes."""

import datetime as dt
import tomllib

import pytest
from msgspec.structs import replace

from hpcscale.errors import UsageError
from hpcscale.settings import config_dir
from hpcscale.site import load_site
from hpcscale.slurm._facts import switches
from hpcscale.slurm.types import PartitionFacts, SiteFacts, Switch
from hpcscale.survey.detect import profile_name
from hpcscale.survey.draft import Seen, draft, preemptible

GPU = PartitionFacts(
    name="gpu", default=True, max_time_s=86400, max_nodes=8, total_nodes=4, gpus_per_node=4,
    gpu_type="h100", cpus_per_node=64, mem_mb_per_node=1_000_000, node_list="n[1-4]",
    features=("h100", "ib"), gres=("gpu:h100:4",), preempt_mode="REQUEUE",
)  # fmt: skip
CPU = PartitionFacts(name="cpu", total_nodes=9, cpus_per_node=32, node_list="c[1-9]")
HOSTILE = [
    'a"b',
    "x]\nname = 'evil'\n[transport",
    "$(touch w)",
    "é 名",
    "\x1b[2J\x7f",
    "a.b",
    "'''",
]


def seen(*partitions, **changes):
    facts = SiteFacts(
        version="24.05.1",
        cluster="alps",
        partitions={p.name: p for p in partitions},
        fetched_at=dt.datetime(2026, 11, 22, tzinfo=dt.UTC),
        max_array_size=501,
        config={"MaxArraySize": "501", **changes.pop("config", {})},
    )
    values = {
        "name": "alps",
        "transport": {"kind": "ssh", "host": "login"},
        "state_dir": "~/x",
        "state_dir_note": "seen from node n1",
        "switches": (),
        "today": dt.date(2026, 11, 22),
    }
    return Seen(facts=replace(facts, **changes.pop("facts", {})), **{**values, **changes})


def loaded(text, name="alps"):
    (config_dir() / "sites").mkdir(parents=True, exist_ok=True)
    (config_dir() / "sites" / f"{name}.toml").write_text(text)
    return load_site(name).site


def test_everything_seen_is_there_and_nothing_else():
    site = loaded(draft(seen(GPU, CPU)))
    gpu, cpu = site.partitions["gpu"], site.partitions["cpu"]
    assert (gpu.nodes, gpu.gpus_per_node, gpu.gpu_type, gpu.cpus_per_node) == (4, 4, "h100", 64)
    assert (gpu.max_time, gpu.max_nodes, gpu.mem_gb_per_node) == ("1-00:00:00", 8, 976.6)
    assert gpu.features == ("h100", "ib")
    assert gpu.default
    assert not cpu.default
    assert (cpu.gpus_per_node, cpu.max_time, cpu.max_nodes, cpu.mem_gb_per_node) == (
        0, None, None, None,
    )  # fmt: skip
    assert (site.default_partition, site.gpus_per_node, site.gpu_type) == ("gpu", 4, "h100")
    assert site.max_array_size == 501
    assert site.topology is None
    # never guessed
    assert site.price is None
    assert site.fabric.env == {}
    assert site.fabric.kind == "unknown"
    assert not site.burst.target
    assert site.account is None
    assert site.qos is None


def test_what_partitions_disagree_on_stays_blank_above_them():
    big = replace(GPU, name="big", gpus_per_node=8, gpu_type="h200", default=False)
    site = loaded(draft(seen(GPU, big)))
    assert site.gpus_per_node is None
    assert site.gpu_type is None
    assert site.partitions["big"].gpu_type == "h200"
    assert loaded(draft(seen(CPU))).gpus_per_node == 0


def test_what_the_controller_did_not_say_stays_blank():
    bare = PartitionFacts(name="p", total_nodes=1)
    text = draft(seen(bare, facts={"config": {}, "version": "", "cluster": ""}))
    site = loaded(text)
    assert site.max_array_size is None
    assert site.default_partition is None
    assert site.partitions["p"].cpus_per_node is None


def test_remarks_are_comments():
    text = draft(
        seen(
            replace(GPU, gres=("gpu:a100:4", "gpu:h100:4"), boots=True),
            replace(CPU, up=False),
            facts={"accounts": ("physics",), "qos": ("normal",), "notes": ("a\nb = 1",)},
            config={"PreemptType": "preempt/qos"},
        )
    )
    comments = [line for line in text.splitlines() if line.startswith("#")]
    for words in ("physics", "normal", "gpu:a100:4 and with gpu:h100:4", "not up", "boot", "QOS",
                  "a?b = 1"):  # fmt: skip
        assert [line for line in comments if words in line], words
    assert loaded(text).account is None


@pytest.mark.parametrize("word", HOSTILE)
def test_names_from_the_site_stay_values(word):
    evil = replace(GPU, name=word, gpu_type=word, features=(word,))
    made = seen(evil, facts={"cluster": word}, state_dir=word, transport={"kind": word})
    text = draft(made)
    assert not [c for c in text if ord(c) < 32 and c != "\n"]
    assert "\x7f" not in text
    data = tomllib.loads(text)
    assert data["name"] == "alps"
    assert data["transport"] == {"kind": word}
    assert data["state_dir"] == word
    assert list(data["partitions"]) == [word]
    assert data["partitions"][word]["features"] == [word]


def test_jobs_are_preempted_by_a_higher_tier_on_the_same_nodes():
    spot = replace(GPU, name="spot", priority_tier=1)
    urgent = replace(GPU, name="urgent", priority_tier=100, preempt_mode="OFF")
    elsewhere = replace(CPU, name="other", priority_tier=200)
    by_tier = seen(spot, urgent, elsewhere, config={"PreemptType": "preempt/partition_prio"}).facts
    assert preemptible(spot, by_tier)
    assert not preemptible(urgent, by_tier)
    assert not preemptible(replace(spot, preempt_mode="OFF"), by_tier)
    assert not preemptible(elsewhere, by_tier)
    assert not preemptible(spot, seen(spot, urgent).facts)


def test_the_tree_in_one_line():
    leaves = (Switch("l1", 0, "n[1-2]"), Switch("l2", 0, "n[3-4]"), Switch("s", 1, "n[1-4]"))
    made = seen(GPU, switches=leaves, config={"TopologyPlugin": "topology/tree"})
    assert loaded(draft(made)).topology == "tree: 2 leaf switches (n[1-2]; n[3-4]), levels above: 1"
    plain = seen(GPU, config={"TopologyPlugin": "topology/block"})
    assert loaded(draft(plain)).topology == "block"


def test_switches_are_read_from_scontrol():
    text = (
        "SwitchName=leaf1 Level=0 LinkSpeed=1 Nodes=onprem[1-2] \n"
        "SwitchName=spine Level=1 LinkSpeed=1 Nodes=onprem[1-2] Switches=leaf1 \n"
    )
    assert switches(text) == (
        Switch("leaf1", 0, "onprem[1-2]"),
        Switch("spine", 1, "onprem[1-2]"),
    )
    assert switches("topology/none plugin\n") == ()


@pytest.mark.parametrize(
    ("cluster", "name"),
    [("Alps", "alps"), ("my_cluster.x", "my-cluster-x"), ("../../etc", "etc"), ("名", "cluster")],
)
def test_a_cluster_gives_a_name_that_a_file_can_have(cluster, name):
    assert profile_name(cluster) == name


@pytest.mark.parametrize("name", ["../x", "a b", "-x", "", "A"])
def test_a_name_that_is_none_is_refused_before_anything_runs(name, monkeypatch):
    from click.testing import CliRunner

    from hpcscale.cli import main

    monkeypatch.setattr("hpcscale.survey.detect.connect", lambda _: pytest.fail("it connected"))
    result = CliRunner().invoke(main, ["site", "detect", f"--name={name}"], standalone_mode=False)
    assert isinstance(result.exception, UsageError)
