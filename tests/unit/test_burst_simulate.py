"""`hpcscale burst simulate`: figures, the tuned knob, and a report that stands alone."""

import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from click.testing import CliRunner

from hpcscale.assets import bundled_dir
from hpcscale.cli import main
from hpcscale.errors import HpcscaleError, UsageError
from hpcscale.simulate.compare import front, fronts
from hpcscale.simulate.svg import TOP, number, ticks

SIZE = ("--nodes", "4", "--gpus-per-node", "8", "--cloud-gpu-hour-usd", "2.50")


@pytest.fixture
def history(tmp_path):
    rng = np.random.default_rng(5)
    arrival = np.cumsum(rng.exponential(1 / 16, 150))
    gpus = rng.choice([1, 2, 4, 8], 150, p=[0.7, 0.15, 0.1, 0.05])
    path = tmp_path / "jobs <b>.csv"
    rows = [
        f"{a},{r},{g},{account}"
        for a, r, g, account in zip(
            arrival, rng.exponential(1, 150), gpus, ["<i>bio", "fluid"] * 75, strict=True
        )
    ]
    path.write_text("arrival_h,runtime_h,gpus,account\n" + "\n".join(rows))
    return path


def run(*args):
    result = CliRunner().invoke(main, ["burst", "simulate", *map(str, args)])
    if isinstance(result.exception, HpcscaleError):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result


def test_every_policy_has_its_figures(history):
    names = ["never", "always", "no-wait", "threshold", "constant-wait", "compute-wait", "deadline"]
    asked = [arg for name in [*names, "value"] for arg in ("--policy", name)]
    data = json.loads(run("--history", history, *SIZE, *asked, "--json").stdout)["data"]
    by_name = {row["policy"]: row for row in data["policies"]}
    assert list(by_name) == [*names, "value"]
    assert by_name["never"]["cloud_cost_usd"] == 0
    assert by_name["always"]["mean_wait_h"] == 0
    assert by_name["no-wait"]["mean_wait_h"] == pytest.approx(0, abs=1e-9)
    assert by_name["deadline"]["deadline_hit_rate"] == 1
    assert 0 < by_name["value"]["cloud_cost_usd"] < by_name["always"]["cloud_cost_usd"]
    assert data["jobs"] == 150


def test_hours_at_home_have_their_price_where_the_profile_says_one(history):
    asked = ("--history", history, *SIZE, "--policy", "never", "--policy", "always")
    data = json.loads(run(*asked, "--site", "lab-onprem", "--json").stdout)["data"]
    never, always = data["policies"]
    assert data["here_gpu_hour_usd"] == 2.1
    assert always["here_cost_usd"] == 0
    assert never["here_gpu_hours"] == pytest.approx(always["cloud_gpu_hours"])
    assert never["here_cost_usd"] == pytest.approx(never["here_gpu_hours"] * 2.1, abs=0.01)
    said = run(*asked, "--site", "lab-onprem").stdout
    assert f"hours here at $2.1 a GPU-hour: never ${never['here_cost_usd']:,.2f}, always $" in said
    bare = json.loads(run(*asked, "--json").stdout)["data"]
    assert [row["here_cost_usd"] for row in bare["policies"]] == [None, None]


def test_the_same_seed_gives_the_same_bytes(history):
    args = ("--history", history, *SIZE, "--seed", "7", "--json")
    assert run(*args).stdout == run(*args).stdout


def test_equal_wait_sets_the_knobs_and_says_how(history):
    result = run(
        "--history", history, *SIZE, "--policy", "compute-wait", "--policy", "value",
        "--equal-wait", "constant-wait", "--json",
    )  # fmt: skip
    data = json.loads(result.stdout)["data"]
    rows = {row["policy"]: row for row in data["policies"]}
    assert list(rows) == ["constant-wait", "compute-wait", "value"]
    assert rows["value"]["mean_wait_h"] <= data["equal_wait_h"]
    assert rows["value"]["cloud_cost_usd"] <= rows["compute-wait"]["cloud_cost_usd"]
    assert data["knobs_set_in_hindsight"]


def test_knobs_can_be_set_on_earlier_jobs(history):
    args = ("--policy", "value", "--equal-wait", "constant-wait", "--tune-on", "0.4")
    result = run("--history", history, *SIZE, *args, "--runtimes", "learned", "--json")
    data = json.loads(result.stdout)["data"]
    assert data["jobs_scored"] == 90
    assert not data["knobs_set_in_hindsight"]


