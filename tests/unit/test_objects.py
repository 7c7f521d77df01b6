"""Object stores, on a real S3 interface: what goes to a site, what comes back, what is refused."""

import os
import time
from pathlib import Path

import pytest
from s3 import BUCKET, KEYS, get, put, s3_server

from hpcscale import extras, objects, staging
from hpcscale.errors import HpcscaleError, InvalidFileError, NotFoundError
from hpcscale.jobfile import load_job
from hpcscale.render import render
from hpcscale.site import load_site
from hpcscale.slurm.local import LocalTransport
from hpcscale.urls import is_url, url_fault

URL = f"s3://{BUCKET}"


@pytest.fixture(scope="module")
def endpoint():
    with s3_server() as address:
        yield address


@pytest.fixture
def store(endpoint, monkeypatch):
    for name, value in KEYS.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    return endpoint


class Site:
    def __init__(self, root):
        self.transport = LocalTransport()
        self.root = root

    def stage(self, run, **inputs):
        run_dir = str(self.root / "runs" / run)
        staging.make_run_dir(self.transport, run_dir)
        staged = {f"inputs/{name}": url for name, url in inputs.items()}
        staging.check_local(staged)
        staging.stage_in(self.transport, run_dir, staged)
        return Path(run_dir)

    def fetch(self, run_dir, **outputs):
        staged = {f"outputs/{name}": url for name, url in outputs.items()}
        return staging.fetch_results(self.transport, str(run_dir), staged, None)


@pytest.fixture
def site(tmp_path):
    return Site(tmp_path / "site")


def test_a_prefix_and_an_object_reach_the_site_and_only_what_changed_again(store, site):
    put(store, "set/a", b"one")
    put(store, "set/deep/b", b"two")
    put(store, "set/empty/", b"")
    put(store, "set-other", b"no")
    put(store, "one.bin", bytes(6_000_000))
    first = site.stage("r1", d=f"{URL}/set", f=f"{URL}/one.bin")
    assert (first / "inputs/d/a").read_bytes() == b"one"
    assert (first / "inputs/d/deep/b").read_bytes() == b"two"
    assert sorted(p.name for p in (first / "inputs/d").iterdir()) == ["a", "deep"]
    assert (first / "inputs/f").read_bytes() == bytes(6_000_000)
    second = site.stage("r2", d=f"{URL}/set/", f=f"{URL}/one.bin")
    assert (second / "inputs/f").samefile(first / "inputs/f")
    time.sleep(1.1)  # a store's times are whole seconds
    put(store, "set/a", b"new")
    third = site.stage("r3", d=f"{URL}/set")
    assert (third / "inputs/d/a").read_bytes() == b"new"
    assert (first / "inputs/d/a").read_bytes() == b"one"
    left = (Path(os.environ["HPCSCALE_STATE_DIR"]) / "objects").rglob("*")
    assert list(left) == []  # nothing stays here


def test_outputs_are_put_into_the_store_once(store, site):
    run_dir = site.root / "runs" / "r1"
    tree = run_dir / "outputs" / "t"
    (tree / "deep").mkdir(parents=True)
    (tree / "deep" / "x").write_text("deep")
    (tree / "a b").write_text("odd name")
    (tree / "link").symlink_to("/etc/passwd")
    (run_dir / "outputs" / "f").write_bytes(bytes(7_000_000))
    got = site.fetch(run_dir, t=f"{URL}/out/t/", f=f"{URL}/out/f.bin")
    wanted = [f"{URL}/out/f.bin", f"{URL}/out/t/a b", f"{URL}/out/t/deep/x"]
    assert sorted(got.objects) == wanted
    assert len(got.refused) == 1
    assert get(store, "out/t/deep/x") == b"deep"
    assert get(store, "out/t/a%20b") == b"odd name"
    assert get(store, "out/f.bin") == bytes(7_000_000)
    again = site.fetch(run_dir, t=f"{URL}/out/t/", f=f"{URL}/out/f.bin")
    assert (again.objects, again.unchanged) == ([], 3)
    (tree / "deep" / "x").write_text("more")
    assert site.fetch(run_dir, t=f"{URL}/out/t/").objects == [f"{URL}/out/t/deep/x"]
    assert get(store, "out/t/deep/x") == b"more"


