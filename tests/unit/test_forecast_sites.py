"""``hpcscale forecast`` over several sites: where a job starts, boots included."""

import json

import pytest
from click.testing import CliRunner
from queue_views import HOUR, nodes, pending, running, snapshot

from hpcscale.cli import main
from hpcscale.errors import HpcscaleError, UnreachableError
from hpcscale.outlook import answer
from hpcscale.settings import config_dir

ONPREM = '[transport]\nkind = "local"\nslurm_conf = "/lab/onprem.conf"\n'
CLOUD = '[transport]\nhost = "127.0.0.1"\nuser = "me"\nslurm_conf = "/lab/slurm.conf"\n'
OTHER = """
name = "other"
as_of = 2026-11-22
[transport]
kind = "local"
[fabric]
kind = "loopback"
"""


@pytest.fixture
def seen(monkeypatch):
    """Snapshots by site; one that is None does not answer."""
    folder = config_dir() / "sites"
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in (("lab-onprem", ONPREM), ("lab-cloud", CLOUD), ("other", OTHER)):
        (folder / f"{name}.toml").write_text(text)
    busy = running(1, "gpu[1-4]", num_nodes=4, cpus=32)
    # 3 h until the job's turn
    views = {
        "lab-onprem": snapshot(
            busy, pending(2, num_nodes=4, cpus=32, limit_s=2 * HOUR),
            pending(7, num_nodes=2, cpus=16, gpus=8, priority=1, reservation=""),
        ),
        "lab-cloud": snapshot(site="lab-cloud"),
        "other": snapshot(busy, site="other"),
    }  # fmt: skip
    views["lab-onprem"] = answer.msgspec.structs.replace(views["lab-onprem"], site="lab-onprem")

    def take(connection):
        view = views[connection.site.name]
        if view is None:
            raise UnreachableError("no answer", where=connection.site.name)
        return view

    monkeypatch.setattr(answer, "take", take)
    monkeypatch.setattr(answer, "history", lambda *_: (None, ()))
    return views


def forecast(*words):
    return CliRunner().invoke(main, ["forecast", *words])


def test_every_site_is_asked_and_a_boot_is_counted(seen):
    done = forecast("lab-onprem:7", "--json")
    assert done.exit_code == 0, done.output
    own, *others = json.loads(done.stdout)["data"]
    assert (own["site"], own["boot_p95_s"]) == ("lab-onprem", None)
    assert own["p50_s"] == pytest.approx(3 * HOUR, abs=120)
    found = {row["site"]: row for row in others}
    assert found.keys() == {"lab-cloud", "other"}
    cloud = found["lab-cloud"]
    # 5 s of copying and 30 s for a boot, as its profile has them
    assert (cloud["staging_s"], cloud["boot_p95_s"]) == (5, 30)
    assert (cloud["p50_s"], cloud["p90_s"]) == (35, 35)
    assert found["other"]["p50_s"] == pytest.approx(HOUR, abs=120)


def test_the_table_says_where_it_would_start_sooner(seen):
    seen["lab-cloud"] = snapshot(
        running(1, "gpu[1-4]", num_nodes=4, cpus=32, limit_s=2 * HOUR), site="lab-cloud"
    )
    done = forecast("lab-onprem:7")
    lines = done.stdout.splitlines()
    assert "BOOT P50/P95" in lines[0]
    assert [line.split()[0] for line in lines[1:4]] == ["lab-onprem", "lab-cloud", "other"]
    assert "30 s / 30 s" in lines[2]
    assert lines[4].startswith("lab-onprem: p90: "), "what the site says of itself comes first"
    assert lines[5:7] == [
        "lab-onprem: sooner: at other it would start in 60 min, 2.0 h sooner",
        "lab-onprem: sooner: at lab-cloud it would start in 2.0 h, 59 min sooner",
    ]
    assert "lab-cloud: 5 s of copying and a boot are counted before the start" in lines


def test_a_site_that_gives_no_answer_is_named_and_a_template_is_not(seen):
    seen["other"] = None
    done = forecast("lab-onprem:7")
    assert done.exit_code == 0
    assert "other is left out: " in done.stderr
    assert "aws-p5" not in done.output
    assert "generic-ib" not in done.output


def test_one_site_alone_and_a_job_that_runs(seen):
    (own,) = json.loads(forecast("7", "--site", "lab-onprem", "--json").stdout)["data"]
    assert own["site"] == "lab-onprem"
    (own,) = json.loads(forecast("lab-onprem:1", "--json").stdout)["data"]
    assert own["p50_s"] == 0


def test_a_job_not_submitted_yet_is_asked_about_everywhere(seen):
    words = ("--site", "lab-onprem", "--nodes", "2", "--", "true")
    assert len(json.loads(forecast("--json", *words).stdout)["data"]) == 1


def test_a_size_is_enough_and_its_errors_are_the_forecasts_own(seen):
    words = ("--site", "lab-onprem", "--nodes", "2", "--gpus-per-node", "4", "--time", "4:00:00")
    done = forecast("--json", *words)
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["data"][0]["state"] == "NEW"
    for nothing in ((), ("--site", "lab-onprem"), ("none.toml",)):
        done = forecast(*nothing)
        assert isinstance(done.exception, HpcscaleError)
        assert "submit" not in f"{done.exception}{done.exception.hint}"
    done = forecast("--site", "lab-onprem", "--partition", "nosuch", "--nodes", "1")
    assert isinstance(done.exception, HpcscaleError)
    assert done.exception.hint.startswith("--partition")


def test_a_job_of_the_queue_as_a_request():
    job = pending(3, num_nodes=2, cpus=10, gpus=8, limit_s=HOUR, array_pending="1-4%2")
    size = answer.as_spec(job).resources
    assert (size.nodes, size.gpus_per_node, size.cpus_per_task) == (2, 4, 5)
    assert size.time_limit_s == HOUR
    assert nodes(1, "gpu", 4)[0].gpus == size.gpus_per_node