def test_a_policy_file_is_replayed_as_it_is_written(history, tmp_path):
    base = 'from = "a"\nto = ["b"]\n'
    files = {
        "never": 'policy = "never"',
        "value": 'policy = "value"\nhour_usd = 20',
        "wait": 'policy = "constant-wait"\nwait = "15m"',
        "compute": 'policy = "compute-wait"\nwait_per_gpu_hour = "5m"',
        "rules": 'max_wait = "1h"',
    }
    asked = []
    for name, text in files.items():
        path = tmp_path / f"{name}.toml"
        path.write_text(base + text)
        asked += ["--policy", str(path)]
    for path in sorted((bundled_dir("site-configs") / "policies").glob("*.toml")):
        asked += ["--policy", str(path)]  # they name no sites
    data = json.loads(run("--history", history, *SIZE, *asked, "--json").stdout)["data"]
    rows = data["policies"]
    assert len(rows) == len(files) + 8
    by_name = {row["policy"].rpartition("/")[2]: row for row in rows[: len(files)]}
    assert by_name["never.toml"]["cloud_cost_usd"] == 0
    assert by_name["value.toml"]["knob"] == 20
    assert by_name["wait.toml"]["knob"] == 0.25
    assert by_name["rules.toml"]["p99_wait_h"] <= 1.01
    assert by_name["value.toml"]["deadline_hit_rate"] == 1


class Page(HTMLParser):
    def __init__(self):
        super().__init__()
        self.tags = []
        self.text = ""

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data


def test_the_fronts_are_of_those_that_no_other_is_better_than():
    assert front([(1, 5), (2, 3), (2, 4), (3, 3), (0, 9), (0, 9)]) == [
        True, True, False, False, True, True,
    ]  # fmt: skip
    rows = [
        {"mean_wait_h": wait, "deadline_hit_rate": hits, "cloud_cost_usd": usd}
        for wait, hits, usd in ((2.0, 0.5, 0.0), (1.0, 0.4, 10.0), (1.5, 1.0, 20.0))
    ]
    assert fronts(rows) == [["wait", "deadlines"], ["wait"], ["deadlines"]]


def test_the_report_marks_both_fronts(history, tmp_path):
    out = tmp_path / "report.html"
    names = ("never", "always", "deadline", "value", "no-wait")
    asked = [arg for name in names for arg in ("--policy", name)]
    done = run("--history", history, *SIZE, *asked, "--html", out, "--json")
    rows = json.loads(done.stdout)["data"]["policies"]
    columns = {"wait": "mean_wait_h", "deadlines": "deadline_hit_rate"}
    on = {kind: [r for r in rows if kind in r["front"]] for kind in columns}
    assert {"never", "value"} <= {r["policy"] for r in on["wait"]}
    assert "deadline" in {r["policy"] for r in on["deadlines"]}
    html = out.read_text()
    for part, kind in zip(html.split("<figure>")[1:3], columns, strict=True):
        assert part.count('class="ring"') == len(on[kind])
        # what is best in both needs no line
        points = {(r[columns[kind]], r["cloud_cost_usd"]) for r in on[kind]}
        assert part.count('class="front"') == (len(points) > 1)
        assert "no other policy is better in both" in part


def test_bounds_are_below_every_policy_of_that_wait(history, monkeypatch):
    monkeypatch.setattr("hpcscale.cli._burst_simulate.SEARCH", 150_000)
    args = ("--history", history, *SIZE, "--policy", "value", "--equal-wait", "constant-wait")
    data = json.loads(run(*args, "--bounds", "--json").stdout)["data"]
    cost = {row["policy"]: row["cloud_cost_usd"] for row in data["policies"]}
    assert 0 <= data["lower_bound_usd"] <= data["best_known_usd"] + 0.01
    assert data["best_known_usd"] <= min(cost.values())
    said = run(*args, "--bounds").stdout
    below = f"${data['best_known_usd']:,.2f} was found, $"
    assert below in said
    for wrong in (("--policy", "value"), ("--equal-wait", "value", "--model", "slurm")):
        with pytest.raises(UsageError) as caught:
            run("--history", history, *SIZE, *wrong, "--bounds")
        assert caught.value.hint == "--equal-wait constant-wait"


