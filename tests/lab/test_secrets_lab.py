"""Planted secrets are looked for wherever anything of a job can be read; none is found.

Each search also looks for a mark that is no secret, and must find it: else it looked nowhere.
"""

import json
import os
import subprocess
import threading
import time
from pathlib import Path

import pytest
import s3
from job_helpers import hpcscale
from lab_helpers import until

MARK = "marked-7f3a9c"
PLANTED = {
    "a secret from a variable": "plantedEnv-5d1f0a7be2",
    "a secret from a file": "plantedFile-93bc4478aa",
    "a provider's key": "plantedProvider-0b9d4f6c11",
    "a key of the object store": s3.SECRET_KEY,
    "a private key": "plantedPrivateKey-aa61c09e7d",
    "a .env file": "plantedDotEnv-e4471b20cd",
}
PROVIDERS = (
    "WANDB_API_KEY", "HF_TOKEN", "AZURE_CLIENT_SECRET", "GOOGLE_API_KEY", "OPENAI_API_KEY",
    "AWS_SESSION_TOKEN_UNUSED", "SBATCH_COMMENT_TOKEN",
)  # fmt: skip
JOB = r"""
[ "${#TOKEN}" = 21 ] && [ "${#KEY}" = 22 ] || exit 9
[ -z "${WANDB_API_KEY-}${HF_TOKEN-}${AWS_SECRET_ACCESS_KEY-}" ] || exit 8
echo "MARKED $MARKED"; cat "$HPCSCALE_INPUT_SET/part" > "$HPCSCALE_OUTPUT_OUT"
touch "$HPCSCALE_RUN_DIR/ready"
while [ ! -e "$HPCSCALE_RUN_DIR/go" ]; do sleep 0.2; done
"""


class Watch:
    """Every command line that is seen on this machine while it looks."""

    def __init__(self):
        self.seen = set()
        self.looks = 0
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def _look(self):
        while not self._end.is_set():
            for entry in os.scandir("/proc"):
                if entry.name.isdigit():
                    try:
                        self.seen.add(Path(entry.path, "cmdline").read_bytes())
                    except OSError:
                        continue
            self.looks += 1
            time.sleep(0.02)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._end.set()
        self._thread.join(30)


def found_in(where, data, *, marked=True):
    """Which planted secrets these bytes hold; the mark must be there when it belongs there."""
    if marked:
        assert MARK.encode() in data, f"{where} was not really read"
    return [f"{what} in {where}" for what, value in PLANTED.items() if value.encode() in data]


def content(root, *, without=()):
    """All files below a directory, with their names."""
    blocks = []
    for directory, names, files in os.walk(root):
        names[:] = [n for n in names if n not in without]
        for name in files:
            path = Path(directory, name)
            blocks.append(str(path).encode())
            if path.is_file() and not path.is_symlink():
                try:
                    blocks.append(path.read_bytes())
                except OSError:
                    continue
    return b"\n".join(blocks)


@pytest.fixture(scope="module")
def store():
    with s3.s3_server() as endpoint:
        s3.put(endpoint, "set/part", b"from the store\n")
        yield endpoint


@pytest.fixture
def program(tmp_path, monkeypatch, store):
    root = tmp_path / "program"
    root.mkdir()
    subprocess.run(["git", "-C", str(root), "init", "-q"], check=True, timeout=30)
    (root / "job.sh").write_text(JOB)
    (root / "secret.txt").write_text(PLANTED["a secret from a file"])
    (root / ".env").write_text(f"X={PLANTED['a .env file']}\n")
    (root / "id_ed25519").write_text(PLANTED["a private key"])
    monkeypatch.chdir(root)
    monkeypatch.setenv("MY_TOKEN", PLANTED["a secret from a variable"])
    for name in PROVIDERS:
        monkeypatch.setenv(name, PLANTED["a provider's key"])
    for name, value in s3.KEYS.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_ENDPOINT_URL", store)
    return root


