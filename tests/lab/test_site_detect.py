"""``hpcscale site detect`` on real Slurm: what it writes, ``site check`` passes as it is."""

import json
from pathlib import Path

import pytest
from job_helpers import hpcscale

from hpcscale.site import load_site
from hpcscale.tomlfile import read_toml


def login(lab):
    site = load_site("lab-cloud").site.transport
    return (f"{site.user}@{site.host}", "--port", str(site.port), "--identity-file",
            site.identity_file, "--known-hosts", site.known_hosts)  # fmt: skip


def passes(name, *args):
    checked = json.loads(hpcscale("site", "check", name, *args, "--json").stdout)["data"]
    assert checked["ok"]
    found = {c["name"]: c["verdict"] for c in checked["checks"]}
    assert set(found.values()) <= {"ok", "warn", "skipped"}
    assert {name for name, verdict in found.items() if verdict == "warn"} == {"price"}
    return found


def test_the_on_prem_site(lab_env, monkeypatch):
    scratch = lab_env.site("lab-onprem").paths.scratch
    # this machine's home is not what the nodes have: what they see is found by a job
    monkeypatch.setenv("SCRATCH", str(scratch))
    done = hpcscale("site", "detect", "--name", "found")
    path = Path(done.stdout.strip())
    assert path == lab_env.state.directory / "config" / "sites" / "found.toml"
    try:
        monkeypatch.delenv("SCRATCH")
        found = passes("found")
        assert found["seen from the nodes"] == "ok"
        site = load_site("found").site
        assert site.state_dir == f"{scratch}/hpcscale-state"
        assert site.transport.slurm_conf == lab_env.env()["SLURM_CONF"]
        assert {n: p.preemptible for n, p in site.partitions.items()} == {
            "gpu": False, "spot": True, "urgent": False,
        }  # fmt: skip
        assert site.partitions["gpu"].features == ("onprem", "h100")
        assert site.topology.startswith("tree: 2 leaf switches (onprem[1-2]; onprem[3-4])")
        assert site.max_array_size == 10001
        assert "price" not in read_toml(path)
        # what is there is not overwritten, a site of another layer not mixed with
        before = path.read_text()
        refused = hpcscale("site", "detect", "--name", "found", code=4)
        assert "--force" in refused.stderr
        assert path.read_text() == before
        hpcscale("site", "detect", "--no-probe-job", code=4)  # lab-onprem has a profile
        again = hpcscale("site", "detect", "--name", "found", "--force", "--no-probe-job",
                         "--state-dir", "~/runs", "--json")  # fmt: skip
        data = json.loads(again.stdout)["data"]
        assert data["path"] == str(path)
        assert data["toml"] == path.read_text()
        assert load_site("found").site.state_dir == "~/runs"
        assert "price" in data["unknown"]
    finally:
        path.unlink()
    left = [p.name for p in scratch.rglob("detect-*")]
    assert left == []


@pytest.mark.parametrize("kind", ["ssh", pytest.param("openssh", marks=pytest.mark.slow)])
def test_the_cloud_site(lab_env, tmp_path, kind):
    path = lab_env.state.directory / "config" / "sites" / "far.toml"
    hpcscale("site", "detect", *login(lab_env), "--kind", kind, "--name", "far")
    try:
        # a node would boot for the probe, so only `site check` does it, when told to
        assert passes("far", "--no-probe-job")["seen from the nodes"] == "skipped"
        site = load_site("far").site
        assert site.transport.kind == kind
        assert site.transport.slurm_conf is None  # the login has it by itself
        assert site.partitions["gpu"].features == ("cloud", "h100")
        printed = hpcscale("site", "detect", *login(lab_env), "--name", "far", "-o", "-").stdout
        lines = [line for line in printed.splitlines() if not line.startswith("kind")]
        same = [line for line in path.read_text().splitlines() if not line.startswith("kind")]
        assert lines == same
    finally:
        path.unlink()


def test_nobody_there_is_said_and_nothing_written(lab_env):
    done = hpcscale("site", "detect", "127.0.0.1", "--port", "1", "--name", "none", code=5)
    assert "cannot connect" in done.stderr
    assert not (lab_env.state.directory / "config" / "sites" / "none.toml").exists()
    hpcscale("site", "detect", "--kind", "ssh", code=2)