def test_nothing_there_is_said_before_anything_happens(store, site):
    with pytest.raises(NotFoundError, match="no object"):
        site.stage("r1", d=f"{URL}/nowhere")
    with pytest.raises(HpcscaleError):
        site.stage("r1", d="s3://no-such-bucket-at-all/x")


def test_a_key_that_leads_out_is_refused(store):
    put(store, "evil/%2E%2E/x", b"1")
    listed = objects.Store(f"{URL}/evil")
    with pytest.raises(InvalidFileError, match="cannot be a path"):
        listed.objects()


def test_a_store_that_does_not_answer_is_said_without_its_keys(monkeypatch):
    for name, value in KEYS.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    with pytest.raises(HpcscaleError) as caught:
        objects.require_input(f"{URL}/x")
    assert not any(value in f"{caught.value} {caught.value.hint}" for value in KEYS.values())


def test_without_the_library_the_extra_is_named(monkeypatch):
    monkeypatch.setattr(extras, "find_spec", lambda name: None if name == "s3fs" else name)
    with pytest.raises(HpcscaleError, match="not installed") as caught:
        objects.Store(f"{URL}/x")
    assert "hpcscale[s3]" in caught.value.hint


@pytest.mark.parametrize(
    "url",
    [
        "s3://",
        "s3://bucket",
        "s3://bucket/",
        "s3://key:secret@bucket/x",
        "s3://b/x?y",
        "s3://b/x\n",
    ],
)
def test_urls_that_cannot_be_used(url, tmp_path):
    assert is_url(url)
    assert url_fault(url)
    with pytest.raises(HpcscaleError) as caught:
        load_job(flags={"inputs": {"d": url}, "site": "lab-cloud"}, command=["true"], cwd=tmp_path)
    assert caught.value.exit_code in {2, 3}
    assert "secret" not in f"{caught.value} {caught.value.hint}"


def test_a_job_names_a_store_and_its_script_does_not_hold_keys(tmp_path, monkeypatch):
    for name, value in KEYS.items():
        monkeypatch.setenv(name, value)
    (tmp_path / "jobs").mkdir()
    (tmp_path / "jobs" / "job.toml").write_text(
        'command = "true"\nsite = "lab-cloud"\ncode = ""\n'
        f'[inputs]\nd = "{URL}/set"\n[outputs]\no = "{URL}/out/"\n'
    )
    spec = load_job("jobs/job.toml", cwd=tmp_path)
    assert (spec.inputs["d"], spec.outputs["o"]) == (f"{URL}/set", f"{URL}/out/")
    for name in ("lab-onprem", "lab-cloud"):
        rendered = render(spec, load_site(name, ["shared_dirs=['/']"]).site)
        assert rendered.staged == {"inputs/d": f"{URL}/set", "outputs/o": f"{URL}/out/"}
        assert not any(value in rendered.script for value in KEYS.values() if value != "us-east-1")


@pytest.mark.parametrize("table", ["inputs", "outputs"])
def test_a_cloned_project_cannot_name_a_store(tmp_path, table):
    (tmp_path / "hpcscale.toml").write_text(f'[job.{table}]\nd = "{URL}/x"\n')
    with pytest.raises(InvalidFileError, match="must not name an object store"):
        load_job(flags={"site": "lab-cloud"}, command=["true"], cwd=tmp_path)


def test_a_checkpoint_is_no_object(tmp_path):
    flags = {"checkpoint": {"dir": f"{URL}/c"}, "site": "lab-cloud"}
    with pytest.raises(HpcscaleError, match="object store") as caught:
        load_job(flags=flags, command=["true"], cwd=tmp_path)
    assert caught.value.exit_code in {2, 3}
