"""Planted secrets are looked for wherever anything of a job can be read; none is found.

Each search also looks for a mark that is no secret, and must find it: else it looked nowhere.
"""

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import s3
from job_helpers import hpcscale
from lab_helpers import job_state, sbatch, until

from hpcscale.lab.process import patience
from hpcscale.ledger import Ledger

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


def asked_of(site, job, run_dir, submission_id):
    """Faults in what a site says of a live job; the secrets lie there, for nobody else to read."""
    secrets = f"{run_dir}/secrets"
    modes = site.exec(["find", secrets, "-printf", "%y%m\\n"], check=True).stdout
    assert set(modes.split()) == {"d700", "f600"}
    held = site.exec(["cat", f"{secrets}/{submission_id}/TOKEN"], check=True).stdout
    assert held == PLANTED["a secret from a variable"]
    asked = {
        "scontrol": ["scontrol", "-dd", "show", "job", job],
        "the script that Slurm has": ["scontrol", "write", "batch_script", job, "-"],
        "squeue": ["squeue", "-o", "%all"],
        "the site's state": ["grep", "-r", "--exclude-dir=secrets", "", str(Path(run_dir).parents[1])],
    }  # fmt: skip
    faults = []
    for what, argv in asked.items():
        faults += found_in(what, site.exec(argv, check=True).stdout.encode())
    return faults


def submission(name, out):
    """The words that submit the job with its secrets."""
    return [
        "submit", "--json", "--site", name, "--name", MARK, "--time", "9", "--nodes", "1",
        "--env", f"MARKED={MARK}", "--secret", "TOKEN=env:MY_TOKEN",
        "--secret", "KEY=file:secret.txt", "--input", f"set=s3://{s3.BUCKET}/set",
        "--output", f"out=s3://{s3.BUCKET}/{out}",
    ]  # fmt: skip


def look_everywhere(lab_env, name, store, *, accounting):
    site = lab_env.site(name)
    said = []
    faults = []

    def call(*words, **options):
        done = hpcscale(*words, **options)
        said.append(done.stdout + done.stderr)
        return done.stdout

    with Watch() as watch:
        got = json.loads(call(*submission(name, f"out-{name}"), "--", "bash", "job.sh"))["data"]
        run, run_dir = got["run_id"], got["run_dir"]
        until(lambda: site.exec(["test", "-e", f"{run_dir}/ready"]).returncode == 0, 120, "it runs")

        secrets = Path(run_dir, "secrets")
        job = got["ref"].partition(":")[2]
        faults += asked_of(site, job, run_dir, got["submission_id"])
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


@pytest.mark.slow
def test_no_secret_is_found_after_a_move(lab_env, program, store, tmp_path):
    """At both sites, before and after the job has moved, and in the audit log of the move."""
    onprem, cloud = lab_env.site("lab-onprem"), lab_env.site("lab-cloud")
    filler = sbatch(onprem, "-N4", "--exclusive", script="sleep 900")
    until(lambda: job_state(onprem, filler) == "RUNNING", 60, "the queue is full")
    policy = tmp_path / "P.toml"
    policy.write_text('from = "lab-onprem"\nto = ["lab-cloud"]\nmax_wait = "1h"\n')
    said = []

    def call(*words):
        done = hpcscale(*words)
        said.append(done.stdout + done.stderr)
        return done.stdout

    with Watch() as watch:
        words = submission("lab-onprem", "out-moved")
        got = json.loads(call(*words, "--burst", "only", "--", "bash", "job.sh"))["data"]
        run = got["run_id"]
        here = got["ref"].partition(":")[2], got["run_dir"], got["submission_id"]
        faults = asked_of(onprem, *here)
        call("burst", "plan", "--policy", str(policy))
        call("burst", "explain", run, "--policy", str(policy))
        moving = subprocess.Popen(
            [sys.executable, "-m", "hpcscale", "burst", "run", "--policy", str(policy), "--wait"],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        try:
            with Ledger.open() as ledger:
                until(lambda: len(ledger.attempts(run)) == 2, 60, "it begins to move")
                until(lambda: ledger.attempts(run)[1].job_id, 60, "the cloud has taken it")
                there = ledger.attempts(run)[1]
            assert there.site == "lab-cloud"
            ready = ["test", "-e", f"{there.run_dir}/ready"]
            until(lambda: cloud.exec(ready).returncode == 0, 120, "it runs in the cloud")
            faults += asked_of(cloud, str(there.job_id), there.run_dir, there.submission_id)
            call("status", run, "--json")
            call("burst", "status", "--json")
            cloud.exec(["touch", f"{there.run_dir}/go"], check=True)
            said.append(moving.communicate(timeout=patience(120))[0])
            assert moving.returncode == 0, said[-1]
        finally:
            moving.kill()
        for words in (
            ["wait", run], ["fetch", run], ["logs", run], ["status", run, "--json"],
            ["burst", "status", "--all"], ["burst", "audit"], ["burst", "reap"],
        ):  # fmt: skip
            call(*words)
    assert s3.get(store, "out-moved") == b"from the store\n"
    for site, run_dir in ((onprem, here[1]), (cloud, there.run_dir)):
        assert site.exec(["find", f"{run_dir}/secrets", "-type", "f"]).stdout == ""
    state = Path(os.environ["HPCSCALE_STATE_DIR"])
    log = (state / "audit.log").read_bytes()
    acts = {json.loads(line)["act"] for line in log.splitlines()}
    assert acts >= {"decide to move", "submit", "claim", "update", "decide", "cancel"}
    assert there.submission_id.encode() in log
    faults += found_in("the audit log", log, marked=False)
    faults += found_in("command lines", b"\n".join(watch.seen))
    faults += found_in("what hpcscale said", "\n".join(said).encode())
    ours = content(state)
    assert here[2].encode() in ours
    assert there.submission_id.encode() in ours
    faults += found_in("our own state, with the audit log and both rows", ours)
    for site in (onprem, cloud):
        of_site = content(site.paths.root)
        assert run.encode() in of_site
        faults += found_in(f"Slurm's state, logs and the files of {site.paths.root.name}", of_site)
    faults += found_in("the lab", content(lab_env.state.directory, without=("ssh",)))
    assert faults == []