def test_the_report_loads_nothing_and_believes_no_name(history, tmp_path):
    out = tmp_path / "report.html"
    run("--history", history, *SIZE, "--html", out)
    html = out.read_text()
    page = Page()
    page.feed(html)
    assert not re.search(r"(src|href)=|@import|url\(|<script", html)
    assert sum(tag == "svg" for tag, _ in page.tags) == 10
    assert not [tag for tag, _ in page.tags if tag == "i"]
    assert "<i>bio" in page.text
    assert "Money by account" in page.text
    # no mark lies outside of its chart, and none along its upper edge: nothing is cut
    for line in re.findall(r'points="([^"]+)"', html):
        heights = [float(point.partition(",")[2]) for point in line.split()]
        assert min(heights) > TOP


@pytest.mark.parametrize(
    ("args", "hint"),
    [
        (["--gpus-per-node", "8", "--cloud-gpu-hour-usd", "2"], "--nodes 4"),
        (["--nodes", "4", "--gpus-per-node", "8"], "--cloud-gpu-hour-usd 2.50"),
        (["--nodes", "4", "--gpus-per-node", "8", "--cloud-gpu-hour-usd", "0"], "dollars"),
        (["--nodes", "4", "--gpus-per-node", "8", "--cloud-gpu-hour-usd", "nan"], "dollars"),
        ([*SIZE, "--policy", "valeu"], "value"),
        ([*SIZE, "--equal-wait", "nobody"], "constant-wait"),
        ([*SIZE, "--tune-on", "0.4"], "--equal-wait"),
    ],
)
def test_what_is_missing_is_named(history, args, hint):
    with pytest.raises(UsageError) as caught:
        run("--history", history, *args)
    assert hint in (caught.value.hint or "")


def test_ticks_are_round():
    assert ticks(0, 800) == [0, 200, 400, 600, 800]
    assert [number(t) for t in ticks(0, 0.11)] == ["0", "0.05", "0.1"]
    assert ticks(3, 3) == [3]


SACCT = "JobID|Submit|Start|End|NNodes|AllocTRES\n"
ROW = "{0}|2026-01-05T08:0{0}:00|2026-01-05T08:10:00|2026-01-05T09:10:00|2|{1}\n"


def test_a_history_without_gpus_is_told(tmp_path):
    path = tmp_path / "cpu.csv"
    path.write_text(SACCT + "".join(ROW.format(k, "cpu=16,node=2") for k in range(3)))
    result = run("--history", path, *SIZE, "--policy", "always", "--json")
    data = json.loads(result.stdout)["data"]
    assert data["policies"][0]["cloud_gpu_hours"] == pytest.approx(3 * 16)
    assert "names GPUs: each counts as all 8 GPUs of its nodes" in data["notes"][0]
    assert data["notes"][0] in result.stderr
    # some with, some without: those without are left out and counted
    path.write_text(SACCT + ROW.format(1, "cpu=16,gres/gpu=16") + ROW.format(2, "cpu=16"))
    data = json.loads(run("--history", path, *SIZE, "--policy", "always", "--json").stdout)["data"]
    assert (data["notes"], data["left_out"], data["jobs"]) == ([], {"no GPUs": 1}, 1)


def test_processors_of_swf_are_nodes_as_asked_for(tmp_path):
    path = tmp_path / "jobs.swf"
    path.write_text("; MaxNodes: 4\n1 0 0 3600 8 -1 -1 8 7200 -1 1\n")
    with pytest.raises(HpcscaleError, match=r"\(1 larger than the cluster\)"):
        run("--history", path, *SIZE)
    result = run("--history", path, *SIZE, "--processors-per-node", "8", "--policy", "always")
    assert "$20.00" in result.stdout
    assert "taken for a node" not in result.stderr


def test_a_history_without_runtimes_names_the_columns(tmp_path):
    path = tmp_path / "cut.csv"
    path.write_text("JobID|Submit|Start\n1|2026-01-05T08:00:00|2026-01-05T08:10:00\n")
    with pytest.raises(HpcscaleError, match="1 with no runtime") as caught:
        run("--history", path, *SIZE)
    assert "ElapsedRaw, or Start and End" in caught.value.hint


def test_a_cluster_has_a_bound_and_a_policy_named_twice_counts_once(history):
    args = ["burst", "simulate", "--history", str(history), *SIZE]
    result = CliRunner().invoke(main, [*args, "--nodes", "100000000000"])
    assert result.exit_code == 2
    assert "1000000" in result.output
    result = run("--history", history, *SIZE, "--policy", "never", "--policy", "never")
    assert "named twice" in result.stderr
    assert result.stdout.count("never") == 1