def look_everywhere(lab_env, name, store, *, accounting):
    site = lab_env.site(name)
    said = []
    faults = []

    def call(*words, **options):
        done = hpcscale(*words, **options)
        said.append(done.stdout + done.stderr)
        return done.stdout

    with Watch() as watch:
        got = json.loads(
            call(
                "submit", "--json", "--site", name, "--name", MARK, "--time", "9", "--nodes", "1",
                "--env", f"MARKED={MARK}", "--secret", "TOKEN=env:MY_TOKEN",
                "--secret", "KEY=file:secret.txt", "--input", f"set=s3://{s3.BUCKET}/set",
                "--output", f"out=s3://{s3.BUCKET}/out-{name}", "--", "bash", "job.sh",
            )
        )["data"]  # fmt: skip
        run, run_dir = got["run_id"], got["run_dir"]
        until(lambda: site.exec(["test", "-e", f"{run_dir}/ready"]).returncode == 0, 120, "it runs")

        # the secrets are there now, each in a file that nobody else can read
        secrets = Path(run_dir, "secrets")
        modes = site.exec(
            ["find", str(secrets), "-printf", "%y %m %U\\n"], check=True
        ).stdout.split("\n")[:-1]
        assert sorted({m.split()[0] + m.split()[1] for m in modes}) == ["d700", "f600"]
        held = site.exec(["cat", f"{secrets}/{got['submission_id']}/TOKEN"], check=True).stdout
        assert held == PLANTED["a secret from a variable"]

        job = got["ref"].partition(":")[2]
        asked = {
            "scontrol": ["scontrol", "-dd", "show", "job", job],
            "the script that Slurm has": ["scontrol", "write", "batch_script", job, "-"],
            "squeue": ["squeue", "-o", "%all"],
            "the site's state": ["grep", "-r", "--exclude-dir=secrets", "", str(Path(run_dir).parents[1])],
        }  # fmt: skip
        for what, argv in asked.items():
            faults += found_in(what, site.exec(argv, check=True).stdout.encode())
        call("status", run)
        call("status", run, "--json")
        call("render", "--site", name, "--secret", "TOKEN=env:MY_TOKEN", "--env", f"M={MARK}",
             "--", "bash", "job.sh")  # fmt: skip
        call("fetch", run)
        site.exec(["touch", f"{run_dir}/go"], check=True)
        call("wait", run)
        call("logs", run)
    if accounting:
        asked = ["sacct", "-P", "-j", job, "-o", "ALL"]
        faults += found_in("sacct", site.exec(asked, check=True).stdout.encode())
        asked = ["sacct", "-j", job, "--batch-script", "--env-vars"]
        faults += found_in("sacct", site.exec(asked).stdout.encode(), marked=False)
    assert s3.get(store, f"out-{name}") == b"from the store\n"
    assert site.exec(["find", str(secrets), "-type", "f"]).stdout == ""

    assert watch.looks > 20
    faults += found_in("command lines", b"\n".join(watch.seen))
    faults += found_in("what hpcscale said", "\n".join(said).encode())
    faults += found_in("our own state", content(os.environ["HPCSCALE_STATE_DIR"]))
    everything = content(lab_env.state.directory, without=("ssh",))
    assert run.encode() in everything
    faults += found_in("the lab: Slurm's state, logs, database and the site's files", everything)
    assert faults == []


@pytest.mark.parametrize("name", [pytest.param("lab-onprem", marks=pytest.mark.slow), "lab-cloud"])
def test_no_secret_is_found_anywhere(lab_env, name, program, store):
    look_everywhere(lab_env, name, store, accounting=False)


@pytest.mark.slow
def test_no_secret_is_found_in_slurmdbd(lab_factory, use_lab, program, store):
    lab_env = use_lab(lab_factory(nodes=1, accounting=True))
    look_everywhere(lab_env, "lab-cloud", store, accounting=True)
