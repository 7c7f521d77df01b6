"""The simulator's report in a real browser: nothing is cut off, and names do not lie on names."""

import json
import re
import shutil
import subprocess
from html import unescape

import numpy as np
import pytest
from click.testing import CliRunner

from hpcscale.cli import main

BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), ""
)
POLICIES = (
    "never", "always", "no-wait", "threshold", "constant-wait", "compute-wait", "deadline", "value",
)  # fmt: skip
# texts that leave their chart; names of dots that lie on one another; what was drawn
LOOK = """<script>
const bad = [], drawn = {};
document.querySelectorAll('svg').forEach(svg => {
  const [x, y, w, h] = svg.getAttribute('viewBox').split(' ').map(Number);
  const names = [];
  svg.querySelectorAll('text').forEach(t => {
    const b = t.getBBox();
    if (t.style.fill) names.push([t.textContent, b]);
    if (t.getAttribute('transform')) return;
    if (b.x < x - 1 || b.y < y - 1 || b.x + b.width > w + 1 || b.y + b.height > h + 1)
      bad.push(['outside', t.textContent]);
  });
  names.forEach(([one, a], i) => names.slice(i + 1).forEach(([other, b]) => {
    if (Math.min(a.x + a.width, b.x + b.width) - Math.max(a.x, b.x) > 4 &&
        Math.min(a.y + a.height, b.y + b.height) - Math.max(a.y, b.y) > 4)
      bad.push([one, other]);
  }));
});
for (const what of ['svg', 'circle.ring', 'path.front', 'tbody tr'])
  drawn[what] = document.querySelectorAll(what).length;
document.body.dataset.wide = document.documentElement.scrollWidth > innerWidth;
document.body.dataset.look = JSON.stringify({bad, drawn});
</script>"""


@pytest.mark.slow  # a browser
@pytest.mark.skipif(not BROWSER, reason="no Chromium is installed here")
@pytest.mark.parametrize("seed", [5, 6])
def test_nothing_of_the_report_is_cut_off(tmp_path, seed):
    rng = np.random.default_rng(seed)
    arrival = np.cumsum(rng.exponential(1 / 16, 300))
    gpus = rng.choice([1, 2, 4, 8], 300, p=[0.7, 0.15, 0.1, 0.05])
    rows = zip(arrival, rng.exponential(1, 300), gpus, ["bio", "fluid"] * 150, strict=True)
    history, page = tmp_path / "jobs.csv", tmp_path / "report.html"
    lines = [",".join(map(str, row)) for row in rows]
    history.write_text("\n".join(["arrival_h,runtime_h,gpus,account", *lines]))
    args = ["--nodes=4", "--gpus-per-node=8", "--cloud-gpu-hour-usd=2.50", f"--html={page}"]
    args += [f"--policy={name}" for name in POLICIES]
    done = CliRunner().invoke(main, ["burst", "simulate", f"--history={history}", *args])
    assert done.exit_code == 0, done.output
    page.write_text(page.read_text() + LOOK)
    seen = subprocess.run(
        [
            BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--window-size=1280,1000",
            f"--user-data-dir={tmp_path / 'browser'}", "--dump-dom", page.as_uri(),
        ],
        capture_output=True, text=True, timeout=300, check=True,
    ).stdout  # fmt: skip
    look = json.loads(unescape(re.search(r'data-look="([^"]*)"', seen)[1]))
    assert look["bad"] == []
    drawn = look["drawn"]
    assert drawn["svg"] == 2 + 2 * len(POLICIES)
    assert drawn["circle.ring"] >= 3
    assert drawn["path.front"] >= 1
    assert drawn["tbody tr"] >= len(POLICIES)
    assert 'data-wide="false"' in seen, "it is scrolled to the side"
