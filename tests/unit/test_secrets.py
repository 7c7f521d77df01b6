"""A secret's value is in one file at the site, and in nothing else that a submit writes or says."""

import os
from pathlib import Path

import msgspec
import pytest
from fake_site import FakeSite

from hpcscale.errors import RefusedError
from hpcscale.prepare import prepare
from hpcscale.spec import JobSpec, Resources, SecretSource
from hpcscale.submit import submit

VALUE = "planted-4c1d77aa90"
FILE_VALUE = "planted-file-0e55b1"
MARK = "marked-19fd03"


@pytest.fixture
def site(tmp_path):
    made = FakeSite(tmp_path)
    yield made
    made.ledger.close()


@pytest.fixture
def job(site, tmp_path, monkeypatch):
    monkeypatch.setenv("MY_TOKEN", VALUE)
    code = tmp_path / "program"
    data = code / "data"
    data.mkdir(parents=True)
    (code / "main").write_text(MARK)
    (code / "secret").write_text(FILE_VALUE)
    (data / "x").write_text(MARK)
    spec = JobSpec(
        name=MARK,
        command=("true",),
        workdir=str(code),
        code=str(code),
        env={"MARKED": MARK},
        inputs={"all": str(code)},
        secrets={
            "TOKEN": SecretSource(kind="env", name="MY_TOKEN"),
            "KEY": SecretSource(kind="file", name=str(code / "secret")),
        },
        resources=Resources(nodes=1, time_limit_s=600),
    )

    def send(resources=spec.resources):
        asked = msgspec.structs.replace(spec, resources=resources)
        return submit(prepare(asked, site.site), site.site, site.connection, site.ledger)

    return send


def files(root):
    return {p: p.read_bytes() for p in Path(root).rglob("*") if p.is_file() and not p.is_symlink()}


def holding(root, value):
    found = files(root)
    assert any(MARK.encode() in data for data in found.values()), f"nothing was read in {root}"
    return [p for p, data in found.items() if value.encode() in data]


@pytest.mark.parametrize(("value", "name"), [(VALUE, "TOKEN"), (FILE_VALUE, "KEY")])
def test_a_value_is_in_one_file_of_its_own(site, job, tmp_path, value, name):
    got = job()
    (held,) = holding(site.state_dir, value)
    assert held == Path(got.run_dir, "secrets", got.submission_id, name)
    assert oct(held.stat().st_mode & 0o777) == "0o600"
    assert oct(held.parent.stat().st_mode & 0o777) == "0o700"
    words = [word for call in site.slurm.calls for word in call]
    assert any(got.submission_id in word for word in words)
    assert not [word for word in words if value in word]
    # (the archive of the code is compressed: its files were looked at where they are unpacked)
    state = files(os.environ["HPCSCALE_STATE_DIR"])
    assert not [p for p, data in state.items() if value.encode() in data]
    ledger = (tmp_path / "ledger.sqlite3").read_bytes()
    assert MARK.encode() in ledger
    assert value.encode() not in ledger
    assert value not in got.script


def test_a_refused_submit_leaves_no_value_there(site, job):
    with pytest.raises(RefusedError):
        job(Resources(nodes=1, gpus_per_node=99))
    assert "sbatch" in {call[0].rpartition("/")[2] for call in site.slurm.calls}
    found = files(site.state_dir)
    assert found  # the store of code stays
    assert not [p for p, d in found.items() if VALUE.encode() in d or FILE_VALUE.encode() in d]
