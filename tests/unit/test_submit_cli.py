"""``hpcscale submit --dry-run``: everything is said and nothing is done."""

import json
import subprocess
import sys

import pytest
from job_helpers import hpcscale

JOB = ("--site", "lab-onprem", "--nodes", "2", "--gpus-per-node", "4", "--time", "60")


@pytest.fixture
def nowhere(tmp_path, monkeypatch):
    """A directory to stand in; the state directory must not come to be."""
    place = tmp_path / "project"
    place.mkdir()
    monkeypatch.chdir(place)
    yield place
    assert not (tmp_path / "state").exists(), "a dry run changes nothing"
    assert list(place.iterdir()) == []


def dry(*args, **options):
    return hpcscale("submit", "--dry-run", *args, **options)


def test_it_says_where_why_and_for_how_much(nowhere):
    out = dry(*JOB, "--", "true").stdout
    assert "# site: lab-onprem, by --site" in out
    assert "# cost: at most $16.80 (2 nodes x 4 GPUs x 1 h x $2.10/GPU-hour)" in out
    assert "--comment=hpcscale=SUBMISSION_ID" in out
    assert out.endswith('exit "$rc"\n')


def test_the_script_is_the_one_that_render_prints(nowhere):
    script = hpcscale("render", *JOB, "--", "true").stdout
    assert dry(*JOB, "--", "true").stdout.endswith(script)
    data = json.loads(dry(*JOB, "--json", "--", "true").stdout)["data"]
    assert data["script"] == script
    assert data["cost"]["usd"] == "16.80"


def test_an_unknown_price_says_unknown(nowhere):
    out = dry("--site", "lab-onprem", "--time", "10", "--", "true").stdout
    assert "# cost: unknown: no GPUs" in out


def test_a_default_site_is_named_with_who_said_it(nowhere):
    out = dry("--time", "10", "--", "true", env={"HPCSCALE_DEFAULT_SITE": "lab-onprem"}).stdout
    assert "# site: lab-onprem, by $HPCSCALE_DEFAULT_SITE" in out


def test_it_says_where_the_job_may_burst_to_and_where_not(nowhere):
    out = dry(*JOB, "--burst", "auto", "--max-cost", "70", "--", "true").stdout
    assert "# burst: may burst to lab-cloud, expected cost $64.75 (" in out
    assert "at most $66.13 with slow boots" in out
    assert "over its --max-cost $70.00; --max-cost 185.31 would do" in out  # aws-p5
    assert "; not yet: no lab is running" in out
    out = dry(*JOB, "--burst", "auto", "--", "true").stdout
    assert "; not yet: site aws-p5 has no login node yet: key 'host' is missing" in out
    out = dry(*JOB, "--burst", "auto", "--", "python", "/data/train.py").stdout
    assert "cannot burst to lab-cloud: the command names the absolute path /data/train.py" in out


def test_only_elsewhere_and_nowhere_to_go_is_refused(nowhere):
    done = dry(*JOB, "--burst", "only", "--", "python", "/data/train.py", code=7)
    assert "/data/train.py" in done.stderr


def test_a_missing_secret_is_said(nowhere):
    assert "TOKEN" in dry(*JOB, "--secret", "TOKEN", "--", "true", code=8).stderr


def test_a_secrets_value_is_not_shown(nowhere):
    done = dry(*JOB, "--secret", "TOKEN", "--", "true", env={"TOKEN": "s3cr3t-value"})
    assert "s3cr3t-value" not in done.stdout + done.stderr


@pytest.mark.parametrize(
    ("args", "code", "word"),
    [
        ((), 2, "nothing to run"),
        (("--site", "nosuch", "--", "true"), 8, "nosuch"),
        (("--nodes", "x", "--", "true"), 2, "--nodes"),
        (("--nodes", "-1", "--", "true"), None, "nodes"),
        (("--time", "soon", "--", "true"), None, "soon"),
        (("--deadline", "2001-01-01", "--", "true"), None, "passed"),
        (("--after", "afterok:nosuch", "--", "true"), 2, "nosuch"),
        (("--after", "cloud:5", "--", "true"), 2, "cloud"),
        (("--input", "d=/no/such/file", "--", "true"), 8, "/no/such/file"),
        (("nosuch.toml",), 8, "nosuch.toml"),
    ],
)
def test_bad_input_is_one_clear_message(nowhere, args, code, word):
    site = () if "--site" in args else ("--site", "lab-onprem")
    done = dry(*site, *args, code=code)
    assert done.returncode not in {0, 1, 70}, done.stderr
    assert word in done.stderr


def test_what_goes_along_and_what_comes_back_are_told_apart(nowhere, tmp_path):
    (tmp_path / "data").mkdir()
    words = ("--no-code", "--input", f"d={tmp_path}/data", "--output", f"o={tmp_path}/out")
    out = dry(*JOB, *words, "--", "true").stdout
    assert f"# copied: {tmp_path}/data -> inputs/d" in out
    assert f"# fetched: outputs/o -> {tmp_path}/out" in out


def test_a_deadline_that_nothing_can_meet_is_refused_with_the_earliest_time(nowhere):
    late = dry(*JOB, "--burst", "auto", "--deadline", "+30m", "--", "true", code=7)
    assert "cannot be met: with its time limit of 1h00m the earliest possible is " in late.stderr
    assert "try: --deadline 20" in late.stderr
    # --burst only has no start here: boot and staging of lab-cloud come first
    only = dry(*JOB, "--burst", "only", "--deadline", "+60m", "--", "true", code=7)
    assert "(lab-cloud, 35s of boot and staging first)" in only.stderr
    fine = dry(*JOB, "--burst", "auto", "--deadline", "+3h", "--", "true")
    assert "# burst: its deadline can be kept by a move until " in fine.stdout


@pytest.mark.parametrize("mode", ["never", "auto"])
def test_a_job_that_may_not_burst_loads_nothing_of_bursting(nowhere, mode):
    program = (
        "import sys\nfrom hpcscale.cli import main\n"
        f"main(['submit', '--dry-run', '--site', 'lab-onprem', '--time', '10', '--burst', {mode!r},"
        " '--', 'true'], standalone_mode=False)\n"
        "print('LOADED', *[m for m in sys.modules if m.startswith('hpcscale.burst')])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=True
    )
    loaded = done.stdout.split("LOADED")[1].split()
    assert bool(loaded) == (mode == "auto"), loaded
