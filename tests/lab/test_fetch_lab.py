"""Fetching from real sites: while the job runs, through cuts, and never more than was meant."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from job_helpers import data, hpcscale, start
from lab_helpers import until

from hpcscale.errors import UnreachableError
from hpcscale.lab import faults
from hpcscale.ledger import Ledger
from hpcscale.spec import Checkpoint, Resources

WORK = r"""
cd "$HPCSCALE_OUTPUT_MODEL"
echo early > early.txt
echo one > growing
printf x > "$(printf 'esc\033[31mred')"
ln -s /etc/passwd link
ln "$HPCSCALE_OUTPUT_MODEL/early.txt" hard
mkfifo pipe
mkdir -p deep/er; echo deep > deep/er/x
head -c 30000000 /dev/zero > big
echo saved > "$HPCSCALE_CHECKPOINT_DIR/step"
touch ready
while [ ! -e go ]; do sleep 0.2; done
echo two >> growing
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", ["lab-onprem", "lab-cloud"])
def test_a_running_jobs_files_come_and_later_the_rest(lab_env, tmp_path, name):
    here = tmp_path / "model"
    got = start(
        name,
        WORK,
        outputs={"model": f"{here}/"},
        checkpoint=Checkpoint(dir=str(tmp_path / "ckpt")),
        resources=Resources(time_limit_s=1800),
    )
    there = lab_env.site(name)
    outputs = f"{got.run_dir}/outputs/model"
    until(lambda: there.exec(["test", "-e", f"{outputs}/ready"]).returncode == 0, 60, "it runs")

    looked = json.loads(
        hpcscale("fetch", got.run_id, "--output", "model", "--to", str(tmp_path / "look"), "--json").stdout
    )["data"]  # fmt: skip
    assert looked["ended"] is False
    assert (tmp_path / "look" / "model" / "growing").read_text() == "one\n"
    assert not (tmp_path / "ckpt" / "step").exists()

    done = hpcscale("fetch", got.run_id)
    assert "\x1b" not in done.stdout + done.stderr
    assert "so far" in done.stderr
    assert done.stderr.count("refused: ") == 2  # the link and the pipe
    assert (here / "deep" / "er" / "x").read_text() == "deep\n"
    assert (here / "hard").read_text() == "early\n"
    assert (here / "hard").stat().st_nlink == 1
    assert (here / "big").stat().st_size == 30_000_000
    assert not {"link", "pipe"} & {p.name for p in here.iterdir()}
    assert (tmp_path / "ckpt" / "step").read_text() == "saved\n"

    again = data("fetch", got.run_id)
    assert again["files"] == []
    assert again["unchanged"] >= 6
    assert hpcscale("fetch", got.run_id, "--output", "none", code=8).stderr
    small = hpcscale(
        "fetch", got.run_id, "--max-bytes", "1M", "--to", str(tmp_path / "small"), code=4
    )
    assert "--max-bytes" in small.stderr
    assert not (tmp_path / "small").exists()

    there.exec(["touch", f"{outputs}/go"], check=True)
    hpcscale("wait", got.run_id)
    assert (here / "growing").read_text() == "one\ntwo\n"
    assert data("fetch", got.run_id)["files"] == []
    with Ledger.open() as ledger:
        assert ledger.find(got.run_id).fetched


@pytest.mark.slow
def test_a_large_input_goes_on_where_it_was_cut(lab_env, tmp_path):
    source = tmp_path / "set.bin"
    source.write_bytes(os.urandom(60_000_000))
    site = lab_env.site("lab-cloud")
    store = site.paths.scratch
    work = 'sha256sum "$HPCSCALE_INPUT_D" | cut -c1-64; stat -c %a "$HPCSCALE_INPUT_D"'

    # the third block is cut, and everything after it
    script = (
        f"import sys; sys.path.insert(0, {str(Path(__file__).parents[1])!r}); from job_helpers import start; "
        f"start('lab-cloud', {work!r}, inputs={{'d': {str(source)!r}}}, name='sent')"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    part = until(
        lambda: site.exec(["find", str(store), "-name", ".data.*.part", "-size", "+15M"]).stdout,
        60,
        "a part is there",
    ).strip()
    child.kill()
    child.communicate(timeout=30)
    arrived = int(site.exec(["stat", "-c", "%s", part], check=True).stdout)
    if arrived < 60_000_000:
        assert arrived > 15_000_000

    faults.ssh_cut(lab_env, "before", match="cat >>")  # and once more on the way
    got = start("lab-cloud", work, inputs={"d": str(source)}, name="sent")
    hpcscale("wait", got.run_id)
    digest = subprocess.run(
        ["sha256sum", str(source)], capture_output=True, text=True, check=True, timeout=60
    ).stdout[:64]
    assert hpcscale("logs", got.run_id).stdout == f"{digest}\n400\n"
    assert site.exec(["find", str(store), "-name", "*.part"]).stdout == ""


@pytest.mark.slow
def test_a_site_that_goes_away_while_fetching_is_asked_again_later(lab_env, tmp_path):
    here = tmp_path / "big"
    got = start("lab-cloud", 'head -c 40000000 /dev/urandom > "$HPCSCALE_OUTPUT_BIG"',
                outputs={"big": str(here)})  # fmt: skip
    hpcscale("wait", got.run_id, timeout_s=90)
    whole = here.read_bytes()
    here.unlink()
    faults.ssh_cut(lab_env, "refuse")
    hpcscale("fetch", got.run_id, code=UnreachableError.exit_code)
    assert not here.exists()
    faults.ssh_cut(lab_env, "normal")
    hpcscale("fetch", got.run_id)
    assert here.read_bytes() == whole
