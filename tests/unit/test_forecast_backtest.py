"""``hpcscale forecast --backtest``: the site's past jobs forecast again, and what it comes to."""

import json

import numpy as np
import pytest
from click.testing import CliRunner
from queue_views import NOW, nodes, snapshot

from hpcscale.cli import main
from hpcscale.errors import HpcscaleError, UsageError
from hpcscale.history.tables import parse_table
from hpcscale.history.workload import make_workload
from hpcscale.outlook import proof as proofs
from hpcscale.outlook.snapshot import Level
from hpcscale.settings import config_dir
from hpcscale.simulate.backtest import backtest
from hpcscale.simulate.easy import replay_easy
from hpcscale.slurm.whole import ENDED_COLUMNS

HOUR = 3600
ONPREM = '[transport]\nkind = "local"\nslurm_conf = "/lab/onprem.conf"\n'


def rows(size, gpus_per_node=0):
    """What sacct says of a site of 16 nodes with a queue; one user asks for far too much."""
    rng = np.random.default_rng(2)
    user = rng.choice(["careful", "generous"], size)
    limit = rng.choice([1, 2, 4], size) * HOUR
    run = np.where(user == "careful", 0.9, 0.1) * rng.uniform(0.8, 1.1, size) * limit
    width = rng.integers(1, 9, size)
    submit = np.sort(rng.uniform(0, (run * width).sum() / 16 / 1.1, size)).round()
    jobs = make_workload(submit_s=submit, runtime_s=run.round(), limit_s=limit, nodes=width)
    start = replay_easy(jobs, 16, fast=False).start_s
    first = NOW - 20 * 86400
    lines = [ENDED_COLUMNS.replace(",", "|")]
    for at, ran in enumerate(np.minimum(run.round(), limit).astype(int).tolist()):
        begun = first + int(start[at])
        tres = f"cpu=8,node={width[at]}"
        if gpus_per_node and at % 10:
            tres += f",gres/gpu={gpus_per_node * width[at]}"
        lines.append("|".join(map(str, [
            at + 1, at + 1, user[at], "a", "cpu", "normal", "COMPLETED", first + int(submit[at]),
            begun, begun + ran, ran, limit[at] // 60, width[at], 8 * width[at], tres,
        ])))  # fmt: skip
    return parse_table(lines, "made")


@pytest.fixture
def site(monkeypatch, tmp_path):
    """What the site shows and what accounting says; tests may put others in their place."""
    monkeypatch.setenv("HPCSCALE_STATE_DIR", str(tmp_path))
    shown = {"view": snapshot(nodes=nodes(16, "cpu")), "past": (rows(300), ())}
    monkeypatch.setattr(proofs, "take", lambda _: shown["view"])
    monkeypatch.setattr(proofs, "history", lambda *_: shown["past"])
    monkeypatch.setattr(proofs, "asker_of", lambda _: None)
    return shown


def test_the_figures_are_those_of_a_backtest_of_the_history(site):
    told = []
    found = proofs.proof(None, told.append)
    jobs = site["past"][0].workload
    start = np.rint(jobs.start_s).astype(np.int64)
    figures = backtest(jobs, start, 16, least_wait_s=60).figures()
    assert (found.unit, found.capacity, found.jobs, found.runs_on) == ("node", 16, 300, True)
    assert found.forecasts == figures["jobs"] > 100
    assert found.coverage == figures["live_coverage"] > 0.8
    assert found.error_ratio == figures["live_mae_ratio"] < 0.8
    assert found.width_h == pytest.approx(figures["live_width_ratio"] * figures["qbets_mean_h"])
    assert (found.said, found.said_coverage) == (0, None)
    assert told[-1] == 1.0
    # the moments before each submission: who has come and not begun
    waits = [((jobs.submit_s <= t) & (jobs.start_s > t)).sum() for t in jobs.submit_s]
    assert found.most_waiting == max(waits)


def test_jobs_of_a_site_with_gpus_count_by_them(site):
    site.update(view=snapshot(nodes=nodes(16, "cpu", 4)), past=(rows(300, 4), ()))
    found = proofs.proof(None)
    assert (found.unit, found.capacity) == ("GPU", 64)
    assert (found.jobs, found.left_out) == (270, {"without GPUs": 30})


@pytest.mark.parametrize(
    ("view", "past", "message"),
    [
        ({"queue_level": Level.OWN}, None, "hides other people's jobs"),
        ({}, (None, ("no slurmdbd",)), "cannot be made: no slurmdbd"),
        ({}, 12, "says too little"),
        ({}, 75, "says too little"),  # enough that waited, too few to score
    ],
)
def test_too_little_known_is_said_and_no_figure_made_up(site, view, past, message):
    site["view"] = snapshot(nodes=nodes(16, "cpu"), **view)
    if past is not None:
        site["past"] = (rows(past), ()) if isinstance(past, int) else past
    with pytest.raises(HpcscaleError, match=message) as raised:
        proofs.proof(None)
    assert raised.value.hint


def test_the_command_prints_them_and_is_of_a_site_alone(site):
    folder = config_dir() / "sites"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "lab-onprem.toml").write_text(ONPREM)

    def run(*words):
        return CliRunner().invoke(main, ["forecast", "--site", "lab-onprem", *words])

    document = json.loads(run("--backtest", "--json").stdout)
    assert document["schema"] == 1
    data = document["data"]
    assert data["forecasts"] > 100
    text = run("--backtest").stdout
    assert f"{data['coverage']:.1%}" in text
    assert f"{data['error_ratio']:.2f}" in text
    assert "300 jobs of" in text
    for words in (("--backtest", "--nodes", "2"), ("7", "--backtest"),
                  ("--backtest", "--demand", "3")):  # fmt: skip
        assert isinstance(run(*words).exception, UsageError)
